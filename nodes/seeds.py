"""Which seeds the references of an edit were made with, as far as the graph and the images' files tell.

An edit with the seed (and size) of its source starts from the very noise that became the source, and tends to retrace
it instead of following the instruction.
"""
import json
from collections.abc import Iterator
from pathlib import Path

import folder_paths
from PIL import Image

from nodes import NODE_CLASS_MAPPINGS

from ..messages import Message

PICTURES = {"NOISE", "LATENT", "IMAGE"}  # types of what an image's seed goes into
Graph = dict[str, dict]  # ComfyUI's API format: node id -> {"class_type", "inputs"}


def seed_note(graph: Graph | None, node_id: str, conditioning: str, seed: int) -> str | None:
    """What to tell where a sampler's `seed` is one that an image behind its input `conditioning` was made with."""
    if not graph or seed not in set(_seeds_behind(graph, graph.get(node_id, {}).get("inputs", {}).get(conditioning))):
        return None
    return Message("same_seed", "The reference was made with this very seed ({seed}). Such edits tend to retrace their "
                   "source: change the seed if the instruction is not followed.", seed=seed)


def _seeds_behind(graph: Graph, link) -> Iterator[int]:
    """Seeds of all nodes from which `link` ([node id, output]) is computed."""
    waiting, seen = [link], set()
    while waiting:
        link = waiting.pop()
        if not isinstance(link, list) or link[0] in seen or link[0] not in graph:
            continue
        seen.add(link[0])
        node = graph[link[0]]
        yield from _own_seeds(node)
        if node["class_type"] == "LoadImage":
            yield from _seeds_of_file(node["inputs"].get("image"))
        waiting += node["inputs"].values()


def _own_seeds(node: Graph) -> list[int]:
    """KSampler and ours call it seed, RandomNoise and KSamplerAdvanced noise_seed. What writes texts has one, too."""
    kind = node.get("class_type")
    known = NODE_CLASS_MAPPINGS.get(kind) if isinstance(kind, str) else None  # a file may hold anything
    if known is not None and not PICTURES & set(known.RETURN_TYPES):
        return []
    values = (node["inputs"].get(name) for name in ("seed", "noise_seed"))
    return [value for value in values if isinstance(value, int)]


def _seeds_of_file(name) -> list[int]:
    """Seeds in the workflow that ComfyUI has written into a PNG; none where there is no such thing."""
    if not isinstance(name, str) or not folder_paths.exists_annotated_filepath(name):
        return []
    path = Path(folder_paths.get_annotated_filepath(name))
    if not path.is_file():  # a pipe would be waited for
        return []
    try:
        with Image.open(path) as image:
            graph = json.loads(image.info.get("prompt", "{}"))
    except (OSError, ValueError, RecursionError):  # no image, or its text is another program's: nothing is known
        return []
    nodes = graph.values() if isinstance(graph, dict) else ()
    return [seed for node in nodes if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
            for seed in _own_seeds(node)]
