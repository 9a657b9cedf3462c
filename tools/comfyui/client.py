"""Talks to a running ComfyUI server: small synchronous calls, and `Client.run`, which follows a workflow to its end."""

from __future__ import annotations

import asyncio
import http.client
import json
import mimetypes
import re
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from ..cli.errors import UserError
from .server import DIRECT
from .workflow import Graph

MESSAGE_KEYS = (
    "qwen_image_2_messages",
    "text",
)  # `ui` entries with sentences: of our nodes (nodes/notices.py), of core's
# Exceptions whose text says by itself what is wrong: what core raises on purpose, and each class of a node pack's own,
# such as this pack's refusals: ComfyUI names the modules of packs by their paths, and so the classes in them.
SAYS_WHY = ("ValueError", "RuntimeError")
PATH_MARKS = {"/", "\\"}
_FEATURES = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}  # previews then name their node


class ServerGone(UserError):
    """The server cannot be reached, or went away while something was waited for."""


class Refused(UserError):
    """The server answered a call with an HTTP error."""

    def __init__(self, path: str, status: int, body: str) -> None:
        super().__init__(f"The server answered {path} with HTTP status {status}.", body)
        self.status, self.body = status, body


class WorkflowError(UserError):
    """A workflow was refused or failed; the sentence is the node's own."""

    def __init__(self, message: str, node_id: str = "", node_class: str = "", details: str = "") -> None:
        super().__init__(f"Node {node_id} ({node_class}): {message}" if node_id else message, details)
        self.message, self.node_id, self.node_class = message, node_id, node_class


class WorkflowInterrupted(WorkflowError):
    """Somebody interrupted the workflow."""


@dataclass(frozen=True)
class Event:
    """Something that happened while a workflow ran."""

    kind: str  # "started", "progress", "text", "preview", "finished" or "cached"
    node: str  # node id in the graph
    value: float = 0.0  # progress: `value` of `maximum` steps are done
    maximum: float = 0.0
    text: str = ""  # text: what the node says while it works
    image: bytes = b""  # preview: a JPEG or PNG file


@dataclass(frozen=True)
class SavedFile:
    """A file that a node has written, by the names under which /view serves it."""

    node: str
    filename: str
    subfolder: str
    type: str  # "output" or "temp"


@dataclass
class Result:
    """What came out of a workflow."""

    prompt_id: str = ""
    outputs: dict[str, dict[str, list]] = field(default_factory=dict)  # node id -> its `ui` output
    seconds: dict[str, float] = field(default_factory=dict)  # node id -> how long it ran
    cached: list[str] = field(default_factory=list)  # nodes that did not have to run
    texts: dict[str, list[str]] = field(default_factory=dict)  # node id -> what it said while it worked

    @property
    def files(self) -> list[SavedFile]:
        """Pictures and other files that nodes have written, in the order in which the nodes ended."""
        found = [(node, item) for node, item in self._items() if isinstance(item, dict) and "filename" in item]
        return [SavedFile(n, i["filename"], i.get("subfolder", ""), i.get("type", "output")) for n, i in found]

    @property
    def saved(self) -> list[SavedFile]:
        """The files that were asked for: without ComfyUI's temporary ones, such as previews."""
        return [file for file in self.files if file.type == "output"]

    @property
    def messages(self) -> dict[str, list[str]]:
        """Node id -> the sentences of its `ui` output, which a node shows to the person after it has run."""
        said = {node: [line for key in MESSAGE_KEYS for line in ui.get(key, ())] for node, ui in self.outputs.items()}
        return {node: lines for node, lines in said.items() if lines}

    def _items(self) -> list[tuple[str, object]]:
        lists = [(node, value) for node, ui in self.outputs.items() for value in ui.values() if isinstance(value, list)]
        return [(node, item) for node, value in lists for item in value]


# A workflow of core's nodes that ends at once.
NOTHING: Graph = {
    "image": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 0}},
    "seen": {"class_type": "PreviewImage", "inputs": {"images": ["image", 0]}},
}


class Client:
    """A server's HTTP calls, and `run`. All methods block; `follow` is the coroutine behind `run`."""

    def __init__(self, url: str, timeout: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self.timeout = timeout  # seconds that one HTTP call may take

    def object_info(self, node_class: str = "") -> dict:
        """The schemas of all nodes, or of one; an unknown node gives {}."""
        return self._json("/object_info" + (node_class and "/" + urllib.parse.quote(node_class, safe="")))

    def queue(self, graph: Graph, client_id: str = "") -> str:
        """Queue a workflow and return its prompt id; a workflow that does not validate raises WorkflowError."""
        body = {"prompt": graph, "client_id": client_id} if client_id else {"prompt": graph}
        try:
            answer = self._json("/prompt", body)
        except Refused as error:
            raise (_refusal(json.loads(error.body)) if error.status == 400 else error) from error
        if answer["node_errors"]:  # ComfyUI would run the other outputs and leave these out without a word
            self.cancel(answer["prompt_id"])
            raise _refusal(answer)
        return answer["prompt_id"]

    def history(self, prompt_id: str) -> dict | None:
        """The record of a workflow that has ended, or None."""
        return self._json(f"/history/{prompt_id}").get(prompt_id)

    def wait(self, prompt_id: str, timeout: float = 600.0) -> Result:
        """Wait for a queued workflow without a websocket; the result has no times and no texts."""
        deadline = time.monotonic() + timeout
        while (entry := self.history(prompt_id)) is None:
            if time.monotonic() > deadline:
                raise ServerGone(f"The workflow did not end within {timeout:.0f} s.")
            time.sleep(0.1)
        record = _Record(entry["prompt"][2], prompt_id)
        for kind, data in entry["status"]["messages"]:
            record.take(kind, data)
        for node, ui in entry["outputs"].items():
            record.add_output(entry["meta"][node]["display_node"], ui)
        return record.result

    def interrupt(self) -> None:
        """Stop the workflow that runs now."""
        self._request("/interrupt", b"{}")

    def cancel(self, prompt_id: str) -> None:
        """Take one workflow out of the queue, or stop it if it runs."""
        self._request("/queue", json.dumps({"delete": [prompt_id]}).encode())
        self._request("/interrupt", json.dumps({"prompt_id": prompt_id}).encode())

    def free(self) -> None:
        """Unload all models and forget all results, before the next workflow begins.

        ComfyUI's worker does so once it has ended a workflow or waited for one. A workflow that is queued at once may
        reach it first and be answered from what it has kept, so one that makes nothing goes before.
        """
        self._request("/free", json.dumps({"unload_models": True, "free_memory": True}).encode())
        self.wait(self.queue(NOTHING))

    def upload_image(self, file: Path) -> str:
        """Put a picture into the server's input folder; returns the name for LoadImage.

        The server gives another name where a different picture has this one. What could mean something to the header
        or to LoadImage, a line's end or "[output]", becomes "_".
        """
        boundary = uuid.uuid4().hex
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        filename = re.sub(r"[^\w. ()+-]", "_", file.name)
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{filename}"\r\n'
        body = f"{head}Content-Type: {kind}\r\n\r\n".encode() + file.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        return json.loads(self._request("/upload/image", body, f"multipart/form-data; boundary={boundary}"))["name"]

    def view(self, file: SavedFile) -> bytes:
        """The content of a file that a node has written."""
        names = {"filename": file.filename, "subfolder": file.subfolder, "type": file.type}
        return self._request("/view?" + urllib.parse.urlencode(names))

    def run(
        self, graph: Graph, on_event: Callable[[Event], None] | None = None, timeout: float | None = None
    ) -> Result:
        """Queue a workflow and follow it to its end (`timeout` seconds at most)."""
        return asyncio.run(self.follow(graph, on_event, timeout))

    async def follow(
        self, graph: Graph, on_event: Callable[[Event], None] | None = None, timeout: float | None = None
    ) -> Result:
        """`run` for code that already has an event loop."""
        client_id = uuid.uuid4().hex
        address = f"{self.url}/ws?clientId={client_id}"
        try:
            # A long call that holds Python's lock delays the server's answers, hence the patient heartbeat.
            async with (
                asyncio.timeout(timeout),
                aiohttp.ClientSession() as session,
                session.ws_connect(address, heartbeat=120, max_msg_size=0) as socket,
            ):
                await socket.send_json(_FEATURES)
                prompt_id = await asyncio.to_thread(self.queue, graph, client_id)
                return await _Record(graph, prompt_id, on_event).read(socket)
        except aiohttp.ClientError as error:
            raise ServerGone(f"The server at {self.url} cannot be reached: {error}") from error
        except TimeoutError as error:
            raise ServerGone(f"The workflow did not end within {timeout} s.") from error

    def _json(self, path: str, body: dict | None = None) -> dict:
        return json.loads(self._request(path, None if body is None else json.dumps(body).encode()))

    def _request(self, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": kind} if body else {})
        try:
            with DIRECT.open(request, timeout=self.timeout) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            raise Refused(path, error.code, error.read().decode("utf-8", "replace")) from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            raise ServerGone(f"The server at {self.url} does not answer: {error}") from error


class _Record:
    """Collects the messages of one workflow into a Result."""

    def __init__(self, graph: Graph, prompt_id: str, on_event: Callable[[Event], None] | None = None) -> None:
        self.graph = graph
        self.result = Result(prompt_id)
        self.on_event = on_event or (lambda event: None)
        self.running, self.since = "", 0.0  # node that runs now and when it began
        self.ended = False

    async def read(self, socket: aiohttp.ClientWebSocketResponse) -> Result:
        async for message in socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                self._take_binary(message.data)
            elif message.type is aiohttp.WSMsgType.TEXT:
                content = json.loads(message.data)
                self.take(content["type"], content["data"])
            if self.ended:
                return self.result
        raise ServerGone("The server closed the connection before the workflow ended.")

    def take(self, kind: str, data: dict) -> None:
        """One JSON message; those of other workflows and of other kinds are not for us."""
        handler = getattr(self, f"_on_{kind}", None)
        if handler and data.get("prompt_id") == self.result.prompt_id:
            handler(data)

    def _on_executing(self, data: dict) -> None:
        now = time.monotonic()
        if self.running:
            self.result.seconds[self.running] = self.result.seconds.get(self.running, 0.0) + now - self.since
            self.on_event(Event("finished", self.running))
        # A node that expands into others runs under their ids and is shown under its own.
        self.running, self.since = data.get("display_node") or "", now
        self.ended = data["node"] is None
        if self.running:
            self.on_event(Event("started", self.running))

    def _on_progress(self, data: dict) -> None:
        self.on_event(Event("progress", self.running, data["value"], data["max"]))

    def _on_executed(self, data: dict) -> None:
        self.add_output(data["display_node"], data["output"] or {})

    def add_output(self, node: str, ui: dict) -> None:
        """Join the `ui` outputs of all the nodes into which a node has expanded."""
        joined = self.result.outputs.setdefault(node, {})
        for key, values in ui.items():
            joined[key] = [*joined.get(key, ()), *values]

    def _on_execution_cached(self, data: dict) -> None:
        self.result.cached = list(data["nodes"])
        for node in data["nodes"]:
            self.on_event(Event("cached", node))

    def _on_execution_error(self, data: dict) -> None:
        message, kind = data["exception_message"].strip(), data["exception_type"]
        known = kind in SAYS_WHY or not PATH_MARKS.isdisjoint(kind)
        sentence = message if known and message else f"{kind}: {message}"
        raise WorkflowError(sentence, data["node_id"], data["node_type"], "".join(data["traceback"]))

    def _on_execution_interrupted(self, data: dict) -> None:
        raise WorkflowInterrupted("the workflow was interrupted.", data["node_id"], data["node_type"])

    def _take_binary(self, data: bytes) -> None:
        """Frames begin with their kind (protocol.py); kinds 3 and 4 then have the length of a head, and the head."""
        kind, size = struct.unpack(">II", data[:8])
        if kind == 1:  # `size` is the picture's format here
            self.on_event(Event("preview", self.running, image=data[8:]))
        elif kind == 3:
            node, text = data[8 : 8 + size].decode(), data[8 + size :].decode()
            self.result.texts.setdefault(node, []).append(text)
            self.on_event(Event("text", node, text=text))
        elif kind == 4:
            node = json.loads(data[8 : 8 + size])["display_node_id"]
            self.on_event(Event("preview", node, image=data[8 + size :]))


def _refusal(answer: dict) -> WorkflowError:
    """The exception for a workflow that does not validate, from what /prompt says about it."""
    details = json.dumps(answer, indent=2)
    for node, report in answer["node_errors"].items():
        sentences = dict.fromkeys(_sentence(item) for item in report["errors"])
        return WorkflowError("; ".join(sentences), node, report["class_type"], details)
    problem = answer["error"]
    about = problem["extra_info"]
    sentence = f"{problem['message']} {problem['details']}".strip()
    return WorkflowError(sentence, str(about.get("node_id") or ""), about.get("class_type") or "", details)


def _sentence(error: dict) -> str:
    """One error of /prompt; a node's own check is reported once for each input that it looked at."""
    if error["type"] == "custom_validation_failed":
        return error["details"].partition(" - ")[2] or error["details"]
    return f"{error['message']}: {error['details']}".rstrip(": ")
