"""Outlines: what becomes of every kind of line, and what is refused."""
import time

import pytest

from qwen_image_2.pages import outline, wording
from qwen_image_2.pages.briefs import Page
from qwen_image_2.pages.outline import brief, of_each, read
from qwen_image_2.pages.quotation import literals

PAGE = Page(picture="A plain wall.", aspect_ratio="16:9")
WHOLE = """# Harbour **talk** #
A short tour
by night

> Welcome.

---
## Who works here ##
Picture: a tug boat
  under a crane
Layout: Title Top; picture left, 2 columns
Footer: Source: harbour office
Seed: 7
- Pilots
- Tug
  crews
* – dashes
1. first
> About four hundred
>
Notes: in each shift: more.
##
画面：灯塔
- 只有要点
"""


def test_every_kind_of_line_finds_its_place():
    first, second, third = read(WHOLE)
    assert (first.number, first.title, first.opening) == (1, "Harbour **talk**", True)
    assert first.subtitle == ["A short tour", "by night"] and first.notes == ["Welcome."] and not first.bullets
    assert (second.title, second.opening) == ("Who works here", False)
    assert second.picture == ["a tug boat"] and second.subtitle == ["under a crane"]
    assert second.layout == {"title_position": "top", "picture_position": "left", "columns": 2}
    assert second.footer == ["Source: harbour office"]
    assert second.bullets == ["Pilots", "Tug crews", "– dashes", "1. first"]
    assert second.notes == ["About four hundred", "", "in each shift: more."]
    assert (third.name, third.picture, third.bullets) == ("Slide 3", ["灯塔"], ["只有要点"])


def test_briefs_hold_the_texts_and_only_them():
    prompts = [wording.write(brief(slide, PAGE, "all slides", title_position="top left")) for slide in read(WHOLE)]
    assert literals(prompts[0]) == ["Harbour **talk**", "A short tour", "by night", "all slides"]
    assert literals(prompts[1]) == ["Who works here", "under a crane", "Pilots", "Tug crews", "– dashes", "1. first",
                                    "Source: harbour office"]
    assert not any(note in "".join(prompts) for note in ("Welcome", "four hundred", "each shift"))
    assert ["A plain wall" in prompt for prompt in prompts] == [True, False, False]
    assert "In the centre, the title" in prompts[0] and "behind all texts" in prompts[0]
    assert "At the top, the title" in prompts[1] and "in two columns" in prompts[1] and "in the left half" in prompts[1]
    assert all("minimalist" not in prompt for prompt in prompts)


def test_each_slide_has_a_seed_and_its_own_changes_no_others():
    assert outline.seeds(read("## A\n## B\n种子：3\n## C\nseed: 0\n## D"), 5) == [5, 3, 0, 8]
    assert outline.seeds(read("## A\n## B"), 2**64 - 1) == [2**64 - 1, 0]


def test_windows_line_ends_and_a_byte_order_mark():
    assert [slide.title for slide in read("\ufeff" + WHOLE.replace("\n", "\r\n"))] == [s.title for s in read(WHOLE)]


def test_a_layout_of_the_slide_goes_before_that_of_the_deck():
    slides = read("# A\nLayout: title lower third\n## B\n- one")
    briefs = [brief(slide, PAGE, title_position="left side") for slide in slides]
    assert [found.elements[0].place for found in briefs] == ["lower third", "left side"]


@pytest.mark.parametrize(("text", "message"), [
    ("", "has no slides"),
    (" \n\u200b\n", "has no slides"),
    ("Hello\n## A", "starts with 'Hello', which belongs to no slide"),
    ("#Title", "which belongs to no slide"),
    ("## A\n### B", "heading with ###"),
    ("#" * 5000 + " A", "heading with #{40}. Slides start"),
    ("## A\nColour: red", r"Slide 1 \(A\) contains the unknown hint 'Colour'; known are Picture, Layout"),
    ("## A\nSeed: lucky", r"Slide 1 \(A\) has the seed 'lucky'; a seed is an integer from 0 to 184467"),
    ("## A\nSeed: -1", "has the seed '-1'"),
    ("## A\nSeed:", "has the seed ''"),
    ("## A\nSeed: 18446744073709551616", "has the seed '18446744073709551616'"),
    ("## A\nSeed: " + "9" * 5000, "has the seed '99999"),
    ("## A\nLayout: title sideways", "unknown layout 'title sideways'; choose title top left, title top"),
    ("## A\n- one\n\nmore", "'more' after its bullet points"),
    ("## A\n" * 101, "101 slides; the maximum is 100"),
    ("## A\n" * 300, "300 slides"),
])
def test_refused_in_one_sentence(text, message):
    with pytest.raises(ValueError, match=message) as error:
        read(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("line", "what"), [
    ("```python", "the fence of a code block"), ("~~~", "the fence of a code block"),
    ("| a | b |", "part of a table"), ("|---|:-:|", "part of a table"), ("--- | ---", "part of a table"),
    ("![a boat](boat.png)", "an image"), ("- a ![boat][1] here", "an image"), ("Footer: ![a](b)", "an image"),
    ("<div>", "HTML"), ("one<br/>two", "HTML"), ("- <!-- later -->", "HTML"), ('<IMG src="a.png">', "HTML"),
    ("</table>", "HTML"), ("<b>all</b> of it", "HTML"), ('<a href="x">', "HTML"), ("</span>", "HTML"),
    ("===", "the underline of a heading"), ("=", "the underline of a heading"),
    ("words\n---", "the underline of a heading; for a rule"), ("words\n--", "the underline of a heading; for a rule"),
])
def test_markdown_without_meaning_is_refused_with_its_line(line, what):
    """It would be drawn, marks and all."""
    number, last = 2 + line.count("\n"), line.split("\n")[-1]
    with pytest.raises(ValueError) as raised:
        read(f"## A\n{line}\n- more")
    assert str(raised.value).startswith(f"Line {number} of the outline is not supported: {last!r} is {what}")


@pytest.mark.parametrize("title", ["## A title<br>in two lines", "## ![logo](a.png)"])
def test_titles_are_looked_at_too(title):
    with pytest.raises(ValueError, match="^Line 1 of the outline is not supported: "):
        read(title)


@pytest.mark.parametrize("text", [
    "## A\n> | a | b |\n> <br> ![a](b) ```\nNotes: <b>loud</b>\nPicture: a sign <b>, a table | of wood",
    "## A <b>bold</b> title\n- <b>&amp;</b>\n- x<sup>2</sup>",
    "## A\n- one\n---\n- two", "## A\n---\nwords\n\n---\n- one", "## A\nwords\n\n--\n"])
def test_what_is_not_drawn_and_rules_are_not_asked(text):
    assert len(read(text)) == 1


@pytest.mark.parametrize("text", ["- a\n--\n" * 40_000, "words\n" * 20_000 + "Seed: 1\n--\n" * 15_000],
                         ids=["after points", "after a long subtitle"])
def test_underlines_are_looked_for_without_reading_the_slide_again(text):
    begin = time.process_time()
    assert len(read(f"## A\n{text}")) == 1
    assert time.process_time() - begin < 20


def test_an_em_dash_begins_a_point_like_an_en_dash():
    slide, = read("## A\n— one\n– two\n—three")
    assert slide.bullets == ["one", "two —three"]


@pytest.mark.parametrize(("text", "message"), [
    ("## A\n##\n> only notes", "Slide 2 cannot be drawn: The slide brief is empty"),
    ("## A\n## B\n- a\x07b", r"Slide 2 \(B\) cannot be drawn: The bullet list contains the control character U\+0007"),
    ("## A\nPicture: a 12\" record", r"Slide 1 \(A\) cannot be drawn: The picture description opens a quotation"),
    ("## a\"b“c「d『", "cannot be drawn: The text .* contains every kind of quotation mark"),
])
def test_what_a_brief_refuses_names_the_slide(text, message):
    with pytest.raises(ValueError, match=message):
        of_each(read(text), lambda slide: wording.write(brief(slide, Page(aspect_ratio="16:9"))))


def test_as_many_slides_as_allowed():
    assert len(read("## A\n" * outline.MAX_SLIDES)) == outline.MAX_SLIDES


@pytest.mark.parametrize("line", ["https://example.org", "10:30 Opening", "C# and F#", "#1 in sales", "a > b", "-5 °C",
                                  "a | b", "vector<int>", "<your name>", "<3", "a <b", "`code`", "wow!", "[1] see",
                                  "a = b", "--"])
def test_lines_that_only_look_like_marks_are_texts(line):
    slide, = read(f"## A\n{line}")
    assert slide.subtitle == [line] and not (slide.bullets or slide.notes)
