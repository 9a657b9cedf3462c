"""The shipped workflows, opened and run the way a person does."""
import io
import json

import numpy as np
import pytest
from PIL import Image

from qwen_image_2.tools.comfyui.server import Server

from .conftest import ROOT, Page, expect

NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
SMALL = {"aspect_ratio": "custom", "width": 128, "height": 128}
MINIATURE = {
    **{f"QwenImage2{kind}": SMALL for kind in
       ("EmptyLatent", "PosterBrief", "SlideBrief", "InfographicBrief", "ComicBrief", "DeckOutline")},
    "QwenImage2Loader": {"diffusion_model": "miniature", "text_encoder": "miniature", "vae": "miniature"},
    "QwenImage2EditEncode": {"resolution": "128"},
    "QwenImage2CropForEdit": {"resolution": "128"},
    "QwenImage2RepairText": {"resolution": "128", "attempts": 1, "preset": "Custom", "steps": 2},
    "QwenImage2Sampler": {"preset": "Custom", "steps": 2},
    "QwenImage2Upscale": {"longer_side": 0, "scale": 1.0, "preset": "Custom", "steps": 4},
    "QwenImage2Layers": {"layers": 2, "steps": 2, "prompt": "A cup on a table."},
    "QwenImage2PromptEnhance": SMALL | {"max_tokens": 32},
}

TWO_SLIDES = "## One\n- A point\n## Two\n- Another point"


def api(name: str) -> dict:
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))


def one_of_each() -> list[str]:
    """A workflow of each set of nodes. What a page sends of another one with the same nodes is its API copy, and that
    runs in tests/server."""
    found = {tuple(sorted(node["class_type"] for node in api(name).values())): name for name in reversed(NAMES)}
    return sorted(found.values())


def in_turn(names: list[str], first: int) -> list[tuple[str, str]]:
    """Each workflow in one renderer."""
    return [(("classic", "vue")[(number + first) % 2], name) for number, name in enumerate(names)]


@pytest.mark.parametrize("page, name", in_turn(NAMES, 1), indirect=["page"])
def test_opens_tidily_and_exports_the_api_copy(page, name):
    page.open(name)
    assert page.exported() == {key: {"class_type": node["class_type"], "inputs": node["inputs"]}
                               for key, node in api(name).items()}
    assert page.page.evaluate("app.graph.nodes.filter(node => node.has_errors || !node.constructor.nodeData"
                              " && node.type !== 'MarkdownNote').length") == 0
    assert page.page.get_by_role("dialog").count() == 0  # the page tells of missing nodes and models in one
    assert_tidy(page)


def test_files_that_are_missing_are_offered(chromium, server, comfyui_path, tmp_path):
    """On ComfyUI's own panel: a new user has none of them, and the miniature is not asked for."""
    with Server(comfyui_path, models=tmp_path, user=server.user, cpu=True) as empty:
        page = Page(chromium.new_page(), empty, "classic")
        page.open("text_to_image_turbo")
        page.page.get_by_role("button", name="View details").click()
        expect(page.page.get_by_text("Download", exact=True)).to_have_count(3)
        offered = page.page.evaluate("app.graph.nodes.flatMap(node => node.properties.models ?? [])")
        page.page.close()
    assert {model["url"].removeprefix("https://huggingface.co/Comfy-Org/Qwen-Image-2.1/resolve/main/")
            for model in offered} == {f"{model['directory']}/{model['name']}" for model in offered}
    assert {(model["directory"], model["name"]) for model in offered} == {
        ("diffusion_models", "qwen_image_2.1_turbo_bf16.safetensors"),
        ("text_encoders", "qwen3vl_8b_bf16.safetensors"), ("vae", "qwen_image_2.1_vae_bf16.safetensors")}


def assert_apart(page) -> list[list]:
    """No node lies over another one. Their boxes: class, left, top, width, height."""
    page.page.wait_for_timeout(300)  # nodes grow to what is on them
    boxes = page.page.evaluate("app.graph.nodes.map(node => [node.type, ...node.pos, ...node.size])")
    for i, (kind, x, y, w, h) in enumerate(boxes):
        for other, u, v, s, t in boxes[i + 1:]:
            apart = x + w <= u or u + s <= x or y + h + 30 <= v or v + t + 30 <= y
            assert apart, f"{kind} lies over {other}"
    return boxes


def assert_tidy(page) -> None:
    """Nor does one stand partly outside of its group."""
    boxes = assert_apart(page)
    groups = page.page.evaluate("app.graph.groups.map(group => [...group.pos, ...group.size])")
    for kind, x, y, w, h in boxes:
        around = [(u, v, s, t) for u, v, s, t in groups if u <= x < u + s and v <= y < v + t]
        assert all(x + w <= u + s and y + h <= v + t for u, v, s, t in around), f"{kind} grows out of its group"


def test_a_saved_workflow_is_the_same_as_without_the_extension(page):
    """The values of a file are counted off against a node's widgets: ours add none."""
    page.open("poster")
    graph = page.page.evaluate("app.graph.serialize()")
    saved = {node["type"]: node.get("widgets_values", []) for node in graph["nodes"]}
    shipped = json.loads((ROOT / "workflows" / "poster.json").read_text(encoding="utf-8"))
    for node in shipped["nodes"]:
        assert saved[node["type"]] == node["widgets_values"]
    assert "qwen_image_2_" not in json.dumps(graph)


@pytest.mark.parametrize("page, name", in_turn(one_of_each(), 0), indirect=["page"])
def test_runs_from_the_template_browser_to_a_picture(page, name):
    """As a new user does it: Templates, the pack's name, a card, the miniature's settings, Run. Qwen-Image 1.x and the
    control network have no miniature: their own files are there."""
    page.open_template(name)
    assert {key: node["class_type"] for key, node in page.exported().items()} == {
        key: node["class_type"] for key, node in api(name).items()}
    assert page.page.get_by_role("dialog").count() == 0  # the page tells of missing nodes and models in one
    assert_tidy(page)
    own_files = name.startswith(("qwen_image_1", "control_"))
    for kind, values in MINIATURE.items():
        if not own_files or kind != "QwenImage2Loader":
            page.set(kind, **values)
    if name == "slides_deck":
        page.set("QwenImage2DeckOutline", outline=TWO_SLIDES)  # all ten of it are drawn in tests/server
    if name in ("edit_masked", "control_inpaint"):
        page.set("LoadImage", image="painted.png")  # what the notes ask for
    prompt, result = page.run(timeout=300)
    assert all((value["inputs"]["diffusion_model"] == "miniature") != own_files for value in prompt.values()
               if value["class_type"] == "QwenImage2Loader")
    pictures = [file for file in result.saved if file.filename.endswith(".png")]
    assert {file.node for file in pictures} == {key for key, node in prompt.items()
                                                if node["class_type"] == "SaveImage"} != set()
    for file in pictures:
        drawn = np.asarray(Image.open(io.BytesIO(page.client.view(file))))
        assert drawn.std() > 0.5  # nearly blank is what two steps may make of a prompt that it has not learnt
    page.page.wait_for_function("keys => keys.every(key => app.nodeOutputs[key]?.images?.length)",
                                arg=sorted({file.node for file in pictures}))
    assert_apart(page)  # with what the nodes have said and shown
