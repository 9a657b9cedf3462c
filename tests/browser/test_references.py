"""The references on Encode Edit are numbered as the server numbers them: real runs, in both renderers."""
import json
import re
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from .conftest import ROOT, expect

EDIT = "QwenImage2EditEncode"
COLOURS = {"red.png": (255, 0, 0), "green.png": (0, 255, 0), "blue.png": (0, 0, 255)}


def graph():
    """A batch of red and green on image_1, blue on image_2, through this pack's tiny weights."""
    shipped = json.loads((ROOT / "workflows" / "api" / "edit_multi_reference.json").read_text(encoding="utf-8"))
    kinds = {entry["class_type"]: entry["inputs"] for entry in shipped.values()}
    edit = {name: value for name, value in kinds[EDIT].items() if not name.startswith("images.")}
    return {
        "1": {"class_type": "QwenImage2Loader", "inputs": kinds["QwenImage2Loader"]},
        "2": {"class_type": "LoadImage", "inputs": {"image": "red.png"}},
        "3": {"class_type": "LoadImage", "inputs": {"image": "green.png"}},
        "4": {"class_type": "ImageBatch", "inputs": {"image1": ["2", 0], "image2": ["3", 0]}},
        "5": {"class_type": "LoadImage", "inputs": {"image": "blue.png"}},
        "6": {"class_type": EDIT, "inputs": edit | {
            "clip": ["1", 1], "vae": ["1", 2], "prompt": "Mix them.", "resolution": "128",
            "images.image_1": ["4", 0], "images.image_2": ["5", 0]}},
        "7": {"class_type": "QwenImage2VAEDecode", "inputs": {"samples": ["6", 2], "vae": ["1", 2]}},
        "8": {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}},
    }


@pytest.fixture
def references(page, server):
    for name, colour in COLOURS.items():
        Image.new("RGB", (640, 320), colour).save(server.input / name)
    page.page.evaluate("graph => app.loadApiJson(graph, 'references')", graph())
    page.page.wait_for_timeout(300)
    page.show(EDIT)
    return page.panel("references")


def named(references):
    return references.get_by_role("button")


def colours(page, references):
    """What the tiles show, by the files themselves: red, green or blue."""
    shown = []
    for picture in references.locator("img").all():
        expect(picture).to_have_js_property("complete", True)
        file = Image.open(BytesIO(page.page.request.get(picture.evaluate("image => image.src")).body()))
        assert max(file.size) <= 256 and file.width == 2 * file.height
        shown.append(("red", "green", "blue")[int(np.asarray(file.convert("RGB")).mean((0, 1)).argmax())])
    return shown


def run(page, references, count):
    page.set(EDIT, negative_prompt=f"{page.vue}{count}")
    page.page.evaluate("app.queuePrompt(0)")
    expect(named(references)).to_have_count(count, timeout=90_000)


def with_node(page, script, kind="ImageBatch", **more):
    """Do something with the first node of a class, as a person does with a key or the mouse."""
    page.page.evaluate(f"""([kind, more]) => {{
        const node = app.graph.nodes.find(node => node.type === kind), graph = app.graph;
        {script}
        app.extensionManager.workflow.activeWorkflow.changeTracker.checkState?.();
        app.api.dispatchCustomEvent("graphChanged", graph.serialize());
    }}""", [kind, more])


def test_a_batch_is_numbered_as_the_server_numbers_it(page, references):
    expect(named(references)).to_have_text(["known after a run<image1>", "<image2>"])
    assert "until then each input counts as one" in named(references).first.get_attribute("title")
    run(page, references, 3)
    expect(named(references)).to_have_text(["<image1>", "<image2>", "<image3>"])
    assert colours(page, references) == ["red", "green", "blue"]
    box = page.prompt_box()
    box.fill("")
    references.get_by_role("button", name="<image3>").click()
    assert page.value(EDIT, "prompt") == "<image3>"  # the blue one: what the slot image_2 holds


def test_what_a_run_said_goes_with_its_links(page, references):
    run(page, references, 3)
    with_node(page, "node.disconnectInput(node.inputs.findIndex(input => input.name === 'images.image_2'))", EDIT)
    expect(named(references)).to_have_text(["known after a run<image1>"])
    with_node(page, """graph.nodes.find(node => node.widgets?.some(it => it.value === "blue.png"))
        .connect(0, node, node.inputs.findIndex(input => input.name === 'images.image_1'))""", EDIT)
    expect(named(references)).to_have_text(["<image1>"])
    expect(references.locator("img")).to_have_attribute("src", re.compile("blue.png"))


def test_a_result_may_come_before_the_page_knows_that_it_is_queued(page, references, server):
    def late(route):
        answer = route.fetch()
        page.client.wait(answer.json()["prompt_id"], 90)
        page.page.wait_for_function("app.nodeOutputs[8]?.images?.length", timeout=90_000)
        route.fulfill(response=answer)

    page.page.route("**/api/prompt", late)
    try:
        page.set(EDIT, negative_prompt=f"early {page.vue}")
        page.page.evaluate("app.queuePrompt(0)")
    finally:
        page.page.unroute("**/api/prompt")
    expect(named(references)).to_have_text(["<image1>", "<image2>", "<image3>"])


def test_links_that_changed_while_it_ran_are_not_answered_by_it(page, references):
    page.set(EDIT, negative_prompt=f"late {page.vue}")
    with_node(page, """app.queuePrompt(0).then(() =>
        node.disconnectInput(node.inputs.findIndex(input => input.name === 'images.image_2')))""", EDIT)
    expect(named(references)).to_have_text(["known after a run<image1>"])
    page.page.wait_for_function("app.nodeOutputs[8]?.images?.length", timeout=90_000)
    expect(named(references)).to_have_text(["known after a run<image1>"])


def test_muted_and_bypassed_sources_have_no_number(page, references):
    with_node(page, "node.mode = 2")
    expect(named(references)).to_have_text(["<image1>"])  # blue: the server gets no other
    assert "images.image_1" not in page.exported()["6"]["inputs"]
    with_node(page, "node.mode = 4")  # hands on its first picture
    expect(named(references)).to_have_text(["<image1>", "<image2>"])
    assert page.exported()["6"]["inputs"]["images.image_1"] == ["2", 0]
    with_node(page, "node.mode = 0")
    with_node(page, "graph.nodes.find(node => node.widgets?.some(it => it.value === 'blue.png')).mode = 4")
    expect(named(references)).to_have_text(["known after a run<image1>"])  # a loader has nothing to hand on
    assert "images.image_2" not in page.exported()["6"]["inputs"]


def test_nothing_of_a_run_is_stored(page, references):
    run(page, references, 3)
    saved = page.page.evaluate("JSON.stringify(app.graph.serialize())")
    assert "qwen_image_2_references" not in saved and "qwen-image-2-reference" not in saved
