"""The routes: what they make of briefs and of hostile requests, and when something goes wrong behind them."""
import asyncio
import json
import time
from types import SimpleNamespace

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from .test_briefs import COMMON, OWN
from .test_decks import PAGE, TEN

DECK = PAGE | {"outline": TEN, "footer": "", "title_position": "top left", "picture_position": "right"}
BRIEFS = {name: own | COMMON for name, own in OWN.items()} | {"QwenImage2DeckOutline": DECK}
POSTER = BRIEFS["QwenImage2PosterBrief"]


@pytest.fixture
def routes(comfyui):
    from qwen_image_2.nodes import routes
    return routes


def send(routes, path, *bodies, query=None, **headers):
    """(status, answer) for each of these bodies, sent at once; or for a GET with this query."""
    async def session():
        app = web.Application()
        app.router.add_post(routes.PATH, routes.measure)
        app.router.add_post(routes.BRIEF_PATH, routes.measure_brief)
        app.router.add_post(routes.LAYOUT_PATH, routes.preview_layout)
        app.router.add_get(routes.PRESETS_PATH, routes.find_presets)
        app.router.add_post(routes.PRESETS_PATH, routes.save_preset)
        async with TestClient(TestServer(app)) as client:
            if query is not None:
                answer = await client.get(path, params=query)
                return [(answer.status, await answer.json())]
            sent = {"Content-Type": "application/json"} | headers
            answers = await asyncio.gather(*(client.post(path, data=body, headers=sent) for body in bodies))
            return [(answer.status, await answer.json()) for answer in answers]
    return asyncio.run(session())


def ask(routes, *texts):
    return send(routes, routes.PATH, *(json.dumps({"text": text}) for text in texts))


def brief(routes, node, **inputs):
    (status, answer), = send(routes, routes.BRIEF_PATH, json.dumps({"node": node, "inputs": inputs}))
    return status, answer


def test_an_error_says_nothing_of_this_machine(routes, monkeypatch, caplog):
    def fail(text):
        raise OSError(f"No such file: /home/me/{text}")
    monkeypatch.setattr(routes, "count_tokens", fail)
    (status, answer), = ask(routes, "secret")
    assert status == 500 and "/" not in answer["error"] and "secret" not in answer["error"]
    assert "/home/me/secret" in caplog.text  # but the log does


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_body_that_is_not_encoded_as_it_says_is_a_bad_request(routes, encoding):
    (status, answer), = send(routes, routes.PATH, b'{"text": "a"}', **{"Content-Encoding": encoding})
    assert (status, answer["error"]) == (400, "The request body does not match its Content-Encoding.")


def test_takes_a_bounded_time(routes, monkeypatch):
    monkeypatch.setattr(routes, "count_tokens", lambda text: time.sleep(0.3) or 1)
    monkeypatch.setattr(routes, "SECONDS", 0.5)
    begin = time.monotonic()
    answers = ask(routes, "a", "b", "c", "d")
    assert time.monotonic() - begin < 2
    assert sorted(status for status, _ in answers) == [200, 503, 503, 503]


def test_counts_one_at_a_time(routes, monkeypatch):
    running, most = [], []

    def count(text):
        running.append(text)
        most.append(len(running))
        time.sleep(0.05)
        running.remove(text)
        return 1
    monkeypatch.setattr(routes, "count_tokens", count)
    assert {status for status, _ in ask(routes, *"abcdef")} == {200}
    assert max(most) == 1


# ---------------------------------------------------------------- briefs

@pytest.mark.parametrize(("node", "inputs", "words"), [
    ("QwenImage2DeckOutline", {"outline": "# a" + " " * 60_000 + "x"}, "Line 1 of the outline has 60,004 characters"),
    ("QwenImage2DeckOutline", {"outline": "# a\n" * 100, "footer": "x " * 25_000}, "The footer has 50,000 characters"),
    ("QwenImage2PosterBrief", {"body": "." * 60_000 + "x"}, "The body has 60,001 characters"),
    ("QwenImage2ComicBrief", {"panels": "a" + " " * 60_000 + "x"}, "The text of panel 1 has 60,002 characters"),
])
def test_what_would_take_long_is_refused_and_the_next_is_answered(routes, node, inputs, words):
    """The page asks for it as soon as a stranger's workflow is opened, and one thread answers all."""
    status, answer = brief(routes, node, **BRIEFS[node] | inputs)
    assert status == 200 and words in answer["refused"] and len(answer["refused"]) <= 400
    assert ask(routes, "a poster")[0][0] == 200


def executed(monkeypatch, name, inputs):
    """The outputs of the node itself, and the messages that it shows."""
    from qwen_image_2.nodes import briefs, decks, routes
    said = []
    for module in (briefs, decks):
        monkeypatch.setattr(module, "notify", lambda node, *messages: said.extend(messages))
    return routes.BRIEFS[name].execute(**inputs).result, said


@pytest.mark.parametrize("name", BRIEFS)
def test_a_brief_is_measured_as_it_will_be_written(routes, monkeypatch, name):
    """Long enough to be shortened: tokens, texts and notes are those of the run."""
    long = "The market opens at six. " * 250
    inputs = BRIEFS[name] | {"outline": f"{TEN}Picture: {long}"} if "Deck" in name else BRIEFS[name] | {"picture": long}
    status, answer = brief(routes, name, **inputs)
    (prompt, _, _, texts, *_), said = executed(monkeypatch, name, inputs)
    prompts, texts = (prompt, texts) if isinstance(prompt, list) else ([prompt], [texts])
    assert status == 200 and answer["limit"] == 1000
    assert answer["tokens"] == max(routes.count_tokens(each) for each in prompts) <= 1000
    assert answer["quoted"] == list(dict.fromkeys("\n".join(texts).split("\n")))
    assert answer["notes"] == [routes.to_json(note) for note in said[1:]] != []
    assert (answer["slides"] or {}).get("values") == ({"count": 10} if "Deck" in name else None)


@pytest.mark.parametrize("name", BRIEFS)
def test_the_definition_names_the_inputs_that_are_measured(routes, name):
    info = routes.BRIEFS[name].GET_NODE_INFO_V1()["input"]["required"]
    marked = [options["qwen_image_2"]["measured"] for _, options in info.values()
              if "measured" in options.get("qwen_image_2", {})]
    assert len(marked) == 1 and marked[0] == list(info) and set(info) == set(BRIEFS[name])


@pytest.mark.parametrize("changes, sentence", [
    (dict.fromkeys(("title", "subtitle", "call_to_action"), ""), "brief is empty"),
    ({"picture": '12" record'}, "never closed"), ({"aspect_ratio": "custom", "width": 1001}, "multiples of 16"),
    ({"palette": ",".join("abcdefghijk")}, "11 colors"), ({"title": "a" * 30_000}, "exceeds 1,000 tokens")])
def test_answers_with_the_sentence_by_which_the_node_refuses(routes, changes, sentence):
    status, answer = brief(routes, "QwenImage2PosterBrief", **POSTER | changes)
    assert status == 200 and list(answer) == ["refused", "parts"] and sentence in answer["refused"]
    assert set(answer["parts"]) == {"key", "template", "values"}


def test_a_deck_names_its_slide(routes):
    answer = brief(routes, "QwenImage2DeckOutline", **DECK | {"outline": "## A\n## B\nPicture: 12\" disc"})[1]
    assert answer["refused"].startswith("Slide 2 (B) cannot be drawn: ") and "never closed" in answer["refused"]
    assert answer["parts"]["key"] == "slide_refused" and answer["parts"]["values"]["error"]["key"] == "quotation_open"
    # The canvas is no slide's fault.
    answer = brief(routes, "QwenImage2DeckOutline", **DECK | {"aspect_ratio": "custom", "width": 1001})[1]
    assert answer["refused"].startswith("Width and height must be multiples of 16")


@pytest.mark.parametrize("node", ["QwenImage2TextEncode", "QwenImage2SaveDeck", "SaveImage", "__class__", "", None, 5,
                                  ["QwenImage2PosterBrief"], {}])
def test_measures_briefs_only(routes, node):
    status, answer = brief(routes, node, **POSTER)
    assert status == 400 and "is a brief" in answer["error"]


@pytest.mark.parametrize("name, value", [
    ("columns", 10**30), ("columns", 0), ("columns", 2.0), ("columns", True), ("columns", "2"), ("columns", None),
    ("columns", float("nan")), ("width", float("inf")), ("title", float("nan")), ("title", None), ("title", ["a"]),
    ("title", {"text": "a"}), ("transparent", 1), ("kind", "brochure"), ("kind", ["poster"]), ("style", "__class__"),
    ("language", {}), ("aspect_ratio", "5:4"), ("size", 2048)])
def test_takes_what_the_schema_takes(routes, name, value):
    status, answer = brief(routes, "QwenImage2PosterBrief", **POSTER | {name: value})
    assert (status, answer["error"]) == (400, f"Invalid value for {name}.")


@pytest.mark.parametrize("body, status", [
    (b"", 400), (b"[]", 400), (b'{"node": "QwenImage2PosterBrief"}', 400), (b"[" * 60_000, 400), (b"\xff", 400),
    (b'{"node": "QwenImage2PosterBrief", "inputs": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001, 400),
    (b'{"node": "QwenImage2PosterBrief", "inputs": {}}', 400),
    (b'{"node": "QwenImage2PosterBrief", "inputs": {"columns": ' + b"9" * 5000 + b"}}", 400),
    (json.dumps({"node": "QwenImage2PosterBrief", "inputs": POSTER | {"paper": "A4"}}).encode(), 400),
    (json.dumps({"node": "QwenImage2PosterBrief", "inputs": POSTER | {"title": "\ud800"}}).encode(), 400),
    (json.dumps({"node": "QwenImage2PosterBrief", "inputs": POSTER | {"title": "a" * 70_000}}).encode(), 413)])
def test_refuses_what_is_no_request_for_a_brief(routes, body, status):
    (code, answer), = send(routes, routes.BRIEF_PATH, body)
    assert code == status and set(answer) == {"error", "parts"}
    assert 5 < len(answer["error"]) < 100 and "/" not in answer["error"] and "A4" not in answer["error"]


def test_a_long_deck_is_given_up_when_nobody_waits_any_more(routes, monkeypatch):
    """Or one request could keep the only thread for minutes."""
    counted = []
    monkeypatch.setattr(routes, "count_tokens", lambda text: counted.append(text) or time.sleep(0.05) or 1)
    monkeypatch.setattr(routes, "SECONDS", 0.3)
    status, answer = brief(routes, "QwenImage2DeckOutline", **DECK | {"outline": "## A\n" * 100})
    assert status == 503 and "too long" in answer["error"]
    seen = len(counted)
    time.sleep(0.3)
    assert len(counted) <= seen + 1 < 20


# ---------------------------------------------------------------- presets

LAYOUT = {"boxes": "[]", "font": "Noto Sans (built-in)", "picture": "white", "width": 1024, "height": 512,
          "language": "English"}


@pytest.fixture
def kept(routes, tmp_path, monkeypatch):
    """Where ComfyUI's own manager of users keeps the presets of the poster."""
    import folder_paths
    from app.user_manager import UserManager
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    manager = SimpleNamespace(user_manager=UserManager())
    monkeypatch.setattr(routes.PromptServer, "instance", manager, raising=False)
    return tmp_path / "default" / "qwen_image_2" / "presets" / "QwenImage2PosterBrief"


def save(routes, name, node="QwenImage2PosterBrief", **inputs):
    (status, answer), = send(routes, routes.PRESETS_PATH, json.dumps({"node": node, "name": name, "inputs": inputs}))
    return status, answer


def find(routes, **query):
    (_, answer), = send(routes, routes.PRESETS_PATH, query={"node": "QwenImage2PosterBrief"} | query)
    return answer


def test_presets_are_kept_for_each_class_of_nodes(routes, kept):
    assert find(routes) == {"names": []} and not kept.exists()
    for name, given in (("Night market", "Night market"), ("夜市 - 2", " 夜市 - 2 ")):
        assert save(routes, given, **POSTER) == (200, {"name": name})
    assert save(routes, "Wide", "QwenImage2Layout", **LAYOUT)[1] == {"name": "Wide"}
    assert find(routes)["names"] == ["Night market", "夜市 - 2"]
    assert find(routes, name="夜市 - 2") == {"inputs": POSTER, "notes": []}
    assert find(routes, node="QwenImage2Layout", name="Wide")["inputs"] == LAYOUT
    assert save(routes, "Half", title="A")[0] == 200  # what is linked on the page is left out
    assert find(routes, name="Half") == {"inputs": {"title": "A"}, "notes": []}


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "/etc/passwd", "..", "a.json", "", "  ", "x" * 51, "\u202ea",
                                  "a\nb", "NUL", "com1", "\ud800"])
def test_a_name_that_is_none_is_refused(routes, kept, name):
    for answer in (save(routes, name, **POSTER)[1], find(routes, name=name) if name.isprintable() else {"refused": ""}):
        assert "refused" in answer and len(answer["refused"]) < 150
    assert not kept.exists()


def test_nothing_is_overwritten(routes, kept):
    save(routes, "Market", **POSTER)
    before = (kept / "Market.json").read_bytes()
    for name in ("Market", "MARKET "):
        answer = save(routes, name, **POSTER | {"title": "Other"})[1]
        assert "already, and nothing was written" in answer["refused"]
    assert [(path.name, path.read_bytes()) for path in kept.iterdir()] == [("Market.json", before)]


def test_what_a_file_holds_is_checked(routes, kept):
    """Somebody may have written it by hand, or another version of the pack."""
    kept.mkdir(parents=True)
    (kept / "old.json").write_text(json.dumps({"title": "A", "columns": 99, "paper": "A4", "style": ["x"]}))
    answer = find(routes, name="old")
    assert answer["inputs"] == {"title": "A"} and "columns, paper, style" in str(answer["notes"]).replace("'", "")
    for content in (b"[1]", b"{", b"[" * 60_000, b'{"title": "' + b"a" * 600_000 + b'"}', b"\xff"):
        (kept / "broken.json").write_bytes(content)
        assert "is not one that this node has saved" in find(routes, name="broken")["refused"]
    assert "There is no preset 'gone'" in find(routes, name="gone")["refused"]
    (kept / "a.b.json").write_text("{}")
    (kept / "notes.txt").write_text("")
    assert find(routes)["names"] == ["broken", "old"]


def test_there_can_only_be_so_many(routes, kept, monkeypatch):
    monkeypatch.setattr(routes.presets, "MAX_PRESETS", 2)
    answers = [save(routes, name, **POSTER)[1] for name in "abc"]
    assert "There are 2 presets" in answers[2]["refused"] and len(list(kept.iterdir())) == 2


@pytest.mark.parametrize("body, status", [
    ({"node": "SaveImage"}, 400), ({"node": ["QwenImage2PosterBrief"]}, 400), ({"name": 5}, 400),
    ({"inputs": []}, 400), ({"inputs": {"paper": "A4"}}, 400), ({"inputs": {"columns": 99}}, 400),
    ({"inputs": {"title": "\ud800"}}, 400), ({"inputs": {"title": "a" * 300_000}}, 413)])
def test_refuses_what_is_no_preset(routes, kept, body, status):
    asked = {"node": "QwenImage2PosterBrief", "name": "a", "inputs": POSTER} | body
    (code, answer), = send(routes, routes.PRESETS_PATH, json.dumps(asked))
    assert code == status and set(answer) == {"error", "parts"} and not kept.exists()


def test_a_full_disk_is_said(routes, kept, monkeypatch):
    def fail(path, content):
        raise routes.presets.atomic.WriteError("write_failed", "{file} could not be written: {reason}. Nothing is left "
                                               "of it.", file=path.name, reason="the disk is full")
    monkeypatch.setattr(routes.presets.atomic, "write_bytes", fail)
    assert "the disk is full" in save(routes, "a", **POSTER)[1]["refused"]
