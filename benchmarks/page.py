"""What one change of a large graph costs the page: five hundred of the pack's nodes, with its extension and without.

    python tools/dev.py bench page [--nodes N] [--rounds N] [--renderer vue] [--save]

Two tabs of a real Chromium on a real server hold the same graph; in one of them the pack's scripts are not loaded, and
what remains is ComfyUI's own work. The tabs take turns. ComfyUI saves the graph after each edit, compares it with the
one before and tells those who listen. Timed are these listeners, and beside that the edit with them and with the page's
layout; saving and comparing, the same in both tabs, are left out. "opened" is the first change after a workflow was
opened, for which nothing is known yet.
"""
import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import report
from bootstrap import ROOT  # noqa: F401  # the pack becomes importable
from playwright.sync_api import sync_playwright
from timing import Comparison

from qwen_image_2.tools.comfyui import browser
from qwen_image_2.tools.comfyui.server import Server

GOAL = 10  # milliseconds
KINDS = ("widget", "link", "move", "add", "remove", "opened")
RENDERERS = ("classic", "vue")
OURS, CORE = "with the pack", "without"
PARTS = ("listeners", "edit, listeners and layout")
COLUMNS = ("timed", "change", OURS, CORE, "of the pack", "goal", "met")
READY = "window.app && window.app.graph && window.app.canvas && window.app.extensionManager && window.app.vueAppReady"
FIRST_VISIT = {"Comfy.TutorialCompleted": True}

# Every node class that the pack decorates, over and over, each with what it reads: prompts, choices, linked pictures.
BUILD = """async ([count, kinds]) => {
    await app.loadGraphData(); // a workflow is open, whatever the page begins with
    app.graph.clear();
    for (let index = 0; index < count; index++) {
        const node = LiteGraph.createNode(kinds[index % kinds.length]);
        node.pos = [(index % 25) * 500, Math.floor(index / 25) * 700];
        app.graph.add(node);
        const prompt = node.widgets?.find(widget => widget.name === "prompt");
        if (prompt) prompt.value = `A fox, number ${index}, that says "hello"`;
        const slot = node.inputs.findIndex(input => input.name === "images.image_1");
        if (slot < 0) continue;
        const source = LiteGraph.createNode("LoadImage");
        source.pos = [node.pos[0] - 250, node.pos[1]];
        app.graph.add(source);
        source.connect(0, node, slot);
    }
    const number = LiteGraph.createNode("PrimitiveInt");
    app.graph.add(number);
    window.subject = { sampler: app.graph.nodes.find(node => node.type === "QwenImage2EmptyLatent"), number };
    app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState();
}"""
CHANGE = """async kind => {
    const { sampler: node, number } = window.subject, graph = app.graph;
    const slot = node.inputs.findIndex(input => input.name === "width");
    const size = node.widgets.find(widget => widget.name === "size");
    if (kind === "opened") {
        await app.loadGraphData(graph.serialize());
        window.subject.sampler = app.graph.getNodeById(node.id);
        window.subject.number = app.graph.getNodeById(number.id);
        await new Promise(done => setTimeout(done, 1000));
    }
    const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
    const dispatch = app.api.dispatchCustomEvent;
    let heard = 0;
    app.api.dispatchCustomEvent = function (...event) {
        const since = performance.now();
        const result = dispatch.apply(this, event);
        heard += performance.now() - since;
        return result;
    };
    const since = performance.now();
    if (kind === "widget") {
        size.value = size.value === "1024" ? "1280" : "1024";
        size.callback?.(size.value);
    } else if (kind === "link") {
        if (node.inputs[slot].link == null) number.connect(0, node, slot);
        else node.disconnectInput(slot);
    } else if (kind === "move" || kind === "opened") {
        const moved = window.subject.sampler;
        moved.pos = [moved.pos[0] + 10, moved.pos[1]];
    } else if (kind === "add") {
        window.added = LiteGraph.createNode("QwenImage2EmptyLatent");
        graph.add(window.added);
    } else graph.remove(window.added);
    const saved = performance.now();
    tracker.captureCanvasState();
    const own = performance.now() - saved - heard;
    delete app.api.dispatchCustomEvent;
    await new Promise(done => queueMicrotask(() => queueMicrotask(done)));
    document.body.offsetHeight;
    return [heard, performance.now() - since - own];
}"""


@contextlib.contextmanager
def tabs(url: str) -> Iterator[dict]:
    """A tab with the pack's scripts and one without, each of them ready."""
    with sync_playwright() as playwright:
        chromium = browser.launch(playwright)
        if chromium is None:
            raise SystemExit("There is no Chromium: install your system's package, or name one in CHROMIUM.")
        found = {name: chromium.new_page(viewport={"width": 1900, "height": 1200}) for name in (OURS, CORE)}
        found[CORE].route("**/extensions/qwen-image-2/**", lambda route: route.abort())
        for tab in found.values():
            tab.set_default_timeout(180_000)
            tab.goto(url)
            tab.wait_for_function(READY)
            tab.request.post(f"{url}/api/settings", data=FIRST_VISIT)
        yield found
        chromium.close()


def decorated(tab, url: str) -> list[str]:
    """Classes of the pack whose definition asks the extension for something."""
    definitions = tab.request.get(f"{url}/api/object_info").json()
    def asks(definition: dict) -> bool:
        inputs = [entry for part in ("required", "optional") for entry in definition["input"].get(part, {}).values()]
        return any(len(entry) > 1 and "qwen_image_2" in entry[1] for entry in inputs)
    return sorted(name for name, definition in definitions.items() if asks(definition))


def measure(found: dict, kinds: Sequence[str], nodes: int, rounds: int) -> list[Comparison]:
    """Milliseconds of each kind of change, one for each round; a round of warming up is left out."""
    for tab in found.values():
        tab.evaluate(BUILD, [nodes, kinds])
        tab.wait_for_timeout(3000)  # what 500 new nodes ask the server
    times = {kind: [] for kind in KINDS}
    for _ in range(rounds + 1):
        for kind in KINDS:
            times[kind].append([found[name].evaluate(CHANGE, kind) for name in (OURS, CORE)])
    return [Comparison(f"{part}: {kind}", OURS, CORE, unit="ms",
                       values=tuple((ours[index], core[index]) for ours, core in times[kind][1:]))
            for index, part in enumerate(PARTS) for kind in KINDS]


def row(one: Comparison) -> tuple[str, ...]:
    part, kind = one.what.split(": ")
    ours, core = one.medians
    goal = (f"at most {GOAL} ms", "yes" if ours <= GOAL else "NO") if part == PARTS[0] else ("", "")
    return (part, kind, f"{ours:.1f} ms", f"{core:.1f} ms", f"{ours - core:.1f} ms", *goal)


def main() -> None:
    parser = report.parser("page", __doc__)
    parser.add_argument("--nodes", type=int, default=500, help="the pack's nodes on the page (%(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="changes of each kind (%(default)s)")
    parser.add_argument("--renderer", choices=RENDERERS, default="classic")
    chosen = parser.parse_args()
    host = report.host()
    with Server(Path(os.environ["COMFYUI_PATH"]), cpu=True) as server, tabs(server.url) as found:
        for tab in found.values():
            tab.evaluate("vue => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)",
                         chosen.renderer == "vue")
        kinds = decorated(found[OURS], server.url)
        comparisons = measure(found, kinds, chosen.nodes, chosen.rounds)
    text = report.aligned([COLUMNS, *map(row, comparisons)])
    print(text)
    if chosen.save:
        settings = {"nodes": str(chosen.nodes), "renderer": chosen.renderer, "classes": ", ".join(kinds)}
        report.save("page", host, settings, comparisons)


if __name__ == "__main__":
    main()
