"""Names of files as core's Save Image fills them in."""
from datetime import datetime

import pytest

from qwen_image_2.messages import Refusal

NOW = datetime(2026, 3, 7, 9, 5, 2)
GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 7, "cfg": 1.0, "denoise": 0.55, "model": ["4", 0]},
          "_meta": {"title": "KSampler"}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a/b:c.safetensors"},
          "_meta": {"title": "My model"}},
    "5": {"class_type": "KSampler", "inputs": {"seed": 8, "add": True}, "_meta": {"title": "Second"}},
}
PAGE = {"nodes": [{"id": 3, "properties": {"Node name for S&R": "First pass"}}, {"id": 4}, None]}


@pytest.fixture
def fill(comfyui):
    from qwen_image_2.nodes.common import placeholders
    return lambda prefix, page=None: placeholders.filled_in(prefix, GRAPH, page, NOW)


@pytest.mark.parametrize(("prefix", "expected"), [
    ("deck", "deck"), ("100%", "100%"), ("50% of 100%", "50% of 100%"), ("%width%x%height%", "%width%x%height%"),
    ("%date:yyyy-MM-dd%/deck", "2026-03-07/deck"), ("%date:yy.M.d-hh.mm.ss%", "26.3.7-09.05.02"),
    ("%date:yyy%", "yyy"), ("%KSampler.seed%", "7"), ("%KSampler.cfg%", "1"), ("%KSampler.denoise%", "0.55"),
    ("%Second.seed%_%Second.add%", "8_true"), ("%My model.ckpt_name%", "a_b_c.safetensors"),
    ("%KSampler.model%", "%KSampler.model%"), ("%KSampler.nothing%", "%KSampler.nothing%"),
    ("%Nobody.seed%", "%Nobody.seed%"), ("%.%", "%.%"), ("%%", "%%")])
def test_a_name_is_filled_in_as_save_image_does(fill, prefix, expected):
    assert fill(prefix) == expected


def test_names_that_people_give_to_nodes_are_known_from_the_page(fill):
    assert fill("%First pass.seed%_%KSampler.seed%", PAGE) == "7_8"


@pytest.mark.parametrize("page", [
    5, "x", [], {"nodes": 5}, {"nodes": {"a": 1}}, {"nodes": [{"id": 3, "properties": 5}]},
    {"nodes": [{"id": [], "properties": {"Node name for S&R": []}}]}], ids=repr)
def test_a_page_that_is_something_else_names_no_nodes(fill, page):
    from types import SimpleNamespace

    from qwen_image_2.nodes.common import paths
    assert fill("%First pass.seed%_%KSampler.seed%", page) == "%First pass.seed%_7"
    for sent in (page, {"workflow": page}):
        node = SimpleNamespace(hidden=SimpleNamespace(prompt=GRAPH, extra_pnginfo=sent))
        assert paths.name_of(node, "%KSampler.seed%") == "7"


def test_a_value_cannot_leave_the_output_folder(comfyui):
    from types import SimpleNamespace

    from qwen_image_2.nodes.common import paths
    graph = {"1": {"class_type": "Text", "inputs": {"up": "..", "long": "a" * 90, "tab": "a\tb"}}}
    node = SimpleNamespace(hidden=SimpleNamespace(prompt=graph, extra_pnginfo=None))
    with pytest.raises(Refusal, match="points outside ComfyUI's output folder"):
        paths.name_of(node, "%Text.up%/deck")
    assert paths.name_of(node, "%Text.tab%/%Text.long%") == "a_b/" + "a" * 90
