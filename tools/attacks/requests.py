"""What programs and the page send: bodies of requests, workflow files, names of files."""
import asyncio
import copy
import json
from pathlib import Path
from random import Random
from typing import NamedTuple

from qwen_image_2.tools.comfyui import pictures, workflow
from qwen_image_2.tools.pack import ROOT

from . import mutation
from .attempt import Kind, TurnedAway
from .nodes import prepared
from .texts import inputs_of

FAILED = 500  # of HTTP: the pack itself calls it a fault
BUSY = 503
PLACE = {"x": 0.1, "y": 0.1, "w": 0.4, "h": 0.2}
LAYOUTS = ([PLACE | {"name": "title", "text": "NIGHT 海港", "size": 0.1, "weight": "bold", "direction": "vertical"},
            PLACE | {"name": "b", "text": "Open 18\u201324 h", "colour": "#ff8800", "y": 0.6, "columns": 2}],
           {"width": 512, "height": 256, "boxes": [PLACE | {"text": "a", "role": "speech", "by": "Mia", "number": 1}]},
           [{"type": "text", "bbox": [100, 200, 300, 900], "text": "a\nb", "color_palette": ["#00ff00"]}])


# ---------------------------------------------------------------- routes

class Request(NamedTuple):
    path: str
    body: bytes
    headers: dict[str, str]


def route(folder: Path) -> Kind:
    """Bodies for the three routes, answered by a server of their own."""
    from aiohttp import web
    from aiohttp.test_utils import TestClient, TestServer

    from qwen_image_2.nodes import routes

    routes.count_tokens("a")  # loads the tokenizer, which the first request of a server waits for

    def attack(rng: Random) -> Request:
        path = rng.choice((routes.PATH, routes.BRIEF_PATH, routes.LAYOUT_PATH))
        if path == routes.PATH:
            asked = {"text": mutation.text('A poster that says "海港".', rng, rng.choice((2000, 70_000)))}
        elif path == routes.LAYOUT_PATH:
            asked = {"boxes": mutation.json_file(rng.choice(LAYOUTS), rng).decode(errors="replace"), "long_side": 256}
            if rng.random() < 0.5:
                name = rng.choice(list(routes.LAID_OUT))
                asked |= {"node": name, "inputs": inputs_of(routes.LAID_OUT[name], rng)}
        else:
            name = rng.choice(list(routes.BRIEFS))
            inputs = inputs_of(routes.BRIEFS[name], rng)
            inputs.pop("seed", None)  # optional: the page does not send it
            asked = {"node": name, "inputs": inputs}
        body = json.dumps(asked).encode() if rng.random() < 0.5 else mutation.json_file(asked, rng)
        headers = {"Content-Type": "application/json"}
        if rng.random() < 0.1:
            headers |= rng.choice(({"Content-Type": "text/plain"}, {"Content-Encoding": "gzip"}, {"Content-Type": "\\"},
                                   {"Content-Type": "application/json; charset=utf-16"},
                                   {"Content-Encoding": "deflate"}))
        return Request(path, body, headers)

    async def sent(given: Request) -> tuple[int, dict]:
        app = web.Application()
        app.router.add_post(routes.PATH, routes.measure)
        app.router.add_post(routes.BRIEF_PATH, routes.measure_brief)
        app.router.add_post(routes.LAYOUT_PATH, routes.preview_layout)
        async with TestClient(TestServer(app)) as client:
            answer = await client.post(given.path, data=given.body, headers=given.headers)
            if answer.content_type == "application/json":
                return answer.status, await answer.json()
            return answer.status, {"error": await answer.text()}  # aiohttp's own word, of what it could not read

    def try_it(given: Request) -> list[str]:
        status, answer = asyncio.run(sent(given))
        if status in (FAILED, BUSY):
            raise RuntimeError(f"HTTP {status}: {answer['error']} The body: {given.body[:300]!r}")
        if status != 200 or "refused" in answer:
            raise TurnedAway(answer.get("error") or answer["refused"])
        return [note["template"] if isinstance(note, dict) else note for note in answer.get("notes", ())]

    return Kind(attack, try_it)


# ---------------------------------------------------------------- workflows

class RunAttack(NamedTuple):
    content: bytes
    set: list[str]


def workflow_file(folder: Path) -> Kind:
    """`python tools/dev.py run FILE --set ...`, as far as it goes without a server."""
    path = folder / "workflow.json"
    shipped = [json.loads(file.read_text("utf-8")) for file in sorted((ROOT / "workflows" / "api").glob("*.json"))]
    values = ("1", "1024", "NaN", "[1, 2]", '"', "\ud800", "-1e999", "9" * 5000, "[" * 2000, '{"a": 1}', "a.png", "",
              "true")

    def attack(rng: Random) -> RunAttack:
        graph = rng.choice(shipped)
        return RunAttack(mutation.json_file(graph, rng) if rng.random() < 0.8 else json.dumps(graph).encode(),
                         [assignment(graph, rng) for _ in range(rng.randrange(3))])

    def assignment(graph: dict, rng: Random) -> str:
        node = rng.choice(list(graph))
        entry = graph[node]
        name = rng.choice((node, entry["class_type"], entry.get("_meta", {}).get("title", ""), "", "x"))
        whole = f"{name}.{rng.choice([*entry['inputs'], 'text'])}={rng.choice(values)}"
        return mutation.text(whole, rng, 500) if rng.random() < 0.2 else whole

    def try_it(given: RunAttack) -> list[str]:
        path.write_bytes(given.content)
        loaded = workflow.load(path)
        graph = workflow.apply(loaded, given.set)
        pictures.check(graph, workflow.changed(loaded, given.set))
        workflow.uses_pack(graph)
        workflow.needs_models(graph)
        for node in workflow.with_miniature(graph):
            workflow.describe(graph, node)
            workflow.stage(graph[node]["class_type"])
        return []

    return Kind(attack, try_it)


# ---------------------------------------------------------------- names of files

class NameAttack(NamedTuple):
    prefix: str
    graph: dict
    page: dict


GRAPH = {"3": {"class_type": "KSampler", "inputs": {"seed": 7, "cfg": 1.0, "denoise": 0.55, "model": ["4", 0]},
               "_meta": {"title": "First"}},
         "4": {"class_type": "QwenImage2TextEncode", "inputs": {"prompt": "a/b:c", "up": ".."},
               "_meta": {"title": "Two"}}}
PAGE = {"workflow": {"nodes": [{"id": 3, "properties": {"Node name for S&R": "First pass"}}, {"id": 4}, None]}}
PREFIXES = ("deck", "talks/%date:yyyy-MM-dd%/deck", "%KSampler.seed%", "%First pass.denoise%_%Two.prompt%",
            "%width%x%height%", "a/%Two.up%/b", "../deck", "C:\\deck", "%date:" + "y" * 3000 + "%", "x" * 300, "a\x00b")


def file_name(folder: Path) -> Kind:
    """A filename_prefix with its placeholders, in any workflow that a page may have sent."""
    import folder_paths

    from qwen_image_2.nodes.common import paths
    from qwen_image_2.nodes.decks import QwenImage2SaveDeck
    output = folder / "output"
    output.mkdir()

    def attack(rng: Random) -> NameAttack:
        graph, page = copy.deepcopy(GRAPH), copy.deepcopy(PAGE)
        if rng.random() < 0.5:  # the graph itself is ComfyUI's own, only its values are a stranger's
            graph["3"]["inputs"]["seed"] = rng.choice(mutation.JUNK)
            graph["4"]["inputs"]["prompt"] = mutation.text("a/b", rng, 2000)
        prefix = rng.choice(PREFIXES)
        return NameAttack(mutation.text(prefix, rng, 3000) if rng.random() < 0.6 else prefix, graph,
                          mutation.changed(page, rng) if rng.random() < 0.5 else page)

    def try_it(given: NameAttack) -> list[str]:
        folder_paths.set_output_directory(str(output))
        name = paths.name_of(prepared(QwenImage2SaveDeck, given.graph, given.page), given.prefix)
        with paths.new_paths(name, [".pdf"], 64, 64) as found:
            inside = found[0].resolve().is_relative_to(output.resolve())
        if not inside:
            raise RuntimeError(f"{found[0]} is outside of the output folder.")
        return []

    return Kind(attack, try_it)
