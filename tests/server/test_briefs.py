"""Briefs through a running server: what they say, what they refuse and when."""
import re

import pytest

from qwen_image_2.tests.nodes.test_briefs import COMMON, OWN
from qwen_image_2.tests.server.conftest import Graph, node
from qwen_image_2.tools.comfyui.client import WorkflowError

HARD = 'שלום "עולם"\n👩‍🚀 e\u0301te\u0301\n“你好”，\u200b世界'


def page(name="QwenImage2PosterBrief", **fields) -> dict:
    return {"brief": node(name, **OWN[name] | COMMON | fields)}


def test_texts_reach_the_text_encoder_and_the_check_unchanged(client):
    nodes = Graph(steps=1).nodes() | page(title=HARD, subtitle="", call_to_action="")
    nodes["prompt"]["inputs"]["prompt"] = ["brief", 0]
    nodes |= {"expected": node("PreviewAny", source=["brief", 3]), "tokens": node("PreviewAny", source=["prompt", 2]),
              "width": node("PreviewAny", source=["brief", 1])}
    result = client.run(nodes, timeout=120)
    assert result.outputs["expected"]["text"] == [HARD]
    assert result.outputs["width"]["text"] == ["1792"]
    tokens = int(result.outputs["tokens"]["text"][0])
    assert result.messages["brief"] == [f"{tokens} tokens, 3 lines of text.",
                                        "The texts contain invisible characters (U+200B). They are kept."]


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("fields, words", [
    ({"title": "a\x07"}, "The title contains the control character U+0007"),
    ({"picture": '12" record'}, "The picture description opens a quotation mark that is never closed"),
    ({"palette": '"red"'}, "is not a color for the palette"),
    ({"aspect_ratio": "custom", "width": 1001}, "Width and height must be multiples of 16"),
])
def test_faults_are_refused_before_anything_runs(client, name, fields, words):
    started = []
    with pytest.raises(WorkflowError, match=re.escape(words)) as raised:
        client.run(page(name, **fields) | {"out": node("PreviewAny", source=["brief", 0])}, started.append)
    assert "\n" not in raised.value.message and not any(event.kind == "started" for event in started)


def test_a_linked_text_is_checked_when_it_comes(client):
    nodes = page(title=["text", 0], subtitle="", call_to_action="") | {
        "text": node("PrimitiveStringMultiline", value="  "), "out": node("PreviewAny", source=["brief", 3])}
    with pytest.raises(WorkflowError, match="poster brief is empty"):
        client.run(nodes)
    nodes["text"]["inputs"]["value"] = "Here"
    assert client.run(nodes).outputs["out"]["text"] == ["Here"]


def test_what_was_shortened_is_said_on_the_node(client):
    nodes = page(body="The market opens at six. " * 200) | {"out": node("PreviewAny", source=["brief", 3])}
    result = client.run(nodes)
    assert re.match(r"\d{3,4} tokens, 5 lines of text\.", result.messages["brief"][0])
    assert result.messages["brief"][1].startswith("Cut after a sentence to stay within the token limit: the body text")
