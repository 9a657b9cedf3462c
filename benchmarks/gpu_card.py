"""A graphics card: its rates, the clock on it, and what is written down of a measurement."""
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from bootstrap import ROOT  # noqa: F401  first, it makes the pack importable

from qwen_image_2.model.qwen_image_2.spec import TransformerSpec, VAESpec

MIN_ROUNDS, ROUNDS, ROUND_SECONDS = 3, 10, 4.0


class Setup(NamedTuple):
    spec: TransformerSpec
    vae: VAESpec
    sides: tuple[int, ...]  # of the pictures, pixels
    text_tokens: int
    product: int            # side of the matrices, and MiB of the copies, that the card's rates are measured with
    attention_tokens: tuple[int, ...]


@dataclass
class Measurement:
    what: str
    kind: str
    side: int
    references: int
    share: float             # of the weights that stays on the card
    milliseconds: float
    peak: int                # bytes on the card, 0 on a CPU
    floor: float             # milliseconds
    transfer: float = 0.0    # milliseconds that copying the streamed weights takes alone
    theirs: float | None = None  # diffusers' step, milliseconds
    error: float | None = None   # difference to the form beside it, as a share of its norm
    goal: float | None = None    # milliseconds

    @property
    def met(self) -> bool | None:
        return None if self.goal is None else self.milliseconds <= self.goal


class Card(NamedTuple):
    name: str
    products: dict[str, float]  # FLOP/s of a matrix product by format
    upload: float               # bytes/s from pinned RAM
    memory: float               # bytes/s read and written


def measure_card(device: torch.device, side: int) -> Card:
    def seconds(way: Callable[[], object]) -> float:
        return milliseconds(way, device)[0] / 1000

    square = torch.randn(side, side, device=device)
    half, one = square.bfloat16(), torch.ones((), device=device)
    ways = {"bf16": lambda: half @ half}
    if device.type == "cuda":
        integers = (16 * square).to(torch.int8)
        ways["int8 (ConvRot)"] = lambda: torch._int_mm(integers, integers.t())
        if torch.cuda.get_device_capability(device) >= (8, 9):
            eighth = square.to(torch.float8_e4m3fn)
            ways["fp8"] = lambda: torch._scaled_mm(eighth, eighth.t(), one, one, out_dtype=torch.bfloat16)
    products = {name: 2 * side ** 3 / seconds(way) for name, way in ways.items()}
    size = side * 2**17
    here = torch.empty(size, dtype=torch.uint8, device=device)
    there = torch.zeros(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    upload = size / seconds(lambda: here.copy_(there, non_blocking=True))
    other = torch.empty_like(here)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no graphics card"
    return Card(name, products, upload, 2 * size / seconds(lambda: other.copy_(here)))


def milliseconds(way: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """Median of some rounds after two that are not timed, and the peak of memory on the card."""
    for _ in range(2):
        way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    costs, begin = [], time.perf_counter()
    while len(costs) < MIN_ROUNDS or (len(costs) < ROUNDS and time.perf_counter() - begin < ROUND_SECONDS):
        start = time.perf_counter()
        way()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        costs.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return 1000 * statistics.median(costs), peak
