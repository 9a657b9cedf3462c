"""ComfyUI's own nodes on the pack's MODEL, CLIP and VAE."""
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from qwen_image_2.tests.server import conftest as here
from qwen_image_2.tests.server.conftest import Graph, node
from qwen_image_2.tools.comfyui.client import WorkflowError


def run(client, nodes):
    return client.run(nodes, timeout=120)


@pytest.fixture(scope="module")
def plain(client):
    """Latent and pictures of the plain graph, the yardstick for everything below."""
    result = run(client, Graph().nodes())
    return here.latent(client, result), here.images(client, result)


def test_ksampler(client, plain):
    nodes = Graph().nodes()
    nodes["sampler"] = node("KSampler", model=["loader", 0], positive=["prompt", 0], negative=["prompt", 1],
                            latent_image=["canvas", 0], seed=0, steps=4, cfg=1.0, sampler_name="euler",
                            scheduler="simple", denoise=1.0)
    latent = here.latent(client, run(client, nodes))
    assert torch.isfinite(latent).all() and latent.shape == plain[0].shape
    assert not torch.allclose(latent, plain[0]), "core's scheduler knows no picture size"


def test_sampler_custom_advanced_with_our_sigmas_equals_our_sampler(client, plain):
    nodes = Graph().nodes()
    nodes |= {
        "sigmas": node("QwenImage2Sigmas", model=["loader", 0], latent=["canvas", 0], preset="Custom", steps=4,
                       denoise=1.0),
        "noise": node("RandomNoise", noise_seed=0),
        "guider": node("BasicGuider", model=["loader", 0], conditioning=["prompt", 0]),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "sampler": node("SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["euler", 0],
                        sigmas=["sigmas", 0], latent_image=["canvas", 0]),
    }
    assert torch.equal(here.latent(client, run(client, nodes)), plain[0])


def test_clip_text_encode_uses_our_template(client, plain):
    nodes = Graph().nodes()
    nodes["prompt"] = node("CLIPTextEncode", clip=["loader", 1], text=Graph().prompt)
    nodes["sampler"]["inputs"]["negative"] = ["prompt", 0]
    assert torch.equal(here.latent(client, run(client, nodes)), plain[0])


def test_vae_decode_gives_rgba(client, plain):
    nodes = Graph().nodes()
    nodes["decode"] = node("VAEDecode", samples=["sampler", 0], vae=["loader", 2])
    nodes["image"]["inputs"]["images"] = ["decode", 0]
    assert np.array_equal(here.images(client, run(client, nodes)), plain[1])


def test_vae_decode_tiled(client):
    """Tiles see only themselves in the mid-block's attention, so they are near the whole decode, not equal to it."""
    graph = Graph(width=256, height=256, steps=1)
    nodes = graph.nodes()
    nodes["tiled"] = node("VAEDecodeTiled", samples=["sampler", 0], vae=["loader", 2], tile_size=128, overlap=64,
                          temporal_size=64, temporal_overlap=8)
    nodes["tiled_image"] = node("SaveImage", images=["tiled", 0], filename_prefix="tiled")
    result = run(client, nodes)
    whole, tiled = (here.images(client, result, name).astype(float) for name in ("image", "tiled_image"))
    assert tiled.shape == whole.shape == (1, 256, 256, 4)
    assert np.corrcoef(whole.ravel(), tiled.ravel())[0, 1] > 0.8


def picture(tmp_path, size=(96, 64), mode="RGBA"):
    rng = np.random.default_rng(3)
    small = rng.integers(0, 256, (size[1] // 8, size[0] // 8, len(mode)), dtype=np.uint8)
    path = tmp_path / f"picture-{mode}-{size[0]}x{size[1]}.png"
    Image.fromarray(small, mode).resize(size).save(path)
    return path


def test_vae_encode_equals_ours(client, tmp_path):
    name = client.upload_image(picture(tmp_path, mode="RGB"))
    nodes = {
        "loader": Graph().nodes()["loader"],
        "picture": node("LoadImage", image=name),
        "core": node("VAEEncode", pixels=["picture", 0], vae=["loader", 2]),
        "ours": node("QwenImage2VAEEncode", image=["picture", 0], vae=["loader", 2]),
        "a": node("SaveLatent", samples=["core", 0], filename_prefix="core"),
        "b": node("SaveLatent", samples=["ours", 0], filename_prefix="ours"),
    }
    result = run(client, nodes)
    assert torch.equal(here.latent(client, result, "a"), here.latent(client, result, "b"))


def test_alpha_goes_round_through_core_nodes(client, tmp_path):
    """Load Image's mask encodes as transparency; our alpha output joins with core's Join Image with Alpha."""
    name = client.upload_image(picture(tmp_path))
    nodes = {
        "loader": Graph().nodes()["loader"],
        "picture": node("LoadImage", image=name),
        "latent": node("QwenImage2VAEEncode", image=["picture", 0], alpha=["picture", 1], vae=["loader", 2]),
        "opaque": node("QwenImage2VAEEncode", image=["picture", 0], vae=["loader", 2]),
        "decode": node("QwenImage2VAEDecode", samples=["latent", 0], vae=["loader", 2]),
        "join": node("JoinImageWithAlpha", image=["decode", 0], alpha=["decode", 2]),
        "image": node("SaveImage", images=["join", 0], filename_prefix="joined"),
        "rgba": node("SaveImage", images=["decode", 1], filename_prefix="rgba"),
        "rgb": node("SaveImage", images=["decode", 0], filename_prefix="rgb"),
        "a": node("SaveLatent", samples=["latent", 0], filename_prefix="alpha"),
        "b": node("SaveLatent", samples=["opaque", 0], filename_prefix="opaque"),
    }
    result = run(client, nodes)
    joined, rgba = (here.images(client, result, name).astype(int) for name in ("image", "rgba"))
    assert np.array_equal(joined[..., :3], rgba[..., :3])
    assert np.abs(joined - rgba).max() <= 1  # 1 - (1 - alpha), then cut to 8 bits
    assert here.images(client, result, "rgb").shape[-1] == 3
    assert not torch.allclose(here.latent(client, result, "a"), here.latent(client, result, "b"))


def test_odd_pictures_are_cropped_and_it_is_said(client, tmp_path):
    name = client.upload_image(picture(tmp_path, size=(106, 72), mode="RGB"))
    nodes = {
        "loader": Graph().nodes()["loader"],
        "picture": node("LoadImage", image=name),
        "latent_in": node("QwenImage2VAEEncode", image=["picture", 0], vae=["loader", 2]),
        "latent": node("SaveLatent", samples=["latent_in", 0], filename_prefix="crop"),
    }
    result = run(client, nodes)
    assert here.latent(client, result).shape == (1, 64, 4, 6)
    assert result.messages["latent_in"] == [
        "Center-cropped from 106 x 72 to 96 x 64: the model works in blocks of 32 pixels."]


# ---------------------------------------------------------------- LoRA

def lora(folder, name, width, extra=()):
    """A LoRA in diffusers form on attention and the split MLP of every block."""
    generator = torch.Generator().manual_seed(9)
    tensors = {}
    for block in range(2):
        for layer, rows in (("attn.to_q", width), ("img_mlp.gate_layer", 3 * width), ("img_mlp.proj", 3 * width)):
            key = f"transformer.transformer_blocks.{block}.{layer}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(4, width, generator=generator) / width**0.5
            tensors[f"{key}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) / 2
    tensors |= {key: torch.zeros(1, 1) for key in extra}
    safetensors.torch.save_file(tensors, folder / "loras" / name)
    return name


def with_lora(name, strength):
    nodes = Graph().nodes()
    nodes["lora"] = node("LoraLoaderModelOnly", model=["loader", 0], lora_name=name, strength_model=strength)
    nodes["sampler"]["inputs"]["model"] = ["lora", 0]
    return nodes


def test_lora_changes_the_picture_and_leaves_no_trace(client, plain, models):
    """Weights, keys and values are those of the strength at hand, whatever ran before."""
    def sampled(sampler, nodes):
        """By a sampler of another name: ComfyUI would hand out what it has kept of the same inputs."""
        nodes[sampler] = nodes.pop("sampler")
        nodes["latent"]["inputs"]["samples"] = nodes["decode"]["inputs"]["samples"] = [sampler, 0]
        result = run(client, nodes)
        assert sampler in result.seconds
        return here.latent(client, result)

    name = lora(models, "style.safetensors", 256)
    strong, weak, again = (sampled(sampler, with_lora(name, strength))
                           for sampler, strength in (("first", 1.0), ("second", 0.5), ("third", 1.0)))
    assert not torch.allclose(strong, plain[0]) and not torch.allclose(strong, weak)
    assert torch.equal(again, strong)
    assert torch.equal(sampled("fourth", Graph().nodes()), plain[0])
    client.free()
    assert torch.equal(sampled("alone", with_lora(name, 0.5)), weak)


def test_every_key_of_a_diffusers_lora_is_used(client, server, models):
    before = len(server.log_text())
    run(client, with_lora(lora(models, "whole.safetensors", 256), 1.0))
    assert "lora key not loaded" not in server.log_text()[before:]


def test_unmatched_lora_keys_are_reported(client, server, models):
    key = "transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight"
    run(client, with_lora(lora(models, "extra.safetensors", 256, extra=[key]), 1.0))
    assert f"lora key not loaded: {key}" in server.log_text()


def test_the_packs_own_loader_takes_the_fused_mlp_as_well(client, models, plain):
    """The same LoRA, its halves in one matrix as trainers on Comfy-Org's files write it."""
    state = safetensors.torch.load_file(models / "loras" / lora(models, "halves.safetensors", 256))
    for block in range(2):
        down, up = ({half: state.pop(f"transformer.transformer_blocks.{block}.img_mlp.{half}.{part}.weight")
                     for half in ("gate_layer", "proj")} for part in ("lora_A", "lora_B"))
        fused = f"diffusion_model.transformer_blocks.{block}.img_mlp.gate_up"
        state[f"{fused}.lora_A.weight"] = torch.cat([*down.values()])
        state[f"{fused}.lora_B.weight"] = torch.block_diag(*up.values())
    safetensors.torch.save_file(state, models / "loras" / "fused.safetensors")
    nodes = with_lora("halves.safetensors", 1.0)
    expected = here.latent(client, run(client, nodes))
    nodes["lora"] = node("QwenImage2LoadLoRA", model=["loader", 0], lora="fused.safetensors", strength=1.0)
    result = run(client, nodes)
    assert torch.allclose(here.latent(client, result), expected, atol=1e-4)
    assert result.messages["lora"] == ["fused.safetensors: LoRA of ranks 4 to 8 for Qwen-Image 2.x, 4 weights patched."]
    nodes["lora"]["inputs"]["strength"] = 0.0
    assert torch.equal(here.latent(client, run(client, nodes)), plain[0])


def test_further_rows_add_up_in_their_order(client, models):
    """As programs write them: what a row leaves out has its default, and a row may be off."""
    one, two, off = (lora(models, f"row{number}.safetensors", 256) for number in range(3))
    nodes = with_lora(one, 0.25)
    nodes["second"] = node("LoraLoaderModelOnly", model=["lora", 0], lora_name=two, strength_model=1.0)
    nodes["sampler"]["inputs"]["model"] = ["second", 0]
    expected = here.latent(client, run(client, nodes))
    nodes = with_lora(one, 0.25)
    nodes["lora"] = node("QwenImage2LoadLoRA", model=["loader", 0], lora=off, strength=1.0, on=False, lora_2=one,
                         strength_2=0.25, lora_3=off, strength_3=3.0, on_3=False, lora_8=two)
    result = run(client, nodes)
    assert torch.allclose(here.latent(client, result), expected, atol=1e-4)
    assert [line.partition(":")[0] for line in result.messages["lora"]] == [one, two]
    nodes["lora"]["inputs"] |= {"lora_9": ["loader", 0]}
    with pytest.raises(WorkflowError, match="takes at most 8 LoRAs"):
        run(client, nodes)


# ---------------------------------------------------------------- sampling

def test_images_of_a_batch_equal_single_images(client):
    batch = here.images(client, run(client, Graph(batch_size=3, seed=7).nodes()))
    alone = np.concatenate([here.images(client, run(client, Graph(seed=7 + k).nodes())) for k in range(3)])
    assert batch.shape[0] == 3 and np.abs(batch.astype(int) - alone).max() <= 1
    assert np.abs(alone[0].astype(int) - alone[1]).max() > 20


def test_denoise_keeps_part_of_the_picture(client, tmp_path):
    name = client.upload_image(picture(tmp_path, mode="RGB"))
    distances = []
    for denoise in (0.1, 0.9):
        nodes = Graph(denoise=denoise, steps=10).nodes()
        nodes["picture"] = node("LoadImage", image=name)
        nodes["canvas"] = node("QwenImage2VAEEncode", image=["picture", 0], vae=["loader", 2])
        nodes["before"] = node("SaveLatent", samples=["canvas", 0], filename_prefix="before")
        result = run(client, nodes)
        distances.append((here.latent(client, result) - here.latent(client, result, "before")).abs().mean())
    assert 0 < distances[0] < distances[1]


def test_noise_mask_keeps_what_it_covers(client, tmp_path):
    name = client.upload_image(picture(tmp_path, mode="RGB"))
    nodes = Graph().nodes()
    nodes["picture"] = node("LoadImage", image=name)
    nodes["encoded"] = node("QwenImage2VAEEncode", image=["picture", 0], vae=["loader", 2])
    nodes["solid"] = node("SolidMask", value=0.0, width=48, height=64)
    nodes["left"] = node("SolidMask", value=1.0, width=96, height=64)
    nodes["mask"] = node("MaskComposite", destination=["left", 0], source=["solid", 0], x=0, y=0,
                         operation="multiply")
    nodes["canvas"] = node("SetLatentNoiseMask", samples=["encoded", 0], mask=["mask", 0])
    nodes["before"] = node("SaveLatent", samples=["encoded", 0], filename_prefix="before")
    result = run(client, nodes)
    before, after = here.latent(client, result, "before"), here.latent(client, result)
    assert torch.allclose(after[..., :3], before[..., :3], atol=1e-4)
    assert not torch.allclose(after[..., 3:], before[..., 3:], atol=1e-1)


@pytest.mark.parametrize("model, variant, preset, words", [
    (here.TURBO, "auto", "Quality 40", "This is a Turbo model"),
    (here.TURBO, "base", "Turbo 8", "This is a base model"),
    (here.FUSED, "turbo", "Fast 25", "This is a Turbo model"),
    (here.FUSED, "auto", "Turbo 8", "This is a base model"),
])
def test_variant_and_preset_that_do_not_fit_are_pointed_out(client, model, variant, preset, words):
    result = run(client, Graph(diffusion_model=model, variant=variant, preset=preset).nodes())
    assert result.messages["sampler"][0].startswith(words)
    assert result.texts["sampler"], "nothing was shown on the node"


@pytest.mark.parametrize("model, preset", [(here.TURBO, "Turbo 8"), (here.FUSED, "Fast 25")])
def test_variant_and_preset_that_fit_give_no_warning(client, model, preset):
    said = run(client, Graph(diffusion_model=model, preset=preset).nodes()).messages["sampler"]
    assert len(said) == 1 and "KV cache" in said[0]


@pytest.mark.parametrize("denoise, encoded, told", [(0.5, False, True), (1.0, False, False), (0.5, True, False)])
def test_image_to_image_without_an_image_is_pointed_out(client, denoise, encoded, told):
    nodes = Graph(denoise=denoise).nodes()
    if encoded:
        nodes["picture"] = node("EmptyImage", width=96, height=64, batch_size=1, color=0)
        nodes["canvas"] = node("QwenImage2VAEEncode", image=["picture", 0], vae=["loader", 2])
    said = str(run(client, nodes).messages["sampler"])
    assert (f"denoise is {denoise}, but the latent is empty" in said) == told and "KV cache" in said


def test_guidance_changes_the_picture(client, plain):
    latent = here.latent(client, run(client, Graph(cfg=4.0, negative_prompt="blurry").nodes()))
    assert not torch.allclose(latent, plain[0])


def test_combined_prompts_and_areas(client, plain):
    nodes = Graph().nodes()
    nodes["other"] = node("QwenImage2TextEncode", clip=["loader", 1], prompt="a second, much longer prompt",
                          negative_prompt="")
    nodes["area"] = node("ConditioningSetAreaPercentage", conditioning=["other", 0], width=0.5, height=1.0, x=0.5,
                         y=0.0, strength=1.0)
    nodes["both"] = node("ConditioningCombine", conditioning_1=["prompt", 0], conditioning_2=["area", 0])
    nodes["sampler"]["inputs"]["positive"] = ["both", 0]
    latent = here.latent(client, run(client, nodes))
    assert torch.isfinite(latent).all() and not torch.allclose(latent, plain[0])


def test_progress_and_previews_arrive(client):
    events = []
    client.run(Graph(steps=5, seed=123).nodes(), on_event=events.append)
    steps = [event for event in events if event.kind == "progress" and event.node == "sampler"]
    assert [event.value for event in steps if event.value][-1] == 5
    assert any(event.kind == "preview" and event.image for event in events)


# ---------------------------------------------------------------- loading

def loads(server, before):
    """Which parts were loaded from files since the log had `before` characters."""
    log = server.log_text()[before:]
    marks = {"transformer": "model weight dtype", "text encoder": "CLIP/text encoder model load device",
             "vae": "VAE load device"}
    return {part for part, mark in marks.items() if mark in log}


def test_changing_one_choice_reloads_that_part_only(client, server):
    client.free()
    run(client, Graph().nodes())
    before = len(server.log_text())
    run(client, Graph(vae=here.DIFFUSERS_VAE).nodes())
    assert loads(server, before) == {"vae"}
    before = len(server.log_text())
    run(client, Graph(vae=here.DIFFUSERS_VAE, diffusion_model=here.PREFIXED).nodes())
    assert loads(server, before) == {"transformer"}


def test_unloading_and_running_again(client, plain):
    client.free()
    assert torch.equal(here.latent(client, run(client, Graph().nodes())), plain[0])


@pytest.mark.parametrize("weight_format", ["bf16", "fp16"])
def test_converting_while_loading(client, plain, weight_format):
    latent = here.latent(client, run(client, Graph(weight_format=weight_format).nodes()))
    assert torch.isfinite(latent).all() and not torch.equal(latent, plain[0])
    assert torch.nn.functional.cosine_similarity(latent.flatten(), plain[0].flatten(), dim=0) > 0.98


def menus(client, name: str) -> dict[str, list[str]]:
    inputs = client.object_info(name)[name]["input"]["required"]
    return {name: value[1]["options"] for name, value in inputs.items() if value[0] == "COMBO"}


def test_menus_list_files_and_folders_once(client):
    options = menus(client, "QwenImage2Loader")
    assert {here.FUSED, here.PREFIXED, here.TURBO, here.FOLDER} <= set(options["diffusion_model"])
    assert {here.TEXT_ENCODER, here.TEXT_ENCODER_FOLDER, "miniature"} <= set(options["text_encoder"])
    assert {here.WAN_VAE, here.DIFFUSERS_VAE, here.VAE_FOLDER, "miniature"} <= set(options["vae"])
    for part in ("diffusion_model", "text_encoder", "vae"):
        assert len(options[part]) == len(set(options[part]))
    assert not any("-of-" in name for names in options.values() for name in names), "shards are one entry"


def test_menus_list_pipelines_and_fonts_of_the_models_folder(client, models):
    """What dev.py's --models names: the loaders look for pipelines in it, too, and Glyph Reference for fonts."""
    (models / "fonts").mkdir()
    (models / "fonts" / "mine.ttf").touch()
    shutil.copytree(models / "diffusion_models" / here.FOLDER, models / "diffusers" / "whole" / "transformer")
    try:
        assert "whole/transformer/" in menus(client, "QwenImage2Loader")["diffusion_model"]
        assert "mine.ttf" in menus(client, "QwenImage2GlyphReference")["font"]
    finally:  # the folders stay: ComfyUI remembers the one of fonts, and stumbles where it has gone
        (models / "fonts" / "mine.ttf").unlink()
        shutil.rmtree(models / "diffusers" / "whole")


@pytest.mark.parametrize(("empty", "inputs"), [("EmptySD3LatentImage", {}), ("EmptyLatentImage", {}),
                                              ("EmptyFlux2LatentImage", {})])
def test_empty_latents_of_other_models_give_the_picture_of_our_own(client, plain, empty, inputs):
    """Sizes are the user's, whatever channels and scale the latent was made for."""
    nodes = Graph().nodes()
    nodes["canvas"] = node(empty, width=96, height=64, batch_size=1, **inputs)
    assert torch.equal(here.latent(client, run(client, nodes)), plain[0])
