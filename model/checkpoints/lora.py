"""LoRA files in the form that ComfyUI's loader and the transformers of both families share.

Programs give the same tensors many names (adapters.py). Some files keep their scale in their metadata alone, where
ComfyUI does not look.
"""
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...messages import Refusal
from . import adapters

METADATA = "lora_adapter_metadata"  # PEFT's settings as diffusers writes them
MAX_PATTERNS = 10_000  # modules with a scale of their own; the largest published transformer has a tenth
MAX_SHOWN_LENGTH = 60  # characters of a pattern in a message

_UP = f".{adapters.UP}"
_NAME = re.compile(r"\^?[\w.-]+")


class LoraError(Refusal):
    """A LoRA that cannot be used as it is. The message is one sentence for the user."""


class Normalized(NamedTuple):
    state: dict[str, Tensor]  # by the names that ComfyUI finds for this transformer
    origins: dict[str, str]   # the same names -> those in the file
    left_out: float | None = None  # the alpha that neither the file nor its metadata have, and that was put in


def normalized(state: Mapping[str, Tensor], metadata: Mapping[str, str], label: str,
               alpha: float | None = None) -> Normalized:
    """A LoRA file's tensors and metadata. alpha: of a file that has none at all; None: its rank, as everywhere.

    Raises LoraError for what is no LoRA, or one that the pack cannot use."""
    origins: dict[str, str] = {}
    spelled = {name: adapters.one_spelling(name) for name in state}
    whole = adapters.as_replacements(spelled.values())
    for name in state:
        known = whole[spelled[name]]
        if known in origins:
            raise twice(label, origins[known], name)
        origins[known] = name
    renamed = {known: state[name] for known, name in origins.items()}
    _check_output_layers(renamed, origins, label)
    scales = _all_scales(renamed, metadata, label)
    has_scale = scales or any(adapters.taken_apart(name)[1] == adapters.ALPHA for name in renamed)
    if alpha is None or has_scale:
        alpha = None
    else:
        scales = {f"{name.removesuffix(_UP)}.{adapters.ALPHA}": torch.tensor(float(alpha))
                  for name in renamed if name.endswith(_UP)}
    origins |= dict.fromkeys(scales, METADATA)
    return Normalized(renamed | scales, origins, alpha)


def twice(label: str, one: str, other: str) -> LoraError:
    return LoraError("lora_twice", "{file} patches the same weight twice ({one}, {other}), and only one of them would "
                     "be used. Save each LoRA as a file of its own.", file=label, one=one, other=other)


def _check_output_layers(state: Mapping[str, Tensor], origins: Mapping[str, str], label: str) -> None:
    """Fun-Acc PDD replaces the output layer by one for each step; without it the rest draws something else."""
    for name, tensor in state.items():
        if name.startswith(f"{adapters.ROOT}proj_out.") and tensor.ndim == 3:
            raise LoraError("lora_pdd", "{file} is a Fun-Acc PDD file: it has one output layer per step ({tensor}, "
                            "{shape}), which is not supported. Use another few-step LoRA, such as Lightning.",
                            file=label, tensor=origins[name],
                            shape=str(list(tensor.shape)))


def whole_transformer(label: str, tensor: str) -> LoraError:
    return LoraError("lora_is_transformer", "{file} is not a LoRA but a whole transformer ({tensor}). Put it into "
                     "models/diffusion_models and choose it in the loader.", file=label, tensor=tensor)


def _all_scales(state: Mapping[str, Tensor], metadata: Mapping[str, str], label: str) -> dict[str, Tensor]:
    """_scales, which knows modules by the names that PEFT gives them: without what stands around the network."""
    bare = {name.removeprefix(adapters.ROOT): tensor for name, tensor in state.items()}
    try:
        scales = _scales(bare, metadata, label)
    except (OverflowError, RecursionError) as error:
        raise LoraError("lora_metadata_unbounded", "The metadata of {file} ({entry}) cannot be read: its numbers or "
                        "its nesting exceed all limits. Download it again.", file=label,
                        entry=METADATA) from error
    return {name if name.startswith(adapters.FLAT) else adapters.ROOT + name: scale for name, scale in scales.items()}


def _scales(state: Mapping[str, Tensor], metadata: Mapping[str, str], label: str) -> dict[str, Tensor]:
    """The alphas that stand in the metadata alone, by the names that ComfyUI reads."""
    if METADATA not in metadata:
        return {}
    try:
        settings = {key.removeprefix("transformer."): value for key, value in json.loads(metadata[METADATA]).items()}
        own = _own_alphas(settings.get("alpha_pattern") or {}, label)
        alphas = {}
        for name, tensor in state.items():
            module = name.removesuffix(_UP)
            if module == name or f"{module}.alpha" in state or "lora_alpha" not in settings:
                continue
            alpha = float(_alpha_of(module.removeprefix("transformer."), own, settings["lora_alpha"]))
            # Divided by the root of the rank, where ComfyUI divides by the rank. What has none is refused by its shape.
            if settings.get("use_rslora") and tensor.ndim > 1:
                alpha *= tensor.shape[1] ** 0.5
            alphas[f"{module}.alpha"] = torch.tensor(alpha)
        return alphas
    except LoraError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        raise LoraError("lora_metadata", "The metadata of {file} ({entry}) cannot be read: {error}.", file=label,
                        entry=METADATA, error=str(error)) from error


def _own_alphas(patterns: Mapping[str, Any], label: str) -> dict[str, tuple[int, Any]]:
    """PEFT's alpha_pattern as names: a whole one begins with ^, any other is the end of one, after a dot. Each with its
    place in the file, because the first one that fits counts.

    PEFT takes them for regular expressions, and a prepared one would never end; so only names are understood, with the
    anchors and escapes that PEFT and diffusers write around them. Source: peft/utils/other.py, get_pattern_key.
    """
    if len(patterns) > MAX_PATTERNS:
        raise LoraError("lora_patterns", "The metadata of {file} sets the scale of {count} modules; a LoRA of this "
                        "model has at most {max}.", file=label, count=f"{len(patterns):,}", max=f"{MAX_PATTERNS:,}")
    own: dict[str, tuple[int, Any]] = {}
    for place, (pattern, alpha) in enumerate(patterns.items()):
        name = pattern.removesuffix("$").removeprefix(r".*\.").replace(r"\.", ".")
        if not _NAME.fullmatch(name):
            raise LoraError("lora_pattern", "The metadata of {file} contains the pattern {pattern}; only module names "
                            "are supported. Save the LoRA with plain names in alpha_pattern.",
                            file=label, pattern=repr(pattern[:MAX_SHOWN_LENGTH]))
        own.setdefault(name, (place, alpha))
    return own


def _alpha_of(module: str, own: Mapping[str, tuple[int, Any]], common: Any) -> Any:
    """What the first fitting name says, else what counts for all: whatever stands in the JSON."""
    parts = module.split(".")
    ends = ["^" + module, *(".".join(parts[start:]) for start in range(len(parts)))]
    return min((own[end] for end in ends if end in own), key=lambda found: found[0], default=(0, common))[1]
