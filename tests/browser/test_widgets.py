"""The pack's panels, used by mouse and keyboard."""
import json
import re

import pytest

from qwen_image_2.model.images import sizes

from .conftest import ROOT, Page, expect

LATENT, TEXT, EDIT = "QwenImage2EmptyLatent", "QwenImage2TextEncode", "QwenImage2EditEncode"


def summary(width, height, native=False):
    return f"{width} × {height} px · {width // 16 * (height // 16):,} tokens" + (" · ◆ official size" if native else "")


@pytest.fixture
def picker(page):
    page.open("text_to_image")
    page.show(LATENT)
    return page.panel("size-picker")


def test_size_by_mouse(page, picker):
    for ratio in sizes.RATIOS:
        picker.get_by_role("radio", name=ratio, exact=True).click()
        for size in sizes.CLASSES:
            picker.get_by_role("radio", name=str(size), exact=True).click()
            expect(picker.locator(".summary")).to_have_text(summary(*sizes.size_for(ratio, size), size in sizes.NATIVE))
            assert (page.value(LATENT, "aspect_ratio"), page.value(LATENT, "size")) == (ratio, str(size))
    last = {"aspect_ratio": list(sizes.RATIOS)[-1], "size": str(list(sizes.CLASSES)[-1])}
    assert page.exported()["3"]["inputs"] | last == page.exported()["3"]["inputs"]


def test_size_by_keyboard(page, picker):
    picker.get_by_role("radio", name="1:1", exact=True).click()
    place = page.page.evaluate("app.graph.nodes.map(node => [...node.pos])")
    page.page.keyboard.press("ArrowRight")
    expect(picker.get_by_role("radio", name="4:3", exact=True)).to_be_focused()
    assert page.value(LATENT, "aspect_ratio") == "4:3"
    page.page.keyboard.press("ArrowLeft")
    page.page.keyboard.press("ArrowLeft")  # round the end
    assert page.value(LATENT, "aspect_ratio") == "custom"
    page.page.keyboard.press("ArrowRight")
    page.page.keyboard.press("Tab")
    page.page.keyboard.press("ArrowRight")
    assert (page.value(LATENT, "aspect_ratio"), page.value(LATENT, "size")) == ("1:1", "1280")
    page.page.keyboard.press("Delete")  # of the page: would delete a selected node
    assert page.page.evaluate("app.graph.nodes.map(node => [...node.pos])") == place


def test_shapes_are_to_scale(page, picker):
    boxes = {tile.inner_text().split()[0]: tile.locator(".shape").bounding_box() for tile in
             picker.locator(".ratios .tile").all()}
    for ratio, (across, down) in sizes.RATIOS.items():
        assert boxes[ratio]["width"] / boxes[ratio]["height"] == pytest.approx(across / down, rel=0.06)


def test_picker_follows_the_node(page, picker):
    page.set(LATENT, aspect_ratio="16:9", size="2048")
    expect(picker.get_by_role("radio", name="16:9")).to_be_checked()
    expect(picker.locator(".summary")).to_have_text(summary(2752, 1536, True))
    page.set(LATENT, aspect_ratio="custom", width=96, height=160)
    expect(picker.locator(".summary")).to_have_text(summary(96, 160))
    expect(picker.get_by_role("radio", name="1024")).to_be_disabled()
    page.page.evaluate("""() => {
        const number = LiteGraph.createNode("PrimitiveInt");
        app.graph.add(number);
        const node = app.graph.nodes.find(node => node.type === "QwenImage2EmptyLatent");
        number.connect(0, node, node.inputs.findIndex(input => input.name === "width"));
    }""")
    expect(picker.locator(".summary")).to_have_text("Set by another node")


def test_a_value_that_is_no_choice_is_said(page, picker):
    """From an old or hand-written workflow; the server refuses it."""
    ratios = ", ".join([*sizes.RATIOS, sizes.CUSTOM])
    page.set(LATENT, aspect_ratio="5:4")
    expect(picker.locator(".summary")).to_have_text(
        f"Aspect ratio has no choice 5:4, so this will not run: choose {ratios}")
    expect(picker.get_by_role("radio", name="1:1")).not_to_be_checked()
    page.set(LATENT, aspect_ratio="constructor")  # a name that every object of JavaScript has
    expect(picker.locator(".summary")).to_contain_text("has no choice constructor")
    page.set(LATENT, aspect_ratio="1:1", size="999")
    expect(picker.locator(".summary")).to_contain_text(
        "Size class has no choice 999, so this will not run: choose 512, 768")
    page.set(LATENT, size="1024")
    expect(picker.locator(".summary")).to_have_text(summary(1024, 1024))


@pytest.fixture
def meter(page):
    page.open("text_to_image")
    page.show(TEXT)
    panel = page.panel("token-meter")
    expect(panel.locator(".count")).to_have_text(re.compile(r"^\d+ of 1,000 tokens$"))  # it has asked
    return panel


def test_meter_counts_what_is_typed(page, meter, server):
    page.prompt_box().fill('A poster that says "HELLO" and “咖啡”')
    expect(meter.locator(".count")).to_have_text(re.compile(r"^1\d of 1,000 tokens$"))
    expect(meter.locator("li")).to_have_text(["HELLO", "咖啡"])
    page.prompt_box().fill("word " * 1100)
    expect(meter.locator(".count")).to_have_text(re.compile(r"^1,10\d of 1,000 tokens: the end may be ignored$"))
    expect(meter.get_by_role("meter")).to_have_attribute("aria-valuenow", "1000")
    page.prompt_box().fill("")
    expect(meter.locator(".count")).to_have_text("0 of 1,000 tokens")


def test_meter_measures_against_what_the_model_was_trained_with(page, meter):
    """A run tells: Qwen-Image 1.x with 24 tokens more."""
    page.page.evaluate("""kind => app.graph.nodes.find(node => node.type === kind)
        .onExecuted({qwen_image_2_trained_tokens: [1024]})""", TEXT)
    expect(meter.locator(".count")).to_have_text(re.compile(r"^\d+ of 1,024 tokens$"))
    page.prompt_box().fill("word " * 1023)
    expect(meter.locator(".count")).to_have_text(re.compile(r"^1,02[34] of 1,024 tokens$"))


def test_meter_asks_once_for_many_keys(page, meter):
    with page.requests() as asked:
        page.type_fast("A quick brown fox")
        expect(meter.locator(".count")).to_have_text("4 of 1,000 tokens")
    assert asked == ["prompt"]


def test_meter_shows_markup_as_text(page, meter):
    hostile = '<img src=x onerror="window.hacked=1"> "<script>window.hacked=1</script>"'
    page.prompt_box().fill(hostile)
    expect(meter.locator("li")).to_have_text(["window.hacked=1", "<script>window.hacked=1</script>"])
    assert page.page.evaluate("window.hacked") is None and meter.locator("img, script").count() == 0


def test_meter_says_when_it_cannot_count(page, meter):
    page.prompt_box().fill("a" * 70_000)
    expect(meter.locator(".count")).to_have_text(re.compile("too long to be counted here"))
    page.errors.clear()  # the console names the refused request
    page.page.evaluate("""() => {
        const text = LiteGraph.createNode("PrimitiveStringMultiline");
        app.graph.add(text);
        const node = app.graph.nodes.find(node => node.type === "QwenImage2TextEncode");
        text.connect(0, node, node.inputs.findIndex(input => input.name === "prompt"));
    }""")
    expect(meter.locator(".count")).to_have_text(re.compile("from another node"))


PROMOTED = """() => {
    const text = app.graph.nodes.find(node => node.type === "QwenImage2TextEncode");
    const { subgraph, node } = app.graph.convertToSubgraph(new Set([text]));
    const inner = subgraph.nodes.find(one => one.type === "QwenImage2TextEncode");
    const slot = inner.inputs.find(input => input.name === "prompt");
    subgraph.addInput("prompt", "STRING").connect(slot, inner);
    node.widgets.find(widget => widget.name === "prompt").value = "A quick brown fox";
    window.subject = { node, count: inner.widgets.find(widget => widget.name.startsWith("qwen_image_2_meter"))
        .element.querySelector(".count") };
    app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState();
}"""
SECOND = """() => {
    app.graph.add(LiteGraph.createNode(window.subject.node.type));
    app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState();
}"""


def test_meter_of_a_promoted_prompt_counts_what_the_subgraph_node_says(page, meter):
    said = "text => window.subject.count.textContent === text"
    page.page.evaluate(PROMOTED)
    page.page.wait_for_function(said, arg="4 of 1,000 tokens")
    page.page.evaluate(SECOND)
    page.page.wait_for_function(said, arg="Known when it runs: 2 subgraph nodes set Prompt, each its own")


def test_what_does_not_count_is_greyed_out(page, picker):
    disabled = """() => app.graph.nodes.flatMap(node => (node.widgets ?? []).filter(widget => widget.disabled)
        .map(widget => `${node.type} ${widget.name}`)).sort()"""
    grey = json.dumps([f"{LATENT} height", f"{LATENT} width", "QwenImage2Sampler steps"], separators=(",", ":"))
    page.page.wait_for_function(f"JSON.stringify(({disabled})()) === '{grey}'")
    exported = page.exported()
    picker.get_by_role("radio", name="custom", exact=True).click()
    page.set("QwenImage2Sampler", preset="Custom")
    page.page.wait_for_function(f"({disabled})().length === 0")
    changed = {"aspect_ratio": "custom", "preset": "Custom"}
    assert page.exported() == {key: node | {"inputs": {name: changed.get(name, value) for name, value in
                                                       node["inputs"].items()}} for key, node in exported.items()}


@pytest.fixture
def references(page):
    page.open("edit_multi_reference")
    page.show(EDIT)
    return page.panel("references")


def test_reference_by_click(page, references):
    expect(references.get_by_role("button")).to_have_text(["<image1>", "<image2>", "<image3>"])
    for picture in references.locator("img").all():
        expect(picture).to_have_js_property("naturalWidth", 768)
    box = page.prompt_box()
    box.fill("Put here.")
    box.evaluate("box => box.setSelectionRange(4, 4)")
    references.get_by_role("button", name="<image2>").click()
    assert page.value(EDIT, "prompt") == box.input_value() == "Put <image2>here."
    page.page.keyboard.type(" right ")  # the cursor stands behind it
    assert page.value(EDIT, "prompt") == "Put <image2> right here."
    assert page.exported()["6"]["inputs"]["prompt"] == "Put <image2> right here."


def test_references_follow_the_links(page, references):
    page.page.evaluate("""() => {
        const node = app.graph.nodes.find(node => node.type === "QwenImage2EditEncode");
        node.disconnectInput(node.inputs.findIndex(input => input.name === "images.image_2"));
    }""")
    expect(references.get_by_role("button")).to_have_count(2)


def test_growing_sockets_are_called_as_messages_call_them(page):
    """On a node that is put on the canvas, and connected, by hand."""
    page.open("text_to_image")
    page.page.evaluate("""kind => {
        const edit = LiteGraph.createNode(kind), source = LiteGraph.createNode("LoadImage");
        app.graph.clear(); app.graph.add(edit); app.graph.add(source);
        edit.pos = [100, 100];
        source.connect(0, edit, edit.inputs.findIndex(input => input.name === "images.image_1"));
    }""", EDIT)
    page.show(EDIT)
    page.page.wait_for_function("""kind => JSON.stringify(app.graph.nodes.find(node => node.type === kind).inputs
        .filter(input => input.name.startsWith("images.")).map(input => input.label)) === '["Image 1","Image 2"]'""",
        arg=EDIT)
    for label in ("Image 1", "Image 2") if page.vue else ():  # the other renderer draws them on the canvas
        expect(page.page.get_by_text(label, exact=True).first).to_be_visible()


def test_nodes_keep_what_python_says(page, references):
    """A real run on tiny weights; the advice names <image1>, which the page's own box would take for a tag."""
    page.set(EDIT, prompt=f"Mix them{'.' * (1 + page.vue)}", resolution="128")  # not the other page's, cached
    page.set("QwenImage2Sampler", preset="Custom", steps=1)
    page.page.evaluate("app.queuePrompt(0)")
    messages = page.page.locator(".qwen-image-2 .messages").filter(has_text="The prompt names none of the 3 references")
    expect(messages).to_contain_text("Refer to them as <image1>, <image2>, ...", timeout=60_000)
    page.page.evaluate("app.queuePrompt(0)")  # from ComfyUI's cache: the advice still stands
    page.page.wait_for_timeout(3000)
    expect(messages).to_have_count(1)
    assert "names none of" not in json.dumps(page.page.evaluate("app.graph.serialize()"))


def test_a_report_keeps_its_lines_until_the_next_one(page, meter):
    """Sentences of several lines, such as a table, and what a second run says instead of them."""
    said = """([kind, sentences]) => app.graph.nodes.find(node => node.type === kind)
        .onExecuted({qwen_image_2_parts: sentences})"""
    messages = page.panel("messages")
    for report in (["model    7.1 GB\n  resident 3.0 GB\nprefix   0.2 GB", "And <image1> too."], ["model    1.0 GB"]):
        page.page.evaluate(said, [TEXT, report])
        expect(messages.locator("li")).to_have_count(len(report))
        for item, sentence in zip(messages.locator("li").all(), report, strict=True):
            assert item.evaluate("item => item.innerText") == sentence
            assert round(item.bounding_box()["height"] / 17) == len(sentence.splitlines())
    page.page.evaluate(said, [TEXT, []])
    expect(messages).to_have_count(0)


def test_messages_come_again_from_the_cache(chromium, server):
    """A page that was opened anew runs the same graph: nothing is computed, and the nodes say what they said."""
    tab = chromium.new_page(viewport={"width": 1900, "height": 1200})
    for _ in range(2):
        page = Page(tab, server, "classic")
        small_run(page, prompt="A cached fox.")
        expect(tab.locator(".qwen-image-2 .messages").filter(has_text="4 tokens.")).to_have_count(1, timeout=60_000)
        expect(tab.locator(".qwen-image-2 .messages").filter(has_text="KV cache")).to_have_count(1)
    tab.close()


def small_run(page, prompt: str) -> None:
    page.open("text_to_image")
    page.set(TEXT, prompt=prompt)
    page.set(LATENT, aspect_ratio="custom", width=64, height=64)
    page.set("QwenImage2Sampler", preset="Custom", steps=1, seed=7)
    page.page.evaluate("app.queuePrompt(0)")


def test_panels_and_messages_speak_chinese(chinese):
    """Words and sentences from locales/zh/main.json, by ComfyUI's setting of the language."""
    page, tab = chinese, chinese.page
    page.open("text_to_image")
    page.show(LATENT)
    expect(page.panel("size-picker").get_by_role("radiogroup", name="宽高比")).to_be_visible()
    expect(page.panel("size-picker").locator(".summary")).to_have_text("1248 × 832 像素 · 4,056 个 token")
    small_run(page, prompt="A Chinese fox.")
    assert tab.evaluate("""() => {
        const node = LiteGraph.createNode("QwenImage2EditEncode"), source = LiteGraph.createNode("LoadImage");
        [node, source].forEach(one => app.graph.add(one));
        source.connect(0, node, node.inputs.findIndex(input => input.name === "images.image_1"));
        return new Promise(done => setTimeout(() => {
            done(node.inputs.filter(input => input.name.startsWith("images.")).map(input => input.label));
            [node, source].forEach(one => app.graph.remove(one));
        }, 500));
    }""") == ["参考图 1", "参考图 2"]
    messages = tab.locator(".qwen-image-2 .messages")
    expect(messages.filter(has_text="4 个 token。")).to_have_count(1, timeout=60_000)
    expect(messages.filter(has_text="KV 缓存：")).to_contain_text(re.compile("MiB，位于内存。$"))
    page.show(TEXT)
    tab.locator("textarea >> visible=true").first.fill("a" * 70_000)
    expect(page.panel("token-meter").locator(".count")).to_have_text("文本过长（超过 64 KiB），无法在此计数。")


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_text_is_readable_in_both_themes(page, picker, theme):
    page.page.evaluate("theme => app.extensionManager.setting.set('Comfy.ColorPalette', theme)", theme)
    page.page.wait_for_timeout(300)
    colour = picker.locator(".summary").evaluate("node => getComputedStyle(node).color")
    red, green, blue = map(float, re.findall(r"[\d.]+", colour)[:3])
    assert (red + green + blue > 450) if theme == "dark" else (red + green + blue < 250)
    page.page.evaluate("app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")


@pytest.mark.parametrize("renderer", ["classic", "vue"])
def test_graphs_do_not_need_the_extension(chromium, server, renderer):
    tab = chromium.new_page()
    tab.route("**/extensions/qwen-image-2/**", lambda route: route.abort())
    page = Page(tab, server, renderer)
    page.open("edit_multi_reference")
    api = json.loads((ROOT / "workflows" / "api" / "edit_multi_reference.json").read_text(encoding="utf-8"))
    assert page.exported() == {key: {"class_type": node["class_type"], "inputs": node["inputs"]}
                               for key, node in api.items()}
    assert tab.locator(".qwen-image-2").count() == 0
    tab.close()


@pytest.mark.parametrize("page", ["classic"], indirect=True)
def test_an_empty_text_box_is_named_by_its_label(page):
    """The other renderer shows the label beside the box."""
    page.open("poster_brief")
    boxes = page.page.evaluate("""() => app.graph.nodes.find(node => node.type === "QwenImage2PosterBrief").widgets
        .filter(widget => widget.element?.placeholder).map(widget => [widget.name, widget.element.placeholder])""")
    shown = dict(boxes)
    assert shown["picture"] == "Picture description"
    assert not set(shown) & set(shown.values())
