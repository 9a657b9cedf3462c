"""Layouts: what the rules make of briefs, words for places, JSON, core's elements, edits, and boxes that are none."""
import itertools
import json

import pytest

from qwen_image_2.messages import Refusal
from qwen_image_2.pages import briefs, layout, places, wording
from qwen_image_2.pages.arrangement import arranged
from qwen_image_2.pages.briefs import Page
from qwen_image_2.pages.layout import Box, Layout
from qwen_image_2.pages.vocabulary import LANGUAGES

LONG = "The market opens at six and 60 stalls wait for you. " * 12
TEXTS = {"short": ("NIGHT", "tonight", "Pier 7", "Come!", "Free"),
         "long": ("NIGHT MARKET\nAT THE OLD HARBOUR", "every Friday in May until late", LONG, "Come and see us",
                  "Pier"),
         "Chinese": ("海港夜市", "今晚六点码头见", "六十个摊位，从六点营业到深夜。" * 12, "来吧", "七号码头")}
RATIOS = ("3:4", "1:1", "16:9", "9:16")


def page(ratio="3:4", picture="A harbour.", size="2048", language="English"):
    return Page(language, picture, palette="deep blue, cream white, warm orange", aspect_ratio=ratio, size=size)


def all_briefs(ratio: str, texts: tuple[str, ...], picture: str = "A harbour."):
    """Every arrangement of the four briefs."""
    title, subtitle, body, action, footer = texts
    look, points = page(ratio, picture), "\n".join(f"- {word} {n}" for n, word in enumerate(body.split()[:9]))
    data = "\n".join(f"{n} % | {title.split()[0]}{' | a boat' if n % 2 else ''}" for n in range(1, 8))
    panels = "\n\n".join(f"A street.\nCaption: {footer}\nMia: {subtitle}\nBob: {title.split()[0]}\nMia: {action}\n"
                         f"Sound: {action}" for _ in range(5))
    for position, columns in itertools.product(briefs.POSTER_PLACES, (1, 2)):
        yield briefs.poster(look, *texts, "poster", position, columns)
        yield briefs.poster(look, "", subtitle, "", "", "", "poster", position, columns)
    for position, beside, columns in itertools.product(briefs.SLIDE_TITLES, briefs.PICTURE_POSITIONS, (1, 3)):
        yield briefs.slide(look, title, subtitle, points, footer, position, beside, columns)
    for arrangement, columns in itertools.product(briefs.ARRANGEMENTS, (1, 3)):
        yield briefs.infographic(look, title, subtitle, data, action, footer, "infographic", arrangement, columns)
    yield from (briefs.comic(look, title, panels, columns) for columns in (1, 2, 3))


@pytest.mark.parametrize("texts", TEXTS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_text_boxes_are_inside_safe_margins_apart_and_in_reading_order(ratio, texts):
    for brief in (one for picture in ("A harbour.", "") for one in all_briefs(ratio, TEXTS[texts], picture)):
        made = layout.checked(arranged(brief))
        assert not layout.overlapping(made), brief
        assert [box.name for box in made.boxes if box.literal] == [
            name for name, element in places.named(brief) if element.literal]
        across, down = (0.045 * min(made.width, made.height) / side for side in (made.width, made.height))
        for box in made.boxes:
            if box.literal:
                assert across <= box.x and box.x + box.w <= 1 - across, box
                assert down <= box.y and box.y + box.h <= 1 - down, box


def test_boxes_are_where_the_prompt_says():
    """Middle of the box, by the word for its place: (from, to) across, then down."""
    where = {"top": (0.2, 0.8, 0, 0.5), "top left": (0, 0.8, 0, 0.5), "lower third": (0, 1, 0.5, 1),
             "left side": (0, 0.5, 0, 0.7), "right side": (0.5, 1, 0, 0.7), "centre": (0.3, 0.7, 0.4, 0.6),
             "right half": (0.5, 1, 0, 1), "left half": (0, 0.5, 0, 1), "lower edge": (0.3, 0.7, 0.9, 1),
             "bar": (0.3, 0.7, 0.75, 1), "lower left": (0, 0.5, 0.5, 1), "lower right": (0.5, 1, 0.5, 1),
             "upper part": (0.3, 0.7, 0, 0.5), "below centre": (0.3, 0.7, 0.5, 1)}
    seen = set()
    for brief in (one for ratio in RATIOS for one in all_briefs(ratio, TEXTS["short"])):
        made = arranged(brief)
        for name, element in places.named(brief):
            if element.place in where and brief.kind in ("poster", "slide"):
                box, (left, right, top, bottom) = made.named(name), where[element.place]
                seen.add(element.place)
                assert left <= box.x + box.w / 2 <= right and top <= box.y + box.h / 2 <= bottom, (element.place, box)
    assert seen == set(where)


def test_panels_and_data_points_run_row_by_row():
    made = arranged(briefs.comic(page(), "T", "\n\n".join(["A street."] * 5), 2))
    panels = [made.named(f"panel {number}") for number in range(1, 6)]
    assert panels[0].y == panels[1].y < panels[2].y < panels[4].y and panels[0].x == panels[2].x < panels[1].x


# ---------------------------------------------------------------- words for places

@pytest.mark.parametrize("texts", TEXTS)
def test_where_nothing_was_moved_the_prompt_is_the_brief_s_to_the_letter(texts):
    for brief in all_briefs("3:4", TEXTS[texts]):
        same, lost = layout.edited(arranged(brief), "")
        again, _ = layout.edited(same, same.to_json())  # the page may send back all of it
        assert wording.write(places.asked_for(same)) == wording.write(places.asked_for(again)) == wording.write(brief)
        assert not lost


@pytest.mark.parametrize("change, words", [
    ('{"name": "title", "y": 0.7}', "In the lower third, the title"),
    ('{"name": "title", "x": 0.6, "y": 0.05, "w": 0.3, "h": 0.1}', "At the top right, the title"),
    ('{"name": "body", "x": 0.05, "y": 0.4, "w": 0.3, "h": 0.2}', "On the left side, the body text"),
    ('{"name": "picture", "x": 0, "y": 0, "w": 1, "h": 1}', "The main picture, behind all texts"),
    ('{"name": "title", "text": "DAY"}', 'reads "DAY"'),
    ('{"name": "new", "text": "Hello", "x": 0.6, "y": 0.6, "w": 0.3, "h": 0.1}', 'At the lower right, the text')])
def test_a_moved_box_is_asked_for_where_it_is(change, words):
    brief = briefs.poster(page(), *TEXTS["short"])
    moved, lost = layout.edited(arranged(brief), f"[{change}]")
    prompt = wording.write(places.asked_for(moved))
    assert words in prompt and words not in wording.write(brief) and not lost


def test_what_stood_below_a_moved_title_is_told_its_own_place():
    brief = briefs.poster(page(), *TEXTS["short"])
    moved, _ = layout.edited(arranged(brief), '[{"name": "title", "y": 0.7}]')
    prompt = wording.write(places.asked_for(moved))
    assert "directly below the title" not in prompt.lower() and "At the top, the subtitle" in prompt


def test_a_moved_point_is_no_part_of_the_arrangement():
    brief = briefs.infographic(page(), data_points="1 | one\n2 | two\n3 | three\n4 | four")
    moved, _ = layout.edited(arranged(brief), '[{"name": "value 2", "x": 0.1}]')
    assert "even grid" in wording.write(brief) and "even grid" not in wording.write(places.asked_for(moved))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_drawn_layout_has_a_prompt(language):
    drawn = layout.read('[{"text": "OPEN", "x": 0.1, "y": 0.1, "w": 0.8, "h": 0.1}]', 1024, 1024)
    prompt = wording.write(places.asked_for(drawn, language))
    assert "OPEN" in prompt and LANGUAGES[language].places["top"] in prompt.lower() and "{" not in prompt


# ---------------------------------------------------------------- JSON, elements, edits

def test_json_gives_the_layout_again():
    for brief in all_briefs("3:4", TEXTS["Chinese"]):
        made = arranged(brief)
        again = layout.read(made.to_json(), 64, 64)
        assert (again.width, again.height) == (made.width, made.height)
        assert [box.text for box in again.boxes] == [box.text for box in made.boxes]
        assert not any(places.is_moved(one, other) for one, other in zip(made.boxes, again.boxes))
        assert again.to_json() == made.to_json()


def test_core_s_elements_are_a_layout():
    """As Create Bounding Boxes of ComfyUI 0.30 gives them: top, left, bottom, right in thousandths."""
    elements = [{"type": "obj", "bbox": [0, 0, 1000, 500], "desc": "a cat", "color_palette": ["#ff0000"]},
                {"type": "text", "bbox": [100, 500, 300, 900], "text": "MIAU\nMIAU", "desc": "bold",
                 "color_palette": ["#0000ff", "#00ff00"]}]
    picture, text = layout.from_list(elements, 1024, 512).boxes
    assert (picture.role, picture.text, picture.x, picture.w, picture.h) == ("picture", "a cat", 0, 0.5, 1)
    assert (text.role, text.text, text.colour) == ("text", "MIAU\nMIAU", "#0000ff")
    assert (text.x, text.y, round(text.w, 6), round(text.h, 6)) == (0.5, 0.1, 0.4, 0.2)
    assert layout.read(json.dumps(elements), 1024, 512).boxes == (picture, text)


def test_changes_of_boxes_that_are_gone_are_told():
    made = arranged(briefs.slide(page("16:9"), "T", bullets="a\nb"))
    same, (note,) = layout.edited(made, '[{"name": "bullet 3", "x": 0.2}]')
    assert same == made and note == "Changes of boxes that are not in this layout are left out: 'bullet 3'."


# ---------------------------------------------------------------- bad input

PLACE = {"x": 0.1, "y": 0.1, "w": 0.2, "h": 0.2}


@pytest.mark.parametrize("text, words", [
    ("", "not valid JSON"), ("{", "not valid JSON"), ("[" * 100_000, "not valid JSON"), ("5", "This is no layout"),
    ("{}", "This is no layout"), ('{"boxes": 5}', "This is no layout"), ("x" * 2_000_000, "2,000,000 characters"),
    ('{"boxes": [], "width": "1024", "height": 64}', "whole numbers"),
    ('{"boxes": [], "width": 1001, "height": 64}', "multiples of 16"),
    ("[5]", "Box 1 of the layout is not an object"), ('[{"text": "a"}]', "lacks x, y, w, h"),
    (json.dumps([PLACE | {"x": "0.1"}]), "invalid value for 'x'"), (json.dumps([PLACE | {"x": True}]), "for 'x'"),
    ('[{"x": NaN, "y": 0, "w": 1, "h": 1}]', "for 'x'"), ('[{"x": 1e999, "y": 0, "w": 1, "h": 1}]', "for 'x'"),
    (json.dumps([PLACE | {"paper": 1}]), "for 'paper'"), (json.dumps([PLACE | {"x": 0.9}]), "over the edge"),
    (json.dumps([PLACE | {"y": -0.5}]), "over the edge"), (json.dumps([PLACE | {"w": 0}]), "is empty"),
    (json.dumps([PLACE | {"h": -0.2}]), "is empty"), (json.dumps([PLACE | {"role": "slogan"}]), "not allowed as role"),
    (json.dumps([PLACE | {"weight": "black"}]), "not allowed as weight"), (json.dumps([PLACE | {"size": 2}]), "size 2"),
    (json.dumps([PLACE | {"columns": 10**30}]), "columns"), (json.dumps([PLACE | {"text": "a" * 10_001}]), "10,001"),
    (json.dumps([PLACE | {"name": "a"}] * 2), "are called 'a'"), (json.dumps([PLACE] * 501), "501 boxes"),
    ('[{"bbox": [1, 2, 3]}]', "Element 1 has no"), ('[{"bbox": [1, 2, 3, "4"]}]', "Element 1 has no")])
def test_a_layout_that_is_none_is_refused_in_one_sentence_or_two(text, words):
    with pytest.raises(Refusal) as refused:
        layout.read(text, 1024, 1024)
    assert words in str(refused.value) and len(str(refused.value)) <= 400 and "\n" not in str(refused.value)


def test_nested_and_silent_boxes_are_told():
    boxes = [Box("outer", "title", "A", 0.1, 0.1, 0.8, 0.8), Box("inner", "body", "B", 0.3, 0.3, 0.2, 0.2),
             Box("silent", "body", " ", 0.3, 0.3, 0.2, 0.2), Box("behind", "picture", "C", 0, 0, 1, 1)]
    overlap, silent = layout.advice_on(layout.checked(Layout(1024, 1024, tuple(boxes))))
    assert "'outer' and 'inner'" in overlap and "silent" not in overlap and "'silent'" in silent
