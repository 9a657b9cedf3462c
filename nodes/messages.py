"""What a node has to say to its user: shown on the node, kept in the result, written to the log."""
import logging

from server import PromptServer

log = logging.getLogger(__name__)

# The key of messages in a node's `ui` output: a list of sentences.
KEY = "qwen_image_2_messages"


def tell(node, *sentences: str) -> dict:
    """Show sentences on the node (a ComfyNode class that asks for its unique_id), return its `ui` output."""
    sentences = [sentence for sentence in sentences if sentence]
    node_id = node.hidden.unique_id
    for sentence in sentences:
        log.info("Node %s: %s", node_id, sentence)
    if node_id is not None:
        # Nodes of an expanded loader are called 12.0.0.1; what the user sees is node 12.
        PromptServer.instance.send_progress_text("\n".join(sentences), str(node_id).split(".")[0])
    return {KEY: sentences}
