"""The 4-bit formats of newer ComfyUI, whose scales are those of groups of columns: read where core knows them.

The installed one does not. A stand-in takes what core's layer (comfy/ops.py 0271a469) takes of a file, and no more, and
decodes as comfy-kitchen (tensor/w4a8_int8.py, tensor/awq_w4a16.py) says.
"""
import json

import pytest
import torch

from qwen_image_2.model.qwen_image_2.transformer import Transformer
from qwen_image_2.tests.reference import error
from qwen_image_2.tools import tiny

from .test_formats import SPEC, expected, load, velocity, write

GROUP, ROTATED = 32, 64
FORMATS = ("asym_w4a8_int8", "awq_w4a16")
LAYER = "transformer_blocks.0.attn.to_q"


@pytest.fixture(scope="module")
def plain():
    return tiny.randomise(tiny.shapes(Transformer(SPEC)), 5)


def packed(levels: torch.Tensor) -> torch.Tensor:
    return (levels[:, 0::2] | levels[:, 1::2] << 4).to(torch.uint8).view(torch.int8)


def unpacked(weight: torch.Tensor) -> torch.Tensor:
    found = weight.view(torch.uint8)
    return torch.stack([found & 15, found >> 4], dim=2).flatten(1)


def unrotated(weight: torch.Tensor) -> torch.Tensor:
    from comfy_kitchen.tensor import int8_utils
    return int8_utils._rotate_weight(weight, int8_utils._build_hadamard(ROTATED, dtype=weight.dtype), ROTATED)


def made(name: str, rows: int, columns: int, codebook: bool = True) -> tuple[dict, torch.Tensor]:
    """What a file holds of a layer, and the matrix that it means, value by value."""
    generator = torch.Generator().manual_seed(7)
    levels, groups = torch.randint(0, 16, (rows, columns), generator=generator), columns // GROUP
    mark = {"format": name, "group_size": GROUP}
    value = torch.empty(rows, columns)
    if name == "awq_w4a16":
        scale, zeros = (0.01 * torch.rand(groups, rows, generator=generator).bfloat16() for _ in range(2))
        for row in range(rows):
            for group in range(groups):
                at = slice(group * GROUP, (group + 1) * GROUP)
                value[row, at] = (levels[row, at] - 8) * scale[group, row].float() + zeros[group, row].float()
        beside = {"weight_scale": scale, "weight_zeros": zeros}
    else:
        table = torch.randn(16, generator=generator).sort().values
        beside = {"weight_s_rel": torch.rand(rows, groups, generator=generator).to(torch.float8_e4m3fn),
                  "weight_s_channel": 0.05 * torch.rand(rows, generator=generator), "weight_codebook": table}
        for row in range(rows):
            for group in range(groups):
                at = slice(group * GROUP, (group + 1) * GROUP)
                value[row, at] = table[levels[row, at]] * beside["weight_s_rel"][row, group].float()
            value[row] *= beside["weight_s_channel"][row]
        value, mark = unrotated(value), mark | {"convrot_groupsize": ROTATED}
    return {"weight": packed(levels), **beside, "comfy_quant": tiny.mark(**mark)}, value


@pytest.fixture
def newer_core(monkeypatch):
    """Core's table of formats, and its layer's way to take a state dict, with the two formats."""
    import comfy.ops
    from comfy.quant_ops import QUANT_ALGOS
    older = comfy.ops._load_quantized_module
    takes = {"asym_w4a8_int8": ("weight", "weight_s_rel", "weight_s_channel", "weight_codebook"),
             "awq_w4a16": ("weight", "weight_scale", "weight_zeros")}

    def take(module, super_load, state, prefix, metadata, strict, missing, *others, **more):
        record = state.get(f"{prefix}comfy_quant")
        settings = {} if record is None else json.loads(record.numpy().tobytes())
        if settings.get("format") not in takes:
            return older(module, super_load, state, prefix, metadata, strict, missing, *others, **more)
        name, found = settings["format"], [state.pop(f"{prefix}{last}") for last in takes[settings["format"]]]
        del state[f"{prefix}comfy_quant"]
        weight, group = unpacked(found[0]).long(), settings["group_size"]
        if name == "awq_w4a16":
            scale, zeros = (each.float().T.repeat_interleave(group, 1) for each in found[1:])
            value = (weight - 8) * scale + zeros
        else:
            value = unrotated(found[3][weight] * found[1].float().repeat_interleave(group, 1) * found[2][:, None])
        module.quant_format, module.weight = name, torch.nn.Parameter(value, requires_grad=False)
        super_load(state, prefix, metadata, strict, missing, *others)
        missing[:] = [key for key in missing if key != f"{prefix}weight"]

    for name in FORMATS:
        monkeypatch.setitem(QUANT_ALGOS, name, {"storage_t": torch.int8})
    monkeypatch.setattr(comfy.ops, "_load_quantized_module", take)


def file_with(plain, name, tmp_path):
    state, rounded = tiny.to_comfy_transformer(plain), dict(plain)
    matrix = f"{LAYER}.weight"
    layer, rounded[matrix] = made(name, *plain[matrix].shape)
    del state[matrix]
    state |= {f"{LAYER}.{last}": value for last, value in layer.items()}
    return write(state, tmp_path / "4bit.safetensors"), rounded


@pytest.mark.parametrize("name", FORMATS)
def test_a_core_that_knows_the_format_gets_all_of_it(newer_core, plain, tmp_path, name):
    path, rounded = file_with(plain, name, tmp_path)
    model = load(path)
    assert error(model.get_parameter(f"{LAYER}.weight"), rounded[f"{LAYER}.weight"]) < 1e-6
    assert error(velocity(model), expected(rounded)) < 1e-5


@pytest.mark.parametrize("name", FORMATS)
def test_an_older_core_is_named_as_the_cause(comfyui, plain, tmp_path, name):
    with pytest.raises(ValueError, match="which this ComfyUI cannot read. Update ComfyUI"):
        load(file_with(plain, name, tmp_path)[0])


def test_the_installed_kitchen_reads_awq_as_the_file_means_it(comfyui):
    from comfy_kitchen.tensor import TensorCoreAWQW4A16Layout as Layout
    layer, value = made("awq_w4a16", 48, 128)
    params = Layout.Params(scale=layer["weight_scale"].float(), zeros=layer["weight_zeros"].float(), group_size=GROUP,
                           orig_dtype=torch.float32, orig_shape=(48, 128))
    assert error(Layout.dequantize(layer["weight"], params), value) < 1e-6


@pytest.mark.parametrize("name", FORMATS)
def test_loras_are_not_baked_into_what_is_only_read(newer_core, plain, tmp_path, name):
    from qwen_image_2.nodes.bridge.loading import diffusion_network, load_model
    from qwen_image_2.nodes.bridge.quant import quantize
    path, rounded = file_with(plain, name, tmp_path)
    model = load_model(path, path.name, "base")
    change = torch.zeros_like(rounded[f"{LAYER}.weight"])
    assert model.add_patches({f"diffusion_model.{LAYER}.weight": ("diff", (change,))}, 1.0)
    with pytest.raises(ValueError, match="cannot be saved with its LoRAs"):
        quantize.check(diffusion_network(model), path.name)
