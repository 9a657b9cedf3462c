"""The schema of a node that has something to say to its user."""
from comfy_api.latest import io


def schema(*, hidden: tuple[io.Hidden, ...] = (), **fields) -> io.Schema:
    """An io.Schema for a node that calls notify or show, see notices.py: it asks for its id, and its messages outlast
    ComfyUI's cache. hidden: what else it asks for; fields: io.Schema's own."""
    return io.Schema(hidden=[io.Hidden.unique_id, *hidden], has_intermediate_output=True, **fields)
