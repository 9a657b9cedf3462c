"""The text check in a running server: lists of scores, pictures that are only made when needed, refusals."""
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from qwen_image_2.tests.server import conftest as here
from qwen_image_2.tests.server.conftest import node
from qwen_image_2.tests.server.test_edit import message
from qwen_image_2.tools.pack import ROOT

REPAIR = ROOT / "workflows" / "api" / "repair_text.json"


@pytest.fixture(scope="module")
def sign(client, tmp_path_factory):
    """Uploads a picture that says OPEN DAILY; gives its name and its pixels."""
    picture = Image.new("RGB", (320, 96), "white")
    ImageDraw.Draw(picture).text((20, 25), "OPEN DAILY", "black", ImageFont.load_default(40))
    path = tmp_path_factory.mktemp("sign") / "sign.png"
    picture.save(path)
    return client.upload_image(path), np.asarray(picture)


def repair(picture: str, words: str) -> dict:
    """The shipped workflow on this picture, small; nodes by their class."""
    graph = json.loads(REPAIR.read_text(encoding="utf-8"))
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
