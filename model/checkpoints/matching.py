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
from .quantization import layer_of

Spec = TypeVar("Spec")
Result = TypeVar("Result")

Shapes = Mapping[str, tuple[int, ...]]


# Where a parameter's values are: a tensor of the file, or several whose rows follow each other. Empty: it is the scale,
# 1, of a matrix that was cast as it was.
Source = tuple[str, ...]
Sources = Mapping[str, Source]


@dataclass(frozen=True)
class Detected(Generic[Spec]):
    """A recognized file. Shapes are those of the parameters, which a host's modules may not know before loading."""

    spec: Spec
    table: Sources  # parameter name -> source
    shapes: Shapes  # parameter name -> shape
    quantization: Mapping[str, dict] = field(default_factory=dict)  # layer -> record, see quantization.py
    config: Mapping = field(default_factory=dict)  # see needed_config
    # Parameters whose tensors are kernels of a video network, which a single frame needs the last temporal tap of.
    last_taps: frozenset[str] = frozenset()

    @property
    def tensors(self) -> set[str]:
        """The file's tensors that it is made of."""
        return {name for source in self.table.values() for name in source}


class Part(NamedTuple):
    """What a loader loads: how messages call it, and which file to choose for it."""

    name: Message
    advice: Message


# Of whichever family.
TRANSFORMER_NAME, VAE_NAME = Message("part_transformer", "transformer"), Message("part_vae", "vae")


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
    """The sources, after a check that they and the expected parameters agree one to one, in name and shape. Tensors
    that make one parameter have equal shares of its rows."""
    for name, whole in expected.items():
        source = sources[name]
        shape = whole if len(source) == 1 else (whole[0] // len(source), *whole[1:])
        for tensor in source:
            if tensor not in checkpoint.tensors:
                raise missing_tensor(checkpoint.label, tensor)
            found = checkpoint.tensors[tensor].shape
            if _without_unit_axes(found) != _without_unit_axes(shape):
                raise checkpoint.fail("tensor_shape", "{file}: tensor {tensor} has shape {shape}, expected {expected}.",
                                      tensor=tensor, shape=str(list(found)),
                                      expected=str(list(shape)))
    unknown = sorted(set(checkpoint.tensors) - {tensor for source in sources.values() for tensor in source})
    if unknown:
        raise checkpoint.fail("tensors_unknown", "{file} has {count} tensors that do not belong to this architecture, "
                              "for example {tensor}.", count=len(unknown), tensor=unknown[0])
    return dict(sources)


def _without_unit_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Layouts differ in axes of length 1: the temporal tap of a 5-D convolution, the axes of a norm's gamma."""
    return tuple(length for length in shape if length != 1)


# ---------------------------------------------------------------- quantized layers

def records_of(checkpoint: Checkpoint, table: Sources) -> dict[str, dict]:
    """The records of the layers that quantized tensors fill, by the layers' own names."""
    return {layer_of(name): checkpoint.quantization[layer_of(source[0])] for name, source in table.items()
            if layer_of(source[0]) in checkpoint.quantization}


def companion_sources(stored: Checkpoint, companions: Mapping[str, Mapping[str, str]],
                      table: Sources) -> dict[str, Source]:
    """The scales of each quantized parameter, from the same tensors as its weight."""
    scales = {f"{layer_of(name)}.{companion}": tuple(companions[tensor][companion] for tensor in source)
              for name, source in table.items() for companion in companions.get(source[0], {})}
    cast = {layer for layer, record in stored.quantization.items() if record.get(quantization.PLAIN_CAST)}
    return scales | {f"{layer_of(name)}.weight_scale": () for name, source in table.items()
                     if layer_of(source[0]) in cast}


def detected(prefix: str, stored: Checkpoint, companions: Mapping[str, Mapping[str, str]], spec: Spec, expected: Shapes,
             table: Sources, config: Mapping | None = None) -> Detected[Spec]:
    """What a file is whose layers may be quantized. stored: what it has below the prefix; companions: see
    quantization.unpack; table: of the parameters, see match."""
    sources = {**table, **companion_sources(stored, companions, table)}
    return Detected(spec, {name: tuple(prefix + tensor for tensor in source) for name, source in sources.items()},
                    expected, records_of(stored, table), config or {})


def can_be_joined(stored: Checkpoint, companions: Mapping[str, Mapping[str, str]], weights: Source) -> bool:
    """Whether the rows of these matrices are those of one matrix in the same format, to the bit.

    Not where they differ in their formats, and not where one number scales a whole matrix: each has another, and
    scaling values of 8 bits anew would round them once more. int8 alone may have a scale for each row instead.
    companions: see quantization.unpack.
    """
    records = [stored.quantization.get(layer_of(weight)) for weight in weights]
    if any(record != records[0] for record in records):
        return False
    if records[0] is None or records[0].get(quantization.PLAIN_CAST):
        return True
    if not quantization.FORMATS[records[0]["format"]].scales:
        return True  # GGUF's blocks with their scales inside
    if any(set(companions[weight]) != {"weight_scale"} for weight in weights):
        return False
    if records[0]["format"] in quantization.ONE_SCALE_OR_ROWS:
        return True
    rows = {stored.tensors[weight].shape[:1] for weight in weights}
    scales = {stored.tensors[companions[weight]["weight_scale"]].shape for weight in weights}
    in_tiles = quantization.FORMATS[records[0]["format"]].block
    # Scales of blocks lie in tiles of rows: those of another matrix can follow where the last tile is full.
    return len(scales) == 1 and {shape[:1] for shape in scales} == rows and not (
        in_tiles and any(count % quantization.TILE_ROWS for count, in rows))


def refuse_other_tools(checkpoint: Checkpoint) -> None:
    if tool := quantization.other_tool(checkpoint.tensors, checkpoint.config):
        raise checkpoint.fail("other_tool", "{file} was quantized by {tool}, in a form that only its own software "
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
    dtypes = {info.dtype for name, info in tensors.items() if name.endswith(".weight")
              # A norm or a convolution, cast with the others: widened while it is loaded.
              and not (info.dtype in quantization.FP8_DTYPES and len(info.shape) != 2)}
    odd = sorted(dtypes - set(quantization.PLAIN_DTYPES))
    if signs or odd:
        raise checkpoint.fail("quantization_unknown", "{file} is quantized in an unsupported format ({found}). Choose "
                              "the bf16 file, or one quantized by ComfyUI's tools.",
                              found=signs[0] if signs else f"dtype {odd[0]}")
