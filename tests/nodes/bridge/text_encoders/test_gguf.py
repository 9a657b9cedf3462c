"""Text encoders as llama.cpp writes them: a GGUF file of the language model, and the vision projector beside it.

Names come from the gguf package's own tables, metadata from what llama.cpp's conversion/qwen3vl.py calls.
"""
import gguf
import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from qwen_image_2.model.checkpoints import gguf as pack_gguf
from qwen_image_2.model.checkpoints.checkpoint import GGUFCheckpoint
from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.model.checkpoints.files import open_checkpoint
from qwen_image_2.model.language import llama_cpp
from qwen_image_2.model.language.qwen3_vl import TextEncoderSpec, detect_text_encoder
from qwen_image_2.tests.nodes.bridge.quant import test_formats as formats
from qwen_image_2.tests.nodes.bridge.quant.test_gguf_ops import pack
from qwen_image_2.tests.nodes.bridge.text_encoders import test_quantized as text_files
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


def projector_name(name: str, vision: dict = VISION) -> str | None:
    """llama.cpp's name of a tensor of the vision tower, as its converter chooses it."""
    if "visual" not in name:
        return None
    short, _, last = name.removeprefix("model.").rpartition(".")
    if "deepstack" in short:
        _, _, number, part = short.split(".")
        kind = {"norm": TENSOR.V_DS_NORM, "linear_fc1": TENSOR.V_DS_FC1, "linear_fc2": TENSOR.V_DS_FC2}[part]
        base = gguf.TENSOR_NAMES[kind].format(bid=vision["deepstack_visual_indexes"][int(number)])
    elif "merger" in short:
        base = {"norm": gguf.TENSOR_NAMES[TENSOR.V_POST_NORM], "linear_fc1": "mm.0", "linear_fc2": "mm.2"}[
            short.rpartition(".")[2]]
    else:
        base = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, vision["depth"]).get_name(short)
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
    """What packed files hold of the weights, fp32."""
    out = dict(state)
    for name, value in state.items():
        if kind_of(name) in pack_gguf.BLOCKS and value.ndim == 2 and "pos_embed" not in name:
            out[name] = pack_gguf.dequantize(torch.from_numpy(pack(value, kind_of(name))), kind_of(name))
    return out


def narrowed(state: dict, kind: str) -> dict:
    """What plain files of this type hold, fp32: norms, biases and positions are F32 in all, patches in some."""
    dtype = pack_gguf.PLAIN.get(kind, torch.float32)
    wide = ("pos_embed",) if kind == "F16" else ("pos_embed", "patch_embed.proj.weight")
    return {name: value if value.ndim == 1 or any(word in name for word in wide) else value.to(dtype).float()
            for name, value in state.items()}


def load(path, weight_format="as stored", projector="auto"):
    from qwen_image_2.nodes.bridge.text_encoders.families import load_text_encoder
    return load_text_encoder(path, path.name, weight_format, projector)


def states(clip, picture: bool = True) -> torch.Tensor:
    images = [torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(0))] if picture else []
    (text, _), = clip.encode_from_tokens_scheduled(clip.tokenize(text_files.PROMPT, images=images, keep_vision=True))
    return text


@pytest.fixture(scope="module")
def state(reference):
    """Published norms and biases are bf16's values, which llama.cpp writes as F32."""
    return {name: value.bfloat16().float() if value.ndim == 1 else value
            for name, value in reference.text_encoder.state_dict().items()}


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


def test_published_sizes_are_read_from_the_published_files(comfyui):
    """Names, shapes and types of Qwen3VL-8B-Instruct-Q8_0.gguf and its mmproj; only the patches' values are there."""
    from qwen_image_2.nodes.bridge.text_encoders.qwen3_vl import Qwen3VL
    from qwen_image_2.nodes.bridge.text_encoders.shared import for_comfy
    text = dict(vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36,
                num_attention_heads=32, num_key_value_heads=8, head_dim=128)
    vision = dict(depth=27, hidden_size=1152, intermediate_size=4304, num_heads=16, out_hidden_size=4096,
                  deepstack_visual_indexes=[8, 16, 24])
    with torch.device("meta"):
        names = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision)).state_dict()
    language, projector = {}, {}
    for name, value in names.items():
        shape = tuple(value.shape)
        # Rows of 4304 do not divide into blocks of 32.
        kind = "F32" if value.ndim != 2 else "F16" if shape[1] % 32 or "pos_embed" in name else "Q8_0"
        if theirs := language_name(name, 36):
            language[theirs] = pack_gguf.Stored(shape, kind, torch.empty(0))
        elif "patch_embed.proj.weight" in name:
            for frame in ("v.patch_embd.weight", "v.patch_embd.weight.1"):
                projector[frame] = pack_gguf.Stored(shape[:2] + shape[3:], "F32", torch.zeros(shape[:2] + shape[3:]))
        else:
            projector[projector_name(name, vision)] = pack_gguf.Stored(shape, kind, torch.empty(0))
    assert (len(language), len(projector)) == (399, 352)
    header = {"general.architecture": "qwen3vl", "qwen3vl.rope.freq_base": 5e6,
              "qwen3vl.rope.dimension_sections": [24, 20, 20, 0]}
    clip = {"general.architecture": "clip", "clip.projector_type": "qwen3vl_merger",
            "clip.vision.attention.head_count": 16}
    files = llama_cpp.text_encoder(*(
        GGUFCheckpoint.of(label, stored, keys)
        for label, stored, keys in (("lm", language, header), ("mmproj", projector, clip))))
    detected = detect_text_encoder(files)
    assert detected.spec == TextEncoderSpec()
    module = Qwen3VL(detected.spec, None, torch.device("meta"), torch.nn)
    assert for_comfy(files, detected, module).shapes["visual.blocks.26.mlp.linear_fc2.weight"] == (1152, 4304)


def test_every_weight_comes_to_its_place(comfyui, state, plain, tmp_path):
    """Both frames of the patches too, which a still picture cannot tell apart."""
    ours, theirs = (clip.cond_stage_model.qwen3vl_8b.transformer.state_dict()
                    for clip in (load(both(tmp_path, state, "F32")), plain))
    assert set(ours) == set(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_both_files_say_what_the_safetensors_file_says(comfyui, state, plain, tmp_path, kind):
    same = narrowed(rounded(state, lambda name: kind), kind)
    expected = states(load(text_files.write(same, tmp_path / "same.safetensors")))
    assert error(states(load(both(tmp_path, state, kind))), expected) < 1e-5
    lost = error(expected, states(plain))
    assert lost < 1e-6 if kind == "F32" else lost > 1e-4  # how much is the type's own affair


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_norms_and_biases_keep_fp32(comfyui, state, tmp_path, kind):
    """Both files hold them as F32, also beside a projector's matrices of 16 bits; Save Quantized writes them so."""
    from qwen_image_2.nodes.bridge.quant import quantize
    from qwen_image_2.nodes.bridge.text_encoders import families
    state = {name: value * 1.001 if value.ndim == 1 else value for name, value in state.items()}
    clip = load(both(tmp_path, state, kind))
    found = clip.cond_stage_model.qwen3vl_8b.transformer.state_dict()
    narrow = pack_gguf.PLAIN[kind]
    assert found["model.layers.1.self_attn.q_proj.weight"].dtype == narrow
    for ours, theirs in (("model.norm.weight", "model.language_model.norm.weight"),
                         ("visual.blocks.0.attn.proj.bias", "model.visual.blocks.0.attn.proj.bias")):
        assert torch.equal(found[ours], state[theirs]) and not torch.equal(state[theirs].to(narrow), state[theirs])
    quantize.save(tmp_path / "saved.safetensors", families.text_network(clip), lambda done, total: None)
    saved = load_file(tmp_path / "saved.safetensors")
    assert saved["model.language_model.layers.1.self_attn.q_proj.weight"].dtype == narrow
    assert torch.equal(saved["model.language_model.norm.weight"], state["model.language_model.norm.weight"])
    expected = states(load(text_files.write(narrowed(state, kind), tmp_path / "same.safetensors")))
    assert error(states(clip), expected) < 1e-5


@pytest.mark.parametrize("patches", [
    pack_gguf.Stored((64,), "F32", torch.zeros(64)), pack_gguf.Stored((64, 3, 4, 4), "number 99", torch.empty(0)),
    pack_gguf.Stored((64, 3, 4, 32), "Q8_0", torch.zeros(768, 34, dtype=torch.uint8))])
def test_patches_that_are_no_convolution_are_refused(comfyui, state, tmp_path, monkeypatch, patches):
    from qwen_image_2.nodes.bridge.text_encoders import families

    def opened(path, *label):
        found = open_checkpoint(path, *label)
        frames = {name: patches for name in found.stored if name.startswith("v.patch_embd.weight")}
        return GGUFCheckpoint.of(found.label, {**found.stored, **frames}, found.header)

    path = both(tmp_path, state, "F32")
    monkeypatch.setattr(families, "open_checkpoint", opened)
    with pytest.raises(CheckpointError, match="patch_embed.proj"):
        load(path)


WIDE = TEXT | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 16}


def mixed(name: str) -> str:
    """As Q4_K_M mixes them: better types for the table of tokens, the head and some of the matrices."""
    if "embed_tokens" in name or "v_proj" in name:
        return "Q6_K"
    if "lm_head" in name or "down_proj" in name:
        return "Q5_K"
    return "Q4_K"


def test_a_mixed_file_stays_packed_and_its_token_rows_are_looked_up(comfyui, tmp_path):
    import comfy.model_management
    with torch.device("meta"):
        config = Qwen3VLConfig(text_config=WIDE, vision_config=VISION | {"out_hidden_size": 256})
        names = Qwen3VLForConditionalGeneration(config).state_dict()
    state = {name: value for name, value in tiny.randomise(names, 4).items() if "visual" not in name}
    clip = load(write_language(tmp_path / "Qwen3VL-8B-Instruct-Q4_K_M.gguf", state, mixed, text=WIDE))
    network = clip.cond_stage_model.qwen3vl_8b.transformer
    packed = [name for name, value in network.named_parameters() if type(value.data).__name__ == "QuantizedTensor"]
    matrices = [name for name, value in state.items() if value.ndim == 2]
    assert len(packed) == len(matrices) and "model.embed_tokens.weight" in packed
    assert comfy.model_management.module_size(network) < sum(value.numel() for value in state.values())  # a byte each
    assert network.weights == "GGUF Q6_K, GGUF Q4_K and GGUF Q5_K, dequantized layer by layer"
    found = states(clip, picture=False)
    wide = tmp_path / "fp32"
    wide.mkdir()
    same = load(write_language(wide / "Qwen3VL-8B-Instruct-F32.gguf", rounded(state, mixed), lambda name: "F32",
                               text=WIDE))
    assert error(found, states(same, picture=False)) < 1e-5


def test_a_gguf_file_can_become_another_format(comfyui, state, tmp_path):
    path = both(tmp_path, state, "Q8_0")
    expected = states(load(path))
    assert error(states(load(path, "fp32")), expected) < 1e-5
    int8 = load(path, "int8 (ConvRot)")
    assert 1e-4 < error(states(int8), expected) < 0.03
    assert int8.cond_stage_model.qwen3vl_8b.transformer.weights == "int8 with rotation, dequantized layer by layer"


def test_loras_reach_packed_matrices_and_the_table(comfyui, state, tmp_path):
    import comfy.model_management
    clip = load(both(tmp_path, state, "Q8_0"))
    generator = torch.Generator().manual_seed(8)
    changed = dict(state)
    changes = {"model.layers.1.self_attn.q_proj.weight": "model.language_model.layers.1.self_attn.q_proj.weight",
               "visual.blocks.0.mlp.linear_fc1.weight": "model.visual.blocks.0.mlp.linear_fc1.weight",
               "model.embed_tokens.weight": "model.language_model.embed_tokens.weight"}
    before = states(clip)
    patched = clip.clone()
    for ours, theirs in changes.items():
        change = torch.randn(state[theirs].shape, generator=generator) * 0.1
        changed[theirs] = state[theirs] + change
        patched.patcher.add_patches({f"qwen3vl_8b.transformer.{ours}": ("diff", (change,))}, 1.0)
    expected = states(load(text_files.write(changed, tmp_path / "changed.safetensors")))
    assert error(states(patched), expected) < 0.05 < 0.3 < error(before, expected)
    comfy.model_management.unload_all_models()
    assert error(states(clip), before) < 1e-6


def test_the_dynamic_patcher_merges_no_lora_into_packed_matrices(comfyui, state, tmp_path):
    """See test_gguf.py."""
    from comfy.patcher_extension import CallbacksMP

    from qwen_image_2.nodes.bridge.text_encoders.families import language_model
    clip = load(both(tmp_path, state, "Q8_0"))
    layers = [language_model(clip).model.embed_tokens, language_model(clip).model.layers[1].self_attn.q_proj]
    for layer in layers:
        layer.weight_lowvram_function = patch = object()
        layer.weight_function = []
    for callback in clip.clone().patcher.get_all_callbacks(CallbacksMP.ON_LOAD):
        callback(clip.patcher, clip.patcher.load_device, 0, False, False)
    assert [layer.weight_lowvram_function for layer in layers] == [None, None]
    assert layers[1].weight_function == [patch]


def test_a_text_encoder_without_eyes_can_be_saved_and_is_known_again(comfyui, state, tmp_path):
    from qwen_image_2.nodes.bridge.quant import quantize
    from qwen_image_2.nodes.bridge.text_encoders.families import text_network
    path = write_language(tmp_path / "lm.gguf", state, lambda name: "Q8_0")
    with pytest.raises(ValueError, match="^x.safetensors cannot be saved: its weights are still GGUF. Choose another"):
        quantize.save(tmp_path / "x.safetensors", text_network(load(path)), lambda done, total: None)
    clip = load(path, "int8 (ConvRot)")
    quantize.save(tmp_path / "saved.safetensors", text_network(clip), lambda done, total: None)
    again = load(tmp_path / "saved.safetensors")
    assert again.cond_stage_model.qwen3vl_8b.transformer.visual is None
    formats.assert_same_tensors(*(one.cond_stage_model.qwen3vl_8b.transformer.state_dict() for one in (again, clip)))
    assert error(states(again, picture=False), states(clip, picture=False)) < formats.rounding("int8")


# ---------------------------------------------------------------- with and without a projector

def test_without_a_projector_prompts_work_and_references_are_refused(comfyui, state, plain, tmp_path):
    from qwen_image_2.nodes.bridge.text_encoders.families import check_clip
    clip = load(write_language(tmp_path / "Qwen3VL-8B-Instruct.gguf", state, lambda name: "F32"))
    assert error(states(clip, picture=False), states(plain, picture=False)) < 1e-5
    check_clip(clip)
    words = "loaded without its vision projector, .* mmproj-Qwen3VL-8B-Instruct-F16.gguf"
    with pytest.raises(ValueError, match=words):
        check_clip(clip, reads_images=True)
    with pytest.raises(ValueError, match=words):
        states(clip)


def test_the_projector_beside_the_file_that_fits_is_taken(comfyui, state, plain, tmp_path):
    """Of several the largest. Those of other models lie in the same folder."""
    path = write_language(tmp_path / "Qwen3VL-8B-Instruct.gguf", state, lambda name: "F32")
    write_projector(tmp_path / "Qwen2.5-VL-7B-Instruct.mmproj-F32.gguf", state, projector="qwen2.5vl_merger")
    write_projector(tmp_path / "mmproj-Qwen3VL-4B-Instruct-F32.gguf", state, out=32)
    assert load(path).cond_stage_model.qwen3vl_8b.transformer.visual is None
    write_projector(tmp_path / "Qwen3-VL-8B-Instruct.mmproj-Q8_0.gguf", state, "Q8_0")
    write_projector(tmp_path / "mmproj-F32.gguf", state)
    assert error(states(load(path)), states(plain)) < 1e-5
    assert load(path, projector=None).cond_stage_model.qwen3vl_8b.transformer.visual is None
    chosen = states(load(path, projector=tmp_path / "Qwen3-VL-8B-Instruct.mmproj-Q8_0.gguf"))
    assert 1e-4 < error(chosen, states(plain)) < 0.05


def test_a_projector_of_another_model_is_refused(comfyui, state, tmp_path):
    path = write_language(tmp_path / "lm.gguf", state, lambda name: "F32")
    with pytest.raises(CheckpointError, match=r"^old.gguf is of the type qwen2.5vl_merger, not the vision projector of "
                                              r"Qwen3-VL \(qwen3vl_merger\): choose the mmproj file of Qwen3-VL-8B"):
        load(path, projector=write_projector(tmp_path / "old.gguf", state, projector="qwen2.5vl_merger"))
    with pytest.raises(CheckpointError, match="^4b.gguf belongs to a language model of width 32, but lm.gguf has"):
        load(path, projector=write_projector(tmp_path / "4b.gguf", state, out=32))
    with pytest.raises(CheckpointError, match="^lm.gguf is of the architecture qwen3vl, not the vision projector"):
        load(path, projector=path)
    other = text_files.write(state, tmp_path / "whole.safetensors")
    with pytest.raises(CheckpointError, match="whole.safetensors contains its vision tower. Set Vision projector to"):
        load(other, projector=path)


# ---------------------------------------------------------------- refused

@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "qwen3vlmoe"])
def test_other_architectures_are_refused_by_name(comfyui, state, tmp_path, architecture):
    path = write_language(tmp_path / "other.gguf", state, lambda name: "F32", architecture)
    with pytest.raises(CheckpointError, match=rf"^other.gguf is a language model of the architecture {architecture}, "
                                              r"not a text encoder for Qwen-Image 2 \(qwen3vl, qwen2vl, qwen25vl\): "
                                              "choose a GGUF file"):
        load(path)


def test_a_projector_is_no_text_encoder(comfyui, state, tmp_path):
    with pytest.raises(CheckpointError, match="^x.gguf is the vision projector of a language model.* Vision projector"):
        load(write_projector(tmp_path / "x.gguf", state))


def test_another_size_is_refused_by_name(comfyui, tmp_path):
    small = TEXT | {"hidden_size": 2560, "num_hidden_layers": 1, "vocab_size": 96}
    with torch.device("meta"):
        names = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=small, vision_config=VISION)).state_dict()
    state = {name: torch.zeros(value.shape) for name, value in names.items() if "visual" not in name}
    path = write_language(tmp_path / "Qwen3VL-4B-Instruct-F16.gguf", state, lambda name: "F16", text=small)
    with pytest.raises(CheckpointError, match=r"^Qwen3VL-4B-Instruct-F16.gguf is Qwen3-VL-4B \(width 2560\); Qwen-"
                                              r"Image 2 needs Qwen3-VL-8B \(width 4096\): choose Qwen3-VL-8B-Instruct"):
        load(path)


def test_another_vocabulary_is_refused(comfyui, state, tmp_path):
    path = write_language(tmp_path / "words.gguf", state, lambda name: "F32", words=["a", "b"])
    with pytest.raises(CheckpointError, match=r"^words.gguf has another vocabulary than Qwen3-VL \(2 words"):
        load(path)
    name = "model.language_model.embed_tokens.weight"
    path = write_language(tmp_path / "cut.gguf", {**state, name: state[name][:150_000]}, lambda name: "F32")
    with pytest.raises(CheckpointError, match=r"^cut.gguf has a vocabulary of 150,000 tokens; Qwen3-VL has 151,936"):
        load(path)


@pytest.mark.parametrize("part", [0.2, 0.999])
def test_a_truncated_file_is_said(comfyui, state, tmp_path, part):
    path = write_language(tmp_path / "lm.gguf", state, lambda name: "F16")
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * part)])
    with pytest.raises(CheckpointError, match=r"^lm.gguf \([\d,]+ bytes\) is truncated, damaged or not a GGUF file"):
        load(path)


def test_a_tensor_too_few_is_named(comfyui, state, tmp_path):
    less = {name: value for name, value in state.items() if name != "model.language_model.layers.1.mlp.up_proj.weight"}
    with pytest.raises(CheckpointError, match="lm.gguf is incomplete: tensor model.language_model.layers.1.mlp.up"):
        load(write_language(tmp_path / "lm.gguf", less, lambda name: "F32"))
    vision = {name: value for name, value in state.items() if name != "model.visual.patch_embed.proj.weight"}
    path = write_language(tmp_path / "lm.gguf", state, lambda name: "F32")
    with pytest.raises(CheckpointError, match="lm.gguf with v.gguf is incomplete: .* model.visual.patch_embed.proj"):
        load(path, projector=write_projector(tmp_path / "v.gguf", vision))
