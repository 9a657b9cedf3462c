"""The sinusoids that tell a diffusion transformer how noisy its input is."""
import math

import torch
from torch import Tensor

TIME_CHANNELS = 256


def timestep_embedding(sigma: Tensor, dtype: torch.dtype) -> Tensor:
    """Sinusoids (B, 256) of sigma (B,) in [0, 1], cosines first.

    The reference's scheduler counts to 1000 and its pipeline rounds that number to the latents' dtype before it is
    divided again; in bf16 the models were trained on those rounded times. Both families take the reference's side
    (diffusers 0.42.1, Timesteps: the table of frequencies stays fp32); ComfyUI does not round.
    """
    t = (sigma.float() * 1000).to(dtype) / 1000
    half = TIME_CHANNELS // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=sigma.device) / half)
    angles = 1000 * (t.float().unsqueeze(1) * frequencies)  # in this order, which rounds as the reference does
    return torch.cat([angles.cos(), angles.sin()], dim=1).to(dtype)
