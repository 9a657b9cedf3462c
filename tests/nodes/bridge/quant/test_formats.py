"""Quantized transformer files, as ComfyUI's tools write them: each format loads, and computes what its weights say."""
import json
from collections.abc import Mapping

import pytest
import torch

from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.model.qwen_image_2.prefix_cache import Condition
from qwen_image_2.model.qwen_image_2.spec import TransformerSpec
from qwen_image_2.model.qwen_image_2.transformer import Transformer
from qwen_image_2.tests.reference import error
from qwen_image_2.tools import tiny

SPEC = TransformerSpec(layers=2, dim=256, heads=4, head_dim=64, mlp_dim=768, context_dim=64, rope_axes=(8, 28, 28))
CONVROT = {"convrot": True, "convrot_groupsize": 256}
# Format, settings beside its name, arguments for quantizing, and how far it may be from its own dequantized weights:
# all but fp8 and 16-bit activations are rounded too.
FORMATS = {
    "int8 ConvRot": ("int8_tensorwise", CONVROT, {"per_channel": True, **CONVROT}, 0.02),
    "int8 per row": ("int8_tensorwise", {}, {"per_channel": True}, 0.03),
    "int8 per tensor": ("int8_tensorwise", {}, {}, 0.03),
    "fp8 e4m3": ("float8_e4m3fn", {}, {"scale": "recalculate"}, 0.06),
    "fp8 e5m2": ("float8_e5m2", {}, {"scale": "recalculate"}, 0.1),
    "mxfp8": ("mxfp8", {}, {}, 0.06),
    "nvfp4": ("nvfp4", {}, {}, 0.2),
    "4-bit ConvRot": ("convrot_w4a4", {"convrot_groupsize": 256}, {"convrot_groupsize": 256}, 0.3),
}


@pytest.fixture(scope="module")
def plain():
    return tiny.randomise(tiny.shapes(Transformer(SPEC)), 5)


def quantize(state: dict, name: str) -> tuple[dict, dict]:
    """The block linears in one format, and the same weights dequantized."""
    return tiny.quantized(lambda key: "transformer_blocks" in key, state, *FORMATS[name][:3])


def velocity(model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    condition = Condition(torch.randn(1, 12, 64, generator=generator).to(dtype), (2,),
                          (torch.randn(1, 64, 4, 4, generator=generator).to(dtype),))
    latent = torch.randn(1, 64, 4, 6, generator=generator).to(dtype)
    with torch.no_grad():
        return Transformer.forward(model, latent, torch.tensor([0.7]), model.encode_prefix(condition))


def rounding(name: str) -> float:
    """How far apart equal weights may compute, as a fraction of the largest value, when they lie elsewhere in memory.

    A kernel chooses its way by the address, so fp32's last bits differ (1e-7). Activations that int8 rounds may fall on
    the other side of a half by that, a whole step of 1/127 of a row's largest value.
    """
    return 0.02 if "int8" in name or "4-bit ConvRot" in name else 1e-6


def assert_same_tensors(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    """Names, dtypes, shapes and every bit."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8)), name


def expected(state: dict) -> torch.Tensor:
    model = Transformer(SPEC)
    model.load_state_dict(state)
    return velocity(model)


def load(path, **options):
    from qwen_image_2.nodes.bridge.loading import load_model
    return load_model(path, path.name, "base", **options).model.diffusion_model


def write(state: dict, path, metadata=None):
    tiny.save_as_they_are(state, path, metadata)
    return path


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_every_format_computes_what_its_weights_say(comfyui, plain, tmp_path, name, prefix):
    stored, rounded = quantize(plain, name)
    model = load(write({prefix + key: value for key, value in stored.items()}, tmp_path / "q.safetensors"))
    assert type(model.transformer_blocks[0].attn.to_q.weight.data).__name__ == "QuantizedTensor"
    found, bound = velocity(model), FORMATS[name][3]
    assert error(found, expected(rounded)) < bound
    assert error(found, expected(plain)) < 2 * bound


def test_convrot_is_the_most_exact_where_channels_stand_out(comfyui, plain, tmp_path):
    """As in the real model, whose activations have a few channels far larger than the rest."""
    state = {name: value.clone() for name, value in plain.items()}
    for name in ("img_in.weight", "txt_in.out_layer.weight"):
        state[name][:4] *= 20
    exact, found = expected(state), {}
    for name in ("int8 ConvRot", "int8 per row", "fp8 e4m3"):
        found[name] = error(velocity(load(write(quantize(state, name)[0], tmp_path / "q.safetensors"))), exact)
    assert found["int8 ConvRot"] < 0.8 * min(found["int8 per row"], found["fp8 e4m3"]), found


def test_settings_may_stand_in_the_metadata(comfyui, plain, tmp_path):
    stored, _ = quantize(plain, "int8 ConvRot")
    layers = {key.removesuffix(".comfy_quant"): json.loads(bytes(value.tolist()))
              for key, value in stored.items() if key.endswith("comfy_quant")}
    inside = load(write(stored, tmp_path / "inside.safetensors"))
    bare = {key: value for key, value in stored.items() if not key.endswith("comfy_quant")}
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    beside = load(write(bare, tmp_path / "metadata.safetensors", metadata))
    assert_same_tensors(beside.state_dict(), inside.state_dict())
    assert error(velocity(beside), velocity(inside)) < rounding("int8 ConvRot")


LAYER = "transformer_blocks.1.attn.to_v"


@pytest.mark.parametrize("change, words", [
    ({"comfy_quant": tiny.mark(format="int3_magic")}, rf"layer {LAYER} is quantized as 'int3_magic', which"),
    ({"comfy_quant": torch.tensor([123, 44], dtype=torch.uint8)},
     "is marked as quantized, but its settings in .* cannot be read"),
    ({"weight_scale": None}, f"layer {LAYER} is quantized, but its weight_scale is missing"),
    ({"weight_scale": torch.ones(7, 1)}, r"weight_scale has shape \[7, 1\], but the matrix has 256 rows"),
    ({"comfy_quant": tiny.mark(format="nvfp4")},
     r"must be a matrix of U8 \(nvfp4\), but has shape \[256, 256\] and dtype I8"),
    ({"comfy_quant": None}, "is quantized .* Choose the bf16 file"),
    ({"weight": None}, f"incomplete: tensor {LAYER}.weight is missing"),
])
def test_broken_quantisation_is_refused(comfyui, plain, tmp_path, change, words):
    stored, _ = quantize(plain, "int8 ConvRot")
    for part, value in change.items():
        if value is None:
            del stored[f"{LAYER}.{part}"]
        else:
            stored[f"{LAYER}.{part}"] = value
    with pytest.raises(CheckpointError, match=words):
        load(write(stored, tmp_path / "broken.safetensors"))


def test_quantised_files_keep_their_format(comfyui, plain, tmp_path):
    path = write(quantize(plain, "int8 ConvRot")[0], tmp_path / "q.safetensors")
    with pytest.raises(CheckpointError, match=r"is already quantized \(int8 with rotation\)\. Set Weight for"):
        load(path, weight_format="bf16")


def old_names(stored: dict, marker: torch.Tensor, prefix: str = "") -> dict:
    """The same file as ComfyUI's older tools wrote it."""
    old = {prefix + name.replace("weight_scale", "scale_weight").replace("input_scale", "scale_input"): value
           for name, value in stored.items() if not name.endswith("comfy_quant")}
    return old | {prefix + "scaled_fp8": marker}


@pytest.mark.parametrize("name, marker, prefix", [
    ("fp8 e4m3", torch.zeros(1).to(torch.float8_e4m3fn), ""), ("fp8 e4m3", torch.zeros(0), "model.diffusion_model."),
    ("fp8 e5m2", torch.zeros(0).to(torch.float8_e5m2), "")])
def test_older_scaled_fp8_files_are_read(comfyui, plain, tmp_path, name, marker, prefix):
    stored, _ = quantize(plain, name)
    new = load(write(stored, tmp_path / "new.safetensors"))
    found = load(write(old_names(stored, marker, prefix), tmp_path / "old.safetensors"))
    assert_same_tensors(found.state_dict(), new.state_dict())
    assert error(velocity(found), velocity(new)) < rounding(name)
    layer = found.get_submodule(LAYER)
    assert layer.quant_format == FORMATS[name][0]
    assert layer._full_precision_mm_config  # no device multiplies e5m2, and nothing tells the scale of activations


def test_two_values_in_an_older_mark_ask_for_full_precision(comfyui, plain, tmp_path):
    stored, _ = quantize(plain, "fp8 e4m3")
    model = load(write(old_names(stored, torch.zeros(2)), tmp_path / "old.safetensors"))
    assert model.get_submodule(LAYER)._full_precision_mm_config


def test_an_older_files_measured_input_scales_are_kept(comfyui, plain, tmp_path):
    """1.0 was written where none was measured."""
    stored, _ = quantize(plain, "fp8 e4m3")
    other = LAYER.replace("to_v", "to_q")
    scales = {f"{LAYER}.input_scale": torch.tensor(0.25), f"{other}.input_scale": torch.tensor(1.0)}
    model = load(write(old_names(stored | scales, torch.zeros(1)), tmp_path / "old.safetensors"))
    assert model.get_submodule(LAYER).input_scale == 0.25
    assert not hasattr(model.get_submodule(other), "input_scale")


def test_an_older_file_without_a_scale_is_refused(comfyui, plain, tmp_path):
    old = old_names(quantize(plain, "fp8 e4m3")[0], torch.zeros(1))
    del old[f"{LAYER}.scale_weight"]
    with pytest.raises(CheckpointError, match=f"layer {LAYER} is quantized, but its weight_scale is missing"):
        load(write(old, tmp_path / "old.safetensors"))


@pytest.mark.parametrize("name, shape", [
    ("int8 ConvRot", (256, 2)), ("int8 per row", (128,)), ("fp8 e4m3", (2,)), ("mxfp8", (256, 1)), ("mxfp8", (256,)),
    ("nvfp4", (128, 16)), ("nvfp4", (256, 12)), ("4-bit ConvRot", (256, 4))])
def test_scales_of_another_shape_are_refused(comfyui, plain, tmp_path, name, shape):
    stored, _ = quantize(plain, name)
    scale = f"{LAYER}.weight_scale"
    stored[scale] = torch.zeros(shape).to(stored[scale].dtype)
    found = ", ".join(map(str, shape))
    with pytest.raises(CheckpointError, match=rf"{scale} has shape \[{found}\], but the matrix has 256 rows and"):
        load(write(stored, tmp_path / "broken.safetensors"))


@pytest.mark.parametrize("name, last, pattern, bare", [
    ("fp8 e4m3", "weight", 0x7F, False), ("fp8 e4m3", "weight", 0xFF, False), ("fp8 e5m2", "weight", 0xFC, False),
    ("mxfp8", "weight", 0xFF, False), ("mxfp8", "weight_scale", 0xFF, False), ("mxfp8", "weight_scale", 0xFF, True),
    ("nvfp4", "weight_scale", 0x7F, False), ("nvfp4", "weight_scale", 0xFF, True)])
def test_damage_in_quantised_matrices_is_named(comfyui, plain, tmp_path, name, last, pattern, bare):
    """bare: older files hold the scales of blocks as bytes."""
    stored, _ = quantize(plain, name)
    tensor = stored[f"{LAYER}.{last}"] = stored[f"{LAYER}.{last}"].clone()
    tensor.view(torch.uint8)[5, 1] = pattern
    stored[f"{LAYER}.{last}"] = tensor.view(torch.uint8) if bare else tensor
    with pytest.raises(CheckpointError, match=f"^nan.safetensors is damaged: tensor {LAYER}.{last} contains NaN"):
        load(write(stored, tmp_path / "nan.safetensors"))


def test_the_official_int8_file(comfyui, plain, tmp_path):
    """qwen_image_2.1_int8_convrot: six matrices of each block, the rest bf16, marks in the file and no metadata."""
    stored, rounded = quantize({name: value.bfloat16().float() for name, value in plain.items()}, "int8 ConvRot")
    stored = {name: value.bfloat16() if value.dtype == torch.float32 and "scale" not in name else value
              for name, value in stored.items()}
    marks = [json.loads(bytes(value.tolist())) for name, value in stored.items() if name.endswith("comfy_quant")]
    assert marks == [{"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256}] * 6 * SPEC.layers
    assert {value.dtype for name, value in stored.items() if name.endswith("weight_scale")} == {torch.float32}
    assert stored[f"{LAYER}.weight_scale"].shape == (256, 1)
    model = load(write(stored, tmp_path / "qwen_image_2.1_int8_convrot.safetensors"))
    assert error(velocity(model), expected(rounded)) < 0.03


PATHS = {
    "int8 ConvRot": ("int8 with rotation", "computed in integers"),
    "int8 per row": ("int8", "computed in integers"),
    "4-bit ConvRot": ("4-bit ConvRot", "computed in integers"),
    "fp8 e4m3": ("fp8 (e4m3)", "dequantized layer by layer where activation scales are missing (12 of 12 "
                               "layers)"),
    "mxfp8": ("mxfp8", "computed natively"),
    "nvfp4": ("nvfp4", "computed natively"),
    "fp8 e5m2": ("fp8 (e5m2)", "dequantized layer by layer (no hardware support for this format)"),
}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("native", [False, True])
def test_the_loader_says_how_the_weights_are_stored_and_which_way_they_take(comfyui, plain, tmp_path, monkeypatch, name,
                                                                          native):
    """On this CPU, and where the card has the arithmetic: what is said is what ComfyUI's layers were told."""
    import comfy.model_management

    from qwen_image_2.nodes.bridge.loading import load_model
    for function in ("supports_nvfp4_compute", "supports_mxfp8_compute", "supports_fp8_compute"):
        monkeypatch.setattr(comfy.model_management, function, lambda device=None: native)
    path = write(quantize(plain, name)[0], tmp_path / "q.safetensors")
    model = load_model(path, path.name, "base").model
    stored, way = PATHS[name]
    if not native and (way == "computed natively" or name == "fp8 e4m3"):
        way = "dequantized layer by layer (not supported on this device)"
    assert model.weights == f"{stored}, {way}"
    assert model.diffusion_model.get_submodule(LAYER)._full_precision_mm == way.startswith("dequantized")


def test_a_file_that_asks_for_full_precision_is_said_to(comfyui, plain, tmp_path, monkeypatch):
    import comfy.model_management

    from qwen_image_2.nodes.bridge.loading import load_model
    monkeypatch.setattr(comfy.model_management, "supports_fp8_compute", lambda device=None: True)
    stored, _ = quantize(plain, "fp8 e4m3")
    path = write(old_names(stored, torch.zeros(2)), tmp_path / "old.safetensors")
    assert load_model(path, path.name, "base").model.weights == (
        "fp8 (e4m3), dequantized layer by layer (the file asks for it)")


@pytest.mark.parametrize("name", ["int8 ConvRot", "nvfp4"])
def test_loras_work_on_quantised_layers(comfyui, plain, tmp_path, name):
    from comfy.weight_adapter.lora import LoRAAdapter

    from qwen_image_2.nodes.bridge.loading import load_model
    from qwen_image_2.nodes.bridge.run_checks import check_lora_shapes
    stored, rounded = quantize(plain, name)
    path = write(stored, tmp_path / "q.safetensors")
    patcher = load_model(path, path.name, "base")
    generator = torch.Generator().manual_seed(3)
    up, down = torch.randn(256, 4, generator=generator) / 5, torch.randn(4, 256, generator=generator) / 5
    patcher.add_patches({f"diffusion_model.{LAYER}.weight": LoRAAdapter(set(), (up, down, None, None, None, None))})
    check_lora_shapes(patcher)
    network = patcher.model.diffusion_model
    own, before = {key: value.clone() for key, value in network.state_dict().items()}, velocity(network)
    patcher.patch_model()
    rounded[f"{LAYER}.weight"] = rounded[f"{LAYER}.weight"] + up @ down
    found = velocity(network)
    assert error(found, expected(rounded)) < 1.5 * FORMATS[name][3]
    assert error(found, before) > 2 * error(found, expected(rounded))
    patcher.unpatch_model()
    assert_same_tensors(network.state_dict(), own)
    assert error(velocity(network), before) < rounding(name)


# ---------------------------------------------------------------- files with gate and projection apart

# What no one matrix can be made of: each half has one number for all its values.
APART = ("fp8 e4m3", "fp8 e5m2", "nvfp4")
MLP = "transformer_blocks.1.img_mlp"
HALVES = (f"{MLP}.gate_layer", f"{MLP}.proj")


def halves(name: str, plain: dict) -> tuple[dict, dict]:
    """A file of diffusers' layout in one format, and the same weights dequantized and fused. The gate's are larger, so
    that no scale is both halves'."""
    state = {key: value * 3 if "gate_layer" in key else value
             for key, value in tiny.to_diffusers_transformer(plain).items()}
    stored, rounded = tiny.quantized(lambda key: "transformer_blocks" in key, state, *FORMATS[name][:3])
    return stored, tiny.to_comfy_transformer(rounded)


@pytest.mark.parametrize("name", FORMATS)
def test_halves_are_joined_to_the_bit_or_stay_apart(comfyui, plain, tmp_path, name):
    stored, rounded = halves(name, plain)
    model = load(write(stored, tmp_path / "split.safetensors"))
    assert model.spec.fused_mlp == (name not in APART)
    layers = [model.get_submodule(layer) for layer in ([f"{MLP}.gate_up"] if model.spec.fused_mlp else HALVES)]
    assert all(layer.quant_format == FORMATS[name][0] for layer in layers)
    assert torch.equal(torch.cat([layer.weight.dequantize() for layer in layers]), rounded[f"{MLP}.gate_up.weight"])
    assert error(velocity(model), expected(rounded)) < FORMATS[name][3]


@pytest.mark.parametrize("change, fused", [
    ({"comfy_quant": tiny.mark(format="int8_tensorwise")}, False),
    ({"comfy_quant": None, "weight_scale": None, "weight": torch.zeros(768, 256)}, False),
    ({"weight_scale": torch.tensor(0.01)}, True), ({"weight_scale": torch.full((768,), 0.01)}, True),
], ids=["another record", "one half plain", "one scale for one half", "scales without a column"])
def test_halves_of_different_kinds(comfyui, plain, tmp_path, change, fused):
    stored, _ = halves("int8 ConvRot", plain)
    for part, value in change.items():
        stored.pop(f"{HALVES[1]}.{part}")
        stored |= {} if value is None else {f"{HALVES[1]}.{part}": value}
    model = load(write(stored, tmp_path / "split.safetensors"))
    assert model.spec.fused_mlp == fused and velocity(model).isfinite().all()
    if fused:
        weight = model.get_submodule(f"{MLP}.gate_up").weight
        assert weight._params.scale.shape == (1536, 1)
        assert torch.equal(weight._params.scale[:768], stored[f"{HALVES[0]}.weight_scale"])
        assert (weight._params.scale[768:] == torch.tensor(0.01)).all()


@pytest.mark.parametrize("part", ["weight", "weight_scale"])
@pytest.mark.parametrize("half", HALVES)
def test_damage_in_a_half_is_named(comfyui, plain, tmp_path, half, part):
    stored, _ = halves("mxfp8", plain)
    stored[f"{half}.{part}"].view(torch.uint8)[5, 1] = 0xFF
    with pytest.raises(CheckpointError, match=f"^nan.safetensors is damaged: tensor {half}.{part} contains NaN"):
        load(write(stored, tmp_path / "nan.safetensors"))


@pytest.mark.parametrize("layout, fused", [(dict, True), (tiny.to_diffusers_transformer, False)],
                         ids=["fused", "split"])
def test_scales_in_tiles_are_neither_cut_nor_joined(comfyui, tmp_path, layout, fused):
    """Halves of 96 rows share a tile of 128."""
    spec = TransformerSpec(layers=1, dim=128, heads=2, head_dim=64, mlp_dim=96, context_dim=64, rope_axes=(8, 28, 28))
    state = layout(tiny.randomise(tiny.shapes(Transformer(spec)), 5))
    stored, _ = tiny.quantized(lambda key: ".img_mlp." in key and ".out." not in key, state, *FORMATS["mxfp8"][:3])
    model = load(write(stored, tmp_path / "tiles.safetensors"))
    assert model.spec.fused_mlp == fused and velocity(model).isfinite().all()
