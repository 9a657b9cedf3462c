"""Names, tooltips, words and sentences in every language of locales/."""
import ast
import json
import re
import string

import pytest

from qwen_image_2.model.sentences import Sentence, counted, joined, parts
from qwen_image_2.tests.repository.test_documentation import ROOT, schemas
from qwen_image_2.tools.generate import translations

OTHERS = sorted(path.name for path in translations.FOLDER.iterdir() if path.name != "en")
SYNTAX = "{}|@"  # of the page's messages


def content(language: str, name: str) -> dict:
    return json.loads((translations.FOLDER / language / name).read_text(encoding="utf-8"))


def fields(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def test_the_english_files_are_what_the_code_says(comfyui):
    for path, expected in translations.build(schemas()).items():
        assert path.read_text(encoding="utf-8") == expected, "run python tools/dev.py make translations"


def test_templates_are_found_in_the_code():
    found = translations.templates()
    assert {"{count} line", "{count} lines", "kept in RAM", "bullet point {number}"} < set(found) and len(found) > 90


# Raised with words that are found where they are written.
HANDED_ON = {"CheckpointError(sentence)", "ValueError(NO_VISION)", "ValueError(verdict)"}


@pytest.mark.parametrize("path", translations.sources(),
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_the_words_of_every_error_are_found(path):
    """Else its refusal would be said in English only, and nobody would miss the translation."""
    errors = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
              if isinstance(node, ast.Call) and translations.is_error(node))
    unknown = {ast.unparse(error) for error in errors if translations.refusal_of(error) is None}
    assert unknown <= HANDED_ON


@pytest.mark.parametrize(("code", "template"), [
    ('ValueError("As it is.")', "As it is."),
    ('ValueError(f"{len(masks)} for {one.name!r}, at most {MOST:,}")', "{masks} for {name}, at most {most}"),
    ('x.OddError(f"{shape[2]} x {shape[3]} of {shape[2]}")', "{shape} x {shape2} of {shape}"),
    ('ValueError(f"{part.strip()[:80]}, {max(map(len, lines))}, {size / 2**30:.2f}")', "{part}, {lines}, {size}"),
    ("ValueError(verdict)", None),
])
def test_templates_of_refusals(code, template):
    call = ast.parse(code).body[0].value
    assert translations.is_error(call) and translations.refusal_of(call) == template


@pytest.mark.parametrize("language", OTHERS)
def test_a_language_has_what_english_has(language):
    own, english = content(language, "main.json")["qwen_image_2"], content("en", "main.json")["qwen_image_2"]
    for kind in ("words", "sentences", "refusals"):
        assert list(own[kind]) == list(english[kind])
        for key, text in own[kind].items():
            assert text and fields(text) == fields(english[kind][key]), key


@pytest.mark.parametrize("language", OTHERS)
def test_a_language_names_what_the_nodes_have(language):
    own, english = content(language, "nodeDefs.json"), content("en", "nodeDefs.json")
    assert set(own) == set(english)
    for name, node in english.items():
        assert own[name]["display_name"] and own[name]["description"]
        for side in ("inputs", "outputs"):
            assert {key: set(entry) for key, entry in own[name].get(side, {}).items()} == {
                key: set(entry) for key, entry in node[side].items()}, name
            assert all(text for entry in own[name].get(side, {}).values() for text in entry.values())


@pytest.mark.parametrize("language", OTHERS)
def test_inputs_are_called_as_they_stand_on_the_node(language):
    """Who reads the page in another language looks there for the name, not for expected_text."""
    inputs = {key for node in content(language, "nodeDefs.json").values() for key, entry in node["inputs"].items()
              if "_" in key and entry["name"] != key}
    for kind in ("words", "sentences", "refusals"):
        for text in content(language, "main.json")["qwen_image_2"][kind].values():
            named = set(re.findall(r"(?<!\{)\b[a-z]+(?:_[a-z]+)+\b(?![.}])", text, re.ASCII))
            assert not named & inputs, text


def texts(value) -> list[str]:
    return [value] if isinstance(value, str) else [text for part in value.values() for text in texts(part)]


@pytest.mark.parametrize("language", ["en", *OTHERS])
def test_names_hold_no_syntax_of_the_page(language):
    """The page compiles them as messages: a stray | would cut a tooltip in two."""
    for text in texts(content(language, "nodeDefs.json")):
        plain = re.sub(r"{'[{}|@]'}", "", text)
        assert not set(SYNTAX) & set(plain), text


def test_the_panels_use_their_words_and_no_others(comfyui):
    from qwen_image_2.pages import report
    words = set(content("en", "main.json")["qwen_image_2"]["words"])
    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "js").glob("*.js"))
    verdicts = {f"verdict_{status}" for status in report.COLOURS}
    assert verdicts <= words and words - verdicts <= set(re.findall(r'"(\w+)"', scripts))
    assert set(re.findall(r'word\("(\w+)"', scripts)) <= words


def test_a_node_that_tells_something_tells_it_again_from_the_cache(comfyui):
    """And asks for its id, without which nobody could be told."""
    from qwen_image_2.nodes import NODES
    for node in NODES:
        schema = node.GET_SCHEMA()
        asks = any(hidden.name == "unique_id" for hidden in schema.hidden)
        assert asks == bool(schema.has_intermediate_output), schema.node_id


def test_a_sentence_is_english_and_knows_its_parts():
    told = Sentence("{picture} of {all}: {faults}.", picture=counted(1, "{count} page", "{count} pages"), all=3,
                    faults=[Sentence("{count} wrong", count=2), "{not a field}"])
    assert told == "1 page of 3: 2 wrong, {not a field}."
    assert parts(told) == {"template": "{picture} of {all}: {faults}.", "values": {
        "picture": {"template": "{count} page", "values": {"count": 1}}, "all": 3,
        "faults": [{"template": "{count} wrong", "values": {"count": 2}}, "{not a field}"]}}
    assert counted(2, "{count} page", "{count} pages") == "2 pages"
    assert joined(["a"]) == "a" and joined(["a", "b", "c"]) == "a, b and c"


def test_a_sentence_can_be_copied():
    import copy
    import pickle
    told = Sentence("{name} is large", name="{x}")
    for same in (copy.deepcopy(told), copy.copy(told), pickle.loads(pickle.dumps(told))):
        assert same == told == "{x} is large" and parts(same) == parts(told)
