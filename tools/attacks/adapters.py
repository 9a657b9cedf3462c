"""LoRA and LyCORIS files with any names, shapes, values and metadata, on a small MODEL."""
import json
import logging
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from qwen_image_2.tools import tiny

from . import checkpoints, mutation
from .attempt import Kind
from .checkpoints import Part

LABEL = "style.safetensors"
PREFIXES = ("", "transformer.", "diffusion_model.", "base_model.model.", "pipe.dit.", "lora_unet_", "lycoris_",
            "lora_transformer_", "text_model.", "model.model.", "_orig_mod.")
PAIRS = (("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight"), ("lora_A", "lora_B"),
         ("lora_A.default.weight", "lora_B.default.weight"), ("lora.down.weight", "lora.up.weight"))
PARTS = ("alpha", "dora_scale", "reshape_weight", "rescale", "diff", "diff_b", "w_norm", "set_weight", "oft_blocks",
         "lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "hada_w1_a", "hada_w1_b",
         "hada_w2_a", "hada_w2_b", "hada_t1", "a1.weight", "a2.weight", "b1.weight", "b2.weight", "lora_mid.weight",
         "lora_magnitude_vector", "lora_magnitude_vector.weight", "weight", "bias", "")
DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.int64,
          torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint8)
VALUES = (0.0, 0.01, 1.0, float("nan"), float("inf"), 6e4, -1.0)


class Attack(NamedTuple):
    content: bytes
    strength: float


def forms(rows: int, columns: int, rank: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """Every form of an adapter for a matrix, with shapes that fit it."""
    down, up = (rank, columns), (rows, rank)
    return {
        "LoRA": {"lora_A.weight": down, "lora_B.weight": up, "alpha": ()},
        "DoRA": {"lora_A.weight": down, "lora_B.weight": up, "dora_scale": (rows, 1)},
        "LoKr": {"lokr_w1": (2, 2), "lokr_w2": (rows // 2, columns // 2), "alpha": ()},
        "LoKr of factors": {"lokr_w1_a": (2, 1), "lokr_w1_b": (1, 2), "lokr_w2_a": (rows // 2, rank),
                            "lokr_w2_b": (rank, columns // 2)},
        "LoHa": {"hada_w1_a": up, "hada_w1_b": down, "hada_w2_a": up, "hada_w2_b": down, "alpha": (1,)},
        "GLoRA": {"a1.weight": (columns, rank), "a2.weight": (rank, columns), "b1.weight": up, "b2.weight": down},
        "OFT": {"oft_blocks": (2, rows // 2, rows // 2)},
        "BOFT": {"oft_blocks": (2, 2, rows // 2, rows // 2), "alpha": ()},
        "diff": {"diff": (rows, columns)},
        "set": {"set_weight": (rows, columns)},
    }


def shape(fitting: tuple[int, ...], rng: Random) -> tuple[int, ...]:
    """The shape, or one nearly like it."""
    if rng.random() < 0.85:
        return fitting
    sides = list(fitting)
    if sides:
        sides[rng.randrange(len(sides))] = rng.choice((0, 1, 2, 3, 7, 64, 3072))
    return rng.choice((tuple(sides), fitting[::-1], (*fitting, 1), (1, *fitting), fitting[1:], (*fitting, 1, 1, 1), ()))


def tensor(fitting: tuple[int, ...], rng: Random) -> Tensor:
    dtype = rng.choice(DTYPES) if rng.random() < 0.15 else torch.float32
    value = rng.choice(VALUES) if rng.random() < 0.15 else 0.01
    return torch.full(shape(fitting, rng), value, dtype=torch.float32).to(dtype)


def named(module: str, part: str, rng: Random) -> str:
    prefix = rng.choice(PREFIXES)
    module = module.replace(".", "_") if prefix.endswith("_") and rng.random() < 0.9 else module
    return f"{prefix}{module}.{part}"


def draw(matrices: dict[str, tuple[int, int]], rng: Random) -> dict[str, Tensor]:
    """Adapters of a few matrices; some of their parts under odd names, doubled or gone."""
    found: dict[str, Tensor] = {}
    prefix_of_all = rng.choice(PREFIXES)
    for module in rng.sample(list(matrices), rng.randint(1, 3)):
        parts = rng.choice(list(forms(*matrices[module], rng.choice((1, 4))).values()))
        for part, fitting in parts.items():
            if rng.random() < 0.05:
                continue
            name = f"{prefix_of_all}{module.replace('.', '_') if prefix_of_all.endswith('_') else module}.{part}"
            if rng.random() < 0.1:
                part = rng.choice(PARTS)
                name = rng.choice((named(module, part, rng), f"{name}.{part}", mutation.text(name, rng, 30_000)))
            found[name] = tensor(fitting, rng)
    if rng.random() < 0.15:
        module = rng.choice(list(matrices))
        found[named(module, rng.choice(PARTS), rng)] = tensor(matrices[module], rng)
    if rng.random() < 0.05:
        found |= {f"transformer.transformer_blocks.{number}.attn.to_q.lora_A.weight": torch.zeros(1)
                  for number in range(3000)}
    return found


def metadata(matrices: dict, rng: Random) -> dict[str, str]:
    """PEFT's settings, of any content."""
    module = rng.choice(list(matrices))
    settings = {"r": 4, "lora_alpha": 8, "use_rslora": rng.random() < 0.5, "alpha_pattern": {
        rng.choice((module, "^" + module, "attn.to_q", r".*\.attn\.to_q$", "(a+)+$", "." * 5000)): 2}}
    text = mutation.json_file(settings, rng) if rng.random() < 0.6 else json.dumps(settings).encode()
    return {"lora_adapter_metadata": text.decode("latin-1"), "format": "pt"}


def lora(part: Part) -> Callable[[Path], Kind]:
    """part: the transformer's."""
    matrices = {name.removesuffix(".weight"): tuple(value.shape) for name, value in part.state.items()
                if name.endswith(".weight") and value.ndim == 2 and "blocks" in name}

    def attack(rng: Random) -> Attack:
        # A name that is no Unicode has no file: JSON would write half a character down, but no reader takes it.
        drawn = {name.encode(errors="ignore").decode(): value for name, value in draw(matrices, rng).items()}
        content = safetensors.torch.save(drawn, metadata(matrices, rng) if rng.random() < 0.5 else None)
        if rng.random() < 0.15:
            content = mutation.damaged(content, rng, 0, rng.choice((8, 300, None)))
        elif rng.random() < 0.05:
            content = rng.choice(checkpoints.NO_SAFETENSORS)
        return Attack(content, rng.choice((1.0, -2.5, 10.0)))

    def kind(folder: Path) -> Kind:
        from qwen_image_2.nodes import loras
        from qwen_image_2.nodes.bridge.loading import load_model
        from qwen_image_2.nodes.bridge.lora import apply
        base, path = folder / "base.safetensors", folder / LABEL
        tiny.save(tiny.randomise(part.state, 1), base, part.config, torch.float32)
        model = load_model(base, base.name, "base")

        def try_it(given: Attack) -> list[str]:
            path.write_bytes(given.content)
            with torch.inference_mode():
                applied = apply(model, path, LABEL, given.strength)
                computed(applied.model)
            return loras.in_words(LABEL, applied)

        return Kind(attack, try_it)
    return kind


class Complaints(logging.Handler):
    """What is logged as a warning or worse."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def computed(patched) -> None:
    """Compute every patch of a MODEL. Raises RuntimeError where ComfyUI would log that one does not fit, and sample
    without it: that the pack refuses before."""
    import comfy.lora
    import comfy.utils
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    try:
        for key, patches in patched.patches.items():
            weight = comfy.utils.get_attr(patched.model, key).float().clone()
            comfy.lora.calculate_weight(patches, weight, key)
    finally:
        logging.getLogger().removeHandler(complaints)
    if complaints.said:
        raise RuntimeError(f"ComfyUI logged: {complaints.said[0]}")
