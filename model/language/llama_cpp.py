"""Qwen3-VL and Qwen2.5-VL as llama.cpp writes them: two GGUF files, the language model and the vision projector
(mmproj), each with names of its own -> one checkpoint with Hugging Face's names.

Source: llama.cpp, conversion/qwen3vl.py, conversion/qwenvl.py and gguf-py/gguf/constants.py. No value is moved: only
Llama's rows of Q and K are permuted there, and norms are stored as they are. A projector holds the patch embedding as
two convolutions, one for each of the two frames, and Qwen2.5-VL's has the rows of Q, K and V apart.
"""
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch

from ...messages import Message
from ..checkpoints import gguf
from ..checkpoints.checkpoint import GGUFCheckpoint
from ..checkpoints.errors import CheckpointError
from ..checkpoints.rename import KeyMap
from . import key_maps
from .tokens import IMAGE_PAD_TOKEN

DEEPSTACK = re.compile(r"(?<=deepstack_merger_list\.)\d+")
FRAMES = ("model.visual.patch_embed.proj.weight", "model.visual.patch_embed.proj.weight.1")
QUERIES = re.compile(r"v\.blk\.(\d+)\.attn_q\.(weight|bias)")


class Known(NamedTuple):
    """A text encoder as llama.cpp knows it."""

    name: str                       # for people, as the next
    model: str
    model_type: str                 # in Hugging Face's configuration
    architectures: tuple[str, ...]  # of the language model
    projector: str                  # type of the vision projector
    names: KeyMap
    language_file: str              # examples of the files
    projector_file: str

    @property
    def get_language(self) -> Message:
        return Message("choose_gguf_language_model", "choose a GGUF file of {model}, for example {example}",
                       model=self.model, example=self.language_file)

    @property
    def get_projector(self) -> Message:
        return Message("choose_projector", "choose the mmproj file of {model}, for example {example}",
                       model=self.model, example=self.projector_file)


QWEN3_VL = Known(
    "Qwen3-VL", "Qwen3-VL-8B-Instruct", "qwen3_vl", ("qwen3vl",), "qwen3vl_merger", key_maps.LLAMA_CPP,
    "Qwen3-VL-8B-Instruct-Q8_0.gguf", "mmproj-Qwen3VL-8B-Instruct-F16.gguf")
# Ollama's files have an architecture of their own.
QWEN2_5_VL = Known(
    "Qwen2.5-VL", "Qwen2.5-VL-7B-Instruct", "qwen2_5_vl", ("qwen2vl", "qwen25vl"), "qwen2.5vl_merger",
    key_maps.LLAMA_CPP_QWEN2_5, "Qwen2.5-VL-7B-Instruct-Q8_0.gguf", "Qwen2.5-VL-7B-Instruct-mmproj-BF16.gguf")
KNOWN = {architecture: known for known in (QWEN3_VL, QWEN2_5_VL) for architecture in known.architectures}


def is_projector_name(name: str) -> bool:
    return "mmproj" in name.lower() and name.lower().endswith(".gguf")


def is_llama_cpp(checkpoint: GGUFCheckpoint) -> bool:
    """A language model or a projector with llama.cpp's names; publishers of ComfyUI files keep Hugging Face's."""
    names = ("token_embd.weight", "blk.0.attn_norm.weight", "v.patch_embd.weight")
    return any(name in checkpoint.tensors for name in names)


def text_encoder(language: GGUFCheckpoint, projector: GGUFCheckpoint | None) -> GGUFCheckpoint:
    """Both files as one. Without a projector there is no vision tower. Raises CheckpointError for other models."""
    known = known_language(language)
    stored = {known.names.back(name): one for name, one in language.stored.items()}
    label, config = language.label, {"model_type": known.model_type, "text_config": _text_config(language.header)}
    if projector is not None:
        if refusal := unfit(projector, language):
            raise refusal
        vision, config["vision_config"] = _vision(projector, known)
        stored |= vision
        label = f"{label} with {projector.label}"
    return GGUFCheckpoint.of(label, stored, language.header, config)


def known_language(checkpoint: GGUFCheckpoint) -> Known:
    """Which text encoder a language model is. Raises CheckpointError for other models."""
    found = checkpoint.header.get("general.architecture")
    if found == "clip":
        raise checkpoint.fail("projector_as_text_encoder", "{file} is the vision projector of a language model, not a "
                              "text encoder for Qwen-Image 2. It belongs in Vision projector; {advice}.",
                              advice=QWEN3_VL.get_language)
    known = KNOWN.get(found) if isinstance(found, str) else None
    if known is None:
        what = _of_architecture(found) if found else Message("of_no_architecture", "of unknown architecture")
        raise checkpoint.fail("other_language_model", "{file} is a language model {what}, not a text encoder for "
                              "Qwen-Image 2 ({architecture}): {advice}.", what=what,
                              architecture=list(KNOWN), advice=QWEN3_VL.get_language)
    words = checkpoint.header.get("tokenizer.ggml.tokens")
    if isinstance(words, list) and words[IMAGE_PAD_TOKEN:IMAGE_PAD_TOKEN + 1] != ["<|image_pad|>"]:
        raise checkpoint.fail("other_vocabulary", "{file} has another vocabulary than {model} ({words} words; "
                              "<|image_pad|> is not token {token}): {advice}.", words=f"{len(words):,}",
                              model=known.name, token=IMAGE_PAD_TOKEN, advice=known.get_language)
    return known


def _of_architecture(found: object) -> Message:
    return Message("of_architecture", "of the architecture {architecture}", architecture=str(found))


def unfit(projector: GGUFCheckpoint, language: GGUFCheckpoint) -> CheckpointError | None:
    """What keeps a projector from this language model; None where nothing does."""
    header, known = projector.header, known_language(language)
    projector_type = header.get("clip.projector_type") or header.get("clip.vision.projector_type")
    if projector_type != known.projector:
        what = (_of_architecture(header.get("general.architecture")) if projector_type is None else
                Message("of_type", "of the type {type}", type=str(projector_type)))
        return projector.fail("not_the_projector", "{file} is {what}, not the vision projector of {model} "
                               "({projector}): {advice}.", what=what, model=known.name, projector=known.projector,
                               advice=known.get_projector)
    theirs, ours = width(projector, "mm.2.weight", 0), width(language, "token_embd.weight", 1)
    if theirs != ours:
        return projector.fail("projector_width", "{file} belongs to a language model of width {theirs}, but {language} "
                              "has width {ours}: {advice}.", theirs=theirs,
                               language=language.label, ours=ours, advice=known.get_projector)
    return None


def width(checkpoint: GGUFCheckpoint, name: str, axis: int) -> int:
    return checkpoint.shape(name, axis + 1)[axis]


def _text_config(header: Mapping) -> dict:
    """What shapes cannot tell, as Hugging Face's configuration calls it."""
    architecture = header["general.architecture"]
    sections = header.get(f"{architecture}.rope.dimension_sections")  # a fourth is 0
    rope = {"rope_theta": header.get(f"{architecture}.rope.freq_base"),
            "mrope_section": sections[:3] if isinstance(sections, list) else sections}
    config = {"num_attention_heads": header.get(f"{architecture}.attention.head_count"),
              "rope_parameters": {name: value for name, value in rope.items() if value}}
    return {name: value for name, value in config.items() if value}


def _is_convolution(stored: gguf.Stored) -> bool:
    return len(stored.shape) == 4 and stored.type in gguf.PLAIN


def _vision(checkpoint: GGUFCheckpoint, known: Known) -> tuple[dict[str, gguf.Stored], dict]:
    """The tensors of a projector, and their configuration."""
    moved = {known.names.back(name): one for name, one in _with_joined_attention(checkpoint.stored).items()}
    layers = sorted({int(found[0]) for name in moved if (found := DEEPSTACK.search(name))})
    stored = {DEEPSTACK.sub(lambda found: str(layers.index(int(found[0]))), name): one for name, one in moved.items()}
    if all(name in stored and _is_convolution(stored[name]) for name in FRAMES):  # others are refused by their shapes
        frames = [stored.pop(name) for name in FRAMES]
        if frames[0].shape != frames[1].shape:
            raise checkpoint.fail("frame_shapes", "{file}: the patch embeddings of the two frames differ in shape: "
                                  "{advice}.", advice=known.get_projector)
        joined = torch.stack([frame.read() for frame in frames], 2)  # (width, 3, 2, patch, patch)
        stored[FRAMES[0]] = gguf.Stored(tuple(joined.shape), frames[0].type, joined)
    heads = checkpoint.header.get("clip.vision.attention.head_count")
    config = {"deepstack_visual_indexes": layers, "num_heads": heads,
              "fullatt_block_indexes": _blocks_that_see_all(checkpoint)}
    return stored, {name: value for name, value in config.items() if value}


def _with_joined_attention(stored: Mapping[str, gguf.Stored]) -> dict[str, gguf.Stored]:
    """Queries, keys and values of each block as the one matrix that they are elsewhere. Those that do not belong
    together stay apart, and are refused as tensors that no network has."""
    joined = dict(stored)
    for found in filter(None, map(QUERIES.fullmatch, stored)):
        names = [f"v.blk.{found[1]}.attn_{part}.{found[2]}" for part in "qkv"]
        if set(names) <= set(stored) and stored[names[0]].shape and len({stored[name][:2] for name in names}) == 1:
            joined[f"v.blk.{found[1]}.attn_qkv.{found[2]}"] = gguf.stacked([joined.pop(name) for name in names])
    return joined


def _blocks_that_see_all(checkpoint: GGUFCheckpoint) -> list[int]:
    """Of a tower whose other blocks look through windows: the last of every so many."""
    every, depth = checkpoint.header.get("clip.vision.n_wa_pattern"), checkpoint.count("v.blk.{}.ln1.weight")
    return list(range(every - 1, depth, every)) if isinstance(every, int) and every > 0 else []
