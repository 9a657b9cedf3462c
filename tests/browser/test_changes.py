"""A change of a large graph costs what it touches, not what there is."""
import pytest

CLASSES = ("QwenImage2EmptyLatent", "QwenImage2TextEncode", "QwenImage2EditEncode", "QwenImage2Sampler",
           "QwenImage2PosterBrief", "QwenImage2PromptEnhance")
COUNT = 60
# Nodes are asked for their widgets by whoever looks at them. Counted while ComfyUI tells of a change, and not while it
# saves the graph, which asks all of them.
BUILD = """async ([classes, count]) => {
    app.graph.clear();
    window.visited = null;
    const nodes = Array.from({ length: count }, (_, index) => LiteGraph.createNode(classes[index % classes.length]));
    for (const node of nodes) app.graph.add(node);
    const source = LiteGraph.createNode("LoadImage"), number = LiteGraph.createNode("PrimitiveInt");
    app.graph.add(source);
    app.graph.add(number);
    const edit = nodes.find(node => node.type === "QwenImage2EditEncode");
    source.connect(0, edit, edit.inputs.findIndex(input => input.name === "images.image_1"));
    for (const node of [...nodes, source]) {
        const widgets = node.widgets;
        Object.defineProperty(node, "widgets", { configurable: true, set() {}, get() {
            window.visited?.add(node.id);
            return widgets;
        } });
    }
    window.subject = { latent: nodes[0], edit, source, number };
    const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
    do { // it does not compare while the page is still opening a workflow
        await new Promise(done => setTimeout(done, 500));
        tracker.captureCanvasState();
    } while (tracker.activeState.nodes.length !== app.graph.nodes.length);
}"""
VISITED = """change => {
    new Function("latent", "edit", "source", "number", change)(...Object.values(window.subject));
    const dispatch = app.api.dispatchCustomEvent, visited = new Set();
    let told = 0;
    app.api.dispatchCustomEvent = function (name, ...detail) {
        window.visited = visited;
        told += name === "graphChanged";
        try { return dispatch.call(this, name, ...detail); } finally { window.visited = null; }
    };
    app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState();
    delete app.api.dispatchCustomEvent;
    return [told, [...visited].map(id => app.graph.getNodeById(id).type)];
}"""


@pytest.fixture
def visits(page):
    """A change, as JavaScript -> classes of the nodes that are looked at when ComfyUI tells of it."""
    page.open("text_to_image")
    page.page.evaluate(BUILD, [CLASSES, COUNT])

    def visited(change: str) -> list[str]:
        told, nodes = page.page.evaluate(VISITED, change)
        assert told == 1
        return nodes

    return visited


def test_a_change_visits_the_nodes_that_it_is_about(visits):
    latent = "QwenImage2EmptyLatent"
    size = "latent.widgets.find(widget => widget.name === 'size').value"
    assert visits(f"{size} = '1280'") == [latent]  # nobody else would say so: the widget's callback is not called
    assert visits("latent.pos = [900, 900]") == []
    slot = "latent.inputs.findIndex(input => input.name === 'width')"
    assert visits(f"number.connect(0, latent, {slot})") == [latent]
    assert visits("app.graph.remove(number)") == [latent]
    assert visits("app.graph.add(LiteGraph.createNode('PreviewImage'))") == []
    assert visits("source.title = 'The fox'") == ["LoadImage"]  # by the edit, whose reference bears that name
