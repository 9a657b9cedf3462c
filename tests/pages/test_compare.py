"""What counts as equal, which found line is which expected one, and the figures that come of it."""
import itertools
import json
import random
import time

import pytest

from qwen_image_2.model.images.boxes import Box
from qwen_image_2.pages import report
from qwen_image_2.pages.compare import (
    MISSING,
    RIGHT,
    UNREADABLE,
    WRONG,
    Found,
    Rules,
    align,
    comparable,
    compare,
    expected_lines,
)
from qwen_image_2.pages.matching import lcs_length

LOOSE, STRICT = Rules(), Rules(match_case=True, match_punctuation=True)


def at(text, left=0, top=0, width=100, height=20, confidence=1.0):
    return Found(text, Box(left, top, left + width, top + height), confidence)


def rows(*texts):
    return [at(text, top=40 * row) for row, text in enumerate(texts)]


def statuses(comparison):
    return [line.status for line in comparison.lines]


@pytest.mark.parametrize("first, second", [
    ("ＳＡＬＥ ５０％", "SALE 50%"),          # full-width forms
    ("Café", "Cafe\u0301"),                   # composed and decomposed
    ("ﬁne", "fine"),                          # a ligature
    ("NIGHT\u200b \u202eMARKET\ufeff\x07", "NIGHT MARKET"),  # zero-width, directional, control
    ("❤\ufe0f love", "❤ love"),               # a variation selector
    ("18:00 – 23:30", "18:00-23:30"),         # dashes and spaces
    ("六月十四日 星期六", "六月十四日星期六"),
])
def test_equal_under_all_rules(first, second):
    assert comparable(first, STRICT) == comparable(second, STRICT)


@pytest.mark.parametrize("first, second", [
    ("Sale", "SALE"), ("Straße", "STRASSE"), ("Hello, world!", "hello world"), ("“Yes”", "Yes"),
    ("你好，世界。", "你好世界"),
])
def test_case_and_punctuation_count_only_when_asked_for(first, second):
    assert comparable(first, LOOSE) == comparable(second, LOOSE)
    assert comparable(first, STRICT) != comparable(second, STRICT)


@pytest.mark.parametrize("first, second", [
    ("1.50", "150"), ("18:00", "1800"), ("50%", "50"), ("A & B", "A B"), ("Café", "Cafe"), ("汉", "漢"), ("O", "0"),
    ("€5", "5"),
])
def test_never_equal(first, second):
    assert comparable(first, LOOSE) != comparable(second, LOOSE)


def test_distances_agree_with_a_plain_definition():
    def plain(a, b, replace):
        row = list(range(len(b) + 1))
        for i, x in enumerate(a, start=1):
            above, row = row, [i]
            for j, y in enumerate(b, start=1):
                row.append(min(above[j - 1] + replace * (x != y), above[j] + 1, row[-1] + 1))
        return row[-1]

    rng = random.Random(0)
    for _ in range(300):
        a, b = ("".join(rng.choices("abc", k=rng.randrange(9))) for _ in range(2))
        found = align(a, b)
        assert found.kept.count(False) + sum(found.inserted) == plain(a, b, 1)
        assert len(found.kept) == len(a) and len(found.inserted) == len(a) + 1
        assert len(a) + len(b) - 2 * lcs_length(a, b) == plain(a, b, 2)


def test_everything_right_in_any_order():
    found = compare(["NIGHT MARKET", "免费入场", "Pier 7"], rows("Pier 7", "Night market", "免费 入场"), LOOSE)
    assert statuses(found) == [RIGHT] * 3 and found.passed and found.score == found.word_accuracy == 1
    assert found.lines[0].boxes == (Box(0, 40, 100, 60),)


def test_figures_of_a_wrong_a_missing_and_an_extra_line():
    found = compare(["FREE ENTRY", "PIER"], rows("FREE ENTRI", "XYZQ"), LOOSE)
    wrong, missing = found.lines
    assert (wrong.status, wrong.errors, wrong.words, wrong.right_words) == (WRONG, 1, 2, 1)
    assert wrong.distance == pytest.approx(1 / 9)
    assert (missing.status, missing.distance, missing.boxes) == (MISSING, 1, ())
    assert [piece.text for piece in found.extra] == ["XYZQ"]
    assert found.score == pytest.approx(1 - (1 + 4 + 4) / (9 + 4 + 4)) and found.word_accuracy == pytest.approx(1 / 3)
    assert not found.passed


def test_tolerance_and_allowed_extra():
    pieces = rows("FREE ENTRI", "XYZQ")
    assert not compare(["FREE ENTRY"], pieces, Rules(tolerance=0.2)).passed
    assert not compare(["FREE ENTRY"], pieces, Rules(allow_extra=True)).passed
    both = compare(["FREE ENTRY"], pieces, Rules(tolerance=0.2, allow_extra=True))
    assert both.passed and both.score == pytest.approx(1 - 1 / 9)


def test_a_line_read_in_pieces():
    across = [at("ENTRY", left=120, top=3), at("FREE", left=0), at("TODAY", left=240, top=-2)]
    assert statuses(compare(["FREE ENTRY TODAY"], across, LOOSE)) == [RIGHT]
    stacked = [at("NIGHT", top=0), at("MARKET", top=30)]
    found = compare(["NIGHT MARKET"], stacked, LOOSE)
    assert found.passed and len(found.lines[0].boxes) == 2


def test_columns_of_single_characters():
    column = [at(character, left=300, top=30 * row, width=20) for row, character in enumerate("海港夜市")]
    second = [at(character, left=260, top=30 * row, width=20) for row, character in enumerate("今晚开市")]
    assert compare(["海港夜市", "今晚开市"], second + column, LOOSE).passed
    assert compare(["海港夜市今晚开市"], second + column, LOOSE).passed, "columns from the right"


def test_pieces_in_the_wrong_order_are_wrong():
    assert not compare(["NIGHT MARKET"], [at("MARKET", top=0), at("NIGHT", top=30)], LOOSE).passed


@pytest.mark.parametrize("order", list(itertools.permutations(["FREE ENTRY", "PIER 7", "ALL DAY"])))
def test_lines_read_as_one(order):
    found = compare(list(order), [at("PIER 7 FREE ENTRY ALL DAY")], LOOSE)
    assert statuses(found) == [RIGHT] * 3 and found.passed


def test_an_error_in_joined_lines_counts_for_its_own_line():
    found = compare(["FREE ENTRY", "PIER SEVEN"], [at("FREE ENTRY PIER SEVVN")], LOOSE)
    assert statuses(found) == [RIGHT, WRONG]


def test_the_assignment_is_the_best_for_all_lines_together():
    # Taking the best pair first would leave MARKET with the whole line.
    found = compare(["MARKETS", "NIGHT MARKET"], rows("MARKET", "NIGHT MARKETS"), LOOSE)
    assert [line.found for line in found.lines] == ["MARKET", "NIGHT MARKETS"]


def test_a_repeated_line_is_expected_as_often():
    assert statuses(compare(["FRUIT", "FRUIT"], rows("FRUIT"), LOOSE)).count(MISSING) == 1
    assert compare(["FRUIT", "FRUIT"], rows("FRUIT", "FRUIT"), LOOSE).passed
    assert len(compare(["FRUIT"], rows("FRUIT", "FRUIT"), LOOSE).extra) == 1


def test_a_picture_without_text():
    found = compare(["FRUIT"], [], LOOSE)
    assert (found.passed, found.score, found.word_accuracy, statuses(found)) == (False, 0, 0, [MISSING])


def test_single_signs_and_hardly_readable_ones_are_not_extra():
    found = compare(["FRUIT"], [*rows("FRUIT", "O"), at("gibberish", top=200, confidence=0.3)], LOOSE)
    assert found.passed and not found.extra and len(found.doubtful) == 2


def test_scripts_that_the_reader_does_not_know():
    rules = Rules(known=frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    found = compare(["SALE 🔥", "سلام"], rows("SALE"), rules)
    assert statuses(found) == [RIGHT, UNREADABLE] and found.passed
    with pytest.raises(ValueError, match="none of the expected lines is in these scripts"):
        compare(["سلام"], rows("SALE"), rules)


def test_emoji_and_ornaments_are_passed_over_even_where_the_reader_has_names_for_them():
    rules = Rules(known=frozenset("SALE18C°🔥★👍"))
    for expected, seen in (("SALE 🔥", "SALE"), ("SALE", "★ SALE ★"), ("SALE 👍🏽", "SALE 🔥")):
        assert compare([expected], rows(seen), rules).passed
    assert not compare(["18 °C"], rows("18 C"), rules).passed


@pytest.mark.parametrize("text", ["", " \n\t\n", "\u200b\n\u202e\x07"])
def test_no_expected_text_is_refused(text):
    with pytest.raises(ValueError, match="Expected text is empty"):
        expected_lines(text)


@pytest.mark.parametrize(("text", "words"), [
    ("a\n" * 1001,
     "has 1,001 lines, the longest of 1 characters; at most 1,000 lines of 2,000 characters can be compared"),
    ("FREE\n" + "a" * 2001, "has 2 lines, the longest of 2,001 characters"),
    ("a" * 60_000, "has 60,000 characters; at most 50,000 fit into one image"),
    ("\n" * 10**7, "has 10,000,000 characters"),
])
def test_more_text_than_a_picture_shows_is_refused(text, words):
    with pytest.raises(ValueError, match=words) as error:
        expected_lines(text)
    assert len(str(error.value)) <= 400


def test_as_much_text_as_allowed():
    assert len(expected_lines("a\n" * 1000)) == 1000 and len(expected_lines("a" * 2000)) == 1


@pytest.mark.parametrize("split", [False, True])
def test_three_hundred_lines(split):
    rng = random.Random(0)
    lines = [" ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(4)) for _ in range(300)]
    pieces = [at(word, left=110 * column, top=30 * row) for row, line in enumerate(reversed(lines))
              for column, word in enumerate(line.split() if split else [line])]
    begin = time.process_time()
    assert compare(lines, pieces, LOOSE).score > 0.99
    assert time.process_time() - begin < 60


# ---------------------------------------------------------------- what is made of it

def test_report_is_json_and_keeps_every_script():
    judged = json.loads(report.as_json([compare(["免费", "X\"Y"], rows("免费", "EXTRA"), LOOSE)]))
    picture, = judged["pictures"]
    assert not judged["passed"] and picture["lines"][0]["expected"] == "免费"
    assert [line["status"] for line in picture["lines"]] == [RIGHT, MISSING]
    assert picture["extra"] == [{"found": "EXTRA", "box": [0, 40, 100, 60], "confidence": 1.0}]


def test_mask_covers_what_failed_and_nothing_else():
    found = compare(["FREE ENTRY", "PIER 7"], rows("FREE ENTRI", "PIER 7"), LOOSE)
    mask = report.mask(found, 100, 200, allow_extra=False)
    assert mask[:20, :100].all() and not mask[30:].any() and not mask[:, 120:].any()
    assert not report.mask(compare(["PIER"], rows("PIER"), LOOSE), 50, 50, False).any()


def test_mask_of_missing_and_extra_lines():
    missing = compare(["PIER"], [], LOOSE)
    assert report.mask(missing, 10, 10, False).all(), "nothing shows where"
    extra = compare(["PIER"], rows("PIER", "ABCDE"), LOOSE)
    assert report.mask(extra, 100, 200, False)[45, 50] and not report.mask(extra, 100, 200, True).any()
    garbled = compare(["PIER"], [at("#§", top=50, confidence=0.1)], LOOSE)
    mask = report.mask(garbled, 100, 200, True)
    assert mask[60, 50] and not mask[0, 0]


def test_failed_lines_of_a_batch_come_once():
    one = compare(["A1", "B2"], rows("A1"), LOOSE)
    assert report.failed_lines([one, one]) == "B2"
    assert "1 of 2 lines right (1 missing)" in report.sentence(1, one)
