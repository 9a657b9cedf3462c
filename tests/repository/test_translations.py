"""Names, tooltips, words and messages in every language of locales/."""
import ast
import builtins
import copy
import json
import pickle
import re

import pytest

from qwen_image_2.messages import MAX_LENGTH, Message, Refusal, and_list, plural, reason, to_json
from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.pages import wording
from qwen_image_2.pages.briefs import Element
from qwen_image_2.pages.vocabulary import ENGLISH
from qwen_image_2.tests.repository.test_documentation import ROOT, schemas
from qwen_image_2.tools.generate import labels, translations

OTHERS = sorted(path.name for path in translations.FOLDER.iterdir() if path.name != "en")
SYNTAX = "{}|@"  # of the page's messages
CODE = translations.sources()


def content(language: str, name: str) -> dict:
    return json.loads((translations.FOLDER / language / name).read_text(encoding="utf-8"))


def test_the_english_files_are_what_the_code_says(comfyui):
    for path, expected in translations.build(schemas()).items():
        assert path.read_text(encoding="utf-8") == expected, "run python tools/dev.py make translations"


# ---------------------------------------------------------------- the code

def test_messages_are_found_in_the_code():
    """Each key stands in one place, or this raises."""
    found = translations.messages()
    assert {"lines.one", "lines.more", "cache_in_ram", "role_bullet", "tensor_missing", "write_failed", "and_list",
            "send_json", "wrong_file"} < set(found) and len(found) > 350
    assert found["tensor_missing"] == "{file} is incomplete: tensor {tensor} is missing."


@pytest.mark.parametrize("code", [
    'Message(key, "{count} pages", count=3)', 'Message("pages", template, count=3)', 'Message("pages", f"{count}")',
    'Message("pages", "{count} pages")', 'Message("pages", "pages", count=3)', 'Message("pages", "{count}", **values)',
    'Message("Pages", "pages")', 'Message("two pages", "pages")', 'Message("pages")', 'Refusal(f"{name} is gone.")',
    'messages.Refusal("gone", "{name!r} is gone.", name=name)', 'Message("pages", "{{count}}")',
    'checkpoint.fail("gone", "{tensor} is gone.", tensor=name)',
    'plural("pages", count, "{count} page", "pages")', 'plural("pages", count, one, "{count} pages")',
    'class Gone(Refusal): pass\nclass FileGone(Gone): pass\nraise FileGone("It is gone.")'])
def test_a_message_that_cannot_be_translated_is_found(code):
    with pytest.raises(ValueError):
        list(translations.collected({"model/some.py": ast.parse(code)}))


def test_a_key_that_stands_in_two_places_is_found(monkeypatch):
    twice = ast.parse('Message("pages", "pages")\nRefusal("pages", "pages")')
    monkeypatch.setattr(translations, "sources", lambda: {"model/some.py": twice})
    with pytest.raises(ValueError, match=r"^model/some.py:2: the key pages stands at model/some.py:1, too$"):
        translations.messages()


def mute(code: ast.AST) -> list[str]:
    """What would reach a user as plain English: exceptions that are no Refusals, and texts that are no Messages."""
    errors = [call for call in translations.calls(code) if call.args and is_exception(translations.called(call))]
    errors = [call for call in errors if not is_message_as_text(call.args[0])]
    shown = [call for call in translations.calls(code) if translations.called(call) in ("show", "notify")
             and any(isinstance(text, ast.Constant | ast.JoinedStr) for text in call.args)]
    checks = [node for node in ast.walk(code) if isinstance(node, ast.FunctionDef)
              and (node.name.startswith("check") or node.name == "validate_inputs")]
    verdicts = [node for check in checks for node in ast.walk(check) if isinstance(node, ast.Return) and is_plain(node)]
    return [ast.unparse(node) for node in (*errors, *shown, *verdicts)]


def is_exception(name: str) -> bool:
    """Python's own, or core's."""
    kind = getattr(builtins, name, None)
    return name == "OOM_EXCEPTION" or (isinstance(kind, type) and issubclass(kind, BaseException))


def is_message_as_text(code: ast.expr) -> bool:
    """str(Message(...)), for an exception that is core's."""
    return isinstance(code, ast.Call) and translations.called(code) == "str" and any(
        translations.called(call) == "Message" for call in translations.calls(code.args[0]))


def is_plain(verdict: ast.Return) -> bool:
    value = verdict.value
    return (isinstance(value, ast.JoinedStr) or (isinstance(value, ast.Constant) and isinstance(value.value, str))
            or (isinstance(value, ast.Call) and translations.called(value) == "str"))


@pytest.mark.parametrize("path", sorted(set(CODE) - {"messages.py"}))
def test_nothing_is_said_in_english_only(path):
    assert not mute(CODE[path])


@pytest.mark.parametrize("code", [
    'raise ValueError("Give one.")', 'raise ValueError(f"{count} are too many.")', "raise RuntimeError(verdict)",
    'error = OSError("The disk is full.")', 'raise x.OOM_EXCEPTION("Out of memory.")', 'notify(cls, "Done.")',
    'show(node, f"{count} tokens")', 'def validate_inputs(cls):\n    return "Give one."',
    "def check_size(width):\n    return str(error)"])
def test_what_is_said_in_english_only_is_found(code):
    assert mute(ast.parse(code))


# ---------------------------------------------------------------- the languages

@pytest.mark.parametrize("language", OTHERS)
def test_a_language_has_what_english_has(language):
    own, english = content(language, "main.json")["qwen_image_2"], content("en", "main.json")["qwen_image_2"]
    for kind in ("words", "messages"):
        assert list(own[kind]) == list(english[kind])
        for key, text in own[kind].items():
            assert text and translations.holes(text) == translations.holes(english[kind][key]), key


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


@pytest.mark.parametrize("language", ["en", *OTHERS])
def test_inputs_are_called_as_they_stand_on_the_node(language):
    """Who reads the page looks there for the label, not for expected_text."""
    inputs = {key for node in content(language, "nodeDefs.json").values() for key, entry in node["inputs"].items()
              if "_" in key and entry["name"] != key}
    for kind in ("words", "messages"):
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
    from qwen_image_2.pages.vocabulary import ENGLISH
    words = set(content("en", "main.json")["qwen_image_2"]["words"])
    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "js").glob("*.js"))
    named = {f"verdict_{status}" for status in report.COLOURS} | {f"role_{role}" for role in ENGLISH.roles}
    assert named <= words and words - named <= set(re.findall(r'"(\w+)"', scripts))
    assert set(re.findall(r'word\("(\w+)"', scripts)) <= words


def test_a_node_that_tells_something_tells_it_again_from_the_cache(comfyui):
    """And asks for its id, without which nobody could be told."""
    from qwen_image_2.nodes import NODES
    for node in NODES:
        schema = node.GET_SCHEMA()
        asks = any(hidden.name == "unique_id" for hidden in schema.hidden)
        assert asks == bool(schema.has_intermediate_output), schema.node_id


# ---------------------------------------------------------------- messages

def test_a_message_is_english_and_knows_its_parts():
    told = Message("result", "{picture} of {all}: {faults}.", all=3, faults=[
        Message("wrong", "{count} wrong", count=2), "{not a field}"],
        picture=plural("pages", 1, "{count} page", "{count} pages"))
    assert told == "1 page of 3: 2 wrong, {not a field}." and isinstance(told, str)
    assert to_json(told) == told.to_json() == {"key": "result", "template": "{picture} of {all}: {faults}.", "values": {
        "all": 3, "faults": [{"key": "wrong", "template": "{count} wrong", "values": {"count": 2}}, "{not a field}"],
        "picture": {"key": "pages.one", "template": "{count} page", "values": {"count": 1}}}}
    assert json.loads(json.dumps(told.to_json())) == told.to_json()
    assert plural("pages", 2, "{count} page", "{count} pages") == "2 pages"
    assert plural("pages", 2, "{count} page", "{count} pages").key == "pages.more"
    assert and_list(["a"]) == "a" and and_list(["a", "b", "c"]) == "a, b and c"


def test_a_refusal_is_an_exception_and_a_message():
    class Gone(Refusal):
        pass

    refusal = Gone("gone", "{file} is gone: {advice}.", file="{x}", advice=Message("look", "look for it"))
    assert str(refusal) == "{x} is gone: look for it." and isinstance(refusal, ValueError)
    assert refusal.message == str(refusal) and refusal.message.to_json() == refusal.to_json() == to_json(refusal) == {
        "key": "gone", "template": "{file} is gone: {advice}.",
        "values": {"file": "{x}", "advice": {"key": "look", "template": "look for it", "values": {}}}}
    assert to_json(reason(refusal)) == refusal.to_json() and reason(OSError("the share is gone")) == "the share is gone"


@pytest.mark.parametrize("value", [
    "blocks." * 100_000 + "weight", [f"blocks.{i}.weight" for i in range(50_000)], ["blocks." * 100_000] * 3,
    10 ** 5_000, Message("inner", "{name} of {names}", name="a" * 10 ** 6, names=["b" * 1000] * 1000)], ids=[
    "a long name", "many names", "long names", "a number of 5,000 digits", "a long message"])
def test_no_message_is_long_whatever_it_is_filled_in_with(value):
    """Each message of the code, in each language: it keeps its own words whole, its values are cut."""
    for language in ("en", *OTHERS):
        for key, template in content(language, "main.json")["qwen_image_2"]["messages"].items():
            filled = dict.fromkeys(translations.holes(template), value)
            told = Message(key, template, **filled)
            assert len(told) <= MAX_LENGTH == 400, key
            assert all(part in told for part in re.split(r"{\w+}", template)), key
            assert len(Refusal(key, template, **filled).message) <= MAX_LENGTH


def test_what_is_cut_keeps_its_ends_and_is_counted():
    name = "transformer_blocks." + "0" * 1000 + ".weight"
    told = Message("gone", "{file} lacks {tensor}.", file="style.safetensors", tensor=name)
    assert told.startswith("style.safetensors lacks transformer_blocks.000") and told.endswith("000.weight.")
    told = Message("gone", "{file} lacks {names}.", file="style.safetensors", names=["a" * 40, "b", *"c" * 1000])
    assert told.startswith(f"style.safetensors lacks {'a' * 40}, b, c, c, ")
    shown = told.values["names"]
    assert len(shown) - 1 + shown[-1].values["count"] == 1002 and told.endswith(f"{shown[-1]}.")
    assert told.to_json()["values"]["names"][-1]["key"] == "count_more"
    assert copy.copy(told) == told and Message("gone", told.template, **told.values) == told
    assert Message("few", "{names}", names=["a" * 100, "b" * 200]).values["names"] == ["a" * 100, "b" * 200]


def test_messages_inside_one_another_that_are_long_by_themselves_are_cut():
    inner = Message("inner", "word " * 70)
    told = Message("outer", "{one}; {two}; {three}", one=inner, two=inner, three=3)
    assert len(told) <= MAX_LENGTH and told.endswith("; 3") and told.count("...") == 2


@pytest.mark.parametrize("kind", [Message, Refusal, CheckpointError])
def test_messages_can_be_copied(kind):
    told = kind("large", "{name} is large", name="{x}")
    for same in (copy.deepcopy(told), copy.copy(told), pickle.loads(pickle.dumps(told))):
        assert type(same) is kind and str(same) == "{x} is large" and same.to_json() == told.to_json()


@pytest.mark.parametrize("value", [0.5, None, (1, 2)])
def test_a_value_that_the_page_could_not_fill_in_is_found_at_once(value):
    """A number needs a format, and the page has none."""
    with pytest.raises(TypeError):
        Message("size", "{size} GiB", size=value)


def test_a_name_in_a_note_is_the_one_in_the_prompt():
    for role, text in ENGLISH.roles.items():
        assert wording.NAMES[role](Element(role, "", number=3, by="Mia")) == text.format(number=3, by="Mia")
    assert set(wording.NAMES) == set(ENGLISH.roles)


def test_every_label_is_used_and_differs_from_what_the_rule_makes():
    names = {entry["name"] for node in content("en", "nodeDefs.json").values()
             for side in ("inputs", "outputs") for entry in node.get(side, {}).values()}
    assert not {name for name in names if "_" in name}
    for key, shown in labels.LABELS.items():
        assert shown in names and shown != key.capitalize().replace("_", " "), key
