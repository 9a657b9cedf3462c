"""The routes of the browser extension: how many tokens a prompt has, or what a brief writes, what will be lettered, how
the page looks when it is typeset, and presets.

Bounded in size and time, JSON in and out. Nothing a client sends is opened, run or repeated in an error; only the
message by which a node refuses its texts may name a few characters of them, as it does when the node runs. Only a
preset is kept, in the user's own folder, under a name that has been checked.
"""
import asyncio
import base64
import inspect
import io as streams
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from aiohttp import web
from comfy_api.latest import io
from PIL import Image
from server import PromptServer

from ..messages import Message, Refusal, to_json
from ..pages import typeset
from ..pages.layout import Layout
from ..pages.page_fonts import NOTO
from ..pages.quotation import literals
from .bridge.files import fonts
from .bridge.text_encoders.families import count_tokens
from .briefs import QwenImage2ComicBrief, QwenImage2InfographicBrief, QwenImage2PosterBrief, QwenImage2SlideBrief
from .common import presets
from .common.layouts import layout_from
from .common.prompts import TRAINED_TOKENS
from .decks import QwenImage2DeckOutline
from .layout import QwenImage2Layout

log = logging.getLogger(__name__)

PACK = Path(__file__).parents[1]
PATH = "/qwen_image_2/prompt"
BRIEF_PATH = "/qwen_image_2/brief"
LAYOUT_PATH = "/qwen_image_2/layout"
PRESETS_PATH = "/qwen_image_2/presets"
MAX_BODY = 64 * 1024  # bytes, about ten times the longest prompt the model was trained for
MAX_LAYOUT = 256 * 1024  # bytes: as many boxes as a layout may have
LONG_SIDES = (64, 1536)  # pixels of a preview
SECONDS = 10.0  # for all of a request: reading it, waiting for its turn, counting; the first one loads the tokenizer
# The nodes whose prompts are written before anything runs.
BRIEFS = {node.__name__: node for node in (QwenImage2PosterBrief, QwenImage2SlideBrief, QwenImage2InfographicBrief,
                                           QwenImage2ComicBrief, QwenImage2DeckOutline)}
KEPT = BRIEFS | {QwenImage2Layout.__name__: QwenImage2Layout}  # those whose values are saved as presets
LAID_OUT = {name: node for name, node in BRIEFS.items() if hasattr(node, "layout")}  # into one page, not many

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
    PromptServer.instance.routes.post(LAYOUT_PATH)(preview_layout)
    PromptServer.instance.routes.get(PRESETS_PATH)(find_presets)
    PromptServer.instance.routes.post(PRESETS_PATH)(save_preset)
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


async def preview_layout(request: web.Request) -> web.Response:
    """A page as it is typeset, small, while somebody types or moves a box.

    {"node": class of one of the four briefs, "inputs": {name: value} as of a brief, or neither of them;
     "boxes": JSON text, the input of Layout: without a brief the whole layout, else what differs from the brief's
              (default: nothing);
     "width", "height": canvas of a list of boxes (default 1024);
     "font": a choice of Layout's menu (default the built-in one);
     "picture": "grey" or "white" (default grey);
     "long_side": pixels of the picture's longer side, 64 to 1536 (default 768)}
    -> {"width", "height": of the canvas;
        "image": a data: address of a PNG of the page;
        "boxes": [{"name", "role", "text", "x", "y", "w", "h": shares of the canvas, and what else differs from the
                   usual in a box; "em": pixels of its letters on the canvas, of boxes that are lettered}],
                 in reading order, what is behind others before them;
        "notes": [parts of Messages]}
    or {"refused": English, "parts": of it}: why the nodes would not run; or as _refusal has it.
    """
    return await _answered(request, layout_preview, MAX_LAYOUT)


async def find_presets(request: web.Request) -> web.Response:
    """?node=class -> {"names": of the user's presets for it};
    with &name= one of them -> {"inputs": {name: value}, "notes": [parts of Messages]}, the values that the node takes;
    or {"refused": English, "parts": of it}: there is no such preset, or it cannot be read; or as _refusal has it."""
    asked = dict(request.query)
    return await _safely(_in_worker(lambda: preset_found(asked, _presets_folder(request, asked))))


async def save_preset(request: web.Request) -> web.Response:
    """{"node": class, "name": str, "inputs": {name: value}, some or all of the node's} -> {"name": as it was saved};
    or {"refused": English, "parts": of it}: the name is taken or is none, or the file could not be written; nothing is
    overwritten; or as _refusal has it."""
    return await _answered(request, lambda asked, _: preset_saved(asked, _presets_folder(request, asked)), MAX_LAYOUT)


async def _answered(request: web.Request, work: Callable[[dict, Callable[[str], int]], dict], limit: int = MAX_BODY
                    ) -> web.Response:
    """limit: bytes of the request's body."""
    return await _safely(_worked(request, work, limit))


async def _safely(answering: Awaitable[dict]) -> web.Response:
    try:
        return web.json_response(await asyncio.wait_for(answering, SECONDS))
    except BadRequest as refusal:
        return _refusal(refusal.status, refusal.message)
    except (asyncio.TimeoutError, TimeoutError):  # one and the same since Python 3.11
        return _refusal(503, Message("answer_timeout", "The answer took too long."))
    except Exception:
        log.exception("A request of the page could not be answered")
        return _refusal(500, Message("answer_failed", "The request could not be answered. See ComfyUI's log for "
                                     "the cause."))


def _refusal(status: int, message: Message) -> web.Response:
    """In English for programs, and what it is made of for the page."""
    return web.json_response({"error": str(message), "parts": message.to_json()}, status=status)


async def _worked(request: web.Request, work: Callable[[dict, Callable[[str], int]], dict], limit: int) -> dict:
    if request.content_type != "application/json":  # also what a page of another origin cannot send unasked
        raise UnsupportedMediaType("send_json", "Send JSON.")
    count = _until(time.monotonic() + SECONDS)
    asked = read_object(await _body(request, limit))
    return await _in_worker(work, asked, count)


async def _in_worker(work: Callable[..., dict], *values) -> dict:
    return await asyncio.get_running_loop().run_in_executor(_worker, work, *values)


def _until(deadline: float) -> Callable[[str], int]:
    """count_tokens that stops a long work, such as a deck of many slides, once nobody waits for it any more."""
    def count(text: str) -> int:
        if time.monotonic() > deadline:
            raise TimeoutError
        return count_tokens(text)
    return count


async def _body(request: web.Request, limit: int) -> bytes:
    """The body, never more of it than is allowed; ComfyUI's own limit is made for pictures."""
    body = bytearray()
    try:
        async for chunk in request.content.iter_chunked(limit):
            body += chunk
            if len(body) > limit:
                raise PayloadTooLarge("request_too_long", "The text is too long to be counted here (more than {max} "
                                      "KiB).", max=limit // 1024)
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
    if not is_unicode(text):  # half of a surrogate pair, which no tokenizer reads
        raise BadRequest("text_not_unicode", "The text contains characters that are not valid Unicode.")


def is_unicode(value) -> bool:
    """True also of what is no text."""
    return not isinstance(value, str) or not any("\ud800" <= letter <= "\udfff" for letter in value)


# ---------------------------------------------------------------- a brief

def brief_measure(asked: dict, count: Callable[[str], int]) -> dict:
    name, inputs = asked.get("node"), asked.get("inputs")
    node = _brief_node(BRIEFS, name, inputs)
    verdict = check_by_node(node, inputs)
    if verdict is not True:
        return _would_refuse(verdict)
    try:
        found = node.measure(inputs, count)
    except Refusal as refusal:
        return _would_refuse(refusal.message)
    return answer(found.tokens, found.texts, notes=[to_json(note) for note in found.notes],
                  slides=found.slides and to_json(found.slides))


def _brief_node(nodes: dict, name, inputs) -> type[io.ComfyNode]:
    """The node of that name, which takes these inputs. Raises BadRequest where there is none."""
    node = nodes.get(name) if isinstance(name, str) else None
    if node is None or not isinstance(inputs, dict):
        raise _not_a_brief()
    check_inputs(node, inputs)
    return node


def _not_a_brief() -> BadRequest:
    return BadRequest("send_brief", 'Send an object whose "node" is a brief and whose "inputs" are its values.')


def _would_refuse(message: Message) -> dict:
    return {"refused": str(message), "parts": message.to_json()}


def check_inputs(node: type[io.ComfyNode], inputs: dict) -> None:
    """What ComfyUI checks before a node runs: that the values are those of the schema's inputs."""
    wanted = _required(node)
    if set(inputs) != set(wanted):
        raise _not_a_brief()
    check_values(wanted, inputs)


def _required(node: type[io.ComfyNode]) -> dict[str, io.Input]:
    return {each.id: each for each in node.define_schema().inputs if not each.optional}


def check_values(wanted: dict[str, io.Input], inputs: dict) -> None:
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


# ---------------------------------------------------------------- a layout

def layout_preview(asked: dict, count: Callable[[str], int]) -> dict:
    text, font, picture = asked.get("boxes", ""), asked.get("font", NOTO), asked.get("picture", typeset.GREY)
    long_side, *sides = (asked.get(*each) for each in (("long_side", typeset.PREVIEW_SIDE), ("width", 1024),
                                                       ("height", 1024)))
    if not (isinstance(text, str) and isinstance(font, str)
            and isinstance(picture, str) and picture in typeset.PICTURES
            and all(type(side) is int and abs(side) < 10 ** 6 for side in (long_side, *sides))
            and LONG_SIDES[0] <= long_side <= LONG_SIDES[1]):
        raise BadRequest("send_layout", 'Send an object whose "boxes" are JSON text, with font, picture and sizes as '
                         "on the node.")
    check_unicode(text)
    node = None if asked.get("node") is None else _brief_node(LAID_OUT, asked["node"], asked.get("inputs"))
    verdict = node is None or check_by_node(node, asked["inputs"])
    if verdict is not True:
        return _would_refuse(verdict)
    try:
        layout, lost = layout_from(node and node.layout(asked["inputs"], count), text, *sides)
        page = typeset.preview(layout, fonts.page_fonts(font), long_side, picture)
    except Refusal as refusal:
        return _would_refuse(refusal.message)
    return {"width": layout.width, "height": layout.height, "image": as_png(page), "boxes": entries(layout, page),
            "notes": [to_json(note) for note in (*lost, *page.notes)]}


def entries(layout: Layout, page: typeset.Typeset) -> list[dict]:
    """The boxes as JSON, and the size of the letters in each."""
    return [entry | ({"em": round(page.sizes[box.name], 1)} if box.name in page.sizes else {})
            for box, entry in zip(layout.boxes, json.loads(layout.to_json())["boxes"])]


def as_png(page: typeset.Typeset) -> str:
    """As a data: address; hardly compressed, which takes the least time."""
    file = streams.BytesIO()
    Image.fromarray(page.page).save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# ---------------------------------------------------------------- presets

def preset_found(asked: dict, folder: Path) -> dict:
    """What is in the folder, or the values of one preset that the node takes."""
    if "name" not in asked:
        return {"names": presets.names(folder)}
    try:
        kept = presets.read(folder, asked["name"])
    except Refusal as refusal:
        return _would_refuse(refusal.message)
    wanted = _required(KEPT[asked["node"]])
    taken = {name: value for name, value in kept.items()
             if name in wanted and takes(wanted[name], value) and is_unicode(value)}
    left = [name for name in kept if name not in taken]
    return {"inputs": taken, "notes": [to_json(presets.left_out(left))] if left else []}


def preset_saved(asked: dict, folder: Path) -> dict:
    name, inputs = asked.get("name"), asked.get("inputs")
    if not isinstance(name, str) or not isinstance(inputs, dict):
        raise _not_a_preset()
    wanted = _required(KEPT[asked["node"]])
    if not set(inputs) <= set(wanted):
        raise _not_a_preset()
    check_values(wanted, inputs)
    try:
        return {"name": presets.write(folder, name, inputs)}
    except Refusal as refusal:
        return _would_refuse(refusal.message)


def _not_a_preset() -> BadRequest:
    return BadRequest("send_preset", 'Send an object whose "node" is a brief or a layout, with "name" and "inputs".')


def _presets_folder(request: web.Request, asked: dict) -> Path:
    """Where this user's presets of a node are. Raises BadRequest for no node, and for a user whom ComfyUI does not
    know."""
    node = asked.get("node")
    if not isinstance(node, str) or node not in KEPT:
        raise _not_a_preset()
    try:
        path = PromptServer.instance.user_manager.get_request_user_filepath(
            request, f"{presets.FOLDER}/{node}", create_dir=False)
    except KeyError:
        path = None
    if path is None:
        raise BadRequest("unknown_user", "ComfyUI does not know this user.")
    return Path(path)
