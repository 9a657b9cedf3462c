"""Qwen3-VL as llama.cpp writes it: two GGUF files, the language model and the vision projector (mmproj), each with
names of its own -> one checkpoint with Hugging Face's names.

Source: llama.cpp, conversion/qwen3vl.py and gguf-py/gguf/constants.py. No value is moved: only Llama's rows of Q and K
are permuted there, and norms are stored as they are. A projector holds the patch embedding as two convolutions, one for
each of the two frames.
"""
import re
from collections.abc import Mapping

import torch

from ...messages import Message
from ..checkpoints import gguf
from ..checkpoints.checkpoint import GGUFCheckpoint
from ..checkpoints.errors import CheckpointError
from . import key_maps
from .tokens import IMAGE_PAD_TOKEN

ARCHITECTURE = "qwen3vl"
PROJECTOR = "qwen3vl_merger"
DEEPSTACK = re.compile(r"(?<=deepstack_merger_list\.)\d+")
FRAMES = ("model.visual.patch_embed.proj.weight", "model.visual.patch_embed.proj.weight.1")

GET_LANGUAGE = Message("choose_gguf_language_model", "choose a GGUF file of Qwen3-VL-8B-Instruct, for example "
                       "Qwen3-VL-8B-Instruct-Q8_0.gguf")
GET_PROJECTOR = Message("choose_projector", "choose the mmproj file of Qwen3-VL-8B-Instruct, for example "
                        "mmproj-Qwen3VL-8B-Instruct-F16.gguf")


def is_projector_name(name: str) -> bool:
    return "mmproj" in name.lower() and name.lower().endswith(".gguf")


def is_llama_cpp(checkpoint: GGUFCheckpoint) -> bool:
    """A language model or a projector with llama.cpp's names; publishers of ComfyUI files keep Hugging Face's."""
    names = ("token_embd.weight", "blk.0.attn_norm.weight", "v.patch_embd.weight")
    return any(name in checkpoint.tensors for name in names)


def text_encoder(language: GGUFCheckpoint, projector: GGUFCheckpoint | None) -> GGUFCheckpoint:
    """Both files as one. Without a projector there is no vision tower. Raises CheckpointError for other models."""
    check_language(language)
    stored = {key_maps.LLAMA_CPP.back(name): one for name, one in language.stored.items()}
    label, config = language.label, {"model_type": "qwen3_vl", "text_config": _text_config(language.header)}
    if projector is not None:
        if refusal := unfit(projector, language):
            raise refusal
        vision, config["vision_config"] = _vision(projector)
        stored |= vision
        label = f"{label} with {projector.label}"
    return GGUFCheckpoint.of(label, stored, language.header, config)


def check_language(checkpoint: GGUFCheckpoint) -> None:
    found = checkpoint.header.get("general.architecture")
    if found == "clip":
        raise checkpoint.fail("projector_as_text_encoder", "{file} is the vision projector of a language model, not a "
                              "text encoder for Qwen-Image 2. It belongs in Vision projector; {advice}.",
                              advice=GET_LANGUAGE)
    if found != ARCHITECTURE:
        what = _of_architecture(found) if found else Message("of_no_architecture", "of unknown architecture")
        raise checkpoint.fail("other_language_model", "{file} is a language model {what}, not a text encoder for "
                              "Qwen-Image 2 ({architecture}): {advice}.", what=what,
                              architecture=ARCHITECTURE, advice=GET_LANGUAGE)
    words = checkpoint.header.get("tokenizer.ggml.tokens")
    if isinstance(words, list) and words[IMAGE_PAD_TOKEN:IMAGE_PAD_TOKEN + 1] != ["<|image_pad|>"]:
        raise checkpoint.fail("other_vocabulary", "{file} has another vocabulary than Qwen3-VL ({words} words; "
                              "<|image_pad|> is not token {token}): {advice}.", words=f"{len(words):,}",
                              token=IMAGE_PAD_TOKEN, advice=GET_LANGUAGE)


def _of_architecture(found: object) -> Message:
    return Message("of_architecture", "of the architecture {architecture}", architecture=str(found))


def unfit(projector: GGUFCheckpoint, language: GGUFCheckpoint) -> CheckpointError | None:
    """What keeps a projector from this language model; None where nothing does."""
    header = projector.header
    projector_type = header.get("clip.projector_type") or header.get("clip.vision.projector_type")
    if projector_type != PROJECTOR:
        what = (_of_architecture(header.get("general.architecture")) if projector_type is None else
                Message("of_type", "of the type {type}", type=str(projector_type)))
        return projector.fail("not_the_projector", "{file} is {what}, not the vision projector of Qwen3-VL "
                               "({projector}): {advice}.", what=what, projector=PROJECTOR,
                               advice=GET_PROJECTOR)
    theirs, ours = width(projector, "mm.2.weight", 0), width(language, "token_embd.weight", 1)
    if theirs != ours:
        return projector.fail("projector_width", "{file} belongs to a language model of width {theirs}, but {language} "
                              "has width {ours}: {advice}.", theirs=theirs,
                               language=language.label, ours=ours, advice=GET_PROJECTOR)
    return None


def width(checkpoint: GGUFCheckpoint, name: str, axis: int) -> int:
    return checkpoint.shape(name, axis + 1)[axis]


def _text_config(header: Mapping) -> dict:
    """What shapes cannot tell, as Hugging Face's configuration calls it."""
    sections = header.get(f"{ARCHITECTURE}.rope.dimension_sections")  # a fourth is 0
    rope = {"rope_theta": header.get(f"{ARCHITECTURE}.rope.freq_base"),
            "mrope_section": sections[:3] if isinstance(sections, list) else sections}
    return {"rope_parameters": {name: value for name, value in rope.items() if value}}


def _is_convolution(stored: gguf.Stored) -> bool:
    return len(stored.shape) == 4 and stored.type in gguf.PLAIN


def _vision(checkpoint: GGUFCheckpoint) -> tuple[dict[str, gguf.Stored], dict]:
    """The tensors of a projector, and their configuration."""
    moved = {key_maps.LLAMA_CPP.back(name): one for name, one in checkpoint.stored.items()}
    layers = sorted({int(found[0]) for name in moved if (found := DEEPSTACK.search(name))})
    stored = {DEEPSTACK.sub(lambda found: str(layers.index(int(found[0]))), name): one for name, one in moved.items()}
    if all(name in stored and _is_convolution(stored[name]) for name in FRAMES):  # others are refused by their shapes
        frames = [stored.pop(name) for name in FRAMES]
        if frames[0].shape != frames[1].shape:
            raise checkpoint.fail("frame_shapes", "{file}: the patch embeddings of the two frames differ in shape: "
                                  "{advice}.", advice=GET_PROJECTOR)
        joined = torch.stack([frame.read() for frame in frames], 2)  # (width, 3, 2, patch, patch)
        stored[FRAMES[0]] = gguf.Stored(tuple(joined.shape), frames[0].type, joined)
    heads = checkpoint.header.get("clip.vision.attention.head_count")
    config = {"deepstack_visual_indexes": layers, "num_heads": heads}
    return stored, {name: value for name, value in config.items() if value}
