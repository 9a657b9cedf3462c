"""The RGBA autoencoder of Qwen-Image 2.x: images of any size in little memory.

The mid-block, which sees everything, works on the whole latent; all other levels work in rows (runtime/vae_rows.py).
"""
import torch
from torch import Tensor, nn

from ..runtime import vae_rows
from ..runtime.operations import Factory, Operations
from .spec import VAESpec
from .vae_layers import Decoder, Encoder
from .vae_rows import down_block, up_block

# Of one chunk of rows. At the published widths it takes about eight of them to decode; smaller ones would compute
# more rows twice.
CHUNK_BYTES = 64 * 2**20


class VAE(nn.Module):
    """Pixels are RGBA (B, 4, 16h, 16w) in [-1, 1]; latents (B, 64, h, w) are on the VAE's own scale (latents.py).

    fp16 is not offered: the decoder overflows it and leaves white squares (stable-diffusion.cpp issue 2043).
    """

    def __init__(self, spec: VAESpec, ops: Operations = nn, device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None):
        super().__init__()
        factory = Factory(device=device, dtype=dtype)
        self.spec = spec
        self.encoder = Encoder(spec, ops, **factory)
        self.quant_conv = ops.Conv2d(2 * spec.latent_channels, 2 * spec.latent_channels, 1, **factory)
        self.post_quant_conv = ops.Conv2d(spec.latent_channels, spec.latent_channels, 1, **factory)
        self.decoder = Decoder(spec, ops, **factory)

    def encode(self, pixels: Tensor, chunk_bytes: int = CHUNK_BYTES) -> Tensor:
        """The mode of the posterior: its mean, the first half of the moments."""
        vae_rows.check_sides(pixels, self.spec.scale)
        encoder, height = self.encoder, pixels.shape[2]
        # The image itself is narrow: its chunks are counted in the width of the level that they enter.
        narrow = chunk_bytes * self.spec.pixel_channels // encoder.conv_in.out_channels
        rows = vae_rows.convolution(encoder.conv_in, vae_rows.rechunk(iter([pixels]), narrow), height)
        for block in encoder.down_blocks:
            rows = down_block(block, rows, height, chunk_bytes)
            height //= 1 if block.downsampler is None else 2
        return self.quant_conv(encoder.out(torch.cat(list(rows), dim=2)))[:, :self.spec.latent_channels]

    def decode(self, latent: Tensor, chunk_bytes: int = CHUNK_BYTES, clamped: bool = True) -> Tensor:
        decoder = self.decoder
        batch, _, height, width = latent.shape
        image = latent.new_empty(batch, self.spec.pixel_channels, height * self.spec.scale, width * self.spec.scale)
        rows = iter([decoder.into(self.post_quant_conv(latent))])
        for block in decoder.up_blocks:
            rows = up_block(block, rows, height, chunk_bytes)
            height *= 1 if block.upsampler is None else 2
        rows = vae_rows.convolution(decoder.conv_out, rows, height, join=decoder.norm_out.silu)
        top = 0
        for chunk in rows:
            image[:, :, top:top + chunk.shape[2]] = chunk.clamp(-1, 1) if clamped else chunk
            top += chunk.shape[2]
        return image
