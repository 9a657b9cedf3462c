"""The RGBA autoencoder as ComfyUI's VAE. Core's VAEDecode, VAEEncode and their tiled forms work on it."""
import copy
import logging
import math
from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ...model import checkpoint, latents
from ...model.checkpoint import Detected
from ...model.files import CheckpointFiles, open_checkpoint
from ...model.vae import CHUNK_BYTES, VAE
from .progress import loading_progress

log = logging.getLogger(__name__)

# Counted in tests/model/test_vae_memory.py: a picture that fits into one chunk of rows takes up to 1730 values per
# pixel; a larger one takes about twenty chunks, and per pixel what the mid-block and the picture itself need.
SMALL_VALUES_PER_PIXEL, LARGE_VALUES_PER_PIXEL, CHUNKS = 1730, 50, 24
# However small a chunk is wished, it has some rows: what they take at the least, per column of pixels.
VALUES_PER_COLUMN = 130_000


class AutoEncoder(VAE):
    """Latents leave and enter on the published scale, whatever scale this checkpoint was trained with."""

    peak: int | None = None  # bytes that a picture may take, see chunk_for

    def encode(self, pixels: Tensor) -> Tensor:
        latent = self._each(super().encode, pixels, *pixels.shape[-2:])
        if self._published:
            return latent
        return latents.denormalise(latents.normalise(latent, self.spec.latent_mean, self.spec.latent_std))

    def decode(self, latent: Tensor) -> Tensor:
        if not self._published:
            latent = latents.denormalise(latents.normalise(latent), self.spec.latent_mean, self.spec.latent_std)
        height, width = (side * self.spec.scale for side in latent.shape[-2:])
        return self._each(super().decode, latent, height, width)

    def _each(self, work: Callable[..., Tensor], batch: Tensor, height: int, width: int) -> Tensor:
        """Under a peak one picture after the other, in chunks of rows that keep to it."""
        if self.peak is None:
            return work(batch)
        chunk = chunk_for(self.peak, height, width, batch.dtype)
        return torch.cat([work(one, chunk) for one in batch.split(1)])

    def decode_tiled(self, latent: Tensor, tile_x: int = 64, tile_y: int = 64, overlap: int = 16, **_) -> Tensor:
        """Blended tiles of tile_x x tile_y latents. (Core's own loop assumes three output channels.)"""
        return comfy.utils.tiled_scale_multidim(
            latent, self.decode, tile=(tile_y, tile_x), overlap=overlap, upscale_amount=self.spec.scale,
            out_channels=self.spec.pixel_channels, output_device=comfy.model_management.intermediate_device())

    @property
    def _published(self) -> bool:
        return (self.spec.latent_mean, self.spec.latent_std) == (latents.LATENT_MEAN, latents.LATENT_STD)


class QwenImage2VAE(comfy.sd.VAE):
    def __init__(self, files: CheckpointFiles, detected: Detected, disable_dynamic: bool = False):
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
        self._expect(None)
        self.first_stage_model = AutoEncoder(spec, comfy.ops.disable_weight_init, device="meta", dtype=self.vae_dtype)
        checkpoint.load(self.first_stage_model, detected, files, self.vae_dtype,
                        loading_progress(len(detected.shapes)))
        comfy.model_management.archive_model_dtypes(self.first_stage_model)
        patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
        self.patcher = patcher_class(
            self.first_stage_model, load_device=self.device,
            offload_device=comfy.model_management.vae_offload_device())
        self.size = None
        self.model_size()

    def with_peak(self, peak: int | None) -> "QwenImage2VAE":
        """This VAE, whose pictures may take so many bytes beside its weights. None: the standard chunks."""
        limited = copy.copy(self)
        limited._expect(peak)
        return limited

    def _expect(self, peak: int | None) -> None:
        scale = self.upscale_ratio
        self.peak = peak
        self.memory_used_decode = lambda shape, dtype: peak or memory_used(shape[2] * shape[3] * scale ** 2, dtype)
        self.memory_used_encode = lambda shape, dtype: peak or memory_used(shape[2] * shape[3], dtype)

    def decode(self, *args, **kwargs):
        self.first_stage_model.peak = self.peak  # which VAEs of one file share
        return super().decode(*args, **kwargs)

    def encode(self, *args, **kwargs):
        self.first_stage_model.peak = self.peak
        return super().encode(*args, **kwargs)

    @property
    def largest_side(self) -> int:
        """Pixels of the largest square picture that keeps to the peak."""
        values = self.peak / comfy.model_management.dtype_size(self.vae_dtype)
        row = VALUES_PER_COLUMN / LARGE_VALUES_PER_PIXEL
        side = math.sqrt(row ** 2 / 4 + values / LARGE_VALUES_PER_PIXEL) - row / 2
        return int(side) // self.upscale_ratio * self.upscale_ratio


def memory_used(pixels: int, dtype: torch.dtype) -> int:
    """Bytes beside the weights to decode a picture of so many pixels; encoding takes less."""
    element = comfy.model_management.dtype_size(dtype)
    return min(pixels * SMALL_VALUES_PER_PIXEL * element,
               pixels * LARGE_VALUES_PER_PIXEL * element + CHUNKS * CHUNK_BYTES)


def chunk_for(peak: int, height: int, width: int, dtype: torch.dtype) -> int:
    """Bytes of a chunk of rows with which a picture takes at most `peak` bytes. Raises ValueError where none does."""
    element = comfy.model_management.dtype_size(dtype)
    picture = height * width * LARGE_VALUES_PER_PIXEL * element
    least = picture + width * VALUES_PER_COLUMN * element
    if peak < least:
        raise ValueError(f"A picture of {width} x {height} pixels takes the VAE at least {least / 2**30:.2f} GiB, but "
                         f"vae_peak of QwenImage2Memory is {peak / 2**30:.2f} GiB: raise it, or set it to 0.")
    return (peak - picture) // CHUNKS


def working_dtype(device: torch.device, working_dtypes: list[torch.dtype]) -> torch.dtype:
    """ComfyUI's choice for the device, but never fp16."""
    dtype = comfy.model_management.vae_dtype(device, working_dtypes)
    if dtype != torch.float16:
        return dtype
    log.warning("The VAE of Qwen-Image 2 overflows in fp16 (white squares): it runs in fp32 instead.")
    return torch.float32


def open_vae(path: Path, label: str) -> tuple[CheckpointFiles, Detected]:
    """What the file is, without reading a tensor."""
    files = open_checkpoint(path, label)
    return files, checkpoint.detect_vae(files.tensors, files.config, label)


def load_vae(path: Path, label: str, disable_dynamic: bool = False) -> QwenImage2VAE:
    """A VAE checkpoint, file or folder -> VAE."""
    vae = QwenImage2VAE(*open_vae(path, label), disable_dynamic)
    vae.patcher.cached_patcher_init = (load_vae_patcher, (path, label))
    return vae


def load_vae_patcher(path: Path, label: str, disable_dynamic: bool = False):
    """How ComfyUI loads a second copy for another device."""
    return load_vae(path, label, disable_dynamic).patcher
