"""The RGBA autoencoder as ComfyUI's VAE. Core's VAEDecode, VAEEncode and their tiled forms work on it."""
import copy
import logging
from collections.abc import Callable
from pathlib import Path

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
from ...model.qwen_image_2 import latents, vae_memory
from ...model.qwen_image_2.detect import detect_vae
from ...model.qwen_image_2.spec import VAESpec
from ...model.qwen_image_2.vae import VAE
from . import saving
from .progress import loading_progress

log = logging.getLogger(__name__)


class AutoEncoder(VAE):
    """Latents leave and enter on the published scale, whatever scale this checkpoint was trained with."""

    peak: int | None = None  # bytes that an image may take, see vae_memory.py

    def encode(self, pixels: Tensor) -> Tensor:
        latent = self._each(super().encode, pixels, *pixels.shape[-2:])
        if self._published:
            return latent
        return latents.denormalize(latents.normalize(latent, self.spec.latent_mean, self.spec.latent_std))

    def decode(self, latent: Tensor) -> Tensor:
        if not self._published:
            latent = latents.denormalize(latents.normalize(latent), self.spec.latent_mean, self.spec.latent_std)
        height, width = (side * self.spec.scale for side in latent.shape[-2:])
        return self._each(super().decode, latent, height, width)

    def _each(self, work: Callable[..., Tensor], batch: Tensor, height: int, width: int) -> Tensor:
        """Under a peak one image after the other, in chunks of rows that keep to it."""
        if self.peak is None:
            return work(batch)
        chunk = vae_memory.chunk_for(self.peak, height, width, batch.element_size(), vae_memory.summed(self.decoder))
        return torch.cat([work(one, chunk) for one in batch.split(1)])

    def decode_tiled(self, latent: Tensor, tile_x: int = 64, tile_y: int = 64, overlap: int = 16, **_) -> Tensor:
        """Blended tiles of tile_x x tile_y latents. (Core's own loop assumes three output channels.)"""
        return comfy.utils.tiled_scale_multidim(
            latent, self.decode, tile=(tile_y, tile_x), overlap=overlap, upscale_amount=self.spec.scale,
            out_channels=self.spec.pixel_channels, output_device=comfy.model_management.intermediate_device())

    @property
    def _published(self) -> bool:
        return (self.spec.latent_mean, self.spec.latent_std) == (latents.LATENT_MEAN, latents.LATENT_STD)


def _keeping_to_peak(name: str) -> Callable:
    """A method of core's VAE during which the network, which VAEs of one file share, keeps to this VAE's peak."""
    def method(self, *args, **kwargs):
        network = self.first_stage_model
        before, network.peak = network.peak, self.peak
        try:
            return getattr(super(QwenImage2VAE, self), name)(*args, **kwargs)
        finally:
            network.peak = before
    return method


class QwenImage2VAE(comfy.sd.VAE):
    def __init__(self, checkpoint: StoredCheckpoint, detected: Detected[VAESpec], disable_dynamic: bool = False):
        # Core's constructor knows VAEs by their names. Its pixel-space branch is the lightest that sets every
        # attribute the other methods read; what matters is replaced below.
        super().__init__(sd={"pixel_space_vae": torch.tensor(1.0)})
        spec = detected.spec
        self.upscale_ratio = self.downscale_ratio = spec.scale
        self.latent_channels = spec.latent_channels
        self.output_channels = spec.pixel_channels
        self.pad_channel_value = 1.0  # RGB input is opaque
        self.handles_tiling = True
        self.disable_offload = False
        self.working_dtypes = [torch.bfloat16, torch.float32]
        self.vae_dtype = working_dtype(self.device, self.working_dtypes)
        self._set_memory_estimates(None)
        self.first_stage_model = AutoEncoder(spec, comfy.ops.disable_weight_init, device="meta", dtype=self.vae_dtype)
        loading.load(self.first_stage_model, detected, checkpoint, self.vae_dtype,
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
        def needed(pixels: int, dtype: torch.dtype) -> int:
            return peak or vae_memory.expected(pixels, comfy.model_management.dtype_size(dtype))

        scale = self.upscale_ratio
        self.peak = peak
        self.memory_used_decode = lambda shape, dtype: needed(shape[2] * shape[3] * scale ** 2, dtype)
        self.memory_used_encode = lambda shape, dtype: needed(shape[2] * shape[3], dtype)

    decode, encode = _keeping_to_peak("decode"), _keeping_to_peak("encode")
    decode_tiled, encode_tiled = _keeping_to_peak("decode_tiled"), _keeping_to_peak("encode_tiled")

    @property
    def largest_side(self) -> int:
        """Pixels of the largest square image that keeps to the peak."""
        side = vae_memory.largest_side(self.peak, comfy.model_management.dtype_size(self.vae_dtype),
                                       vae_memory.summed(self.first_stage_model.decoder))
        return int(side) // self.upscale_ratio * self.upscale_ratio


def working_dtype(device: torch.device, working_dtypes: list[torch.dtype]) -> torch.dtype:
    """ComfyUI's choice for the device, but never fp16."""
    dtype = comfy.model_management.vae_dtype(device, working_dtypes)
    if dtype != torch.float16:
        return dtype
    log.warning("The VAE of Qwen-Image 2 overflows in fp16 (white squares): it runs in fp32 instead.")
    return torch.float32


def open_vae(path: Path, label: str) -> tuple[StoredCheckpoint, Detected[VAESpec]]:
    """What the file is, without reading a tensor."""
    checkpoint = open_checkpoint(path, label)
    return checkpoint, detect_vae(checkpoint)


def load_vae(path: Path, label: str, disable_dynamic: bool = False) -> QwenImage2VAE:
    """A VAE checkpoint, file or folder -> VAE."""
    vae = QwenImage2VAE(*open_vae(path, label), disable_dynamic)
    vae.patcher.cached_patcher_init = (load_vae_patcher, (path, label))
    return vae


def load_vae_patcher(path: Path, label: str, disable_dynamic: bool = False):
    """How ComfyUI loads a second copy for another device."""
    return load_vae(path, label, disable_dynamic).patcher
