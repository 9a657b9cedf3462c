"""Qwen-Image 1.x through a running server: whole pictures against the reference pipelines, core's nodes, bad input."""
import functools
import itertools

import numpy as np
import pytest
import torch

from qwen_image_2.model.images import sizes
from qwen_image_2.model.qwen_image_1.latents import LATENT_MEAN, LATENT_STD
from qwen_image_2.model.runtime import latent_scale
from qwen_image_2.tests import reference_1
from qwen_image_2.tests.reference import error
from qwen_image_2.tests.server import conftest as here
from qwen_image_2.tests.server.conftest import Graph, node
from qwen_image_2.tests.server.test_briefs import page
from qwen_image_2.tests.server.test_edit import edit_nodes, message, pictures
from qwen_image_2.tests.server.test_equality import PIXEL_BOUND
from qwen_image_2.tests.server.test_region import masked_edit, spot, upload_mask
from qwen_image_2.tests.server.test_text_check import repair, sign  # noqa: F401
from qwen_image_2.tools import tiny
from qwen_image_2.tools.comfyui.client import Client, WorkflowInterrupted
from qwen_image_2.tools.comfyui.server import Server

FOLDERS = tuple(f"Qwen-Image-Edit-2511/{part}/" for part in ("transformer", "text_encoder", "vae"))
WHOLE = "checkpoints/qwen_rapid_aio.safetensors"
LAYOUTS = {
    "Comfy-Org files": (tiny.TRANSFORMER_1, tiny.TEXT_ENCODER_1, tiny.VAE_1),
    "diffusers folders": FOLDERS,
    "a whole checkpoint": (WHOLE,) * 3,
}
PROMPT = 'A poster, "GRAND OPENING" in red letters. 红底金字“开业大吉”。'
NEGATIVE = "blurry, low quality"
SEED = 42
LATENT_BOUND = 2e-4  # of the largest value; 3e-6 was seen
DEEP = "deep.safetensors"
LAYERED, LAYERED_VAE = "qwen_image_layered_bf16.safetensors", "qwen_image_layered_vae.safetensors"
SIDE = 128  # of a reference, about, as the VAE sees it


@pytest.fixture(scope="module")
def oracle(comfyui_path):
    """pipelines(options) -> kind -> a pipeline, whose weights are the files'."""
    return functools.cache(functools.partial(reference_1.pipelines, comfyui_path))


@pytest.fixture(scope="module")
def models(oracle, tmp_path_factory):
    """The same weights, fp32, in every layout, and 2.x's beside them."""
    root = tmp_path_factory.mktemp("models_1")
    tiny.write(root)
    edit = oracle(zero_cond_t=True)["edit"]
    transformer, encoder, vae = (part.state_dict() for part in (edit.transformer, edit.text_encoder, edit.vae))
    config = {"text_config": tiny.TEXT_CONFIG_1, "vision_config": tiny.VISION_CONFIG_1}
    tiny.save(transformer, root / "diffusion_models" / tiny.TRANSFORMER_1, {}, torch.float32)
    tiny.save(tiny.to_comfy_text_encoder_1(encoder), root / "text_encoders" / tiny.TEXT_ENCODER_1, config,
              torch.float32)
    tiny.save(tiny.to_wan_vae_1(vae), root / "vae" / tiny.VAE_1, {}, torch.float32)
    for part, folder in zip((edit.transformer, edit.text_encoder, edit.vae), FOLDERS, strict=True):
        part.save_pretrained(root / "diffusers" / folder)
    tiny.save(reference_1.transformer(layers=6).state_dict(), root / "diffusion_models" / DEEP, {}, torch.float32)
    tiny.save(tiny.whole_1(transformer, encoder, vae), root / WHOLE, config, torch.float32)
    layered, rgba = reference_1.transformer(layered=True).state_dict(), reference_1.vae_1(4).state_dict()
    tiny.save(layered, root / "diffusion_models" / LAYERED, {}, torch.float32)
    tiny.save(tiny.to_wan_vae_1(rgba), root / "vae" / LAYERED_VAE, {}, torch.float32)
    return root


@pytest.fixture(scope="module")
def server(comfyui_path, models):
    with Server(comfyui_path, models=models, cpu=True, preview="latent2rgb") as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return Client(server.url)


def graph(layout="Comfy-Org files", **settings) -> Graph:
    diffusion_model, text_encoder, vae = LAYOUTS[layout]
    return Graph(**{"diffusion_model": diffusion_model, "text_encoder": text_encoder, "vae": vae, "prompt": PROMPT,
                    "negative_prompt": NEGATIVE, "seed": SEED} | settings)


def normalized(latent: torch.Tensor) -> torch.Tensor:
    """The only frame (B, 16, h, w), on the transformer's scale."""
    return latent_scale.normalize(latent[:, :, 0], LATENT_MEAN, LATENT_STD)


def of_reference(pipeline, prompt, width, height, cfg, **settings) -> tuple[torch.Tensor, np.ndarray]:
    """Latent (1, 16, h, w), on the transformer's scale, and picture (H, W, 3) of one run."""
    last = {}

    def keep(pipeline, step, timestep, tensors):
        last.update(tensors)
        return tensors

    with torch.no_grad():
        image, = pipeline(prompt=prompt, negative_prompt=NEGATIVE if cfg > 1 else None, true_cfg_scale=cfg,
                          width=width, height=height, generator=torch.Generator().manual_seed(SEED),
                          callback_on_step_end=keep, **settings).images
    latent = pipeline._unpack_latents(last["latents"], height, width, pipeline.vae_scale_factor)
    return latent[:, :, 0], np.asarray(image)


def check_equal(client, result, expected) -> None:
    latent, picture = expected
    found = normalized(here.latent(client, result))
    image = here.images(client, result)[0]
    assert image.shape[:2] == picture.shape[:2] and picture.std() > 10
    assert error(found, latent) < LATENT_BOUND
    assert np.abs(image[..., :3].astype(int) - picture).max() <= PIXEL_BOUND
    assert (image[..., 3] == 255).all(), "this family knows no transparency"


# ---------------------------------------------------------------- equality

@pytest.mark.parametrize("layout, width, height, cfg", [
    ("Comfy-Org files", 160, 128, 4.0), ("Comfy-Org files", 208, 176, 4.0), ("Comfy-Org files", 208, 176, 1.0),
    ("diffusers folders", 160, 128, 4.0), ("a whole checkpoint", 160, 128, 4.0),
])
def test_whole_picture_equals_the_reference(client, oracle, layout, width, height, cfg):
    """208 x 176 pixels are 13 x 11 tokens: odd sides, as most official sizes have them."""
    expected = of_reference(oracle()["t2i"], PROMPT, width, height, cfg, num_inference_steps=4)
    check_equal(client, client.run(graph(layout, width=width, height=height, cfg=cfg).nodes()), expected)


def test_a_few_steps_equal_the_reference(client, oracle):
    expected = of_reference(oracle(lightning=True)["t2i"], PROMPT, 160, 128, 1.0, num_inference_steps=4)
    result = client.run(graph(width=160, height=128, preset="Lightning LoRA 4 (1.x)").nodes())
    check_equal(client, result, expected)


REFERENCES = {
    "one": [(104, 64)],
    "two": [(64, 96), (200, 120)],
    "three": [(33, 57), (128, 128), (96, 40)],
}


@pytest.mark.parametrize("kind, layout, variant, references, cfg", [
    ("edit", "Comfy-Org files", "base", "one", 4.0),
    ("edit plus", "Comfy-Org files", "base", "two", 4.0),
    ("edit plus", "Comfy-Org files", "edit 2511", "two", 4.0),
    ("edit plus", "diffusers folders", "auto", "three", 1.0),
    ("edit plus", "a whole checkpoint", "base", "three", 4.0),
])
def test_whole_edit_equals_the_reference(client, oracle, tmp_path, kind, layout, variant, references, cfg):
    """auto: by the folder's configuration."""
    images = pictures([(size, "RGB") for size in REFERENCES[references]])
    width, height = sizes.reference_size(*REFERENCES[references][-1], SIDE)
    prompt = "make it blue, 加上“你好”"
    theirs = images[0] if kind == "edit" else images  # of a list it would resize nothing
    with reference_1.small_references(SIDE):
        expected = of_reference(oracle(zero_cond_t=variant != "base")[kind], prompt, width, height, cfg, image=theirs,
                                num_inference_steps=4)
    nodes = edit_1(client, tmp_path, images, prompt, layout, variant, kind)
    nodes["sampler"]["inputs"]["cfg"] = cfg
    check_equal(client, client.run(nodes), expected)


def test_layers_equal_the_reference(client, comfyui_path, tmp_path):
    """At the official resolution, the smallest that there is: 1,600 tokens a layer."""
    picture, = pictures([((72, 50), "RGBA")])
    pipeline = reference_1.layered_pipeline(comfyui_path)
    with torch.no_grad():
        expected, = pipeline(picture, "a cup", negative_prompt=" ", true_cfg_scale=4.0, layers=2,
                             num_inference_steps=2, generator=torch.Generator().manual_seed(SEED), output_type="np",
                             cfg_normalize=True, resolution=640, use_en_prompt=True).images
    uploaded = edit_nodes(client, tmp_path, [picture])
    nodes = {name: uploaded[name] for name in ("load1", "join1")}
    nodes["loader"] = graph(diffusion_model=LAYERED, vae=LAYERED_VAE).nodes()["loader"]
    nodes["layers"] = node("QwenImage2Layers", model=["loader", 0], clip=["loader", 1], vae=["loader", 2],
                           image=["join1", 0], prompt="a cup", layers=2, resolution="640", seed=SEED, steps=2, cfg=4.0,
                           negative_prompt=" ", caption_language="English", guidance="as trained")
    nodes["image"] = node("SaveImage", images=["layers", 0], filename_prefix="layers")
    found = here.images(client, client.run(nodes))
    assert found.shape == expected.shape == (2, 544, 768, 4)
    assert np.abs(found.astype(int) - (expected * 255).round()).max() <= PIXEL_BOUND


def edit_1(client, tmp_path, images, prompt="make it blue", layout="Comfy-Org files", variant="base",
           kind="edit plus", resolution=str(SIDE), **inputs) -> dict:
    nodes = edit_nodes(client, tmp_path, images, prompt, resolution, negative_prompt=NEGATIVE,
                       edit_model={"edit": "Edit (first model)", "edit plus": "Edit Plus (2509, 2511)"}[kind], **inputs)
    plain = graph(layout, variant=variant).nodes()
    return nodes | {"loader": plain["loader"], "sampler": nodes["sampler"] | {
        "inputs": nodes["sampler"]["inputs"] | {"seed": SEED, "steps": 4}}}


# ---------------------------------------------------------------- core's nodes

@pytest.fixture(scope="module")
def plain(client):
    """Latent and picture of the plain graph."""
    result = client.run(graph().nodes())
    return here.latent(client, result), here.images(client, result)


def ksampler(**settings) -> dict:
    return node("KSampler", **{"model": ["loader", 0], "positive": ["prompt", 0], "negative": ["prompt", 1],
                               "latent_image": ["canvas", 0], "seed": SEED, "steps": 4, "cfg": 4.0,
                               "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0} | settings)


def test_ksampler_and_batches(client):
    """Core draws the noise of a batch at once, so that its first picture is the single one's."""
    found = []
    for count in (1, 2):
        nodes = graph().nodes() | {"sampler": ksampler()}
        nodes["canvas"] = node("EmptySD3LatentImage", width=96, height=64, batch_size=count)
        found.append(here.latent(client, client.run(nodes)))
    assert [latent.shape for latent in found] == [(1, 16, 1, 8, 12), (2, 16, 1, 8, 12)]
    assert error(found[1][:1], found[0]) < 1e-4 and error(found[1][1:], found[0]) > 0.1


def test_images_of_a_batch_equal_single_images(client):
    batch = here.images(client, client.run(graph(batch_size=2, cfg=4.0).nodes()))
    second = here.images(client, client.run(graph(seed=SEED + 1, cfg=4.0).nodes()))
    assert np.abs(batch[1].astype(int) - second[0]).max() <= PIXEL_BOUND


@pytest.mark.parametrize("empty", ["EmptySD3LatentImage", "EmptyLatentImage", "EmptyFlux2LatentImage"])
def test_empty_latents_of_other_models_give_the_picture_of_our_own(client, plain, empty):
    nodes = graph().nodes()
    nodes["canvas"] = node(empty, width=96, height=64, batch_size=1)
    assert torch.equal(here.latent(client, client.run(nodes)), plain[0])


def test_plain_guidance_is_that_of_core(client):
    nodes = graph(cfg=4.0).nodes()
    trained = here.latent(client, client.run(nodes))
    nodes["sampler"]["inputs"]["guidance"] = "plain"
    ours = here.latent(client, client.run(nodes))
    nodes |= {
        "sigmas": node("QwenImage2Sigmas", model=["loader", 0], latent=["canvas", 0], preset="Custom", steps=4,
                       denoise=1.0),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "sampler": node("SamplerCustom", model=["loader", 0], add_noise=True, noise_seed=SEED, cfg=4.0,
                        positive=["prompt", 0], negative=["prompt", 1], sampler=["euler", 0], sigmas=["sigmas", 0],
                        latent_image=["canvas", 0]),
    }
    assert error(here.latent(client, client.run(nodes)), ours) < 1e-5
    assert error(trained, ours) > 0.01


@pytest.mark.parametrize("pre_cfg", [False, True])
def test_cfg_norm(client, pre_cfg):
    nodes = graph().nodes() | {"sampler": ksampler()}
    without = here.latent(client, client.run(nodes))
    nodes["norm"] = node("CFGNorm", model=["loader", 0], strength=1.0, pre_cfg=pre_cfg)
    nodes["sampler"] = ksampler(model=["norm", 0])
    found = here.latent(client, client.run(nodes))
    assert torch.isfinite(found).all() and error(found, without) > 0.01


def test_the_vae_under_cores_nodes(client, tmp_path):
    image, = pictures([((96, 64), "RGB")])
    image.save(tmp_path / "noise.png")
    nodes = {
        "loader": graph().nodes()["loader"],
        "picture": node("LoadImage", image=client.upload_image(tmp_path / "noise.png")),
        "core": node("VAEEncode", pixels=["picture", 0], vae=["loader", 2]),
        "ours": node("QwenImage2VAEEncode", image=["picture", 0], vae=["loader", 2]),
        "a": node("SaveLatent", samples=["core", 0], filename_prefix="core"),
        "b": node("SaveLatent", samples=["ours", 0], filename_prefix="ours"),
        "decode": node("VAEDecode", samples=["core", 0], vae=["loader", 2]),
        "decode_ours": node("QwenImage2VAEDecode", samples=["core", 0], vae=["loader", 2]),
        "c": node("SaveImage", images=["decode", 0], filename_prefix="core"),
        "d": node("SaveImage", images=["decode_ours", 0], filename_prefix="ours"),
    }
    result = client.run(nodes)
    found = here.latent(client, result, "a")
    assert found.shape == (1, 16, 1, 8, 12) and torch.equal(found, here.latent(client, result, "b"))
    assert np.array_equal(here.images(client, result, "c"), here.images(client, result, "d"))


def test_cores_edit_nodes_give_the_edit_of_our_own(client, tmp_path):
    """Of pictures that no rule resizes: Text Encode Qwen Image Edit Plus for the words, Set Reference Latent."""
    images = pictures([((384, 384), "RGB")] * 2)
    nodes = edit_1(client, tmp_path, images, canvas="custom", width=96, height=64, resolution="as it is")
    ours = here.latent(client, client.run(nodes))
    nodes["core"] = node("TextEncodeQwenImageEditPlus", clip=["loader", 1], prompt="make it blue", image1=["load1", 0],
                         image2=["load2", 0])
    previous = ["core", 0]
    for number in (1, 2):
        nodes[f"encode{number}"] = node("VAEEncode", pixels=[f"load{number}", 0], vae=["loader", 2])
        nodes[f"set{number}"] = node("ReferenceLatent", conditioning=previous, latent=[f"encode{number}", 0])
        previous = [f"set{number}", 0]
    nodes["canvas"] = node("EmptySD3LatentImage", width=96, height=64, batch_size=1)
    nodes["sampler"]["inputs"] |= {"positive": previous, "latent": ["canvas", 0]}
    assert error(here.latent(client, client.run(nodes)), ours) < 1e-4
    nodes["sampler"] = ksampler(positive=previous, negative=previous, cfg=1.0)
    assert torch.isfinite(here.latent(client, client.run(nodes))).all()


def test_cores_edit_node_encodes_references_with_our_vae(client, tmp_path):
    """It resizes them to 1024 x 1024 pixels: 4,096 tokens."""
    nodes = edit_1(client, tmp_path, pictures([((48, 48), "RGB")]))
    nodes["prompt"] = node("TextEncodeQwenImageEditPlus", clip=["loader", 1], vae=["loader", 2], prompt="make it blue",
                           image1=["load1", 0])
    nodes["canvas"] = node("EmptySD3LatentImage", width=96, height=64, batch_size=1)
    nodes["sampler"] = ksampler(negative=["prompt", 0], cfg=1.0, steps=1)
    assert torch.isfinite(here.latent(client, client.run(nodes))).all()


@pytest.mark.parametrize("sampler", ["ours", "core"])
def test_noise_mask_keeps_what_it_covers(client, tmp_path, sampler):
    image, = pictures([((96, 64), "RGB")])
    image.save(tmp_path / "noise.png")
    nodes = graph(cfg=4.0).nodes()
    nodes |= {
        "picture": node("LoadImage", image=client.upload_image(tmp_path / "noise.png")),
        "encoded": node("QwenImage2VAEEncode", image=["picture", 0], vae=["loader", 2]),
        "left": node("SolidMask", value=0.0, width=48, height=64),
        "all": node("SolidMask", value=1.0, width=96, height=64),
        "mask": node("MaskComposite", destination=["all", 0], source=["left", 0], x=0, y=0, operation="multiply"),
        "canvas": node("SetLatentNoiseMask", samples=["encoded", 0], mask=["mask", 0]),
        "before": node("SaveLatent", samples=["encoded", 0], filename_prefix="before"),
    }
    if sampler == "core":
        nodes["sampler"] = ksampler()
    result = client.run(nodes)
    before, after = here.latent(client, result, "before"), here.latent(client, result)
    assert torch.allclose(after[..., :6], before[..., :6], atol=1e-4)
    assert not torch.allclose(after[..., 6:], before[..., 6:], atol=1e-1)


# ---------------------------------------------------------------- the pack's other nodes

def test_pixels_outside_the_mask_do_not_change(client, tmp_path):
    image, = pictures([((151, 97), "RGB")])
    nodes = masked_edit(client, tmp_path, image, upload_mask(client, tmp_path, spot(151, 97)))
    nodes["loader"] = graph().nodes()["loader"]
    out = here.images(client, client.run(nodes))[0]
    changed = (out[..., :3] != np.asarray(image)).any(-1)
    rows, columns = np.nonzero(changed)
    assert changed[48, 75]
    assert abs(rows - 97 / 2).max() <= 17 and abs(columns - 151 / 2).max() <= 17  # half the square, and the feather


def test_the_check_of_words_and_their_repair(client, sign):  # noqa: F811
    """The shipped workflow: glyphs and picture are two references. Random weights write nothing, so nothing is kept."""
    nodes = repair(sign[0], "OPEN DAILX")
    loader, = (key for key, entry in nodes.items() if entry["class_type"] == "QwenImage2Loader")
    nodes[loader] = graph().nodes()["loader"]
    result = client.run(nodes)
    saved, = (key for key, entry in nodes.items() if entry["class_type"] == "SaveImage")
    assert np.array_equal(here.images(client, result, saved)[0], sign[1])
    encode, = (key for key, entry in nodes.items() if entry["class_type"] == "QwenImage2EditEncode")
    assert "were written so" in str(result.messages[encode])


def test_briefs_write_for_this_family(client):
    nodes = graph(steps=1).nodes() | page()
    nodes["prompt"]["inputs"]["prompt"] = ["brief", 0]
    assert here.images(client, client.run(nodes)).std() > 1


@pytest.mark.parametrize("place", ["automatic", "RAM", "recompute"])
def test_a_budget_changes_no_picture(client, place):
    """There is no cache to keep anywhere, and nobody speaks of one."""
    nodes = graph(diffusion_model=DEEP, cfg=4.0).nodes()
    expected = here.latent(client, client.run(nodes))
    nodes["memory"] = node("QwenImage2Memory", model=["loader", 0], vram_for_weights=0.02, prefix=place, vae_peak=0.5,
                           vae=["loader", 2])
    nodes["sampler"]["inputs"]["model"], nodes["decode"]["inputs"]["vae"] = ["memory", 0], ["memory", 1]
    result = client.run(nodes)
    assert torch.equal(here.latent(client, result), expected)
    told = [*result.messages["memory"], *result.messages["sampler"]]
    assert any("of 6 blocks and all other weights stay in system RAM" in line for line in told)
    assert not any("cache" in line or "prefix" in line for line in told)


# ---------------------------------------------------------------- bad input

PARTS = {"1.x": LAYOUTS["Comfy-Org files"], "2.x": (tiny.TRANSFORMER, tiny.TEXT_ENCODER, tiny.VAE_FILE)}


@pytest.mark.parametrize("families", [each for each in itertools.product(PARTS, repeat=3) if len(set(each)) > 1])
def test_parts_of_two_families_are_refused_before_one_is_loaded(client, server, families):
    files = [PARTS[family][part] for part, family in enumerate(families)]
    before = len(server.log_text())
    found = message(client, graph(diffusion_model=files[0], text_encoder=files[1], vae=files[2]).nodes())
    assert found == (f"The transformer belongs to Qwen-Image {families[0]}, the text encoder to Qwen-Image "
                     f"{families[1]} and the VAE to Qwen-Image {families[2]}; together they give noise. Choose three "
                     "files of one family.")
    assert "model weight dtype" not in server.log_text()[before:]


def other_family(family: str) -> str:
    return "2.x" if family == "1.x" else "1.x"


def with_other(family: str, **settings) -> dict:
    """The plain graph of a family, and `other`, the parts of the other one."""
    nodes = []
    for each in (family, other_family(family)):
        diffusion_model, text_encoder, vae = PARTS[each]
        nodes.append(graph(diffusion_model=diffusion_model, text_encoder=text_encoder, vae=vae, **settings).nodes())
    return nodes[0] | {"other": nodes[1]["loader"]}


@pytest.mark.parametrize("family", PARTS)
def test_the_vae_of_the_other_family(client, tmp_path, family):
    nodes = with_other(family)
    nodes["decode"]["inputs"]["vae"] = ["other", 2]
    assert f"Connect the VAE of Qwen-Image {family}." in message(client, nodes)
    nodes = edit_1(client, tmp_path, pictures([((64, 64), "RGB")])) | {
        name: value for name, value in with_other(family).items() if name in ("loader", "other")}
    nodes["prompt"]["inputs"]["vae"] = ["other", 2]
    assert message(client, nodes) == (f"The text encoder belongs to Qwen-Image {family}, the VAE to Qwen-Image "
                                      f"{other_family(family)}; together they give noise. Load both of one family.")


@pytest.mark.parametrize("sampler", ["ours", "core"])
@pytest.mark.parametrize("family, words", [("1.x", "Qwen-Image 1.x expects [batch, 16, height/8, width/8]"),
                                           ("2.x", "Qwen-Image 2 expects [batch, 64, height/16, width/16]")])
def test_latents_of_the_other_family(client, sampler, family, words):
    nodes = with_other(family)
    nodes["picture"] = node("EmptyImage", width=96, height=64, batch_size=1, color=0xFF8800)
    nodes["canvas"] = node("VAEEncode", pixels=["picture", 0], vae=["other", 2])
    if sampler == "core":
        nodes["sampler"] = ksampler()
    assert words in message(client, nodes)


@pytest.mark.parametrize("family", PARTS)
def test_references_of_the_other_family(client, family):
    nodes = with_other(family)
    nodes["picture"] = node("EmptyImage", width=96, height=64, batch_size=1, color=0xFF8800)
    nodes["encoded"] = node("VAEEncode", pixels=["picture", 0], vae=["other", 2])
    nodes["reference"] = node("ReferenceLatent", conditioning=["prompt", 0], latent=["encoded", 0])
    nodes["sampler"]["inputs"]["positive"] = ["reference", 0]
    assert "reference latent" in message(client, nodes)


@pytest.mark.parametrize("layout, variant, told", [
    ("diffusers folders", "auto", True), ("Comfy-Org files", "base", False), ("Comfy-Org files", "edit 2511", True)])
def test_an_edit_model_without_references_is_pointed_out(client, layout, variant, told):
    said = client.run(graph(layout, variant=variant, steps=1).nodes()).messages["sampler"]
    assert any("is an edit model, but no reference is connected" in line for line in said) == told


def test_an_edit_with_references_gets_no_such_note(client, tmp_path):
    nodes = edit_1(client, tmp_path, pictures([((64, 64), "RGB")]), layout="diffusers folders", variant="auto")
    assert "no reference is connected" not in str(client.run(nodes).messages["sampler"])


def test_sizes_that_cannot_be(client):
    found = message(client, graph(width=1000).nodes())
    assert "multiples of 16 between 64 and 8192, got 1000 x 64. The nearest size is 992 x 64" in found
    nodes = graph().nodes()
    nodes["canvas"] = node("EmptyLatentImage", width=104, height=64, batch_size=1)  # a multiple of 8
    assert "The latent is 104 x 64 pixels; Qwen-Image 1.x needs multiples of 16." in message(client, nodes)


def test_an_interrupted_run_leaves_nothing_behind(client, plain):
    def cancel(event):
        if event.kind == "progress" and event.node == "sampler" and event.value == 2:
            client.interrupt()

    slow = graph(diffusion_model=DEEP, width=768, height=768, steps=200, prompt="a poster " * 400)
    with pytest.raises(WorkflowInterrupted):
        client.run(slow.nodes(), on_event=cancel, timeout=120)
    client.free()  # or ComfyUI would repeat what it has kept
    assert torch.equal(here.latent(client, client.run(graph().nodes())), plain[0])
