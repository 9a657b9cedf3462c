"""The two scales of latents: what a VAE's encoder gives, and the transformer's, channel by channel
(latent - mean) / deviation. The lists are the family's."""
from collections.abc import Sequence

import torch

from ...messages import Refusal


def normalize(latent: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """VAE latent (B, C, h, w) -> the transformer's scale, about zero mean and unit deviation."""
    return (latent - _per_channel(mean, latent)) / _per_channel(std, latent)


def denormalize(latent: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """The transformer's latent (B, C, h, w) -> the VAE's scale."""
    return latent * _per_channel(std, latent) + _per_channel(mean, latent)


def _per_channel(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1)


def check_statistics(channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises Refusal where there is not one of each for every latent channel."""
    if not len(mean) == len(std) == channels:
        raise Refusal("latent_statistics", "{channels} latent channels, but {means} means and {deviations} "
                      "deviations.", channels=channels, means=len(mean), deviations=len(std))
