"""Prompt enhancers in ComfyUI's process: the very tokens that transformers writes, and which CLIPs are asked."""
import ast
import inspect
import json
import textwrap

import pytest
import torch

from qwen_image_2.model.qwen_image_2.prompt import IMAGE_SLOT
from qwen_image_2.pages import enhancement
from qwen_image_2.tests import reference as oracle
from qwen_image_2.tools import tiny

CONFIG = {"text_config": tiny.ENHANCER_TEXT_CONFIG, "vision_config": tiny.ENHANCER_VISION_CONFIG}
TOKENS = 24
IMAGE_PAD = 248056


@pytest.fixture(scope="module")
def qwen35():
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration
    return oracle.randomised(Qwen3_5ForConditionalGeneration(Qwen3_5Config(**CONFIG)), 5)


@pytest.fixture(scope="module")
def file(qwen35, tmp_path_factory):
    """With a second head and preferences of kernels, as some files have them, that nobody needs."""
    path = tmp_path_factory.mktemp("enhancers") / "enhancer.safetensors"
    unused = {"mtp.norm.weight": torch.zeros(4),
              "model.language_model.layers.3.self_attn.comfy_attention.config": torch.zeros(20)}
    tiny.save(qwen35.state_dict() | unused, path, CONFIG, torch.float32)
    return path


@pytest.fixture(scope="module")
def enhancer(comfyui, file):
    from qwen_image_2.nodes.bridge.text_encoders.qwen3_5 import load_enhancer
    return load_enhancer(file, file.name)


def pictures(*sizes) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, height, width, 3, generator=generator) for width, height in sizes]


def reference_ids(clip, text: str, images: list[torch.Tensor]) -> tuple[torch.Tensor, dict]:
    """What transformers is asked: token ids (1, N), with as many image tokens as there are states, and the pictures."""
    from qwen_image_2.model.language.qwen3_vl import VisionSpec
    from qwen_image_2.nodes.bridge.text_encoders.qwen3_vl import image_patches
    seen = [image_patches(image, VisionSpec()) for image in images]
    waiting, ids = iter(seen), []
    for token in clip.tokenizer.qwen35_9b.tokenizer(text)["input_ids"]:
        ids += [token] * (len(next(waiting)[0]) // 4 if token == IMAGE_PAD else 1)
    ids = torch.tensor([ids])
    sight = {"pixel_values": torch.cat([patches for patches, _ in seen]),
             "image_grid_thw": torch.cat([grid for _, grid in seen]),
             "mm_token_type_ids": (ids == IMAGE_PAD).long()} if seen else {}
    return ids, sight


@pytest.mark.parametrize("sizes", [[], [(64, 96)], [(64, 96), (160, 64)]], ids=["text", "one", "two"])
def test_writes_what_the_reference_writes(qwen35, enhancer, sizes, monkeypatch):
    """Without sampling: the same tokens, from the same logits."""
    images, logits = pictures(*sizes), []
    text = enhancement.chat("Be good.", "a dog, 一只狗", len(images), IMAGE_SLOT, "<think>\n")
    model = enhancer.cond_stage_model.qwen35_9b.transformer
    monkeypatch.setattr(model, "logits", lambda x, own=model.logits: logits.append(own(x)[:, -1]) or own(x))
    found = enhancer.generate(enhancer.tokenize(text, images=images, skip_template=True), do_sample=False,
                              max_length=TOKENS)
    ids, sight = reference_ids(enhancer, text, images)
    expected = qwen35.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS,
                               do_sample=False, eos_token_id=[248044, 248046], output_logits=True,
                               return_dict_in_generate=True, **sight)
    assert found == expected.sequences[0, ids.shape[1]:].tolist()
    assert oracle.error(torch.cat(logits), torch.cat(expected.logits)) < 1e-4


def test_a_quantised_file_says_what_its_weights_say(comfyui, qwen35, tmp_path):
    """As the official files: every matrix of the language model int8, the output matrix too."""
    from qwen_image_2.nodes.bridge.text_encoders.qwen3_5 import load_enhancer
    stored, rounded = tiny.quantized(lambda key: "language_model.layers" in key or "lm_head" in key,
                                     qwen35.state_dict(), "int8_tensorwise", {}, {"per_channel": True})
    found = []
    for name, state in (("stored", stored), ("rounded", rounded)):
        path = tmp_path / f"{name}.safetensors"
        tiny.save_as_they_are(state, path, {"config": json.dumps(CONFIG)})
        clip = load_enhancer(path, path.name)
        hidden = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(0))
        found.append(clip.cond_stage_model.qwen35_9b.transformer.logits(hidden))
        tokens = clip.tokenize(enhancement.chat("", "a dog", 0, IMAGE_SLOT, ""), skip_template=True)
        assert len(clip.generate(tokens, do_sample=False, max_length=3)) == 3
    assert oracle.error(*found) < 1e-5  # dequantized, not multiplied as integers


@pytest.mark.parametrize("name", ["Qwen35", "Qwen35Transformer", "Qwen3VL"])
def test_ours_have_every_attribute_that_core_s_constructors_set(comfyui, enhancer, clip, name):
    """They are built from a spec, past core's constructors, but core's methods read what those set."""
    from comfy.text_encoders import qwen3vl, qwen35

    from qwen_image_2.nodes.bridge.text_encoders.families import language_model
    core = getattr(qwen3vl if name == "Qwen3VL" else qwen35, name)
    writes = enhancer.cond_stage_model.qwen35_9b.transformer
    ours = {"Qwen35": writes, "Qwen35Transformer": writes.model, "Qwen3VL": language_model(clip)}[name]
    tree = ast.parse(textwrap.dedent(inspect.getsource(core.__init__)))
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
                  and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"}
    assert attributes and not {name for name in attributes if not hasattr(ours, name)}


def test_core_s_newer_generation_finds_no_second_head(enhancer):
    """From about 0.38 on it reads `mtp`, None where a file has none; placing weights by itself reads it too."""
    assert enhancer.cond_stage_model.qwen35_9b.transformer.mtp is None


def test_published_sizes_are_core_s(comfyui):
    """Qwen3.5 9B as core knows it: what a file without configuration is taken for."""
    from comfy.text_encoders import qwen35

    from qwen_image_2.model.language.qwen3_5 import EnhancerSpec
    from qwen_image_2.nodes.bridge.text_encoders.qwen3_5 import language_config
    from qwen_image_2.nodes.bridge.text_encoders.shared import vision_config
    core, ours = vars(qwen35._make_config("qwen35_9b")), vars(language_config(EnhancerSpec()))
    assert ours == core
    expected = {**qwen35.QWEN35_VISION_DEFAULTS, **qwen35.QWEN35_MODELS["qwen35_9b"]["vision"],
                "out_hidden_size": 4096, "deepstack_visual_indexes": []}
    assert vision_config(EnhancerSpec().vision, 4096) == expected


def test_a_published_file_is_recognised_by_its_shapes(comfyui):
    from torch import nn

    from qwen_image_2.model.checkpoints import matching
    from qwen_image_2.model.checkpoints.checkpoint import Checkpoint, TensorInfo
    from qwen_image_2.model.language import key_maps
    from qwen_image_2.model.language.qwen3_5 import EnhancerSpec, detect_enhancer
    from qwen_image_2.nodes.bridge.text_encoders.qwen3_5 import Qwen35
    module = Qwen35(EnhancerSpec(), None, torch.device("meta"), nn)
    tensors = {key_maps.COMFY.back(name): TensorInfo(shape, "BF16")
               for name, shape in matching.shapes(module).items()}
    assert detect_enhancer(Checkpoint("file", tensors)).spec == EnhancerSpec()


# ---------------------------------------------------------------- which CLIPs are asked

def ask(clip, images=(), progress=lambda tokens: None):
    from qwen_image_2.nodes.bridge.text_encoders import generation
    generation.check_writes(clip, sees=bool(images))
    return generation.generate(clip, "Be good.", "a dog", [image[0] for image in images], enhancement.TEXT_TO_IMAGE,
                               0, 3, progress)


class Replayed(torch.nn.Module):
    """A layer as newer ComfyUI runs it from a CUDA graph: what it computes, and none of its hooks."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.layer_type = layer, layer.layer_type

    def __call__(self, *arguments, **options):
        return self.layer.forward(*arguments, **options)


@pytest.mark.parametrize("replayed", [False, True])
def test_tokens_are_counted_and_cancelled_where_layers_are_replayed(enhancer, monkeypatch, replayed):
    import comfy.model_management as management

    from qwen_image_2.nodes.bridge.text_encoders import generation
    model, counted = generation._language_model(enhancer).model, []
    if replayed:
        monkeypatch.setitem(model._modules, "layers", torch.nn.ModuleList(map(Replayed, model.layers)))
    assert ask(enhancer, progress=counted.append).tokens == len(counted) and counted == list(range(len(counted)))

    def cancel(tokens):
        management.interrupt_current_processing(tokens == 0)
        counted.append(tokens)

    counted.clear()
    with pytest.raises(management.InterruptProcessingException):
        ask(enhancer, progress=cancel)
    assert counted == [0] and not model.norm._forward_pre_hooks


def other_clip(model, tokenizer):
    """A CLIP of core's with random weights at core's own, here small, sizes."""
    from types import SimpleNamespace

    import comfy.sd
    return comfy.sd.CLIP(SimpleNamespace(params={}, clip=model, tokenizer=tokenizer))


def test_a_clip_that_cannot_write_is_refused(comfyui):
    from comfy import sd1_clip
    with pytest.raises(ValueError, match="^This CLIP cannot generate text: connect a prompt enhancer"):
        ask(other_clip(sd1_clip.SD1ClipModel, sd1_clip.SD1Tokenizer))


def test_a_language_model_without_eyes_is_not_shown_pictures(comfyui, enhancer, monkeypatch):
    from types import SimpleNamespace

    from qwen_image_2.nodes.bridge.text_encoders import generation
    monkeypatch.setattr(generation, "_language_model", lambda clip: SimpleNamespace())
    with pytest.raises(ValueError, match="has no vision. Disconnect the images"):
        ask(enhancer, pictures((64, 64)))


def test_another_language_model_is_asked_by_its_own_template(comfyui, enhancer, monkeypatch):
    """One turn of the user, as core's node asks it; its template knows where one picture goes, not more."""
    from comfy import sd1_clip
    asked = []

    class Tokenizer(sd1_clip.SD1Tokenizer):
        def tokenize_with_weights(self, text, return_word_ids=False, **options):
            asked.append((text, options))
            return real.tokenize_with_weights(text, images=[options["image"]] if options["image"] is not None else [])

        def decode(self, ids, skip_special_tokens=True):
            return real.decode(ids)

    real = enhancer.tokenizer
    monkeypatch.setattr(enhancer, "tokenizer", Tokenizer())
    assert ask(enhancer, pictures((64, 64))).tokens == 3
    (text, options), = asked
    assert text == "Be good.\n\na dog" and options["thinking"] and options["image"].shape == (1, 256, 256, 3)
    with pytest.raises(ValueError, match="one image at most, got 2"):
        ask(enhancer, pictures((64, 64), (64, 64)))


def test_a_finished_answer_is_not_called_cut(comfyui, enhancer, monkeypatch):
    for ids, truncated in (([5, 6, 248046], False), ([5, 6, 7], True), ([5, 248046], False)):
        monkeypatch.setattr(enhancer, "generate", lambda *_, ids=ids, **__: ids)
        assert ask(enhancer).truncated == truncated
