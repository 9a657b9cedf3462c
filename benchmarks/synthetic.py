"""Transformer files of the published names and shapes whose values are made up: as large as the real ones."""
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch
from bootstrap import ROOT  # noqa: F401  first, it makes the pack importable
from torch import Tensor

from qwen_image_2.model.checkpoints import gguf as pack_gguf
from qwen_image_2.model.checkpoints import writer
from qwen_image_2.model.qwen_image_1.spec import TransformerSpec as TransformerSpec1
from qwen_image_2.model.qwen_image_1.transformer import Transformer as Transformer1
from qwen_image_2.model.qwen_image_2.spec import TransformerSpec
from qwen_image_2.model.qwen_image_2.transformer import Transformer
from qwen_image_2.tools import tiny

# Every tensor is a piece of the same noise, which starts elsewhere for each: no two are equal, and the file is never
# in memory. The largest one, a fused MLP, has 100 million values.
SHIFT = 7919
GGUF_KIND = "Q4_K"
GGUF_SCALE = 0.001  # of every block, as fp16; the other bits of a block may be anything


def shapes(spec: TransformerSpec) -> dict[str, tuple[int, ...]]:
    """Comfy-Org's names: gate and projection fused."""
    state = tiny.to_comfy_transformer(Transformer(spec, device="meta").state_dict())
    return {name: tuple(value.shape) for name, value in state.items()}


def require_room(folder: Path, size: float) -> None:
    free = shutil.disk_usage(folder).free
    if free < size + 1e9:
        raise SystemExit(f"{folder} has {free / 1e9:.1f} GB, but the file takes {size / 1e9:.1f} GB, and one should "
                         f"stay free: name a folder with more room (--folder, or TMPDIR).")


def write_bf16(path: Path, spec: TransformerSpec) -> None:
    write_plain(path, shapes(spec), torch.bfloat16)


def write_fp8_1(path: Path, spec: TransformerSpec1) -> None:
    """Qwen-Image 1.x as it circulates most: every tensor cast to fp8, norms and biases too, without scale or mark."""
    state = Transformer1(spec, device="meta").state_dict()
    write_plain(path, {name: tuple(value.shape) for name, value in state.items()}, torch.float8_e4m3fn)


def write_plain(path: Path, wanted: dict[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    largest, number = max(map(math.prod, wanted.values())), len(wanted)
    require_room(path.parent, dtype.itemsize * sum(map(math.prod, wanted.values())))
    noise = torch.randn(largest + SHIFT * number, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    noise = (noise * 0.02).to(dtype)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for place, (name, shape) in enumerate(wanted.items()):
            yield name, noise[SHIFT * place:][:math.prod(shape)].view(shape)

    entries = [writer.Entry(name, dtype, shape) for name, shape in wanted.items()]
    writer.write(path, entries, tensors(), {"format": "pt"})


def write_gguf(path: Path, spec: TransformerSpec) -> None:
    """The matrices of the blocks packed, the rest in fp32: as publishers write it."""
    import gguf
    wanted, block = shapes(spec), pack_gguf.BLOCKS[GGUF_KIND]
    packed = {name for name, shape in wanted.items() if "transformer_blocks" in name and len(shape) == 2}
    bits = {name: 8 * block.bytes / block.values if name in packed else 32 for name in wanted}
    require_room(path.parent, sum(math.prod(shape) * bits[name] / 8 for name, shape in wanted.items()))
    blocks = noisy_blocks(max(math.prod(wanted[name]) for name in packed) // block.values + SHIFT)
    plain = numpy.random.default_rng(1).standard_normal(
        max(math.prod(shape) for name, shape in wanted.items() if name not in packed), numpy.float32) * 0.02
    file = gguf.GGUFWriter(path, "qwen_image21")
    for place, (name, shape) in enumerate(wanted.items()):
        if name in packed:
            values = blocks[place:][:math.prod(shape) // block.values].reshape(shape[0], -1)
            file.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType[GGUF_KIND])
        else:
            file.add_tensor(name, plain[:math.prod(shape)].reshape(shape))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    to_disk(path)


def noisy_blocks(count: int) -> numpy.ndarray:
    """Random blocks (count, bytes) whose two scales are a number and not NaN."""
    blocks = numpy.random.default_rng(0).integers(0, 256, (count, pack_gguf.BLOCKS[GGUF_KIND].bytes), dtype=numpy.uint8)
    blocks[:, :4] = numpy.full(2, GGUF_SCALE, numpy.float16).view(numpy.uint8)
    return blocks


def to_disk(path: Path) -> None:
    """Pages that are not yet on the disk cannot be dropped from the cache."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())
