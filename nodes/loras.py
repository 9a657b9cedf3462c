"""LoRAs in every form that circulates for Qwen-Image 2."""
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import folder_paths
from comfy_api.latest import io

from ..messages import Message, Refusal, plural
from .bridge.files.folders import file_names
from .bridge.lora import Applied, apply
from .common import categories
from .common.checks import check_model
from .common.schemas import schema
from .frontend import row_of
from .notices import notify

FOLDER = "loras"
MAX_ROWS = 8
NONE = "none"  # of a row that is not used
# The first row's inputs have these names, those of row 2 end on _2, and so on.
ROW = ("lora", "strength", "on")


class Row(NamedTuple):
    lora: str
    strength: float
    on: bool


def names_of(row: int) -> tuple[str, ...]:
    """The ids of a row's inputs, from 1 on."""
    return ROW if row == 1 else tuple(f"{name}_{row}" for name in ROW)


def strength_input(name: str, **more) -> io.Float.Input:
    return io.Float.Input(name, default=1.0, min=-10.0, max=10.0, step=0.05,
                          tooltip="1: full strength, as trained. 0: off.", **more)


def on_input(name: str, **more) -> io.Boolean.Input:
    return io.Boolean.Input(name, default=True, optional=True,
                            tooltip="Off: the file is not loaded, and the row keeps its choice.", **more)


def further_rows(files: list[str]) -> Iterator[io.Input]:
    """All that there can be: the page shows one more than are in use, programs leave out what they do not need."""
    for number in range(2, MAX_ROWS + 1):
        lora, strength, on = names_of(number)
        yield io.Combo.Input(lora, [NONE, *files], default=NONE, optional=True,
                             extra_dict=row_of(names_of(number - 1)[0] if number > 2 else None, NONE),
                             tooltip="One more file in models/loras, applied after those above. Choosing it opens the "
                                     "next row.")
        yield strength_input(strength, optional=True, extra_dict=row_of(lora, NONE))
        yield on_input(on, extra_dict=row_of(lora, NONE))


class QwenImage2LoadLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        files = [name for name in file_names(FOLDER) if name.lower().endswith(".safetensors")]
        return schema(
            node_id="QwenImage2LoadLoRA",
            display_name="Load LoRA (Qwen-Image 2)",
            category=categories.LOADERS,
            description="Applies LoRAs, one or several. Unlike core's loader it also accepts files that keep their "
                        "scale in the metadata or leave it out, computes DoRA as PEFT does, says what each file is and "
                        "which preset belongs to it, and refuses damaged files and LoRAs of other models at once.",
            search_aliases=["lora", "lora loader", "lora stack", "lycoris", "lokr", "style", "lightning"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Qwen-Image 2, or after another LoRA."),
                io.Combo.Input("lora", files, tooltip="A .safetensors file in models/loras."),
                strength_input("strength"),
                on_input("on"),
                *further_rows(files),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, lora, strength, on=True, **further):
        check_model(model)
        notes = []
        for row in (Row(lora, strength, on), *rows_of(further)):
            if not row.on:
                continue
            if row.strength == 0:
                notes.append(Message("lora_off", "{file} has strength 0 and is not loaded.", file=row.lora))
                continue
            applied = apply(model, Path(folder_paths.get_full_path_or_raise(FOLDER, row.lora)), row.lora, row.strength)
            model = applied.model
            notes += in_words(row.lora, applied)
        return io.NodeOutput(model, ui=notify(cls, *notes))


def rows_of(further: Mapping) -> Iterator[Row]:
    """Those of the rows below the first that name a file."""
    known = {name for number in range(2, MAX_ROWS + 1) for name in names_of(number)}
    if unknown := sorted(further.keys() - known):
        raise Refusal("lora_rows", "This node has no input {inputs}: it takes at most {max} LoRAs, lora and lora_2 to "
                      "lora_{max}. Put another Load LoRA behind it.", inputs=unknown, max=MAX_ROWS)
    for number in range(2, MAX_ROWS + 1):
        lora, strength, on = names_of(number)
        if (file := further.get(lora, NONE)) != NONE:
            yield Row(file, further.get(strength, 1.0), further.get(on, True))


def in_words(name: str, applied: Applied) -> list[str]:
    patched = plural("weights_patched", applied.matrices, "{count} weight patched", "{count} weights patched")
    sentences = [Message("lora_applied", "{file}: {kinds} for Qwen-Image {family}, {patched}.", file=name,
                         kinds=applied.kinds, family=applied.model.model.family, patched=patched)]
    if applied.unused:
        sentences.append(Message("lora_unused", "{count} LoRA keys did not match this model and were ignored: {names}.",
                                 count=len(applied.unused), names=applied.unused))
    if applied.left_out is not None:
        sentences.append(Message("lora_left_out", "{file} leaves its alpha out; the {alpha} of its publisher is used.",
                                 file=name, alpha=f"{applied.left_out:g}"))
    if applied.few_step is not None:
        sentences.append(about_preset(name, applied.few_step.presets))
    return sentences


def about_preset(name: str, presets: tuple[str, ...]) -> Message:
    if not presets:
        return Message("lora_without_preset", "{file} is a few-step LoRA whose sigmas no preset has; take them from "
                       "its publisher's page, with ManualSigmas and SamplerCustomAdvanced at CFG 1.", file=name)
    return Message("lora_preset", "{file} is a few-step LoRA for the base model: choose the preset {presets} in the "
                   "sampler, with CFG 1.", file=name, presets=presets)
