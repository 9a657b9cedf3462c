"""Prompts -> CONDITIONING."""
from comfy_api.latest import io

from ..messages import Message
from .bridge.text_encoders.families import check_clip, count_tokens, encode_together, family_of
from .common import categories
from .common.prompts import FOR_THE_METER, advice_on, trained_tokens
from .common.schemas import schema
from .frontend import ui_hints
from .notices import notify


class QwenImage2TextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2TextEncode",
            display_name="Encode Prompt (Qwen-Image 2)",
            category=categories.CONDITIONING,
            description="Encodes a prompt and a negative prompt with the template of the model, Qwen-Image 2.x or 1.x.",
            search_aliases=["clip text encode", "prompt", "qwen image prompt", "positive negative"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder: Qwen3-VL of Qwen-Image 2.x, or Qwen2.5-VL of 1.x."),
                io.String.Input("prompt", multiline=True, dynamic_prompts=True, extra_dict=ui_hints(meter=True),
                                tooltip="What to draw. Put words that must appear in the image in double quotes. Up to "
                                        "about 1,000 tokens; nothing is cut off. Prompt weights like (word:1.2) have "
                                        "no effect: the text is read as it is."),
                io.String.Input("negative_prompt", multiline=True, dynamic_prompts=True, default="",
                                tooltip="What to avoid. Only used, and only encoded, where the sampler's CFG is above "
                                        "1."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
                io.Int.Output(display_name="tokens", tooltip="Token count of the prompt by the model's own tokenizer."),
            ],
        )

    @classmethod
    def execute(cls, clip, prompt, negative_prompt):
        check_clip(clip)
        positive, negative = encode_together(clip, (prompt, negative_prompt), [])
        tokens, trained = count_tokens(prompt), trained_tokens(family_of(clip))
        note = Message("prompt_tokens", "{tokens} tokens.", tokens=tokens) if tokens <= trained else Message(
            "prompt_long", "{tokens} tokens; the model was trained for {max}. The prompt is encoded whole, but its end "
            "may be ignored.", tokens=tokens, max=trained)
        return io.NodeOutput(list(positive), negative, tokens,
                             ui=notify(cls, note, advice_on(prompt)) | {FOR_THE_METER: [trained]})
