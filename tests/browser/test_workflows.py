"""The shipped workflows, opened the way a person does."""
import json

import pytest

from .conftest import ROOT

NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_opens_tidily_and_exports_the_api_copy(page, name):
    page.open(name)
    api = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    assert page.exported() == {key: {"class_type": node["class_type"], "inputs": node["inputs"]}
                               for key, node in api.items()}
    assert page.page.evaluate("app.graph.nodes.filter(node => node.has_errors || !node.constructor.nodeData"
                              " && node.type !== 'MarkdownNote').length") == 0
    assert page.page.get_by_role("dialog").count() == 0  # the page tells of missing nodes and models in one
    page.page.wait_for_timeout(300)  # nodes grow to what is on them
    boxes = page.page.evaluate("app.graph.nodes.map(node => [node.type, ...node.pos, ...node.size])")
    for i, (kind, x, y, w, h) in enumerate(boxes):
        for other, u, v, s, t in boxes[i + 1:]:
            apart = x + w <= u or u + s <= x or y + h + 30 <= v or v + t + 30 <= y
            assert apart, f"{kind} lies over {other}"


def test_a_saved_workflow_is_the_same_as_without_the_extension(page):
    """The values of a file are counted off against a node's widgets: ours add none."""
    page.open("poster")
    graph = page.page.evaluate("app.graph.serialize()")
    saved = {node["type"]: node["widgets_values"] for node in graph["nodes"]}
    shipped = json.loads((ROOT / "workflows" / "poster.json").read_text(encoding="utf-8"))
    for node in shipped["nodes"]:
        assert saved[node["type"]] == node["widgets_values"]
    assert "qwen_image_2_" not in json.dumps(graph)
