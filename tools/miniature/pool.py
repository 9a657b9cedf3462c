"""Examples ready for training: latents and prompt states, made by the pack's own VAE and text encoder.

They are kept in shards on disk, so that a resumed or repeated training does not make them again.
"""
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from ... import atomic
from ...model.qwen_image_2.vae import VAE
from . import examples, scenes
from .examples import Example
from .train_vae import pixels

EXAMPLES = 2048         # of a shard
ENCODE_BATCH = 32

Slots = tuple[int, ...]


@dataclass(frozen=True)
class Prepared:
    """text (S, K), references and target (64, h, w) on the VAE's scale, slots as in prefix_cache.Condition."""

    text: Tensor
    slots: Slots
    references: tuple[Tensor, ...]
    target: Tensor

    @property
    def form(self) -> tuple:
        """Examples of one form can be trained in one batch."""
        return len(self.text), self.slots, tuple(self.target.shape)


class Pool:
    """All shards made so far, sorted by form."""

    def __init__(self, folder: Path, vae: VAE, clip, seed: int):
        self.folder, self.vae, self.clip, self.seed = folder, vae, clip, seed
        self.forms: dict[tuple, list[Prepared]] = defaultdict(list)
        self.shards = 0
        folder.mkdir(parents=True, exist_ok=True)

    def grow(self, shards: int) -> None:
        """Read or make shards until there are so many."""
        while self.shards < shards:
            path = self.folder / f"shard-{self.shards:03}.safetensors"
            if not path.exists():
                _write(path, self._make(self.shards))
            for prepared in _read(path):
                self.forms[prepared.form].append(prepared)
            self.shards += 1

    def batch(self, rng: random.Random, size: int) -> list[Prepared]:
        """Examples of one form; every example of the pool is as likely as any other."""
        groups = list(self.forms.values())
        group = rng.choices(groups, map(len, groups))[0]
        return rng.sample(group, min(size, len(group)))

    @torch.no_grad()
    def _make(self, shard: int) -> list[Prepared]:
        rng = random.Random(f"transformer {scenes.VERSION} {self.seed} {shard}")
        found = [examples.for_training(rng) for _ in range(EXAMPLES)]
        latents = self._latents({scene for example in found for scene in (example.target, *example.references)})
        with _one_thread():
            states = [self._states(example) for example in found]
        return [Prepared(text, slots, tuple(latents[scene] for scene in example.references), latents[example.target])
                for example, (text, slots) in zip(found, states, strict=True)]

    def _latents(self, wanted: set[scenes.Scene]) -> dict[scenes.Scene, Tensor]:
        found = {}
        for canvas in scenes.CANVASES:
            of_canvas = [scene for scene in sorted(wanted, key=repr) if scene.canvas == canvas]
            for start in range(0, len(of_canvas), ENCODE_BATCH):
                chunk = of_canvas[start:start + ENCODE_BATCH]
                latents = self.vae.encode(pixels(chunk).contiguous(memory_format=torch.channels_last))
                found |= zip(chunk, latents.half(), strict=True)
        return found

    def _states(self, example: Example) -> tuple[Tensor, Slots]:
        """What the pack's text encoder says, by the very way that the nodes take."""
        images = [(pixels([scene]).permute(0, 2, 3, 1) + 1) / 2 for scene in example.references]
        tokens = self.clip.tokenize(example.prompt, images=images)
        (text, extra), = self.clip.encode_from_tokens_scheduled(tokens)
        return text[0].half(), tuple(extra.get("image_slots", ()))


@contextmanager
def _one_thread() -> Iterator[None]:
    """A prompt is so small that threads spend fifty times as long waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _write(path: Path, made: list[Prepared]) -> None:
    tensors, slots = {}, []
    for number, prepared in enumerate(made):
        slots.append(prepared.slots)
        latents = (prepared.target, *prepared.references)
        tensors[f"{number}.text"] = prepared.text.contiguous()
        tensors |= {f"{number}.latent.{index}": latent.clone(memory_format=torch.contiguous_format)
                    for index, latent in enumerate(latents)}
    atomic.write_bytes(path, safetensors.torch.save(tensors, {"slots": json.dumps(slots)}))


def _read(path: Path) -> list[Prepared]:
    with safe_open(path, "pt") as file:
        slots = json.loads(file.metadata()["slots"])
        return [Prepared(file.get_tensor(f"{number}.text"), tuple(of_one),
                         tuple(file.get_tensor(f"{number}.latent.{i + 1}") for i in range(len(of_one))),
                         file.get_tensor(f"{number}.latent.0"))
                for number, of_one in enumerate(slots)]
