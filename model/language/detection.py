"""How a language model with a vision tower is found in a file, whichever it is, and what all of them refuse."""
from collections.abc import Callable

from ...messages import Message, Refusal
from ..checkpoints import quantization
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.matching import (
    Detected,
    Part,
    Sources,
    Spec,
    detected,
    needed_config,
    refuse_other_tools,
    refuse_unexplained,
    sized,
    wrong_file,
)
from . import key_maps
from .tokens import IMAGE_PAD_TOKEN

TEXT_ENCODER = Message("part_text_encoder", "text encoder")  # how messages call those of both families
EMBEDDINGS = "model.language_model.embed_tokens.weight"


def detect_language_model(checkpoint: Checkpoint, part: Part, markers: tuple[str, ...],
                          spec_of: Callable[[Checkpoint], Spec]) -> Detected[Spec]:
    """Spec and key table of a language model with a vision tower.

    markers: names, Hugging Face's, that only this architecture has together; spec_of: its sizes, of a checkpoint with
    those names.
    """
    refuse_other_tools(checkpoint)
    # Core's save nodes write its own name of the model before the names, and whole checkpoints more.
    prefix = checkpoint.prefix_of(markers[0], key_maps.COMFY.to(markers[0])) or ""
    stored = checkpoint.below(prefix)
    unpacked = quantization.unpack(stored)
    table: Sources = {key_maps.COMFY.back(name): (name,) for name in unpacked.plain.tensors}
    named = stored.with_tensors({name: unpacked.plain.tensors[tensor] for name, (tensor,) in table.items()})
    if not all(marker in named.tensors for marker in markers):
        raise wrong_file(checkpoint, part)
    refuse_unexplained(unpacked.plain)
    _refuse_packed_vocabulary(stored, table, part)
    spec = sized(named, spec_of, named)
    return detected(prefix, stored, unpacked.companions, spec,
                    {name: info.shape for name, info in named.tensors.items()}, table,
                    needed_config(named, spec_of, spec))


def _refuse_packed_vocabulary(checkpoint: Checkpoint, table: Sources, part: Part) -> None:
    """Words are looked up row by row, which blocks and rotated 4 bits do not allow in ComfyUI's embeddings."""
    if EMBEDDINGS not in table:
        return
    name, = table[EMBEDDINGS]
    found = checkpoint.quantization.get(quantization.layer_of(name), {}).get("format")
    if found is not None and found not in quantization.ROWS:
        raise checkpoint.fail("vocabulary_quantised", "{file}: the vocabulary ({tensor}) is quantized as {format}, "
                              "which does not allow row lookups ({formats}): {advice}.", tensor=name, format=found,
                              formats=", ".join(quantization.ROWS), advice=part.advice)


# ---------------------------------------------------------------- what sizes must be

def check_heads(dim: int, heads: int) -> None:
    """Of a vision tower."""
    if dim % heads:
        raise Refusal("vision_heads", "the vision tower's width {width} is not a multiple of its {heads} heads.",
                      width=dim, heads=heads)


def check_sections(mrope_section: tuple[int, int, int], head_dim: int) -> None:
    if 2 * sum(mrope_section) != head_dim:
        raise Refusal("mrope_sections", "mrope_section {sections} makes {channels} channels, but head_dim is "
                      "{head_dim}.", sections=str(mrope_section), channels=2 * sum(mrope_section), head_dim=head_dim)


def check_vocabulary(checkpoint: Checkpoint, tokens: int, model: str, expected: int, part: Part) -> None:
    """Every word that a prompt needs is in it: image tokens are among the last."""
    if tokens <= IMAGE_PAD_TOKEN:
        raise checkpoint.fail("vocabulary_size", "{file} has a vocabulary of {tokens} tokens; {model} has {expected}: "
                              "{advice}.", tokens=f"{tokens:,}", model=model, expected=f"{expected:,}",
                              advice=part.advice)


def refuse_other_tower(checkpoint: Checkpoint, found: tuple[int, int], published: tuple[int, int], part: Part) -> None:
    """found, published: depth and width. Without a configuration only the published tower is known."""
    if not checkpoint.configuration.section("vision_config") and found != published:
        raise checkpoint.fail("vision_tower_size", "{file} has a vision tower of depth {depth} and width {width}; the "
                              "published model has {expected_depth} and {expected_width}: {advice}.", depth=found[0],
                              width=found[1], expected_depth=published[0], expected_width=published[1],
                              advice=part.advice)
