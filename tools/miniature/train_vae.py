"""Training of the miniature's autoencoder: pictures of scenes in, the same pictures out.

The latent gets noise while training, so that it is smooth and the decoder forgives the transformer's small errors.
"""
import random
import time
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...model.qwen_image_2.spec import VAESpec
from ...model.qwen_image_2.vae import VAE
from . import scenes
from .training import SAVE_SECONDS, Log, State, learning_rate, optimizers, set_rate

SPEC = VAESpec(base_dim=8, decoder_base_dim=12)
RATE, WARMUP = 3e-3, 20
WHOLE, PARTS = 4, 12     # pictures of a batch: whole ones every few steps, else parts of a quarter of the area
WHOLE_EVERY = 4
PART = 64               # pixels; parts are cut around a shape or a word, where there is most to learn
LATENT_NOISE = 0.1
NOISE_STEPS = 2000      # the noise grows over so many steps: at full strength from the start it drowns what is learned
LATENT_WEIGHT = 1e-4    # of the latents' mean square: without it they grow until the noise is nothing
HIDDEN_WEIGHT = 0.1     # of colours under full transparency, which nobody sees
EDGE_WEIGHT = 4         # of pixels beside an edge, added to 1


def build() -> VAE:
    """A VAE that begins as its shortcuts: every residual branch adds nothing yet."""
    vae = VAE(SPEC)
    for name, parameter in vae.named_parameters():
        if name.endswith("gamma"):
            nn.init.ones_(parameter)
        elif name.endswith("bias") or any(last in name for last in (".conv2.", ".proj.", "resample.1.")):
            nn.init.zeros_(parameter)
        else:
            nn.init.kaiming_normal_(parameter, nonlinearity="linear" if parameter.shape[-1] == 1 else "relu")
    return vae.to(memory_format=torch.channels_last)


def pixels(examples: list[scenes.Scene]) -> Tensor:
    """Pictures of scenes on one canvas (B, 4, H, W) in [-1, 1]."""
    images = numpy.stack([numpy.asarray(scenes.draw(scene)) for scene in examples])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def batch(seed: int, step: int) -> Tensor:
    rng = random.Random(f"vae {scenes.VERSION} {seed} {step}")
    canvas = rng.choices(scenes.CANVASES, (3, 1, 1))[0]
    whole = step % WHOLE_EVERY == 0
    found = []
    while len(found) < (WHOLE if whole else PARTS):
        scene = scenes.sample(rng, canvas)
        if not scenes.held_out(scene):
            found.append(scene)
    pictures = pixels(found)
    if not whole:
        pictures = torch.stack([_part(rng, *pair) for pair in zip(found, pictures, strict=True)])
    return pictures.contiguous(memory_format=torch.channels_last)


def _part(rng: random.Random, scene: scenes.Scene, picture: Tensor) -> Tensor:
    """A square around something in the picture, cut along the grid of latents, as those meet the pixels later."""
    centres = [scenes.centre_of(shape, scene.canvas) for shape in scene.shapes]
    if scene.word:  # any part of it
        centres.append((rng.uniform(0, scene.canvas[0]), scenes.row_height(scene.word.row, scene.canvas)))
    x, y = rng.choice(centres)
    left, top = (min(max(round((middle + rng.uniform(-16, 16) - PART / 2) / 16) * 16, 0), side - PART)
                 for middle, side in zip((x, y), scene.canvas, strict=True))
    return picture[:, top:top + PART, left:left + PART]


def difference(picture: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of RGBA pictures, weighted: edges count more, colours that are not seen less."""
    seen = (target[:, 3:] + 1) / 2
    contrast = (target - F.avg_pool2d(target, 3, 1, 1, count_include_pad=False)).abs().amax(1, keepdim=True)
    weight = 1 + EDGE_WEIGHT * F.max_pool2d((contrast > 0.05).float(), 3, 1, 1)
    colour = (picture[:, :3] - target[:, :3]).abs() * (seen + HIDDEN_WEIGHT)
    return (weight * torch.cat([colour, (picture[:, 3:] - target[:, 3:]).abs()], dim=1)).mean()


def train(work: Path, steps: int, seed: int) -> VAE:
    torch.manual_seed(seed)
    vae = build()
    both = optimizers(vae, RATE)
    state = State(work / "vae.safetensors", {"vae": vae}, both)
    log, saved = Log(work / "vae.log"), time.monotonic()
    for step in range(state.load(), steps):
        torch.manual_seed(seed * 1_000_003 + step)
        set_rate(both, RATE * learning_rate(step, steps, WARMUP))
        target = batch(seed, step)
        latent = vae.encode(target)
        noise = LATENT_NOISE * min(1, step / NOISE_STEPS) * torch.randn_like(latent)
        # Not `decode`: its clamp would hide from the training what lies outside.
        picture = vae.decoder(vae.post_quant_conv(latent + noise))
        error = difference(picture, target)
        (error + LATENT_WEIGHT * latent.square().mean()).backward()
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad()
        log.add(step, {"error": error.item(), "mse": F.mse_loss(picture, target).item(),
                       "latent": latent.square().mean().item()})
        if time.monotonic() - saved > SAVE_SECONDS:
            state.save(step + 1)
            saved = time.monotonic()
    state.save(steps)
    return vae
