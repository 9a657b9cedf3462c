"""Why a node did not run: on the node, in the page's language."""
import json
import re

from playwright.sync_api import expect

from qwen_image_2.tests.browser.conftest import ROOT, Page

SAMPLER, TEXT, LATENT = "QwenImage2Sampler", "QwenImage2TextEncode", "QwenImage2EmptyLatent"
REFUSAL = ".qwen-image-2 .refusal >> visible=true"
# Recognizes an English text as the pack's own, and says it in the page's language.
TRANSLATED = """async ([texts, part]) => {
    const style = document.querySelector("link[href$='style.css'][href*='qwen-image-2']");
    const { translated } = await import(new URL("words.js", style.href));
    return texts.map(text => translated(text, part));
}"""
WITHOUT_NEGATIVE = """() => {
    const sampler = app.graph.nodes.find(node => node.type === "QwenImage2Sampler");
    sampler.disconnectInput(sampler.inputs.findIndex(input => input.name === "negative"));
}"""


def catalogue(language: str) -> dict[str, dict[str, str]]:
    return json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))["qwen_image_2"]


def queue(page: Page) -> None:
    page.page.evaluate("app.queuePrompt(0)")


def test_a_check_before_the_run_and_an_error_in_it(page):
    page.open("text_to_image")
    page.set(SAMPLER, cfg=3, preset="Custom", steps=1)
    page.page.evaluate(WITHOUT_NEGATIVE)
    page.show(SAMPLER)
    queue(page)
    refusal = page.page.locator(REFUSAL)
    expect(refusal).to_have_text("CFG is 3.0, but no negative prompt is connected. Connect one, or set CFG to 1.")
    page.set(SAMPLER, cfg=1)
    page.set(LATENT, aspect_ratio="custom", width=64, height=64)
    page.set(TEXT, prompt="A <|image_pad|> fox.")
    page.show(TEXT)
    queue(page)
    expect(refusal).to_contain_text("The prompt contains the token <|image_pad|>, which is reserved for reference "
                                    "images. Remove it.", timeout=60_000)
    page.set(TEXT, prompt="A fox.")
    queue(page)
    expect(refusal).to_have_count(0)
    page.errors.clear()  # ComfyUI's page writes what it could not queue to the console


def test_what_others_raise_is_left_to_the_page(page):
    page.open("text_to_image")
    page.page.evaluate("""() => app.api.dispatchCustomEvent("execution_error", {
        node_id: String(app.graph.nodes[0].id), exception_message: "list index out of range\\n",
        exception_type: "IndexError", traceback: [] })""")
    page.page.wait_for_timeout(300)
    expect(page.page.locator(REFUSAL)).to_have_count(0)


def test_an_error_is_not_shown_on_another_workflow_s_node(page):
    """Whose node has the same id and class: the shipped ones are numbered alike."""
    page.open("text_to_image")
    page.set(LATENT, aspect_ratio="custom", width=64, height=64)
    page.set(SAMPLER, preset="Custom", steps=1)
    page.set(TEXT, prompt="A <|image_pad|> fox.")
    page.page.evaluate("""() => {
        window.failed = new Promise(done => app.api.addEventListener("execution_error", done, { once: true }));
        window.queued = app.queuePrompt(0);
    }""")
    page.page.evaluate("queued")
    page.open("text_to_image_turbo")
    page.page.evaluate("failed")
    page.page.wait_for_timeout(300)
    assert page.page.evaluate("""app.graph.nodes.filter(node =>
        node.widgets?.some(widget => widget.name === "qwen_image_2_refusal")).length""") == 0
    page.errors.clear()


def test_every_refusal_is_found_again_and_said_in_chinese(chinese):
    english, own = catalogue("en")["messages"], catalogue("zh")["messages"]
    whole = [key for key in english if english[key].endswith((".", ": {error}"))]
    parts = [key for key in english if key not in whole and len(re.findall("[a-z]", fixed(english[key]), re.I)) >= 4]
    assert len(whole) > 200 and len(parts) > 100
    for keys, part in ((whole, False), (parts, True)):
        said = chinese.page.evaluate(TRANSLATED, [[fill(english[key]) for key in keys], part])
        assert said == [fill(own[key]) for key in keys]
    nested = ("x.gguf is a LoRA (load it with a LoRA loader, after this node), not a text encoder for Qwen-Image 2: "
              "choose Qwen3-VL-8B-Instruct, for example qwen3vl_8b_bf16.safetensors.",
              "Slide 2 (Growth and risk) cannot be drawn: The title opens a quotation mark that is never closed. "
              'Words in double quotes are drawn: close it (and write inch, not ").')
    one, other = chinese.page.evaluate(TRANSLATED, [nested, False])
    assert one == ("x.gguf 是LoRA（请在本加载器之后用 LoRA 加载器加载），不是 Qwen-Image 2 的文本编码器：请选择 "
                   "Qwen3-VL-8B-Instruct，例如 qwen3vl_8b_bf16.safetensors。")
    assert other.startswith("第 2 页（Growth and risk）无法写成提示词：标题中有一个引号没有闭合：")
    others = ["CUDA error: out of memory", "salt and pepper", "a" * 3000, "title", "3 pages", "its version is 4"]
    assert chinese.page.evaluate(TRANSLATED, [others, False]) == [None] * len(others)
    chinese.open("text_to_image")
    chinese.set(SAMPLER, cfg=3)
    chinese.page.evaluate(WITHOUT_NEGATIVE)
    chinese.show(SAMPLER)
    queue(chinese)
    expect(chinese.page.locator(REFUSAL)).to_contain_text("但没有连接负面提示词：请连接，或将 cfg 设为 1。")


def test_a_text_that_fits_a_template_almost_takes_no_time(chinese):
    """It may be a stranger's: a regular expression tries every way to share it out between the holes."""
    almost = "Width and height must be multiples of " + " between x and x, got x x x. The nearest size is x x " * 40
    assert chinese.page.evaluate(f"async values => {{ const since = performance.now(); await ({TRANSLATED})(values);"
                                 " return performance.now() - since; }", [[almost], False]) < 1000


def test_what_comfyui_adds_to_an_error_is_left_out(chinese):
    chinese.open("text_to_image")
    chinese.page.evaluate("""() => app.api.dispatchCustomEvent("execution_error", {
        node_id: String(app.graph.nodes.find(node => node.type === "SaveImage").id), traceback: [],
        exception_message: "Out of memory, even with the KV cache out of VRAM: "
            + "use a smaller image, a smaller batch or fewer references.\\nThis error means you ran out of memory "
            + "on your GPU.\\n\\nTIPS: If the workflow worked before you might have accidentally set the batch_size "
            + "to a large number.", exception_type: "torch.OutOfMemoryError" })""")
    chinese.show("SaveImage")
    expect(chinese.page.locator(REFUSAL)).to_have_text(
        "显存不足，即使 KV 缓存已移出显存：请选择更小的图像、更小的批次或更少的参考图。")


def test_added_lines_are_found_in_time_in_proportion_to_the_text(page):
    """Of many empty lines without one, a pattern over the whole text took the square of their number."""
    page.open("text_to_image")
    sentence = "No images to pick from."
    spent = [page.page.evaluate("""message => {
        const node_id = String(app.graph.nodes.find(node => node.type === "SaveImage").id), since = performance.now();
        app.api.dispatchCustomEvent("execution_error", {
            node_id, exception_message: message, exception_type: "ValueError", traceback: [] });
        return performance.now() - since;
    }""", sentence + "\n" * 200_000 + end) for end in ("   TIPS: choose a smaller batch.", "no tip")]
    page.show("SaveImage")
    expect(page.page.locator(REFUSAL)).to_have_text(sentence)
    assert max(spent) < 2000


def test_a_brief_says_in_chinese_what_it_refuses(chinese):
    chinese.open("poster_brief")
    chinese.set("QwenImage2PosterBrief", picture='A fox that says "hello')
    chinese.show("QwenImage2PosterBrief")
    expect(chinese.panel("token-meter").locator(".count")).to_have_text(
        "画面中有一个引号没有闭合：双引号中的文字会被画出，请将其闭合（英寸请写 inch，不要写 \"）。")


def fixed(template: str) -> str:
    return re.sub(r"\{\w+\}", "", template)


def fill(template: str) -> str:
    """Every hole with something of its own that is no word of the pack."""
    return re.sub(r"\{(\w+)\}", r"«\1» 1,024 x.safetensors", template)
