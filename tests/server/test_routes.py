"""The extension's route on a live server: it counts what the node counts, and refuses everything else."""
import json
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from qwen_image_2.model.images import sizes
from qwen_image_2.tools.comfyui.server import DIRECT
from qwen_image_2.tools.pack import ROOT

PATH = "/qwen_image_2/prompt"
HOSTILE = ["<script>alert(1)</script>", "../../etc/passwd", "<|image_pad|>", "\x00", "{a|b}", "'; --", "%s%n", "(((((",
           "\u202e\u200b", "𓀀" * 500]


def api(name: str) -> dict[str, dict]:
    """Class -> inputs of a shipped workflow's nodes."""
    graph = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    return {entry["class_type"]: entry["inputs"] for entry in graph.values()}


def post(server, body, content_type="application/json", path=PATH):
    """(status, answer) of a request with these bytes, or this value as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": content_type})
    try:
        with DIRECT.open(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_counts_as_the_model_does(server, reference):
    for text in ('A poster that says "HELLO"', "海报上写着“开门”", "", " "):
        status, answer = post(server, {"text": text})
        expected = len(reference.processor.tokenizer(text)["input_ids"])
        assert (status, answer["tokens"], answer["limit"]) == (200, expected, 1000)


def test_names_the_quoted_words(server):
    text = 'A sign "OPEN" above “咖啡”, and once more "OPEN";\nand "" is nothing'
    assert post(server, {"text": text})[1]["quoted"] == ["OPEN", "咖啡"]


@pytest.mark.parametrize("body, status", [
    (b"", 400), (b"{", 400), (b"[" * 60000, 400), (b"\xff\xfe", 400), (b"null", 400), (b"[]", 400), (b'"text"', 400),
    (b"{}", 400), (b'{"text": 5}', 400), (b'{"text": null}', 400), (b'{"text": ["a"]}', 400),
    (b'{"text": "\\ud800"}', 400), (b'{"text": "' + b"a" * 70000 + b'"}', 413), (b" " * 10**7, 413)])
def test_refuses(server, body, status):
    """In one sentence of its own, without a path, a traceback or what was sent."""
    code, answer = post(server, body)
    assert code == status and set(answer) == {"error", "parts"}
    assert 5 < len(answer["error"]) < 100 and "/" not in answer["error"] and "Traceback" not in answer["error"]


def test_a_brief_is_measured_as_it_will_run(server, client):
    """The page sends what stands on the node; the node itself then says the same."""
    from qwen_image_2.tests.server.conftest import node
    inputs = api("poster_brief")["QwenImage2PosterBrief"]
    status, answer = post(server, {"node": "QwenImage2PosterBrief", "inputs": inputs}, path="/qwen_image_2/brief")
    said = client.run({"brief": node("QwenImage2PosterBrief", **inputs),
                       "seen": node("PreviewAny", source=["brief", 3])})
    assert status == 200 and said.outputs["seen"]["text"] == ["\n".join(answer["quoted"])]
    assert f"{answer['tokens']} tokens" in str(said.messages["brief"])


@pytest.mark.parametrize("asked, status", [
    ({}, 400), ({"node": "KSampler", "inputs": {}}, 400), ({"node": ["QwenImage2PosterBrief"], "inputs": {}}, 400),
    ({"node": "QwenImage2PosterBrief", "inputs": []}, 400), ({"node": "QwenImage2PosterBrief", "inputs": {}}, 400)])
def test_a_brief_that_is_none_is_refused(server, asked, status):
    code, answer = post(server, asked, path="/qwen_image_2/brief")
    assert code == status and set(answer) == {"error", "parts"} and "/" not in answer["error"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_takes_json_only(server, content_type):
    """Those three are what a page of another origin may send without asking."""
    assert post(server, {"text": "a"}, content_type)[0] == 415


@pytest.mark.parametrize("text", HOSTILE)
def test_reads_hostile_text_as_text(server, text):
    status, answer = post(server, {"text": text, "path": "/etc/passwd", "tokens": -1})
    assert status == 200 and answer["tokens"] > 0 and answer["quoted"] == []


def test_many_at_once_do_not_hold_up_the_server(server):
    text = 'A poster that says "HELLO". ' * 2000
    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(post, server, {"text": text[: 50000 + number]}) for number in range(32)]
        begin = time.monotonic()
        with DIRECT.open(server.url + "/system_stats", timeout=30):
            waited = time.monotonic() - begin
    counts = [answer.result() for answer in answers]
    assert {status for status, _ in counts} == {200}
    assert all(answer["quoted"] == ["HELLO"] for _, answer in counts)
    assert waited < 2


def test_has_no_get(server):
    with pytest.raises(urllib.error.HTTPError) as error:
        DIRECT.open(server.url + PATH, timeout=30)
    assert error.value.code in (404, 405)


def test_the_definitions_carry_every_size(client):
    """What the size picker shows is what the node makes."""
    schema = client.object_info("QwenImage2EmptyLatent")["QwenImage2EmptyLatent"]
    given = schema["input"]["required"]["aspect_ratio"][1]["qwen_image_2"]["sizes"]
    assert list(given["table"]) == list(sizes.RATIOS) and given["custom"] == "custom" and given["token_side"] == 16
    for name, entries in given["table"].items():
        assert {int(size): (entry["width"], entry["height"]) for size, entry in entries.items()} == {
            size: sizes.size_for(name, size) for size in sizes.CLASSES}
        assert [size for size, entry in entries.items() if entry["native"]] == ["1328", "2048"]
