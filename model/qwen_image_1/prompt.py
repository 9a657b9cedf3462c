"""The prompt templates of Qwen-Image 1.x.

Source: diffusers 0.42.1, modular_pipelines/qwenimage/prompt_templates.py, verbatim: the weights (Apache-2.0) were
trained on these very words. The prompt goes to the tokenizer as it is, special tokens included.
"""
import re
from collections.abc import Sequence
from typing import NamedTuple

from ...messages import Refusal
from ..images.references import check_no_image_token

# What text-to-image was trained to follow; longer prompts are encoded whole.
TRAINED_TOKENS = 1024

START, USER, NEWLINE = 151644, 872, 198  # <|im_start|>, the word after it where the user speaks, and what ends the line

TEXT_TEMPLATE = (
    "<|im_start|>system\n"
    "Describe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n")

_EDIT_SYSTEM = (
    "<|im_start|>system\n"
    "Describe the key features of the input image (color, shape, size, texture, objects, background), "
    "then explain how the user's text instruction should alter or modify the image. "
    "Generate a new image that meets the user's requirements while maintaining consistency "
    "with the original input where appropriate.<|im_end|>\n"
    "<|im_start|>user\n")
EDIT_TEMPLATE = _EDIT_SYSTEM + (
    "<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n"
    "<|im_start|>assistant\n")
EDIT_PLUS_TEMPLATE = _EDIT_SYSTEM + (
    "{}<|im_end|>\n"
    "<|im_start|>assistant\n")
# Of Edit-Plus, for each picture, in order and before the prompt.
LABELLED_SLOT = "Picture {}: <|vision_start|><|image_pad|><|vision_end|>"

# Whole conversations, by which Qwen2.5-VL writes the prompt of a picture that is to be taken apart.
CAPTION_EN = (
    "<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n"
    "# Image Annotator\n"
    "You are a professional image annotator. Please write an image caption based on the input image:\n"
    "1. Write the caption using natural, descriptive language without structured formats or rich text.\n"
    "2. Enrich caption details by including:\n"
    " - Object attributes, such as quantity, color, shape, size, material, state, position, actions, and so on\n"
    " - Vision Relations between objects, such as spatial relations, functional relations, possessive relations, "
    "attachment relations, action relations, comparative relations, causal relations, and so on\n"
    " - Environmental details, such as weather, lighting, colors, textures, atmosphere, and so on\n"
    " - Identify the text clearly visible in the image, without translation or explanation, "
    "and highlight it in the caption with quotation marks\n"
    "3. Maintain authenticity and accuracy:\n"
    " - Avoid generalizations\n"
    " - Describe all visible information in the image, while do not add information not explicitly shown in the image\n"
    "<|vision_start|><|image_pad|><|vision_end|><|im_end|>\n"
    "<|im_start|>assistant\n")
CAPTION_CN = (
    "<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n"
    "# 图像标注器\n"
    "你是一个专业的图像标注器。请基于输入图像，撰写图注:\n"
    "1. 使用自然、描述性的语言撰写图注，不要使用结构化形式或富文本形式。\n"
    "2. 通过加入以下内容，丰富图注细节：\n"
    " - 对象的属性：如数量、颜色、形状、大小、位置、材质、状态、动作等\n"
    " - 对象间的视觉关系：如空间关系、功能关系、动作关系、从属关系、比较关系、因果关系等\n"
    " - 环境细节：例如天气、光照、颜色、纹理、气氛等\n"
    " - 文字内容：识别图像中清晰可见的文字，不做翻译和解释，用引号在图注中强调\n"
    "3. 保持真实性与准确性：\n"
    " - 不要使用笼统的描述\n"
    " - 描述图像中所有可见的信息，但不要加入没有在图像中出现的内容\n"
    "<|vision_start|><|image_pad|><|vision_end|><|im_end|>\n"
    "<|im_start|>assistant\n")


class Template(NamedTuple):
    """text: with {} for the prompt. slot: what stands before the prompt for each picture, with {} for its number."""

    text: str
    slot: str = ""


TEXT_TO_IMAGE = Template(TEXT_TEMPLATE)  # with ControlNets and layers too
EDIT = Template(EDIT_TEMPLATE)           # the first edit model, whose one slot is in the text
EDIT_PLUS = Template(EDIT_PLUS_TEMPLATE, LABELLED_SLOT)  # 2509 and 2511, labels for one picture too


def template_for(pictures: int) -> Template:
    """Of an instruction that comes without one: core's Text Encode Qwen Image Edit gives a picture and no template, and
    means the first edit model's."""
    return (TEXT_TO_IMAGE, EDIT)[pictures] if pictures < 2 else EDIT_PLUS


def render(prompt: str, template: Template = TEXT_TO_IMAGE, pictures: int = 0) -> str:
    """The full text for the tokenizer, with a slot for each picture.

    Raises Refusal where the prompt holds an image token of its own, which would claim a slot, and for more pictures
    than the template has slots.
    """
    check_no_image_token(prompt)
    if template is EDIT and pictures != 1:
        raise Refusal("edit_one_picture", "The first Qwen-Image-Edit model reads exactly one reference, got {count}. "
                      "Connect one, or choose an Edit-2509 or 2511 model.", count=pictures)
    slots = "".join(template.slot.format(number) for number in range(1, pictures + 1))
    return template.text.format(slots + prompt)


def with_labels(prompt: str) -> str:
    """The prompt with <imageN>, 2.x's name of a reference, as the label that 1.x knows: "Picture N". A prompt without
    such names comes back as it is."""
    return re.sub(r"<image(\d+)>", r"Picture \1", prompt)


def has_labels(prompt: str) -> bool:
    return re.search(r"\b[Pp]icture \d", prompt) is not None


def tokens_dropped(tokens: Sequence) -> int:
    """How many of a conversation's tokens the transformer never sees: the system turn and the opening of the user's.

    tokens: their numbers; an image's may be anything else, one entry each. Of a conversation without a system turn,
    which another node may have written, the opening alone (ComfyUI 0.30, comfy/text_encoders/qwen_image.py).
    """
    starts = [place for place, token in enumerate(tokens) if token == START][:2]
    if not starts:
        return 0
    opening = list(tokens[starts[-1] + 1:starts[-1] + 3]) == [USER, NEWLINE]
    return starts[-1] + 3 * opening
