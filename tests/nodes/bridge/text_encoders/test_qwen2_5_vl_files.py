"""Every layout in which Qwen2.5-VL circulates says the same: names of three ages, fp8 in both forms, whole checkpoints,
and llama.cpp's two files. Names of the last come from the gguf package's own tables."""
import json

import gguf
import pytest
import torch
from safetensors.torch import load_file

from qwen_image_2.messages import Refusal
from qwen_image_2.model.checkpoints import gguf as pack_gguf
from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.model.language import key_maps
from qwen_image_2.model.qwen_image_1 import prompt
from qwen_image_2.tests import reference_1
from qwen_image_2.tests.nodes.bridge.text_encoders import test_gguf as gguf_files
from qwen_image_2.tests.reference import error
from qwen_image_2.tools import tiny

TEXT, VISION = tiny.TEXT_CONFIG_1, tiny.VISION_CONFIG_1
CONFIG = {"text_config": TEXT, "vision_config": VISION}
PREFIX = "text_encoders.qwen25_7b.transformer."
QUERY = "model.language_model.layers.1.self_attn.q_proj.weight"
QKV = "model.visual.blocks.0.attn.qkv.weight"


@pytest.fixture(scope="module")
def state():
    """Published norms and biases are bf16's values, which llama.cpp writes as F32."""
    return {name: value.bfloat16().float() if value.ndim == 1 else value
            for name, value in reference_1.text_encoder().state_dict().items()}


@pytest.fixture(scope="module")
def plain(comfyui, state, tmp_path_factory):
    return states(load(write(state, tmp_path_factory.mktemp("plain") / "plain.safetensors")))


def write(state, path):
    tiny.save_as_they_are(state, path, {"config": json.dumps(CONFIG)})
    return path


def load(path, *choices):
    from qwen_image_2.nodes.bridge.text_encoders.families import family_of, load_text_encoder
    clip = load_text_encoder(path, path.name, *choices)
    assert family_of(clip) == "1.x"
    return clip


def states(clip, picture: bool = True) -> torch.Tensor:
    images = [torch.rand(1, 140, 196, 3, generator=torch.Generator().manual_seed(0))] if picture else []
    (found, _), = clip.encode_from_tokens_scheduled(clip.tokenize(
        "a red circle, 红色的圆", images=images, template=prompt.EDIT if picture else prompt.TEXT_TO_IMAGE))
    return found


def older(state):
    """Names of ComfyUI's files."""
    return {key_maps.SAVED_QWEN2_5.back(key_maps.COMFY.to(name)): value for name, value in state.items()}


# ---------------------------------------------------------------- safetensors

@pytest.mark.parametrize("layout", [
    older, lambda state: {f"te.{name}": value for name, value in older(state).items()},
    lambda state: {**{PREFIX + name: value for name, value in older(state).items()},
                   "model.diffusion_model.img_in.weight": torch.ones(4, 4).to(torch.float8_e4m3fn)}],
    ids=["older", "a prefix", "a whole checkpoint"])
def test_other_names(state, plain, tmp_path, layout):
    assert error(states(load(write(layout(state), tmp_path / "te.safetensors"))), plain) < 1e-6


def test_a_folder_of_shards(state, plain, tmp_path):
    names = list(state)
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        tiny.save_as_they_are({name: state[name] for name in part},
                              tmp_path / f"model-{number:05}-of-00002.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", **CONFIG}))
    assert error(states(load(tmp_path)), plain) < 1e-6


def scaled(state, **settings):
    """Every matrix of both networks in fp8 but words and patches, as in qwen_2.5_vl_7b_fp8_scaled.safetensors, and the
    same weights dequantized."""
    words = ("embed_tokens", "lm_head")
    return tiny.quantized(lambda name: not any(word in name for word in words), state, "float8_e4m3fn", settings,
                          {"scale": "recalculate"})


def old_form(stored, prefix=""):
    old = {prefix + name.replace("weight_scale", "scale_weight"): value for name, value in older(stored).items()
           if not name.endswith("comfy_quant")}
    return {**old, f"{prefix}scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}


@pytest.mark.parametrize("form", ["new", "old", "old in a whole checkpoint"])
def test_scaled_fp8(comfyui, state, plain, tmp_path, form):
    stored, rounded = scaled(state)
    expected = states(load(write(rounded, tmp_path / "rounded.safetensors")))
    if form != "new":
        stored = old_form(stored, PREFIX if "whole" in form else "")
        assert len([name for name in stored if name.endswith("scale_weight")]) == 7 * 3 + 5 * 3 + 2
    if "whole" in form:  # whose transformer is cast without a scale
        stored["model.diffusion_model.img_in.weight"] = torch.ones(4, 4).to(torch.float8_e4m3fn)
    clip = load(write(stored, tmp_path / "fp8.safetensors"))
    assert clip.cond_stage_model.qwen25_7b.transformer.weights == "fp8 (e4m3), dequantized layer by layer"
    assert error(states(clip), expected) < 1e-3 < 5e-3 < error(expected, plain)


@pytest.mark.parametrize("prefix", ["", PREFIX], ids=["alone", "in a whole checkpoint"])
def test_a_file_that_was_cast_to_fp8_as_it_was(comfyui, state, plain, tmp_path, prefix):
    """Words, norms, biases and patches with the matrices, and no scale anywhere: merges of whole checkpoints."""
    cast = {name: value.to(torch.float8_e4m3fn) for name, value in older(state).items()}
    rounded = {name: value.float() for name, value in cast.items()}
    expected = states(load(write(rounded, tmp_path / "rounded.safetensors")))
    clip = load(write({prefix + name: value for name, value in cast.items()}, tmp_path / "fp8.safetensors"))
    assert clip.cond_stage_model.qwen25_7b.transformer.weights == "fp8 (e4m3), dequantized layer by layer"
    assert error(states(clip), expected) < 0.01 < 0.02 < error(expected, plain)


def test_other_formats_and_what_is_saved_of_them(comfyui, state, plain, tmp_path):
    """With the names that ComfyUI's own loader knows this model by."""
    from qwen_image_2.nodes.bridge.quant import quantize
    from qwen_image_2.nodes.bridge.text_encoders.families import text_network
    clip = load(write(state, tmp_path / "te.safetensors"), "int8 (ConvRot)")
    assert 1e-4 < error(states(clip), plain) < 0.1
    bias = "model.layers.0.self_attn.k_proj.bias"
    clip.patcher.add_patches({f"qwen25_7b.transformer.{bias}": ("diff", (torch.full((32,), 0.5),))}, 1.0)
    quantize.save(tmp_path / "saved.safetensors", text_network(clip), lambda done, total: None)
    saved = load_file(tmp_path / "saved.safetensors")
    assert saved["model.layers.0.self_attn.q_proj.weight"].dtype == torch.int8
    assert error(saved[bias], older(state)[bias] + 0.5) < 1e-6
    assert set(older(state)) <= set(saved) and torch.equal(saved["visual.blocks.0.mlp.up_proj.weight"],
                                                           state["model.visual.blocks.0.mlp.up_proj.weight"])
    assert error(states(load(tmp_path / "saved.safetensors")), states(clip)) < 1e-3


def test_what_cores_save_node_writes_loads_again(comfyui, state, plain, tmp_path):
    import folder_paths
    from comfy_extras.nodes_model_merging import CLIPSave
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    try:
        CLIPSave().save(clip=load(write(state, tmp_path / "te.safetensors")), filename_prefix="saved",
                        prompt={"1": {}}, extra_pnginfo={"workflow": {}})
    finally:
        folder_paths.set_output_directory(before)
    path, = tmp_path.glob("saved*")
    assert error(states(load(path)), plain) < 1e-6


def test_loras_reach_both_networks(comfyui, state, plain, tmp_path):
    generator, changed = torch.Generator().manual_seed(8), dict(state)
    clip = load(write(state, tmp_path / "te.safetensors"))
    patched = clip.clone()
    for name in (QUERY, QKV, "model.language_model.layers.0.self_attn.k_proj.bias"):
        change = torch.randn(state[name].shape, generator=generator) * 0.1
        changed[name] = state[name] + change
        patched.patcher.add_patches({f"qwen25_7b.transformer.{key_maps.COMFY.to(name)}": ("diff", (change,))}, 1.0)
    expected = states(load(write(changed, tmp_path / "changed.safetensors")))
    assert error(states(patched), expected) < 1e-5 < 0.05 < error(plain, expected)
    assert error(states(clip), plain) < 1e-6


def test_loras_are_known_by_cores_names(comfyui, state, tmp_path):
    import comfy.lora
    clip = load(write(state, tmp_path / "te.safetensors"))
    keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    assert keys["text_encoders.qwen25_7b.transformer.model.layers.1.self_attn.q_proj"].startswith("qwen25_7b.transf")
    wrong = clip.clone()
    wrong.patcher.add_patches({"qwen25_7b.transformer.model.layers.1.self_attn.q_proj.weight":
                               ("diff", (torch.zeros(32, 32),))}, 1.0)
    with pytest.raises(CheckpointError, match="LoRA shape mismatch at qwen25_7b.*the LoRA gives .32, 32., the model"):
        states(wrong)


# ---------------------------------------------------------------- llama.cpp

def language_name(name: str) -> str | None:
    """llama.cpp's name of a tensor of the language model."""
    if "visual" in name:
        return None
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2VL, TEXT["num_hidden_layers"]).get_name(
        name.replace("language_model.", ""), (".weight", ".bias"))


def projector_tensors(state, apart: bool = True):
    """llama.cpp's names of the vision tower's tensors. apart: queries, keys and values each on their own."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, VISION["depth"])
    for name, value in state.items():
        short, _, last = name.removeprefix("model.").rpartition(".")
        if "visual" not in name:
            continue
        if short.endswith("patch_embed.proj"):
            yield names.get_name(short) + ".weight", value[:, :, 0]
            yield names.get_name(short) + ".weight.1", value[:, :, 1]
        elif short.endswith("attn.qkv") and apart:
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                yield f"{names.get_name(short.replace('qkv', part))}.{last}", rows
        else:
            yield f"{names.get_name(short)}.{last}", value


def write_language(path, state, kind_of, architecture="qwen2vl", words=None):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(TEXT["num_hidden_layers"])
    writer.add_embedding_length(TEXT["hidden_size"])
    writer.add_head_count(TEXT["num_attention_heads"])
    writer.add_head_count_kv(TEXT["num_key_value_heads"])
    writer.add_rope_freq_base(TEXT["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_sections([*TEXT["rope_parameters"]["mrope_section"], 0])
    if words is not None:
        writer.add_token_list(words)
    for name, value in state.items():
        if theirs := language_name(name):
            gguf_files.add(writer, theirs, value, kind_of(name))
    gguf_files.finish(writer)
    return path


def write_projector(path, state, kind="F32", projector="qwen2.5vl_merger", post_norm="v.post_ln", apart=True, every=2):
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(projector)
    writer.add_vision_head_count(VISION["num_heads"])
    writer.add_vision_use_silu(True)
    writer.add_vision_n_wa_pattern(every)  # 8 in the published file: 7, 15, 23, 31
    for name, value in projector_tensors(state, apart):
        # Rows of 48 do not divide into blocks of 32; the published ones of 3420 do not, either.
        packed = kind if kind == "BF16" or (value.ndim == 2 and value.shape[1] % 32 == 0) else "F32"
        gguf_files.add(writer, name.replace("v.post_ln", post_norm), value, "F32" if value.ndim == 4 else packed)
    gguf_files.finish(writer)
    return path


def both(folder, state, kind):
    write_projector(folder / "Qwen2.5-VL-7B-Instruct-mmproj-BF16.gguf", state, kind)
    return write_language(folder / "Qwen2.5-VL-7B-Instruct.gguf", state, lambda name: kind)


def rounded(state, kind):
    """What files of this type hold of the weights, fp32."""
    def one(name, value):
        if value.ndim != 2 or kind == "F32":
            return value
        if kind == "BF16":
            return value.bfloat16().float()
        if value.shape[1] % 32:
            return value
        return pack_gguf.dequantize(torch.from_numpy(gguf_files.pack(value, kind)), kind)
    return {name: one(name, value) for name, value in state.items()}


def test_every_tensor_of_both_files_has_a_name(state):
    assert all(language_name(name) for name in state if "visual" not in name)
    assert len(list(projector_tensors(state))) == sum("visual" in name for name in state) + 1 + 4 * VISION["depth"]


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0"])
def test_both_files_say_what_the_safetensors_file_says(comfyui, state, plain, tmp_path, kind):
    expected = states(load(write(rounded(state, kind), tmp_path / "same.safetensors")))
    clip = load(both(tmp_path, state, kind))
    assert error(states(clip), expected) < 1e-5
    lost = error(expected, plain)
    assert lost < 1e-6 if kind == "F32" else lost > 1e-4


def test_packed_queries_keys_and_values_stay_packed_in_one_matrix(comfyui, state, tmp_path):
    clip = load(both(tmp_path, state, "Q8_0"))
    network = clip.cond_stage_model.qwen25_7b.transformer
    weight = network.visual.blocks[0].attn.qkv.weight
    assert type(weight.data).__name__ == "QuantizedTensor" and tuple(weight.shape) == (96, 32)
    assert torch.equal(weight.dequantize().float(), rounded(state, "Q8_0")[QKV])
    assert network.spec.vision.full_attention == (1,)
    assert network.spec.rope_theta == 1e6 and network.spec.heads == 4


@pytest.mark.parametrize("more", [{"post_norm": "merger.ln_q"}, {"apart": False}], ids=["newer norm", "one matrix"])
def test_other_projectors(comfyui, state, plain, tmp_path, more):
    write_projector(tmp_path / "mmproj.gguf", state, **more)
    assert error(states(load(write_language(tmp_path / "lm.gguf", state, lambda name: "F32"))), plain) < 1e-5


def test_ollamas_architecture(comfyui, state, plain, tmp_path):
    write_projector(tmp_path / "mmproj.gguf", state)
    path = write_language(tmp_path / "lm.gguf", state, lambda name: "F32", "qwen25vl")
    assert error(states(load(path)), plain) < 1e-5


def test_windows_are_those_of_the_file(comfyui, state, plain, tmp_path):
    """Or the number that the file gives would mean nothing."""
    write_projector(tmp_path / "mmproj.gguf", state, every=3)
    assert error(states(load(write_language(tmp_path / "lm.gguf", state, lambda name: "F32"))), plain) > 1e-3


def test_without_a_projector_prompts_work_and_pictures_are_refused(comfyui, state, tmp_path):
    from qwen_image_2.nodes.bridge.text_encoders.families import check_clip, text_encoder_summary
    path = write_language(tmp_path / "lm.gguf", state, lambda name: "F32")
    gguf_files.write_projector(tmp_path / "mmproj-Qwen3VL.gguf", {})  # of the other family
    clip = load(path)
    with_tower = load(write(state, tmp_path / "te.safetensors"))
    assert error(states(clip, picture=False), states(with_tower, picture=False)) < 1e-5
    assert "No vision projector loaded" in text_encoder_summary(clip)[1]
    words = "without its vision projector, .* mmproj file of Qwen2.5-VL-7B-Instruct .for example Qwen2.5-VL-7B-Instr"
    with pytest.raises(Refusal, match=words):
        check_clip(clip, reads_images=True)
    with pytest.raises(Refusal, match=words):
        states(clip)


def test_a_text_encoder_without_eyes_can_be_saved_and_is_known_again(comfyui, state, tmp_path):
    from qwen_image_2.nodes.bridge.quant import quantize
    from qwen_image_2.nodes.bridge.text_encoders.families import text_network
    clip = load(write_language(tmp_path / "lm.gguf", state, lambda name: "Q8_0"), "fp8")
    quantize.save(tmp_path / "saved.safetensors", text_network(clip), lambda done, total: None)
    again = load(tmp_path / "saved.safetensors")
    assert again.cond_stage_model.qwen25_7b.transformer.visual is None
    assert error(states(again, picture=False), states(clip, picture=False)) < 1e-3


# ---------------------------------------------------------------- refused

def test_a_projector_of_another_model_is_refused(comfyui, state, tmp_path):
    path = write_language(tmp_path / "lm.gguf", state, lambda name: "F32")
    other = write_projector(tmp_path / "other.gguf", state, projector="qwen3vl_merger")
    with pytest.raises(CheckpointError, match=r"^other.gguf is of the type qwen3vl_merger, not the vision projector of "
                                              r"Qwen2.5-VL \(qwen2.5vl_merger\): choose the mmproj file of Qwen2.5-VL"):
        load(path, "as stored", other)
    with pytest.raises(CheckpointError, match="whole.safetensors contains its vision tower"):
        load(write(state, tmp_path / "whole.safetensors"), "as stored", other)


def test_another_vocabulary_is_refused(comfyui, state, tmp_path):
    path = write_language(tmp_path / "words.gguf", state, lambda name: "F32", words=["a", "b"])
    with pytest.raises(CheckpointError, match=r"^words.gguf has another vocabulary than Qwen2.5-VL \(2 words.*GGUF fil"
                                              r"e of Qwen2.5-VL-7B-Instruct, for example"):
        load(path)


def test_parts_that_do_not_belong_together_are_refused(comfyui, state, tmp_path):
    for missing in ("v.blk.0.attn_k.weight", "v.patch_embd.weight.1"):
        file = tmp_path / "cut.gguf"
        writer = gguf.GGUFWriter(file, "clip")
        writer.add_clip_projector_type("qwen2.5vl_merger")
        writer.add_vision_head_count(VISION["num_heads"])
        for name, value in projector_tensors(state):
            if name != missing:
                gguf_files.add(writer, name, value, "F32")
        gguf_files.finish(writer)
        with pytest.raises(CheckpointError, match="^lm.gguf with cut.gguf.*(attn.qkv|patch_embed)"):
            load(write_language(tmp_path / "lm.gguf", state, lambda name: "F32"), "as stored", file)


def test_a_tensor_too_few_or_too_many_is_named(comfyui, state, tmp_path):
    less = {name: value for name, value in state.items() if name != QUERY}
    with pytest.raises(CheckpointError, match=rf"te.safetensors is incomplete: tensor {QUERY} is missing"):
        load(write(less, tmp_path / "te.safetensors"))
    with pytest.raises(CheckpointError, match="1 tensors that do not belong to this architecture.*extra.weight"):
        load(write({**state, "extra.weight": torch.zeros(3)}, tmp_path / "te.safetensors"))
    damaged = {**state, QUERY: torch.full_like(state[QUERY], float("nan"))}
    with pytest.raises(CheckpointError, match=f"te.safetensors is damaged: tensor {QUERY} contains NaN"):
        load(write(damaged, tmp_path / "te.safetensors"))
