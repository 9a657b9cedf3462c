"""A worker that draws at once, or does what a row's text tells it: refuse, end, or end its whole process."""
import io
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from qwen_image_2.tools.comfyui.server import ServerError
from qwen_image_2.tools.render.plan import Job
from qwen_image_2.tools.render.worker import DRAWN, LOST, REFUSED, Drawn, Outcome


@dataclass
class StandIn:
    drawn: Path  # a file that gets a line for each row that was begun
    model: str = "same"  # what its machine says of a model file
    starts: bool = True
    seconds: float = 0.0

    def facts(self) -> dict[str, str]:
        return {"machine": "here", "the pack": "1", "model": self.model}

    def start(self) -> None:
        if not self.starts:
            raise ServerError("ComfyUI ended with exit code 1.")

    def stop(self) -> None:
        pass

    def draw(self, job: Job) -> Outcome:
        with open(self.drawn, "a") as file:
            file.write(f"{job.number}\n")
        text = job.graph["1"]["inputs"]["text"]
        if text == "refuse":
            return Outcome(REFUSED, "Node 1 (Text): the text is refused.")
        if text == "lose" or (text == "lose once" and not job.lost):
            return Outcome(LOST, "ComfyUI ended with exit code -9.")
        if text == "kill" and not job.lost:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        lines = ({"expected": text, "found": text[:2], "status": "right" if len(text) < 3 else "wrong"},)
        return Outcome(DRAWN, files=(Drawn("2", f"{_name(job)}_00001_.png", picture(text)),), seconds=0.5, lines=lines)


def _name(job: Job) -> str:
    return job.graph["2"]["inputs"]["filename_prefix"]


def picture(text: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (8, 8), (len(text), 0, 0, 255)).save(file, "PNG")
    return file.getvalue()
