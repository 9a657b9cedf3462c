"""The Layout node and its route: what a brief becomes, what somebody has moved, and the same page in small."""
import base64
import inspect
import io
import json
import time

import numpy as np
import pytest
from PIL import Image

from .test_briefs import COMMON, OWN
from .test_routes import send

POSTER = OWN["QwenImage2PosterBrief"] | COMMON
REST = {"font": "Noto Sans (built-in)", "picture": "grey", "width": 1024, "height": 512, "language": "English"}
DRAWN = '[{"name": "a", "text": "OPEN", "x": 0.1, "y": 0.7, "w": 0.8, "h": 0.2, "size": 0.1}]'
BRIEFS = {name: own | COMMON for name, own in OWN.items()}


@pytest.fixture
def laid_out(comfyui, monkeypatch):
    """Runs the node; returns its outputs and what it said."""
    from qwen_image_2.nodes import layout

    def run(boxes="", connected=None, **changes):
        said = []
        monkeypatch.setattr(layout, "notify", lambda node, *messages: said.extend(filter(None, messages)))
        values = REST | changes
        return layout.QwenImage2Layout.execute(boxes=boxes, layout=connected, **values).result, said
    return run


@pytest.fixture
def written(comfyui, monkeypatch):
    """The outputs of a brief's node."""
    from qwen_image_2.nodes import briefs
    monkeypatch.setattr(briefs, "notify", lambda node, *messages: None)
    return lambda name, **changes: getattr(briefs, name).execute(**BRIEFS[name] | changes).result


@pytest.mark.parametrize("name", BRIEFS)
def test_a_brief_is_typeset_and_its_prompt_stays(laid_out, written, name):
    prompt, width, height, _, made = written(name)
    (layout, page, glyphs, boxes, edges, same, *size), said = laid_out("", made)
    assert same == prompt and size == [width, height] and layout.boxes == made.boxes
    assert page.shape == edges.shape == (1, height, width, 3) and glyphs.shape == (1, height, width)
    assert 0 <= float(page.min()) < float(page.max()) == 1 and 0 < float(glyphs.mean()) < 0.3
    assert json.loads(boxes)["boxes"] and said[0].endswith(f"on {width} x {height} pixels.") and len(said) == 1


def test_a_shortened_brief_is_laid_out_as_it_is_written(written):
    _, _, _, expected, made = written("QwenImage2PosterBrief", body="The market opens at six. " * 200)
    assert made.named("body").text == expected.split("\n")[3] and len(made.named("body").text) < 4900


def test_a_moved_box_moves_letters_and_words(laid_out, written):
    made = written("QwenImage2PosterBrief")[4]
    (_, _, glyphs, boxes, _, prompt, *_), _ = laid_out('[{"name": "title", "x": 0.1, "y": 0.7, "w": 0.8}]', made)
    rows = np.nonzero(glyphs[0].numpy().sum(axis=1))[0]
    assert rows.min() > 0.2 * made.height and "In the lower third, the title" in prompt
    title, = (box for box in json.loads(boxes)["boxes"] if box["name"] == "title")
    assert title["y"] == 0.7
    (_, _, again, *_), _ = laid_out(boxes)  # the output is an input
    assert np.array_equal(again.numpy() > 0.5, glyphs.numpy() > 0.5)


def test_a_list_and_elements_take_the_canvas_of_the_node(laid_out):
    elements = [{"type": "text", "bbox": [700, 100, 900, 900], "text": "OPEN", "desc": ""}]
    for outputs, _ in (laid_out(DRAWN), laid_out("", elements), laid_out(json.dumps(elements))):
        assert outputs[6:] == (1024, 512) and 'reads "OPEN"' in outputs[5]
        assert np.nonzero(outputs[2][0].numpy().sum(axis=1))[0].min() > 0.69 * 512


def test_what_cannot_be_laid_out_is_refused(laid_out, comfyui):
    from qwen_image_2.messages import Refusal
    from qwen_image_2.nodes.layout import QwenImage2Layout
    for boxes, connected, words in (("", None, "no boxes"), ("[]", None, "no boxes"), ("", [], "no boxes"),
                                    ("", 5, "no layout"), ("{", None, "valid JSON")):
        with pytest.raises(Refusal, match=words):
            laid_out(boxes, connected)
    assert list(inspect.signature(QwenImage2Layout.validate_inputs).parameters) == [
        "boxes", "width", "height", "layout"]
    assert "valid JSON" in QwenImage2Layout.validate_inputs(boxes="{", width=64, height=64)
    assert "multiples of 16" in QwenImage2Layout.validate_inputs(boxes=DRAWN, width=65, height=64)
    assert QwenImage2Layout.validate_inputs(boxes="", width=64, height=64, layout=None) is True  # linked


# ---------------------------------------------------------------- the route

@pytest.fixture
def routes(comfyui):
    from qwen_image_2.nodes import routes
    return routes


def ask(routes, **asked):
    (status, answer), = send(routes, routes.LAYOUT_PATH, json.dumps(asked))
    return status, answer


def picture(answer) -> np.ndarray:
    kind, _, data = answer["image"].partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.mark.parametrize("name", BRIEFS)
def test_a_preview_is_what_the_node_draws(routes, laid_out, written, name):
    edits = json.dumps([{"name": written(name)[4].boxes[-1].name, "size": 0.02}])
    (_, page, _, boxes, *_), said = laid_out(edits, written(name)[4])
    status, answer = ask(routes, node=name, inputs=BRIEFS[name], boxes=edits)
    assert status == 200 and (answer["width"], answer["height"]) == (1792, 2400)
    assert [{key: value for key, value in box.items() if key != "em"} for box in answer["boxes"]] == json.loads(
        boxes)["boxes"]
    assert answer["notes"] == [routes.to_json(note) for note in said[1:]]
    small = np.asarray(Image.fromarray((page[0].numpy() * 255).astype(np.uint8)).resize((573, 768)), float)
    assert abs(picture(answer) - small).mean() < 6
    lettered = [box for box in answer["boxes"] if box["role"] not in ("picture", "panel", "icon")]
    assert all(box["em"] > 4 for box in lettered)


def test_a_poster_s_preview_takes_less_than_a_tenth_of_a_second(routes):
    """Of one core, once fonts and tokenizer have been read; the second of two answers."""
    request = {"node": "QwenImage2PosterBrief", "inputs": POSTER}
    routes.layout_preview(request, routes.count_tokens)
    taken = []
    for word in ("LIGHTS", "MARKETS", "HARBOUR"):
        begin = time.process_time()
        routes.layout_preview(request | {"inputs": POSTER | {"title": word}}, routes.count_tokens)
        taken.append(time.process_time() - begin)
    assert min(taken) < 0.1


@pytest.mark.parametrize("asked, words", [
    ({"boxes": ""}, "no boxes"), ({"boxes": "{"}, "valid JSON"), ({"boxes": DRAWN, "font": "../x"}, "no longer exists"),
    ({"boxes": DRAWN, "width": 1001}, "multiples of 16"), ({"boxes": DRAWN.replace("OPEN", "ᚠ")}, "No font here has"),
    ({"boxes": DRAWN.replace("0.8", "0.95")}, "over the edge"),
    ({"node": "QwenImage2PosterBrief", "inputs": POSTER | {"title": "a\x07"}}, "control character"),
    ({"node": "QwenImage2PosterBrief", "inputs": POSTER, "boxes": '[{"name": "title", "y": 0.99}]'}, "over the edge")])
def test_answers_with_the_sentence_by_which_the_node_refuses(routes, asked, words):
    status, answer = ask(routes, **asked)
    assert status == 200 and list(answer) == ["refused", "parts"] and words in answer["refused"]


@pytest.mark.parametrize("asked", [
    {"boxes": 5}, {"boxes": DRAWN, "long_side": 10**9}, {"boxes": DRAWN, "long_side": 5}, {"boxes": DRAWN, "font": 5},
    {"boxes": DRAWN, "picture": "red"}, {"boxes": DRAWN, "picture": ["grey"]}, {"boxes": DRAWN, "width": 1e9},
    {"boxes": "\ud800"}, {"node": "QwenImage2DeckOutline", "inputs": {}}, {"node": 5}, {"node": []},
    {"node": "QwenImage2PosterBrief"}, {"node": "QwenImage2PosterBrief", "inputs": {}}])
def test_what_is_no_request_is_refused(routes, asked):
    status, answer = ask(routes, **asked)
    assert status == 400 and set(answer) == {"error", "parts"} and len(answer["error"]) < 130


def test_a_layout_may_be_longer_than_a_prompt_and_no_longer(routes):
    many = [{"name": f"box {n}", "text": "word", "x": 0.04 * (n % 25), "y": 0.05 * (n // 25), "w": 0.03, "h": 0.04,
             "font": "Noto Sans (built-in)", "alignment": "centre", "weight": "bold"} for n in range(500)]
    status, answer = ask(routes, boxes=json.dumps(many))
    assert status == 200 and len(answer["boxes"]) == 500
    assert ask(routes, boxes="x" * 300_000)[0] == 413
