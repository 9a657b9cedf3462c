"""Text Check, Pick Best and Glyph Reference on really rendered words, with the real reader."""
import json
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from qwen_image_2.model.images.boxes import Box
from qwen_image_2.pages import compare, glyphs, ocr


@pytest.fixture(scope="module")
def nodes(comfyui):
    """The three node classes, as the server would call them: with a clone that knows no unique id."""
    from comfy_api.latest import io

    from qwen_image_2.nodes import glyphs as glyph_nodes
    from qwen_image_2.nodes import text_check

    class Nodes:
        check = staticmethod(lambda image, text, **settings: run(
            text_check.QwenImage2TextCheck, io, image=image, expected_text=text,
            **{"match_case": False, "match_punctuation": False, "tolerance": 0.0, "allow_extra": False, **settings}))
        pick = staticmethod(lambda images, scores, **others: run(
            text_check.QwenImage2PickBest, io, images=images, scores=scores, **others))
        reference = staticmethod(lambda text, font=glyphs.BUILT_IN, **settings: run(
            glyph_nodes.QwenImage2GlyphReference, io, text=text, font=font,
            **{"letter_height": 96, "direction": "horizontal", **settings}))

    return Nodes


def run(node, io, **inputs):
    node.hidden = io.HiddenHolder(unique_id=None, prompt=None, extra_pnginfo=None, dynprompt=None,
                                  auth_token_comfy_org=None, api_key_comfy_org=None)
    return node.execute(**inputs).result


def page(*lines, size=(512, 256), letters=40, ink="black", paper="white", mode="RGB"):
    """A picture with lines of words, IMAGE (1, H, W, C)."""
    picture = Image.new(mode, size, paper)
    pen = ImageDraw.Draw(picture)
    for row, line in enumerate(lines):
        pen.text((20, 20 + row * 1.6 * letters), line, ink, ImageFont.load_default(letters))
    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 255).unsqueeze(0)


def test_right_and_wrong_pictures_of_a_batch(nodes):
    batch = torch.cat([page("NIGHT MARKET", "Pier 7"), page("NIGTH MARKET", "Pier 7"), page("Pier 7")])
    overlay, report, scores, passed, mask, failed = nodes.check(batch, "Night market\nPier 7")
    assert overlay.shape == batch.shape and mask.shape == batch.shape[:3]
    assert scores[0] == 1 > scores[1] > scores[2] and not passed and failed == "Night market"
    found = json.loads(report)["pictures"]
    assert [line["status"] for line in found[1]["lines"]] == ["wrong", "right"]
    assert [line["status"] for line in found[2]["lines"]] == ["missing", "right"]
    assert not mask[0].any() and mask[1, 40, 100] and not mask[1, 104:].any()
    assert (overlay[0] != batch[0]).any()
    image, index, score = nodes.pick([batch], scores)
    assert index == 0 and score == 1 and torch.equal(image, batch[:1])


def test_a_right_picture_passes(nodes):
    _, _, (score,), passed, _, failed = nodes.check(page("FREE ENTRY"), "ＦＲＥＥ　entry")
    assert passed and score == 1 and failed == ""


def test_small_letters_are_enlarged(nodes):
    assert nodes.check(page("OPEN DAILY", size=(128, 128), letters=12), "OPEN DAILY")[3]


@pytest.mark.parametrize("ink", ["white", "black"])
def test_transparent_pictures_are_read_whatever_the_ink(nodes, ink):
    assert nodes.check(page("FREE ENTRY", ink=ink, paper=(0, 0, 0, 0), mode="RGBA"), "FREE ENTRY")[3]


def test_a_picture_without_text(nodes):
    _, _, (score,), passed, mask, failed = nodes.check(torch.zeros(1, 8, 8, 3), "FREE\nENTRY")
    assert (score, passed, failed) == (0, False, "FREE\nENTRY") and mask.all()


@pytest.mark.parametrize("size", [(1, 1), (900, 2), (2, 900), (3000, 10)])
def test_odd_shapes_are_padded_for_the_reader(nodes, monkeypatch, size):
    """The detector enlarges by the shorter side: a picture of 900 x 2 as it is would run for many minutes."""
    shown = []
    monkeypatch.setattr(ocr, "_reader", lambda: lambda picture: shown.append(picture.shape) or NothingRead)
    assert nodes.check(torch.rand(1, *size, 3), "FREE ENTRY")[2] == [0]
    assert shown and all(max(shape[:2]) <= 4.5 * min(shape[:2]) for shape in shown)


class NothingRead:
    boxes = txts = scores = None


def test_a_banner_is_read(nodes):
    assert nodes.check(page("FREE ENTRY", size=(1600, 90)), "FREE ENTRY")[3]


@pytest.mark.parametrize("image, words", [
    (torch.zeros(1, 8, 8, 1), "accepts RGB and RGBA"),
    (torch.zeros(0, 8, 8, 3), "The image is empty"),
    (torch.full((1, 8, 8, 3), float("nan")), "NaN"),
])
def test_refused_pictures(nodes, image, words):
    with pytest.raises(ValueError, match=words):
        nodes.check(image, "FREE")


def test_no_expected_text_is_refused(nodes):
    with pytest.raises(ValueError, match="Expected text is empty"):
        nodes.check(page("FREE"), " \n")


@pytest.mark.parametrize("found", [None, ModuleSpec("rapidocr", None, is_package=True)],
                         ids=["not there", "a folder that an uninstalled one has left"])
def test_a_missing_reader_gives_the_install_command(nodes, monkeypatch, found):
    monkeypatch.setattr(ocr, "find_spec", lambda name: found)
    with pytest.raises(ValueError, match="python -m pip install .*rapidocr.* onnxruntime"):
        nodes.check(page("FREE"), "FREE")


@pytest.mark.parametrize(("given", "threads"), [("3", 3), ("2,1", 2), (None, -1), ("many", -1)])
def test_the_reader_has_the_threads_of_the_process(monkeypatch, given, threads):
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert ocr._threads() == threads


def test_cancelling_stops_between_pictures(nodes, monkeypatch):
    import comfy.model_management as management
    looked = []
    monkeypatch.setattr(ocr, "read", lambda *_: looked.append(1) or management.interrupt_current_processing() or [])
    with pytest.raises(management.InterruptProcessingException):
        nodes.check(page("FREE").expand(5, -1, -1, -1), "FREE")
    assert len(looked) == 1
    management.interrupt_current_processing(False)


def test_cancelling_stops_between_lines(nodes, monkeypatch):
    import comfy.model_management as management

    from qwen_image_2.pages import matching
    tried, plain = [], matching.lcs_length

    def measured(*texts):
        tried.append(texts)
        if len(tried) == 5:
            management.interrupt_current_processing()
        return plain(*texts)
    monkeypatch.setattr(matching, "lcs_length", measured)
    found = [compare.Found(f"FREE ENTRY {number}X", Box(0, 0, 9, 9)) for number in range(3)]
    monkeypatch.setattr(ocr, "read", lambda *_: found)
    with pytest.raises(management.InterruptProcessingException):
        nodes.check(page("FREE"), "\n".join(f"FREE ENTRY {number}" for number in range(100)))
    assert 5 <= len(tried) < 10
    management.interrupt_current_processing(False)


@pytest.mark.parametrize("what", ["overlay", "mask"])
def test_cancelling_stops_between_the_drawn_pictures(nodes, monkeypatch, what):
    import comfy.model_management as management

    from qwen_image_2.pages import report
    drawn, plain = [], getattr(report, what)

    def draw(*picture):
        drawn.append(1)
        management.interrupt_current_processing(len(drawn) == 2)
        return plain(*picture)
    monkeypatch.setattr(ocr, "read", lambda *_: [compare.Found("FREE ENTRY", Box(0, 0, 90, 9))])
    monkeypatch.setattr(report, what, draw)
    with pytest.raises(management.InterruptProcessingException):
        nodes.check(page("FREE").expand(5, -1, -1, -1), "ENTRY FREE")
    assert len(drawn) == 2
    management.interrupt_current_processing(False)


@pytest.mark.parametrize("method, drawn", [("rectangle", 2), ("text", 1)])
def test_cancelling_stops_between_the_drawn_lines(nodes, monkeypatch, method, drawn):
    """Of an overlay: the frame of the first line and the ground of its number, then no other line's."""
    import comfy.model_management as management
    calls, plain = [], getattr(ImageDraw.ImageDraw, method)

    def draw(*what, **how):
        calls.append(1)
        management.interrupt_current_processing()
        return plain(*what, **how)
    picture = page("FREE")
    monkeypatch.setattr(ocr, "read", lambda *_: [
        compare.Found(f"LINE {word}", Box(0, 20 * row, 90, 20 * row + 9)) for row, word in enumerate(("ONE", "TWO"))])
    monkeypatch.setattr(ImageDraw.ImageDraw, method, draw)
    with pytest.raises(management.InterruptProcessingException):
        nodes.check(picture, "LINE ONE\nLINE TWO")
    assert len(calls) == drawn
    management.interrupt_current_processing(False)


def test_cancelling_stops_between_the_files_for_the_page(nodes, monkeypatch):
    import comfy.model_management as management
    from comfy_api.latest import ui
    saved, plain = [], ui.ImageSaveHelper.save_images

    def save(image, *how, **more):
        saved.append(len(image))
        management.interrupt_current_processing(len(saved) == 2)
        return plain(image, *how, **more)
    monkeypatch.setattr(ocr, "read", lambda *_: [])
    monkeypatch.setattr(ui.ImageSaveHelper, "save_images", save)
    with pytest.raises(management.InterruptProcessingException):
        nodes.check(page("FREE").expand(5, -1, -1, -1), "FREE")
    assert saved == [1, 1]
    management.interrupt_current_processing(False)


def test_the_bar_moves_once_for_each_picture(nodes, monkeypatch):
    import comfy.utils
    shown = []
    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", lambda bar, done, *more: shown.append(done))
    nodes.check(page("FREE").expand(2, -1, -1, -1), "FREE\nPIER\nOPEN")
    assert shown == [0, 1, 2, 0, 1], "first the reading, then the files"


# ---------------------------------------------------------------- Pick Best

def test_of_equal_scores_the_first_is_picked(nodes):
    pictures = torch.rand(4, 8, 8, 3)
    image, index, score = nodes.pick([pictures], [0.5, 0.9, 0.9, 0.1])
    assert (index, score) == (1, 0.9) and torch.equal(image[0], pictures[1])


def test_a_list_of_pictures_of_different_sizes(nodes):
    image, index, _ = nodes.pick([torch.zeros(2, 8, 8, 3), torch.ones(1, 4, 6, 4)], [0.0, 0.1, 0.2])
    assert index == 2 and image.shape == (1, 4, 6, 4)


def test_other_pictures_are_only_asked_for_when_needed(nodes):
    from qwen_image_2.nodes.text_check import QwenImage2PickBest
    first, others = [torch.zeros(1, 8, 8, 3)], [torch.ones(1, 8, 8, 3)]
    not_made = {"other_images": (None,), "other_scores": (None,)}
    assert QwenImage2PickBest.check_lazy_status(first, [0.5], (False,), **not_made) == list(not_made)
    assert QwenImage2PickBest.check_lazy_status(first, [0.5], (True,), **not_made) == []
    assert QwenImage2PickBest.check_lazy_status(first, [0.5]) == []
    assert nodes.pick(first, [0.5], passed=[True], **not_made)[1] == 0
    assert nodes.pick(first, [0.5], passed=[False], other_images=others, other_scores=[0.6])[1:] == (1, 0.6)
    assert nodes.pick(first, [0.5], passed=[False], other_images=others, other_scores=[0.5])[1] == 0


@pytest.mark.parametrize("scores, words", [([0.5], "Got 1 scores for 2 images"), ([0.5, float("nan")], "NaN")])
def test_scores_that_do_not_fit(nodes, scores, words):
    with pytest.raises(ValueError, match=words):
        nodes.pick([torch.zeros(2, 8, 8, 3)], scores)


# ---------------------------------------------------------------- Glyph Reference

def test_the_reference_says_its_words(nodes):
    image, quoted = nodes.reference("NIGHT\u200b MARKET\nPier 7")
    assert nodes.check(image, "NIGHT MARKET\nPier 7", match_case=True)[3]
    assert quoted == '"NIGHT MARKET", "Pier 7"'
    assert max(image.shape[1:3]) <= 4 * min(image.shape[1:3])


def test_vertical_text_is_a_column(nodes):
    tall, _ = nodes.reference("OPEN", direction="vertical")
    wide, _ = nodes.reference("OPEN")
    dark = [(image[0, ..., 0] < 0.5).nonzero() for image in (tall, wide)]
    height, width = (dark[0].amax(0) - dark[0].amin(0)).tolist()
    assert height > 3 * width
    height, width = (dark[1].amax(0) - dark[1].amin(0)).tolist()
    assert width > 2 * height


@pytest.mark.parametrize("text, words", [
    ("SALE 海", "no glyphs for 海 \\(U\\+6D77\\)"), ("\u200b\n ", "Text is empty"),
    ("W" * 1000, "do not fit on one page"),
    ("W" * 30_000, "has 30,000 characters; the maximum is 20,000"),
    ("OPEN 😀", "no glyphs for 😀 \\(U\\+1F600\\)"),
    ("שלום", "no glyphs for ש \\(U\\+05E9\\), ל"),
])
def test_texts_that_are_refused(nodes, text, words):
    with pytest.raises(ValueError, match=words):
        nodes.reference(text)


def test_quoted_lines_are_read_back_as_they_are(nodes):
    """A double quotation mark inside would end the text early."""
    from qwen_image_2.pages.quotation import literals
    lines = ['12" VINYL', "SALE", "the “big” one"]
    _, quoted = nodes.reference("\n".join(lines))
    assert quoted == '“12" VINYL”, "SALE", "the “big” one"' and literals(quoted) == lines


def test_what_prints_nothing_is_not_set_and_accents_are_composed():
    assert glyphs.clean_lines("Cafe\u0301\x07 \u200b\u202eNoir\n\u200b\n") == ["Café Noir"]
    assert glyphs.clean_lines("می\u200cخواهم") == ["می\u200cخواهم"], "this joiner changes the letters"


def test_right_to_left_is_refused_where_pillow_cannot_set_it(monkeypatch):
    monkeypatch.setattr(glyphs.features, "check", lambda name: False)
    monkeypatch.setattr(glyphs, "missing", lambda font, lines: [])
    with pytest.raises(ValueError, match="without Raqm"):
        glyphs.check_glyphs(glyphs.load(None, 32, "font"), ["שלום"], "font")


def test_fonts_of_the_user_are_offered_first(comfyui, monkeypatch, tmp_path):
    import folder_paths

    from qwen_image_2.nodes.bridge.files import fonts
    (tmp_path / "fonts").mkdir()
    (tmp_path / "fonts" / "mine.ttf").write_bytes(b"no font at all")
    (tmp_path / "fonts" / "readme.txt").write_text("no font either")
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    offered = list(fonts.choices())
    assert offered[:2] == ["mine.ttf", glyphs.BUILT_IN] and "readme.txt" not in offered
    with pytest.raises(ValueError, match=r"The font mine\.ttf cannot be read"):
        glyphs.render(["A"], fonts.resolve("mine.ttf"), "mine.ttf", 96, False)
    with pytest.raises(ValueError, match=r"gone\.ttf no longer exists"):
        fonts.resolve("gone.ttf")


def test_collections_are_offered_where_comfyui_owns_the_folder(comfyui, monkeypatch, tmp_path):
    """Its newer versions list .ttf and .otf alone, in folders that extra_model_paths.yaml may add to."""
    import folder_paths

    from qwen_image_2.nodes.bridge.files import fonts
    core = {".ttf", ".otf"}
    (tmp_path / "fonts").mkdir()
    (tmp_path / "more").mkdir()
    for name in ("fonts/a.ttf", "fonts/b.TTC", "more/c.otc", "more/d.otf", "more/e.woff"):
        (tmp_path / name).write_bytes(b"no font at all")
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {
        "fonts": ([str(tmp_path / "fonts"), str(tmp_path / "more")], core)})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    for _ in range(2):
        offered = list(fonts.choices())
        assert set(offered[:offered.index(glyphs.BUILT_IN)]) == {"a.ttf", "b.TTC", "c.otc", "d.otf"}
    assert core == {".ttf", ".otf"} and fonts.resolve("b.TTC")[0] == tmp_path / "fonts" / "b.TTC"


def test_collections_are_offered_face_by_face(tmp_path):
    collection = next((path for folder in glyphs.system_folders() for path in glyphs.font_files(folder)
                       if path.suffix == ".ttc"), None)
    if collection is None:
        pytest.skip("this system has no font collection")
    named = glyphs.named_faces(collection, collection.name)
    assert len(named) > 1 and {index for _, index in named.values()} == set(range(len(named)))
    broken = tmp_path / "broken.ttc"
    broken.write_bytes(collection.read_bytes()[:2000])
    assert glyphs.faces(broken) == []


@pytest.mark.parametrize("name", ["mine.ttc", "mine.ttf"])
def test_a_font_that_may_not_be_read_is_one_sentence_and_hides_no_others(tmp_path, monkeypatch, name):
    """Nobody is refused anything where tests run as the superuser."""
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))
    monkeypatch.setattr(type(tmp_path), "open", refuse)
    monkeypatch.setattr(glyphs.ImageFont, "truetype", refuse)
    path = tmp_path / name
    assert glyphs.named_faces(path, name) == {name: (path, 0)}
    with pytest.raises(ValueError) as raised:
        glyphs.load((path, 0), 32, name)
    assert str(raised.value) == f"The font {name} cannot be read (Permission denied). Choose another one."


def test_chinese_on_a_vertical_page(nodes):
    from qwen_image_2.nodes.bridge.files import fonts
    name = next((name for name in fonts.choices() if "CJK SC" in name), None)
    if name is None:
        pytest.skip("this system has no Chinese font")
    image, _ = nodes.reference("海港夜市\n免费入场", font=name, direction="vertical")
    assert nodes.check(image, "海港夜市\n免费入场")[3]
