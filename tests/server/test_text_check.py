"""The text check in a running server: lists of scores, pictures that are only made when needed, refusals."""
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from qwen_image_2.tests.server import conftest as here
from qwen_image_2.tests.server.conftest import node
from qwen_image_2.tests.server.test_edit import message
from qwen_image_2.tools.pack import ROOT

REPAIR = ROOT / "workflows" / "api" / "repair_text.json"
BY_SINGLE_NODES = Path(__file__).with_name("repair_by_single_nodes.json")  # the workflow before there was Repair Text


@pytest.fixture(scope="module")
def sign(client, tmp_path_factory):
    """Uploads a picture that says OPEN DAILY; gives its name and its pixels."""
    picture = Image.new("RGB", (320, 96), "white")
    ImageDraw.Draw(picture).text((20, 25), "OPEN DAILY", "black", ImageFont.load_default(40))
    path = tmp_path_factory.mktemp("sign") / "sign.png"
    picture.save(path)
    return client.upload_image(path), np.asarray(picture)


def repair(picture: str, words: str) -> dict:
    """The workflow of single nodes on this picture, small; nodes by their class."""
    graph = json.loads(BY_SINGLE_NODES.read_text(encoding="utf-8"))
    changes = {"LoadImage": {"image": picture}, "PrimitiveStringMultiline": {"value": words},
               "QwenImage2CropForEdit": {"resolution": "128"}, "QwenImage2EditEncode": {"resolution": "128"},
               "QwenImage2Sampler": {"preset": "Custom", "steps": 1}}
    for entry in graph.values():
        entry["inputs"] |= changes.get(entry["class_type"], {})
    return graph


def ran(graph: dict, result) -> set[str]:
    return {graph[key]["class_type"] for key in result.seconds if key in graph}


def saved(client, graph, result) -> np.ndarray:
    key, = (key for key, entry in graph.items() if entry["class_type"] == "SaveImage")
    return here.images(client, result, key)[0]


@pytest.mark.parametrize("words", ["Open daily", "ＯＰＥＮ\u200b\u3000ＤＡＩＬＹ", "OPEN\x07\nDAILY 😀"])
def test_a_right_picture_is_not_edited(client, sign, words):
    """However the expected words are encoded."""
    graph = repair(sign[0], words)
    result = client.run(graph)
    assert "QwenImage2Sampler" not in ran(graph, result)
    assert np.array_equal(saved(client, graph, result), sign[1])


def test_a_worse_repair_is_not_kept(client, sign):
    """Random weights write nothing: the picture with one wrong word stays, after the edit has been tried."""
    graph = repair(sign[0], "OPEN DAILX")
    result = client.run(graph)
    assert {"QwenImage2Sampler", "QwenImage2GlyphReference", "QwenImage2StitchEdit"} <= ran(graph, result)
    assert np.array_equal(saved(client, graph, result), sign[1])


def test_one_score_too_few_is_refused(client, sign):
    nodes = {
        "picture": node("LoadImage", image=sign[0]),
        "two": node("RepeatImageBatch", image=["picture", 0], amount=2),
        "check": node("QwenImage2TextCheck", image=["picture", 0], expected_text="OPEN DAILY", match_case=True,
                      match_punctuation=True, tolerance=0.0, allow_extra=False),
        "best": node("QwenImage2PickBest", images=["two", 0], scores=["check", 2]),
        "save": node("SaveImage", images=["best", 0], filename_prefix="best"),
    }
    assert "Got 1 scores for 2 images" in message(client, nodes)
    nodes["check"]["inputs"]["expected_text"] = "\u200b"
    assert "Expected text is empty" in message(client, nodes)


def in_a_loop(picture: str, **changes) -> dict:
    """The shipped workflow on this picture, small."""
    graph = json.loads(REPAIR.read_text(encoding="utf-8"))
    small = {"resolution": "128", "preset": "Custom", "steps": 1, "attempts": 2, **changes}
    for entry in graph.values():
        if entry["class_type"] == "LoadImage":
            entry["inputs"]["image"] = picture
        if entry["class_type"] == "QwenImage2RepairText":
            entry["inputs"] |= small
    node_id, = (key for key, entry in graph.items() if entry["class_type"] == "QwenImage2RepairText")
    return graph | {"report": node("PreviewAny", source=[node_id, 1])}


def told(result) -> dict:
    return json.loads(result.outputs["report"]["text"][0])


def test_the_loop_leaves_a_right_picture_alone(client, sign):
    graph = in_a_loop(sign[0], expected_text="Open daily")
    result = client.run(graph)
    assert told(result)["rounds"] == [] and np.array_equal(saved(client, graph, result), sign[1])


def test_the_loop_tries_every_round_and_keeps_nothing_worse(client, sign):
    """Random weights write nothing. Each round has another seed, and the picture keeps all its bits."""
    graph = in_a_loop(sign[0], expected_text="OPEN DAILX", seed=7)
    result = client.run(graph)
    rounds = told(result)["rounds"]
    assert [[(one["words"], one["seed"], one["kept"]) for one in each["regions"]] for each in rounds] == [
        [(["OPEN DAILX"], 7, False)], [(["OPEN DAILX"], 8, False)]]
    assert np.array_equal(saved(client, graph, result), sign[1])
    assert "Round 2: 0 of 1 edits kept" in str(result.messages)


LAYOUT = {"x": 0, "y": 0, "width": 320, "height": 96}


def with_boxes(graph: dict, *texts: str, **place) -> dict:
    """Its repair gets core's boxes as its layout."""
    drawn = [{**LAYOUT, **place, "metadata": {"type": "text", "text": text, "desc": ""}} for text in texts]
    boxes = node("CreateBoundingBoxes", width=320, height=96, editor_state={"__value__": drawn})
    for entry in graph.values():
        if entry["class_type"] == "QwenImage2RepairText":
            entry["inputs"] |= {"layout": ["boxes", 2], "expected_text": ""}
    return graph | {"boxes": boxes}


def test_core_s_boxes_are_its_layout(client, sign):
    result = client.run(with_boxes(in_a_loop(sign[0]), "OPEN DAILY"))
    line, = told(result)["check"]["lines"]
    assert told(result)["passed"] and line["box_name"] == "text 1" and line["inside"] == 1
    assert "no text to look for" in message(client, with_boxes(in_a_loop(sign[0]), ""))


def test_what_it_refuses_before_any_work(client, sign):
    graph = in_a_loop(sign[0], expected_text="OPEN DAILX")
    key, = (key for key, entry in graph.items() if entry["class_type"] == "QwenImage2RepairText")
    for attempts in (0, 21):
        graph[key]["inputs"]["attempts"] = attempts
        assert f"attempts must be between 1 and 20, got {attempts}" in message(client, graph)
    graph[key]["inputs"]["attempts"] = 1
    assert "(U+16A38" in message(client, in_a_loop(sign[0], expected_text="A\n\U00016a38"))
    graph["two"] = node("RepeatImageBatch", image=graph[key]["inputs"]["image"], amount=2)
    graph[key]["inputs"]["image"] = ["two", 0]
    assert "Got a batch of 2 images" in message(client, graph)
