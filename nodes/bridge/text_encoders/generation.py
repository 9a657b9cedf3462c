"""Text from a CLIP, by ComfyUI's own generation: what core's Generate Text node calls."""
import itertools
from collections.abc import Callable, Sequence

import comfy.model_management
import comfy.text_encoders.llama
import comfy.text_encoders.qwen3vl
import comfy.text_encoders.qwen35
from torch import Tensor

from ....messages import Message, Refusal
from ....model.images import references
from ....model.qwen_image_2.prompt import IMAGE_SLOT
from ....pages import enhancement
from ....pages.enhancement import Task
from ....pages.enhancement_answer import Generated
from . import qwen2_5_vl, qwen3_5
from .shared import Reader

# Their tokenizers take a whole conversation as it is.
CHAT_TOKENIZERS = (comfy.text_encoders.qwen35.Qwen35ImageTokenizer, comfy.text_encoders.qwen3vl.Qwen3VLTokenizer,
                   qwen2_5_vl.Tokenizer)
ADVICE = Message("choose_language_model", "connect a prompt enhancer from Load Prompt Enhancer, or another language "
                 "model that ComfyUI's Generate Text node accepts")
CAPTION_TOKENS = 512  # diffusers 0.42.1, pipeline_qwenimage_layered.py
CAPTION_PENALTY = 1.05


def check_writes(clip, sees: bool, advice: Message = ADVICE) -> None:
    """Refuse a CLIP that cannot write text, and where there are images, one that cannot see them. advice: what else to
    do about text."""
    model = _language_model(clip)
    if model is None:
        raise Refusal("clip_cannot_write", "This CLIP cannot generate text: {advice}.", advice=advice)
    if isinstance(model, Reader) and not model.spec.lm_head:
        raise Refusal("lm_head_missing", "This text encoder's file has no output layer (lm_head), so it cannot "
                      "generate text: {advice}.", advice=advice)
    if sees and not hasattr(model, "preprocess_embed"):
        raise Refusal("clip_cannot_see", "This language model has no vision. Disconnect the images, or connect a model "
                      "with vision, such as the official enhancer for edits.")


def is_enhancer(clip) -> bool:
    return isinstance(clip.tokenizer, qwen3_5.Tokenizer)


def generate(clip, instruction: str, prompt: str, images: Sequence[Tensor], task: Task, seed: int, most_tokens: int,
             progress: Callable[[int], None]) -> Generated:
    """The language model's answer, sampled by the task's settings. images: (H, W, 3 or 4) in [0, 1], of any size.

    progress(tokens) is called for each of them. A cancelled run ends there; core's bar, which moves with every half
    percent of the most tokens, would look only then.
    """
    shown = [references.over_white(references.resize(image, *enhancement.seen_size(image.shape[1], image.shape[0])))
             for image in images]
    tokens = _tokens(clip, instruction, prompt, shown)
    with _for_each_token(clip, progress):
        ids = clip.generate(
            tokens, do_sample=True, max_length=most_tokens, seed=seed, temperature=enhancement.TEMPERATURE,
            top_p=enhancement.TOP_P, top_k=enhancement.TOP_K, min_p=0.0, repetition_penalty=1.0,
            presence_penalty=task.presence_penalty)
    return Generated(clip.decode(ids), len(ids), len(ids) >= most_tokens and ids[-1] not in _stop_tokens(clip))


def caption(clip, conversation: str, image: Tensor, progress: Callable[[int], None]) -> str:
    """What the text encoder of Qwen-Image 1.x writes of a picture (1, H, W, 3 or 4), always the same.

    conversation: whole, with a slot for the picture. Settings as in Qwen2.5-VL's generation_config.json, whose
    temperature of 1e-6 leaves the likeliest token; ComfyUI's penalty counts what has been written, transformers' the
    conversation too. progress: as in generate.
    """
    tokens = clip.tokenize(conversation, images=[image])
    with _for_each_token(clip, progress):
        ids = clip.generate(tokens, do_sample=True, max_length=CAPTION_TOKENS, seed=0, temperature=1.0, top_p=1.0,
                            top_k=1, min_p=0.0, repetition_penalty=CAPTION_PENALTY, presence_penalty=0.0)
    return clip.decode(ids).strip()


def _for_each_token(clip, progress: Callable[[int], None]):
    """A context in which progress is called for each token: before the final norm, which runs in Python once for each.
    The layers do not where ComfyUI replays them as CUDA graphs (comfy/model_prefetch.py 03fb330a)."""
    written = itertools.count()

    def before(*_):
        comfy.model_management.throw_exception_if_processing_interrupted()
        progress(next(written))

    return _language_model(clip).model.norm.register_forward_pre_hook(before)


def _tokens(clip, instruction: str, prompt: str, images: list[Tensor]) -> dict:
    tokenizer = clip.tokenizer
    if isinstance(tokenizer, CHAT_TOKENIZERS):
        thinks = isinstance(tokenizer, comfy.text_encoders.qwen35.Qwen35ImageTokenizer)
        text = enhancement.chat(instruction, prompt, len(images), IMAGE_SLOT, "<think>\n" if thinks else "")
        return clip.tokenize(text, images=images, skip_template=True)
    if len(images) > 1:
        raise Refusal("one_image_only", "This language model accepts one image at most, got {images}. Use the official "
                      "enhancer for edits.", images=len(images))
    # Its own template has one turn of the user, and knows where an image goes.
    return clip.tokenize(f"{instruction}\n\n{prompt}", image=images[0] if images else None, skip_template=False,
                         min_length=1, thinking=True)


def _language_model(clip) -> comfy.text_encoders.llama.BaseGenerate | None:
    return next((module for module in clip.cond_stage_model.modules()
                 if isinstance(module, comfy.text_encoders.llama.BaseGenerate)), None)


def _stop_tokens(clip) -> Sequence[int]:
    return getattr(_language_model(clip).model.config, "stop_tokens", None) or ()
