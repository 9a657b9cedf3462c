"""Load LoRA's rows grow as files are chosen, in both renderers; what is hidden keeps its value."""
import pytest

from qwen_image_2.tools import tiny

KIND = "QwenImage2LoadLoRA"
NAMES = [f"{part}_{row}" for row in range(2, 9) for part in ("lora", "strength", "on")]


@pytest.fixture
def node(page):
    page.open("text_to_image_lora")
    page.show(KIND)
    return page


def shown(page) -> list[str]:
    """The further rows' widgets that a person sees, from the first one on."""
    if not page.vue:
        return page.page.evaluate("""([kind, names]) => {
            const node = app.graph.nodes.find(node => node.type === kind);
            return node.widgets.filter(widget => names.includes(widget.name) && node.isWidgetVisible(widget))
                .map(widget => widget.name);
        }""", [KIND, NAMES])
    labels = page.page.locator(f"[data-node-id='{number(page)}'] [data-testid=node-widget]").all()
    texts = " | ".join(label.inner_text() for label in labels if label.is_visible())
    titles = {"lora": "LoRA", "strength": "Strength", "on": "On"}
    return [name for name in NAMES for part, row in [name.split("_")] if f"{titles[part]} {row}" in texts]


def number(page) -> int:
    return page.page.evaluate("kind => app.graph.nodes.find(node => node.type === kind).id", KIND)


def settled(page, expected: list[str]) -> None:
    for _ in range(40):
        if shown(page) == expected:
            return
        page.page.wait_for_timeout(100)
    assert shown(page) == expected


def test_a_row_opens_the_next(node):
    settled(node, ["lora_2"])
    node.set(KIND, lora_2=tiny.PRUNA)
    settled(node, ["lora_2", "strength_2", "on_2", "lora_3"])
    node.set(KIND, lora_3=tiny.PRUNA, strength_3=0.5, on_3=False)
    settled(node, ["lora_2", "strength_2", "on_2", "lora_3", "strength_3", "on_3", "lora_4"])
    node.set(KIND, lora_2="none")  # the row below is still in use, and seen
    settled(node, ["lora_2", "lora_3", "strength_3", "on_3", "lora_4"])
    sent = next(one["inputs"] for one in node.exported().values() if one["class_type"] == KIND)
    assert (sent["lora_2"], sent["lora_3"], sent["strength_3"], sent["on_3"]) == ("none", tiny.PRUNA, 0.5, False)
    node.set(KIND, lora_3="none")
    settled(node, ["lora_2"])


def test_a_saved_workflow_opens_with_its_rows(node):
    node.set(KIND, lora_2=tiny.PRUNA, strength_2=0.25)
    settled(node, ["lora_2", "strength_2", "on_2", "lora_3"])
    saved = node.page.evaluate("JSON.stringify(app.graph.serialize())")
    node.open("text_to_image")
    node.drop("saved.json", saved)
    node.show(KIND)
    settled(node, ["lora_2", "strength_2", "on_2", "lora_3"])
    assert (node.value(KIND, "lora_2"), node.value(KIND, "strength_2")) == (tiny.PRUNA, 0.25)
