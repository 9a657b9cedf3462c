"""GGUF's kernels without a card: compiled for some, and interpreted on the CPU beside the plain form."""
import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qwen_image_2.model.checkpoints import gguf as plain

pytest.importorskip("triton")
KERNELS = "gguf"
TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q4_K")
CARDS = {"A100": ("cuda", 80, 32), "RTX 4090": ("cuda", 89, 32), "H100": ("cuda", 90, 32), "B200": ("cuda", 100, 32),
         "MI300": ("hip", "gfx942", 64)}


# Scales: usual ones, the largest, the smallest, subnormal ones, zeros of both signs.
SCALES = torch.tensor([1.0, -0.37, 3e-3, 65504, -65504, 6.1e-5, 6e-8, -4.2e-6, 0.0, -0.0]).half()


def packed(type_name: str, rows: int, columns: int = 512) -> torch.Tensor:
    """Any bytes are a valid block, but for those of its fp16 numbers."""
    block, generator = plain.BLOCKS[type_name], torch.Generator().manual_seed(7)
    data = torch.randint(256, (rows * columns // block.values, block.bytes), generator=generator, dtype=torch.uint8)
    for number, place in enumerate(block.halves):
        scale = SCALES.repeat(len(data)).roll(3 * number)[:len(data), None]
        data[:, place:place + 2] = scale.contiguous().view(torch.uint8)
    return data.view(rows, -1)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # to fp16's infinity, as torch does
# Rows: less than a program's blocks, and not a multiple of them.
@pytest.mark.parametrize("rows", [1, 13])
@pytest.mark.parametrize("type_name", TYPES)
def test_a_kernel_computes_what_the_plain_form_does(interpreted, type_name, rows):
    data = packed(type_name, rows)
    expected = plain.dequantize(data, type_name)
    # The interpreter cuts to bf16, where a card rounds: compare in the dtypes that it rounds to.
    for dtype in (torch.float32, torch.float16):
        found = interpreted.decode(data, type_name, dtype)
        assert found.dtype == dtype and torch.equal(found, expected.to(dtype))
    torch.testing.assert_close(interpreted.decode(data, type_name, torch.bfloat16), expected.bfloat16(),
                               rtol=torch.finfo(torch.bfloat16).eps, atol=1e-38)


@pytest.mark.parametrize("type_name", TYPES)
def test_rows_that_lie_apart_and_at_odd_addresses(interpreted, type_name):
    data = packed(type_name, 6)
    apart = interpreted.decode(data[::2], type_name, torch.float32)
    odd = torch.cat([torch.zeros(1, dtype=torch.uint8), data.flatten()])[1:].view(6, -1)
    assert odd.data_ptr() % 2
    assert torch.equal(apart, plain.dequantize(data[::2], type_name))
    assert torch.equal(interpreted.decode(odd, type_name, torch.float32), plain.dequantize(data, type_name))


class Traffic(TorchDispatchMode):
    """Bytes that PyTorch's own operations read and write."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if not function.is_view and function.overloadpacket not in (torch.ops.aten.empty, torch.ops.aten.arange):
            tensors = [each for each in (*args, out) if isinstance(each, torch.Tensor)]
            self.bytes += sum(each.nbytes for each in tensors)
        return out


class Launched:
    """A kernel that reads its first argument once and writes its second one once, as the interpreted ones do."""

    bytes = 0

    def __getitem__(self, grid):
        def launch(data, out, blocks, **constants):
            self.bytes += data.nbytes + out.nbytes
        return launch


@pytest.mark.parametrize("type_name, most", [("Q8_0", 3.07), ("Q6_K", 2.83), ("Q5_K", 2.69), ("Q4_K", 2.57)])
def test_bytes_per_weight(interpreted, monkeypatch, type_name, most):
    """Of bf16 matrices; the plain form moves 19 to 40."""
    data, kernel = packed(type_name, 4).to("meta"), Launched()
    decoder = interpreted.DECODERS[type_name]._replace(kernel=kernel)
    monkeypatch.setitem(interpreted.DECODERS, type_name, decoder)
    with Traffic() as traffic:
        out = interpreted.decode(data, type_name, torch.bfloat16)
    assert (kernel.bytes + traffic.bytes) / out.numel() <= most
    with Traffic() as traffic:
        plain.dequantize(data, type_name).bfloat16()
    assert traffic.bytes / out.numel() > 19


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("type_name", TYPES)
def test_a_kernel_compiles_for_the_card(compiled, tmp_path, monkeypatch, type_name, card):
    """Down to the card's code, and a thread of sixteen values reads some bytes at once and writes sixteen."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    decoder = compiled.DECODERS[type_name]
    aligned = [["tt.divisibility", 16]]
    source = ASTSource(decoder.kernel, {"packed": "*u8", "out": "*bf16", "blocks": "i32", "BLOCKS": "constexpr"},
                       {"BLOCKS": decoder.blocks}, {(0,): aligned, (1,): aligned})
    code = triton.compile(source, target=GPUTarget(*CARDS[card])).asm
    assert code.get("cubin") or code.get("hsaco")
    text = code.get("ptx") or code["amdgcn"]
    loads = re.findall(r"ld\.global\.|global_load_|buffer_load_", text)
    stores = re.findall(r"(st\.global\.v4\.b32|global_store_dwordx4|buffer_store_dwordx4)|st\.global|_store_", text)
    assert 1 <= len(loads) <= 20
    assert stores and all(stores)
