"""The prompt template of Qwen-Image 2.x.

Source: diffusers 0.42.1, pipeline_qwenimage21.py. There is no think block, and the text goes to the tokenizer as
it is, special tokens included.
"""

from ..images.references import check_no_image_token

SYSTEM_PROMPT = "Comprehend and analyze the provided prompt."
IMAGE_SLOT = "<|vision_start|><|image_pad|><|vision_end|>"

# Tokens of the system turn, which the transformer never sees.
SYSTEM_TOKENS = 14


def render(prompt: str, images: int = 0) -> str:
    """The full text for the tokenizer: references named <image1>..., one space between them, none before the prompt.

    Raises ValueError where the prompt holds an image token of its own, which would claim a slot.
    """
    check_no_image_token(prompt)
    references = " ".join(f"<image{number}>{IMAGE_SLOT}" for number in range(1, images + 1))
    # Qwen has no start token: an empty prompt would leave nothing to read.
    return (f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n"
            f"<|im_start|>user\n{references}{prompt or ' '}<|im_end|>\n"
            f"<|im_start|>assistant\n")
