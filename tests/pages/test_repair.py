"""The loop that repairs words, with a stand-in for the reader and for the edit: what is edited, kept, and left alone.

A picture is an array of letters; the reader reads each row of cells that are no spaces.
"""
import json

import numpy as np
import pytest

from qwen_image_2.model.images.boxes import Box
from qwen_image_2.pages import placement, repair
from qwen_image_2.pages.compare import Found, Rules, compare
from qwen_image_2.pages.layout import Box as PageBox
from qwen_image_2.pages.layout import Layout
from qwen_image_2.pages.repair import Region, Written

ROWS, COLUMNS, CELL = 12, 24, 10  # cells are CELL pixels wide and high


def picture(**rows):
    """Texts by row, r2="WORD" at column 4; r2=("WORD", 9) at column 9."""
    cells = np.full((ROWS, COLUMNS), " ")
    for name, text in rows.items():
        text, column = text if isinstance(text, tuple) else (text, 4)
        cells[int(name[1:]), column:column + len(text)] = list(text)
    return cells


def read(cells):
    found = []
    for row, line in enumerate(cells):
        text, start = "".join(line), 0
        for word in text.split("  "):
            begin = text.index(word, start) if word.strip() else start
            if word.strip():
                word = word.strip()
                begin = text.index(word, start)
                found.append(Found(word, Box(begin * CELL, row * CELL, (begin + len(word)) * CELL, (row + 1) * CELL)))
            start = begin + len(word)
    return found


class Painter:
    """Edits cells: writes what a region asks for, with the errors of its n-th edit (a dict number -> function)."""

    def __init__(self, **wrong):
        self.wrong, self.regions = {int(name[1:]): change for name, change in wrong.items()}, []

    def __call__(self, cells, region, number):
        self.regions.append(region)
        edited = cells.copy()
        left, top = -(-region.box.left // CELL), -(-region.box.top // CELL)  # whole cells inside of the region
        edited[top:region.box.bottom // CELL, left:region.box.right // CELL] = " "
        for line in region.lines:
            for row, text in enumerate(line.text.split("\n")):
                text = self.wrong.get(number, lambda text: text)(text)
                at = -(-line.box.left // CELL)
                edited[-(-line.box.top // CELL) + row, at:at + len(text)] = list(text)
        return edited


def run(cells, expected, painter, attempts=3, layout=None, told=lambda *_: None, allow_extra=False):
    lines = expected.split("\n") if layout is None else placement.texts_of(layout).split("\n")
    size = (COLUMNS * CELL, ROWS * CELL)
    places = placement.places_of(layout, lines, *size) if layout else ()
    return repair.repair(
        cells, lambda picture: compare(lines, read(picture), Rules(allow_extra=allow_extra), places=places), painter,
        lambda found: repair.failed_regions(found, *size, allow_extra), attempts, told)


def test_a_right_picture_is_not_edited():
    painter, cells = Painter(), picture(r2="OPEN DAILY")
    outcome = run(cells, "OPEN DAILY", painter)
    assert outcome.picture is cells and not painter.regions and not outcome.rounds
    assert repair.notes(outcome) == ["The image says what it should: nothing was edited."]


def test_only_the_wrong_word_is_edited_and_nothing_around_it_changes():
    cells, painter = picture(r1="FRESH BREAD", r5="OPEM DAILY", r9="MILL LANE"), Painter()
    outcome = run(cells, "FRESH BREAD\nOPEN DAILY\nMILL LANE", painter)
    assert outcome.found.passed and outcome.first.score < outcome.found.score == 1
    region, = painter.regions
    assert region.lines == (Written("OPEN DAILY", Box(40, 50, 140, 60)),)
    assert outcome.repaired == [region.box] == [Box(37, 47, 143, 63)]
    changed = np.argwhere(outcome.picture != cells)
    assert changed.tolist() == [[5, 7]]


def test_what_reads_worse_is_not_kept_and_the_next_round_has_another_seed():
    cells = picture(r5="OPEM DAILY")
    painter = Painter(n0=lambda text: "XXXXXXXXXX", n1=lambda text: "OPEM DAILY")
    outcome = run(cells, "OPEN DAILY", painter)
    attempts = [attempt for one in outcome.rounds for attempt in one.attempts]
    assert [attempt.kept for attempt in attempts] == [False, False, True] and outcome.found.passed
    assert [attempt.number for attempt in attempts] == [0, 1, 2]
    assert [one.passed for one in outcome.rounds] == [False, False, True]


@pytest.mark.parametrize("attempts", [1, 2])
def test_attempts_are_used_up_and_the_picture_is_no_worse(attempts):
    cells = picture(r5="OPEM DAILY")
    painter = Painter(**{f"n{number}": lambda text: "NOTHING" for number in range(9)})
    outcome = run(cells, "OPEN DAILY", painter, attempts)
    assert len(painter.regions) == len(outcome.rounds) == attempts
    assert outcome.picture is cells and outcome.found is outcome.first and not outcome.repaired


def test_each_region_is_kept_for_itself():
    painter = Painter(n0=lambda text: "?????")
    outcome = run(picture(r2="BREAX", r8="DAILX"), "BREAD\nDAILY", painter, attempts=1)
    assert [attempt.kept for attempt in outcome.rounds[0].attempts] == [False, True]
    assert "".join(outcome.picture[8]).strip() == "DAILY" and "".join(outcome.picture[2]).strip() == "BREAX"
    notes = repair.notes(outcome)
    assert notes[0] == f"Round 1: 1 of 2 edits kept, score {outcome.found.score:.2f}."
    report = json.loads(repair.as_json(outcome, seed=40, room=16))
    assert [(one["seed"], one["words"], one["kept"]) for one in report["rounds"][0]["regions"]] == [
        (40, ["BREAD"], False), (41, ["DAILY"], True)]
    assert report["score_before"] < report["score"] < 1 and report["check"]["lines"][1]["status"] == "right"


def test_an_additional_line_is_removed_unless_it_is_allowed():
    cells = picture(r2="BREAD", r8="GRAND OPENING")
    outcome = run(cells, "BREAD", painter := Painter())
    assert outcome.found.passed and [region.lines for region in painter.regions] == [()]
    assert repair.instruction_for(painter.regions[0], "Set <words>.", True) == repair.REMOVE
    assert not run(cells, "BREAD", Painter(), allow_extra=True).rounds


def test_a_missing_line_goes_into_the_highest_empty_band():
    outcome = run(picture(r1="BREAD"), "BREAD\nDAILY", painter := Painter())
    assert outcome.found.passed
    region, = painter.regions
    assert region.box == Box(0, 30, 240, 110) and [line.text for line in region.lines] == ["DAILY"]
    region, = repair.failed_regions(compare(["BREAD"], [], Rules()), 50, 40)
    assert region.box == Box(0, 4, 50, 36)


LAYOUT = Layout(1024, 1024, (PageBox("title", "title", "BREAD", 0.1, 0.0, 0.5, 0.25),
                             PageBox("day", "text", "DAILY", 0.1, 0.5, 0.5, 0.25)))


def test_with_a_layout_a_missing_line_is_written_into_its_box():
    outcome = run(picture(r1="BREAD"), "", painter := Painter(), layout=LAYOUT)
    assert outcome.found.passed
    assert painter.regions == [Region(Box(24, 60, 144, 90), (Written("DAILY", Box(24, 60, 144, 90)),))]


def test_with_a_layout_a_line_elsewhere_is_written_into_its_box_and_removed_there():
    outcome = run(picture(r1="BREAD", r11=("DAILY", 15)), "", painter := Painter(), layout=LAYOUT)
    assert outcome.first.lines[1].status == "misplaced" and outcome.found.passed
    assert [[line.text for line in region.lines] for region in painter.regions] == [["DAILY"], []]


def test_boxes_that_touch_are_one_region_with_all_their_words():
    close = run(picture(r4="BREAX", r5="DAILX"), "BREAD\nDAILY", painter := Painter())
    assert close.found.passed and len(painter.regions) == 1
    assert [line.text for line in painter.regions[0].lines] == ["BREAD", "DAILY"]
    beside = run(picture(r4="BREAX", r5="DAILY"), "BREAD\nDAILY", painter := Painter())  # a right line that touches
    assert beside.found.passed and [line.text for line in painter.regions[0].lines] == ["BREAD", "DAILY"]


def test_joined_boxes_cover_all_and_touch_no_other():
    rng = np.random.default_rng(3)
    corners = rng.integers(0, 900, (60, 2))
    areas = [Box(int(x), int(y), int(x) + 40, int(y) + 30) for x, y in corners[:30]]
    others = [Box(int(x), int(y), int(x) + 40, int(y) + 30) for x, y in corners[30:]]
    regions = repair.joined(areas, others)
    assert all(any(repair.contains(region, area) for region in regions) for area in areas)
    for number, region in enumerate(regions):
        assert not any(repair.touch(region, other) for other in regions[number + 1:])
        assert all(repair.contains(region, other) or not repair.touch(region, other) for other in others)
    assert 1 < len(regions) < 30 and repair.joined([], others) == []


def test_a_line_of_which_too_little_was_read_gets_room():
    found = compare(["MORNING BREAD"], [Found("MORN", Box(100, 50, 140, 60))], Rules())
    region, = repair.failed_regions(found, 240, 120)
    assert region.lines[0].box == Box(55, 50, 185, 60)


def test_the_letters_stand_where_they_belong_in_the_crop():
    region = Region(Box(100, 100, 300, 200), (Written("OPEN", Box(110, 110, 290, 150)),
                                              Written("你好", Box(110, 150, 130, 190))))
    page = repair.letters_of(region, Box(0, 0, 400, 400), 800, 800)
    first, second = page.boxes
    assert (first.x, first.y, first.w, first.h, first.direction) == (0.275, 0.275, 0.45, 0.1, "auto")
    assert second.direction == "vertical" and second.size == pytest.approx(0.05)


def test_what_an_edit_is_told():
    region = Region(Box(0, 0, 9, 9), (Written("ONE\nTWO", Box(0, 0, 9, 9)), Written('A "B"', Box(0, 0, 9, 9))))
    words = '"ONE", "TWO", “A "B"”'
    assert repair.instruction_for(region, " ", True) == f"{repair.CORRECT} {words}"
    assert "<image" not in repair.instruction_for(region, "", False)
    assert repair.instruction_for(region, "Set <words> in {red}.", True) == f"Set {words} in {{red}}."
    assert repair.instruction_for(region, "Set", True) == f"Set {words}"


def test_cancelling_stops_at_each_step():
    class Stopped(Exception):
        pass

    def stop(*_):
        raise Stopped

    cells = picture(r5="OPEM")
    with pytest.raises(Stopped):
        run(cells, "OPEN", Painter(), told=stop)
    with pytest.raises(Stopped):
        run(cells, "OPEN", stop)
    seen = []
    run(cells, "OPEN", Painter(n0=lambda text: "OPXX"), told=lambda *state: seen.append(state))
    assert [state[:3] for state in seen] == [(1, 1, 1), (2, 1, 1)] and seen[0][3] == 0.75
