"""The routes of the browser extension: how many tokens a prompt has, or what a brief writes, and what will be lettered.

Bounded in size and time, JSON in and out. Nothing a client sends is opened, run, kept or repeated in an error; only the
message by which a node refuses its texts may name a few characters of them, as it does when the node runs.
"""
import asyncio
import inspect
import json
import logging
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from aiohttp import web
from comfy_api.latest import io
from server import PromptServer

from ..messages import Message, Refusal, to_json
from ..pages.quotation import literals
from .bridge.text_encoders.families import count_tokens
from .briefs import QwenImage2ComicBrief, QwenImage2InfographicBrief, QwenImage2PosterBrief, QwenImage2SlideBrief
from .common.prompts import TRAINED_TOKENS
from .decks import QwenImage2DeckOutline

log = logging.getLogger(__name__)

PACK = Path(__file__).parents[1]
PATH = "/qwen_image_2/prompt"
BRIEF_PATH = "/qwen_image_2/brief"
MAX_BODY = 64 * 1024  # bytes, about ten times the longest prompt the model was trained for
SECONDS = 10.0  # for all of a request: reading it, waiting for its turn, counting; the first one loads the tokenizer
# The nodes whose prompts are written before anything runs.
BRIEFS = {node.__name__: node for node in (QwenImage2PosterBrief, QwenImage2SlideBrief, QwenImage2InfographicBrief,
                                           QwenImage2ComicBrief, QwenImage2DeckOutline)}

# One thread: the page may ask as often as it likes, and never takes more than one core from a running picture.
_worker = ThreadPoolExecutor(1, thread_name_prefix="qwen_image_2_tokenizer")


class BadRequest(Refusal):
    """A request that is not answered; the message is for the client. status: of the HTTP answer."""

    status = 400


class PayloadTooLarge(BadRequest):
    status = 413


class UnsupportedMediaType(BadRequest):
    status = 415


def add_routes() -> None:
    """Called once, when ComfyUI loads the pack, before its server starts."""
    PromptServer.instance.routes.post(PATH)(measure)
    PromptServer.instance.routes.post(BRIEF_PATH)(measure_brief)
    if quote(PACK.name) != PACK.name:
        # Where a folder's name has a space, aiohttp compares it quoted with paths that are not, so ComfyUI's own route
        # to a pack's page files finds none.
        PromptServer.instance.routes.get(f"/extensions/{{folder:{re.escape(PACK.name)}}}/{{file:.+}}")(page_file)


async def page_file(request: web.Request) -> web.StreamResponse:
    """A file of js/. Only the names that are there are known, so no path of a client is opened."""
    files = {path.relative_to(PACK / "js").as_posix(): path for path in (PACK / "js").rglob("*") if path.is_file()}
    path = files.get(request.match_info["file"])
    return web.FileResponse(path) if path else web.Response(status=404)


async def measure(request: web.Request) -> web.Response:
    """{"text": prompt} -> {"tokens": int, "limit": int, "quoted": [str, ...]}, or as _refusal has it."""
    return await _answered(request, prompt_measure)


async def measure_brief(request: web.Request) -> web.Response:
    """{"node": class, "inputs": {name: value}} -> as of a prompt, with "notes" and, of a deck, "slides" as the parts of
    Messages; or {"refused": English, "parts": of it}: why the node would not run; or as _refusal has it."""
    return await _answered(request, brief_measure)


async def _answered(request: web.Request, work: Callable[[dict, Callable[[str], int]], dict]) -> web.Response:
    try:
        return web.json_response(await asyncio.wait_for(_worked(request, work), SECONDS))
    except BadRequest as refusal:
        return _refusal(refusal.status, refusal.message)
    except (asyncio.TimeoutError, TimeoutError):  # one and the same since Python 3.11
        return _refusal(503, Message("count_timeout", "Counting took too long."))
    except Exception:
        log.exception("A prompt could not be measured")
        return _refusal(500, Message("count_failed", "The prompt could not be counted. See ComfyUI's log for "
                                     "the cause."))


def _refusal(status: int, message: Message) -> web.Response:
    """In English for programs, and what it is made of for the page."""
    return web.json_response({"error": str(message), "parts": message.to_json()}, status=status)


async def _worked(request: web.Request, work: Callable[[dict, Callable[[str], int]], dict]) -> dict:
    if request.content_type != "application/json":  # also what a page of another origin cannot send unasked
        raise UnsupportedMediaType("send_json", "Send JSON.")
    count = _until(time.monotonic() + SECONDS)
    asked = read_object(await _body(request))
    return await asyncio.get_running_loop().run_in_executor(_worker, work, asked, count)


def _until(deadline: float) -> Callable[[str], int]:
    """count_tokens that stops a long work, such as a deck of many slides, once nobody waits for it any more."""
    def count(text: str) -> int:
        if time.monotonic() > deadline:
            raise TimeoutError
        return count_tokens(text)
    return count


async def _body(request: web.Request) -> bytes:
    """The body, never more of it than is allowed; ComfyUI's own limit is made for pictures."""
    body = bytearray()
    try:
        async for chunk in request.content.iter_chunked(MAX_BODY):
            body += chunk
            if len(body) > MAX_BODY:
                raise PayloadTooLarge("request_too_long", "The text is too long to be counted here (more than {max} "
                                      "KiB).", max=MAX_BODY // 1024)
    except web.RequestPayloadError as error:
        raise BadRequest("body_encoding", "The request body does not match its Content-Encoding.") from error
    return bytes(body)


def read_object(body: bytes) -> dict:
    """The object in a request's body; anything else is as good as an empty one."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest("not_json", "Invalid JSON.") from error
    return asked if isinstance(asked, dict) else {}


# ---------------------------------------------------------------- a prompt

def prompt_measure(asked: dict, count: Callable[[str], int]) -> dict:
    text = asked.get("text")
    if not isinstance(text, str):
        raise BadRequest("send_text", 'Send an object whose "text" is a string.')
    check_unicode(text)
    return answer(count(text), literals(text))


def answer(tokens: int, quoted, **more) -> dict:
    return {"tokens": tokens, "limit": TRAINED_TOKENS, "quoted": list(dict.fromkeys(quoted)), **more}


def check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which no tokenizer reads
        raise BadRequest("text_not_unicode", "The text contains characters that are not valid Unicode.") from error


# ---------------------------------------------------------------- a brief

def brief_measure(asked: dict, count: Callable[[str], int]) -> dict:
    name, inputs = asked.get("node"), asked.get("inputs")
    node = BRIEFS.get(name) if isinstance(name, str) else None
    if node is None or not isinstance(inputs, dict):
        raise _not_a_brief()
    check_inputs(node, inputs)
    verdict = check_by_node(node, inputs)
    if verdict is not True:
        return _would_refuse(verdict)
    try:
        found = node.measure(inputs, count)
    except Refusal as refusal:
        return _would_refuse(refusal.message)
    return answer(found.tokens, found.texts, notes=[to_json(note) for note in found.notes],
                  slides=found.slides and to_json(found.slides))


def _not_a_brief() -> BadRequest:
    return BadRequest("send_brief", 'Send an object whose "node" is a brief and whose "inputs" are its values.')


def _would_refuse(message: Message) -> dict:
    return {"refused": str(message), "parts": message.to_json()}


def check_inputs(node: type[io.ComfyNode], inputs: dict) -> None:
    """What ComfyUI checks before a node runs: that the values are those of the schema's inputs."""
    wanted = {each.id: each for each in node.define_schema().inputs if not each.optional}
    if set(inputs) != set(wanted):
        raise _not_a_brief()
    for name, value in inputs.items():
        if not takes(wanted[name], value):
            raise BadRequest("value_not_taken", "Invalid value for {input}.", input=name)
        if isinstance(value, str):
            check_unicode(value)


def takes(wanted: io.Input, value) -> bool:
    if isinstance(wanted, io.Int.Input):
        return type(value) is int and wanted.min <= value <= wanted.max
    if isinstance(wanted, io.Combo.Input):
        return isinstance(value, str) and value in wanted.options
    return isinstance(value, bool if isinstance(wanted, io.Boolean.Input) else str)


def check_by_node(node: type[io.ComfyNode], inputs: dict) -> bool | Message:
    """What the node's own check, before anything runs, says: True, or why it would not run."""
    names = inspect.signature(node.validate_inputs).parameters
    return node.validate_inputs(**{name: inputs[name] for name in names})
