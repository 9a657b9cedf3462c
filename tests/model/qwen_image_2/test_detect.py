"""Detection: every circulating layout gives the same network, every other file one clear sentence."""
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from qwen_image_2.model.checkpoints import loading, matching
from qwen_image_2.model.checkpoints.checkpoint import Checkpoint, TensorInfo
from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.model.checkpoints.files import open_checkpoint
from qwen_image_2.model.language import key_maps as language_key_maps
from qwen_image_2.model.language.qwen3_vl import detect_text_encoder
from qwen_image_2.model.qwen_image_2 import detect, key_maps
from qwen_image_2.model.qwen_image_2.spec import TransformerSpec, VAESpec
from qwen_image_2.model.qwen_image_2.transformer import Transformer
from qwen_image_2.model.qwen_image_2.vae import VAE
from qwen_image_2.tools import tiny
from qwen_image_2.tools.pack import ROOT

TRANSFORMER = TransformerSpec(layers=3, dim=64, heads=2, head_dim=32, mlp_dim=192, context_dim=48,
                              rope_axes=(4, 14, 14))
SMALL_VAE = VAESpec(base_dim=8, decoder_base_dim=12)


def infos(state, dtype="F32"):
    return {name: TensorInfo(tuple(value.shape), dtype) for name, value in state.items()}


def transformer_state():
    return tiny.randomise(tiny.shapes(Transformer(TRANSFORMER)), 0)


def vae_state():
    """With the time convolutions that every published file has."""
    state = tiny.randomise(tiny.shapes(VAE(SMALL_VAE)), 1)
    for block in (1, 2, 3):
        state[f"encoder.down_blocks.{block}.downsampler.time_conv.weight"] = torch.zeros(8, 8, 1, 1)
    return state


def named(*names):
    return dict.fromkeys(names, TensorInfo((4, 4), "BF16"))


TRANSFORMER_LAYOUTS = {
    "diffusers": tiny.to_diffusers_transformer,
    "Comfy-Org": lambda state: state,
    "prefixed": lambda state: {f"model.diffusion_model.{name}": value for name, value in state.items()},
    "another prefix": lambda state: {f"net.{name}": value for name, value in state.items()},
    "prefixed and split": lambda state: {f"model.diffusion_model.{name}": value
                                         for name, value in tiny.to_diffusers_transformer(state).items()},
}


VAE_LAYOUTS = {
    "diffusers": lambda state: state,
    "Wan": tiny.to_wan_vae,
    "Wan with a prefix": lambda state: {f"first_stage_model.{n}": v for n, v in tiny.to_wan_vae(state).items()},
    "diffusers, 5-D": lambda state: {n: v.unsqueeze(2) if v.ndim == 4 else v for n, v in state.items()},
    "Wan, 4-D": lambda state: {key_maps.VAE_WAN.to(n): v for n, v in state.items()},
    "gamma with three unit axes": lambda state: {
        n: v.unsqueeze(-1) if n.endswith("gamma") and "attentions" not in n else v for n, v in state.items()},
}
LAYOUTS = [pytest.param(transformer_state, layout, detect.detect_transformer, TRANSFORMER, Transformer, id=name)
           for name, layout in TRANSFORMER_LAYOUTS.items()]
LAYOUTS += [pytest.param(vae_state, layout, detect.detect_vae, SMALL_VAE, VAE, id=f"VAE, {name}")
            for name, layout in VAE_LAYOUTS.items()]


@pytest.mark.parametrize("make, layout, detected_by, spec, network", LAYOUTS)
def test_layouts_load_the_same_weights(make, layout, detected_by, spec, network, tmp_path):
    state = make()
    tiny.save(layout(state), tmp_path / "model.safetensors", {}, torch.float32)
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    detected = detected_by(checkpoint)
    assert detected.spec == spec
    model = network(detected.spec, device="meta")
    loading.load(model, detected, checkpoint, torch.float32)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_published_sizes_are_found():
    """The real file: 265 tensors, 7,115,124,736 parameters."""
    with torch.device("meta"):
        state = Transformer(TransformerSpec()).state_dict()
    split = {name: TensorInfo((shape[0] // len(names), *shape[1:]), "BF16")
             for whole, (shape, _) in infos(state).items() for names in [key_maps.rows_of(whole)] for name in names}
    assert (len(split), len(state)) == (297, 265)
    for tensors in (infos(state, "BF16"), split):
        assert sum(torch.Size(info.shape).numel() for info in tensors.values()) == 7_115_124_736
        assert detect.detect_transformer(Checkpoint("file", tensors)).spec == TransformerSpec()


def test_published_vae_has_its_parameters():
    """337,740,404 with the time convolutions that a single frame never uses."""
    state = VAE(VAESpec(), device="meta").state_dict()
    time_convs = sum(d * d + d for d in (192, 384, 768)) + sum(2 * (d * d + d) for d in (1152, 1152, 576))
    assert sum(value.numel() for value in state.values()) + time_convs == 337_740_404


def test_wan_names_are_the_published_ones():
    assert key_maps.VAE_WAN.to("decoder.mid_block.resnets.0.norm1.gamma") == "decoder.middle.0.residual.0.gamma"
    assert key_maps.VAE_WAN.to("decoder.conv_out.weight") == "decoder.head.2.weight"
    assert key_maps.VAE_WAN.to("encoder.down_blocks.1.downsampler.resample.1.weight") == \
        "encoder.downsamples.1.downsamples.2.resample.1.weight"
    assert key_maps.VAE_WAN.to("decoder.up_blocks.2.upsampler.time_conv.bias") == \
        "decoder.upsamples.2.upsamples.3.time_conv.bias"
    assert key_maps.VAE_WAN.to("encoder.down_blocks.2.resnets.0.conv_shortcut.bias") == \
        "encoder.downsamples.2.downsamples.0.shortcut.bias"


@pytest.mark.parametrize(("table", "names"), [
    pytest.param(key_maps.VAE_WAN, list(VAE(SMALL_VAE, device="meta").state_dict()), id="Wan"),
    pytest.param(language_key_maps.COMFY, list(tiny.text_encoder_state()), id="ComfyUI"),
    pytest.param(language_key_maps.LLAMA_CPP, list(tiny.text_encoder_state()), id="llama.cpp"),
])
def test_key_maps_are_one_to_one_and_know_their_own_names(table, names):
    theirs = [table.to(name) for name in names]
    assert len(set(theirs)) == len(names) and not set(theirs) & set(names)
    assert [table.back(name) for name in theirs] == [table.back(name) for name in names] == names


QWEN3_TEXT = named("model.layers.0.self_attn.q_norm.weight", "model.embed_tokens.weight")
WRONG_FILES = {
    "Qwen-Image 1.x": (named("transformer_blocks.0.attn.add_q_proj.weight", "transformer_blocks.0.img_mod.1.weight"),
                       "the transformer of Qwen-Image 1.x"),
    "its ControlNet": (named("controlnet_x_embedder.weight", "transformer_blocks.0.img_mod.1.weight"),
                       "a ControlNet of Qwen-Image 1.x"),
    "its Fun ControlNet": (named("control_img_in.weight", "control_blocks.0.img_mod.1.weight"),
                           "a ControlNet of Qwen-Image 1.x"),
    "its model patch": (named("controlnet_blocks.0.y_rms.weight", "img_in.weight"), "a model patch of Qwen-Image 1.x"),
    "SD3 in diffusers form": (named("transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.proj.weight"),
                              "a Stable Diffusion 3 model in diffusers format"),
    "Flux in diffusers form": (named("transformer_blocks.0.attn.add_q_proj.weight",
                                     "single_transformer_blocks.0.attn.to_q.weight"), "a Flux model in diffusers"),
    "SDXL": (named("model.diffusion_model.input_blocks.0.0.weight"), "Stable Diffusion or SDXL checkpoint"),
    "SDXL in diffusers form": (named("down_blocks.0.attentions.0.proj_in.weight", "time_embedding.linear_1.weight"),
                               "SDXL model in diffusers format"),
    "Flux": (named("double_blocks.0.img_attn.qkv.weight"), "a Flux model"),
    "prompt enhancer": (named("model.language_model.layers.0.linear_attn.in_proj_qkv.weight",
                              "model.visual.blocks.0.attn.qkv.weight"), "prompt-enhancer language model"),
    "text-only Qwen3": (QWEN3_TEXT, "text-only language model"),
    "Qwen2.5-VL": (named("visual.blocks.0.mlp.gate_proj.weight"), "Qwen2.5-VL text encoder"),
    "LoRA": (named("transformer_blocks.0.attn.to_q.lora_A.weight"), "a LoRA"),
    "SD VAE": (named("decoder.mid.block_1.norm1.weight"), "Stable Diffusion VAE"),
    "llama.cpp's language model": (named("token_embd.weight", "blk.0.attn_norm.weight", "blk.0.attn_q.weight"),
                                   "a language model in llama.cpp format"),
    "llama.cpp's projector": (named("v.patch_embd.weight", "mm.0.weight"), "the vision projector of a language model"),
    "nothing": ({}, "empty"),
    "something else": (named("a.weight", "b.weight", "c.weight"), "of an unknown kind \\(3 tensors: a.weight"),
}
DETECTORS = {"transformer": detect.detect_transformer, "vae": detect.detect_vae,
             "text encoder": detect_text_encoder}


@pytest.mark.parametrize("kind", DETECTORS)
@pytest.mark.parametrize("file", WRONG_FILES)
def test_other_files_are_refused_by_name(kind, file):
    tensors, words = WRONG_FILES[file]
    with pytest.raises(CheckpointError, match=f"it.safetensors is .*{words}.*not a {kind} for Qwen-Image 2: choose"):
        DETECTORS[kind](Checkpoint("it.safetensors", tensors))


@pytest.mark.parametrize("kind, tensors, words", [
    ("vae", infos(tiny.shapes(Transformer(TRANSFORMER))), "the transformer of Qwen-Image 2.x, not a vae"),
    ("transformer", infos(tiny.shapes(VAE(SMALL_VAE))), "a VAE with diffusers key names, not a transformer"),
    ("transformer", infos(tiny.to_wan_vae(vae_state())), "a VAE with Wan key names, not a transformer"),
    ("vae", infos(tiny.text_encoder_state()), "a Qwen3-VL text encoder, not a vae"),
])
def test_swapped_files_are_refused(kind, tensors, words):
    with pytest.raises(CheckpointError, match=words):
        DETECTORS[kind](Checkpoint("file", tensors))


def test_vae_of_16_channels_is_refused():
    tensors = infos(tiny.to_wan_vae(vae_state()))
    tensors["decoder.conv1.weight"] = TensorInfo((96, 16, 1, 3, 3), "F32")
    with pytest.raises(CheckpointError, match="4 pixel channels and 16 latent channels; Qwen-Image 2 needs 4 and 64"):
        detect.detect_vae(Checkpoint("wan.safetensors", tensors))


def test_video_vae_is_refused():
    tensors = infos(tiny.to_wan_vae(vae_state()))
    tensors["decoder.head.2.weight"] = TensorInfo((4, 12, 3, 3, 3), "F32")
    with pytest.raises(CheckpointError, match="video VAE \\(3 temporal taps\\)"):
        detect.detect_vae(Checkpoint("wan.safetensors", tensors))


def test_missing_unknown_and_misshapen_tensors_are_named():
    tensors = infos(transformer_state())
    gone = "transformer_blocks.1.attn.to_k.weight"
    with pytest.raises(CheckpointError, match=f"incomplete: tensor {gone} is missing"):
        detect.detect_transformer(Checkpoint("file", {n: t for n, t in tensors.items() if n != gone}))
    with pytest.raises(CheckpointError, match="1 tensors that do not belong to this architecture.*extra.bias"):
        detect.detect_transformer(Checkpoint("file", {**tensors, "extra.bias": TensorInfo((3,), "F32")}))
    with pytest.raises(CheckpointError, match=rf"{gone} has shape \[64, 32\], expected \[64, 64\]"):
        detect.detect_transformer(Checkpoint("file", {**tensors, gone: TensorInfo((64, 32), "F32")}))


HALVES = ("transformer_blocks.1.img_mlp.gate_layer", "transformer_blocks.1.img_mlp.proj")


@pytest.mark.parametrize("half", HALVES)
def test_a_half_of_an_mlp_that_is_missing_or_misshapen_is_named(half):
    """Also where both together have all the rows of the matrix."""
    tensors = infos(tiny.to_diffusers_transformer(transformer_state()))
    with pytest.raises(CheckpointError, match=f"incomplete: tensor {half}.weight is missing"):
        detect.detect_transformer(Checkpoint("file", {n: t for n, t in tensors.items() if n != f"{half}.weight"}))
    other, = set(HALVES) - {half}
    unequal = {f"{half}.weight": TensorInfo((190, 64), "F32"), f"{other}.weight": TensorInfo((194, 64), "F32")}
    with pytest.raises(CheckpointError, match=r"has shape \[19[04], 64\], expected \[192, 64\]"):
        detect.detect_transformer(Checkpoint("file", tensors | unequal))


def quantized_half(dtype: str, scale: tuple[int, ...], scale_dtype: str = "F32", **record):
    return TensorInfo((192, 64), dtype), TensorInfo(scale, scale_dtype), record


ROWWISE = quantized_half("I8", (192, 1), format="int8_tensorwise")
FP8 = quantized_half("F8_E4M3", (), format="float8_e4m3fn")
FP8_ROWS = quantized_half("F8_E4M3", (192, 1), format="float8_e4m3fn")


@pytest.mark.parametrize("gate, projection, fused", [
    (ROWWISE, ROWWISE, True), (ROWWISE, quantized_half("I8", (), format="int8_tensorwise"), True),
    (ROWWISE, quantized_half("I8", (192, 1), format="int8_tensorwise", convrot=True, convrot_groupsize=64), False),
    (FP8, FP8, False), (FP8_ROWS, FP8_ROWS, True), (FP8_ROWS, FP8, False), (ROWWISE, FP8_ROWS, False),
    (*[quantized_half("F8_E4M3", (192, 2), "F8_E8M0", format="mxfp8")] * 2, False),
], ids=["rows", "rows and one", "another rotation", "one each", "fp8 by rows", "fp8 by rows and one", "two formats",
        "tiles of 128 rows"])
def test_halves_are_one_matrix_where_each_row_keeps_its_scale(gate, projection, fused):
    tensors, records = infos(tiny.to_diffusers_transformer(transformer_state())), {}
    for half, (weight, scale, record) in zip(HALVES, (gate, projection), strict=True):
        tensors |= {f"{half}.weight": weight, f"{half}.weight_scale": scale}
        records[half] = record
    found = detect.detect_transformer(Checkpoint("file", tensors, {}, records))
    assert found.spec.fused_mlp == fused
    matrix = "transformer_blocks.1.img_mlp.gate_up"
    assert set(found.quantization) == ({matrix} if fused else set(HALVES))
    if fused:
        assert found.table[f"{matrix}.weight_scale"] == tuple(f"{half}.weight_scale" for half in HALVES)


@pytest.mark.parametrize("extra", [
    {"transformer_blocks.0.attn.to_q.weight_scale": TensorInfo((64, 1), "F32")},
    {"transformer_blocks.0.attn.to_q.scale_weight": TensorInfo((), "F32")},
    {"transformer_blocks.0.attn.to_q.weight": TensorInfo((64, 64), "I8")},
])
def test_quantised_layers_without_a_mark_are_refused(extra):
    with pytest.raises(CheckpointError, match="is quantized .* Choose the bf16 file"):
        detect.detect_transformer(Checkpoint("int8.safetensors", {**infos(transformer_state()), **extra}))


LAYER = "transformer_blocks.0.attn.to_q"
OTHER_TOOLS = {
    "bitsandbytes, 4 bits": ({f"{LAYER}.weight": ((2048, 1), "U8"), f"{LAYER}.weight.absmax": ((64,), "U8"),
                              f"{LAYER}.weight.quant_map": ((16,), "F32"),
                              f"{LAYER}.weight.quant_state.bitsandbytes__nf4": ((90,), "U8")}, "bitsandbytes"),
    "bitsandbytes, 8 bits": ({f"{LAYER}.weight": ((64, 64), "I8"), f"{LAYER}.SCB": ((64,), "F32")}, "bitsandbytes"),
    "compressed-tensors": ({f"{LAYER}.weight_packed": ((64, 8), "I32"), f"{LAYER}.weight_scale": ((64, 1), "BF16"),
                            f"{LAYER}.weight_shape": ((2,), "I64")}, "compressed-tensors"),
    "torchao": ({f"{LAYER}._weight_qdata": ((64, 64), "I8"), f"{LAYER}._weight_scale": ((64, 1), "F32")}, "torchao"),
    "nunchaku": ({f"{LAYER}.qweight": ((64, 32), "I8"), f"{LAYER}.wscales": ((1, 64), "BF16"),
                  f"{LAYER}.smooth_factor": ((64,), "BF16"), f"{LAYER}.proj_down": ((64, 32), "BF16")}, "nunchaku"),
    "GPTQ": ({f"{LAYER}.qweight": ((8, 64), "I32"), f"{LAYER}.qzeros": ((1, 8), "I32")}, "GPTQ or AWQ"),
    "quanto": ({f"{LAYER}.weight._data": ((64, 64), "I8"), f"{LAYER}.weight._scale": ((64, 1), "BF16")}, "quanto"),
    "fp8 in blocks": ({f"{LAYER}.weight": ((64, 64), "F8_E4M3"), f"{LAYER}.weight_scale_inv": ((1, 1), "BF16")},
                      "Qwen as fp8 in blocks"),
}


@pytest.mark.parametrize("tool", OTHER_TOOLS)
@pytest.mark.parametrize("kind", ["transformer", "text encoder"])
def test_layouts_of_other_tools_are_refused_by_name(tool, kind):
    written, name = OTHER_TOOLS[tool]
    state, layer = (transformer_state(), LAYER) if kind == "transformer" else (
        tiny.text_encoder_state(), "model.language_model.layers.0.self_attn.q_proj")
    tensors = {key: info for key, info in infos(state, "BF16").items() if key != f"{layer}.weight"}
    tensors |= {key.replace(LAYER, layer): TensorInfo(*info) for key, info in written.items()}
    with pytest.raises(CheckpointError, match=rf"^it was quantized by {re.escape(name)}.*{re.escape(layer)}.* only its "
                                              r"own software reads\. Choose the bf16 file, .*or a GGUF file\.$"):
        DETECTORS[kind](Checkpoint("it", tensors))


def test_a_folder_that_names_another_tool_is_refused_by_it():
    config = {"quantization_config": {"quant_method": "fbgemm_fp8"}}
    with pytest.raises(CheckpointError, match="it was quantized by fbgemm_fp8 \\(quantization_config\\), in a form"):
        detect.detect_transformer(Checkpoint("it", infos(transformer_state()), config))


def test_a_file_of_several_dtypes_becomes_one(tmp_path):
    """Repackers keep norms in fp32; layers of two dtypes would not multiply."""
    state = {name: value if "norm" in name else value.bfloat16() for name, value in transformer_state().items()}
    save_file(state, tmp_path / "mixed.safetensors")
    checkpoint = open_checkpoint(tmp_path / "mixed.safetensors")
    detected = detect.detect_transformer(checkpoint)
    dtype = loading.stored_dtype(checkpoint.tensors)
    model = Transformer(detected.spec, device="meta")
    loading.load(model, detected, checkpoint, dtype)
    assert dtype == torch.bfloat16 and {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_infinite_half_precision_weights_are_not_confused_with_large_ones(tmp_path):
    state = {name: value.half() for name, value in transformer_state().items()}
    state["proj_out.weight"][:] = 60000  # their sum overflows fp16
    save_file(state, tmp_path / "large.safetensors")
    checkpoint = open_checkpoint(tmp_path / "large.safetensors")
    detected = detect.detect_transformer(checkpoint)
    loading.load(Transformer(detected.spec, device="meta"), detected, checkpoint, torch.float16)


PEAK = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from tools.pack import load_pack
load_pack()
from qwen_image_2.model.qwen_image_2 import detect
from qwen_image_2.model.checkpoints import loading
from qwen_image_2.model.checkpoints.files import open_checkpoint
from qwen_image_2.model.qwen_image_2.transformer import Transformer

def resident(line):
    with open("/proc/self/status") as status:
        return next(int(row.split()[1]) for row in status if row.startswith(line)) * 1024

warm = torch.zeros(2048, dtype=torch.bfloat16).aminmax()
with open("/proc/self/clear_refs", "w") as clear:
    clear.write("5")  # forget the peak of the imports
before = resident("VmRSS")
checkpoint = open_checkpoint(sys.argv[2])
detected = detect.detect_transformer(checkpoint)
model = Transformer(detected.spec, device="meta")
loading.load(model, detected, checkpoint, getattr(torch, sys.argv[3]))
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory from /proc")
@pytest.mark.parametrize("dtype, layout", [
    ("bfloat16", dict), ("float32", dict), ("bfloat16", tiny.to_diffusers_transformer)],
    ids=["kept", "converted", "joined"])
def test_loading_needs_little_more_memory_than_the_weights(tmp_path, dtype, layout):
    """Stored in bf16; kept so, converted to twice the size, or with MLPs of two matrices that become one."""
    spec = TransformerSpec(layers=8, dim=1024, heads=8, mlp_dim=3072, context_dim=1024)
    state = {name: torch.zeros(shape, dtype=torch.bfloat16)
             for name, shape in matching.shapes(Transformer(spec, device="meta")).items()}
    path = tmp_path / "model.safetensors"
    tiny.save_as_they_are(layout(state), path)
    kept = path.stat().st_size * (2 if dtype == "float32" else 1)
    out = subprocess.run([sys.executable, "-c", PEAK, ROOT, path, dtype], capture_output=True, text=True, check=True)
    assert 0.9 * kept < int(out.stdout) < 1.15 * kept


def test_nan_weights_are_named(tmp_path):
    state = transformer_state()
    state["transformer_blocks.2.img_mlp.out.weight"][5, 7] = float("nan")
    tiny.save(state, tmp_path / "nan.safetensors", {}, torch.float32)
    checkpoint = open_checkpoint(tmp_path / "nan.safetensors")
    detected = detect.detect_transformer(checkpoint)
    with pytest.raises(CheckpointError, match="nan.safetensors is damaged: tensor "
                                              "transformer_blocks.2.img_mlp.out.weight contains NaN"):
        loading.load(Transformer(detected.spec, device="meta"), detected, checkpoint, torch.float32)


def test_configuration_adds_what_shapes_cannot_tell():
    tensors = infos(transformer_state())
    config = {"causal_condition": False, "axes_dims_rope": [8, 12, 12]}
    spec = detect.detect_transformer(Checkpoint("file", tensors, config)).spec
    assert not spec.causal_condition and spec.rope_axes == (8, 12, 12)
    with pytest.raises(CheckpointError, match="file has inconsistent layer sizes: .* add up to 36"):
        detect.detect_transformer(Checkpoint("file", tensors, {"axes_dims_rope": [8, 14, 14]}))


def test_a_tiny_text_encoder_without_configuration_is_refused():
    with pytest.raises(CheckpointError, match="Keep config.json beside it"):
        detect_text_encoder(Checkpoint("tiny", infos(tiny.text_encoder_state())))
