"""A workflow file from a stranger: nothing in it runs in the page, and nothing is read or written where it must not."""
import json

import pytest

from qwen_image_2.tools.comfyui.client import WorkflowError

from .conftest import ROOT, Page, expect

MARKUP = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'


@pytest.fixture(scope="module", params=["classic", "vue"])
def own_page(chromium, server, request):
    """Menus remember what a file has put into them: not the page of other tests."""
    tab = chromium.new_page(viewport={"width": 1900, "height": 1200})
    yield Page(tab, server, request.param)
    tab.close()


@pytest.fixture
def opened(own_page):
    """The edit with markup in every text, a path in the file name, and numbers beyond every range."""
    graph = json.loads((ROOT / "workflows" / "edit_instruct.json").read_text(encoding="utf-8"))
    for node in graph["nodes"]:
        node["title"] = MARKUP
        values = node.get("widgets_values", [])
        for place, value in enumerate(values):
            if value == "example.png":
                values[place] = "../../../../etc/passwd"
            elif isinstance(value, str) and node["type"] in ("QwenImage2EditEncode", "MarkdownNote") and " " in value:
                values[place] = f'{MARKUP} "{MARKUP}"'
            elif isinstance(value, str) and value.startswith("qwen-image-2"):
                values[place] = "../../../../tmp/qwen-image-2-was-here"
            elif isinstance(value, int) and not isinstance(value, bool):
                values[place] = 10**30
    own_page.drop("hostile.json", json.dumps(graph))
    own_page.show("QwenImage2EditEncode")
    return own_page


def test_markup_stays_text(opened):
    words = opened.panel("token-meter").locator("li")
    expect(words.first).to_contain_text("window.hacked=1")
    tile = opened.panel("references").get_by_role("button").first
    assert MARKUP in tile.get_attribute("title")
    opened.page.wait_for_timeout(500)
    assert opened.page.evaluate("window.hacked") is None
    assert opened.page.locator(".qwen-image-2 script, .qwen-image-2 [onerror]").count() == 0


def test_paths_lead_nowhere(opened, server):
    """The thumbnail asks ComfyUI's own route, which refuses; the run is refused before anything is written."""
    refused = opened.page.evaluate("""async () => {
        const picture = document.querySelector(".qwen-image-2 .references img");
        return (await fetch(picture.src)).status;
    }""")
    assert refused in (400, 403, 404)
    before = set(server.output.rglob("*"))
    opened.page.evaluate("app.queuePrompt(0)")
    opened.page.wait_for_timeout(2000)
    assert set(server.output.rglob("*")) == before
    assert not list(server.folder.parent.glob("qwen-image-2-was-here*"))


def test_a_run_that_is_right_but_for_its_path_writes_nothing(own_page, server):
    """The file above is refused for its numbers already."""
    own_page.open("text_to_image")
    own_page.set("QwenImage2Loader", diffusion_model="miniature", text_encoder="miniature", vae="miniature")
    own_page.set("QwenImage2EmptyLatent", aspect_ratio="custom", width=128, height=128)
    own_page.set("QwenImage2Sampler", preset="Custom", steps=1)
    outside = "qwen-image-2-was-here"
    own_page.set("SaveImage", filename_prefix=f"../{outside}")
    before = set(server.output.rglob("*"))
    with pytest.raises(WorkflowError, match="outside the output folder"):
        own_page.run(timeout=120)
    assert set(server.output.rglob("*")) == before and not list(server.folder.glob(f"{outside}*"))
    own_page.set("SaveImage", filename_prefix=outside)
    own_page.run(timeout=120)
    assert list(server.output.glob(f"{outside}*"))  # where it looks, something is found
