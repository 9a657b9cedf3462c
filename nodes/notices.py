"""What a node has to say to its user: shown on the node, kept in the result, written to the log.

Such a node asks for its unique_id and has intermediate output: then a page that was opened anew is told what stands in
ComfyUI's cache, too.
"""
import logging
import time
from collections.abc import Callable

from server import PromptServer

from ..messages import Message, to_json

log = logging.getLogger(__name__)

# Keys in a node's `ui` output: a list of messages in English, and what they are made of, for js/messages.js.
KEY = "qwen_image_2_messages"
PARTS = "qwen_image_2_parts"
# Whose they are: an expanded loader's parts speak through one node of the page.
SPEAKER = "qwen_image_2_speaker"


def show(node, *messages: str | None) -> list[str]:
    """Show messages on the node (a ComfyNode class that asks for its unique_id), in place of earlier ones."""
    messages = [message for message in messages if message]
    if node.hidden.unique_id is not None:
        # Nodes of an expanded loader are called 12.0.0.1; what the user sees is node 12.
        PromptServer.instance.send_progress_text("\n".join(messages), str(node.hidden.unique_id).split(".")[0])
    return messages


def notify(node, *messages: str | None) -> dict:
    """Show messages on the node, write them to the log, and return the node's `ui` output."""
    messages = show(node, *messages)
    for message in messages:
        log.info("Node %s: %s", node.hidden.unique_id, message)
    return {KEY: [str(message) for message in messages], PARTS: [to_json(message) for message in messages],
            SPEAKER: [str(node.hidden.unique_id)]}


def token_counter(node) -> Callable[[int], None]:
    """A callback that shows on the node, once a second, how many tokens there are: nobody knows how many it takes."""
    shown = time.monotonic()

    def progress(tokens: int) -> None:
        nonlocal shown
        if time.monotonic() - shown >= 1:
            shown = time.monotonic()
            show(node, Message("enhancer_progress", "{tokens} tokens so far.", tokens=tokens))

    return progress
