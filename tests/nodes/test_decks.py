"""The deck nodes: one brief per slide, and files that open again."""
import inspect
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image, PdfParser
from pptx import Presentation
from pptx.util import Inches

from qwen_image_2.messages import Refusal
from qwen_image_2.tools.pack import ROOT

PAGE = {"picture": "", "language": "English", "style": "minimalist", "type_character": "bold sans serif",
        "palette": "black, white", "transparent": False, "aspect_ratio": "16:9", "size": "2048", "width": 1024,
        "height": 1024}
TEN = "# Talk\n> Hello\n" + "".join(f"## Slide {number}\n- Point {number}\n- 第{number}点\n> Say {number}\n"
                                    for number in range(2, 11))


@pytest.fixture(scope="module")
def decks(comfyui):
    from qwen_image_2.nodes import decks
    return decks


@pytest.fixture
def said(decks, monkeypatch):
    sentences = []
    monkeypatch.setattr(decks, "notify", lambda node, *told: sentences.extend(filter(None, told)) or {})
    return sentences


@pytest.fixture
def folder(decks, said, monkeypatch, tmp_path):
    import folder_paths
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


def written(decks, outline, **changes):
    return decks.QwenImage2DeckOutline.execute(**{
        "outline": outline, "footer": "", "title_position": "top left", "picture_position": "right"} | PAGE | changes
    ).result


def validate(node, **values):
    return node.validate_inputs(**{name: values[name] for name in inspect.signature(node.validate_inputs).parameters
                                   if name in values})


def save(decks, images, name="deck", files="PDF", page="as the pictures", **texts):
    return decks.QwenImage2SaveDeck.execute(images, [name], [files], [page], **texts).ui["files"]


def pictures(count, height=36, width=64, channels=3):
    """Slides of one colour each."""
    return [torch.full((1, height, width, channels), number / 10) for number in range(count)]


def page_sizes(path):
    """Width and height in points of every page."""
    with PdfParser.PdfParser(str(path)) as pdf:
        pages = [pdf.read_indirect(page) for page in pdf.pages]
        having = [page if b"MediaBox" in page else pdf.read_indirect(page[b"Parent"]) for page in pages]
        return [tuple(map(float, page[b"MediaBox"][2:])) for page in having]


# ---------------------------------------------------------------- outline

def test_ten_slides_are_ten_briefs(decks, said):
    prompts, widths, heights, texts, notes, count, seeds, layouts = written(decks, TEN, seed=7)
    assert [layout.named("title").text for layout in layouts] == [text.split("\n")[0] for text in texts]
    assert count == len(prompts) == 10 and widths == [2752] * 10 and heights == [1536] * 10
    assert texts[0] == "Talk" and texts[9] == "Slide 10\nPoint 10\n第10点"
    assert seeds == list(range(7, 17))
    assert notes == ["Hello", *(f"Say {number}" for number in range(2, 11))]
    assert re.fullmatch(r"10 slides; the longest prompt has \d+ tokens\.", said[0]) and len(said) == 1


def test_what_is_shortened_names_its_slide(decks, said):
    written(decks, "## Short\n## Long\nPicture: " + "A boat passes the pier. " * 300)
    assert said[1].startswith("Slide 2 (Long): Cut after a sentence")


# Emoji with a joiner and a flag, right to left, combining marks, zero-width characters, braces, markup.
HARD = ["👩‍🚀🇨🇭 OPEN", "שלום \"עולם\"", "e\u0301te\u0301 Zu\u0308rich", "می\u200cخواهم", "क्षत्रिय",
        "NI\u200bGHT \u202eabc", "{title} %s {0}", "<b>&amp;</b>", "ﬁne ½ ｆｕｌｌ"]


def test_texts_of_any_kind_come_through_unchanged(decks, folder, said):
    """From the outline to the prompt, the alternative text and the notes, without any normalization."""
    prompts, _, _, texts, notes, *_ = written(decks, "".join(f"## {text}\n- {text}\n> {text}\n" for text in HARD))
    for text, prompt, expected, note in zip(HARD, prompts, texts, notes, strict=True):
        assert expected == f"{text}\n{text}" and note == text and prompt.count(text) == 2
    save(decks, pictures(len(HARD)), files="PPTX", texts=texts, notes=notes)
    assert alternative_texts(folder / "deck_00001_.pptx") == texts
    spoken = [slide.notes_slide.notes_text_frame.text for slide in Presentation(folder / "deck_00001_.pptx").slides]
    assert spoken == [f"{text}\n\nText of the slide:\n{text}\n{text}" for text in HARD]


def test_control_characters_are_refused_with_their_slide(decks):
    sentence = validate(decks.QwenImage2DeckOutline, **PAGE | {"outline": "## A\n## B\n- one\x07", "footer": ""})
    assert sentence.startswith("Slide 2 (B) cannot be drawn: ") and "control character U+0007" in sentence


def test_5000_characters_on_a_slide_are_shortened_and_said(decks, said):
    _, _, _, texts, *_ = written(decks, "## A\n## B\n" + "- The market opens at six in the evening.\n" * 120)
    assert texts[0] == "A" and texts[1].startswith("B\nThe market opens at six in the evening.")
    assert said[1].startswith("Slide 2 (B): ") and texts[1].count("\n") < 120


def test_outlines_are_refused_before_anything_runs(decks):
    node = decks.QwenImage2DeckOutline
    values = PAGE | {"outline": TEN, "footer": ""}
    assert validate(node, **values) is True
    assert validate(node, **values | {"outline": None}) is True
    assert "no slides" in validate(node, **values | {"outline": ""})
    assert "300 slides" in validate(node, **values | {"outline": "## A\n" * 300})
    unquotable = values | {"outline": "## A\n## B\n- a\"b“c「d『"}
    assert "Slide 2 (B) cannot be drawn: The text" in validate(node, **unquotable)
    assert "multiples of 16" in validate(node, **values | {"aspect_ratio": "custom", "width": 1001})


def test_the_default_outline_can_be_written(decks, said):
    assert written(decks, decks.OUTLINE)[5] == 2


def test_nothing_of_the_shipped_deck_is_shortened(decks, said):
    graph = json.loads((ROOT / "workflows" / "api" / "slides_deck.json").read_text(encoding="utf-8"))
    fields, = (entry["inputs"] for entry in graph.values() if entry["class_type"] == "QwenImage2DeckOutline")
    assert written(decks, **fields)[5] == 10 and len(said) == 1


def laid_out(decks, outline=TEN, **changes):
    *_, layouts = written(decks, outline, **changes)
    return layouts


def boxes_of(layout, across=1.0, down=1.0):
    return [box for box in layout.boxes if box.literal]


@pytest.mark.parametrize("width, height, page", [(64, 36, "16:9"), (96, 128, "4:3"), (128, 96, "as the pictures")])
def test_editable_text_stands_where_the_layout_has_it(decks, folder, width, height, page):
    """Each box within 2 % of the page's width, also where the picture does not fill the page."""
    outline = "# Talk\nA tour\n> Hello\n## Two\n- One\n- 第二\nFooter: us\n"
    changes = {"aspect_ratio": "custom", "width": width * 16, "height": height * 16, "palette": "navy, gold"}
    prompts, *_, layouts = written(decks, outline, text="editable", **changes)
    assert all("No text" in prompt and "Talk" not in prompt and "One" not in prompt for prompt in prompts)
    (saved,) = save(decks, pictures(2, height, width), files="PPTX", page=page, notes=["Hello", ""],
                    texts=["Talk\nA tour", "Two"], text=["editable"], layouts=layouts)
    deck = Presentation(folder / saved["filename"])
    assert [slide.shapes.title.text for slide in deck.slides] == ["Talk", "Two"]
    for slide, layout in zip(deck.slides, layouts):
        picture = slide.shapes[0]
        assert picture.shape_type == 13 and slide.shapes.title is not None
        found = {shape.text_frame.text: shape for shape in slide.shapes if shape.has_text_frame}
        full_width, full_height = (side / (1 - 2 * cut) for side, cut in ((picture.width, picture.crop_left),
                                                                          (picture.height, picture.crop_top)))
        left, top = (deck.slide_width - full_width) / 2, (deck.slide_height - full_height) / 2
        for box in boxes_of(layout):
            shape = found[box.text]
            for is_at, wanted in ((shape.left, left + box.x * full_width), (shape.top, top + box.y * full_height),
                                  (shape.width, box.w * full_width), (shape.height, box.h * full_height)):
                assert abs(is_at - wanted) <= 0.02 * deck.slide_width
            font = shape.text_frame.paragraphs[0].runs[0].font
            assert font.name == "Noto Sans" and font.size and font.size <= box.size * full_height * 1.01
            assert str(font.color.rgb) == {"gold": "FFD700"}.get(box.colour, str(font.color.rgb))
        assert 'type="slidenum"' in slide.shapes[-1]._element.xml
    assert deck.slides[0].notes_slide.notes_text_frame.text == "Hello" and not deck.slides[1].has_notes_slide


@pytest.mark.parametrize("text", ["in the picture", "editable"])
def test_words_of_a_pdf_can_be_selected(decks, folder, text):
    """Real ones are seen; those on a picture's own are not, and both stand in their boxes."""
    pytest.importorskip("fpdf", reason="fpdf2 is not installed: pip install fpdf2")
    pdfium = pytest.importorskip("pypdfium2", reason="pypdfium2 is not installed: pip install pypdfium2")
    outline = "# Talk 海港\n> Hello\n## Two\n- One\n"
    layouts = laid_out(decks, outline, palette="white, navy")
    (saved,) = save(decks, [torch.ones(1, 90, 160, 3)] * 2, text=[text], layouts=layouts)
    document = pdfium.PdfDocument(folder / saved["filename"])
    texts = [page.get_textpage() for page in document]
    assert [page.get_text_range().split("\r\n")[0] for page in texts] == ["Talk 海港", "Two"]
    assert [mark.get_title() for mark in document.get_toc()] == ["Talk 海港", "Two"]
    assert document.get_metadata_dict()["Title"] == "deck_00001_"
    picture = np.asarray(document[0].render(scale=0.5).to_pil())
    assert (picture.min() < 128) == (text == "editable")
    width, height = document[0].get_size()
    (box,) = (box for box in layouts[0].boxes if box.role == "title")
    left, bottom, right, top = texts[0].get_charbox(0)
    assert box.x - 0.02 <= left / width <= right / width <= box.x + box.w + 0.02
    assert box.y - 0.02 <= 1 - top / height <= 1 - bottom / height <= box.y + box.h + 0.02


def test_without_layouts_words_are_found_all_the_same(decks, folder):
    pytest.importorskip("fpdf", reason="fpdf2 is not installed: pip install fpdf2")
    pdfium = pytest.importorskip("pypdfium2", reason="pypdfium2 is not installed: pip install pypdfium2")
    (saved,) = save(decks, pictures(1), texts=["Talk\nOne"])
    page = pdfium.PdfDocument(folder / saved["filename"])[0].get_textpage()
    assert page.get_text_range() == "Talk\r\nOne"


def test_editable_text_without_its_layouts_or_its_library(decks, folder, monkeypatch):
    node = decks.QwenImage2SaveDeck
    given = {"filename_prefix": ["deck"], "files": ["PPTX"], "text": ["editable"]}
    assert "needs the layouts" in node.validate_inputs(**given)
    assert node.validate_inputs(**given, layouts=None) is True  # linked, and not yet known
    assert "Unknown choice" in node.validate_inputs(**given | {"text": ["drawn"]})
    monkeypatch.setattr(decks.pdf, "is_installed", lambda: False)
    assert "pip install fpdf2" in node.validate_inputs(**given | {"files": ["PDF"]}, layouts=None)
    with pytest.raises(Refusal, match="needs the layouts"):
        save(decks, pictures(1), text=["editable"])


def test_without_fpdf2_a_pdf_of_pictures_and_a_sentence(decks, folder, said, monkeypatch):
    monkeypatch.setattr(decks.pdf, "is_installed", lambda: False)
    (saved,) = save(decks, pictures(2))
    assert (folder / saved["filename"]).read_bytes().startswith(b"%PDF")
    assert any("make them selectable" in str(sentence) for sentence in said)


def test_lists_and_schema(decks):
    schema = decks.QwenImage2DeckOutline.define_schema()
    assert [output.is_output_list for output in schema.outputs] == [True] * 5 + [False, True, True]
    assert decks.QwenImage2SaveDeck.define_schema().is_input_list


# ---------------------------------------------------------------- files

def test_ten_slides_open_again(decks, folder, said):
    _, _, _, texts, notes, *_ = written(decks, TEN)
    files = save(decks, pictures(10), "talks/harbour", "PPTX and PDF", texts=texts, notes=notes)
    assert files == [{"filename": f"harbour_00001_.{kind}", "subfolder": "talks", "type": "output"}
                     for kind in ("pptx", "pdf")]
    assert sorted(path.name for path in (folder / "talks").iterdir()) == ["harbour_00001_.pdf", "harbour_00001_.pptx"]
    deck = Presentation(folder / "talks" / "harbour_00001_.pptx")
    assert (deck.slide_width, deck.slide_height) == (12192000, 6858000) and len(deck.slides) == 10
    assert deck.core_properties.title == "harbour_00001_" and deck.core_properties.author == ""
    for number, slide in enumerate(deck.slides):
        shape, = slide.shapes
        assert (shape.left, shape.top, shape.width, shape.height) == (0, 0, deck.slide_width, deck.slide_height)
        assert shape._element._nvXxPr.cNvPr.get("descr") == texts[number]
        assert slide.notes_slide.notes_text_frame.text == f"{notes[number]}\n\nText of the slide:\n{texts[number]}"
        assert Image.open(io.BytesIO(shape.image.blob)).getpixel((0, 0)) == (round(number * 25.5),) * 3
    assert page_sizes(folder / "talks" / "harbour_00001_.pdf") == [(960, 540)] * 10
    assert "Saved harbour_00001_.pptx and harbour_00001_.pdf: 10 pages." in said


def test_numbers_are_shared_and_nothing_is_replaced(decks, folder):
    for files in ("PDF", "PPTX and PDF", "PPTX"):
        save(decks, pictures(1), files=files)
    assert sorted(path.name for path in folder.iterdir()) == [
        "deck_00001_.pdf", "deck_00002_.pdf", "deck_00002_.pptx", "deck_00003_.pptx"]


def test_a_name_takes_the_pictures_size_and_the_date(decks, folder):
    from datetime import datetime
    files = save(decks, pictures(1, 36, 64), "%date:yyyy%/%width%x%height%")
    assert files == [{"filename": "64x36_00001_.pdf", "subfolder": str(datetime.now().year), "type": "output"}]


def test_a_folder_that_cannot_be_made_is_one_sentence_without_its_path(decks, folder):
    from qwen_image_2.atomic import WriteError
    folder.mkdir()
    (folder / "talks").touch()
    with pytest.raises(WriteError, match="^deck could not be written: ") as raised:
        save(decks, pictures(1), "talks/more/deck")
    assert str(folder) not in str(raised.value)


@pytest.mark.parametrize(("height", "width", "inches"), [
    (1536, 2752, (13.333, 7.5)), (1792, 2400, (10, 7.5)), (64, 64, (13.333, 13.333)), (2400, 1792, (9.956, 13.333)),
    (8, 800, (13.333, 1.333))])
def test_pages_follow_the_first_picture(decks, height, width, inches):
    from qwen_image_2.pages import deck
    found = deck.page_inches(deck.page_ratio(torch.zeros(height, width, 3).numpy()))
    assert found == pytest.approx(inches, abs=1e-3)


def test_the_models_own_wide_picture_fills_its_page(decks, folder):
    save(decks, pictures(1, 1536 // 8, 2752 // 8), files="PPTX")
    shape, = Presentation(folder / "deck_00001_.pptx").slides[0].shapes
    assert (shape.width, shape.height) == (12192000, 6858000)
    assert 0 < shape.crop_left == shape.crop_right < 0.005 and shape.crop_top == 0


def test_other_pictures_are_shown_whole(decks, folder):
    """A square and a tall one on 4:3 pages, RGBA and RGB."""
    save(decks, [*pictures(1, 40, 40, 4), *pictures(1, 80, 40)], files="PPTX and PDF", page="4:3")
    deck = Presentation(folder / "deck_00001_.pptx")
    square, tall = (slide.shapes[0] for slide in deck.slides)
    assert (square.width, square.height, square.left) == (Inches(7.5), Inches(7.5), Inches(1.25))
    assert (tall.width, tall.height) == (Inches(3.75), Inches(7.5))
    assert not any(getattr(shape, f"crop_{side}") for shape in (square, tall) for side in ("left", "top"))
    assert Image.open(io.BytesIO(square.image.blob)).mode == "RGBA"
    sizes = page_sizes(folder / "deck_00001_.pdf")
    assert len(sizes) == 2 and all(size == pytest.approx((720, 540), rel=0.02) for size in sizes)


def test_a_page_that_is_mostly_margin_is_bounded(decks):
    """A column of pixels on a page ten times as wide as high would be 300 million pixels."""
    from qwen_image_2.pages import deck
    page = deck._page(np.zeros((8192, 1, 3), np.uint8), 10.0)
    assert page.width * page.height <= deck.PAGE_PIXELS and page.width / page.height == pytest.approx(10, rel=0.01)
    assert page.getpixel(((page.width - 1) // 2, page.height // 2)) == (0, 0, 0)
    whole = deck._page(np.zeros((40, 70, 3), np.uint8), 16 / 9)
    assert whole.size == (70, 39) and deck._page(np.zeros((90, 10, 3), np.uint8), 1.0).size == (90, 90)


@pytest.mark.parametrize("shape", [(), (3,), (4, 4, 3)])
def test_what_is_no_batch_of_pictures_is_refused(decks, folder, shape):
    with pytest.raises(Refusal, match="^The image has shape"):
        save(decks, [torch.ones(shape)])


def test_transparent_parts_are_white_in_a_pdf(decks):
    from qwen_image_2.pages import deck
    picture = torch.zeros(36, 64, 4, dtype=torch.uint8)
    picture[:, 32:, 3] = 255
    page = deck._page(picture.numpy(), 16 / 9)
    assert page.getpixel((0, 0)) == (255, 255, 255) and page.getpixel((63, 0)) == (0, 0, 0)


def alternative_texts(path):
    return [slide.shapes[0]._element._nvXxPr.cNvPr.get("descr") for slide in Presentation(path).slides]


@pytest.mark.parametrize(("images", "texts", "expected", "told"), [
    ([torch.zeros(3, 36, 64, 3)], ["a", "b", "c"], ["a", "b", "c"], None),  # one batch, a text for each
    (2 * [torch.zeros(2, 36, 64, 3)], ["a", "b"], ["a", "a", "b", "b"], None),  # two batches, a text for each
    ([torch.zeros(2, 36, 64, 3)], ["a"], ["a", "a"], None),
    (3 * [torch.zeros(1, 36, 64, 3)], ["a", None], ["a", "", ""],
     "Got 2 texts for 3 images: the last images have none."),
    (2 * [torch.zeros(1, 36, 64, 3)], ["a", "b", "c"], ["a", "b"],
     "Got 3 texts for 2 images: the last ones were not used."),
    ([torch.zeros(2, 36, 64, 3)], [], ["", ""], None),
    ([torch.zeros(1, 36, 64, 3)], ["a\x07b\ud800\n<&\""], ["a\ufffdb\ufffd\n<&\""], None),
])
def test_texts_and_pictures(decks, folder, said, images, texts, expected, told):
    save(decks, images, files="PPTX", texts=texts, notes=texts)
    assert alternative_texts(folder / "deck_00001_.pptx") == expected
    assert (told in said) if told else len(said) == 1


@pytest.mark.parametrize("ending", ["\r\n", "\r", "\n", "\v", "\f", "\x85", "\u2028", "\u2029"])
def test_lines_stay_lines_whatever_system_ended_them(decks, folder, ending):
    save(decks, pictures(1), files="PPTX", texts=[f"one{ending}two"], notes=[f"Say{ending}it"])
    slide, = Presentation(folder / "deck_00001_.pptx").slides
    assert slide.shapes[0]._element._nvXxPr.cNvPr.get("descr") == "one\ntwo"
    assert slide.notes_slide.notes_text_frame.text == "Say\nit\n\nText of the slide:\none\ntwo"


def test_control_characters_never_show_as_escapes(decks, folder):
    """XML holds some of them; python-pptx writes others as _x001B_."""
    save(decks, pictures(1), files="PPTX", notes=["".join(map(chr, [*range(0x20), 0x41, *range(0x7f, 0xa0)]))])
    slide, = Presentation(folder / "deck_00001_.pptx").slides
    assert set(slide.notes_slide.notes_text_frame.text) == {"\ufffd", "\t", "\n", "A"}


@pytest.mark.parametrize("name", ["../deck", "a/../../deck", "..\\deck", "/tmp/deck", "C:\\deck", "C:deck",
                                  "\\\\host\\share\\deck", "..", "", " ", ".", "talks/", "a\nb", "a\x00b"])
def test_hostile_names_are_refused_and_write_nothing(decks, folder, name):
    sentence = validate(decks.QwenImage2SaveDeck, filename_prefix=[name], files=["PDF"])
    assert "points outside ComfyUI's output folder" in sentence or "is not a valid file name" in sentence
    with pytest.raises(ValueError, match=re.escape(sentence)):
        save(decks, pictures(1), name)
    assert list(folder.parent.rglob("*")) == []


def test_an_unknown_kind_of_file_is_refused(decks):
    sentence = validate(decks.QwenImage2SaveDeck, filename_prefix=["deck"], files=["DOCX"])
    assert sentence == "Unknown file type 'DOCX'; choose PPTX and PDF, PPTX, PDF."


def test_names_in_any_script_and_below_folders(decks, folder):
    save(decks, pictures(1), "港口/夜..景.v2")
    assert [path.name for path in (folder / "港口").iterdir()] == ["夜..景.v2_00001_.pdf"]
    assert validate(decks.QwenImage2SaveDeck, filename_prefix=[None], files=["PPTX"]) is True


@pytest.mark.parametrize("files", ["PPTX", "PDF"])
def test_an_error_leaves_nothing(decks, folder, monkeypatch, files):
    from qwen_image_2.atomic import WriteError
    from qwen_image_2.pages import deck

    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(deck, {"PPTX": "_png", "PDF": "_page"}[files], full)
    with pytest.raises(WriteError, match="the disk is full"):
        save(decks, pictures(2), files=files)
    assert list(folder.iterdir()) == []


def test_no_pictures_or_broken_ones(decks, folder):
    with pytest.raises(ValueError, match="^No images to save"):
        save(decks, [torch.zeros(0, 36, 64, 3)])
    with pytest.raises(ValueError, match="NaN"):
        save(decks, [torch.full((1, 36, 64, 3), torch.nan)])


def test_without_python_pptx_one_sentence_before_anything_runs(decks, folder, monkeypatch):
    from qwen_image_2.pages import deck
    monkeypatch.setattr(deck, "find_spec", lambda name: None)
    sentence = validate(decks.QwenImage2SaveDeck, filename_prefix=["deck"], files=["PPTX and PDF"])
    assert "python -m pip install python-pptx" in sentence and "\n" not in sentence
    assert validate(decks.QwenImage2SaveDeck, filename_prefix=["deck"], files=["PDF"]) is True
    save(decks, pictures(1))
    assert [path.suffix for path in folder.iterdir()] == [".pdf"]
