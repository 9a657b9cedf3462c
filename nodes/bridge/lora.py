"""A LoRA file on a MODEL, by ComfyUI's own adapters and patches; DoRA and replacements by the pack's."""
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import comfy.lora
import comfy.utils
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...model.checkpoints import adapters, lora
from ...model.checkpoints.adapters import BIAS, Adapter
from ...model.checkpoints.checkpoint import aligned
from ...model.checkpoints.few_step import FewStep, recognized
from ...model.checkpoints.files import check_header, check_is_no_text, readable, tensor_infos
from ...model.checkpoints.lora import LoraError, Normalized
from ...model.qwen_image_2.lora import split_mlp
from .adapters.checks import check_lora_shapes
from .adapters.dora import Decomposed
from .adapters.places import Place
from .adapters.replacement import Replacement
from .keys import FAMILY_1, FAMILY_2

# The attachment of a MODEL that names its few-step adapters, in the order in which they were loaded.
ATTACHMENT = "qwen_image_2_few_step"
# What follows `transformer_blocks` in the modules of one family only, with dots or as flat names.
BLOCKS = "transformer_blocks"
FAMILY_MARKS = {FAMILY_1: ("img_mod", "txt_mod", "txt_mlp", "img_mlp.net", "img_mlp_net"),
                FAMILY_2: ("img_mlp.gate", "img_mlp_gate", "img_mlp.out", "img_mlp_out", "img_mlp.proj",
                           "img_mlp_proj")}
MAX_TENSORS = 20_000  # in a LoRA; those of the largest published transformers have a quarter


class Loaded(NamedTuple):
    """A few-step adapter on a MODEL."""

    label: str
    kind: FewStep


class Applied(NamedTuple):
    model: object          # the MODEL, a clone
    matrices: int          # that it changes
    unused: list[str]      # names in the file that mean nothing here
    kinds: str             # what it consists of, in words
    few_step: FewStep | None = None  # which one it is, by its name
    left_out: float | None = None    # the alpha that it should have and has not


def apply(model, path: Path, label: str, strength: float) -> Applied:
    """Raises LoraError or CheckpointError for a file of which nothing fits, and for one that would do something else
    than was trained: damaged, of another shape, or with parts that the pack does not know."""
    state, metadata = _read(path, label)
    few_step = recognized(label, metadata, model.model.few_step)
    file = lora.normalized(state, metadata, label, few_step.alpha if few_step else None)
    _check_family(file, model.model.family, label)
    if model.model.split_mlps:
        file = split_mlp(file, label)
    places = _places(model.model)
    used = _used(file, places, label)
    if not used:
        raise _nothing_fits(file, places, label)
    for adapter in used:
        _check(adapter, file, places[adapter.module].shape(model.model), label)
    clone = model.clone()
    clone.add_patches(_patches(used, places), strength)
    check_lora_shapes(clone)
    read = {file.origins[f"{adapter.module}.{part}"] for adapter in used for part in adapter.parts}
    changed = {places[adapter.module].key for adapter in used}
    if few_step:
        clone.set_attachments(ATTACHMENT, (*few_step_adapters(model), Loaded(label, few_step)))
    return Applied(clone, len(changed), sorted(set(file.origins.values()) - read - {lora.METADATA}),
                   adapters.in_words(used), few_step, file.left_out)


def few_step_adapters(model) -> Sequence[Loaded]:
    """Those on a MODEL that the pack's loader has put there; of others nobody knows what they are."""
    return model.attachments.get(ATTACHMENT, ())


def _check_family(file: Normalized, own: str, label: str) -> None:
    """Raises LoraError for an adapter of the other family, which shares some of its names: that is said before the
    shapes are, and told by no width."""
    blocks = [name.partition(BLOCKS)[2] for name in file.state]
    found = {family for family, marks in FAMILY_MARKS.items() if any(mark in name for name in blocks for mark in marks)}
    if found and own not in found:
        raise LoraError("lora_other_family", "{file} was made for Qwen-Image {other}, but this model is Qwen-Image "
                        "{own}. Choose a LoRA for Qwen-Image {own}.", file=label, other=min(found), own=own)


def _places(model) -> dict[str, Place]:
    """The modules and biases that a LoRA may name -> what they are in this model."""
    keys = comfy.lora.model_lora_keys_unet(model, {})
    places = {module: model.place_of(key) if isinstance(key, str) else Place(*key) for module, key in keys.items()}
    own = model.state_dict()
    biases = {module: Place(place.key.removesuffix(".weight") + BIAS) for module, place in places.items()
              if place.rows is None}
    return places | {module + BIAS: place for module, place in biases.items() if place.key in own}


def _read(path: Path, label: str) -> tuple[dict, dict]:
    try:
        with readable(path):
            check_header(path)  # first: safetensors says of every file that it cannot open that it does not exist
        with safe_open(path, "pt") as file:
            state = {name: aligned(file.get_tensor(name)) for name in tensor_infos(file, label, MAX_TENSORS)}
            return state, file.metadata() or {}
    except SafetensorError as error:
        check_is_no_text(path)
        raise LoraError("lora_damaged", "{file} is not a valid .safetensors file ({error}). Download it again.",
                        file=label, error=str(error)) from error


def _used(file: Normalized, places: Mapping[str, Place], label: str) -> list[Adapter]:
    """The adapters of this model's matrices. Raises LoraError where two change the same one, or the same rows."""
    used: dict[str, dict[Place, Adapter]] = {}  # by the matrix
    for module, parts in adapters.of_modules(file.state):
        for adapter in adapters.complete(module, parts) if module in places else ():
            place = places[module]
            others = used.setdefault(place.key, {})
            for other, earlier in others.items():
                if other == place or None in (other.rows, place.rows):
                    raise lora.twice(label, _name(earlier, file), _name(adapter, file))
            others[place] = adapter
    return [adapter for of_matrix in used.values() for adapter in of_matrix.values()]


def _name(adapter: Adapter, file: Normalized, part: str = "") -> str:
    """What the file calls one of its tensors, by default the first one."""
    return file.origins[f"{adapter.module}.{part or next(iter(adapter.parts))}"]


def _nothing_fits(file: Normalized, places: Mapping[str, Place], label: str) -> LoraError:
    for module, parts in adapters.of_modules(file.state):
        if module in places:
            return LoraError("lora_incomplete", "{file} is incomplete: {tensor} belongs to an adapter whose other "
                             "tensors are missing, and no other key fits this model. Download it again.",
                             file=label, tensor=file.origins[f"{module}.{next(iter(parts))}"])
    whole = next((name for name in file.state if name.removesuffix(".weight") in places), None)
    if whole is not None:
        return lora.whole_transformer(label, file.origins[whole])
    return LoraError("lora_no_match", "{file} does not match this model: none of its keys fit. It was made for another "
                     "model, or is not a LoRA (first tensor: {tensor}).", file=label,
                     tensor=next(iter(file.origins.values()), "missing"))


def _check(adapter: Adapter, file: Normalized, shape: tuple[int, ...], label: str) -> None:
    """Raises LoraError for parts that no matrix of this shape can be computed from, whatever their own shapes."""
    for part, tensor in adapter.parts.items():
        _check_part(part, tensor, shape, _name(adapter, file, part), label)
    if (part := adapters.damaged(adapter)) is not None:
        raise LoraError("lora_not_finite", "{file} is damaged: {tensor} contains NaN or infinity, which would turn the "
                        "image black. Download it again, or use an earlier training checkpoint.", file=label,
                        tensor=_name(adapter, file, part))


def _check_part(part: str, tensor: Tensor, shape: tuple[int, ...], name: str, label: str) -> None:
    if part in adapters.TUCKER:
        raise LoraError("lora_convolution", "{file} was made for another model: {tensor} is for a convolution, which "
                        "this model does not have.", file=label, tensor=name)
    if tensor.is_complex() or not (tensor.is_floating_point() or part in (adapters.ALPHA, adapters.RESHAPE)):
        raise LoraError("lora_dtype", "{file} cannot be used: {tensor} has dtype {dtype}. Save it again in fp32, bf16 "
                        "or fp16.", file=label, tensor=name,
                        dtype=str(tensor.dtype).removeprefix("torch."))
    if part == adapters.ALPHA and tensor.numel() != 1:
        raise LoraError("lora_alpha", "{file} is damaged: {tensor} must be one number, but has shape {shape}. Download "
                        "it again.", file=label, tensor=name, shape=str(list(tensor.shape)))
    if part == adapters.RESHAPE and (tensor.numel() != len(shape) or tuple(tensor.flatten().tolist()) != shape):
        raise LoraError("lora_reshape", "{file} was made for a model of another size: {tensor} reshapes a matrix that "
                        "is {shape} in this model.", file=label, tensor=name, shape=str(list(shape)))


def _patches(used: Iterable[Adapter], places: Mapping[str, Place]) -> dict:
    """Parameter, or some of its rows -> ComfyUI's patch for it."""
    patches = {}
    for adapter in used:
        own = {f"{adapter.module}.{part}": tensor for part, tensor in adapter.parts.items()
               if part not in (adapters.MAGNITUDE, adapters.RESHAPE)}
        if adapter.kind == "replacement":
            patches[places[adapter.module].patch_key] = Replacement(set(own), (adapter.parts[adapters.REPLACEMENT],))
            continue
        patch = comfy.lora.load_lora(own, {adapter.module: places[adapter.module].patch_key}, log_missing=False)
        patches |= {key: _with_magnitude(one, adapter) for key, one in patch.items()}
    return patches


def _with_magnitude(patch, adapter: Adapter):
    magnitude: Tensor | None = adapter.parts.get(adapters.MAGNITUDE)
    if magnitude is None:
        return patch
    # PEFT's are a list of numbers, one for each row.
    return Decomposed(patch.loaded_keys, (patch, magnitude.reshape(-1, 1) if magnitude.ndim == 1 else magnitude))
