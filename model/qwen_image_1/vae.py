"""The autoencoder of Qwen-Image 1.x on single images of any size, in little memory.

All but the attention in the middle works in rows (runtime/vae_rows.py).
"""
import torch
from torch import Tensor, nn

from ..runtime import vae_rows
from ..runtime.operations import Factory, Operations
from ..runtime.vae_layers import ResidualBlock
from ..runtime.vae_rows import Rows, folded_once, rechunk
from .spec import VAESpec
from .vae_layers import Decoder, Encoder, UpBlock

# Of one chunk of rows. At the published widths it takes about sixteen of them to decode; smaller ones would compute
# more rows twice, larger ones would take more than the attention in the middle does.
CHUNK_BYTES = 32 * 2**20


class VAE(nn.Module):
    """Pixels are RGB or RGBA (B, 3 or 4, 8h, 8w) in [-1, 1]; latents (B, 16, h, w) are on the VAE's own scale, that of
    LATENT_MEAN and LATENT_STD (latents.py)."""

    def __init__(self, spec: VAESpec, ops: Operations = nn, device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None):
        super().__init__()
        factory = Factory(device=device, dtype=dtype)
        self.spec = spec
        self.encoder = Encoder(spec, ops, **factory)
        self.quant_conv = ops.Conv2d(2 * spec.latent_channels, 2 * spec.latent_channels, 1, **factory)
        self.post_quant_conv = ops.Conv2d(spec.latent_channels, spec.latent_channels, 1, **factory)
        self.decoder = Decoder(spec, ops, **factory)

    @torch.no_grad()
    def encode(self, pixels: Tensor, chunk_bytes: int = CHUNK_BYTES) -> Tensor:
        """The mode of the posterior: its mean, the first half of the moments."""
        vae_rows.check_sides(pixels, self.spec.scale)
        encoder, height = self.encoder, pixels.shape[2]
        # The image itself is narrow: its chunks are counted in the width of the level that they enter.
        narrow = chunk_bytes * self.spec.pixel_channels // encoder.conv_in.out_channels
        rows = vae_rows.convolution(encoder.conv_in, rechunk(iter([pixels]), narrow), height)
        for block in encoder.down_blocks:
            if isinstance(block, ResidualBlock):
                rows = vae_rows.residual(block, rows, height)
            else:
                pad, layer = block.resample
                rows = rechunk(vae_rows.strided_conv(pad, layer, rows, height), chunk_bytes)
                height //= 2
        rows = vae_rows.mid_block(encoder.mid_block, rows, height, chunk_bytes)
        rows = vae_rows.convolution(encoder.conv_out, rows, height, join=encoder.norm_out.silu)
        return self.quant_conv(torch.cat(list(rows), dim=2))[:, :self.spec.latent_channels]

    @torch.no_grad()
    def decode(self, latent: Tensor, chunk_bytes: int = CHUNK_BYTES, clamped: bool = True) -> Tensor:
        """Pixels, clamped to [-1, 1] as the reference does it; as they are where they are parts of an image."""
        decoder = self.decoder
        batch, _, height, width = latent.shape
        image = latent.new_empty(batch, self.spec.pixel_channels, height * self.spec.scale, width * self.spec.scale)
        rows = vae_rows.convolution(decoder.conv_in, iter([self.post_quant_conv(latent)]), height)
        rows = vae_rows.mid_block(decoder.mid_block, rows, height, chunk_bytes)
        for block in decoder.up_blocks:
            rows = up_block(block, rows, height, chunk_bytes)
            height *= 2 if len(block.upsamplers) else 1
        rows = vae_rows.convolution(decoder.conv_out, rows, height, join=decoder.norm_out.silu)
        top = 0
        for chunk in rows:
            image[:, :, top:top + chunk.shape[2]] = chunk.clamp(-1, 1) if clamped else chunk
            top += chunk.shape[2]
        return image


def up_block(block: UpBlock, rows: Rows, height: int, size: int) -> Rows:
    """One decoder level of `height` rows, in chunks of about `size` bytes."""
    rows = rechunk(rows, size)
    for resnet in block.resnets:
        rows = vae_rows.residual(resnet, rows, height)
    for upsampler in block.upsamplers:
        rows = vae_rows.convolution(folded_once(upsampler.conv), rechunk(rows, size // 4), height, factor=2)
    return rows
