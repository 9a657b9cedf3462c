"""The stable contract of DESIGN: node ids, their first inputs in order, their outputs. Shared workflows name these."""
import pytest

from qwen_image_2.tools.pack import node_ids

LAYOUT = "QWEN_IMAGE_2_LAYOUT"
CONTRACT = {
    "QwenImage2Loader": (["diffusion_model", "text_encoder", "vae", "variant", "weight_format", "vision_projector"],
                         ["MODEL", "CLIP", "VAE"]),
    "QwenImage2LoadModel": (["diffusion_model", "variant", "weight_format"], ["MODEL"]),
    "QwenImage2LoadTextEncoder": (["text_encoder", "weight_format", "vision_projector"], ["CLIP"]),
    "QwenImage2LoadVAE": (["vae"], ["VAE"]),
    "QwenImage2LoadLoRA": (["model", "lora", "strength", "on",
                            *(f"{part}_{row}" for row in range(2, 9) for part in ("lora", "strength", "on"))],
                           ["MODEL"]),
    "QwenImage2LoadControl": (["control_model"], ["QWEN_IMAGE_2_CONTROL"]),
    "QwenImage2ApplyControl": (["model", "control", "vae", "strength", "start", "end", "image", "mask", "inpaint_image",
                                "reference_rows"], ["MODEL"]),
    "QwenImage2Memory": (["model", "vram_for_weights", "prefix", "vae_peak", "vae"], ["MODEL", "VAE", "STRING"]),
    "QwenImage2TextEncode": (["clip", "prompt", "negative_prompt"], ["CONDITIONING", "CONDITIONING", "INT"]),
    "QwenImage2EditEncode": (["clip", "vae", "prompt", "negative_prompt", "images", "resolution", "canvas"],
                             ["CONDITIONING", "CONDITIONING", "LATENT"]),
    "QwenImage2ReferenceStrength": (["positive", "negative", "reference", "strength", "mask"],
                                    ["CONDITIONING", "CONDITIONING"]),
    "QwenImage2LoadEnhancer": (["enhancer"], ["CLIP"]),
    "QwenImage2PromptEnhance": (["prompt", "enabled", "system_prompt", "aspect_ratio", "size", "width", "height",
                                 "follow_proposal", "seed", "max_tokens", "clip", "images"],
                                ["STRING", "INT", "INT", "STRING"]),
    "QwenImage2PosterBrief": (["title", "subtitle", "body", "call_to_action", "footer"],
                              ["STRING", "INT", "INT", "STRING", LAYOUT]),
    "QwenImage2SlideBrief": (["title", "subtitle", "bullets", "footer"], ["STRING", "INT", "INT", "STRING", LAYOUT]),
    "QwenImage2InfographicBrief": (["title", "subtitle", "data_points", "call_to_action", "source"],
                                   ["STRING", "INT", "INT", "STRING", LAYOUT]),
    "QwenImage2Table": (["file", "columns", "text", "name", "first", "count", "seed", "encoding"],
                        ["QWEN_IMAGE_2_ROW", "STRING", "STRING", "INT", "INT"]),
    "QwenImage2ComicBrief": (["title", "panels"], ["STRING", "INT", "INT", "STRING", LAYOUT]),
    "QwenImage2DeckOutline": (["outline", "footer", "title_position", "picture_position"],
                              ["STRING", "INT", "INT", "STRING", "STRING", "INT", "INT", LAYOUT]),
    "QwenImage2Layout": (["boxes", "font", "picture", "width", "height", "language", "layout"],
                         [LAYOUT, "IMAGE", "MASK", "STRING", "IMAGE", "STRING", "INT", "INT"]),
    "QwenImage2SaveDeck": (["images", "filename_prefix", "files", "page", "texts", "notes", "text", "layouts"], []),
    "QwenImage2Layers": (["model", "clip", "vae", "image", "prompt", "layers", "resolution", "seed", "steps", "cfg",
                          "negative_prompt", "caption_language", "guidance"], ["IMAGE", "IMAGE", "STRING"]),
    "QwenImage2Upscale": (["model", "positive", "vae", "image", "scale", "longer_side", "strength", "seed", "preset",
                           "steps", "cfg", "tile", "overlap", "expected_text", "negative", "control",
                           "control_strength", "tile_reference", "guidance"], ["IMAGE", "STRING"]),
    "QwenImage2CropForEdit": (["image", "mask", "context", "resolution", "feather"],
                              ["IMAGE", "MASK", "QWEN_IMAGE_2_REGION"]),
    "QwenImage2StitchEdit": (["region", "part", "align"], ["IMAGE"]),
    "QwenImage2ExtendCanvas": (["image", "left", "top", "right", "bottom"], ["IMAGE", "MASK"]),
    "QwenImage2GlyphReference": (["text", "font", "letter_height", "direction"], ["IMAGE", "STRING"]),
    "QwenImage2RepairText": (["model", "clip", "vae", "image", "expected_text", "attempts", "seed", "preset", "steps",
                              "cfg", "negative_prompt", "instruction", "letters", "font", "context", "resolution",
                              "feather", "match_case", "match_punctuation", "tolerance", "allow_extra", "layout"],
                             ["IMAGE", "STRING", "FLOAT", "BOOLEAN", "MASK"]),
    "QwenImage2TextCheck": (["image", "expected_text", "match_case", "match_punctuation", "tolerance", "allow_extra",
                             "layout"],
                            ["IMAGE", "STRING", "FLOAT", "BOOLEAN", "MASK", "STRING"]),
    "QwenImage2PickBest": (["images", "scores", "passed", "other_images", "other_scores"], ["IMAGE", "INT", "FLOAT"]),
    "QwenImage2EmptyLatent": (["aspect_ratio", "size", "width", "height", "batch_size"], ["LATENT", "INT", "INT"]),
    "QwenImage2Sampler": (["model", "positive", "latent", "seed", "preset", "steps", "cfg", "denoise", "negative"],
                          ["LATENT"]),
    "QwenImage2Sigmas": (["model", "latent", "preset", "steps", "denoise"], ["SIGMAS"]),
    "QwenImage2VAEEncode": (["image", "vae", "alpha"], ["LATENT"]),
    "QwenImage2VAEDecode": (["samples", "vae"], ["IMAGE", "IMAGE", "MASK"]),
    "QwenImage2SavePage": (["image", "filename_prefix", "format", "layout"], []),
    "QwenImage2SaveQuantized": (["filename_prefix", "model", "clip"], []),
}


@pytest.fixture(scope="module")
def schemas(client):
    return {name: schema for name, schema in client.object_info().items() if name in node_ids()}


def inputs_of(schema) -> dict:
    return {**schema["input"].get("required", {}), **schema["input"].get("optional", {})}


def test_every_node_is_in_the_contract(schemas):
    assert set(schemas) == set(CONTRACT)


@pytest.mark.parametrize("name", CONTRACT)
def test_ids_inputs_and_outputs(schemas, name):
    inputs, outputs = CONTRACT[name]
    assert list(inputs_of(schemas[name]))[:len(inputs)] == inputs
    assert schemas[name]["output"] == outputs


def test_every_input_has_a_tooltip_and_every_node_its_words(schemas):
    for name, schema in schemas.items():
        assert schema["category"].startswith("Qwen-Image 2") and schema["description"], name
        assert len(schema["search_aliases"]) >= 3, name
        for key, (_, *options) in inputs_of(schema).items():
            template = (options[0] if options else {}).get("template")
            told = template["input"]["required"]["image"][1] if template else options[0]
            assert len(told.get("tooltip", "")) > 10, f"{name}.{key}"


def test_linked_sizes_reach_the_canvas(client):
    """Width and height may come from other nodes, which are not known when a workflow is checked."""
    from qwen_image_2.tests.server.conftest import Graph, latent, node
    nodes = {"first": Graph(width=128, height=96).nodes()["canvas"]}
    nodes["second"] = node("QwenImage2EmptyLatent", aspect_ratio="custom", size="1024", width=["first", 1],
                           height=["first", 2], batch_size=1)
    nodes["latent"] = node("SaveLatent", samples=["second", 0], filename_prefix="linked")
    assert latent(client, client.run(nodes)).shape == (1, 64, 6, 8)
