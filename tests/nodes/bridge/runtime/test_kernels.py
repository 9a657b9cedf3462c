"""ComfyUI's attention and comfy-kitchen's fused kernels compute what the plain ones do."""
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from qwen_image_2.model.qwen_image_2.prefix_cache import Condition
from qwen_image_2.model.runtime import kernels as plain
from qwen_image_2.tests.reference import error


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


def test_graphics_cards_get_the_fused_kernels(comfyui):
    from qwen_image_2.nodes.bridge.runtime.kernels import kernels_for
    assert kernels_for(torch.device("cpu")) is plain.TORCH
    fused = kernels_for(torch.device("cuda"))
    assert fused.norm_rope is not plain.norm_rope and fused.scaled_layer_norm is not plain.scaled_layer_norm


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_whole_transformer_runs_on_the_fused_kernels(comfyui, reference, dtype):
    import comfy.ops
    import comfy_kitchen

    from qwen_image_2.model.checkpoints.checkpoint import Checkpoint, TensorInfo
    from qwen_image_2.model.qwen_image_2 import detect
    from qwen_image_2.model.qwen_image_2.transformer import Transformer
    from qwen_image_2.nodes.bridge.runtime.kernels import kitchen_kernels
    state = {name: value.to(dtype) for name, value in reference.transformer.state_dict().items()}
    tensors = {n: TensorInfo(tuple(v.shape), "F32") for n, v in state.items()}
    spec = detect.detect_transformer(Checkpoint("reference", tensors)).spec
    condition = Condition(torch.randn(3, 20, 64).to(dtype), ((4, 6),), (torch.randn(1, 64, 4, 6).to(dtype),))
    x, sigma, velocities = torch.randn(3, 64, 5, 3).to(dtype), torch.tensor([0.9, 0.5, 0.1]), []
    for ops, kernels in ((torch.nn, plain.TORCH), (comfy.ops.manual_cast, kitchen_kernels(comfy_kitchen))):
        model = Transformer(spec, ops, kernels, dtype=dtype)
        model.load_state_dict(state)
        velocities.append(model(x, sigma, model.encode_prefix(condition)).float())
    assert error(*velocities) < (1e-5 if dtype == torch.float32 else 0.1)


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
