"""The typeset page on the briefs and on Layout: boxes moved by mouse and keyboard, and presets, in both renderers."""
import json
import re

import pytest

from .conftest import expect

POSTER, LAYOUT = "QwenImage2PosterBrief", "QwenImage2Layout"
LINE = 1 / 64  # of the grid
OPEN = '[{"name": "a", "role": "title", "text": "OPEN", "x": 0.25, "y": 0.25, "w": 0.25, "h": 0.125, "size": 0.1},' \
       ' {"name": "b", "role": "body", "text": "daily", "x": 0.25, "y": 0.5, "w": 0.25, "h": 0.125}]'


def only_layout(page, boxes):
    """A graph of one Layout with the whole layout in its input."""
    page.page.evaluate("graph => app.loadApiJson(graph, 'layout')", {"1": {"class_type": LAYOUT, "inputs": {
        "boxes": boxes, "font": "Noto Sans (built-in)", "picture": "grey", "width": 1024, "height": 1024,
        "language": "English"}}})
    page.page.wait_for_function("kind => app.graph.nodes.length === 1 && app.graph.nodes[0].type === kind", arg=LAYOUT)
    page.page.evaluate("app.graph.nodes[0].setSize([520, 900])")
    page.show(LAYOUT)


@pytest.fixture
def editor(page):
    only_layout(page, OPEN)
    panel = page.panel("page-view")
    expect(panel.locator(".place")).to_have_count(2)
    return panel


def box(page, name="a"):
    """As it stands in the node's input."""
    text = page.value(LAYOUT, "boxes")
    return next(entry for entry in json.loads(text) if entry["name"] == name)


def place(page, name="a"):
    return tuple(box(page, name)[side] for side in "xywh")


def test_boxes_move_by_keyboard(page, editor):
    title, body = editor.get_by_role("button", name="Title “OPEN”"), editor.get_by_role("button", name="Body text")
    title.focus()
    for key, expected in [("ArrowRight", (0.25 + LINE, 0.25, 0.25, 0.125)),
                          ("Shift+ArrowDown", (0.25 + LINE, 0.25 + 10 * LINE, 0.25, 0.125)),
                          ("Alt+ArrowRight", (0.25 + LINE, 0.25 + 10 * LINE, 0.25 + LINE, 0.125)),
                          ("Control+ArrowUp", (0.25 + LINE, 0.25 + 10 * LINE, 0.25 + LINE, 0.125 - LINE))]:
        page.page.keyboard.press(key)
        assert place(page) == pytest.approx(expected, abs=1e-4)
    expect(title).to_have_accessible_name(re.compile(r"Title “OPEN”: 26.6 % from left, 40.6 % from top"))
    expect(title).to_have_accessible_description(re.compile("Tab next box, arrow keys move by one grid step"))
    expect(editor.locator(".place-line")).to_have_text(re.compile("26.6 % from left"))
    page.page.keyboard.press("Tab")
    expect(body).to_be_focused()
    for _ in range(10):
        page.page.keyboard.press("Shift+ArrowLeft")
    assert place(page, "b") == (0, 0.5, 0.25, 0.125)  # not over the edge
    expect(editor.locator(".said")).to_be_empty()


def test_boxes_move_by_mouse_and_the_page_follows(page, editor):
    picture, title = editor.locator("img"), editor.get_by_role("button", name="Title “OPEN”")
    before, node = picture.get_attribute("src"), page.page.evaluate("[...app.graph.nodes[0].pos]")

    def drag(start, end):
        title.hover()  # which waits until the node has its size
        frame = editor.locator(".frame").bounding_box()
        (x, y), (u, v) = ((frame["x"] + across * frame["width"], frame["y"] + down * frame["height"])
                          for across, down in (start, end))
        page.page.mouse.move(x, y)
        page.page.mouse.down()
        page.page.mouse.move((x + u) / 2, (y + v) / 2)
        page.page.mouse.move(u, v)
        page.page.mouse.up()

    drag((0.3, 0.3), (0.4, 0.61))
    assert place(page) == pytest.approx((22 * LINE, 36 * LINE, 0.25, 0.125), abs=1e-4)
    expect(picture).not_to_have_attribute("src", before)
    drag((22 * LINE + 0.25, 36 * LINE + 0.125), (2, 0.8))  # its corner, far over the edge
    assert place(page) == pytest.approx((22 * LINE, 36 * LINE, 1 - 22 * LINE, 15 * LINE), abs=1e-4)
    assert page.page.evaluate("[...app.graph.nodes[0].pos]") == node
    page.page.keyboard.press("Control+z")
    page.page.wait_for_function("app.graph.nodes[0]?.widgets.find(it => it.name === 'boxes').value.includes('0.125,')")
    assert place(page) == pytest.approx((22 * LINE, 36 * LINE, 0.25, 0.125), abs=1e-4)
    page.page.keyboard.press("Control+z")
    page.page.wait_for_function("""() => JSON.parse(app.graph.nodes[0]?.widgets.find(it => it.name === 'boxes').value)
        .some(box => box.x === 0.25 && box.y === 0.25)""")


def test_a_colour_is_written_into_the_box(page, editor):
    expect(editor.get_by_role("button", name="#1d4ed8")).to_be_disabled()
    editor.get_by_role("button", name="Title “OPEN”").focus()
    editor.get_by_role("button", name="#1d4ed8").click()
    assert box(page)["colour"] == "#1d4ed8" and place(page) == (0.25, 0.25, 0.25, 0.125)
    expect(editor.get_by_role("button", name="#1d4ed8")).to_have_attribute("aria-pressed", "true")


def test_what_is_no_layout_is_said_in_place(page, editor):
    page.set(LAYOUT, boxes="[{")
    expect(editor.locator(".said")).to_have_text("The layout is not valid JSON (line 1).")
    page.set(LAYOUT, boxes=json.dumps([{"name": "<img src=x onerror=window.hacked=1>", "text": "<b>hi</b>", "x": 0,
                                        "y": 0, "w": 0.5, "h": 0.5}]))
    expect(editor.get_by_role("button", name="<b>hi</b>")).to_have_count(1)
    expect(editor.locator(".said")).to_be_empty()
    assert page.page.evaluate("window.hacked") is None and editor.locator("b").count() == 0


def test_a_brief_is_typeset_while_somebody_types(page):
    """On the brief, and on Layout with what was moved there; once for many keys."""
    page.open("poster_from_layout")
    page.show(POSTER)
    preview = page.panel("page-view")
    expect(preview.locator("img")).to_have_attribute("alt", re.compile("^The typeset page, .* boxes$"))
    assert preview.locator(".place").count() == 0
    before = preview.locator("img").get_attribute("src")
    page.show(LAYOUT)
    layout = page.page.locator(".page-view:has(.frame) >> visible=true")
    layout.get_by_role("button", name=re.compile("^Title")).press("Shift+ArrowDown")
    moved, = json.loads(page.value(LAYOUT, "boxes"))
    assert set(moved) == {"name", "x", "y", "w", "h"} and moved["name"] == "title"
    page.show(POSTER)
    with page.requests() as asked:
        page.type_fast("A MARKET")
        expect(preview.locator("img")).not_to_have_attribute("src", before)
        page.show(LAYOUT)
        expect(layout.get_by_role("button", name=re.compile("^Title “A MARKET”"))).to_have_count(1)
    assert sorted(asked) == ["brief", "layout", "layout"]
    assert json.loads(page.value(LAYOUT, "boxes")) == [moved]
    page.set(POSTER, palette=",".join("abcdefghijk"))
    expect(layout.locator(".said")).to_have_text(re.compile("The palette has 11 colors"))


def open_below(page):
    """A brief, with its lower end in view."""
    page.open("poster_brief")
    page.show(POSTER)
    page.page.evaluate("app.canvas.ds.offset[1] -= 500; app.canvas.setDirty(true, true)")
    page.page.wait_for_timeout(300)


def test_presets_are_saved_and_loaded(page, server):
    name = f"Market {'vue' if page.vue else 'classic'}"
    open_below(page)
    page.set(POSTER, title="FIRST")
    row = page.panel("presets")
    said = row.locator("xpath=..").locator(".said")
    for given, answer in [("../x", "A preset's name has 1 to 50 letters, digits, spaces and dashes."),
                          (name, f"Saved: {name}."), (name.upper(), "There is a preset")]:
        row.get_by_role("textbox").fill(given)
        row.get_by_role("button", name="Save as").click()
        expect(said).to_contain_text(answer)
    file, = (server.user / "default" / "qwen_image_2" / "presets" / POSTER).glob(f"{name}.json")
    assert json.loads(file.read_text(encoding="utf-8"))["title"] == "FIRST"
    open_below(page)
    page.set(POSTER, title="SECOND")
    row.get_by_role("combobox").focus()  # with which it learns what there is
    row.get_by_role("combobox").select_option(name)
    row.get_by_role("button", name="Load", exact=True).click()
    expect(said).to_have_text(f"Loaded: {name}.")
    assert page.value(POSTER, "title") == "FIRST"
    page.page.keyboard.press("Control+z")
    page.page.wait_for_function("""kind => app.graph.nodes.find(node => node.type === kind)?.widgets[0].value
        === 'SECOND'""", arg=POSTER)
