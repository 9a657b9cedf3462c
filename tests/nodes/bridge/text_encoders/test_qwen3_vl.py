"""Prompt states and image slots against the reference pipeline's."""
import copy

import numpy as np
import pytest
import torch
from PIL import Image

from qwen_image_2.tests.reference import error

BOUND = 1e-4
CHINESE = "一张海报，上面写着“你好，世界”，红色背景，金色大字。"
LONG = "A poster with the words \"OPEN DAY\" in tall red letters above a quiet harbour at dawn. " * 84
PROMPTS = {
    "english": 'A poster that says "HELLO"',
    "chinese": CHINESE,
    "mixed": f"{CHINESE} Above it: \"GRAND OPENING\" 🎉",
    "empty": "",
    "escapes": r"weights (like:1.2) \(this\) and embedding:none stay text",
    "special": "a literal <|endoftext|> in the middle",
    "1500 tokens": LONG,
}


def encode(clip, prompt, images=(), keep_vision=False):
    tokens = clip.tokenize(prompt, images=list(images), keep_vision=keep_vision)
    (states, extra), = clip.encode_from_tokens_scheduled(tokens)
    return states, extra.get("image_slots", [])


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_prompt_states_equal_the_reference(clip, reference, prompt):
    expected, _, slots = reference.encode_prompt(prompt)
    states, found_slots = encode(clip, prompt)
    assert error(states, expected) < BOUND
    assert found_slots == [] and not slots.any()


def test_the_long_prompt_is_long(comfyui):
    from qwen_image_2.nodes.bridge.text_encoders.families import count_tokens
    assert 1500 <= count_tokens(LONG) < 2000


def pictures(sizes, mode):
    generator = np.random.default_rng(len(sizes))
    channels = len(mode)
    return [Image.fromarray(generator.integers(0, 256, (h, w, channels), dtype=np.uint8), mode) for w, h in sizes]


@pytest.mark.parametrize("sizes", [[(96, 64)], [(64, 64), (32, 160), (128, 96)]], ids=["one", "three"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_states_and_slots_with_references(clip, reference, sizes, mode):
    images = pictures(sizes, mode)
    expected, _, slots = reference.encode_prompt("make <image1> blue", images)
    tensors = [torch.from_numpy(np.asarray(image).astype(np.float32) / 255).unsqueeze(0) for image in images]
    states, found_slots = encode(clip, "make <image1> blue", tensors)
    assert error(states, expected[:, ~slots[0]]) < BOUND
    starts = [i for i, here in enumerate(slots[0]) if here and not slots[0, i - 1]]
    assert found_slots == [int((~slots[0, :start]).sum()) for start in starts] and len(starts) == len(sizes)
    assert slots.sum() == sum(w * h // 1024 for w, h in sizes)


@pytest.fixture
def looks(clip, monkeypatch):
    """Grows by one with every pass through the vision tower."""
    from qwen_image_2.nodes.bridge.text_encoders.families import language_model
    counted, tower = [], type(language_model(clip).visual)
    forward = tower.forward
    monkeypatch.setattr(tower, "forward", lambda self, *arguments: counted.append(1) or forward(self, *arguments))
    return counted


REFERENCES = [torch.rand(1, *size, generator=torch.Generator().manual_seed(4))
              for size in [(64, 96, 4), (64, 64, 3), (32, 160, 4)]]


def encode_edits(clip, *prompts):
    from qwen_image_2.nodes.bridge.text_encoders.families import encode_together
    return [(states, extra["image_slots"]) for (states, extra), in encode_together(clip, prompts, REFERENCES)]


def test_prompts_of_an_edit_share_what_the_vision_tower_sees(clip, looks):
    apart = [encode(clip, prompt, REFERENCES) for prompt in ("make <image1> blue", "blurred")]
    assert len(looks) == 6
    together = encode_edits(clip, "make <image1> blue", "blurred")
    assert len(looks) == 6 + 3
    for (states, slots), (expected, expected_slots) in zip(together, apart, strict=True):
        assert torch.equal(states, expected) and slots == expected_slots
    encode_edits(clip, "make <image1> blue")
    assert len(looks) == 6 + 3 + 3, "a LoRA may have changed the tower since"


def test_features_are_forgotten_where_encoding_is_interrupted(clip, monkeypatch):
    from qwen_image_2.nodes.bridge.text_encoders.families import language_model

    def interrupt(*arguments, **options):
        assert len(language_model(clip).seen) == 3
        raise InterruptedError

    monkeypatch.setattr(language_model(clip).model, "forward", interrupt)
    with pytest.raises(InterruptedError):
        encode_edits(clip, "make <image1> blue")
    assert language_model(clip).seen is None


def test_hooks_that_change_the_tower_between_prompts_are_seen(clip, looks):
    import comfy.hooks

    from qwen_image_2.nodes.bridge.text_encoders.families import encode_together
    hooked = clip.clone()
    hooked.use_clip_schedule, hooked.patcher.forced_hooks = True, comfy.hooks.create_hook_lora({}, 1.0, 1.0)
    for conditioning in encode_together(hooked, ("make <image1> blue", "blurred"), REFERENCES):
        assert len(conditioning) == 1
    assert len(looks) == 6


def test_a_prompt_that_nobody_reads_is_not_encoded(clip, looks, monkeypatch):
    from qwen_image_2.nodes.bridge.text_encoders.families import encode_together, language_model
    prompts, passes, language = ("make <image1> blue", "blurred"), [], language_model(clip).model
    forward = language.forward
    monkeypatch.setattr(language, "forward", lambda *arguments, **more: passes.append(1) or forward(*arguments, **more))
    read, unread = encode_together(clip, prompts, REFERENCES)
    assert len(read) == 1 and (len(passes), len(looks)) == (1, 3) and not unread.is_encoded
    assert len(unread) == 1 and (len(passes), len(looks)) == (2, 3)  # the tower's features have waited


def test_a_prompt_that_cannot_be_encoded_is_refused_before_it_is_read(clip):
    from qwen_image_2.nodes.bridge.text_encoders.families import encode_together
    with pytest.raises(ValueError, match="is reserved for reference images"):
        encode_together(clip, ("a cat", "draw <|image_pad|>"), [])


@pytest.mark.parametrize("images", [0, 3])
def test_a_card_with_bf16_computes_in_it_as_the_reference_does(clip, reference, monkeypatch, images):
    """States are no further from those in fp32 than the reference's own in bf16."""
    from qwen_image_2.nodes.bridge.text_encoders import families, shared
    shown = pictures([(64, 64), (32, 160), (128, 96)], "RGB")[:images]
    tensors = [torch.from_numpy(np.asarray(image).astype(np.float32) / 255).unsqueeze(0) for image in shown]
    asked, dtypes = (PROMPTS["mixed"], shown or None), set()
    exact = reference.encode_prompt(*asked)[0]
    narrow = copy.deepcopy(reference.text_encoder).bfloat16()
    narrow.set_attn_implementation("eager")  # PyTorch's own fails in bf16 where ATEN_CPU_CAPABILITY is below the CPU
    monkeypatch.setattr(reference, "text_encoder", narrow)
    theirs = reference.encode_prompt(*asked)[0].float()
    monkeypatch.setattr(shared, "compute_dtype", lambda device: torch.bfloat16)
    model = families.language_model(clip)
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: dtypes.add(inputs[0].dtype))
             for layer in (model.model.layers[0].mlp, *([model.visual.blocks[0].mlp] if images else []))]
    ours, _ = encode(clip, PROMPTS["mixed"], tensors, keep_vision=True)
    for hook in hooks:
        hook.remove()
    assert dtypes == {torch.bfloat16} and ours.dtype == torch.float32
    distance = [((states - exact).norm() / exact.norm()).item() for states in (ours, theirs)]
    assert 1e-4 < distance[0] < 1.5 * distance[1]


@pytest.mark.parametrize("able, dtype", [(True, torch.bfloat16), (False, torch.float32)])
def test_the_card_is_asked_for_bf16(comfyui, monkeypatch, able, dtype):
    import comfy.model_management

    from qwen_image_2.nodes.bridge.text_encoders.shared import compute_dtype
    assert compute_dtype(torch.device("cpu")) == torch.float32
    monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda device: able)
    assert compute_dtype(torch.device("cuda")) == dtype


def test_readout_is_before_the_final_norm(clip, reference):
    states, _ = encode(clip, PROMPTS["english"])
    normed = reference.text_encoder.model.language_model.norm(states)
    expected = reference.encode_prompt(PROMPTS["english"])[0]
    assert error(states, expected) < BOUND < error(normed, expected)


def test_another_clip_is_refused(comfyui):
    from types import SimpleNamespace

    from comfy.text_encoders.qwen3vl import tokenizer

    from qwen_image_2.nodes.bridge.text_encoders.families import check_clip
    with pytest.raises(ValueError, match="not the Qwen-Image 2 text encoder"):
        check_clip(SimpleNamespace(tokenizer=tokenizer()()))


def test_an_image_token_in_the_prompt_is_refused(clip):
    with pytest.raises(ValueError, match="is reserved for reference images"):
        clip.tokenize("draw <|image_pad|>")


def test_references_must_come_resized(clip):
    with pytest.raises(ValueError, match="multiples of 32 pixels, got 40 x 64"):
        clip.tokenize("edit", images=[torch.zeros(1, 64, 40, 3)])


def test_published_sizes_are_core_s(comfyui):
    """Qwen3-VL-8B as core knows it: what a file without configuration is taken for."""
    from comfy.text_encoders import llama, qwen3vl

    from qwen_image_2.model.language.qwen3_vl import TextEncoderSpec, VisionSpec
    from qwen_image_2.nodes.bridge.text_encoders.qwen3_vl import language_config
    from qwen_image_2.nodes.bridge.text_encoders.shared import vision_config
    ours, core = language_config(TextEncoderSpec()), llama.Qwen3VL_8BConfig()
    names = [*vars(core), "head_dim", "rope_dims", "interleaved_mrope", "q_norm", "k_norm"]
    assert {name: getattr(ours, name) for name in names} == {name: getattr(core, name) for name in names}
    expected = {**qwen3vl.QWEN3VL_VISION_COMMON, **qwen3vl.QWEN3VL_VISION["qwen3vl_8b"], "out_hidden_size": 4096}
    assert vision_config(VisionSpec(), 4096) == expected


def test_cores_node_for_edits_of_another_family_is_named(clip):
    """It writes image tokens into the text; the prompt is not to blame for them."""
    from comfy_extras.nodes_qwen import TextEncodeQwenImageEditPlus
    with pytest.raises(ValueError, match=r"TextEncodeQwenImageEditPlus does.*Use Encode Edit \(Qwen-Image 2\) inst"):
        TextEncodeQwenImageEditPlus.execute(clip, "make it blue", image1=torch.rand(1, 64, 64, 3))
    assert TextEncodeQwenImageEditPlus.execute(clip, "a cat").result[0][0][0].shape[0] == 1  # without pictures
