"""Bytes that a block of the published size moves for its tokens, counted on meta tensors: what decides beside products.

In widths: one bf16 row of the residual stream, 8 KiB a token. Counted is what each kernel reads and writes between the
products, attention left out; an int8 product's quantizer reads its input and writes 8-bit values. On the kernels that a
graphics card has: comfy-kitchen's are single ones there.
"""
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qwen_image_2.model.qwen_image_2.blocks import Block, Modulation
from qwen_image_2.model.qwen_image_2.spec import TransformerSpec
from qwen_image_2.model.runtime import kernels as plain

SPEC, TOKENS, PREFIX = TransformerSpec(), 4096, 300
# They read and write nothing of their own.
VIEWS = {"view", "_unsafe_view", "unsqueeze", "split", "slice", "transpose", "t", "detach", "alias", "expand", "empty",
         "empty_like", "new_empty", "is_pinned", "split_with_sizes", "select", "squeeze", "as_strided", "unbind"}


class Traffic(TorchDispatchMode):
    """Adds up what kernels read and write, weights left out: all that is as large as the tokens."""

    def __init__(self):
        super().__init__()
        self.bytes: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, name = func(*args, **(kwargs or {})), func.__name__.partition(".")[0]
        if name in ("linear", "mm"):
            self.add_product(args[0], args[1])
        elif name not in VIEWS:
            self.add(name, *tree_leaves((args, kwargs, out)))
        return out

    def add(self, name: str, *values) -> None:
        moved = sum(value.numel() * value.element_size() for value in values
                    if isinstance(value, torch.Tensor) and value.numel() >= TOKENS)
        self.bytes[name] = self.bytes.get(name, 0) + moved

    def add_product(self, x: torch.Tensor, weight: torch.Tensor) -> None:
        if hasattr(weight, "dequantize") and type(weight) is not torch.Tensor:
            self.bytes["quantizer"] = self.bytes.get("quantizer", 0) + x.numel() * (x.element_size() + 1)

    @property
    def widths(self) -> float:
        return sum(self.bytes.values()) / (2 * SPEC.dim * TOKENS)


def block(kernels, ops, int8: bool, **choice) -> Block:
    from comfy.quant_ops import QuantizedTensor, get_layout_class
    spec = TransformerSpec(**choice)
    made = Block(spec, ops, kernels, device="meta", dtype=torch.bfloat16)
    layout = "TensorWiseINT8Layout"
    for layer in made.modules() if int8 else ():
        if isinstance(layer, torch.nn.Linear):
            rows, columns = layer.weight.shape
            params = get_layout_class(layout).Params(torch.empty(rows, 1, device="meta"), torch.bfloat16,
                                                     (rows, columns), convrot=True)
            values = QuantizedTensor(torch.empty(rows, columns, dtype=torch.int8, device="meta"), layout, params)
            layer.weight = torch.nn.Parameter(values, requires_grad=False)
            layer.quant_format, layer._full_precision_mm = "int8_tensorwise", False
    return made


@pytest.fixture
def widths(comfyui, monkeypatch):
    """What a block moves. ComfyUI's SwiGLU in int8 is one call, which no tensor shows: it is counted as its kernel
    reads and writes, gate and projection once and 8-bit values."""
    import comfy.ops
    import comfy_kitchen

    from qwen_image_2.nodes.bridge.runtime.kernels import kitchen_kernels

    def count(int8: bool, **choice) -> Traffic:
        traffic = Traffic()

        def int8_linear(x, weight, scale, bias, dtype, input_act=None, **settings):
            traffic.bytes["quantizer"] += x.numel() * x.element_size() + x.numel() // 2
            return x.new_empty(*x.shape[:-1], len(weight))

        monkeypatch.setattr(comfy.ops.quant_ops.ck, "int8_linear", int8_linear)
        monkeypatch.setattr(comfy.ops, "cast_bias_weight", lambda layer, *args, **kwargs: (layer.weight, None, None))
        kernels = kitchen_kernels(comfy_kitchen)
        made = block(kernels, comfy.ops.disable_weight_init, int8, **choice)
        x, row = (torch.empty(1, count, SPEC.dim, dtype=torch.bfloat16, device="meta") for count in (TOKENS, 1))
        scale = kernels.prepare_scale(row)
        rope = torch.empty(1, TOKENS, 1, SPEC.head_dim // 2, 2, 2, device="meta")
        with torch.no_grad(), traffic:
            made(x, Modulation(scale, row, scale, row), rope, lambda q, k, v: q.flatten(2))
        return traffic

    return count


def test_the_mlp_moves_no_more_than_its_matrices_need(widths):
    """Norms 4, rotations 4, gates 6, and SwiGLU 15, which in int8 the quantizers take over: 1.5 for each of four
    inputs, and 9 for gate and projection on the way in and their product on the way out as 8-bit values."""
    assert widths(int8=False).widths == pytest.approx(29, abs=0.2)
    assert widths(int8=True).widths == pytest.approx(29, abs=0.2)


def test_a_kernel_for_swiglu_reads_once_and_writes_once(widths, monkeypatch):
    """9 instead of 15, where no quantizer takes it over."""
    moved = []

    def kernel(gate_up):
        product = gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)
        moved.append((gate_up.nbytes + product.nbytes) / (2 * SPEC.dim * TOKENS))
        return product

    monkeypatch.setattr(plain, "silu_product", kernel)
    assert widths(int8=False).widths + sum(moved) == pytest.approx(23, abs=0.2)


def test_halves_that_stay_apart_pay_for_it(widths):
    """SwiGLU's 15, and the same input quantized twice, as with the fused matrix as two: what joining them is for."""
    assert widths(int8=True, fused_mlp=False).widths == pytest.approx(42.5, abs=0.2)
