"""The control network of Qwen-Image 2.1 beside a MODEL: loaded, applied, and turned into channels when a run begins.

ComfyUI loads it with the MODEL it is applied to, as an additional model. What it is shown waits as a picture until a
run knows its canvas; then the VAE encodes it, before any weight of the transformer moves.
"""
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from torch import Tensor, nn

from ...messages import Message, Refusal
from ...model.checkpoints import loading
from ...model.checkpoints.files import open_checkpoint
from ...model.checkpoints.quantization import QuantConfig
from ...model.qwen_image_2 import control as channels
from ...model.qwen_image_2 import latents
from ...model.qwen_image_2.control import Control, Controlling
from ...model.qwen_image_2.detect import detect_control
from ...model.qwen_image_2.spec import ControlSpec
from .adapters.places import Place
from .keys import FAMILY_2
from .pack_model import is_ours
from .progress import loading_progress
from .quant import formats
from .runtime.budget import BudgetedModel, BudgetPatcher
from .runtime.kernels import kernels_for

ATTACHMENT = "qwen_image_2_controls"  # of a MODEL: its AppliedControls, and ComfyUI's name for the models they bring
MAX_STRENGTH = 2.0


class ControlModel(BudgetedModel, nn.Module):
    """What ComfyUI's patcher holds: a network whose blocks stream where they have no room."""

    def __init__(self, network: Control):
        super().__init__()
        self.diffusion_model = network

    def place_of(self, key: str) -> Place:
        return Place(key)


@dataclass(frozen=True)
class LoadedControl:
    """What Load Control gives: a patcher around the network, with all the room that ComfyUI finds."""

    patcher: BudgetPatcher
    label: str

    @property
    def network(self) -> Control:
        return self.patcher.model.diffusion_model

    @property
    def spec(self) -> ControlSpec:
        return self.network.spec


@dataclass(frozen=True)
class AppliedControl:
    """One use of a control network. start, end: shares of the schedule between which it is in force."""

    control: LoadedControl
    vae: object
    image: Tensor | None            # control picture, IMAGE
    mask: Tensor | None             # MASK, 1 is to be painted anew
    source: Tensor | None           # IMAGE that the mask belongs to
    strength: float
    start: float
    end: float
    reference_rows: bool


@dataclass(frozen=True)
class PreparedControl:
    """The same for a run: channels (B or 1, 129, h, w), and the sigmas between which it is in force, both included."""

    controlling: Controlling
    start_sigma: float
    end_sigma: float
    reference_rows: bool

    def release_buffers(self) -> None:
        if (streamer := self.controlling.network.streamer) is not None:
            streamer.release()

    def of_tiles(self, boxes: Sequence[tuple[slice, slice]]) -> "PreparedControl":
        """The same for tiles: rows and columns of each, in latents."""
        channels = torch.cat([self.controlling.channels[..., rows, columns] for rows, columns in boxes])
        return replace(self, controlling=replace(self.controlling, channels=channels))

    def is_in_force(self, sigma: float) -> bool:
        return self.end_sigma <= sigma <= self.start_sigma


# ---------------------------------------------------------------- loading

def load_control(path: Path, label: str) -> LoadedControl:
    """A control file -> LoadedControl. Raises CheckpointError for another file, and for one that holds NaN."""
    checkpoint = open_checkpoint(path, label)
    detected = detect_control(checkpoint)
    checkpoint = checkpoint.only(detected.tensors)
    device = comfy.model_management.get_torch_device()
    formats.check_device(checkpoint, detected.quantization, device)
    unscaled = formats.without_input_scale(detected.quantization, detected, checkpoint)
    detected = replace(detected, quantization=formats.in_full_precision(detected.quantization, unscaled))
    dtype = loading.stored_dtype(checkpoint.tensors)
    operations = _operations(detected.quantization, dtype, device)
    network = Control(detected.spec, operations, kernels_for(device), dtype=dtype,
                      device=torch.device("cpu" if detected.quantization else "meta"))
    loading.load(network, detected, checkpoint, dtype, loading_progress(len(detected.table)))
    comfy.model_management.archive_model_dtypes(network)
    # Never ComfyUI's dynamic patcher: blocks of a chain have their turn, and a budget may divide the room.
    patcher = comfy.model_patcher.ModelPatcher(ControlModel(network), load_device=device,
                                               offload_device=comfy.model_management.unet_offload_device())
    return LoadedControl(BudgetPatcher.of(patcher, math.inf), label)


def _operations(quantized: QuantConfig, dtype: torch.dtype, device: torch.device) -> type:
    """ComfyUI's layers, which bring weights to the device and to what the transformer computes in; quantized ones
    multiply as the transformer's do."""
    if not quantized:
        return comfy.ops.manual_cast
    return formats.decoding(comfy.ops.mixed_precision_ops({}, dtype), formats.without_arithmetic(device))


# ---------------------------------------------------------------- applying

def apply_control(model, applied: AppliedControl):
    """A clone of the MODEL with one more control. Raises Refusal where it cannot work."""
    if not is_ours(model) or model.model.family != FAMILY_2:
        raise Refusal("control_family", "The control network {file} belongs to Qwen-Image-2.1, but this MODEL is "
                      "another. ControlNets of Qwen-Image 1.x are applied with ComfyUI's Apply ControlNet.",
                      file=applied.control.label)
    spec, base = applied.control.spec, model.model.spec
    sizes = [(each.dim, each.heads, each.head_dim) for each in (spec.base, base)]
    if sizes[0] != sizes[1] or base.layers < spec.blocks:
        raise Refusal("control_size", "The control network {file} was made for a transformer of width {width}; this "
                      "MODEL has width {found} and {layers} blocks. Choose the control network of this model.",
                      file=applied.control.label, width=spec.base.dim, found=base.dim, layers=base.layers)
    if not base.causal_condition:
        raise Refusal("control_condition", "This checkpoint has causal_condition = false, which the control network of "
                      "Qwen-Image-2.1 was not made for.")
    clone = model.clone()
    every = [*controls_of(model), applied]
    clone.set_attachments(ATTACHMENT, every)
    patchers = dict.fromkeys(each.control.patcher for each in every)
    clone.set_additional_models(ATTACHMENT, [patcher.clone() for patcher in patchers])
    if isinstance(clone, BudgetPatcher):
        clone.check()
        clone.divide()
    return clone


def controls_of(model) -> Sequence[AppliedControl]:
    return model.get_attachment(ATTACHMENT) or ()


# ---------------------------------------------------------------- a run

def prepare(model, noise: Tensor) -> tuple[PreparedControl, ...]:
    """The controls of a MODEL for noise (B, 64, h, w). Raises Refusal for a batch that does not fit."""
    to_sigma: Callable[[float], float] = model.get_model_object("model_sampling").percent_to_sigma
    return tuple(PreparedControl(
        Controlling(each.control.network, _channels(each, noise).to(model.load_device), each.strength),
        float(to_sigma(each.start)), float(to_sigma(each.end)), each.reference_rows)
        for each in controls_of(model) if each.strength)


def _channels(applied: AppliedControl, noise: Tensor) -> Tensor:
    """The 129 channels for this canvas (B or 1, 129, h, w)."""
    images, (height, width) = len(noise), noise.shape[-2:]
    canvas = (width * channels.CELL, height * channels.CELL)
    for name, batch in (("image", applied.image), ("mask", applied.mask), ("inpaint_image", applied.source)):
        if batch is not None and len(batch) not in (1, images):
            raise Refusal("control_batch", "The control's {input} is a batch of {count} for {images} images. It must "
                          "hold one for all images or one per image.", input=name, count=len(batch), images=images)
    shown = None if applied.image is None else _encoded(applied, channels.to_canvas(applied.image, *canvas))
    anew = None if applied.mask is None else channels.regenerated(applied.mask.float(), *canvas)
    source = None
    if applied.source is not None and anew is not None:
        picture, anew = _as_many(channels.to_canvas(applied.source, *canvas), anew)
        source = _encoded(applied, channels.masked_source(picture, anew))
    keep = None if anew is None else channels.kept(anew)
    return channels.channels_of(*(each if each is None else each.cpu().float() for each in (shown, keep, source)))


def _as_many(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    count = max(len(first), len(second))
    return (first.expand(count, *first.shape[1:]), second.expand(count, *second.shape[1:]))


def _encoded(applied: AppliedControl, picture: Tensor) -> Tensor:
    """Normalized latents of opaque pictures (B, H, W, 3 or 4)."""
    rgba = picture if picture.shape[-1] == 4 else torch.cat([picture, torch.ones_like(picture[..., :1])], dim=-1)
    return latents.normalize(applied.vae.encode(rgba))


def in_words(applied: AppliedControl) -> Message:
    return Message("control_applied", "{file}: strength {strength}, from {start} % to {end} % of the steps.",
                   file=applied.control.label, strength=f"{applied.strength:g}", start=f"{100 * applied.start:.0f}",
                   end=f"{100 * applied.end:.0f}")
