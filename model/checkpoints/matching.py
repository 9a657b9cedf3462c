"""From the names and shapes of a file to those of a network: which tensor fills which parameter, strictly."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, NamedTuple, TypeVar

from torch import nn

from ...messages import Message, Refusal
from . import quantization
from .checkpoint import Checkpoint
from .errors import CheckpointError, missing_tensor
from .known_files import describe

Spec = TypeVar("Spec")
Result = TypeVar("Result")

Shapes = Mapping[str, tuple[int, ...]]


class Source(NamedTuple):
    """Where a parameter's values are: a tensor of the file, or some of its rows."""

    name: str
    rows: slice = slice(None)


Sources = Mapping[str, Source]


@dataclass(frozen=True)
class Detected(Generic[Spec]):
    """A recognized file. Shapes are those of the parameters, which a host's modules may not know before loading."""

    spec: Spec
    table: Sources  # parameter name -> source
    shapes: Shapes  # parameter name -> shape
    quantization: Mapping[str, dict] = field(default_factory=dict)  # layer -> record, see quantization.py
    config: Mapping = field(default_factory=dict)  # see needed_config

    @property
    def tensors(self) -> set[str]:
        """The file's tensors that it is made of."""
        return {source.name for source in self.table.values()}


class Part(NamedTuple):
    """What a loader loads: how messages call it, and which file to choose for it."""

    name: Message
    advice: Message


def wrong_file(checkpoint: Checkpoint, part: Part) -> CheckpointError:
    return checkpoint.fail("wrong_file", "{file} is {found}, not a {kind} for Qwen-Image 2: {advice}.",
                           found=describe(checkpoint.tensors), kind=part.name, advice=part.advice)


def sized(checkpoint: Checkpoint, build: Callable[..., Result], *arguments: object) -> Result:
    """build(*arguments), a function that reads sizes; what it finds impossible is said with the file's name."""
    try:
        return build(*arguments)
    except CheckpointError:
        raise
    except Refusal as error:
        raise checkpoint.fail("sizes_inconsistent", "{file} has inconsistent layer sizes: {error}",
                              error=error.message) from error
    except (ValueError, ZeroDivisionError) as error:  # of reading a shape: Python's words for it are no user's
        raise checkpoint.fail("sizes_impossible", "{file} has layers of sizes that do not belong together. Download it "
                              "again, or choose another file.") from error


def needed_config(checkpoint: Checkpoint, spec_of: Callable[[Checkpoint], Spec], spec: Spec) -> Mapping:
    """The configuration where sizes alone would not give this spec, else none: who saves the network elsewhere without
    it would make another one."""
    try:
        alone = sized(checkpoint, spec_of, replace(checkpoint, config={}))
    except CheckpointError:
        return checkpoint.config
    return {} if alone == spec else checkpoint.config


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def match(checkpoint: Checkpoint, expected: Shapes, sources: Sources) -> dict[str, Source]:
    """The sources, after a check that they and the expected parameters agree one to one, in name and shape."""
    for name, shape in expected.items():
        source = sources[name]
        if source.name not in checkpoint.tensors:
            raise missing_tensor(checkpoint.label, source.name)
        found = _shape_of_rows(checkpoint.tensors[source.name].shape, source.rows)
        if _without_unit_axes(found) != _without_unit_axes(shape):
            raise checkpoint.fail("tensor_shape", "{file}: tensor {tensor} has shape {shape}, expected {expected}.",
                                  tensor=source.name, shape=str(list(found)),
                                  expected=str(list(shape)))
    unknown = sorted(set(checkpoint.tensors) - {source.name for source in sources.values()})
    if unknown:
        raise checkpoint.fail("tensors_unknown", "{file} has {count} tensors that do not belong to this architecture, "
                              "for example {tensor}.", count=len(unknown), tensor=unknown[0])
    return dict(sources)


def _shape_of_rows(shape: tuple[int, ...], rows: slice) -> tuple[int, ...]:
    return (len(range(*rows.indices(shape[0]))), *shape[1:]) if shape else shape


def _without_unit_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Layouts differ in axes of length 1: the temporal tap of a 5-D convolution, the axes of a norm's gamma."""
    return tuple(length for length in shape if length != 1)


# ---------------------------------------------------------------- quantized layers

def layer_of(name: str) -> str:
    return name.removesuffix(".weight")


def records_of(checkpoint: Checkpoint, table: Sources) -> dict[str, dict]:
    """The records of the layers that quantized tensors fill, by the layers' own names."""
    return {layer_of(name): checkpoint.quantization[layer_of(source.name)] for name, source in table.items()
            if layer_of(source.name) in checkpoint.quantization}


def companion_sources(stored: Checkpoint, companions: Mapping[str, Mapping[str, str]],
                      table: Sources) -> dict[str, Source]:
    """Scales of each quantized parameter: the rows that its weight has of a fused one, or the one for all rows."""
    found = {}
    for name, source in table.items():
        rows = stored.tensors[source.name].shape[:1]
        for companion, theirs in companions.get(source.name, {}).items():
            scales = stored.tensors[theirs]
            # One byte is the scale of a block. Those lie in tiles of rows, which cannot be cut.
            in_tiles = scales.dtype[:2] in ("F8", "U8")
            if source.rows != slice(None) and rows[0] // 2 % quantization.TILE_ROWS and in_tiles:
                raise stored.fail("fused_scales", "{file}: the block scales of {tensor} span both halves ({rows} rows "
                                  "each). Quantize gate and projection separately.", tensor=source.name,
                                  rows=rows[0] // 2)
            one_for_each_row = scales.shape[:1] == rows and len(rows) and companion != "pre_quant_scale"
            found[f"{layer_of(name)}.{companion}"] = Source(theirs, source.rows if one_for_each_row else slice(None))
    return found


def refuse_other_tools(checkpoint: Checkpoint) -> None:
    if tool := quantization.other_tool(checkpoint.tensors, checkpoint.config):
        raise checkpoint.fail("other_tool", "{file} was quantized by {tool}, in a layout that only its own software "
                              "reads. Choose the bf16 file, one quantized by ComfyUI's tools, or a GGUF file.",
                              tool=tool)


def refuse_unexplained(plain: Checkpoint) -> None:
    """Refuse layers that are quantized and have no record. plain: see quantization.unpack."""
    refuse_quantized(plain.with_tensors(
        {name: info for name, info in plain.tensors.items() if layer_of(name) not in plain.quantization}))


def refuse_quantized(checkpoint: Checkpoint) -> None:
    """Refuse tensors that are quantized in a way that nothing explains."""
    tensors = checkpoint.tensors
    signs = sorted(name for name in tensors if name.endswith((".comfy_quant", ".weight_scale", ".scale_weight")))
    dtypes = {info.dtype for name, info in tensors.items() if name.endswith(".weight")}
    odd = sorted(dtypes - set(quantization.PLAIN_DTYPES))
    if signs or odd:
        raise checkpoint.fail("quantization_unknown", "{file} is quantized in an unsupported format ({found}). Choose "
                              "the bf16 file, or one quantized by ComfyUI's tools.",
                              found=signs[0] if signs else f"dtype {odd[0]}")
