"""Texts that a stranger's workflow, or a language model, may bring cost time in proportion to their length.

Ten times the text in one process that the system ends after a few seconds of processor time: a pattern that takes the
square of a text's length would need hours. It holds the interpreter's lock while it searches, so that in ComfyUI not
even a time limit could end it.
"""
import json
import subprocess
import sys
import unicodedata

import pytest

from qwen_image_2.model.images.references import named_references
from qwen_image_2.pages import briefs, enhancement, outline, quotation, wording
from qwen_image_2.pages.briefs import Page
from qwen_image_2.pages.enhancement import Generated, enhanced
from qwen_image_2.tools.pack import ROOT

SECONDS = 20  # of processor time, for all texts of a test together; they take about one
CHILD = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from pack import load_pack
load_pack()
from qwen_image_2.tests.pages.test_hostile_texts import TEXTS
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[2]), int(sys.argv[2])))
for name, work in TEXTS.items():
    print(name, flush=True)
    try:
        work(int(sys.argv[3]))
    except ValueError as refusal:
        print(refusal, flush=True)
print("done", flush=True)
"""


def outlined(text: str) -> None:
    """Read with lines of any length, as if there were no bound: each pattern by itself is linear."""
    outline.MAX_LINE_LENGTH, outline.MAX_OUTLINE_LENGTH = len(text), len(text)
    outline.read(text)


def answered(text: str) -> None:
    enhanced("a", Generated(text, 5, False), (1024, 1024), None)


def fitted(brief: briefs.Brief) -> wording.Written:
    return wording.fitted(brief, lambda text: len(text) // 4, 1000)


def panel(text: str) -> None:
    briefs.MAX_FIELD_LENGTH = len(text)
    briefs.comic(Page(), "T", text)


def poster(text: str) -> None:
    briefs.MAX_FIELD_LENGTH = len(text)
    fitted(briefs.poster(Page(), "T", body=text))


def picture(text: str) -> None:
    briefs.MAX_FIELD_LENGTH = len(text)
    fitted(briefs.poster(Page(picture=text), "T"))


TEXTS = {
    "a heading with spaces": lambda n: outlined("# a" + " " * n + "x"),
    "a heading with marks": lambda n: outlined("# a" + " #" * n + "x"),
    "a rule": lambda n: outlined("# a\n" + "- " * n + "x"),
    "a bullet point": lambda n: outlined("# a\n-" + " " * n + "x"),
    "a hint": lambda n: outlined("# a\n" + "a" * n + " " * n + "x"),
    "a bullet point of many lines": lambda n: outlined("# a\n- a\n" + "b\n" * n),
    "what somebody says": lambda n: panel("a" + " " * n + "x"),
    "empty lines between panels": lambda n: panel("a\n" + "\n " * n + "x"),
    "dots": lambda n: poster("." * n + "x"),
    "dots with spaces": lambda n: poster(". " * n + "x"),
    "question marks and quotation marks": lambda n: poster("?'" * n + "x"),
    "spaces": lambda n: picture("a" + " " * n + "x"),
    "a quotation that never fits": lambda n: picture('a "' + (" " * 200 + "b") * (n // 200) + '"'),
    "marks that are never closed": lambda n: quotation.closed('"“„「『' * n),
    "a number of a reference": lambda n: named_references("<image" + "1" * n + ">" + "<image" * n, 3),
    "words of a model": lambda n: enhancement.check_text("<|" * n + "a" * n, "The prompt"),
    "braces": lambda n: enhanced("a", Generated('{"a": {' * n, 5, False), (1024, 1024), None),
    "spaces in an answer": lambda n: answered('{"rewritten_prompt": "a"' + " " * n + "x"),
    "marks in an answer": lambda n: answered('{"rewritten_prompt": "' + '" ' * n),
    "keys in an answer": lambda n: answered('{"rewritten_prompt" : "' * (n // 20)),
    "backslashes in an answer": lambda n: answered('{"rewritten_prompt": "' + '\\"' * n),
    "HTML": lambda n: outlined("# a\n" + "<div " * n + "<div" + " /" * n),
    "images": lambda n: outlined("# a\n" + "![" * n + "![" + "a" * n),
    "a table": lambda n: outlined("# a\n-" + " |-" * n + " " * n + "x"),
    "quoted texts that were lost": lambda n: enhanced(
        "".join(f'"{number}"' for number in range(n // 8)),
        Generated(json.dumps({"rewritten_prompt": "x" * n}), 5, False), (1024, 1024), None),
}


@pytest.mark.parametrize("characters", [60_000, 600_000])
def test_no_text_takes_the_square_of_its_length(characters):
    done = subprocess.run([sys.executable, "-c", CHILD, ROOT / "tools", str(SECONDS), str(characters)],
                          capture_output=True, text=True, timeout=600)
    assert done.stdout.endswith("done\n"), (done.returncode, done.stdout[-300:], done.stderr[-2000:])


# ---------------------------------------------------------------- bounds

@pytest.mark.parametrize(("text", "message"), [
    ("# a\n- b\n# a" + " " * 60_000 + "x", r"Line 3 of the outline has 60,004 characters \('# a"),
    ("# a\n" + "> note\n" * 200_000, "The outline has 1,400,004 characters; the maximum is 300,000"),
])
def test_an_outline_is_bounded(text, message):
    with pytest.raises(ValueError, match=message) as error:
        outline.read(text)
    assert len(str(error.value)) <= 400


def test_a_field_is_bounded():
    assert fitted(briefs.poster(Page(), "T", body="word " * 6500)).texts[0] == "T"
    with pytest.raises(ValueError, match="The body has 35,000 characters; the maximum is 32,768"):
        briefs.poster(Page(), "T", body="word " * 7000)


# ---------------------------------------------------------------- and nothing else has changed

@pytest.mark.parametrize(("line", "title"), [
    ("# Talk ##", "Talk"), ("# Talk \t#", "Talk"), ("# C#", "C#"), ("# C# #", "C#"), ("# a # #", "a #"), ("## ##", ""),
    ("## #", ""), ("# #1 in sales", "#1 in sales")])
def test_closing_marks_go_and_others_stay(line, title):
    assert outline.read(line)[0].title == title


@pytest.mark.parametrize(("line", "said"), [
    ("Ann: Hi: you", ("speech", "Hi: you", "Ann")), ("Ann  ：  Hi", ("speech", "Hi", "Ann")),
    ("旁白：夜里", ("caption", "夜里", "旁白")), ("Sound: BOOM", ("sound", "BOOM", "Sound")),
    ("a" * 40 + ": b", ("speech", "b", "a" * 40)), ("a" * 41 + ": b", None), (": b", None), ("Ann:", None),
    ('"Ann": b', None), ("a street", None)])
def test_who_speaks(line, said):
    spoken = [element for element in briefs.comic(Page(), panels=line.replace('"', "”")).elements
              if element.role != "panel"]
    assert [(element.role, element.text, element.by) for element in spoken] == ([said] if said else [])


@pytest.mark.parametrize("text", [
    'a "b c" d', 'a “b "c" d', "a „b“ c „d", '"', 'a "b" c "d', "「a『b』c", "“a “b” c”", '„"a" b', ""])
def test_ends_outside_of_quotations(text):
    ends = list(range(len(text) + 1))
    assert quotation.closed_ends(text, ends) == [end for end in ends if quotation.closed(text[:end])]


def test_control_characters_are_those_of_unicode():
    found = {chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) in ("Cc", "Cs")}
    assert {chr(code) for code in range(0x110000) if briefs.CONTROL.match(chr(code))} == found - {"\n", "\t"}


def test_a_reference_of_many_digits_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="names <image111111111>, but"):
        named_references("<image" + "1" * 5000 + ">", 3)
    assert named_references("<image0002> <image" + "0" * 5000 + "1>", 3) == {1, 2}


def test_an_answer_that_has_lost_too_many_quoted_texts_is_not_used():
    prompt = "".join(f'"{number}" ' for number in range(200))
    found = enhanced(prompt, Generated('{"rewritten_prompt": "A poster."}', 5, False), (1024, 1024), None)
    assert found.prompt == prompt and "dropped 200 of its quoted texts" in found.notes[0]
