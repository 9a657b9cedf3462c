"""LoRAs in every form that circulates for Qwen-Image 2."""
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..messages import Message, plural
from .bridge.files.folders import file_names
from .bridge.lora import Applied, apply
from .common import categories
from .common.checks import check_model
from .common.schemas import schema
from .notices import notify

FOLDER = "loras"


class QwenImage2LoadLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2LoadLoRA",
            display_name="Load LoRA (Qwen-Image 2)",
            category=categories.LOADERS,
            description="Applies a LoRA. Unlike core's loader it also accepts files that keep their scale in the "
                        "metadata, computes DoRA as PEFT does, and refuses damaged files and LoRAs of other models at "
                        "once.",
            search_aliases=["lora", "lora loader", "lycoris", "lokr", "style", "lightning"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Qwen-Image 2, or after another LoRA."),
                io.Combo.Input("lora", [name for name in file_names(FOLDER) if name.lower().endswith(".safetensors")],
                               tooltip="A .safetensors file in models/loras."),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.05,
                               tooltip="1: full strength, as trained. 0: off."),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, lora, strength):
        check_model(model)
        if strength == 0:
            return io.NodeOutput(model, ui=notify(cls, Message(
                "lora_off", "{file} has strength 0 and is not loaded.", file=lora)))
        applied = apply(model, Path(folder_paths.get_full_path_or_raise(FOLDER, lora)), lora, strength)
        return io.NodeOutput(applied.model, ui=notify(cls, *in_words(lora, applied)))


def in_words(name: str, applied: Applied) -> list[str]:
    patched = plural("weights_patched", applied.matrices, "{count} weight patched", "{count} weights patched")
    sentences = [Message("lora_applied", "LoRA {file}: {patched}.", file=name, patched=patched)]
    if applied.unused:
        sentences.append(Message("lora_unused", "{count} LoRA keys did not match this model and were ignored: {names}.",
                                 count=len(applied.unused), names=applied.unused))
    return sentences
