"""Typeset pages: letters inside their boxes, in every script, from fonts that have them, within a bounded time."""
import time

import numpy as np
import pytest
from PIL import Image, ImageFont

from qwen_image_2.messages import Refusal
from qwen_image_2.pages import page_fonts, shaping, typeset
from qwen_image_2.pages.arrangement import arranged
from qwen_image_2.pages.layout import Box, Layout
from qwen_image_2.pages.page_fonts import Face, Fonts

from .test_glyphs import with_broken_outlines
from .test_layout import TEXTS, all_briefs

shaped = pytest.mark.skipif(not shaping.available(), reason="needs the packages uharfbuzz and python-bidi")
FONTS = Fonts()
FULL = {"x": 0.1, "y": 0.1, "w": 0.8, "h": 0.8}


def box(text, name="a", **changes):
    return Box(name, "text", text, **FULL | {"size": 0.1} | changes)


def one(text, fonts=FONTS, side=256, **changes):
    return typeset.typeset(Layout(side, side, (box(text, **changes),)), fonts)


@pytest.fixture(params=["with", "without"])
def extra(request, monkeypatch):
    """With the packages that shape text, and without them."""
    if request.param == "with" and not shaping.available():
        pytest.skip("needs the packages uharfbuzz and python-bidi")
    if request.param == "without":
        monkeypatch.setattr(shaping, "available", lambda: False)
    shaping.shaped.cache_clear()
    yield request.param
    shaping.shaped.cache_clear()


@pytest.mark.parametrize("texts", TEXTS)
def test_every_letter_of_every_brief_is_in_its_box(extra, texts):
    for number, brief in enumerate(all_briefs("3:4", TEXTS[texts])):
        if number % 6:
            continue
        made = arranged(brief)
        page = typeset.preview(made, FONTS, 300)
        outside = page.ink.copy()
        for each in made.boxes:
            if each.literal:
                left, top, right, bottom = each.pixels(outside.shape[1], outside.shape[0])
                assert outside[top:bottom, left:right].any(), each
                outside[top:bottom, left:right] = 0
        assert not outside.any() and page.sizes.keys() == {each.name for each in made.boxes if each.literal}


@pytest.mark.parametrize("text, changes", [
    ("ÄÅẤỆgjpqy|", {}), ("海港夜市。，", {}), ("ÄÅẤỆgjpqy| " * 40, {"weight": "bold"}),
    ("縦書きの文章。「はい」ー", {"direction": "vertical"}), ("gjÅ\ngjÅ\ngjÅ\ngjÅ", {"alignment": "centre"})])
def test_letters_are_not_cut_at_their_box(extra, text, changes):
    """A box with a free pixel row at its edges has cut nothing."""
    ink = one(text, side=512, size=0.5, **changes).ink
    left, top, right, bottom = box(text).pixels(512, 512)
    inside = ink[top:bottom, left:right]
    assert inside.any() and inside.sum() == ink.sum()
    assert not inside[0].any() and not inside[-1].any()


def test_alignment_and_direction_say_where_letters_are(extra):
    def middle(**changes):
        rows, columns = np.nonzero(one("ab", **changes).ink)
        return columns.mean() / 256, rows.mean() / 256
    assert middle()[0] < 0.3 and middle(alignment="right")[0] > 0.7
    across, down = middle(alignment="centre")
    assert abs(across - 0.5) < 0.03 and abs(down - 0.5) < 0.05
    assert middle(direction="right to left")[0] > 0.7
    assert middle(direction="vertical")[0] > 0.7 and middle(direction="vertical", alignment="left")[0] < 0.3


def test_columns_stand_beside_each_other(extra):
    ink = one("word " * 60, size=0.04, columns=2).ink
    gap = ink[:, 118:138].sum(axis=0)
    assert (gap == 0).sum() > 4 and ink[:, 40:110].any() and ink[:, 150:220].any()


def test_vertical_chinese_uses_upright_punctuation(extra):
    """The comma of a column is in the upper right of its square, not in the lower left."""
    faces = FONTS.faces("", "regular")
    (run,) = [token.runs[0] for token in shaping.tokens("好，", faces, FONTS, True, False)]
    (flat,) = [token.runs[0] for token in shaping.tokens("好，", faces, FONTS, False, False)]
    assert run.glyphs[1].number != flat.glyphs[1].number


@shaped
def test_harfbuzz_kerns_and_joins():
    def length(text):
        return sum(token.length for token in shaping.tokens(text, FONTS.faces("", "regular"), FONTS, False, False))
    assert length("AV") < length("A") + length("V") - 0.01
    run = shaping.shaped("fi", FONTS.faces("", "regular")[0], shaping.LTR, 0)
    assert len(run.glyphs) <= 2
    mark = shaping.shaped("x\u0301", FONTS.faces("", "regular")[0], shaping.LTR, 0)
    assert mark.glyphs[1].advance == 0


@shaped
def test_lines_that_run_both_ways_are_seen_as_unicode_says():
    """Numbers inside right-to-left text keep their order; brackets face their words. Levels need no font."""
    hebrew = "אבג 12 def"
    assert shaping._levels(hebrew, True) == [1, 1, 1, 1, 2, 2, 1, 2, 2, 2]
    assert shaping._levels("abc אבג 12", False) == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert shaping._levels("می\u200cخواهم", True) == [1] * 8
    runs = [shaping.Run((), 1.0, level) for level in (1, 2, 1)]
    token = shaping.Token(tuple(runs), 3.0, False)
    assert [run.level for run in shaping.runs_as_seen([token])] == [1, 2, 1]
    ordered = [shaping.Run((), float(number), level) for number, level in enumerate((0, 1, 2, 2, 1, 0))]
    seen = shaping.runs_as_seen([shaping.Token(tuple(ordered), 1.0, False)])
    assert [run.length for run in seen] == [0, 4, 2, 3, 1, 5]


def test_lines_break_where_a_reader_would(extra):
    faces = FONTS.faces("", "regular")
    lines = typeset.broken([shaping.tokens("你好，世界。（好）", faces, FONTS, False, False)], 2.4)
    count = [sum(len(run.glyphs) for token in line for run in token.runs) for line in lines]
    assert count[0] == 1 and sum(count) == 9  # 好 takes its comma along
    words = typeset.broken([shaping.tokens("one two  three", faces, FONTS, False, False)], 3.0)
    assert [len(line) for line in words] == [1, 1, 1]


# ---------------------------------------------------------------- fonts

def test_a_script_that_no_font_has_is_refused_by_name(extra):
    with pytest.raises(Refusal, match=r"No font here has the character ᚠ \(U\+16A0 runic letter fehu"):
        one("ᚠ")


def test_scripts_that_need_shaping_say_what_to_install(monkeypatch):
    monkeypatch.setattr(shaping, "available", lambda: False)
    for text in ("سلام", "שלום", "नमस्ते", "ไทย"):
        with pytest.raises(Refusal, match="pip install \"uharfbuzz>=0.57\""):
            one(text)


def test_what_the_chosen_font_lacks_comes_from_the_next(extra, tmp_path):
    own = tmp_path / "own.ttf"
    own.write_bytes(ImageFont.load_default(16).font_bytes)
    fonts = Fonts((Face("own.ttf", own),), "own.ttf")
    pieces = list(page_fonts.pieces("Hi 你好!", fonts.faces("", "regular"), fonts))
    assert [(face.path.name, text) for face, text in pieces] == [
        ("own.ttf", "Hi "), ("NotoSansCJKsc-Regular-Subset.otf", "你好!")]
    assert one("Hi 你好", fonts).ink.any()


def broken_font(tmp_path, kind):
    path = tmp_path / "odd.ttf"
    whole = ImageFont.load_default(16).font_bytes
    path.write_bytes({"no font": b"MZ" * 500, "empty": b"", "cut": whole[:300],
                      "outlines": with_broken_outlines(whole)}.get(kind, whole))
    if kind == "huge":
        with path.open("r+b") as file:
            file.truncate(page_fonts.MAX_BYTES + 1)  # takes no room on a disk
    if kind == "gone":
        path.unlink()
    return path


@pytest.mark.parametrize("kind", ["no font", "empty", "cut", "outlines", "huge", "gone"])
def test_a_font_that_is_none_is_refused_in_one_sentence(extra, tmp_path, kind):
    path = broken_font(tmp_path, kind)
    with pytest.raises(Refusal, match=r"odd\.ttf (cannot be read|has 256 MB)") as refused:
        one("Abc", Fonts((Face("odd.ttf", path),), "odd.ttf"))
    assert str(tmp_path) not in str(refused.value) and len(str(refused.value)) <= 400


def test_a_broken_font_among_the_others_is_passed_over(extra, tmp_path):
    others = Fonts((Face("odd.ttf", broken_font(tmp_path, "no font")),))
    with pytest.raises(Refusal, match="No font here has"):
        one("ᚠ", others)


def test_an_unknown_font_is_refused():
    with pytest.raises(Refusal, match="The font ../x no longer exists"):
        one("A", font="../x")


def test_the_shipped_fonts_have_what_they_promise():
    faces = FONTS.faces("", "bold")
    gb2312 = [bytes((lead, trail)).decode("gb2312", "ignore") for lead in range(0xB0, 0xF8)
              for trail in range(0xA1, 0xFF)]
    wanted = [*gb2312[::23], *"繁體中文電腦學習臺灣門龍鬱", *"ひらがなカタカナーゝ", *"ÄßñŁőЖщΩ€„“—…✓"[:-1]]
    assert [character for character in wanted if character and not any(page_fonts.has(face, character)
                                                                       for face in faces)] == []
    assert sum(path.stat().st_size for path in page_fonts.SHIPPED.iterdir()) < 12 * 2 ** 20
    assert "SIL OPEN FONT LICENSE" in (page_fonts.SHIPPED / "OFL.txt").read_text(encoding="utf-8")


# ---------------------------------------------------------------- what is said

def test_emoji_are_left_out_and_told(extra):
    page = one("go 👩‍🚀🇨🇭❤️ 🎉🎉!")
    (note,) = [note for note in page.notes if "emoji" in note]
    assert "👩‍🚀, 🇨🇭, ❤, 🎉" in note
    assert page_fonts.without_emoji("a🇨🇭🇩🇪b👍🏽", str.isalpha) == ("a\u3000\u3000b\u3000", ["🇨🇭", "🇩🇪", "👍🏽"])


def test_letters_that_the_model_cannot_draw_are_told():
    """20 pixels of Latin, 50 of traditional Chinese, at 2048 whatever the canvas."""
    def said(text, pixels, side=1024):
        return [str(note) for note in one(text, side=side, size=pixels / 2048).notes]
    assert said("abc", 21) == said("简体", 21) == said("繁體", 51) == []
    assert "Smallest letters: 18 pixels at 2048, in the box 'a'" in said("abc", 18.5)[0]
    assert "Smallest letters: 40 pixels" in said("繁體", 40.5)[0]


def test_the_page_its_mask_and_its_edges_agree():
    parts = (Box("picture", "picture", "a cat", 0.1, 0.5, 0.8, 0.4), Box("panel 1", "panel", "", 0.1, 0.1, 0.4, 0.3),
             Box("speech 1", "speech", "Hi", 0.15, 0.15, 0.3, 0.2, size=0.05), box("Ab", y=0.02, h=0.06, size=0.05))
    page = typeset.typeset(Layout(256, 256, parts), FONTS)
    assert page.page.shape == (256, 256, 3) and page.ink.shape == page.edges.shape == (256, 256)
    assert tuple(page.page[200, 128]) == (208, 208, 208)
    assert tuple(typeset.typeset(Layout(256, 256, parts), FONTS, typeset.WHITE).page[200, 128]) == (255, 255, 255)
    assert (page.page[page.ink == 255] == 0).all()
    assert set(np.unique(page.edges)) == {0, 255} and page.edges[40, 26] == 255  # the panel's border
    assert not page.edges[180:220, 60:200].any()  # a picture has none
    assert typeset.outline(np.full((5, 5), 255, np.uint8)).sum() == 16 * 255


@pytest.mark.parametrize("colour, rgb", [("#ff0000", (255, 0, 0)), ("warm orange", (255, 165, 0)), ("", (0, 0, 0)),
                                         ("cream white", (0, 0, 0)), ("weiß", (0, 0, 0)), ("#12", (0, 0, 0)),
                                         ("rgb(300%)", (0, 0, 0)), ("deep blue", (0, 0, 255))])
def test_colours_that_can_be_read_on_paper(colour, rgb):
    assert typeset.rgb(colour) == rgb


# ---------------------------------------------------------------- bounds

def test_a_text_that_fits_at_no_size_is_refused(extra):
    with pytest.raises(Refusal, match="The text of the box 'a' does not fit at any size: 10,000 characters"):
        one("a" * 10_000, w=0.1, h=0.1)


@pytest.mark.parametrize("kind", ["500 boxes", "10,000 characters", "10,000 Chinese characters", "both ways"])
def test_large_layouts_take_less_than_a_second(kind):
    """Of one core: the time of the process, whatever else runs."""
    if kind == "both ways" and not shaping.available():
        pytest.skip("needs the packages uharfbuzz and python-bidi")
    boxes = {"500 boxes": lambda: [Box(f"b{n}", "text", f"word {n}", 0.04 * (n % 25), 0.05 * (n // 25), 0.038, 0.045)
                                   for n in range(500)],
             "10,000 characters": lambda: [box("lorem ipsum " * 833)],
             "10,000 Chinese characters": lambda: [box("海港夜市" * 2500)],
             "both ways": lambda: [box("abc (12) def " * 769)]}[kind]()
    begin = time.process_time()
    page = typeset.preview(Layout(2048, 2048, tuple(boxes)), FONTS)
    assert time.process_time() - begin < 1 and page.ink.any()


def test_a_preview_is_the_page_in_small():
    made = arranged(next(all_briefs("3:4", TEXTS["short"])))
    page, small = typeset.typeset(made, FONTS), typeset.preview(made, FONTS)
    assert max(small.page.shape) == 768 and page.page.shape[:2] == (made.height, made.width)
    assert small.sizes == page.sizes and small.notes == page.notes
    shrunk = np.asarray(Image.fromarray(page.ink).resize(small.ink.shape[::-1], Image.Resampling.BOX), float)
    assert np.corrcoef(shrunk.ravel(), small.ink.ravel().astype(float))[0, 1] > 0.9
