"""Layouts through a running server: core's boxes and a brief's on a page, and the words that follow."""
import json

from qwen_image_2.tests.nodes.test_briefs import COMMON, OWN
from qwen_image_2.tests.server import conftest as here
from qwen_image_2.tests.server.conftest import node

REST = {"font": "Noto Sans (built-in)", "picture": "grey", "width": 512, "height": 256, "language": "English"}


def test_core_s_boxes_become_a_page(client):
    drawn = [{"x": 256, "y": 128, "width": 256, "height": 64, "metadata": {"type": "text", "text": "OPEN", "desc": ""}}]
    nodes = {"boxes": node("CreateBoundingBoxes", width=512, height=256, editor_state={"__value__": drawn}),
             "layout": node("QwenImage2Layout", layout=["boxes", 2], boxes="", **REST),
             "page": node("SaveImage", images=["layout", 1], filename_prefix="page"),
             "json": node("PreviewAny", source=["layout", 3]), "prompt": node("PreviewAny", source=["layout", 5])}
    result = client.run(nodes)
    picture = here.images(client, result, "page")
    assert picture.shape == (1, 256, 512, 3) and picture[0, 128:192, 256:].min() < 50 < picture[0, :128].min()
    box, = json.loads(result.outputs["json"]["text"][0])["boxes"]
    assert (box["text"], box["x"], box["y"], box["w"], box["h"]) == ("OPEN", 0.5, 0.5, 0.5, 0.25)
    assert 'reads "OPEN"' in result.outputs["prompt"]["text"][0]


def test_a_moved_title_reaches_the_prompt_and_is_told(client):
    name = "QwenImage2PosterBrief"
    small = {"aspect_ratio": "custom", "width": 256, "height": 256}
    nodes = {"brief": node(name, **OWN[name] | COMMON | small),
             "layout": node("QwenImage2Layout", layout=["brief", 4],
                            boxes='[{"name": "title", "y": 0.6}, {"name": "gone", "y": 0.1}]', **REST),
             "prompt": node("PreviewAny", source=["layout", 5]), "height": node("PreviewAny", source=["layout", 7])}
    result = client.run(nodes)
    assert "In the lower third, the title" in result.outputs["prompt"]["text"][0]
    assert result.outputs["height"]["text"] == ["256"]
    assert "not in this layout are left out: 'gone'." in str(result.messages["layout"])
