"""What the brief nodes say before they run, in both renderers."""
import json
import re

import pytest

from .conftest import expect

POSTER, DECK = "QwenImage2PosterBrief", "QwenImage2DeckOutline"
EMPTY = dict.fromkeys(("title", "subtitle", "body", "call_to_action", "footer", "picture"), "")


@pytest.fixture
def meter(page):
    page.open("poster_brief")
    page.show(POSTER)
    panel = page.panel("token-meter")
    expect(panel.locator(".count")).to_have_text(re.compile(r"^\d+ of 1,000 tokens$"))
    return panel


def said_by_the_route(page, kind):
    """Of the values that stand on the node."""
    return page.page.evaluate("""async kind => {
        const node = app.graph.nodes.find(node => node.type === kind);
        const names = Object.keys(node.constructor.nodeData.input.required);
        const inputs = Object.fromEntries(names.map(name => [name, node.widgets.find(it => it.name === name).value]));
        return (await fetch("/qwen_image_2/brief", {method: "POST", headers: {"Content-Type": "application/json"},
            body: JSON.stringify({node: kind, inputs})})).json();
    }""", kind)


@pytest.mark.parametrize("workflow, kind", [
    ("poster_brief", POSTER), ("infographic", "QwenImage2InfographicBrief"), ("comic", "QwenImage2ComicBrief")])
def test_a_brief_shows_what_it_will_cost(page, workflow, kind):
    page.open(workflow)
    page.show(kind)
    answer, panel = said_by_the_route(page, kind), page.panel("token-meter")
    expect(panel.locator(".count")).to_have_text(f"{answer['tokens']} of 1,000 tokens")
    expect(panel.locator(".words li")).to_have_text(answer["quoted"])
    expect(panel.get_by_role("meter")).to_have_attribute("aria-valuenow", str(answer["tokens"]))
    expect(panel.locator(".notes li")).to_have_count(0)


def test_the_meter_is_what_the_run_says(page, meter):
    page.set(POSTER, aspect_ratio="custom", width=128, height=128)
    page.set("QwenImage2Sampler", preset="Custom", steps=1)
    counted = said_by_the_route(page, POSTER)["tokens"]
    expect(meter.locator(".count")).to_have_text(f"{counted} of 1,000 tokens")
    page.run(timeout=90)
    messages = page.page.locator(".qwen-image-2 .messages").filter(has_text="lines of text")
    expect(messages.first).to_contain_text(f"{counted} tokens, ")


def test_it_follows_every_widget(page, meter):
    """Typed, chosen, set by the size picker, and as a sentence where the node would refuse."""
    page.set(POSTER, **EMPTY)
    expect(meter.locator(".count")).to_have_text(re.compile("The poster brief is empty. Fill in at least one text"))
    box = page.prompt_box()
    box.fill("OPEN\nDAILY")
    expect(meter.locator(".words li")).to_have_text(["OPEN", "DAILY"])
    before = meter.locator(".count").inner_text()
    page.set(POSTER, style="watercolour" if page.value(POSTER, "style") != "watercolour" else "minimalist",
             transparent=True)
    expect(meter.locator(".count")).not_to_have_text(before)
    page.set(POSTER, picture='a 12" record')
    expect(meter.locator(".count")).to_have_text(re.compile("never closed"))
    page.set(POSTER, picture="", palette=",".join("abcdefghijk"))
    expect(meter.locator(".count")).to_have_text(re.compile("The palette has 11 colors; the maximum is"))


def test_it_says_what_will_be_left_out(page, meter):
    page.set(POSTER, body="The market opens at six. " * 250)
    expect(meter.locator(".notes li")).to_have_count(2)
    expect(meter.locator(".notes li").first).to_have_text(re.compile("Cut after a sentence .* the body text, "))
    page.set(POSTER, body="")
    expect(meter.locator(".notes li")).to_have_count(0)


def test_it_asks_once_for_many_keys_and_not_again(page, meter):
    with page.requests() as asked:
        page.type_fast("NIGHT MARKET")
        expect(meter.locator(".words li").first).to_have_text("NIGHT MARKET")
        assert sorted(asked) == ["brief", "layout"]
        page.page.evaluate("""() => {
            const node = app.graph.nodes.find(node => node.type === "SaveImage");
            node.pos = [node.pos[0] + 10, node.pos[1]];
            app.extensionManager.workflow.activeWorkflow.changeTracker.checkState?.();
        }""")
        page.page.wait_for_timeout(800)
    assert sorted(asked) == ["brief", "layout"]


def test_linked_values_are_counted_when_it_runs(page, meter):
    page.page.evaluate("""() => {
        const text = LiteGraph.createNode("PrimitiveStringMultiline");
        app.graph.add(text);
        const node = app.graph.nodes.find(node => node.type === "QwenImage2PosterBrief");
        text.connect(0, node, node.inputs.findIndex(input => input.name === "footer"));
    }""")
    expect(meter.locator(".count")).to_have_text("Known when it runs: Footer comes from another node")
    expect(meter.locator(".words li")).to_have_count(0)


def test_a_deck_counts_its_slides(page):
    page.open("slides_deck")
    page.show(DECK)
    answer, panel = said_by_the_route(page, DECK), page.panel("token-meter")
    slides = answer["slides"]["values"]["count"]
    expect(panel.locator(".count")).to_have_text(f"{slides} slides, the longest: {answer['tokens']} of 1,000 tokens")
    page.set(DECK, outline="## A\n## B\nPaper: A4")
    expect(panel.locator(".count")).to_have_text(
        re.compile(r"^Slide 2 \(B\) contains the unknown hint 'Paper'; known are"))


def test_markup_stays_text(page, meter):
    hostile = '<img src=x onerror="window.hacked=1">'
    page.set(POSTER, title=hostile)
    expect(meter.locator(".words li").first).to_have_text(hostile)
    page.set(POSTER, **EMPTY, palette=hostile)
    page.set(POSTER, title="A")
    expect(meter.locator(".count")).to_have_text(re.compile("without quotation marks"))
    assert page.page.evaluate("window.hacked") is None and meter.locator("img, script").count() == 0


def test_nothing_of_it_is_stored(page, meter):
    assert "qwen_image_2_" not in json.dumps(page.page.evaluate("app.graph.serialize()"))
