"""What a node's definition tells the browser extension (js/): an option of an input, under one key.

Without the extension the page ignores it. What Python knows, the page reads from here; it has no rules of its own.
"""
from comfy_api.latest import io

from ..model.images import sizes
from ..model.qwen_image_2.spec import VAESpec

KEY = "qwen_image_2"


def ui_hints(**what) -> dict:
    """The `extra_dict` of an input. meter: count its tokens; references: the input that holds them; table: which files
    may be dropped; presets: the inputs whose values are saved; boxes_of: the input whose layout is edited here; sizes,
    measured, enabled_when, row_of: below."""
    return {KEY: what}


def enabled_when(name: str, value: str) -> dict:
    """Marks of an input that counts only where the input `name` has this value."""
    return ui_hints(enabled_when={"input": name, "value": value})


def row_of(name: str | None, unused: str) -> dict:
    """Marks of an input that is hidden as long as the input `name` has the value `unused`; without a name it is always
    there."""
    return ui_hints(row_of={"input": name, "unused": unused}) if name else {}


def measured_inputs(inputs: list[io.Input], **more) -> list[io.Input]:
    """The inputs of a node with `measure`. The last required one bears the names of all required ones: the page sends
    their values. more: further marks; laid_out: the node also has `layout`."""
    return saved_inputs(inputs, measured=[each.id for each in inputs if not each.optional], **more)


def saved_inputs(inputs: list[io.Input], **more) -> list[io.Input]:
    """The inputs of a node whose values are saved as presets, those of all required ones."""
    required = [each for each in inputs if not each.optional]
    own = required[-1].extra_dict
    own[KEY] = own.get(KEY, {}) | {"presets": [each.id for each in required]} | more
    return inputs


def size_table() -> dict:
    """Every size the picker offers, by ratio and class, in pixels, and how many pixels a token is wide."""
    def entry(ratio: str, size_class: int) -> dict:
        width, height = sizes.size_for(ratio, size_class)
        return {"width": width, "height": height, "native": sizes.is_native(width, height)}

    table = {ratio: {str(size): entry(ratio, size) for size in sizes.CLASSES} for ratio in sizes.RATIOS}
    return {"custom": sizes.CUSTOM, "token_side": VAESpec().scale, "table": table}
