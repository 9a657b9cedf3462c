"""The Fun ControlNet Union of Qwen-Image 2.1: a chain of blocks beside the transformer's, whose hints are added to it.

Written from the published description and checked against golden tensors of VideoX-Fun and of ComfyUI (see
tests/model/qwen_image_2/control_golden). Names are those of the published file, but for the MLP's fused matrix.

The chain starts from the joint sequence as it enters the transformer and from the control channels, and reads nothing
of the transformer afterwards. Prefix tokens see prefix tokens alone, at t = 0, and control channels stand in the
target's rows: so keys and values of the prefix are computed once for the chain too (prefix_cache.py), whatever the
picture.

Shapes as in transformer.py.
"""
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ..runtime.kernels import TORCH, Kernels
from ..runtime.offload import Streamer
from ..runtime.operations import Factory, ModuleList, Operations
from .blocks import Attend, Block, Modulation
from .spec import ControlSpec


class ControlBlock(Block):
    """A block of the transformer's kind, without a modulation of its own. first: before it stands what joins the
    control channels to the sequence."""

    def __init__(self, spec: ControlSpec, ops: Operations, kernels: Kernels, first: bool, **factory: Unpack[Factory]):
        super().__init__(spec.base, ops, kernels, **factory)
        if first:
            self.before_proj = ops.Linear(spec.base.dim, spec.base.dim, **factory)
        self.after_proj = ops.Linear(spec.base.dim, spec.base.dim, **factory)


class Control(nn.Module):
    """The network. `ops` and `kernels` as the transformer's."""

    def __init__(self, spec: ControlSpec, ops: Operations = nn, kernels: Kernels = TORCH,
                 device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        super().__init__()
        factory = Factory(device=device, dtype=dtype)
        self.spec = spec
        self.control_img_in = ops.Linear(spec.channels, spec.base.dim, **factory)
        self.control_blocks = ModuleList(
            ControlBlock(spec, ops, kernels, number == 0, **factory) for number in range(spec.blocks))
        self.streamer: Streamer[ControlBlock] | None = None  # where not all blocks stay on the device

    @property
    def transformer_blocks(self) -> "ModuleList[ControlBlock]":
        """As the transformer calls its own, for what places blocks."""
        return self.control_blocks

    def blocks_in_turn(self) -> Iterator[ControlBlock]:
        return iter(self.control_blocks) if self.streamer is None else self.streamer.iter_blocks()


class ControlPass:
    """One pass through a network's blocks, each in its turn along the transformer's layers: it may be streaming."""

    def __init__(self, network: Control, layers: int):
        self.network, self.step = network, max(1, layers // network.spec.blocks)
        self._blocks = network.blocks_in_turn()
        self._block = next(self._blocks)  # now, since the chain begins with its projection

    def block_after(self, layer: int) -> ControlBlock | None:
        """The block whose hint is added after this layer of the transformer: the first, and then every second of 32.
        Layers must be asked for in their order."""
        number, rest = divmod(layer, self.step)
        if rest or number >= self.network.spec.blocks:
            if number >= self.network.spec.blocks - 1:
                next(self._blocks, None)  # a pass that is not taken further must hold no block
            return None
        if number:
            self._block = next(self._blocks)
        return self._block

    def begin_prefix(self, x: Tensor, reference_rows: Iterable[slice] = ()) -> Tensor:
        """Where the chain starts in the prefix (P, T, D): no channels stand there. reference_rows: those of references
        that get channels of value zero, as VideoX-Fun gives them, which are not nothing: the input layer has a bias."""
        joint = torch.zeros_like(x)
        for rows in reference_rows:
            joint[:, rows] = self.network.control_img_in(x.new_zeros(1, 1, self.network.spec.channels))
        return self._joined(joint) + x

    def begin_target(self, x: Tensor, channels: Iterable[Tensor]) -> Tensor:
        """Where it starts in the target (B, N, D), for channels (B or 1, 129, h, w) of several controls one after the
        other."""
        joints = (self.network.control_img_in(each.to(x.dtype).flatten(2).transpose(1, 2)) for each in channels)
        return torch.cat([self._joined(joint) + x for joint in joints])

    def _joined(self, joint: Tensor) -> Tensor:
        started: Tensor = self._block.before_proj(joint)
        return started


@dataclass(frozen=True)
class Controlling:
    """One control in force. channels: (B or 1, 129, h, w), see channels_of; strength: of its hints, which add up."""

    network: Control
    channels: Tensor
    strength: float = 1.0


@dataclass(frozen=True)
class PrefixControl:
    """What a prefix knows of the controls in force: a network, and the sum of its controls' strengths."""

    network: Control
    strength: float
    reference_rows: bool = False


def prefix_controls(controls: Sequence[Controlling], reference_rows: bool = False) -> tuple[PrefixControl, ...]:
    """One for each network: in the prefix its controls differ in nothing but strength."""
    strengths: dict[Control, float] = {}
    for control in controls:
        strengths[control.network] = strengths.get(control.network, 0.0) + control.strength
    return tuple(PrefixControl(network, strength, reference_rows) for network, strength in strengths.items())


class TargetChains:
    """The chains of all controls along the target. Those of one network run as one batch, since the keys and values of
    its prefix are read once for a layer."""

    def __init__(self, controls: Sequence[Controlling], x: Tensor, layers: int):
        self.images = len(x)
        self.of: dict[Control, list[Controlling]] = {}
        for control in controls:
            self.of.setdefault(control.network, []).append(control)
        self.passes = {network: ControlPass(network, layers) for network in self.of}
        self.states = {network: self.passes[network].begin_target(x, [each.channels for each in those])
                       for network, those in self.of.items()}

    def after(self, layer: int, x: Tensor, modulation: Modulation, rope: Tensor, attends: Iterator[Attend]) -> Tensor:
        """x after this block of the transformer, with all hints. attends: of the layers that follow in the prefix."""
        for network, those in self.of.items():
            block = self.passes[network].block_after(layer)
            if block is None:
                continue
            state = block(self.states[network], _repeated(modulation, len(those)), rope, next(attends))
            self.states[network] = state
            for control, hint in zip(those, block.after_proj(state).split(self.images), strict=True):
                x = torch.add(x, hint, alpha=control.strength)
        return x


def _repeated(modulation: Modulation, times: int) -> Modulation:
    """For so many batches one after the other."""
    if times == 1:
        return modulation

    def again(value: Any) -> Any:  # kernels may keep a scale in several tensors
        if isinstance(value, tuple):
            return tuple(again(each) for each in value)
        return value if len(value) == 1 else value.repeat(times, *[1] * (value.ndim - 1))
    return Modulation(*(again(value) for value in modulation))


# ---------------------------------------------------------------- channels

CELL = 16  # pixels along a side of a latent


def channels_of(control: Tensor | None, keep: Tensor | None, source: Tensor | None) -> Tensor:
    """Latents of the control picture and of the masked source (B, 64, h, w), normalized, and the keep mask
    (B, 1, h, w) -> (B, 129, h, w). What is missing is zero: no control picture is no black one, no mask keeps nothing.
    """
    given = next(each for each in (control, source, keep) if each is not None)
    batch, _, height, width = given.shape
    control = given.new_zeros(batch, 64, height, width) if control is None else control
    source = given.new_zeros(batch, 64, height, width) if source is None else source
    keep = given.new_zeros(batch, 1, height, width) if keep is None else keep
    longest = max(map(len, (control, keep, source)))
    return torch.cat([each.expand(longest, -1, -1, -1) for each in (control, keep, source)], dim=1)


def to_canvas(image: Tensor, width: int, height: int) -> Tensor:
    """A picture (B, H, W, 3 or 4) stretched to the canvas, RGB (B, height, width, 3): bicubic without antialiasing or
    clamping, as ComfyUI's node does it."""
    pixels = image[..., :3].movedim(-1, 1)
    if pixels.shape[-2:] != (height, width):
        pixels = nn.functional.interpolate(pixels, (height, width), mode="bicubic", align_corners=False)
    return pixels.movedim(1, -1)


def regenerated(mask: Tensor, width: int, height: int) -> Tensor:
    """A mask (B, H, W), 1 is to be painted anew -> 0 and 1 (B, height, width)."""
    mask = mask.unsqueeze(1)
    if mask.shape[-2:] != (height, width):
        mask = nn.functional.interpolate(mask, (height, width), mode="bilinear", align_corners=False)
    return (mask[:, 0] >= 0.5).to(mask.dtype)


def kept(anew: Tensor) -> Tensor:
    """regenerated's (B, height, width) -> the keep mask of the latents (B, 1, h, w), each the top left pixel's."""
    return 1 - anew[:, None, ::CELL, ::CELL]


def masked_source(image: Tensor, anew: Tensor) -> Tensor:
    """A picture on the canvas (B, height, width, 3), grey where it is painted anew, as the VAE takes it: opaque."""
    anew = anew.unsqueeze(-1)
    shown = image * (1 - anew) + 0.5 * anew
    return torch.cat([shown, torch.ones_like(shown[..., :1])], dim=-1)
