"""What quantized layers compute on devices that this machine does not have, with core's own layers.

Core decides by its launch flags and by the card when it is imported; the tests set what these leave behind: `--fast
fp16_accumulation` PRIORITIZE_FP16, `--supports-fp8-compute` SUPPORT_FP8_OPS.
"""
import pytest
import torch
import torch.nn.functional as F

from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.model.qwen_image_2.transformer import Transformer
from qwen_image_2.tests.nodes.bridge.quant.test_formats import FORMATS, SPEC, old_names, quantize, write
from qwen_image_2.tests.reference import error
from qwen_image_2.tools import tiny

WIDEST = "transformer_blocks.1.img_mlp.out"  # reads the product of SwiGLU, which nothing has normed
OUTLIERS = (0, 400, 1000, 5000)


@pytest.fixture(scope="module")
def plain():
    return tiny.randomise(tiny.shapes(Transformer(SPEC)), 5)


@pytest.fixture
def management(comfyui):
    import comfy.model_management
    return comfy.model_management


@pytest.fixture
def fp8_card(management, monkeypatch):
    """--supports-fp8-compute."""
    monkeypatch.setattr(management, "SUPPORT_FP8_OPS", True)
    assert management.supports_fp8_compute(torch.device("cpu"))


def load(path, **options):
    from qwen_image_2.nodes.bridge.loading import load_model
    return load_model(path, path.name, "base", **options).model


def product_error(layer, outlier: float) -> float:
    """Of a layer's product with inputs of which one channel stands out, against its own dequantized weights."""
    x = torch.randn(24, layer.in_features, generator=torch.Generator().manual_seed(2))
    if outlier:
        x[:, 3] = outlier
    with torch.no_grad():
        weight = layer.weight.dequantize().float() if hasattr(layer.weight, "dequantize") else layer.weight.float()
        return error(layer(x), F.linear(x, weight))


@pytest.mark.parametrize("outlier", OUTLIERS)
@pytest.mark.parametrize("way", ["weight_format", "a file", "an older file", "a file with scales of 1"])
def test_fp8_cuts_no_activation_off(fp8_card, plain, tmp_path, way, outlier):
    """fp8 ends at 448. Core's layer takes 1.0 for a scale that is missing, and clamps: 91 % wrong at 5000."""
    path = tmp_path / "fp8.safetensors"
    stored, _ = quantize(plain, "fp8 e4m3")
    if way == "weight_format":
        model = load(write(plain, path), weight_format="fp8")
    elif way == "an older file":
        model = load(write(old_names(stored, torch.zeros(1)), path))
    else:
        ones = {name.replace("comfy_quant", "input_scale"): torch.tensor(1.0) for name in stored
                if name.endswith("comfy_quant")} if "scales" in way else {}
        model = load(write(stored | ones, path))
    layer = model.diffusion_model.get_submodule(WIDEST)
    assert layer.quant_format == "float8_e4m3fn" and product_error(layer, outlier) < 1e-5
    total = 6 * SPEC.layers
    assert model.weights == ("fp8 (e4m3), dequantized layer by layer where activation scales are missing "
                             f"({total} of {total} layers)")


def test_fp8_with_input_scales_is_multiplied_as_fp8(fp8_card, plain, tmp_path):
    stored, _ = quantize(plain, "fp8 e4m3")
    scales = {name.replace("comfy_quant", "input_scale"): torch.tensor(5000 / 448) for name in stored
              if name.endswith("comfy_quant")}
    model = load(write(stored | scales, tmp_path / "fp8.safetensors"))
    layer = model.diffusion_model.get_submodule(WIDEST)
    assert not layer._full_precision_mm and 1e-4 < product_error(layer, 5000) < 0.05
    assert model.weights == "fp8 (e4m3), computed natively"


@pytest.mark.parametrize("name", ["int8 ConvRot", "int8 per row"])
def test_integers_measure_their_activations_in_each_call(management, plain, tmp_path, name):
    layer = load(write(quantize(plain, name)[0], tmp_path / "q.safetensors")).diffusion_model.get_submodule(WIDEST)
    assert 1e-5 < product_error(layer, 5000) < 0.05


# ---------------------------------------------------------------- the dtype to compute in

@pytest.mark.parametrize("flag", [False, True], ids=["no flag", "--fast fp16_accumulation"])
@pytest.mark.parametrize("bf16", [True, False], ids=["Ampere", "Turing"])
@pytest.mark.parametrize("stored", ["int8_tensorwise", "float8_e4m3fn", "nvfp4", "gguf", None])
def test_no_launch_flag_makes_a_model_fp16_where_the_card_has_bf16(management, monkeypatch, stored, bf16, flag):
    from qwen_image_2.nodes.bridge.loading import FAMILIES, _model_config
    monkeypatch.setattr(management, "PRIORITIZE_FP16", flag)
    monkeypatch.setattr(management, "should_use_bf16", lambda *args, **kwargs: bf16)
    monkeypatch.setattr(management, "should_use_fp16", lambda *args, **kwargs: True)
    layers = {"transformer_blocks.0.attn.to_q": {"format": stored}} if stored else {}
    config = _model_config(FAMILIES[type(SPEC)], SPEC, layers, torch.bfloat16, torch.device("cpu"))
    computes_in = config.manual_cast_dtype or config.unet_config["dtype"]
    assert computes_in == (torch.bfloat16 if bf16 else torch.float16)


# ---------------------------------------------------------------- devices without the arithmetic

APPLE = torch.device("mps")


@pytest.fixture
def on_apple(management, monkeypatch):
    """As far as the formats ask; the layers compute on this CPU, without its integers."""
    from qwen_image_2.nodes.bridge.quant import formats

    def no_integers(*_):
        raise NotImplementedError("The operator 'aten::_int_mm' is not currently implemented for the MPS device.")

    monkeypatch.setattr(formats, "multiplies_integers", lambda device: False)
    monkeypatch.setattr(torch, "_int_mm", no_integers)


@pytest.mark.parametrize("name", ["int8 ConvRot", "int8 per row", "int8 per tensor", "4-bit ConvRot"])
def test_integers_are_dequantised_where_nothing_multiplies_them(on_apple, plain, tmp_path, name):
    model = load(write(quantize(plain, name)[0], tmp_path / "q.safetensors"))
    assert product_error(model.diffusion_model.get_submodule(WIDEST), 5000) < 1e-5
    assert model.weights.endswith("dequantized layer by layer (not supported on this device)")


@pytest.mark.parametrize("name", ["int8 ConvRot", "4-bit ConvRot"])
def test_integers_are_dequantised_where_the_file_asks_for_it(management, plain, tmp_path, name):
    """Core's layer (0.30) multiplies them as integers all the same."""
    stored, _ = quantize(plain, name)
    algorithm, settings = FORMATS[name][:2]
    stored |= {key: tiny.mark(format=algorithm, full_precision_matrix_mult=True, **settings) for key in stored
               if key.endswith("comfy_quant")}
    model = load(write(stored, tmp_path / "q.safetensors"))
    assert product_error(model.diffusion_model.get_submodule(WIDEST), 5000) < 1e-5
    assert model.weights.endswith("dequantized layer by layer (the file asks for it)")


@pytest.mark.parametrize("device, core, expected", [
    ("cpu", None, True), ("cuda", None, True), ("xpu", None, True), ("mps", None, False),
    ("privateuseone", None, False), ("xpu", False, False), ("cuda", True, True)])
def test_which_devices_multiply_integers(management, monkeypatch, device, core, expected):
    """core: the answer of its newer versions, which counts."""
    from qwen_image_2.nodes.bridge.quant import formats
    monkeypatch.setattr(formats, "has_fused", lambda *functions: True)
    monkeypatch.delattr(management, "supports_int8_compute", raising=False)
    if core is not None:
        monkeypatch.setattr(management, "supports_int8_compute", lambda device=None: core, raising=False)
    assert formats.multiplies_integers(torch.device(device)) == expected


@pytest.mark.parametrize("name", ["int8 ConvRot", "int8 per row", "4-bit ConvRot"])
def test_integers_are_dequantised_on_a_card_without_kernels(management, plain, monkeypatch, tmp_path, name):
    """PyTorch for CUDA 12: ComfyUI switches comfy-kitchen's kernels off."""
    from qwen_image_2.nodes.bridge.quant import formats
    card, lacks_kernels = torch.device("cuda"), formats.lacks_kernels
    monkeypatch.setattr(formats, "lacks_kernels", lambda device: lacks_kernels(card))
    monkeypatch.setattr(formats, "has_fused", lambda *functions: False)
    assert formats.without_arithmetic(torch.device("cpu")) >= formats.INTEGERS
    model = load(write(quantize(plain, name)[0], tmp_path / "q.safetensors"))
    assert product_error(model.diffusion_model.get_submodule(WIDEST), 5000) < 1e-5
    assert "dequantized layer by layer (comfy-kitchen's kernels are off" in model.weights


@pytest.mark.parametrize("name", ["fp8 e4m3", "fp8 e5m2", "mxfp8", "nvfp4"])
def test_fp8_is_refused_where_it_cannot_be_moved_to(management, plain, monkeypatch, tmp_path, name):
    """Core knows of Apple's and DirectML's devices that they take no fp8."""
    monkeypatch.setattr(management, "get_torch_device", lambda: APPLE)
    path = write(quantize(plain, name)[0], tmp_path / "q.safetensors")
    with pytest.raises(CheckpointError, match=r"^q.safetensors cannot be used as .*: this device \(mps\) does not sup"):
        load(path)


@pytest.mark.parametrize("record", [{"format": "int8_tensorwise"}, {"format": "convrot_w4a4"},
                                    {"format": "gguf", "type": "Q8_0"}])
def test_other_formats_are_taken_there(management, record):
    from qwen_image_2.model.checkpoints.checkpoint import Checkpoint
    from qwen_image_2.nodes.bridge.quant import formats
    formats.check_device(Checkpoint("q.safetensors", {}), {"layer": record}, APPLE)
    with pytest.raises(CheckpointError):
        formats.check_device(Checkpoint("q.safetensors", {}), {"layer": {"format": "mxfp8"}}, APPLE)


@pytest.mark.parametrize("weight_format", ["fp8", "4-bit (nvfp4)"])
def test_nothing_is_made_fp8_for_such_a_device(management, plain, monkeypatch, tmp_path, weight_format):
    monkeypatch.setattr(management, "get_torch_device", lambda: APPLE)
    with pytest.raises(CheckpointError, match=r"this device \(mps\) does not support fp8\. Choose .* another Weight"):
        load(write(plain, tmp_path / "plain.safetensors"), weight_format=weight_format)
