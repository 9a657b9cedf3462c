"""Qwen2.5-VL is known by its names and sizes."""
import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from qwen_image_2.model.checkpoints import gguf
from qwen_image_2.model.checkpoints.checkpoint import Checkpoint, GGUFCheckpoint, TensorInfo
from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.model.language import key_maps, llama_cpp, qwen2_5_vl, qwen3_vl
from qwen_image_2.model.language.qwen2_5_vl import TextEncoderSpec, VisionSpec
from qwen_image_2.tools import tiny
from qwen_image_2.tools.attacks.mutation import JUNK

# Qwen2.5-VL-7B-Instruct, config.json: older configurations have the language model's sizes at the top.
PUBLISHED = dict(vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
                 num_attention_heads=28, num_key_value_heads=4)
PUBLISHED_VISION = dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=3584,
                        fullatt_block_indexes=[7, 15, 23, 31], window_size=112)
CONFIG = {"text_config": tiny.TEXT_CONFIG_1, "vision_config": tiny.VISION_CONFIG_1}


def infos(state, dtype="F32"):
    return {name: TensorInfo(tuple(value.shape), dtype) for name, value in state.items()}


@pytest.fixture(scope="module")
def published():
    with torch.device("meta"):
        return infos(Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=PUBLISHED, vision_config=PUBLISHED_VISION)).state_dict(), "BF16")


@pytest.fixture(scope="module")
def small():
    return infos(tiny.text_encoder_1_state())


def older(tensors):
    """As transformers before 4.52 and ComfyUI name them."""
    return {name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): info
            for name, info in tensors.items()}


LAYOUTS = {
    "Hugging Face": lambda tensors: tensors,
    "older and ComfyUI": older,
    "core's save node": lambda tensors: {
        "text_encoders.qwen25_7b.transformer." + key_maps.COMFY.to(name): info for name, info in tensors.items()},
    "whole checkpoint": lambda tensors: {
        **{f"text_encoders.qwen25_7b.transformer.{name}": info for name, info in older(tensors).items()},
        "text_encoders.qwen25_7b.logit_scale": TensorInfo((), "F32"),
        "model.diffusion_model.txt_norm.weight": TensorInfo((3584,), "BF16"),
        "vae.conv1.weight": TensorInfo((32, 32, 1, 1, 1), "BF16")},
    "another prefix": lambda tensors: {f"te.{name}": info for name, info in tensors.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_published_model_is_known_without_its_configuration(published, layout):
    assert len(published) == 729 and published["lm_head.weight"].shape == (152064, 3584)
    file = Checkpoint("it.safetensors", LAYOUTS[layout](published))
    assert qwen2_5_vl.is_text_encoder(file)
    detected = qwen2_5_vl.detect_text_encoder(file)
    assert detected.spec == TextEncoderSpec() and not detected.config
    assert set(detected.table) == set(published) and detected.tensors <= set(file.tensors)
    assert len(detected.tensors) == 729


@pytest.mark.parametrize("config", [
    CONFIG, {**tiny.TEXT_CONFIG_1, "vision_config": tiny.VISION_CONFIG_1},
    {**{name: value for name, value in tiny.TEXT_CONFIG_1.items() if name != "rope_parameters"},
     "rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
     "vision_config": tiny.VISION_CONFIG_1}], ids=["in sections", "flat", "flat and older"])
def test_configurations_of_every_age_say_what_shapes_cannot(small, config):
    spec = qwen2_5_vl.detect_text_encoder(Checkpoint("it", small, config)).spec
    assert spec == TextEncoderSpec(
        layers=3, dim=64, mlp_dim=128, heads=4, kv_heads=2, head_dim=16, vocabulary=151680, mrope_section=(2, 3, 3),
        vision=VisionSpec(depth=3, dim=32, mlp_dim=48, heads=2, full_attention=(1,)))


def test_other_language_models_are_none(small):
    others = {"Qwen3-VL": infos(tiny.text_encoder_state()), "enhancer": infos(tiny.enhancer_state()),
              "text only": {name: info for name, info in small.items() if "visual" not in name}}
    for name, tensors in others.items():
        assert not qwen2_5_vl.is_text_encoder(Checkpoint(name, tensors)), name
        with pytest.raises(CheckpointError, match=f"^{name} is .*, not a text encoder for Qwen-Image 2: choose Qwen2"):
            qwen2_5_vl.detect_text_encoder(Checkpoint(name, tensors))
    with pytest.raises(CheckpointError, match="a Qwen2.5-VL text encoder, which belongs to Qwen-Image 1.x, not a"):
        qwen3_vl.detect_text_encoder(Checkpoint("it", small))


def test_without_a_vision_tower_it_is_known_by_its_configuration(small):
    text = {name: info for name, info in small.items() if "visual" not in name}
    config = {**CONFIG, "model_type": "qwen2_5_vl"}
    detected = qwen2_5_vl.detect_text_encoder(Checkpoint("it", text, config))
    assert detected.spec.vision is None and detected.config == config


@pytest.mark.parametrize("width, name", [(2048, "Qwen2.5-VL-3B"), (5120, "Qwen2.5-VL-32B"), (8192, "Qwen2.5-VL-72B")])
def test_other_sizes_are_refused_by_name(small, width, name):
    tensors = {**small, "model.language_model.embed_tokens.weight": TensorInfo((152064, width), "BF16")}
    with pytest.raises(CheckpointError, match=rf"^it is {name} \(width {width}\); Qwen-Image 1.x needs Qwen2.5-VL-7B "
                                              r"\(width 3584\): choose Qwen2.5-VL-7B-Instruct, for example"):
        qwen2_5_vl.detect_text_encoder(Checkpoint("it", tensors, CONFIG))


def test_what_is_missing_is_said(small):
    with pytest.raises(CheckpointError, match="width of 64 and no configuration of its attention heads. Keep config"):
        qwen2_5_vl.detect_text_encoder(Checkpoint("it", small))
    with pytest.raises(CheckpointError, match="depth 3 and width 32; the published model has 32 and 1280: choose"):
        qwen2_5_vl.detect_text_encoder(Checkpoint("it", small, {"text_config": tiny.TEXT_CONFIG_1}))
    cut = {**small, "model.language_model.embed_tokens.weight": TensorInfo((151000, 64), "F32")}
    with pytest.raises(CheckpointError, match="vocabulary of 151,000 tokens; Qwen2.5-VL has 152,064: choose Qwen2"):
        qwen2_5_vl.detect_text_encoder(Checkpoint("it", cut, CONFIG))


@pytest.mark.parametrize("changed, words", [
    ({"num_heads": 7}, "width 32 is not a multiple of its 7 heads"),
    ({"window_size": 100}, "windows of 100 pixels are no multiple of 28"),
    ({"fullatt_block_indexes": 7}, "fullatt_block_indexes is 7, expected a list")])
def test_impossible_towers_are_refused(small, changed, words):
    config = {**CONFIG, "vision_config": {**tiny.VISION_CONFIG_1, **changed}}
    with pytest.raises(CheckpointError, match=words):
        qwen2_5_vl.detect_text_encoder(Checkpoint("it", small, config))


def test_key_maps_are_one_to_one_and_know_their_own_names(small):
    names = list(small)
    for table in (key_maps.COMFY, key_maps.LLAMA_CPP_QWEN2_5):
        theirs = [table.to(name) for name in names]
        assert len(set(theirs)) == len(names) and not set(theirs) & set(names)
        assert [table.back(name) for name in theirs] == [table.back(name) for name in names] == names
    assert [key_maps.SAVED_QWEN2_5.back(key_maps.COMFY.to(name)) for name in names] == list(older(small))


@pytest.mark.parametrize("width, height", [
    (384, 384), (1024, 1024), (352, 416), (28, 28), (10, 10), (30, 5), (10, 700), (4000, 3900), (12000, 900), (42, 70)])
def test_images_are_seen_in_the_size_that_transformers_computes(width, height):
    expected = smart_resize(height, width, 28, qwen2_5_vl.LEAST_PIXELS, qwen2_5_vl.MOST_PIXELS)
    assert qwen2_5_vl.seen_size(width, height) == expected[::-1]


HEADER = {"general.architecture": "qwen2vl", "qwen2vl.rope.freq_base": 1e6, "qwen2vl.attention.head_count": 4,
          "qwen2vl.rope.dimension_sections": [2, 3, 3, 0], "tokenizer.ggml.tokens": ["a", "b"]}
CLIP = {"general.architecture": "clip", "clip.projector_type": "qwen2.5vl_merger",
        "clip.vision.attention.head_count": 2, "clip.vision.n_wa_pattern": 2}


def both_files(small, header, clip):
    """llama.cpp's two files, without values."""
    names = {key_maps.LLAMA_CPP_QWEN2_5.to(name): info.shape for name, info in small.items()}
    frame = names.pop("v.patch_embd.weight")
    names |= {f"v.patch_embd.weight{more}": (*frame[:2], *frame[3:]) for more in ("", ".1")}
    language, vision = ({name: gguf.Stored(shape, "F32", torch.zeros(shape, device="meta"))
                         for name, shape in names.items() if name.startswith(("v.", "mm.")) == sees}
                        for sees in (False, True))
    return GGUFCheckpoint.of("lm", language, header), GGUFCheckpoint.of("mmproj", vision, clip)


def test_the_metadata_of_llama_cpp_says_what_shapes_cannot(small):
    header = {name: value for name, value in HEADER.items() if "tokens" not in name}
    found = qwen2_5_vl.detect_text_encoder(llama_cpp.text_encoder(*both_files(small, header, CLIP))).spec
    assert found == qwen2_5_vl.detect_text_encoder(Checkpoint("it", small, CONFIG)).spec


@pytest.mark.parametrize("key", [*HEADER, *CLIP])
@pytest.mark.parametrize("value", JUNK, ids=range(len(JUNK)))
def test_any_value_in_the_metadata_of_llama_cpp(small, key, value):
    header, clip = ({**own, key: value} if key in own else own for own in (HEADER, CLIP))
    header = {name: one for name, one in header.items() if key == name or "tokens" not in name}
    try:
        qwen2_5_vl.detect_text_encoder(llama_cpp.text_encoder(*both_files(small, header, clip)))
    except CheckpointError as error:
        assert str(error)
