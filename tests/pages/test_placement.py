"""A layout against what was read: lines in their boxes, pieces that read alike, order, boxes without writing."""
import json
import random

import pytest

from qwen_image_2.messages import Refusal
from qwen_image_2.model.images.boxes import Box
from qwen_image_2.pages import placement, report
from qwen_image_2.pages.compare import MISPLACED, MISSING, RIGHT, WRONG, Found, Rules, compare, expected_lines
from qwen_image_2.pages.layout import Box as PageBox
from qwen_image_2.pages.layout import Layout

SIDE, AS_USUAL = 1000, Rules()


def box(name, text, x, y, w=0.4, h=0.1, role="text"):
    return PageBox(name, role, text, x, y, w, h)


PAGE = Layout(1024, 1024, (box("photo", "a tug boat", 0, 0, 1, 1, "picture"), box("title", "NIGHT MARKET", 0.3, 0.1),
                           box("day", "Every Friday\nin May", 0.3, 0.4, h=0.2),
                           box("footer", "Pier 7", 0.3, 0.9, h=0.05)))
WHERE = {"NIGHT MARKET": (320, 110), "Every Friday": (320, 420), "in May": (320, 520), "Pier 7": (320, 905)}


def read(**moved):
    """What is read of PAGE; texts by their first word, at other places or with other words."""
    found = []
    for text, (left, top) in WHERE.items():
        change = moved.get(text.split()[0], (text, left, top))
        if change:
            text, left, top = change
            found.append(Found(text, Box(left, top, left + 200, top + 40)))
    return found


def checked(found, layout=PAGE, rules=AS_USUAL):
    lines = expected_lines(placement.texts_of(layout))
    return compare(lines, found, rules, places=placement.places_of(layout, lines, SIDE, SIDE))


def statuses(comparison):
    return [line.status for line in comparison.lines]


def test_a_page_as_laid_out_passes():
    found = checked(read())
    assert found.passed and found.score == 1 and statuses(found) == [RIGHT] * 4
    assert not found.out_of_order and not found.missing_boxes
    assert [line.place.name for line in found.lines] == ["title", "day", "day", "footer"]
    assert not report.layout_notes(1, found)


def test_a_line_outside_of_its_box_fails_by_its_share():
    half = checked(read(NIGHT=("NIGHT MARKET", 550, 110)))  # 150 of 200 pixels inside
    assert half.passed and half.lines[0].inside == 0.75
    out = checked(read(NIGHT=("NIGHT MARKET", 620, 110)))   # 80 of 200
    assert statuses(out) == [MISPLACED, RIGHT, RIGHT, RIGHT] and not out.passed
    assert out.lines[0].inside == 0.4 and [line.expected for line in out.failed] == ["NIGHT MARKET"]
    assert out.score == pytest.approx((0.4 * 0.04 + 0.08 + 0.02) / 0.14)
    assert "1 outside their boxes" in report.sentence(1, out)
    entry = json.loads(report.as_json([out]))["pictures"][0]["lines"][0]
    assert (entry["status"], entry["inside"], entry["box_name"]) == ("misplaced", 0.4, "title")
    assert entry["box"] == [300, 100, 700, 200]
    mask = report.mask(out, SIDE, SIDE, False)
    assert mask[150, 310] and mask[120, 800] and not mask[500, 400]  # its box, and where it stands


def test_boxes_count_by_their_area():
    large, small = checked(read(Every=None, **{"in": None})), checked(read(Pier=None))
    assert large.score == pytest.approx(0.06 / 0.14) and small.score == pytest.approx(0.12 / 0.14)
    assert large.missing_boxes == ["day"] and statuses(large) == [RIGHT, MISSING, MISSING, RIGHT]
    assert checked(read(Every=None)).missing_boxes == []  # its other line is there
    assert report.layout_notes(3, large) == ["Image 3: nothing was found of the boxes 'day'."]
    assert report.mask(small, SIDE, SIDE, False)[920, 500] and not report.mask(small, SIDE, SIDE, False)[500, 500]


def test_additional_writing_lowers_the_score_and_fails():
    found = checked([*read(), Found("GRAND OPENING", Box(0, 0, 90, 20))])
    assert not found.passed and 0 < found.score < 1 and statuses(found) == [RIGHT] * 4
    assert checked([*read(), Found("GRAND OPENING", Box(0, 0, 90, 20))], rules=Rules(allow_extra=True)).passed


def test_a_wrong_word_in_its_box_stays_wrong():
    found = checked(read(NIGHT=("NIGTH MARKET", 320, 110)))
    assert statuses(found)[0] == WRONG and found.lines[0].inside == 1


def test_of_pieces_that_read_alike_each_line_gets_the_one_in_its_box():
    boxes = tuple(box(f"price {number}", "SALE", 0.1, 0.1 + 0.2 * number) for number in range(4))
    layout = Layout(1024, 1024, boxes)
    pieces = [Found("SALE", Box(120, 110 + 200 * number, 320, 150 + 200 * number)) for number in range(4)]
    for seed in range(20):
        random.Random(seed).shuffle(pieces)
        assert checked(pieces, layout).passed
    stray = Found("SALE", Box(700, 900, 900, 940))
    for order in ([stray, *pieces], [*pieces, stray]):  # the one too many is not taken for the one in the box
        found = checked(order, layout)
        assert statuses(found) == [RIGHT] * 4 and [piece.box for piece in found.extra] == [stray.box]


def test_reading_order():
    swapped = checked(read(NIGHT=("NIGHT MARKET", 320, 905), Pier=("Pier 7", 320, 110)))
    assert set(swapped.out_of_order) == {"title", "day", "footer"}
    assert "another order than the layout's" in report.layout_notes(1, swapped)[0]
    inside = checked(read(Every=("Every Friday", 320, 520), **{"in": ("in May", 320, 420)}))
    assert inside.passed and inside.out_of_order == ("day",)  # told, no failure: each line is in its box
    assert json.loads(report.as_json([inside]))["pictures"][0]["reading_order"] is False


def test_a_layout_without_text_is_refused():
    for page in (Layout(1024, 1024, PAGE.boxes[:1]), Layout(1024, 1024, (box("title", " \n", 0, 0),))):
        with pytest.raises(Refusal, match="^The layout has no text to look for"):
            placement.texts_of(page)


def test_lines_that_show_nothing_have_no_place():
    page = Layout(1024, 1024, (box("a", "\u200b\nONE\n\n TWO ", 0, 0), box("b", "", 0, 0.5), box("c", "THREE", 0, 0.8)))
    lines = expected_lines(placement.texts_of(page))
    assert [(line, place.name) for line, place in zip(lines, placement.places_of(page, lines, 100, 100), strict=True)
            ] == [("ONE", "a"), ("TWO", "a"), ("THREE", "c")]
