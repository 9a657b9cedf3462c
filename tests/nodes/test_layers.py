"""Layers: a whole picture taken apart as diffusers' pipeline does it, and what the node refuses."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from qwen_image_2.messages import Refusal
from qwen_image_2.model.images.layers import alpha_over
from qwen_image_2.tests import reference_1
from qwen_image_2.tests.reference import error
from qwen_image_2.tools import tiny

BOUND = 0.1 / 255  # 0.0015 / 255 was seen; plain guidance instead of trained makes 1.8
SIDE = 128  # of the square whose area a picture is resized to
SETTINGS = dict(prompt="a cup on a table", layers=2, resolution=str(SIDE), seed=5, steps=3, cfg=4.0,
                negative_prompt=" ", caption_language="English")

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")


@pytest.fixture(scope="module")
def pipeline(comfyui_path):
    return reference_1.layered_pipeline(comfyui_path)


@pytest.fixture(scope="module")
def parts(comfyui, pipeline, tmp_path_factory):
    """MODEL, CLIP and VAE of the pipeline's weights, from files."""
    from qwen_image_2.nodes.bridge.loading import load_model
    from qwen_image_2.nodes.bridge.text_encoders.families import load_text_encoder
    from qwen_image_2.nodes.bridge.vae import load_vae
    folder = tmp_path_factory.mktemp("layered")

    def saved(name, module, config):
        path = folder / name
        tiny.save(module.state_dict(), path, config, torch.float32)
        return path, name

    language = {"text_config": tiny.TEXT_CONFIG_1, "vision_config": tiny.VISION_CONFIG_1}
    return SimpleNamespace(
        model=load_model(*saved("qwen_image_layered_bf16.safetensors", pipeline.transformer, {}), "auto"),
        clip=load_text_encoder(*saved("qwen_2.5_vl_7b.safetensors", pipeline.text_encoder, language)),
        vae=load_vae(*saved("qwen_image_layered_vae.safetensors", pipeline.vae, {})))


@pytest.fixture
def node(comfyui, monkeypatch):
    from qwen_image_2.nodes.layers import QwenImage2Layers
    monkeypatch.setattr(QwenImage2Layers, "hidden", SimpleNamespace(unique_id=None), raising=False)
    return QwenImage2Layers


def picture(width=200, height=150, channels=4) -> Image.Image:
    """Soft and random, RGBA."""
    small = np.random.default_rng(1).integers(0, 256, (4, 5, channels), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def image_of(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 255).unsqueeze(0)


def taken_apart(node, parts, image, **changes):
    return node.execute(parts.model, parts.clip, parts.vae, image, **(SETTINGS | changes))


def of_reference(pipeline, picture, cfg_normalize, prompt=SETTINGS["prompt"], count=2, cfg=4.0) -> torch.Tensor:
    """(layers, H, W, 4)."""
    with reference_1.area_of(pipeline, SIDE):
        made, = pipeline(picture, prompt, negative_prompt=" ", true_cfg_scale=cfg, layers=count, num_inference_steps=3,
                         generator=torch.Generator().manual_seed(SETTINGS["seed"]), output_type="np",
                         cfg_normalize=cfg_normalize, use_en_prompt=True).images
    return torch.from_numpy(made)


@pytest.mark.parametrize(("count", "cfg", "guidance"), [(2, 4.0, "as trained"), (3, 4.0, "plain"),
                                                       (4, 1.0, "as trained")])
def test_layers_equal_the_reference(node, parts, pipeline, count, cfg, guidance):
    found = taken_apart(node, parts, image_of(picture()), layers=count, cfg=cfg, guidance=guidance).result
    expected = of_reference(pipeline, picture(), guidance == "as trained", count=count, cfg=cfg)
    assert found[0].shape == expected.shape == (count, 96, 160, 4)
    assert (found[0] - expected).abs().max() < BOUND
    assert found[2] == SETTINGS["prompt"]


def test_the_composite_is_what_the_layers_show(node, parts):
    made, composite, _ = taken_apart(node, parts, image_of(picture())).result
    shown = Image.new("RGBA", (160, 96))
    for layer in made:
        shown.alpha_composite(Image.fromarray((layer.numpy() * 255).round().astype(np.uint8)))
    alpha = composite[..., 3:]
    assert composite.shape == (1, 96, 160, 4) and error(alpha, image_of(shown)[..., 3:]) < 0.01
    assert error(composite[..., :3] * alpha, image_of(shown)[..., :3] * image_of(shown)[..., 3:]) < 0.02


def test_the_distance_to_the_image_is_told(node, parts):
    from qwen_image_2.model.images.references import over_white
    image = image_of(picture(channels=3))
    output = taken_apart(node, parts, image)
    resized = image_of(picture(channels=3).resize((160, 96), Image.Resampling.LANCZOS))
    expected = 255 * (over_white(output.result[1]) - resized).abs().mean()
    told = " ".join(output.ui["qwen_image_2_messages"])
    assert expected > 1 and f"differ from the image by {expected:.1f} of 255 on average" in told


def test_vaes_of_cores_own_loader_do_as_well(node, parts, pipeline):
    import comfy.sd

    from qwen_image_2.model.qwen_image_1.key_maps import VAE_WAN
    of_core = comfy.sd.VAE(sd={VAE_WAN.to(name): value for name, value in pipeline.vae.state_dict().items()})
    found, expected = (taken_apart(node, SimpleNamespace(model=parts.model, clip=parts.clip, vae=vae),
                                   image_of(picture())).result[0] for vae in (of_core, parts.vae))
    assert (found - expected).abs().max() < BOUND


# ---------------------------------------------------------------- captions

@pytest.mark.parametrize(("language", "word"), [("English", "# Image Annotator"), ("Chinese", "# 图像标注器")])
def test_an_empty_prompt_is_captioned(node, parts, pipeline, monkeypatch, language, word):
    """By the very conversation of the pipeline, which sees the resized picture; what comes out is the prompt."""
    from qwen_image_2.nodes.bridge.text_encoders import generation
    asked = []
    monkeypatch.setattr(parts.clip, "generate", lambda tokens, **settings: asked.append((tokens, settings)) or [
        *parts.clip.tokenizer.hugging_face(" a red cup ")["input_ids"]])
    output = taken_apart(node, parts, image_of(picture(channels=3)), prompt=" \n", caption_language=language)
    (tokens, settings), = asked
    row, = tokens["qwen25_7b"]
    seen = [token for token, _ in row if isinstance(token, dict)]
    text = parts.clip.tokenizer.hugging_face.decode([token for token, _ in row if not isinstance(token, dict)])
    assert word in text and text.startswith("<|im_start|>system\nYou are a helpful assistant.")
    assert text.endswith("<|im_start|>assistant\n")
    assert [tuple(image["data"].shape) for image in seen] == [(1, 84, 168, 3)]  # 96 x 160, in patches of 28
    assert settings["max_length"] == generation.CAPTION_TOKENS == 512 and settings["repetition_penalty"] == 1.05
    assert output.result[2] == "a red cup"
    assert "The text encoder wrote the prompt: a red cup" in output.ui["qwen_image_2_messages"]
    expected = of_reference(pipeline, picture(channels=3).convert("RGBA"), True, "a red cup")
    assert (output.result[0] - expected).abs().max() < BOUND


def test_a_caption_is_the_likeliest_text(node, parts, pipeline, monkeypatch):
    """As transformers writes it, without the penalty, which counts the conversation there."""
    from qwen_image_2.model.qwen_image_1 import prompt
    from qwen_image_2.nodes.bridge.text_encoders import generation
    monkeypatch.setattr(generation, "CAPTION_TOKENS", 12)
    monkeypatch.setattr(generation, "CAPTION_PENALTY", 1.0)
    small, counted = picture(112, 84, 3), []
    found = generation.caption(parts.clip, prompt.CAPTION_EN, image_of(small), counted.append)
    inputs = pipeline.vl_processor(text=prompt.CAPTION_EN, images=small, padding=True, return_tensors="pt")
    written = pipeline.text_encoder.generate(**inputs, max_new_tokens=12, do_sample=False)
    expected = pipeline.vl_processor.batch_decode(written[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
    assert found == expected[0].strip() and counted == list(range(len(counted))) and len(counted) > 2


# ---------------------------------------------------------------- what it refuses

def other_model(tmp_path):
    from qwen_image_2.nodes.bridge.loading import load_model
    path = tmp_path / "qwen_image_2512_bf16.safetensors"
    tiny.save(reference_1.transformer().state_dict(), path, {}, torch.float32)
    return load_model(path, path.name, "auto")


def refused(node, parts, **changes):
    parts = SimpleNamespace(**{**vars(parts), **{name: changes.pop(name) for name in ("model", "clip", "vae")
                                                 if name in changes}})
    with pytest.raises(Refusal) as refusal:
        taken_apart(node, parts, changes.pop("image", image_of(picture())), **changes)
    return refusal.value.message


def test_models_of_whole_pictures_are_refused(node, parts, model, tmp_path):
    for wrong in (other_model(tmp_path), model):
        message = refused(node, parts, model=wrong)
        assert message.key == "layers_model" and "Choose Qwen-Image-Layered (qwen_image_layered" in message
        assert message.startswith(wrong.model.label)


def test_parts_of_other_models_are_refused(node, parts, vae, vae_1, clip):
    message = refused(node, parts, vae=vae_1)
    assert message.key == "layers_vae" and "Qwen-Image 1.x with 3 channels" in message
    assert "Qwen-Image 2.x with 4 channels" in refused(node, parts, vae=vae)
    assert refused(node, parts, clip=clip).key == "families_mixed"


@pytest.mark.parametrize(("changes", "key"), [
    ({"layers": 1}, "layers_range"), ({"layers": 9}, "layers_range"), ({"cfg": 31.0}, "cfg_range"),
    ({"image": torch.rand(2, 64, 64, 3)}, "layers_one_image"), ({"image": torch.rand(1, 16, 320, 3)}, "layers_ratio"),
    ({"image": torch.full((1, 64, 64, 3), torch.nan)}, "image_not_finite"),
])
def test_inputs_it_cannot_use_are_refused(node, parts, changes, key):
    assert refused(node, parts, **changes).key == key


def test_numbers_are_refused_before_anything_runs(node):
    check = node.validate_inputs
    assert check(layers=8, cfg=1.0) is check(layers=None, cfg=None) is True
    assert check(layers=9, cfg=4.0) == "The number of layers must be between 2 and 8, got 9."


def test_a_text_encoder_that_cannot_write_is_refused_only_where_it_must(node, parts, comfyui, tmp_path, pipeline):
    from qwen_image_2.nodes.bridge.text_encoders.families import load_text_encoder
    path = tmp_path / "headless.safetensors"
    state = {name: value for name, value in pipeline.text_encoder.state_dict().items() if name != "lm_head.weight"}
    tiny.save(state, path, {"text_config": tiny.TEXT_CONFIG_1, "vision_config": tiny.VISION_CONFIG_1}, torch.float32)
    headless = load_text_encoder(path, path.name)
    message = refused(node, parts, clip=headless, prompt="")
    assert message.key == "lm_head_missing" and message.endswith("so it cannot generate text: write the prompt "
                                                                 "yourself.")
    parts = SimpleNamespace(model=parts.model, clip=headless, vae=parts.vae)
    assert taken_apart(node, parts, image_of(picture()), steps=1).result[2] == SETTINGS["prompt"]


# ---------------------------------------------------------------- the other nodes

def test_a_layered_vae_is_refused_by_encode_edit(node, parts):
    from qwen_image_2.nodes.edit import QwenImage2EditEncode
    with pytest.raises(Refusal, match="^This VAE is that of Qwen-Image-Layered; .* Choose qwen_image_vae.$"):
        QwenImage2EditEncode.execute(parts.clip, parts.vae, "make it blue", "", {"image_1": torch.rand(1, 64, 64, 3)},
                                     "128", "last reference", 1024, 1024, True, 1)


def test_the_sampler_tells_of_a_layered_model_with_one_picture(parts, comfyui):
    from qwen_image_2.nodes import sampler
    told = [sampler.layered_note(parts.model, torch.zeros(shape))
            for shape in ((1, 16, 4, 4), (1, 16, 1, 4, 4), (1, 16, 3, 4, 4))]
    assert "use Layers (Qwen-Image 2)" in told[0] and told[0] == told[1] and told[2] is None


def test_layers_are_laid_over_each_other_in_order():
    red, blue = torch.tensor([1.0, 0, 0, 1]), torch.tensor([0, 0, 1.0, 0.25])
    nothing = torch.tensor([0.5, 0.5, 0.5, 0])
    found = alpha_over(torch.stack([red, blue, nothing]).view(3, 1, 1, 4)).flatten()
    assert found.tolist() == pytest.approx([0.75, 0, 0.25, 1])
    assert alpha_over(blue.view(1, 1, 1, 4)).flatten().tolist() == pytest.approx(blue.tolist())
    assert alpha_over(nothing.view(1, 1, 1, 4)).flatten().tolist() == [0, 0, 0, 0]
