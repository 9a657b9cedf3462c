"""The one route of the browser extension: how many tokens a prompt has, and which words it puts into quotes.

Bounded in size and time, JSON in and out. Nothing a client sends is opened, run, kept or repeated in an error.
"""
import asyncio
import json
import logging
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web
from server import PromptServer

from ..model.quotation import literals
from ..model.sentences import Sentence, parts
from .bridge.text_encoder import count_tokens
from .text import TRAINED_TOKENS

log = logging.getLogger(__name__)

PATH = "/qwen_image_2/prompt"
LARGEST_BODY = 64 * 1024  # bytes, about ten times the longest prompt the model was trained for
SECONDS = 10.0  # for all of a request: reading it, waiting for its turn, counting; the first one loads the tokenizer

# One thread: the page may ask as often as it likes, and never takes more than one core from a running picture.
_worker = ThreadPoolExecutor(1, thread_name_prefix="qwen_image_2_tokenizer")


class Refused(ValueError):
    """A request that is not answered; the message is for the client."""

    def __init__(self, status: int, sentence: Sentence):
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


def add_routes() -> None:
    """Called once, when ComfyUI loads the pack, before its server starts."""
    PromptServer.instance.routes.post(PATH)(measure)


async def measure(request: web.Request) -> web.Response:
    """{"text": prompt} -> {"tokens": int, "limit": int, "quoted": [str, ...]}, or as _refusal has it."""
    try:
        return web.json_response(await asyncio.wait_for(_measure(request), SECONDS))
    except Refused as refusal:
        return _refusal(refusal.status, refusal.sentence)
    except asyncio.TimeoutError:  # not yet the builtin in Python 3.10
        return _refusal(503, Sentence("Counting took too long."))
    except Exception:
        log.exception("A prompt could not be measured")
        return _refusal(500, Sentence("The prompt could not be measured; ComfyUI's log says why."))


def _refusal(status: int, sentence: Sentence) -> web.Response:
    """In English for programs, and what it is made of for the page."""
    return web.json_response({"error": str(sentence), "parts": parts(sentence)}, status=status)


async def _measure(request: web.Request) -> dict:
    if request.content_type != "application/json":  # also what a page of another origin cannot send unasked
        raise Refused(415, Sentence("Send JSON."))
    text = read_text(await _body(request))
    tokens = await asyncio.get_running_loop().run_in_executor(_worker, count_tokens, text)
    return {"tokens": tokens, "limit": TRAINED_TOKENS, "quoted": list(dict.fromkeys(literals(text)))}


async def _body(request: web.Request) -> bytes:
    """The body, never more of it than is allowed; ComfyUI's own limit is made for pictures."""
    body = bytearray()
    async for chunk in request.content.iter_chunked(LARGEST_BODY):
        body += chunk
        if len(body) > LARGEST_BODY:
            raise Refused(413, Sentence("The text is too long to be counted here (more than {most} KiB).",
                                        most=LARGEST_BODY // 1024))
    return bytes(body)


def read_text(body: bytes) -> str:
    """The prompt out of a request's body."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, Sentence("This is not JSON.")) from error
    text = request.get("text") if isinstance(request, dict) else None
    if not isinstance(text, str):
        raise Refused(400, Sentence('Send an object whose "text" is a string.'))
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which no tokenizer reads
        raise Refused(400, Sentence("The text holds characters that are not Unicode.")) from error
    return text
