"""The brief nodes: outputs, what they say, and what they refuse before anything runs."""
import inspect
import json

import pytest

from qwen_image_2.pages.quotation import literals
from qwen_image_2.tools.pack import ROOT

COMMON = {"picture": "", "language": "English", "style": "flat graphic", "type_character": "bold sans serif",
          "palette": "black, white", "transparent": False, "aspect_ratio": "3:4", "size": "2048", "width": 1024,
          "height": 1024}
OWN = {
    "QwenImage2PosterBrief": {"title": "NIGHT\nMARKET", "subtitle": "海港夜市", "body": "", "call_to_action": "Come!",
                              "footer": "", "kind": "poster", "title_position": "top", "columns": 1},
    "QwenImage2SlideBrief": {"title": "Growth", "subtitle": "", "bullets": "- one\n- two", "footer": "",
                             "title_position": "top left", "picture_position": "right", "columns": 1},
    "QwenImage2InfographicBrief": {"title": "Water", "subtitle": "", "data_points": "71 % | ocean",
                                   "call_to_action": "", "source": "", "kind": "infographic", "arrangement": "grid",
                                   "columns": 2},
    "QwenImage2ComicBrief": {"title": "", "panels": "A street.\nMia: Hello", "columns": 2},
}
EXPECTED = {"QwenImage2PosterBrief": "NIGHT\nMARKET\n海港夜市\nCome!", "QwenImage2SlideBrief": "Growth\none\ntwo",
            "QwenImage2InfographicBrief": "Water\n71 %\nocean", "QwenImage2ComicBrief": "Hello"}


@pytest.fixture(scope="module")
def nodes(comfyui):
    from qwen_image_2.nodes import briefs
    return {name: getattr(briefs, name) for name in OWN}


@pytest.fixture
def told(nodes, monkeypatch):
    """Runs a node; returns its outputs and what it said."""
    from qwen_image_2.nodes import briefs

    def run(name, **changes):
        said = []
        monkeypatch.setattr(briefs, "notify", lambda node, *messages: said.extend(messages))
        return nodes[name].execute(**OWN[name] | COMMON | changes).result, said
    return run


@pytest.mark.parametrize("name", OWN)
def test_prompt_canvas_and_expected_text(told, comfyui, name):
    from qwen_image_2.nodes.bridge.text_encoders.families import count_tokens
    (prompt, width, height, expected, _), said = told(name)
    assert expected == EXPECTED[name] == "\n".join(literals(prompt))
    assert (width, height) == (1792, 2400)
    lines = expected.count("\n") + 1
    assert said == [f"{count_tokens(prompt)} tokens, {lines} line{'s' * (lines > 1)} of text."]


@pytest.mark.parametrize("name", OWN)
def test_schema_and_execute_agree(nodes, name):
    inputs = [entry.id for entry in nodes[name].define_schema().inputs]
    assert inputs == [*OWN[name], *COMMON, "row"]
    assert list(inspect.signature(nodes[name].make).parameters)[1:] == list(OWN[name])


@pytest.mark.parametrize("name", OWN)
def test_what_is_written_by_hand_is_checked_before_anything_runs(nodes, name):
    """And nothing that is chosen from a list, whose check is ComfyUI's."""
    asked = list(inspect.signature(nodes[name].validate_inputs).parameters)
    assert asked == [*blanked(name), "picture", "palette", "aspect_ratio", "width", "height"]


def test_what_was_shortened_is_said(told):
    (_, _, _, expected, _), said = told("QwenImage2PosterBrief", body="The market opens at six. " * 200)
    assert said[0].endswith("tokens, 5 lines of text.") and int(said[0].split()[0]) <= 1000
    assert "Cut after a sentence" in said[1] and "closing sentence" in said[2]
    assert expected.split("\n")[3].endswith("opens at six.")


def test_a_size_of_ones_own(told):
    assert told("QwenImage2PosterBrief", aspect_ratio="custom", width=640, height=320)[0][1:3] == (640, 320)


def blanked(name):
    """The node's own texts, all empty."""
    return {key: "" for key, value in OWN[name].items()
            if isinstance(value, str) and key not in ("kind", "arrangement", "title_position", "picture_position")}


def validate(node, **changes):
    asked = inspect.signature(node.validate_inputs).parameters
    values = OWN[node.__name__] | COMMON | changes
    return node.validate_inputs(**{name: values[name] for name in asked})


@pytest.mark.parametrize("name", OWN)
def test_faults_are_refused_before_anything_runs(nodes, name):
    node = nodes[name]
    blank = blanked(name)
    assert validate(node) is True
    assert "brief is empty" in validate(node, **blank)
    assert "control character U+0007" in validate(node, title="a\x07")
    assert "contains every kind of quotation mark" in validate(node, title='a"b“c「d『')
    assert "never closed" in validate(node, picture='12" record')
    assert "multiples of 16" in validate(node, aspect_ratio="custom", width=1001)
    assert "Unknown aspect ratio 5:4" in validate(node, aspect_ratio="5:4")


@pytest.mark.parametrize("name", OWN)
def test_linked_texts_are_not_judged_before_they_are_known(nodes, name):
    blank = blanked(name)
    assert validate(nodes[name], **blank | {"title": None}) is True
    assert validate(nodes[name], width=None) is True


WORKFLOWS = sorted((ROOT / "workflows" / "api").glob("*.json"))
SHIPPED = [(path.stem, entry) for path in WORKFLOWS for entry in json.loads(path.read_text(encoding="utf-8")).values()
           if entry["class_type"] in OWN]


@pytest.mark.parametrize("entry", [entry for _, entry in SHIPPED], ids=[name for name, _ in SHIPPED])
def test_nothing_of_the_shipped_briefs_is_shortened(told, entry):
    (_, _, _, expected, _), said = told(entry["class_type"], **entry["inputs"] | {"row": None})
    assert len(said) == 1 and len(expected.split("\n")) >= 5


def test_plain_prompts_of_shipped_pages_fit_and_close_their_quotations(comfyui):
    from qwen_image_2.nodes.bridge.text_encoders.families import count_tokens
    from qwen_image_2.pages.quotation import closed
    from qwen_image_2.tools.generate.workflow_pages import FANTASY_MAP, UI_MOCKUP
    for prompt in (FANTASY_MAP, UI_MOCKUP):
        assert closed(prompt) and count_tokens(prompt) <= 1000


def test_an_unknown_field_is_refused(told):
    with pytest.raises(TypeError, match="paper"):
        told("QwenImage2ComicBrief", paper="A4")
