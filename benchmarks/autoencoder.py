"""The VAE against diffusers' at 512 x 512."""
import torch
from bootstrap import ROOT  # noqa: F401  first, it makes the pack importable
from diffusers import AutoencoderKLQwenImage21
from floor import beside_floor
from timing import Budget, Comparison, compare

from qwen_image_2.model.qwen_image_2.spec import VAESpec
from qwen_image_2.model.qwen_image_2.vae import VAE
from qwen_image_2.tools import tiny

# Half the published widths: at full width one decode is 4.3 TFLOP, over half a minute on two CPU cores.
SPEC = VAESpec(base_dim=48, decoder_base_dim=72)
SIDE = 512
FLOOR_GOAL = 1.15
SETTING = (f"{SIDE} x {SIDE} pixels, half the published widths (base {SPEC.base_dim}, decoder "
           f"{SPEC.decoder_base_dim}), fp32")


def _networks() -> tuple[VAE, AutoencoderKLQwenImage21]:
    """Both VAEs with the same random weights."""
    theirs = AutoencoderKLQwenImage21(base_dim=SPEC.base_dim, decoder_base_dim=SPEC.decoder_base_dim).eval()
    theirs.load_state_dict(tiny.randomise(theirs.state_dict(), seed=0))
    ours, state = VAE(SPEC).eval(), theirs.state_dict()
    ours.load_state_dict({name: state[name].reshape(value.shape) for name, value in ours.state_dict().items()})
    return ours, theirs


def decode(budget: Budget) -> list[Comparison]:
    ours, theirs = _networks()
    side = SIDE // SPEC.scale
    latent = 3 * torch.randn(1, SPEC.latent_channels, side, side, generator=torch.Generator().manual_seed(1))
    return [*compare("VAE decode", {
        "ours": lambda: ours.decode(latent),
        "diffusers": lambda: theirs.decode(latent.unsqueeze(2)).sample.squeeze(2),
    }, budget), beside_floor("VAE decode", lambda: ours.decode(latent), ours, budget, goal=FLOOR_GOAL)]


def encode(budget: Budget) -> list[Comparison]:
    ours, theirs = _networks()
    pixels = 2 * torch.rand(1, SPEC.pixel_channels, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) - 1
    return compare("VAE encode", {
        "ours": lambda: ours.encode(pixels),
        "diffusers": lambda: theirs.encode(pixels.unsqueeze(2)).latent_dist.mode().squeeze(2),
    }, budget)
