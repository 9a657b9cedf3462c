"""The autoencoder of either family as ComfyUI's VAE. Core's VAEDecode, VAEEncode and their tiled forms work on it."""
import copy
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import comfy.ldm.wan.vae
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ...model.checkpoints import loading
from ...model.checkpoints.checkpoint import StoredCheckpoint
from ...model.checkpoints.files import open_checkpoint
from ...model.checkpoints.matching import Detected
from ...model.qwen_image_1 import detect as detect_1
from ...model.qwen_image_1 import latents as latents_1
from ...model.qwen_image_1 import spec as spec_1
from ...model.qwen_image_1 import vae as vae_1
from ...model.qwen_image_1 import vae_memory as memory_1
from ...model.qwen_image_2 import detect as detect_2
from ...model.qwen_image_2 import latents as latents_2
from ...model.qwen_image_2 import spec as spec_2
from ...model.qwen_image_2 import vae as vae_2
from ...model.qwen_image_2 import vae_memory as memory_2
from ...model.runtime import latent_scale, vae_memory
from . import saving
from .keys import FAMILY_1, FAMILY_2
from .progress import loading_progress
from .slices import sliced

log = logging.getLogger(__name__)

VAESpec = spec_1.VAESpec | spec_2.VAESpec


class AutoEncoder:
    """Above the network of a family. Latents leave and enter on the published scale, whatever scale this checkpoint
    was trained with."""

    family: ClassVar[str]
    published: ClassVar[tuple[Sequence[float], Sequence[float]]]  # means and deviations
    memory: ClassVar[vae_memory.VAEMemory]
    peak: int | None = None  # bytes that an image may take, see runtime/vae_memory.py

    def encode(self, pixels: Tensor) -> Tensor:
        latent = self._each(super().encode, pixels, *pixels.shape[-2:])
        if self._own == self.published:
            return latent
        return latent_scale.denormalize(latent_scale.normalize(latent, *self._own), *self.published)

    def decode(self, latent: Tensor, clamped: bool = True) -> Tensor:
        if self._own != self.published:
            latent = latent_scale.denormalize(latent_scale.normalize(latent, *self.published), *self._own)
        height, width = (side * self.spec.scale for side in latent.shape[-2:])
        return self._each(functools.partial(super().decode, clamped=clamped), latent, height, width)

    def _each(self, work: Callable[..., Tensor], batch: Tensor, height: int, width: int) -> Tensor:
        """Under a peak one image after the other, in chunks of rows that keep to it."""
        if self.peak is None:
            return work(batch)
        chunk = self.memory.chunk_for(self.peak, height, width, batch.element_size(), vae_memory.summed(self.decoder))
        return torch.cat([work(one, chunk) for one in batch.split(1)])

    def decode_tiled(self, latent: Tensor, tile_x: int = 64, tile_y: int = 64, overlap: int = 16, **_) -> Tensor:
        """Blended tiles of tile_x x tile_y latents; ComfyUI clamps what comes of them. (Core's own loop assumes three
        output channels.)"""
        return comfy.utils.tiled_scale_multidim(
            latent, functools.partial(self.decode, clamped=False), tile=(tile_y, tile_x), overlap=overlap,
            upscale_amount=self.spec.scale,
            out_channels=self.spec.pixel_channels, output_device=comfy.model_management.intermediate_device())

    @property
    def _own(self) -> tuple[Sequence[float], Sequence[float]]:
        return self.spec.latent_mean, self.spec.latent_std


class AutoEncoder1(AutoEncoder, vae_1.VAE):
    family = FAMILY_1
    published = latents_1.LATENT_MEAN, latents_1.LATENT_STD
    memory = memory_1.MEMORY
    working_dtypes = (torch.bfloat16, torch.float16, torch.float32)  # core's, whose first one is right


class AutoEncoder2(AutoEncoder, vae_2.VAE):
    family = FAMILY_2
    published = latents_2.LATENT_MEAN, latents_2.LATENT_STD
    memory = memory_2.MEMORY
    working_dtypes = (torch.bfloat16, torch.float32)


NETWORKS = {spec_1.VAESpec: AutoEncoder1, spec_2.VAESpec: AutoEncoder2}


class QwenImage2VAE(comfy.sd.VAE):
    def __init__(self, checkpoint: StoredCheckpoint, detected: Detected[VAESpec], device: torch.device | None = None,
                 disable_dynamic: bool = False):
        # Core's constructor knows VAEs by their names. Its pixel-space branch is the lightest that sets every
        # attribute the other methods read; what matters is replaced below.
        super().__init__(sd={"pixel_space_vae": torch.tensor(1.0)}, device=device)
        spec, network = detected.spec, NETWORKS[type(detected.spec)]
        self.spec, self.family = spec, network.family
        self.upscale_ratio = self.downscale_ratio = spec.scale
        self.latent_channels = spec.latent_channels
        self.output_channels = spec.pixel_channels
        self.pad_channel_value = 1.0  # RGB input is opaque
        self.handles_tiling = True
        self.disable_offload = False
        self.working_dtypes = list(network.working_dtypes)
        self.vae_dtype = working_dtype(self.device, self.working_dtypes)
        self.first_stage_model = network(spec, comfy.ops.disable_weight_init, device="meta", dtype=self.vae_dtype)
        self._set_memory_estimates(None)
        dynamic = not disable_dynamic and self.device.type != "cpu"
        loading.load(self.first_stage_model, detected, sliced(checkpoint, dynamic), self.vae_dtype,
                     loading_progress(len(detected.shapes)))
        comfy.model_management.archive_model_dtypes(self.first_stage_model)
        patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
        self.patcher = patcher_class(
            self.first_stage_model, load_device=self.device,
            offload_device=comfy.model_management.vae_offload_device())
        self.needed_config, self.label = detected.config, checkpoint.label
        self.size = None
        self.model_size()

    def get_sd(self) -> dict[str, Tensor]:
        """For core's VAESave and CheckpointSave."""
        return super().get_sd() | saving.beside_weights(self.first_stage_model, self.needed_config, self.label)

    def with_peak(self, peak: int | None) -> "QwenImage2VAE":
        """This VAE, whose images may take so many bytes beside its weights. None: the standard chunks."""
        limited = copy.copy(self)
        limited._set_memory_estimates(peak)
        return limited

    def _set_memory_estimates(self, peak: int | None) -> None:
        memory = self.first_stage_model.memory

        def needed(pixels: int, dtype: torch.dtype) -> int:
            return peak or memory.expected(pixels, comfy.model_management.dtype_size(dtype))

        scale = self.upscale_ratio
        self.peak = peak
        self.memory_used_decode = lambda shape, dtype: needed(shape[2] * shape[3] * scale ** 2, dtype)
        self.memory_used_encode = lambda shape, dtype: needed(shape[2] * shape[3], dtype)

    @contextmanager
    def _keeping_to_peak(self) -> Iterator[None]:
        """The network, which VAEs of one file share, keeps to this VAE's peak meanwhile."""
        network = self.first_stage_model
        before, network.peak = network.peak, self.peak
        try:
            yield
        finally:
            network.peak = before

    def decode(self, samples_in: Tensor, *args, **kwargs) -> Tensor:
        """Latents (B, C, h, w) or (B, C, T, h, w) -> IMAGE (B * T, H, W, C)."""
        with self._keeping_to_peak():
            return super().decode(images_of(samples_in), *args, **kwargs)

    def decode_tiled(self, samples: Tensor, *args, **kwargs) -> Tensor:
        with self._keeping_to_peak():
            return super().decode_tiled(images_of(samples), *args, **kwargs)

    def encode(self, pixel_samples: Tensor) -> Tensor:
        """IMAGE (B, H, W, C) -> latents as core's nodes for the family have them: (B, 64, h, w), (B, 16, 1, h, w)."""
        with self._keeping_to_peak():
            return self._with_frames(super().encode(pixel_samples))

    def encode_tiled(self, pixel_samples: Tensor, *args, **kwargs) -> Tensor:
        with self._keeping_to_peak():
            return self._with_frames(super().encode_tiled(pixel_samples, *args, **kwargs))

    def _with_frames(self, latent: Tensor) -> Tensor:
        return latent.unsqueeze(2) if self.family == FAMILY_1 else latent

    @property
    def largest_side(self) -> int:
        """Pixels of the largest square image that keeps to the peak."""
        network = self.first_stage_model
        side = network.memory.largest_side(self.peak, comfy.model_management.dtype_size(self.vae_dtype),
                                           vae_memory.summed(network.decoder))
        return int(side) // self.upscale_ratio * self.upscale_ratio


def working_dtype(device: torch.device, working_dtypes: list[torch.dtype]) -> torch.dtype:
    """ComfyUI's choice for the device, where it is one of these; fp16 may not be, and may have been asked for."""
    dtype = comfy.model_management.vae_dtype(device, working_dtypes)
    if dtype in working_dtypes:
        return dtype
    log.warning("The VAE of Qwen-Image 2 overflows in fp16 (white squares): it runs in fp32 instead.")
    return torch.float32


def images_of(latent: Tensor) -> Tensor:
    """Latents (B, C, h, w) or (B, C, T, h, w) -> (B * T, C, h, w). T: the layers of Qwen-Image-Layered, or 1."""
    return latent.movedim(2, 1).flatten(0, 1) if latent.ndim == 5 else latent


def family_of(vae) -> str | None:
    """Whose latents a VAE object makes and decodes; None: of neither family. Core's own loader gives the VAE of
    Qwen-Image 1.x too."""
    if isinstance(vae, QwenImage2VAE):
        return vae.family
    network = getattr(vae, "first_stage_model", None)
    return FAMILY_1 if isinstance(network, comfy.ldm.wan.vae.WanVAE) and vae.latent_channels == 16 else None


def family_of_spec(spec: VAESpec) -> str:
    """FAMILY_1 or FAMILY_2."""
    return NETWORKS[type(spec)].family


def encode_images(vae, images: Tensor) -> Tensor:
    """IMAGE (B, H, W, C) -> latents, one for each. (Core's own VAE takes a batch for a video.)"""
    if isinstance(vae, QwenImage2VAE):
        return vae.encode(images)
    return torch.cat([vae.encode(image) for image in images.split(1)])


def decode_images(vae, latent: Tensor) -> Tensor:
    """Latents (B, C, h, w) or (B, C, T, h, w) -> IMAGE (B * T, H, W, C), one for each."""
    if isinstance(vae, QwenImage2VAE):
        return vae.decode(latent)
    return vae.decode(images_of(latent).unsqueeze(2)).flatten(0, 1)


def open_vae(path: Path, label: str) -> tuple[StoredCheckpoint, Detected[VAESpec]]:
    """What the file is, without reading a tensor; its names say of which family. Raises CheckpointError for one of
    neither."""
    checkpoint = open_checkpoint(path, label)
    detect = detect_1.detect_vae if detect_1.is_vae(checkpoint) else detect_2.detect_vae
    return checkpoint, detect(checkpoint)


def load_vae(path: Path, label: str, device: torch.device | None = None,
             disable_dynamic: bool = False) -> QwenImage2VAE:
    """A VAE checkpoint, file or folder -> VAE. device: to compute on; None: ComfyUI's choice."""
    vae = QwenImage2VAE(*open_vae(path, label), device, disable_dynamic)
    vae.patcher.cached_patcher_init = (load_vae_patcher, (path, label, device))
    return vae


def load_vae_patcher(path: Path, label: str, device: torch.device | None = None, disable_dynamic: bool = False):
    """How ComfyUI loads a second copy for another device."""
    return load_vae(path, label, device, disable_dynamic).patcher
