"""Text encoders as llama.cpp writes them: a GGUF file of the language model, and the vision projector beside it.

Names come from the gguf package's own tables, metadata from what llama.cpp's conversion/qwen3vl.py calls.
"""
import gguf
import pytest
import torch

from qwen_image_2.model import ggml
from qwen_image_2.tests.nodes import test_quantised_text_encoder as text_files
from qwen_image_2.tests.nodes.test_gguf import pack
from qwen_image_2.tests.reference import error
from qwen_image_2.tools import tiny

TEXT, VISION = tiny.TEXT_CONFIG, tiny.VISION_CONFIG
KIND = gguf.GGMLQuantizationType
TENSOR = gguf.MODEL_TENSOR


def language_name(name: str, layers: int) -> str | None:
    """llama.cpp's name of a tensor of the language model; its converter takes `language_model.` out first."""
    if "visual" in name:
        return None
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3VL, layers).get_name(
        name.replace("language_model.", ""), (".weight", ".bias"))


def projector_name(name: str) -> str | None:
    """llama.cpp's name of a tensor of the vision tower, as its converter chooses it."""
    if "visual" not in name:
        return None
    short, _, last = name.removeprefix("model.").rpartition(".")
    if "deepstack" in short:
        _, _, number, part = short.split(".")
        kind = {"norm": TENSOR.V_DS_NORM, "linear_fc1": TENSOR.V_DS_FC1, "linear_fc2": TENSOR.V_DS_FC2}[part]
        base = gguf.TENSOR_NAMES[kind].format(bid=VISION["deepstack_visual_indexes"][int(number)])
    elif "merger" in short:
        base = {"norm": gguf.TENSOR_NAMES[TENSOR.V_POST_NORM], "linear_fc1": "mm.0", "linear_fc2": "mm.2"}[
            short.rpartition(".")[2]]
    else:
        base = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, VISION["depth"]).get_name(short)
    return f"{base}.{last}"


def add(writer: gguf.GGUFWriter, name: str, value: torch.Tensor, kind: str) -> None:
    if kind == "F32" or value.ndim == 1:
        writer.add_tensor(name, value.float().numpy())
    elif kind == "F16":
        writer.add_tensor(name, value.half().numpy())
    elif kind == "BF16":
        raw = value.bfloat16().view(torch.uint8).numpy()
        writer.add_tensor(name, raw, raw_dtype=KIND.BF16)
    else:
        writer.add_tensor(name, pack(value, kind), raw_dtype=KIND[kind])


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_language(path, state: dict, kind_of, architecture: str = "qwen3vl", text: dict = TEXT, words=None):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("Qwen3 VL 8B Instruct")
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_key_length(text["head_dim"])
    writer.add_value_length(text["head_dim"])
    writer.add_rope_freq_base(text["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_sections([*text["rope_parameters"]["mrope_section"], 0])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_num_deepstack_layers(len(VISION["deepstack_visual_indexes"]))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    if words is not None:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(words)
    for name, value in state.items():
        if theirs := language_name(name, text["num_hidden_layers"]):
            add(writer, theirs, value, kind_of(name))
    finish(writer)
    return path


def write_projector(path, state: dict, kind: str = "F32", projector: str = "qwen3vl_merger",
                    out: int = TEXT["hidden_size"]):
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(projector)
    writer.add_vision_projection_dim(out)
    writer.add_vision_image_size(768)
    writer.add_vision_patch_size(VISION["patch_size"])
    writer.add_vision_embedding_length(VISION["hidden_size"])
    writer.add_vision_feed_forward_length(VISION["intermediate_size"])
    writer.add_vision_block_count(VISION["depth"])
    writer.add_vision_head_count(VISION["num_heads"])
    writer.add_vision_image_mean([0.5] * 3)
    writer.add_vision_image_std([0.5] * 3)
    writer.add_vision_use_gelu(True)
    writer.add_vision_spatial_merge_size(VISION["spatial_merge_size"])
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_is_deepstack_layers([layer in VISION["deepstack_visual_indexes"]
                                           for layer in range(VISION["depth"])])
    for name, value in state.items():
        if theirs := projector_name(name):
            if "patch_embed.proj.weight" in name:
                plain = "F16" if kind == "F16" else "F32"
                add(writer, theirs, value[:, :, 0], plain)
                add(writer, theirs + ".1", value[:, :, 1], plain)
            else:
                add(writer, theirs, value[:out] if theirs == "mm.2.weight" else value,
                    "F32" if "pos_embed" in name else kind)
    finish(writer)
    return path


def rounded(state: dict, kind_of) -> dict:
    """What such files hold of the weights, fp32."""
    out = dict(state)
    for name, value in state.items():
        kind = kind_of(name)
        if kind in ggml.BLOCKS and value.ndim == 2 and "pos_embed" not in name:
            out[name] = ggml.dequantise(torch.from_numpy(pack(value, kind)), kind)
        elif kind in ggml.PLAIN and value.ndim > 1:
            out[name] = value.to(ggml.PLAIN[kind]).float()
    return out


def load(path, weight_format="as stored", projector="auto"):
    from qwen_image_2.nodes.bridge.text_encoder import load_text_encoder
    return load_text_encoder(path, path.name, weight_format, projector)


def states(clip, picture: bool = True) -> torch.Tensor:
    images = [torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(0))] if picture else []
    (text, _), = clip.encode_from_tokens_scheduled(clip.tokenize(text_files.PROMPT, images=images))
    return text


@pytest.fixture(scope="module")
def state(reference):
    return reference.text_encoder.state_dict()


@pytest.fixture(scope="module")
def plain(comfyui, state, tmp_path_factory):
    """The same weights in safetensors, loaded."""
    return load(text_files.write(state, tmp_path_factory.mktemp("plain") / "plain.safetensors"))


def both(folder, state, kind: str):
    """Both files of one type. Returns the language model's path."""
    write_projector(folder / "mmproj-Qwen3VL-8B-Instruct.gguf", state, kind)
    return write_language(folder / "Qwen3VL-8B-Instruct.gguf", state, lambda name: kind)


def test_every_tensor_of_both_files_has_a_name(state):
    for name in state:
        assert language_name(name, TEXT["num_hidden_layers"]) or projector_name(name), name


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_both_files_say_what_the_safetensors_file_says(comfyui, state, plain, tmp_path, kind):
    clip = load(both(tmp_path, state, kind))
    expected = load(text_files.write(rounded(state, lambda name: kind), tmp_path / "rounded.safetensors"))
    assert error(states(clip), states(expected)) < 2e-3 if kind == "F16" else 1e-5
    assert (error(states(expected), states(plain)) > 1e-4) == (kind != "F32")
