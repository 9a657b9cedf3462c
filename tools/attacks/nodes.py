"""A node of the pack, run with inputs of any content, as ComfyUI runs it."""
import inspect

from .attempt import TurnedAway

MESSAGES = "qwen_image_2_messages"  # of a node's `ui` output


def prepared(node: type, prompt: dict | None = None, page: dict | None = None) -> type:
    """The node as ComfyUI calls it, in a graph (`prompt`) and a workflow of the page; it shows nothing."""
    from comfy_api.latest import io
    hidden = {io.Hidden.prompt: prompt, io.Hidden.extra_pnginfo: page, io.Hidden.unique_id: None}
    return node.PREPARE_CLASS_CLONE({"hidden_inputs": hidden})


def check(node: type, inputs: dict) -> None:
    """The node's own check, before anything runs. Raises TurnedAway with what it says."""
    names = inspect.signature(node.validate_inputs).parameters
    verdict = node.validate_inputs(**{name: inputs[name] for name in names if name in inputs})
    if verdict is not True:
        raise TurnedAway(verdict)


def run(node: type, **inputs) -> tuple[tuple, list[str]]:
    """What a prepared node puts out, and what it says."""
    done = node.execute(**inputs)
    return done.result, (done.ui or {}).get(MESSAGES, [])
