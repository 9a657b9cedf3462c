"""The real ComfyUI as a child process, with this pack in it, for as long as a `with` block lasts.

    with Server(Path(os.environ["COMFYUI_PATH"]), models=folder) as server:
        result = Client(server.url).run(graph)

It works in a temporary folder: the ComfyUI tree itself, its other custom nodes and its settings stay untouched.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..cli import output, process
from ..cli.errors import UserError
from ..pack import ROOT

PACK = "qwen-image-2"  # folder name among the custom nodes; the registry's name of the pack
PACK_NODE = "QwenImage2Loader"  # when the server knows this node, the pack has loaded
MODEL_FOLDERS = ("diffusion_models", "unet", "text_encoders", "clip", "vae", "diffusers", "loras", "checkpoints",
                 "upscale_models", "fonts", "model_patches", "controlnet")
EXAMPLE = "example.png"  # lies in every new ComfyUI's input folder, and workflows begin with it
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}  # a run never fetches anything
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback must not go through a proxy


class ServerError(UserError):
    """The server did not start, or ended before it was stopped."""


@dataclass
class Server:
    """One ComfyUI server; `with` starts and stops it, once."""

    comfyui: Path  # the ComfyUI tree
    models: Path | None = None  # folder with diffusion_models, text_encoders, vae, loras
    port: int = 0  # 0 takes a free one
    output: Path | None = None  # output, input and user: None puts them into the temporary folder
    input: Path | None = None
    user: Path | None = None
    preview: str = "none"  # "latent2rgb" sends a preview picture at each step
    cpu: bool | None = None  # None asks torch whether there is a GPU
    require_pack: bool = True  # starting fails when the pack does not import
    arguments: Sequence[str] = ()  # further arguments for main.py
    environment: Mapping[str, str] = field(default_factory=dict)
    python: Path = Path(sys.executable)
    log: Path | None = None  # None: server.log in the temporary folder
    time_limit: float = 180.0  # seconds until it must answer

    def __enter__(self) -> Server:
        self.port = self.port or free_port()
        require_free_port(self.port)
        with contextlib.ExitStack() as stack:
            folder = tempfile.TemporaryDirectory(prefix=PACK + "-", ignore_cleanup_errors=True)
            self.folder = Path(stack.enter_context(folder))
            self._lay_out()
            self.process = self._start(stack)
            self._wait_until_ready()
            if self.require_pack:
                self._check_pack()
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._cleanup.close()

    @property
    def url(self) -> str:
        """Address of the running server."""
        return f"http://127.0.0.1:{self.port}"

    def log_text(self) -> str:
        """What the server has printed so far, without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text("utf-8", "replace"))

    def _lay_out(self) -> None:
        """Make the base folder: this repository as the only custom node, and a folder for each kind of file."""
        (self.folder / "custom_nodes").mkdir()
        link_folder(self.folder / "custom_nodes" / PACK, ROOT)
        self.output, self.input, self.user = (
            given or self.folder / name
            for given, name in ((self.output, "output"), (self.input, "input"), (self.user, "user"))
        )
        for place in (self.output, self.input, self.user):
            place.mkdir(parents=True, exist_ok=True)
        self._lay_example()
        (self.folder / "models.yaml").write_text(model_paths(self.models), "utf-8")
        self.log = self.log or self.folder / "server.log"

    def _lay_example(self) -> None:
        """Put ComfyUI's example picture into the input folder, never over a file that is there."""
        source, target = self.comfyui / "input" / EXAMPLE, self.input / EXAMPLE
        if source.is_file() and not target.exists():
            output.write_whole(target, source.read_bytes())

    def _start(self, stack: contextlib.ExitStack) -> subprocess.Popen:
        settings = {**os.environ, "PYTHONUNBUFFERED": "1", **OFFLINE, **self.environment}
        with open(self.log, "wb") as log:
            child = process.start(self.command(), cwd=self.folder, env=settings, stdout=log, stderr=subprocess.STDOUT)
        stack.callback(process.stop, child)
        return child

    def command(self) -> list[str | Path]:
        """The command line of the server."""
        if self.cpu is None:
            self.cpu = not has_gpu(self.python)
        device = ["--cpu", "--use-pytorch-cross-attention"] if self.cpu else []
        return [
            self.python, self.comfyui / "main.py", *device,
            "--base-directory", self.folder, "--extra-model-paths-config", self.folder / "models.yaml",
            "--output-directory", self.output, "--input-directory", self.input, "--user-directory", self.user,
            # In memory: two servers of one tree would otherwise share, and lock, one file inside the tree.
            "--database-url", "sqlite:///:memory:",
            "--listen", "127.0.0.1", "--port", str(self.port), "--preview-method", self.preview,
            "--disable-auto-launch", "--disable-api-nodes", *self.arguments,
        ]  # fmt: skip

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.time_limit
        while not self._answers():
            self.check_alive()
            if time.monotonic() > deadline:
                raise ServerError(f"ComfyUI did not answer within {self.time_limit:.0f} s.{self._log_end()}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with DIRECT.open(self.url + "/system_stats", timeout=5) as response:
                return response.status == 200
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError):
            return False

    def check_alive(self) -> None:
        """Raise ServerError with the end of the log if the server has ended."""
        if self.process.poll() is not None:
            raise ServerError(f"ComfyUI ended with exit code {self.process.returncode}.{self._log_end()}")

    def wait(self) -> None:
        """Stay until the server ends by itself, which it is not meant to do: raises ServerError."""
        self.process.wait()
        self.check_alive()

    def _check_pack(self) -> None:
        with DIRECT.open(f"{self.url}/object_info/{PACK_NODE}", timeout=60) as response:
            if json.load(response):
                return
        reason = pack_failure(self.log_text()) or f"the node {PACK_NODE} is not among its nodes"
        raise ServerError(f"ComfyUI runs, but this pack did not load: {reason}")

    def _log_end(self) -> str:
        lines = self.log_text().strip().splitlines()[-12:]
        return "".join("\n  | " + line for line in ["The end of its log:", *lines])


def pack_failure(log: str) -> str:
    """Why the pack did not import, out of the server's log: the last lines of its traceback or the logged sentence."""
    lines = log.splitlines()
    begins = [i for i, line in enumerate(lines) if "Traceback (most recent call last)" in line]
    blocks = [lines[begin : _end_of_traceback(lines, begin)] for begin in begins]
    ours = [block for block in blocks if any(PACK in line for line in block)]
    if ours:
        return "".join("\n  | " + line for line in ours[-1][-8:])
    return " ".join(line for line in lines if PACK in line and ("comfy_entrypoint" in line or "Cannot import" in line))


def _end_of_traceback(lines: list[str], begin: int) -> int:
    """One past the line with the exception: the first line after `begin` that is not indented."""
    ends = (i + 1 for i in range(begin + 1, len(lines)) if lines[i][:1].strip())
    return next(ends, len(lines))


def model_paths(models: Path | None) -> str:
    """ComfyUI's extra_model_paths file (YAML, of which JSON is a part) for one folder of model folders."""
    if models is None:
        return "{}"
    folders = {name: name for name in MODEL_FOLDERS}
    return json.dumps({PACK: {"base_path": str(models.absolute()), **folders}})


def free_port() -> int:
    """A loopback port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def require_free_port(port: int) -> None:
    """Refuse a port that something listens on, in one sentence."""
    with socket.socket() as probe:
        if os.name != "nt":  # as the server does: a port whose last connection is just closing counts as free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ServerError(f"Port {port} cannot be used ({error.strerror}); choose another with --port.") from error


def has_gpu(python: Path) -> bool:
    """Whether torch sees a CUDA or ROCm device; it is only asked (seconds) where a driver for one is installed."""
    drivers = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", r"C:\Windows\System32\nvcuda.dll")
    if not any(os.path.exists(driver) for driver in drivers):
        return False
    question = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([str(python), "-c", question], capture_output=True, check=False).returncode == 0


def link_folder(link: Path, target: Path) -> None:
    """Make `target` appear at `link`; Windows allows a junction, but not a symbolic link, to everybody."""
    if os.name == "nt":
        import _winapi

        _winapi.CreateJunction(str(target), str(link))
    else:
        link.symlink_to(target, target_is_directory=True)
