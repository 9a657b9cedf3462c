"""A short prompt -> the long one that the model was trained for, by a language model of the user's own."""
import hashlib
from collections.abc import Callable

import torch
from comfy_api.latest import io

from ..messages import Message, Refusal
from ..model.images import sizes
from ..model.images.references import named_references
from ..pages import enhancement
from ..pages.enhancement_answer import Generated
from .bridge.files import folders, miniature, system_prompts
from .bridge.text_encoders import generation
from .bridge.text_encoders.qwen3_5 import load_enhancer
from .common import categories
from .common.checks import UNCONNECTED, check_before_run, check_canvas, check_no_others
from .common.images import connected_references
from .common.inputs import canvas_inputs, reference_inputs
from .common.schemas import schema
from .frontend import ui_hints
from .notices import notify, token_counter

# Comfy-Org's files of the two official models. Offered even before they are there, so that a workflow can name one.
OFFICIAL = ("qwen3.5_9b_qwen_image_2.1_pe_t2i.int8_convrot.safetensors",
            "qwen3.5_9b_qwen_image_2.1_pe_i2i.int8_convrot.safetensors")
PROMPT = Message("the_prompt", "The prompt")
OFF = Message("enhancer_off", "The enhancer is off: prompt and canvas are passed through unchanged.")
UNTRAINED = Message("enhancer_untrained", "The official enhancers were trained with their own system_prompt.txt. Put "
                    "it below models/text_encoders and choose it as System prompt.")


def enhancer_choices() -> list[str]:
    found = [name for name in folders.choices(folders.TEXT_ENCODER) if name != miniature.NAME]
    return [*OFFICIAL, *(name for name in found if name not in OFFICIAL)]


class QwenImage2LoadEnhancer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="QwenImage2LoadEnhancer",
            display_name="Load Prompt Enhancer (Qwen-Image 2)",
            category=categories.ENHANCER,
            description="Loads an official prompt enhancer (Qwen3.5), a language model for Enhance Prompt.",
            search_aliases=["prompt enhancer", "qwen3.5", "llm loader", "prompt rewriter", "clip loader"],
            inputs=[
                io.Combo.Input("enhancer", enhancer_choices(), default=OFFICIAL[0],
                               tooltip="A Qwen3.5 file in models/text_encoders, or a folder below it: ..._pe_t2i for "
                                       "text-to-image, ..._pe_i2i for edits. 9.5 GB each, your own download, Qwen "
                                       "Research License (non-commercial)."),
            ],
            outputs=[io.Clip.Output(tooltip="For Enhance Prompt and core's Generate Text; it does not "
                                            "encode prompts.")],
        )

    @classmethod
    def execute(cls, enhancer):
        if enhancer not in folders.choices(folders.TEXT_ENCODER):
            raise Refusal("enhancer_gone", "{file} is not in models/text_encoders. Put it there (9.5 GB, from "
                          "Comfy-Org/Qwen-Image-2.1 on Hugging Face, Qwen Research License, non-commercial) and press "
                          "R, or switch off Use the enhancer.", file=enhancer)
        return io.NodeOutput(load_enhancer(folders.resolve(folders.TEXT_ENCODER, enhancer), enhancer))


class QwenImage2PromptEnhance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2PromptEnhance",
            display_name="Enhance Prompt (Qwen-Image 2)",
            category=categories.ENHANCER,
            description="A language model expands a short prompt into a long one and proposes the canvas. Quoted texts "
                        "are kept as they are.",
            search_aliases=["prompt enhancer", "prompt rewrite", "magic prompt", "llm", "expand prompt"],
            inputs=[
                io.String.Input("prompt", multiline=True, dynamic_prompts=True, default="",
                                extra_dict=ui_hints(meter=True),
                                tooltip="What you want, in your own words and language. Texts in double quotes are "
                                        "kept exactly as written."),
                io.Boolean.Input("enabled", default=True,
                                 tooltip="Off: no language model is loaded or run; the prompt is passed through "
                                         "unchanged."),
                io.Clip.Input("clip", optional=True, lazy=True,
                              tooltip="An official enhancer (Load Prompt Enhancer), or another language model that "
                                      "generates text, including Qwen-Image 2's own text encoder. Loaded only when "
                                      "enabled."),
                io.Combo.Input("system_prompt", system_prompts.choices(), default=system_prompts.BUILT_IN,
                               tooltip="The official enhancers need the system_prompt.txt that comes with each: put it "
                                       "anywhere below models/text_encoders. built-in: a short one of this pack, for "
                                       "other language models."),
                reference_inputs("For edits: the references, in the order of Encode Edit. The language model sees "
                                 "them. Every picture of a batch is used.", optional=True),
                *canvas_inputs("1:1", "1024"),
                io.Boolean.Input("follow_proposal", default=True,
                                 tooltip="Uses the aspect ratio that the language model proposes, at the chosen size "
                                         "class. Off, or without a proposal: the canvas set here."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False,
                             tooltip="Another seed, another wording. The same inputs give the same prompt and are not "
                                     "computed again."),
                io.Int.Input("max_tokens", default=0, min=0, max=32768, advanced=True,
                             tooltip="Limit for the language model, thinking included. 0: the official 16,256, with "
                                     "images 24,000."),
            ],
            outputs=[
                io.String.Output(display_name="prompt"),
                io.Int.Output(display_name="width", tooltip="In pixels, for Empty Latent or Encode Edit set "
                                                            "to custom."),
                io.Int.Output(display_name="height", tooltip="Pixels."),
                io.String.Output(display_name="report", tooltip="What was done, line by line; if the answer could not "
                                                                "be used, the answer."),
            ],
        )

    @check_before_run
    def validate_inputs(cls, prompt, enabled, system_prompt, aspect_ratio, width, height, clip=UNCONNECTED,
                        images=None):
        """images: ComfyUI hands inputs that grow to every check that there is."""
        check_canvas(aspect_ratio, width, height)
        if not enabled:
            return
        check_connected(clip is not UNCONNECTED)
        if prompt is not None:
            enhancement.check_text(prompt, PROMPT)
        if system_prompt is not None:
            system_prompts.read(system_prompt, enhancement.TEXT_TO_IMAGE)

    @classmethod
    def check_lazy_status(cls, enabled, clip=False, **_):
        # None: connected and not made yet; left out: not connected.
        return ["clip"] if enabled and clip is None else []

    @classmethod
    def fingerprint_inputs(cls, enabled, system_prompt, **_):
        """The file behind a name may have changed. Where `enabled` is linked (None) it may be used."""
        if enabled is False or system_prompt in (None, system_prompts.BUILT_IN):
            return ""
        try:
            text = system_prompts.read(system_prompt, enhancement.TEXT_TO_IMAGE)
        except Refusal as refusal:  # the node says so where it needs the file; raised here, it would run every time
            return str(refusal)
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def execute(cls, prompt, enabled, system_prompt, aspect_ratio, size, width, height, follow_proposal, seed,
                max_tokens, clip=None, images=None, **others):
        check_no_others(others)
        canvas = sizes.chosen_size(aspect_ratio, int(size), width, height)
        if not enabled:
            return io.NodeOutput(prompt, *canvas, OFF, ui=notify(cls, OFF))
        references = connected_references(images) if any(image is not None for image in (images or {}).values()) else []
        task = enhancement.EDIT if references else enhancement.TEXT_TO_IMAGE
        generated = answer(clip, task, prompt, system_prompt, references, seed, max_tokens, token_counter(cls))
        result = enhancement.enhanced(prompt, generated, canvas, int(size) if follow_proposal else None,
                                      [(image.shape[1], image.shape[0]) for image in references])
        untrained = UNTRAINED if generation.is_enhancer(clip) and system_prompt == system_prompts.BUILT_IN else None
        cost = Message("enhancer_written", "{tokens} tokens generated, task: {task}.", tokens=generated.tokens,
                       task=task.name)
        notes = [note for note in (cost, untrained, *result.notes) if note]
        return io.NodeOutput(result.prompt, *result.canvas, "\n".join(notes), ui=notify(cls, *notes))


def check_connected(connected: bool) -> None:
    if not connected:
        raise Refusal("enhancer_unconnected", "No language model is connected. Connect a prompt enhancer (from Load "
                      "Prompt Enhancer) to CLIP, or switch off Use the enhancer.")


def answer(clip, task: enhancement.Task, prompt: str, system_prompt: str, references: list[torch.Tensor], seed: int,
           max_tokens: int, progress: Callable[[int], None]) -> Generated:
    """What the language model writes. Raises ValueError for what it cannot be asked, before it is."""
    check_connected(clip is not None)
    enhancement.check_text(prompt, PROMPT)
    if references:
        named_references(prompt, len(references))
    generation.check_writes(clip, sees=bool(references))
    return generation.generate(clip, system_prompts.read(system_prompt, task), prompt, references, task, seed,
                               max_tokens or task.most_tokens, progress)
