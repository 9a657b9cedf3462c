"""The control network through a running server: against the plain networks run by hand, and with everything else."""
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from qwen_image_2.model.qwen_image_2.control import Controlling, prefix_controls
from qwen_image_2.model.qwen_image_2.prefix_cache import Condition
from qwen_image_2.model.qwen_image_2.spec import ControlSpec
from qwen_image_2.model.qwen_image_2.transformer import Transformer
from qwen_image_2.tests.reference import error
from qwen_image_2.tests.server import conftest as here
from qwen_image_2.tests.server.conftest import Graph, node
from qwen_image_2.tests.server.test_bad_input import message
from qwen_image_2.tests.server.test_core_nodes import lora
from qwen_image_2.tools import tiny

LATENT_BOUND = 2e-3
NEGATIVE = "blurry"


@pytest.fixture(scope="module")
def pictures(client, tmp_path_factory):
    """Two control pictures, another size than the canvas: (pixels (1, H, W, 3), the name of the upload)."""
    folder, out = tmp_path_factory.mktemp("controls"), []
    for seed in (0, 1):
        small = np.random.default_rng(seed).integers(0, 256, (10, 14, 3), dtype=np.uint8)
        path = folder / f"control{seed}.png"
        Image.fromarray(small).resize((112, 80)).save(path)
        pixels = torch.from_numpy(np.asarray(Image.open(path)).copy()).float().unsqueeze(0) / 255
        out.append((pixels, client.upload_image(path)))
    return out


def controlled(pictures, graph: Graph | None = None, controls=None, **settings) -> dict:
    """A graph with Apply Control once for each picture; controls: the settings of each one."""
    nodes = (graph or Graph(negative_prompt=NEGATIVE)).nodes()
    nodes["file"] = node("QwenImage2LoadControl", control_model=tiny.CONTROL)
    model = ["loader", 0]
    for number, ((_, name), more) in enumerate(zip(pictures, controls or [settings] * len(pictures), strict=True)):
        nodes[f"picture{number}"] = node("LoadImage", image=name)
        nodes[f"control{number}"] = node("QwenImage2ApplyControl", **{
            "model": model, "control": ["file", 0], "vae": ["loader", 2], "image": [f"picture{number}", 0],
            "strength": 0.8, "start": 0.0, "end": 1.0, "reference_rows": False, **more})
        model = [f"control{number}", 0]
    nodes["sampler"]["inputs"]["model"] = model
    return nodes


def ksampler(nodes: dict, cfg: float) -> dict:
    nodes["sampler"] = node("KSampler", model=nodes["sampler"]["inputs"]["model"], positive=["prompt", 0],
                            negative=["prompt", 1], latent_image=["canvas", 0], seed=0, steps=4, cfg=cfg,
                            sampler_name="euler", scheduler="simple", denoise=1.0)
    return nodes


def run(client, nodes) -> torch.Tensor:
    return here.latent(client, client.run(nodes, timeout=120))


# ---------------------------------------------------------------- against the plain networks

@pytest.fixture(scope="module")
def by_hand(comfyui, models):
    """by_hand(sigmas of, [(pixels, strength, start, end)], cfg) -> the latent of Graph's prompt and seed, by Euler
    with the plain networks: no sampler, no patcher, no node."""
    from qwen_image_2.nodes.bridge import control
    from qwen_image_2.nodes.bridge.loading import load_model
    from qwen_image_2.nodes.bridge.text_encoders.families import load_text_encoder
    from qwen_image_2.nodes.bridge.vae import load_vae
    from qwen_image_2.nodes.text import encode_together
    with torch.inference_mode():
        model = load_model(models / "diffusion_models" / here.FUSED, here.FUSED, "base")
        clip = load_text_encoder(models / "text_encoders" / here.TEXT_ENCODER, here.TEXT_ENCODER)
        vae = load_vae(models / "vae" / here.WAN_VAE, here.WAN_VAE)
        loaded = control.load_control(models / "model_patches" / tiny.CONTROL, tiny.CONTROL)
        prompts = [states[0][0] for states in encode_together(clip, (Graph().prompt, NEGATIVE), [])[0:2]]
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma

    @torch.inference_mode()
    def latent(sigmas_of, applied, cfg=1.0):
        x = torch.randn(1, 64, 4, 6, generator=torch.Generator().manual_seed(0))
        every = []
        for pixels, strength, start, end in applied:
            one = control.AppliedControl(loaded, vae, pixels, None, None, strength, start, end, False)
            channels = control._channels(one, x)
            every.append((Controlling(loaded.network, channels, strength), to_sigma(start), to_sigma(end)))
        for sigma, after in pairwise(sigmas_of(model, x)):
            used = [one for one, start, end in every if end <= float(sigma) <= start]
            velocities = []
            for prompt in prompts[:1 if cfg == 1 else 2]:
                cache = model.model.diffusion_model.encode_prefix(Condition(prompt), controls=prefix_controls(used))
                velocities.append(Transformer.forward(model.model.diffusion_model, x, sigma.view(1), cache,
                                                      controls=used))
            velocity = velocities[-1] + cfg * (velocities[0] - velocities[-1])
            x = x + (after - sigma) * velocity
        return model.model.process_latent_out(x)
    return latent


def our_sigmas(model, x):
    from qwen_image_2.nodes.sampler import sigmas_for
    return sigmas_for(model, "Custom", 4, 1.0, x)


def core_sigmas(model, x):
    from comfy.samplers import calculate_sigmas
    return calculate_sigmas(model.get_model_object("model_sampling"), "simple", 4)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("sampler", ["ours", "core's"])
def test_a_controlled_run_equals_the_plain_networks(client, pictures, by_hand, sampler, cfg):
    nodes = controlled(pictures[:1], Graph(cfg=cfg, negative_prompt=NEGATIVE))
    if sampler == "core's":
        ksampler(nodes, cfg)
    expected = by_hand(our_sigmas if sampler == "ours" else core_sigmas, [(pictures[0][0], 0.8, 0.0, 1.0)], cfg)
    assert error(run(client, nodes), expected) < LATENT_BOUND
    plain = Graph(cfg=cfg, negative_prompt=NEGATIVE).nodes()
    assert error(run(client, ksampler(plain, cfg) if sampler == "core's" else plain), expected) > 0.05


def test_two_controls_one_of_them_in_a_window(client, pictures, by_hand):
    nodes = controlled(pictures, controls=[{"strength": 0.9, "end": 0.4}, {"strength": 0.5}])
    expected = by_hand(our_sigmas, [(pictures[0][0], 0.9, 0.0, 0.4), (pictures[1][0], 0.5, 0.0, 1.0)])
    result = client.run(nodes, timeout=120)
    assert error(here.latent(client, result), expected) < LATENT_BOUND
    assert result.messages["control0"] == [f"{tiny.CONTROL}: strength 0.9, from 0 % to 40 % of the steps."]
    whole = by_hand(our_sigmas, [(pictures[0][0], 0.9, 0.0, 1.0), (pictures[1][0], 0.5, 0.0, 1.0)])
    assert error(whole, expected) > 0.01


# ---------------------------------------------------------------- with everything else

def test_a_picture_for_each_image_of_a_batch(client, pictures):
    nodes = controlled(pictures[:1], Graph(batch_size=2))
    nodes["other"] = node("LoadImage", image=pictures[1][1])
    nodes["both"] = node("ImageBatch", image1=["picture0", 0], image2=["other", 0])
    nodes["control0"]["inputs"]["image"] = ["both", 0]
    batch = run(client, nodes)
    for number, picture in enumerate(pictures):
        assert error(batch[number:number + 1], run(client, controlled([picture], Graph(seed=number)))) < 1e-3
    one_for_all = run(client, controlled(pictures[:1], Graph(batch_size=2)))
    assert error(one_for_all[:1], batch[:1]) < 1e-3 < error(one_for_all[1:], batch[1:])


def edit_of(pictures, name: str, controls: list[dict]) -> dict:
    nodes = controlled(pictures, controls=controls)
    del nodes["canvas"]
    nodes["source"] = node("LoadImage", image=name)
    nodes["prompt"] = node("QwenImage2EditEncode", **{
        "clip": ["loader", 1], "vae": ["loader", 2], "images.image_1": ["source", 0], "prompt": "make it blue",
        "negative_prompt": "", "resolution": "128", "canvas": "last reference", "width": 1024, "height": 1024,
        "grid_guard": True, "batch_size": 1, "edit_model": "Edit Plus (2509, 2511)"})
    nodes["sampler"]["inputs"] |= {"latent": ["prompt", 2], "cfg": 3.0}
    return nodes


def test_an_edit_with_a_reference(client, pictures):
    """Chains of one picture add up, and the prompt's keys and values are computed once each."""
    picture, source = pictures[0], pictures[1][1]
    whole = client.run(edit_of([picture], source, [{"strength": 0.9}]), timeout=120)
    halves = run(client, edit_of([picture, picture], source, [{"strength": 0.5}, {"strength": 0.4}]))
    found = here.latent(client, whole)
    assert error(halves, found) < LATENT_BOUND
    filled = run(client, edit_of([picture], source, [{"strength": 0.9, "reference_rows": True}]))
    assert error(filled, found) > 1e-4, "rows of references with a bias are not rows with nothing"


def test_loras_before_and_after(client, pictures, models):
    name = lora(models, "beside_control.safetensors", 256)
    before, after = controlled(pictures[:1]), controlled(pictures[:1])
    before["lora"] = node("QwenImage2LoadLoRA", model=["loader", 0], lora=name, strength=0.7)
    before["control0"]["inputs"]["model"] = ["lora", 0]
    after["lora"] = node("QwenImage2LoadLoRA", model=["control0", 0], lora=name, strength=0.7)
    after["sampler"]["inputs"]["model"] = ["lora", 0]
    found = run(client, before)
    assert error(run(client, after), found) < 1e-5
    assert error(run(client, controlled(pictures[:1])), found) > 0.01


@pytest.fixture(scope="module")
def miniature_control(comfyui, models):
    """For the miniature's eight blocks."""
    from qwen_image_2.nodes.bridge import loading
    from qwen_image_2.nodes.bridge.files import folders, miniature
    path = folders.resolve(folders.TRANSFORMER, miniature.NAME)
    _, detected = loading.open_model(path, miniature.NAME)
    tiny.write_control(models / "model_patches" / "miniature_control.safetensors", ControlSpec(detected.spec, 4))
    return "miniature_control.safetensors"


@pytest.mark.parametrize("before", [True, False], ids=["budget before the control", "budget after it"])
def test_a_budget_for_both_changes_no_picture(client, pictures, miniature_control, before):
    graph = Graph(diffusion_model="miniature", text_encoder="miniature", vae="miniature", steps=2)
    plain, nodes = controlled(pictures[:1], graph), controlled(pictures[:1], graph)
    for each in (plain, nodes):
        each["file"]["inputs"]["control_model"] = miniature_control
    nodes["memory"] = node("QwenImage2Memory", model=["loader", 0] if before else ["control0", 0],
                           vram_for_weights=0.01, prefix="automatic", vae_peak=0.0)
    nodes["control0" if before else "sampler"]["inputs"]["model"] = ["memory", 0]
    result = client.run(nodes, timeout=120)
    assert torch.equal(here.latent(client, result), run(client, plain))
    told = "\n".join(result.messages["sampler"])
    assert "of 8 blocks and all other weights" in told and "Control network:" in told and "of 4 blocks" in told
    report = "\n".join(result.messages["control0" if before else "memory"])
    assert "of 8 blocks and all other weights" in report and "Control network:" in report


# ---------------------------------------------------------------- bad input

@pytest.mark.parametrize(("inputs", "words"), [
    ({"strength": 2.5}, "strength must be between 0 and 2, got 2.5"),
    ({"strength": -0.5}, "strength must be between 0 and 2, got -0.5"),
    ({"start": 0.6, "end": 0.5}, "starts at 0.6 and ends at 0.5"),
    ({"image": None}, "Nothing to follow"),
    ({"image": None, "mask": ["picture0", 1]}, "without the picture that it belongs to"),
    ({"inpaint_image": ["picture0", 0]}, "Inpaint image is connected without a mask"),
])
def test_inputs_that_cannot_be(client, pictures, inputs, words):
    nodes = controlled(pictures[:1], **inputs)
    nodes["control0"]["inputs"] = {name: value for name, value in nodes["control0"]["inputs"].items()
                                   if value is not None}
    assert words in message(client, nodes)


def test_another_batch(client, pictures):
    nodes = controlled(pictures[:1], Graph(batch_size=3))
    nodes["both"] = node("ImageBatch", image1=["picture0", 0], image2=["picture0", 0])
    nodes["control0"]["inputs"]["image"] = ["both", 0]
    assert "The control's image is a batch of 2 for 3 images" in message(client, nodes)


def of_1(pictures) -> dict:
    """With a second loader, of Qwen-Image 1.x."""
    nodes = controlled(pictures[:1])
    nodes["loader1"] = node("QwenImage2Loader", diffusion_model=tiny.TRANSFORMER_1, text_encoder=tiny.TEXT_ENCODER_1,
                            vae=tiny.VAE_1, variant="auto", weight_format="as stored")
    return nodes


def test_a_model_of_1(client, pictures):
    nodes = of_1(pictures)
    nodes["control0"]["inputs"]["model"] = ["loader1", 0]
    assert "belongs to Qwen-Image-2.1, but this MODEL is another" in message(client, nodes)


def test_a_vae_of_1(client, pictures):
    nodes = of_1(pictures)
    nodes["control0"]["inputs"]["vae"] = ["loader1", 2]
    assert "needs the VAE of Qwen-Image 2.x" in message(client, nodes)


def test_one_file_for_another(client, pictures, models):
    folder = models / "diffusion_models" / "control.safetensors"
    folder.write_bytes((models / "model_patches" / tiny.CONTROL).read_bytes())
    try:
        found = message(client, Graph(diffusion_model=folder.name).nodes())
        assert "is the control network of Qwen-Image-2.1" in found and "Load Control" in found
    finally:
        folder.unlink()
