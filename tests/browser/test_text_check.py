"""What a text check shows on its node: a real run of the real reader, in both renderers."""
import pytest
from PIL import Image, ImageDraw, ImageFont

from .conftest import expect

CHECK = "QwenImage2TextCheck"
SIZE, PLACE, LETTERS = (320, 160), (20, 20), 40


def write_sign(folder, name, *lines):
    picture = Image.new("RGB", SIZE, "white")
    for row, line in enumerate(lines):
        place = PLACE[0], PLACE[1] + 65 * row
        ImageDraw.Draw(picture).text(place, line, "black", ImageFont.load_default(LETTERS))
    picture.save(folder / name)


def graph(expected):
    """Two pictures in a batch, read and compared."""
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": "right.png"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "wrong.png"}},
        "3": {"class_type": "ImageBatch", "inputs": {"image1": ["1", 0], "image2": ["2", 0]}},
        "4": {"class_type": CHECK, "inputs": {
            "image": ["3", 0], "expected_text": expected, "match_case": False, "match_punctuation": False,
            "tolerance": 0.0, "allow_extra": False}},
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
    }


@pytest.fixture
def checked(page, server):
    """The panel after a run: the first picture is right; of the second one line is wrong, one missing, one extra."""
    write_sign(server.input, "right.png", "NIGHT", "MARKET")
    write_sign(server.input, "wrong.png", "NIGTH", "1234 5678")
    page.page.evaluate("graph => app.loadApiJson(graph, 'check')", graph("Night\nMarket"))
    page.show(CHECK)
    page.page.evaluate("app.queuePrompt(0)")
    panel = page.panel("text-check")
    expect(panel).to_be_visible(timeout=90_000)
    return panel


def rows(panel):
    return [[cell.inner_text() for cell in row.locator("td").all()] for row in panel.locator("tbody tr").all()]


def test_found_and_expected_stand_side_by_side(page, checked):
    expect(checked.get_by_role("radio", name="✗ 2")).to_be_checked()  # the first that failed
    assert rows(checked) == [["1", "wrong", "Night", "NIGTH"], ["2", "missing", "Market", ""],
                             ["", "extra", "", "1234 5678"]]
    expect(checked.locator(".box")).to_have_text(["1 wrong", "extra"])
    checked.get_by_role("radio", name="✓ 1").check()
    assert rows(checked) == [["1", "right", "Night", "NIGHT"], ["2", "right", "Market", "MARKET"]]
    expect(checked.locator(".box")).to_have_text(["1 right", "2 right"])


def test_boxes_lie_on_the_words(page, checked):
    """The picture is there as it was, and the box of its first line is where that was drawn, at any zoom."""
    picture = checked.locator("img")
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("image => [image.naturalWidth, image.naturalHeight]") == list(SIZE)
    for scale in (1.0, 0.7):
        page.page.evaluate("""scale => { app.canvas.ds.scale = scale; app.canvas.setDirty(true, true); }""", scale)
        page.page.wait_for_timeout(300)
        outer, box = picture.bounding_box(), checked.locator(".box").first.bounding_box()
        across, down = SIZE[0] / outer["width"], SIZE[1] / outer["height"]
        left, top = (box["x"] - outer["x"]) * across, (box["y"] - outer["y"]) * down
        right, bottom = left + box["width"] * across, top + box["height"] * down
        ink = ImageDraw.Draw(Image.new("RGB", SIZE)).textbbox(PLACE, "NIGTH", ImageFont.load_default(LETTERS))
        assert left <= ink[0] + 2 and top <= ink[1] + 2 and right >= ink[2] - 2 and bottom >= ink[3] - 2
        assert [(left + right) / 2, (top + bottom) / 2] == pytest.approx(
            [(ink[0] + ink[2]) / 2, (ink[1] + ink[3]) / 2], abs=6)


def test_a_line_lights_its_box(page, checked):
    checked.locator("tbody tr").first.focus()
    assert checked.locator(".box.lit").all_inner_texts() == ["1 wrong"]
    page.page.keyboard.press("Tab")
    expect(checked.locator(".box.lit")).to_have_count(0)  # a missing line has no place


def test_a_new_check_takes_the_old_one_s_place_and_nothing_is_stored(page, checked):
    page.set(CHECK, expected_text="1234 5678")
    page.page.evaluate("app.queuePrompt(0)")
    expect(checked.locator("tbody tr").first.locator("td").nth(2)).to_have_text("1234 5678", timeout=60_000)
    expect(page.page.locator(".qwen-image-2 .text-check")).to_have_count(1)
    saved = page.page.evaluate("JSON.stringify(app.graph.serialize())")
    assert "qwen_image_2_text_check" not in saved and "NIGTH" not in saved


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_the_table_is_readable_in_both_themes(page, checked, theme):
    page.page.evaluate("theme => app.extensionManager.setting.set('Comfy.ColorPalette', theme)", theme)
    page.page.wait_for_timeout(300)
    colour = checked.locator("td").first.evaluate("node => getComputedStyle(node).color")
    brightness = sum(float(part) for part in colour[colour.index("(") + 1:-1].split(",")[:3])
    assert (brightness > 450) if theme == "dark" else (brightness < 250)
    page.page.evaluate("app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
