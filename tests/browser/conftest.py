"""The real page of a real server in a real Chromium, in both of its renderers."""
import contextlib
import json
import os
from collections.abc import Iterator
from functools import cache
from urllib.parse import urlsplit

import pytest
from PIL import Image

from qwen_image_2.tools import tiny
from qwen_image_2.tools.comfyui import browser
from qwen_image_2.tools.comfyui.client import Client, Result
from qwen_image_2.tools.comfyui.server import Server
from qwen_image_2.tools.pack import ROOT

try:
    from playwright.sync_api import expect, sync_playwright
    expect.set_options(timeout=15_000)  # a loaded machine is slow, not wrong
except ImportError:
    expect = sync_playwright = None

# Another version of ComfyUI's page: the folder `static` of an unpacked front-end package.
FRONT_END = "COMFYUI_FRONT_END"
# Errors that ComfyUI's page has without any pack: on a new user's first visit, and when its overlay leaves twice.
OWN_ERRORS = ("/user.css", "/api/userdata", "ComfyApp graph accessed before initialization", "Proxy.removeMask")
# The overlay that the page shows while it opens a file: PrimeVue's waits for the end of an animation, and on a loaded
# machine one that was leaving when the next came stays for ever.
CALM = ".p-blockui-mask { animation: none !important; }"
LEFT_BEHIND = "document.querySelectorAll('.p-blockui-mask.p-overlay-mask-leave').forEach(mask => mask.remove())"
READY = "window.app && window.app.graph && window.app.canvas && window.app.extensionManager && window.app.vueAppReady"


@pytest.fixture(scope="package")
def chromium():
    """Until the last test of this folder: Playwright keeps an event loop running in this thread, beside which other
    tests could not start theirs."""
    if sync_playwright is None:
        _without("Playwright is not installed")
    with sync_playwright() as playwright:
        found = browser.launch(playwright)
        if found is None:
            _without("there is no Chromium (install your system's, or name one in CHROMIUM)")
        yield found
        found.close()


def _without(why: str) -> None:
    """A person may go on without these tests; where CI is set, nobody would read that they were left out."""
    leave = pytest.fail if os.environ.get("CI") else pytest.skip
    leave(f"The tests of the page, tests/browser, did not run: {why}.")


@pytest.fixture(scope="session")
def server(comfyui_path, tmp_path_factory):
    """Tiny weights under the official names, so that the page finds nothing missing, and the example picture."""
    folder = tmp_path_factory.mktemp("browser")
    tiny.write(folder / "models")
    tiny.write_1(folder / "models")
    (folder / "input").mkdir()
    example = Image.open(comfyui_path / "input" / "example.png").convert("RGB")
    example.save(folder / "input" / "example.png")
    example.putalpha(Image.new("L", example.size, 255))
    example.paste((0, 0, 0, 0), (200, 200, 400, 400))
    example.save(folder / "input" / "painted.png")  # as the mask editor leaves it
    settings = folder / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"Comfy.TutorialCompleted": True}), encoding="utf-8")  # else: a dialog, some time
    places = {name: folder / name for name in ("models", "input", "user")}
    other_page = ("--front-end-root", os.environ[FRONT_END]) if FRONT_END in os.environ else ()
    with Server(comfyui_path, **places, cpu=True, preview="latent2rgb", arguments=other_page) as server:
        yield server


def is_queued(answer) -> bool:
    """Whether this is what ComfyUI answers to Run. The token meter's route ends in /prompt too, and on a loaded machine
    its answer may come later than the click."""
    return answer.request.method == "POST" and urlsplit(answer.url).path == "/api/prompt"


class Page:
    """The page of one person: opens workflows, finds nodes, and keeps what the console said."""

    def __init__(self, page, server, renderer: str, theme: str = "dark"):
        self.page, self.vue, self.errors, self.client = page, renderer == "vue", [], Client(server.url)
        page.set_default_timeout(60_000)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(server.url)
        page.wait_for_function(READY, timeout=180_000)
        page.add_style_tag(content=CALM)
        page.evaluate("""async ([vue, theme]) => {
            await app.extensionManager.setting.set("Comfy.VueNodes.Enabled", vue);
            await app.extensionManager.setting.set("Comfy.ColorPalette", theme);
        }""", [self.vue, theme])

    def _on_console(self, message) -> None:
        text = f"{message.text} {message.location.get('url', '')}"
        if message.type == "error" and not any(known in text for known in OWN_ERRORS):
            self.errors.append(text)

    def drop(self, name: str, text: str) -> None:
        """Drop a file on the canvas, as a person does, and wait until its graph is there."""
        graph = json.loads(text)
        transfer = self.page.evaluate_handle("""([name, text]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([text], name, {type: "application/json"}));
            return transfer;
        }""", [name, text])
        before = self.page.evaluate_handle("app.graph.nodes[0]")
        self.page.dispatch_event("#graph-canvas", "drop", {"dataTransfer": transfer, "clientX": 400, "clientY": 400})
        self.page.wait_for_function("""([before, types]) => !app.graph.nodes.includes(before)
            && JSON.stringify(app.graph.nodes.map(node => node.type).sort()) === types""",
            arg=[before, json.dumps(sorted(node["type"] for node in graph["nodes"]), separators=(",", ":"))])
        self.page.wait_for_timeout(300)  # what the page does after a graph is there
        self.page.evaluate(LEFT_BEHIND)

    def open(self, name: str) -> None:
        self.drop(f"{name}.json", (ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))

    def open_template(self, name: str) -> None:
        """Choose a workflow among the pack's cards in the template browser, and wait until its graph is there."""
        before = self.page.evaluate_handle("app.graph.nodes[0]")
        self.page.evaluate(LEFT_BEHIND)
        self.page.get_by_role("button", name="Templates", exact=True).click()
        dialog = self.page.get_by_role("dialog").first
        dialog.get_by_role("button", name="qwen-image-2", exact=True).click()
        dialog.get_by_role("textbox").first.fill(name)  # only some of the cards are there before one scrolls
        self.page.wait_for_timeout(700)  # the search begins after the last key, and puts other cards there
        dialog.get_by_role("heading", level=3, name=name, exact=True).click()
        dialog.wait_for(state="hidden")
        self.page.wait_for_function("before => !app.graph.nodes.includes(before) && app.graph.nodes.length", arg=before)
        self.page.wait_for_timeout(300)  # what the page does after a graph is there
        self.page.evaluate(LEFT_BEHIND)

    def show(self, kind: str) -> None:
        """Bring the first node of a class into view at full size."""
        self.page.evaluate("""kind => {
            const node = app.graph.nodes.find(node => node.type === kind), ds = app.canvas.ds;
            ds.scale = 1;
            ds.offset = [-node.pos[0] + 150, -node.pos[1] + 120];
            app.canvas.setDirty(true, true);
        }""", kind)
        self.page.wait_for_timeout(300)

    def run(self, timeout: float) -> tuple[dict, Result]:
        """Press the page's own Run button; the prompt that it sent, and what came of it."""
        self.page.evaluate(LEFT_BEHIND)
        with self.page.expect_response(is_queued) as sent:
            self.page.get_by_role("button", name="Run", exact=True).first.click()
        prompt = sent.value.request.post_data_json["prompt"]
        return prompt, self.client.wait(sent.value.json()["prompt_id"], timeout)

    def finish(self) -> None:
        """Wait for the end of all runs: what the page hears of one goes to the nodes of the same ids in whatever
        workflow is open by then."""
        self.page.wait_for_function("""async () => {
            const queue = await (await app.api.fetchApi("/queue")).json();
            return !queue.queue_running.length && !queue.queue_pending.length && app.ui.lastQueueSize === 0;
        }""", polling=100, timeout=120_000)

    @contextlib.contextmanager
    def requests(self) -> Iterator[list[str]]:
        """The pack's routes that the page asks inside, by the last part of their paths; the list grows."""
        routes = []

        def note(request) -> None:
            folder, _, route = urlsplit(request.url).path.rpartition("/")
            if folder.endswith("/qwen_image_2"):
                routes.append(route)

        self.page.on("request", note)
        try:
            yield routes
        finally:
            self.page.remove_listener("request", note)

    def panel(self, name: str):
        """The pack's panel of a class, on whatever node is in view."""
        return self.page.locator(f".qwen-image-2 .{name} >> visible=true").first

    def value(self, kind: str, name: str):
        """A widget's value on the first node of a class."""
        return self.page.evaluate("""([kind, name]) => app.graph.nodes.find(node => node.type === kind)
            .widgets.find(widget => widget.name === name).value""", [kind, name])

    def set(self, kind: str, **values) -> None:
        """Set widgets of every node of a class, not by hand."""
        self.page.evaluate("""([kind, values]) => {
            for (const node of app.graph.nodes.filter(node => node.type === kind))
            for (const [name, value] of Object.entries(values)) {
                const widget = node.widgets.find(widget => widget.name === name);
                widget.value = value;
                widget.callback?.(value);
            }
        }""", [kind, values])

    def prompt_box(self):
        """The text box of the prompt, the first one on the shown node."""
        selector = "[data-testid=node-widget] textarea" if self.vue else "textarea.comfy-multiline-input"
        return self.page.locator(f"{selector} >> visible=true").first

    def type_fast(self, text: str) -> None:
        """Replace the prompt key by key, all keys within one task of the page: Playwright's own keys come one call
        each, on a loaded machine further apart than the meter's pause."""
        self.prompt_box().evaluate("""(box, text) => {
            for (let end = 0; end <= text.length; end++) {
                box.value = text.slice(0, end);
                box.dispatchEvent(new InputEvent("input", { bubbles: true }));
            }
        }""", text)

    def exported(self) -> dict:
        """The prompt as the page would queue it: node id -> class and inputs."""
        graph = self.page.evaluate("async () => (await app.graphToPrompt()).output")
        return {key: {"class_type": node["class_type"], "inputs": node["inputs"]} for key, node in graph.items()}


@pytest.fixture(scope="package")
def pages(chromium, server):
    """One page for all tests of a renderer: loading it takes longer than most of them."""
    return cache(lambda renderer: Page(chromium.new_page(viewport={"width": 1900, "height": 1200}), server, renderer))


@pytest.fixture(params=["classic", "vue"])
def page(pages, request):
    """That page; a test fails on any console error during it."""
    page = pages(request.param)
    page.errors.clear()
    yield page
    page.finish()
    assert page.errors == []


@pytest.fixture(scope="package")
def chinese(chromium, server):
    """A page whose language is Chinese, by ComfyUI's setting as it was when the page was loaded."""
    tab = chromium.new_page()
    tab.request.post(f"{server.url}/api/settings/Comfy.Locale", data=json.dumps("zh"))
    page = Page(tab, server, "classic")
    tab.request.post(f"{server.url}/api/settings/Comfy.Locale", data=json.dumps("en"))
    yield page
    tab.close()
