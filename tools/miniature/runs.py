"""What train.py can be asked for, with everything set up: the autoencoder, the transformer, the shipped files."""
import json
from pathlib import Path

import torch

from ...model.checkpoints import loading
from ...model.checkpoints.files import open_checkpoint
from ...model.qwen_image_2 import detect
from ...model.qwen_image_2.transformer import Transformer
from ...model.qwen_image_2.vae import VAE
from ...nodes.bridge.files import miniature
from ...nodes.bridge.text_encoders.families import load_text_encoder
from .. import tiny
from . import train_transformer, train_vae
from .pool import Pool
from .training import State

STATISTICS = "latents.json"


def vae(work: Path, steps: int, seed: int) -> None:
    train_vae.train(work, steps, seed)


def transformer(work: Path, steps: int, seed: int, shipped: bool) -> None:
    """shipped: go on from the weights in assets/miniature, with their autoencoder."""
    network = shipped_vae() if shipped else trained_vae(work)
    pool = Pool(work / "pool", network, load_text_encoder(miniature.text_encoder(), miniature.NAME), seed)
    pool.grow(1)
    mean, std = (network.spec.latent_mean, network.spec.latent_std) if shipped else _statistics(work, pool)
    torch.manual_seed(seed)
    start = shipped_transformer() if shipped else train_transformer.build()
    train_transformer.train(work, start, pool, mean, std, steps, seed)


def export(work: Path) -> None:
    """bf16 files in the forms of the official ones. The autoencoder stays as it is where none was trained here."""
    if (work / "vae.safetensors").exists():
        mean, std = json.loads((work / STATISTICS).read_text(encoding="utf-8"))
        tiny.save(tiny.to_wan_vae(trained_vae(work).state_dict()), miniature.FOLDER / miniature.FILES["vae"],
                  {"latents_mean": mean, "latents_std": std})
    network = train_transformer.build()
    State(work / "transformer.safetensors", {"average": network}, []).load()
    tiny.save(tiny.to_comfy_transformer(network.state_dict()), miniature.FOLDER / miniature.FILES["diffusion_models"],
              {"axes_dims_rope": train_transformer.SPEC.rope_axes})


def trained_vae(work: Path) -> VAE:
    """The autoencoder as it is shipped: its weights rounded to bf16, computing in fp32."""
    network = train_vae.build()
    State(work / "vae.safetensors", {"vae": network}, []).load()
    for parameter in network.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return network.requires_grad_(False)


def shipped_vae() -> VAE:
    checkpoint = open_checkpoint(miniature.FOLDER / miniature.FILES["vae"])
    detected = detect.detect_vae(checkpoint)
    network = VAE(detected.spec, device="meta")
    loading.load(network, detected, checkpoint, torch.float32)
    return network.to(memory_format=torch.channels_last)


def shipped_transformer() -> Transformer:
    checkpoint = open_checkpoint(miniature.FOLDER / miniature.FILES["diffusion_models"])
    detected = detect.detect_transformer(checkpoint)
    fused = Transformer(detected.spec, device="meta")
    loading.load(fused, detected, checkpoint, torch.float32)
    network = Transformer(train_transformer.SPEC)
    network.load_state_dict(tiny.to_diffusers_transformer(fused.state_dict()))
    return network.requires_grad_(True).train()


def _statistics(work: Path, pool: Pool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each latent channel over the first shard's targets, rounded as they are published."""
    path = work / STATISTICS
    if not path.exists():
        targets = [example.target.float().flatten(1) for group in pool.forms.values() for example in group]
        std, mean = torch.std_mean(torch.cat(targets, dim=1), dim=1)
        path.write_text(json.dumps([[round(value, 4) for value in values.tolist()] for values in (mean, std)]))
    mean, std = json.loads(path.read_text(encoding="utf-8"))
    return tuple(mean), tuple(std)
