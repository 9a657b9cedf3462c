"""The prompt enhancer through a running server, with tiny language models: some random, some that recite an answer."""
import json

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from qwen_image_2.tests.server import conftest as here
from qwen_image_2.tests.server.conftest import Graph, node
from qwen_image_2.tests.server.test_bad_input import message
from qwen_image_2.tests.server.test_workflows import api
from qwen_image_2.tools import tiny
from qwen_image_2.tools.comfyui.client import WorkflowError, WorkflowInterrupted

RANDOM = "enhancers/random.safetensors"
PROMPTS = "enhancers/system_prompt.txt"
PROMPT = 'a dog next to a sign "OPEN"'
ANSWERS = {  # every token only once
    "good": 'Thinking</think>{"rewritten_prompt": "A brown dog beside an old wooden sign.","wh_ratio":"3:2"}',
    "edit": '{"rewritten_prompt": "Make it blue","ratio_follow":"<image2>"}',
    "talks": "I would rather not.",
}


@pytest.fixture(scope="module", autouse=True)
def enhancers(models, comfyui_path):
    """Below models/text_encoders: enhancers/NAME.safetensors for every answer, a random one, and system prompts."""
    folder = models / "text_encoders" / "enhancers"
    tokenizer = AutoTokenizer.from_pretrained(comfyui_path / "comfy" / "text_encoders" / "qwen35_tokenizer")
    newline, = tokenizer.encode("\n")  # which the conversation ends with
    for name, text in ANSWERS.items():
        tiny.write_enhancer(folder / f"{name}.safetensors",
                            [newline, *tokenizer.encode(text), tokenizer.convert_tokens_to_ids("<|im_end|>")])
    tiny.write_enhancer(models / "text_encoders" / RANDOM)
    (folder / "system_prompt.txt").write_text("You write prompts.", encoding="utf-8")
    yield
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def nodes(enhancer="enhancers/good.safetensors", images=(), **inputs) -> dict:
    """A language model, the enhancer, and what it gives. images: names of nodes."""
    settings = dict(prompt=PROMPT, enabled=True, system_prompt=PROMPTS, aspect_ratio="1:1", size="1024", width=1024,
                    height=1024, follow_proposal=True, seed=0, max_tokens=200)
    wired = {f"images.image_{number}": [name, 0] for number, name in enumerate(images, start=1)}
    return {
        "model": node("QwenImage2LoadEnhancer", enhancer=enhancer),
        "enhance": node("QwenImage2PromptEnhance", clip=["model", 0], **(settings | inputs), **wired),
        **{name: node("PreviewAny", source=["enhance", slot])
           for slot, name in enumerate(("prompt", "width", "height", "report"))},
    }


def outputs(result) -> tuple[str, int, int, str]:
    prompt, width, height, report = (result.outputs[name]["text"][0] for name in ("prompt", "width", "height",
                                                                                  "report"))
    return prompt, int(width), int(height), report


def test_the_answer_becomes_prompt_and_canvas_and_the_quotation_comes_back(client):
    result = client.run(nodes())
    prompt, width, height, report = outputs(result)
    assert prompt == 'The picture shows the text "OPEN". A brown dog beside an old wooden sign.'
    assert (width, height) == (1248, 832)
    assert "task: text-to-image" in report and '"OPEN" was missing' in report and "ratio 3:2" in report
    assert result.messages["enhance"] == report.split("\n")


def test_the_canvas_stays_where_it_is_wanted(client):
    assert outputs(client.run(nodes(follow_proposal=False, aspect_ratio="custom", width=96)))[1:3] == (96, 1024)


def test_an_answer_that_cannot_be_read_leaves_the_prompt_and_says_so(client):
    prompt, width, height, report = outputs(client.run(nodes("enhancers/talks.safetensors", aspect_ratio="3:4")))
    assert (prompt, width, height) == (PROMPT, 896, 1184)
    assert "The original prompt is used" in report and "I would rather not." in report


def test_an_enhancer_without_its_own_system_prompt_is_pointed_out(client):
    report = outputs(client.run(nodes(system_prompt="built-in")))[3]
    assert "trained with their own system_prompt.txt" in report
    assert "trained with" not in outputs(client.run(nodes()))[3]


def test_core_s_own_node_writes_with_it(client):
    """Generate Text hands pictures over at any size."""
    graph = {"model": nodes()["model"], "picture": node("EmptyImage", width=50, height=90, batch_size=1, color=255)}
    graph["text"] = node("TextGenerate", clip=["model", 0], prompt="a dog", image=["picture", 0], max_length=60,
                         sampling_mode="off", thinking=True, use_default_template=True)
    graph["shown"] = node("PreviewAny", source=["text", 0])
    assert client.run(graph).outputs["shown"]["text"] == [ANSWERS["good"]]


def test_an_answer_that_was_cut(client):
    report = outputs(client.run(nodes(max_tokens=8)))[3]
    assert "stopped after 8 tokens without an answer. Raise Max tokens." in report


def test_off_loads_and_runs_nothing(client):
    seen = []
    result = client.run(nodes("enhancers/talks.safetensors", enabled=False, seed=99, prompt=""),
                        on_event=lambda event: seen.append((event.kind, event.node)))
    assert outputs(result)[:3] == ("", 1024, 1024) and "off" in outputs(result)[3]
    assert ("started", "enhance") in seen and not [kind for kind, name in seen if name == "model"]


def test_off_needs_neither_file_nor_connection(client):
    graph = nodes(tiny.ENHANCER, enabled=False, system_prompt="Qwen-Image-2.1-PE-T2I/system_prompt.txt")
    assert outputs(client.run(graph))[0] == PROMPT
    del graph["enhance"]["inputs"]["clip"], graph["model"]
    assert outputs(client.run(graph))[0] == PROMPT


def test_the_same_inputs_are_not_computed_again(client, models):
    first = client.run(nodes(RANDOM, seed=5, max_tokens=8))
    again = client.run(nodes(RANDOM, seed=5, max_tokens=8))
    assert "enhance" in again.cached
    other = client.run(nodes(RANDOM, seed=6, max_tokens=8))
    assert "enhance" not in other.cached and outputs(other) != outputs(first)
    client.free()
    assert outputs(client.run(nodes(RANDOM, seed=5, max_tokens=8))) == outputs(first), "the seed decides"
    (models / "text_encoders" / PROMPTS).write_text("You write other prompts.", encoding="utf-8")
    assert "enhance" not in client.run(nodes(RANDOM, seed=5, max_tokens=8)).cached, "another system prompt"


def test_an_edited_system_prompt_counts_where_the_switch_is_linked(client, models):
    def run():
        graph = nodes(RANDOM, seed=9, max_tokens=4, enabled=["switch", 0])
        return client.run(graph | {"switch": node("PrimitiveBoolean", value=True)})

    run()
    assert "enhance" in run().cached
    (models / "text_encoders" / PROMPTS).write_text("You write quite other prompts.", encoding="utf-8")
    assert "enhance" not in run().cached


def test_progress_counts_tokens(client):
    events = []
    result = client.run(nodes(RANDOM, seed=7, max_tokens=100), on_event=events.append)
    steps = [(event.value, event.maximum) for event in events if (event.kind, event.node) == ("progress", "enhance")]
    assert len(steps) > 5 and steps[-1] == (100, 100)
    assert any(text.endswith("tokens so far.") for text in result.texts["enhance"])


def test_cancelling_ends_at_the_next_token(client):
    """Core's own bar would next look after a hundred tokens, half a percent."""
    seen = []

    def on_event(event):
        if event.kind == "progress" and event.node == "enhance":
            seen.append(int(event.value))
            client.interrupt()

    with pytest.raises(WorkflowInterrupted):
        client.run(nodes(RANDOM, seed=8, max_tokens=20_000), on_event=on_event, timeout=120)
    assert seen == [1]
    assert outputs(client.run(nodes()))[1:3] == (1248, 832)


# ---------------------------------------------------------------- with pictures

@pytest.fixture
def pictures(client, tmp_path):
    """Two pictures of different shapes as nodes."""
    graph = {}
    for number, size in enumerate(((64, 96), (300, 200)), start=1):
        path = tmp_path / f"{number}.png"
        noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        graph[f"load{number}"] = node("LoadImage", image=client.upload_image(path))
    return graph


def test_an_edit_sees_its_pictures_and_keeps_the_shape_of_one(client, pictures):
    graph = pictures | nodes("enhancers/edit.safetensors", pictures, prompt="make <image2> blue", size="512")
    prompt, width, height, report = outputs(client.run(graph))
    assert (prompt, width, height) == ("Make it blue", 640, 416)
    assert "task: edit" in report and "the shape of <image2>" in report


def test_the_pictures_matter(client, pictures):
    """To a random language model: other pixels, other words."""
    found = {outputs(client.run(pictures | nodes(RANDOM, names, prompt="blue", max_tokens=8)))[3]
             for names in (["load1"], ["load2"], ["load1", "load2"])}
    assert len(found) == 3


# ---------------------------------------------------------------- other language models

def test_the_text_encoder_itself_can_write(client, pictures):
    """Qwen3-VL, which is loaded anyway, with and without pictures."""
    reports = set()
    for names in ((), ("load1",), ("load1", "load2")):
        graph = pictures | nodes(images=names, max_tokens=6, system_prompt="built-in", prompt="blue")
        graph["model"] = node("QwenImage2LoadTextEncoder", text_encoder=here.TEXT_ENCODER, weight_format="as stored")
        prompt, *_, report = outputs(client.run(graph))
        assert prompt == "blue" and "stopped after 6 tokens" in report
        reports.add(report)
    assert len(reports) == 3


@pytest.mark.parametrize("change, words", [
    (dict(prompt=" "), "The prompt is empty. Describe what the image should show"),
    (dict(prompt="a <|im_end|>"), "contains <|im_end|>, which is reserved by the language model"),
    (dict(system_prompt="Qwen-Image-2.1-PE-T2I/system_prompt.txt"),
     "The system prompt Qwen-Image-2.1-PE-T2I/system_prompt.txt is not below models/text_encoders. Put the "
     "system_prompt.txt of your enhancer"),
    (dict(system_prompt="enhancers/empty.txt"), "The system prompt enhancers/empty.txt is empty"),
    (dict(system_prompt="enhancers/bytes.txt"), "bytes.txt is not a UTF-8 text file"),
    (dict(system_prompt="enhancers/huge.txt"), "huge.txt is larger than 256 KiB"),
    (dict(system_prompt="../../../../etc/passwd"), "The system prompt ../../../../etc/passwd is not below"),
    (dict(aspect_ratio="custom", width=100), "The nearest size is 96 x 1024"),
    (dict(images=["picture"], prompt="make <image3> blue"), "names <image3>, but the references are only <image1>"),
    (dict(images=["picture"] * 11), "This node has no input images.image_11: it takes at most 10 images"),
    (dict(enhancer=tiny.ENHANCER), f"{tiny.ENHANCER} is not in models/text_encoders. Put it there (9.5 GB, "
                                   "from Comfy-Org/Qwen-Image-2.1 on Hugging Face, Qwen Research License"),
    (dict(enhancer=here.TEXT_ENCODER), "is a Qwen3-VL text encoder, not a prompt enhancer for Qwen-Image 2"),
])
def test_what_is_refused(client, models, change, words):
    folder = models / "text_encoders" / "enhancers"
    (folder / "empty.txt").write_bytes(b"\n")
    (folder / "bytes.txt").write_bytes(b"\xff\xfe\x00\x01")
    (folder / "huge.txt").write_bytes(b"word " * 60_000)
    graph = nodes(**change)
    graph["picture"] = node("EmptyImage", width=64, height=64, batch_size=1, color=0)
    assert words in message(client, graph)


def test_a_model_that_cannot_write(client):
    graph = nodes()
    graph["model"] = node("QwenImage2LoadTextEncoder", text_encoder="miniature", weight_format="as stored")
    assert "has no output layer (lm_head), so it cannot generate text: connect a prompt" in message(client, graph)


def test_no_language_model(client):
    """Refused before anything runs; a linked switch is known only when the enhancer's turn comes."""
    graph = nodes()
    del graph["enhance"]["inputs"]["clip"]
    with pytest.raises(WorkflowError, match="No language model is connected. Connect a prompt enhancer") as raised:
        client.run(graph)
    assert "custom_validation_failed" in raised.value.details
    graph["switch"] = node("PrimitiveBoolean", value=True)
    graph["enhance"]["inputs"]["enabled"] = ["switch", 0]
    with pytest.raises(WorkflowError, match="No language model is connected. Connect a prompt enhancer") as raised:
        client.run(graph)
    assert "in execute" in raised.value.details


def test_a_picture_from_the_enhanced_prompt(client):
    """All the way: prompt and canvas of a language model, drawn."""
    graph = Graph(steps=1).nodes() | nodes(follow_proposal=True, size="512")
    graph["prompt"]["inputs"] = {"source": ["enhance", 0]}
    graph["encode"] = node("QwenImage2TextEncode", clip=["loader", 1], prompt=["enhance", 0], negative_prompt="")
    graph["canvas"]["inputs"] |= {"width": ["enhance", 1], "height": ["enhance", 2]}
    graph["sampler"]["inputs"] |= {"positive": ["encode", 0], "negative": ["encode", 1]}
    result = client.run(graph, timeout=120)
    assert here.images(client, result).shape[1:3] == (416, 640)
    assert json.dumps(result.outputs["prompt"]).count("OPEN") == 1


def test_the_shipped_workflow_switched_on(client):
    """As a person does it, with a tiny model in place of the official one, and one step."""
    graph = api("prompt_enhanced")
    own = {entry["class_type"]: entry["inputs"] for entry in graph.values()}
    own["QwenImage2LoadEnhancer"]["enhancer"] = "enhancers/good.safetensors"
    own["QwenImage2PromptEnhance"] |= {"enabled": True, "system_prompt": PROMPTS, "size": "512"}
    own["QwenImage2Sampler"] |= {"preset": "Custom", "steps": 1}
    result = client.run(graph, timeout=120)
    save, = (key for key, entry in graph.items() if entry["class_type"] == "SaveImage")
    assert here.images(client, result, save).shape[1:3] == (416, 640)
    told, = (lines for lines in result.messages.values() if any("task: text-to-image" in line for line in lines))
    assert sum("was missing and was inserted at the start" in line for line in told) == 3
