"""Which piece is which line: what each of the three passes does, and what holds for any input."""
import random

import pytest

from qwen_image_2.model.images.boxes import Box
from qwen_image_2.pages import matching
from qwen_image_2.pages.matching import Group, Growth, Texts, add_pieces, assign_one_to_one, join_lines, match


def stacked(pieces):
    """Boxes below each other."""
    return [Box(0, 40 * row, 100, 40 * row + 20) for row in range(len(pieces))]


def texts(lines, pieces):
    return Texts(lines, pieces, stacked(pieces))


def test_each_line_gets_the_piece_that_suits_it():
    given = texts(["freeentry", "pier7", "allday"], ["pier7", "freeentri"])
    assert assign_one_to_one(given) == [Group((0,), (1,)), Group((1,), (0,)), Group((2,))]


@pytest.mark.parametrize("line, piece, fits", [("market", "markets", True), ("market", "mar", True),
                                               ("market", "margin", True), ("market", "magnet", True),
                                               ("market", "manual", False), ("market", "", False)])
def test_what_shares_half_may_be_the_line(line, piece, fits):
    assert bool(assign_one_to_one(texts([line], [piece]))[0].pieces) == fits


@pytest.mark.parametrize("read, lines", [("freeentrypier7", (0, 1)), ("pier7freeentry", (1, 0))])
def test_a_missing_line_joins_the_one_it_was_read_with(read, lines):
    given = texts(["freeentry", "pier7"], [read])
    groups = assign_one_to_one(given)
    assert [group.pieces for group in groups] == [(0,), ()]
    assert join_lines(groups, given) == [Group(lines, (0,))]


def test_a_line_that_is_nowhere_stays_alone():
    given = texts(["freeentry", "pier7"], ["freeentry"])
    groups = assign_one_to_one(given)
    assert join_lines(groups, given) == groups


def test_a_piece_that_is_left_over_completes_its_line():
    given = texts(["nightmarket", "pier7"], ["night", "market", "pier7", "xyz"])
    groups = add_pieces(assign_one_to_one(given), given)
    assert groups == [Group((0,), (0, 1)), Group((1,), (2,))]
    assert matching.left_over(groups, 4) == [3]


def test_of_two_lines_the_nearer_one_gets_the_piece():
    """Both lack it equally: the characters do not tell, the place does."""
    boxes = [Box(0, 0, 100, 20), Box(0, 400, 100, 420), Box(0, 430, 100, 450)]
    assert match(["pieropen", "dockopen"], ["pier", "dock", "open"], boxes) == [Group((0,), (0,)), Group((1,), (1, 2))]


def test_the_greater_growth_gains_more_and_then_lies_nearer():
    one = Group((0,))
    assert Growth(3, -9, 0, one) > Growth(2, 0, 0, one) and Growth(3, -1, 0, one) > Growth(3, -9, 0, one)
    assert max(Growth(3, 0, 5, one), Growth(3, 0, 4, one)).number == 5, "of two equal ones the first"


def test_whatever_was_read_every_line_is_in_one_group_and_no_piece_in_two():
    rng = random.Random(0)
    for _ in range(200):
        lines, pieces = (["".join(rng.choices("abc", k=rng.randint(1, 8))) for _ in range(rng.randint(low, 7))]
                         for low in (1, 0))
        given = texts(lines, pieces)
        first = assign_one_to_one(given)
        kept = list(first)
        second = join_lines(first, given)
        third = add_pieces(second, given)
        assert first == kept and third == match(lines, pieces, given.boxes), "passes return new groups"
        assert sorted(line for group in third for line in group.lines) == list(range(len(lines)))
        taken = [piece for group in third for piece in group.pieces]
        assert len(set(taken)) == len(taken)
        assert sorted([*taken, *matching.left_over(third, len(pieces))]) == list(range(len(pieces)))


# ---------------------------------------------------------------- many lines

def many(lines: int, pieces: int) -> tuple[list[str], list[str]]:
    """No piece is a line's."""
    rng = random.Random(1)
    return (["".join(rng.choices("abcdefgh", k=24)) for _ in range(lines)],
            ["".join(rng.choices("hijklmno", k=24)) for _ in range(pieces)])


def test_a_thousand_missing_lines_are_not_compared_with_each_other(monkeypatch):
    """Counted, because a million comparisons of missing lines took eleven seconds."""
    looked, lines, pieces = [], *many(1000, 20)
    plain = Texts.unmatched
    monkeypatch.setattr(Texts, "unmatched", lambda texts, group: looked.append(group) or plain(texts, group))
    assert match([*lines, pieces[0]], pieces, stacked(pieces))[-1] == Group((1000,), (0,))
    assert len(looked) < 5000


def test_only_common_characters_are_counted():
    """A table of all characters of a thousand Chinese lines would take 80 MB."""
    given = texts(["ab" + chr(0x4e00 + number) for number in range(1000)], ["ba!"])
    assert given.line_counts.shape == (1000, 2) and given.piece_counts.tolist() == [[1, 1]]


@pytest.mark.parametrize("pieces", [30, 0])
def test_what_is_between_lines_is_asked_at_each(pieces):
    """Where the user cancels, the rest is not compared."""
    class CancelledError(Exception):
        pass

    asked, (lines, read) = [], many(100, pieces)
    match(lines, read, stacked(read), lambda: asked.append(1))
    assert len(asked) >= 100

    def cancel() -> None:
        asked.append(1)
        if len(asked) == 50:
            raise CancelledError
    asked.clear()
    with pytest.raises(CancelledError):
        match(lines, read, stacked(read), cancel)
    assert len(asked) == 50
