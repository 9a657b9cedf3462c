"""From a designer's fields to a prompt: texts verbatim, within the limit, in both languages, the same every time."""
import dataclasses
import string
import unicodedata

import pytest

from qwen_image_2.pages import briefs, wording
from qwen_image_2.pages.briefs import Page
from qwen_image_2.pages.quotation import literals
from qwen_image_2.pages.vocabulary import CHINESE, ENGLISH, LANGUAGES

LIMIT = 1000


@pytest.fixture(scope="module")
def count(comfyui_path):
    """Tokens by the tokenizer files that ComfyUI brings."""
    from transformers import Qwen2Tokenizer
    tokenizer = Qwen2Tokenizer.from_pretrained(comfyui_path / "comfy" / "text_encoders" / "qwen25_tokenizer")
    return lambda text: len(tokenizer(text)["input_ids"])


def page(language="English", **values):
    return Page(language, **{"palette": "deep blue, cream white, warm orange"} | values)


# The hard ones: quotation marks, right to left, emoji with joiners, combining marks, braces, digits in columns.
TEXTS = ['NIGHT', '海港"夜市"', "Say “cheese”", "「引用」", "שלום \"עולם\"", "سلام بر شما", "👩‍🚀🇨🇭 OPEN",
         "e\u0301te\u0301 Zu\u0308rich",
         "{title} %s {0}", "a  b\tc", "O'Neil's 5\" pipe", "ﬁne ½ ｆｕｌｌ", "می\u200cخواهم", "क्षत्रिय", "नि", "😀" * 5]


KINDS = ("poster", "slide", "infographic", "comic")


def filled(language) -> dict[str, tuple[briefs.Brief, list[str]]]:
    """Every kind of brief with all of TEXTS, and the texts in reading order."""
    look = page(language)
    first, second, *rest = TEXTS
    points = [f"{value} | {label}" for value, label in zip(TEXTS[::2], TEXTS[1::2])]
    panels = [f"Two foxes look up.\nMia: {text}" for text in rest[:-2]]
    return {
        "poster": (briefs.poster(look, first, second, "\n".join(rest[2:]), rest[0], rest[1]),
                   [first, second, *rest[2:], rest[0], rest[1]]),
        "slide": (briefs.slide(look, first, second, "\n".join(f"- {text}" for text in rest)), TEXTS),
        "infographic": (briefs.infographic(look, first, second, "\n".join(points), source=rest[0]),
                        [first, second, *TEXTS, rest[0]]),
        "comic": (briefs.comic(look, first, "\n\n".join(panels) + f"\nCaption: {rest[-2]}\nSound: {rest[-1]}"),
                  [first, *rest]),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_in_the_prompt_verbatim_and_in_order(kind, language, count):
    brief, expected = filled(language)[kind]
    written = wording.fitted(brief, count, LIMIT)
    assert list(written.texts) == literals(written.prompt) == expected
    assert written.tokens == count(written.prompt) <= LIMIT and not written.notes


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_prose_is_in_its_language(language):
    for brief, _ in filled(language).values():
        prose = wording.write(brief)
        for text in [*literals(prose), "Two foxes look up.", "Mia"]:
            prose = prose.replace(text, "")
        chinese = any("CJK" in unicodedata.name(character, "") for character in prose)
        latin = any(character in string.ascii_letters for character in prose)
        assert (chinese, latin) == (language == "Chinese", language == "English"), prose


def test_the_same_brief_gives_the_same_prompt():
    assert all(wording.write(filled("English")[kind][0]) == wording.write(filled("English")[kind][0])
               for kind in KINDS)


@pytest.mark.parametrize("language", LANGUAGES)
def test_one_alone_has_no_arrangement(language):
    one, two = (wording.write(briefs.infographic(page(language), "", "", points, "", "", "infographic", "grid", 2))
                for points in ("12 | ships", "12 | ships\n3 | piers"))
    sentence = LANGUAGES[language].layouts["grid"].format(count=2, columns=LANGUAGES[language].columns[2])
    assert sentence in two and LANGUAGES[language].layouts["grid"].partition("{columns}")[2] not in one


def test_an_element_says_role_place_size_and_colour():
    prompt = wording.write(briefs.poster(page(), "NIGHT\nMARKET", "tonight", call_to_action="Come!"))
    assert ('At the top, the title, in very large, dominant cream white letters, reads on 2 lines: "NIGHT", below it '
            '"MARKET".') in prompt
    assert 'on a bar that stands out, the call to action, in large warm orange letters, reads "Come!".' in prompt
    prompt = wording.write(briefs.poster(page("Chinese"), "夜市"))
    assert "顶部，标题以最醒目的特大号奶白色字写着“夜市”。" in prompt


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_both_languages_have_the_same_words():
    for field in dataclasses.fields(ENGLISH):
        english, chinese = getattr(ENGLISH, field.name), getattr(CHINESE, field.name)
        if field.name == "colours":
            continue
        assert type(english) is type(chinese)
        if isinstance(english, dict):
            assert list(english) == list(chinese), field.name
            english, chinese = "".join(english.values()), "".join(chinese.values())
        if isinstance(english, str):
            assert fields(english) >= fields(chinese), field.name
            assert not literals(english) and not literals(chinese), "the prose itself quotes nothing"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_choice_has_its_words(language):
    look = page(language, picture="A harbour.")
    made = [briefs.poster(look, "T", "S", "B", "C", "F", kind, place, 2) for kind in briefs.POSTERS
            for place in briefs.POSTER_PLACES]
    made += [briefs.slide(look, "T", "S", "B", "F", title, picture, columns) for title in briefs.SLIDE_TITLES
             for picture in briefs.PICTURE_POSITIONS for columns in range(1, briefs.MAX_COLUMNS + 1)]
    made += [briefs.infographic(look, "T", "S", "1 | one | a shoe", "C", "S", kind, arrangement)
             for arrangement in briefs.ARRANGEMENTS for kind in briefs.INFOGRAPHICS]
    made += [briefs.poster(page(language, style=style), "T") for style in ENGLISH.styles]
    made += [briefs.poster(page(language, type_character=name), "T") for name in ENGLISH.types]
    for brief in made:
        prompt = wording.write(brief)
        assert "{" not in prompt and "  " not in prompt and " ," not in prompt and "()" not in prompt, prompt


def test_transparency_replaces_the_background():
    prompt = wording.write(briefs.poster(page(transparent=True), "T"))
    assert "fully transparent background" in prompt and "deep blue" not in prompt and "cream white" in prompt


def test_words_quoted_in_a_description_are_drawn_too(count):
    brief = briefs.poster(page(picture='A stall\nwith a sign “FRUIT”'), "T")
    written = wording.fitted(brief, count, LIMIT)
    assert written.texts == ("T", "FRUIT")


def test_a_comic_tells_dialogue_from_description():
    panels = "A street.\nMia: Look: a cat\n旁白：夜里\nSOUND: Miau\nIt rains.\n\n \n\nThe end."
    brief = briefs.comic(page(), panels=panels)
    assert [(element.role, element.text, element.number) for element in brief.elements] == [
        ("panel", "A street. It rains.", 1), ("speech", "Look: a cat", 1), ("caption", "夜里", 1),
        ("sound", "Miau", 1), ("panel", "The end.", 2)]


def test_a_data_point_may_have_a_value_a_label_and_an_icon():
    brief = briefs.infographic(page(), data_points="45 % | walk | a shoe\nonly words\n7｜days | ")
    assert [(element.role, element.text, element.number) for element in brief.elements] == [
        ("value", "45 %", 1), ("label", "walk", 1), ("icon", "a shoe", 1), ("label", "only words", 2),
        ("value", "7", 3), ("label", "days", 3)]


# ---------------------------------------------------------------- too long

SENTENCE = "The market opens at six and 60 stalls wait for you. "


@pytest.mark.parametrize("body, ending", [(SENTENCE * 100, "wait for you."), ("word " * 1000, "word"),
                                          ("港口夜市六点开门。" * 600, "开门。")])
def test_5000_characters_of_body_are_cut_where_a_reader_would_and_that_is_said(count, body, ending):
    written = wording.fitted(briefs.poster(page(picture="A harbour."), "T", body=body, footer="Pier 7"), count, LIMIT)
    title, kept, footer = written.texts
    assert (title, footer) == ("T", "Pier 7")
    assert body.startswith(kept) and kept.endswith(ending) and len(kept) > 1000
    assert LIMIT - 30 < written.tokens <= LIMIT
    cut, left_out = written.notes
    assert f"the body text, {len(kept):,} of {len(body.strip()):,} characters kept" in cut
    assert left_out == ("Left out to stay within 1,000 tokens: the closing sentence about the lettering and the main "
                        "picture.")


def test_what_has_no_place_to_cut_goes_whole(count):
    written = wording.fitted(briefs.poster(page(), "T", body="字" * 5000), count, LIMIT)
    assert written.texts == ("T",) and written.notes[0].endswith("lettering and the body text.")


def test_descriptions_go_before_texts_and_are_not_cut_inside_a_quotation(count):
    scene = 'A stall. A sign "Fresh. Good. Cheap. Every day. ' + "Very good. " * 300 + '" hangs there.'
    written = wording.fitted(briefs.poster(page(picture=scene), "T", body="B"), count, LIMIT)
    assert written.texts == ("T", "B") and "A stall." in written.prompt and "Fresh" not in written.prompt
    assert "the main picture, 8 of" in written.notes[0]


def test_the_last_of_many_points_go_first(count):
    written = wording.fitted(briefs.slide(page(), "T", bullets="\n".join(f"point {n}" for n in range(1, 301))), count,
                             LIMIT)
    assert written.texts == ("T", *(f"point {n}" for n in range(1, len(written.texts))))
    assert f"bullet point {len(written.texts)}, " in written.notes[0] and "more." in written.notes[0]


def test_no_layout_is_described_for_what_is_gone(count):
    title = "Long title words " * 300
    for brief in (briefs.poster(page(), title, body="字" * 900, columns=2),
                  briefs.slide(page(), title, bullets="a\nb")):
        written = wording.fitted(brief, count, LIMIT)
        assert written.texts == (title.strip(),) and "column" not in written.prompt
    assert "column" not in wording.write(briefs.slide(page(), "T", columns=2))


def test_a_data_point_goes_whole(count):
    points = "\n".join(f"{n} % | of group {n}" for n in range(1, 101))
    texts = wording.fitted(briefs.infographic(page(), data_points=points), count, LIMIT).texts
    assert len(texts) % 2 == 0 and texts[-1] == f"of group {len(texts) // 2}"


def test_panels_stay_when_their_descriptions_go(count):
    panels = "\n\n".join("A very long description, " * 30 + f"\nMia: line {n}" for n in range(1, 13))
    written = wording.fitted(briefs.comic(page(), panels=panels), count, LIMIT)
    assert written.texts == tuple(f"line {n}" for n in range(1, 13)) and "Panel 12 stands in row 6" in written.prompt


def test_a_title_that_is_too_long_is_refused(count):
    with pytest.raises(ValueError, match="exceeds 1,000 tokens even with nothing but the title"):
        wording.fitted(briefs.poster(page(), "x y " * 2000, body="B"), count, LIMIT)


# ---------------------------------------------------------------- bad input

@pytest.mark.parametrize("make", [briefs.poster, briefs.slide, briefs.infographic, briefs.comic])
@pytest.mark.parametrize("blank", ["", " \n\t\n", "\u200b\ufeff"])
def test_an_empty_brief_is_refused(make, blank):
    with pytest.raises(ValueError, match="brief is empty. Fill in at least one text"):
        make(page(picture=blank), blank)


@pytest.mark.parametrize("character, name", [
    ("\x07", "0007"), ("\x00", "0000"), ("\x1b", "001B"), ("\x1c", "001C"), ("\ud800", "D800")])
def test_control_characters_are_refused_by_name(character, name):
    with pytest.raises(ValueError, match=f"^The title contains the control character U\\+{name}"):
        briefs.poster(page(), f"NI{character}GHT")
    with pytest.raises(ValueError, match="control character"):
        briefs.poster(page(), f"NIGHT{character}")


def test_all_line_breaks_are_line_breaks(count):
    brief = briefs.poster(page(), "a\r\nb\rc\u2028d\u2029e\x85f\x0bg\x0ch\n\n i ")
    assert wording.fitted(brief, count, LIMIT).texts == tuple("abcdefghi")


def test_invisible_characters_are_kept_and_named(count):
    written = wording.fitted(briefs.poster(page(), "NI\u200bGHT \u202eabc"), count, LIMIT)
    assert written.texts == ("NI\u200bGHT \u202eabc",)
    assert written.notes == ("The texts contain invisible characters (U+200B, U+202E). They are kept.",)


def test_right_to_left_is_said():
    assert 'reads "שלום עולם", written from right to left.' in wording.write(briefs.poster(page(), "שלום עולם"))
    assert "right to left" not in wording.write(briefs.poster(page(), "the word שלום"))


def test_an_open_quotation_in_a_description_is_refused():
    with pytest.raises(ValueError, match="The picture description opens a quotation mark that is never closed"):
        briefs.poster(page(picture='a 12" record'), "T")


@pytest.mark.parametrize("palette", ['"red"', "red, " + "very " * 20 + "blue", "re\x07d", ",".join("abcdefghi")])
def test_a_palette_is_a_few_colours(palette):
    with pytest.raises(ValueError, match="is not a color for the palette|^The palette has"):
        briefs.poster(page(palette=palette), "T")


def test_a_fault_in_a_panel_names_the_panel():
    for words, fault in (("A 12\" record.", "opens a quotation"), ("Mia: a\x07", "contains the control character")):
        with pytest.raises(ValueError, match=f"^The text of panel 2 {fault}"):
            briefs.comic(page(), panels=f"A street.\n\n{words}")


def test_a_comic_page_has_an_end():
    with pytest.raises(ValueError, match="has 300 panels; a page takes at most 24"):
        briefs.comic(page(), panels="\n\n".join(["A street."] * 300))


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="multiples of 16"):
        briefs.poster(page(aspect_ratio="custom", width=1001), "T")
