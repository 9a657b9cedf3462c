"""ComfyUI's attention and comfy-kitchen's fused kernels compute what the plain ones do."""
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from qwen_image_2.model.qwen_image_2.prefix_cache import Condition
from qwen_image_2.model.runtime import kernels as plain
from qwen_image_2.tests.reference import error
from qwen_image_2.tools import tiny


def test_comfy_kitchen_kernels_give_the_same_result(comfyui):
    """Their CPU versions define what the fused kernels compute."""
    import comfy.ops
    import comfy_kitchen

    from qwen_image_2.nodes.bridge.runtime.kernels import kitchen_kernels
    kernels = kitchen_kernels(comfy_kitchen)
    q, k = torch.randn(2, 7, 3, 32), torch.randn(2, 7, 3, 32)
    norm_q, norm_k = (comfy.ops.manual_cast.RMSNorm(32, eps=1e-6) for _ in range(2))
    for norm in (norm_q, norm_k):
        torch.nn.init.normal_(norm.weight)
    rotations = torch.polar(torch.ones(7, 16), torch.randn(7, 16))
    expected = plain.norm_rope(q, k, norm_q, norm_k, rotations)
    found = kernels.norm_rope(q, k, norm_q, norm_k, kernels.prepare_rotations(rotations))
    assert all(error(f, e) < 1e-6 for f, e in zip(found, expected))
    x, scale = torch.randn(2, 7, 96), torch.randn(2, 1, 96)
    expected = plain.scaled_layer_norm(x, scale, 1e-6)
    assert error(kernels.scaled_layer_norm(x, kernels.prepare_scale(scale), 1e-6), expected) < 1e-6


def test_norms_share_no_buffer(comfyui, monkeypatch):
    """With one stream core has one buffer for what it brings from RAM, and fills it anew for the next layer."""
    import comfy.ops
    import comfy_kitchen

    from qwen_image_2.nodes.bridge.runtime.kernels import kitchen_kernels
    buffer, taken = torch.empty(32), []

    def cast(norm, x, offloadable=False):
        assert offloadable and not taken, "the buffer is in use"
        taken.append(norm)
        return buffer.copy_(values[norm]), None, ("a stream", buffer, None)

    def uncast(norm, weight, bias, stream):
        assert taken.pop() is norm and weight is buffer and stream == ("a stream", buffer, None)

    norms = [torch.nn.RMSNorm(32, eps=1e-6) for _ in range(2)]
    values = {norm: torch.randn(32) for norm in norms}
    q, k = torch.randn(2, 7, 3, 32), torch.randn(2, 7, 3, 32)
    rotations, kernels = torch.polar(torch.ones(7, 16), torch.randn(7, 16)), kitchen_kernels(comfy_kitchen)
    for norm in norms:
        norm.weight.data = values[norm]
    expected = plain.norm_rope(q.clone(), k.clone(), *norms, rotations)
    monkeypatch.setattr(comfy.ops, "cast_bias_weight", cast)
    monkeypatch.setattr(comfy.ops, "uncast_bias_weight", uncast)
    for norm in norms:
        norm.weight = torch.nn.Parameter(torch.empty(32, device="meta"))  # elsewhere than the tokens
    found = kernels.norm_rope(q, k, *norms, kernels.prepare_rotations(rotations))
    assert not taken and all(error(f, e) < 1e-6 for f, e in zip(found, expected))


@pytest.mark.parametrize("backends, fused", [
    ({"cuda": "on", "eager": "on"}, True), ({"triton": "on", "eager": "on"}, True),
    ({"cuda": "disabled", "triton": "disabled", "eager": "on"}, False), ({"eager": "on"}, False),
    ({"cuda": "missing", "eager": "on"}, False), ({"cuda": "without adaln", "eager": "on"}, False)])
def test_graphics_cards_get_the_fused_kernels_that_there_are(comfyui, monkeypatch, caplog, backends, fused):
    """As comfy-kitchen's registry says it; ComfyUI disables its CUDA kernels for PyTorch below CUDA 13."""
    from comfy_kitchen import registry

    from qwen_image_2.nodes.bridge.runtime.kernels import kernels_for
    monkeypatch.setattr(registry, "list_backends", lambda: {
        name: {"available": how != "missing", "disabled": how == "disabled",
               "capabilities": ["rms_rope"] + ["adaln"] * (how != "without adaln")} for name, how in backends.items()})
    assert kernels_for(torch.device("cpu")) is plain.TORCH
    found = kernels_for(torch.device("cuda"))
    assert (found.norm_rope is not plain.norm_rope and found.scaled_layer_norm is not plain.scaled_layer_norm) == fused
    assert ("plain PyTorch kernels" in caplog.text) != fused


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_whole_transformer_runs_on_the_fused_kernels(comfyui, reference, dtype):
    import comfy.ops
    import comfy_kitchen

    from qwen_image_2.model.checkpoints.checkpoint import Checkpoint, TensorInfo
    from qwen_image_2.model.qwen_image_2 import detect
    from qwen_image_2.model.qwen_image_2.transformer import Transformer
    from qwen_image_2.nodes.bridge.runtime.kernels import kitchen_kernels
    fused = tiny.to_comfy_transformer(reference.transformer.state_dict())
    state = {name: value.to(dtype) for name, value in fused.items()}
    tensors = {n: TensorInfo(tuple(v.shape), "F32") for n, v in state.items()}
    spec = detect.detect_transformer(Checkpoint("reference", tensors)).spec
    condition = Condition(torch.randn(3, 20, 64).to(dtype), (4,), (torch.randn(1, 64, 4, 6).to(dtype),))
    x, sigma, velocities = torch.randn(3, 64, 5, 3).to(dtype), torch.tensor([0.9, 0.5, 0.1]), []
    for ops, kernels in ((torch.nn, plain.TORCH), (comfy.ops.manual_cast, kitchen_kernels(comfy_kitchen))):
        model = Transformer(spec, ops, kernels, dtype=dtype)
        model.load_state_dict(state)
        velocities.append(model(x, sigma, model.encode_prefix(condition)).float())
    assert error(*velocities) < (1e-5 if dtype == torch.float32 else 0.1)


@torch.no_grad()
@pytest.mark.parametrize("prompts", [1, 3])
def test_a_batch_whose_prefix_changes_with_sigma(comfyui, prompts):
    """causal_condition = false: a scale for each picture of the batch. On a card the fused norm takes no more scales
    than rows: what it makes of them before its kernel starts is asked here."""
    import comfy.ops
    import comfy_kitchen
    from comfy_kitchen.backends._modulation import adaln_prep_modulation

    from qwen_image_2.model.qwen_image_2.spec import TransformerSpec
    from qwen_image_2.model.qwen_image_2.transformer import Transformer
    from qwen_image_2.nodes.bridge.runtime.kernels import kitchen_kernels
    spec = TransformerSpec(layers=2, dim=64, heads=2, head_dim=32, mlp_dim=128, context_dim=64, rope_axes=(4, 14, 14),
                           causal_condition=False)

    def adaln(x, scale, shift, eps):
        for each in (scale, shift):
            adaln_prep_modulation(each, x, x.shape[:-1].numel(), x.shape[-1])
        return comfy_kitchen.adaln(x, scale, shift, eps)

    as_on_a_card = SimpleNamespace(adaln=adaln, rms_rope=comfy_kitchen.rms_rope)
    model = Transformer(spec, comfy.ops.manual_cast, kitchen_kernels(as_on_a_card))
    model.load_state_dict(tiny.randomise(tiny.shapes(Transformer(spec)), 5))
    exact = Transformer(spec)
    exact.load_state_dict(model.state_dict())
    condition = Condition(torch.randn(prompts, 9, 64), (2,), (torch.randn(1, 64, 4, 4),))
    x, sigma = torch.randn(3, 64, 4, 6), torch.tensor([0.9, 0.5, 0.1])
    together = model(x, sigma, model.encode_prefix(condition, sigma))
    alone = torch.cat([exact(x[i:i + 1], sigma[i:i + 1], exact.encode_prefix(
        Condition(condition.text[i % prompts][None], condition.slots, condition.references), sigma[i:i + 1]))
        for i in range(3)])
    assert error(together, alone) < 1e-5


@torch.no_grad()
def test_zero_shifts_are_made_once_for_a_pass(comfyui):
    """Not for every norm: the published model has 65 of them."""
    import comfy.ops
    import comfy_kitchen

    from qwen_image_2.model.qwen_image_2.spec import TransformerSpec
    from qwen_image_2.model.qwen_image_2.transformer import Transformer
    from qwen_image_2.nodes.bridge.runtime.kernels import kitchen_kernels
    spec = TransformerSpec(layers=5, dim=64, heads=2, mlp_dim=128, context_dim=64)
    model = Transformer(spec, comfy.ops.manual_cast, kitchen_kernels(comfy_kitchen))
    cache = model.encode_prefix(Condition(torch.randn(1, 5, 64)))
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as calls:
        model(torch.randn(2, 64, 4, 6), torch.rand(2), cache)
    counts = {event.key: event.count for event in calls.key_averages()}
    assert counts["comfy_kitchen::adaln"] == 2 * 5 + 1 and counts["aten::zeros_like"] == 3


# ---------------------------------------------------------------- SwiGLU inside the int8 quantizer

@pytest.fixture
def int8_layer(comfyui):
    """The MLP's last layer as the loader makes it: 512 inputs, 256 outputs, int8 with rotation."""
    import comfy.ops

    from qwen_image_2.nodes.bridge.quant.formats import decoding
    settings = {"convrot": True, "convrot_groupsize": 256}
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(4)) / 20
    stored, _ = tiny.quantized(lambda name: True, {"weight": weight}, "int8_tensorwise", settings,
                               {"per_channel": True, **settings})
    layer = decoding(comfy.ops.mixed_precision_ops({}, torch.float32)).Linear(512, 256, bias=False)
    layer.load_state_dict(stored)
    return layer


@pytest.fixture
def folded(comfyui, monkeypatch):
    """The layers that ComfyUI's own form was called with."""
    import comfy.ops
    calls, core = [], comfy.ops.linear_input_act

    def linear_input_act(linear, x, act):
        calls.append((linear, act))
        return core(linear, x, act)

    monkeypatch.setattr(comfy.ops, "linear_input_act", linear_input_act)
    return calls


def swiglu(layer) -> torch.Tensor:
    import comfy_kitchen

    from qwen_image_2.nodes.bridge.runtime.kernels import kitchen_kernels
    x = torch.randn(2, 7, 1024, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        found, expected = (kernels.linear_of_swiglu(layer, x)
                           for kernels in (kitchen_kernels(comfy_kitchen), plain.TORCH))
    assert found.shape == (2, 7, 256) and error(found, expected) < 1e-6
    return found


def test_swiglu_is_folded_into_the_int8_quantizer(int8_layer, folded):
    swiglu(int8_layer)
    assert folded == [(int8_layer, "swiglu")]


def to_dequantize(layer):
    layer._full_precision_mm = True


def with_a_lora_in_use(layer):
    layer.weight_function = [lambda weight: weight * 2]


def with_cast_weights(layer):
    layer.comfy_force_cast_weights = True


def with_another_forward(layer):
    own = layer.forward
    layer.forward = lambda x: own(x) * 3  # as core's bypass LoRAs do it


@pytest.mark.parametrize("told", [to_dequantize, with_a_lora_in_use, with_cast_weights, with_another_forward])
def test_a_layer_that_was_told_otherwise_keeps_its_own_way(int8_layer, folded, told):
    """ComfyUI's form looks at the weight alone."""
    told(int8_layer)
    swiglu(int8_layer)
    assert not folded


def test_an_older_comfyui_computes_the_plain_form(int8_layer, monkeypatch):
    import comfy.ops
    monkeypatch.delattr(comfy.ops, "linear_input_act")
    swiglu(int8_layer)


def test_layers_of_other_kinds_compute_the_plain_form(comfyui, folded):
    import comfy.ops
    layer = comfy.ops.manual_cast.Linear(512, 256, bias=False)
    torch.nn.init.normal_(layer.weight)
    swiglu(layer)
    assert not folded


def test_torch_compiles_the_plain_form(int8_layer, folded, monkeypatch):
    """It cannot look into ComfyUI's, which is no registered operation."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    swiglu(int8_layer)
    assert not folded
