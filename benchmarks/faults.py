"""Interrupts, changes of weights, killed processes and full disks: what is lost, left over or drawn otherwise.

    python tools/dev.py bench faults [PART ...] [--rounds N] [--seed N] [--save]

Each part runs the real thing: ComfyUI with the miniature, which is cancelled at moments that the seed chooses, killed
with SIGKILL, or given a disk of a megabyte (a tmpfs, which only root may mount on Linux; elsewhere that part is left
out and said). A row fails when a picture is not what it was, a finished file is gone or changed, a half-written one
stays, the server does not answer, or its memory grows; then the exit code is 1.
"""
import contextlib
import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import report
from bootstrap import ROOT
from PIL import Image

from qwen_image_2.tools.comfyui.client import Client, Result, WorkflowError, WorkflowInterrupted
from qwen_image_2.tools.comfyui.server import Server

COMFYUI = Path(os.environ["COMFYUI_PATH"])
GROWTH_MIB = 200  # of the server's memory, from the second round to the last
MAX_CANCEL_SECONDS = 5  # seconds
COLUMNS = ("part", "rounds", "failures", "worst wait", "growth", "remark")
FORMATS = ("as stored", "fp8", "int8 (ConvRot)", "4-bit (nvfp4)")
SENTENCES = {"Save Deck": "could not be written: the disk is full. Nothing is left of it.",
             "Save Quantized": "Not enough disk space in ComfyUI's output folder: ",
             "miniature": "The miniature's text encoder (40 MB) could not be written to"}


class Row(NamedTuple):
    part: str
    rounds: int
    failures: list[str]
    wait: float | None = None   # seconds, the longest
    growth: float | None = None  # MiB
    remark: str = ""

    def cells(self) -> tuple[str, ...]:
        return (self.part, str(self.rounds), str(len(self.failures)), "" if self.wait is None else f"{self.wait:.2f} s",
                "" if self.growth is None else f"{self.growth:+.0f} MiB", self.remark)


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def poster(seed: int = 1, weight_format: str = "as stored", steps: int = 12) -> dict:
    """A picture of the miniature."""
    return {
        "loader": node("QwenImage2Loader", diffusion_model="miniature", text_encoder="miniature", vae="miniature",
                       variant="base", weight_format=weight_format),
        "prompt": node("QwenImage2TextEncode", clip=["loader", 1], prompt='A poster that says "HELLO"',
                       negative_prompt=""),
        "canvas": node("QwenImage2EmptyLatent", aspect_ratio="custom", size="1024", width=128, height=128,
                       batch_size=1),
        "sampler": node("QwenImage2Sampler", model=["loader", 0], positive=["prompt", 0], negative=["prompt", 1],
                        latent=["canvas", 0], seed=seed, preset="Custom", steps=steps, cfg=1.0, denoise=1.0),
        "decode": node("QwenImage2VAEDecode", samples=["sampler", 0], vae=["loader", 2]),
        "image": node("SaveImage", images=["decode", 0], filename_prefix="poster"),
    }


def pages(count: int, size: int) -> dict:
    """A deck of noise, which no format makes small; drawn on the spot, so that saving is most of the work."""
    return {"noise": node("EmptyImage", width=size, height=size, batch_size=count, color=0x335577),
            "deck": node("QwenImage2SaveDeck", images=["noise", 0], filename_prefix="deck", files="PPTX and PDF",
                         page="16:9")}


def drawn(client: Client, result: Result) -> str:
    """A digest of the picture that was saved; its file also holds the workflow, so its pixels count."""
    file, = result.saved
    return hashlib.sha256(Image.open(io.BytesIO(client.view(file))).tobytes()).hexdigest()


def memory(server: Server) -> float:
    """Of the server's process, in MiB."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def interrupts(rounds: int, chance: random.Random) -> Row:
    """Cancelled at any moment of loading, encoding, sampling and decoding; the next picture is the first one's."""
    failures, waits = [], []
    with Server(COMFYUI, cpu=True) as server:
        client = Client(server.url)
        begin = time.monotonic()
        expected = drawn(client, client.run(poster()))
        usual, cancelled, early = time.monotonic() - begin, 0, 0.0
        for number in range(rounds):
            if number == 1:
                early = memory(server)
            if chance.random() < 0.3:
                client.free()  # so that loading is interrupted, too
            queued = client.queue(poster(seed=2 + number, steps=40))
            time.sleep(chance.random() * usual)
            asked = time.monotonic()
            client.interrupt()
            try:
                client.wait(queued, timeout=60)
            except WorkflowInterrupted:
                cancelled += 1
            waits.append(time.monotonic() - asked)
            client.free()  # else the picture would come out of ComfyUI's cache
            if drawn(client, client.run(poster())) != expected:
                failures.append(f"round {number}: another picture after the cancel")
        growth = memory(server) - early
    return judged("interrupts", rounds, failures, max(waits), growth, f"{cancelled} heard before the end")


def switches(rounds: int, chance: random.Random) -> Row:
    """From one weight format to the next; each draws what it drew the first time."""
    failures, known, early = [], {}, 0.0
    with Server(COMFYUI, cpu=True) as server:
        client = Client(server.url)
        for number in range(rounds):
            if number == len(FORMATS):
                early = memory(server)
            weight_format = FORMATS[number] if number < len(FORMATS) else chance.choice(FORMATS)
            client.free()
            picture = drawn(client, client.run(poster(weight_format=weight_format)))
            if known.setdefault(weight_format, picture) != picture:
                failures.append(f"round {number}: another picture with {weight_format}")
        growth = memory(server) - early if rounds > len(FORMATS) else None
    return judged("switches", rounds, failures, None, growth, f"{len(known)} weight formats")


def judged(part: str, rounds: int, failures: list[str], wait: float | None, growth: float | None, remark: str) -> Row:
    """The row, with what waits or grows too much among the failures."""
    if wait is not None and wait > MAX_CANCEL_SECONDS:
        failures.append(f"a cancel took {wait:.1f} s")
    if growth is not None and growth > GROWTH_MIB:
        failures.append(f"the server grew by {growth:.0f} MiB")
    return Row(part, rounds, failures, wait, growth, remark)


def digests(folder: Path) -> dict[str, str]:
    """Of the finished files."""
    finished = [path for path in folder.iterdir() if path.is_file() and path.suffix != ".part"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in finished}


def broken(folder: Path) -> list[str]:
    """Finished decks that cannot be opened."""
    found = []
    for path in folder.iterdir():
        if path.suffix == ".pdf" and not path.read_bytes().rstrip().endswith(b"%%EOF"):
            found.append(f"{path.name} ends early")
        if path.suffix == ".pptx" and (not zipfile.is_zipfile(path) or zipfile.ZipFile(path).testzip()):
            found.append(f"{path.name} is damaged")
    return found


def killed_decks(rounds: int, chance: random.Random) -> Row:
    """SIGKILL while decks are saved; then another server saves one more into the same folder."""
    failures, left = [], 0
    with tempfile.TemporaryDirectory(prefix="qwen-image-2-bench-") as name:
        folder = Path(name)
        for number in range(rounds):
            with Server(COMFYUI, cpu=True, output=folder) as server:
                before = digests(folder)
                client = Client(server.url)
                client.run(pages(1, 64))
                client.queue(pages(24, 1024))
                wait_for(lambda: any(folder.glob("*.part")), 30)
                time.sleep(chance.random() * 0.5)
                os.killpg(server.process.pid, signal.SIGKILL)
                server.process.wait()
            left += len(list(folder.glob("*.part")))
            after = digests(folder)
            failures += [f"round {number}: {name} was changed" for name in before if after.get(name) != before[name]]
        with Server(COMFYUI, cpu=True, output=folder) as server:
            Client(server.url).run(pages(1, 64))
        failures += [f"{path.name} stays" for path in folder.glob("*.part")] + broken(folder)
        return Row("SIGKILL, Save Deck", rounds, failures, remark=f"{left} half-written files, all removed by the next "
                   f"save; {len(digests(folder))} files whole")


def wait_for(happens: Callable[[], bool], seconds: float) -> None:
    """Raises TimeoutError: then there is nothing to interrupt."""
    deadline = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing was written within {seconds} s")
        time.sleep(0.005)


def killed_miniature(rounds: int, chance: random.Random) -> Row:
    """SIGKILL while the miniature's text encoder is drawn and written; the next run draws the same file."""
    failures, left = [], 0
    with tempfile.TemporaryDirectory(prefix="qwen-image-2-bench-") as name:
        user, found = Path(name), set()
        for number in range(rounds):
            with Server(COMFYUI, cpu=True, user=user) as server:
                Client(server.url).queue(poster())
                wait_for(lambda: any(user.rglob("*.part")), 60)
                time.sleep(chance.random() * 0.1)
                os.killpg(server.process.pid, signal.SIGKILL)
                server.process.wait()
            left += len(list(user.rglob("*.part")))
            with Server(COMFYUI, cpu=True, user=user) as server:
                client = Client(server.url)
                found.add(drawn(client, client.run(poster())))
            failures += [f"round {number}: {path.name} stays" for path in user.rglob("*.part")]
            for path in user.rglob("miniature_text_encoder_*"):
                path.unlink()
        if len(found) > 1:
            failures.append("the pictures differ")
    return Row("SIGKILL, miniature", rounds, failures, remark=f"{left} half-written files, all removed")


def killed_installation(rounds: int, chance: random.Random) -> Row:
    """SIGKILL while an environment is set up; the next run sets it up from the start. pip's part is 200 files here."""
    failures = []
    for number in range(rounds):
        with tempfile.TemporaryDirectory(prefix="qwen-image-2-bench-") as name:
            command = [sys.executable, "-c", INSTALL, str(ROOT)]
            settings = {**os.environ, "XDG_CACHE_HOME": name, "LOCALAPPDATA": name}
            child = subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL)
            wait_for(lambda folder=name: any(Path(folder).rglob("file-*")), 30)
            time.sleep(chance.random())
            child.kill()
            child.wait()
            said = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
            if said.stdout.count("INSTALLED 200") != 1:
                failures.append(f"round {number}: {(said.stdout + said.stderr)[-300:]}")
    return Row("SIGKILL, installation", rounds, failures, remark="the next run begins anew")


INSTALL = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tools.pack import load_pack
load_pack()
from qwen_image_2.tools.cli import environment

def install(folder, recipe, say):
    inside = environment.installation(folder)
    for file in (inside.python, inside.comfyui / "main.py"):
        file.parent.mkdir(parents=True)
        file.touch()
    for number in range(200):
        (folder / f"file-{number}").write_text("x")
        time.sleep(0.005)

made = environment.ensure(environment.current_recipe(), install, print)
print("INSTALLED", len(list(made.comfyui.parent.glob("file-*"))))
"""


@contextlib.contextmanager
def small_disk(mebibytes: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="qwen-image-2-bench-") as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def full_disks(rounds: int, chance: random.Random) -> Row:
    """Decks and quantized files that do not fit, and the miniature with a full user folder."""
    if sys.platform != "linux" or os.geteuid():
        return Row("full disks", 0, [], remark="not run: only root may mount a small disk")
    failures, graphs = [], {"Save Deck": pages(24, 1024), "Save Quantized": quantized(poster())}
    with small_disk(1) as folder, Server(COMFYUI, cpu=True, output=folder) as server:
        client = Client(server.url)
        client.run(pages(1, 64))
        before = digests(folder)
        for name, graph in graphs.items():
            failures += refused(client, graph, name)
        after = digests(folder)  # a deck's PPTX may have found room, and stays when its PDF does not
        failures += [f"{name} was changed" for name in before if after.get(name) != before[name]]
        failures += [f"{path.name} stays" for path in folder.rglob("*.part")]
        failures += broken(folder)
    with small_disk(8) as user, Server(COMFYUI, cpu=True, user=user) as server:
        failures += refused(Client(server.url), poster(), "miniature")
        failures += [f"{path.name} stays" for path in user.rglob("*.part")]
    return Row("full disks", len(graphs) + 1, failures, remark="each said in a sentence, nothing left")


def quantized(graph: dict) -> dict:
    """The loader's transformer and text encoder, saved."""
    return {"loader": graph["loader"], "saved": node("QwenImage2SaveQuantized", model=["loader", 0], clip=["loader", 1],
                                                     filename_prefix="quantized")}


def refused(client: Client, graph: dict, name: str) -> list[str]:
    """What is wrong with the refusal of a graph."""
    try:
        client.run(graph)
    except WorkflowError as error:
        return [] if SENTENCES[name] in str(error) and len(str(error)) <= 400 else [f"{name}: {error}"]
    return [f"{name}: no refusal"]


PARTS = {"interrupts": interrupts, "switches": switches, "decks": killed_decks, "miniature": killed_miniature,
         "installation": killed_installation, "disks": full_disks}
# Starting a server takes seconds: the parts that start several get fewer rounds.
SHARE = {"decks": 0.25, "miniature": 0.15}


def main() -> None:
    parser = report.parser("faults", __doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--rounds", type=int, default=20, help="cancels and changes of weights (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="chooses the moments (%(default)s)")
    chosen = parser.parse_args()
    if unknown := set(chosen.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    host, rows = report.host(), []
    for name in chosen.parts or PARTS:
        rounds = max(2, round(chosen.rounds * SHARE.get(name, 1)))
        rows.append(PARTS[name](rounds, random.Random(chosen.seed)))
        print(f"{name}: {len(rows[-1].failures)} failures", *rows[-1].failures, sep="\n  ", flush=True)
    text = report.aligned([COLUMNS, *(row.cells() for row in rows)])
    print(text)
    if chosen.save:
        report.keep("faults", host, {"seed": chosen.seed, "rows": [row._asdict() for row in rows]}, text)
    sys.exit(any(row.failures for row in rows))


if __name__ == "__main__":
    main()
