"""Asks a running server for the miniature's answer to an example, by the nodes that a workflow has."""
import io
from collections.abc import Sequence
from pathlib import Path

import numpy
from numpy import ndarray
from PIL import Image

from ..comfyui.client import Client
from ..comfyui.workflow import MINIATURE, Graph
from . import scenes
from .examples import Example

BUILT_IN = dict.fromkeys(("diffusion_model", "text_encoder", "vae"), MINIATURE)


class Painter:
    """folder: for the pictures that are uploaded. models: inputs of the loader, the miniature if not given."""

    def __init__(self, client: Client, folder: Path, models: dict[str, str] = BUILT_IN):
        self.client, self.folder, self.models = client, folder, models

    def paint(self, example: Example, seed: int = 0, sources: Sequence[Image.Image] = (), **sampling) -> ndarray:
        """The picture (H, W, 4), 8 bits; arguments as of `graph`."""
        file, = self.client.run(self.graph(example, seed, sources, **sampling)).files
        return numpy.asarray(Image.open(io.BytesIO(self.client.view(file))))

    def graph(self, example: Example, seed: int = 0, sources: Sequence[Image.Image] = (), **sampling) -> Graph:
        """Text-to-image, or an edit with the example's references. sources: pictures instead of drawing those.
        sampling: inputs of QwenImage2Sampler."""
        sources = sources or [scenes.draw(scene) for scene in example.references]
        inputs = {"preset": "Quality 40", "steps": 40, "cfg": 1.0, "denoise": 1.0, **sampling}
        return {
            "loader": node("QwenImage2Loader", **{"variant": "auto", "weight_format": "as stored", **self.models}),
            **(self._edit(example.prompt, sources) if sources else self._prompt(example)),
            "sampler": node("QwenImage2Sampler", model=["loader", 0], positive=["encode", 0], seed=seed,
                            latent=["encode", 2] if sources else ["canvas", 0], **inputs),
            "decode": node("QwenImage2VAEDecode", samples=["sampler", 0], vae=["loader", 2]),
            "save": node("SaveImage", images=["decode", 1], filename_prefix="miniature"),
        }

    def _prompt(self, example: Example) -> Graph:
        width, height = example.target.canvas
        return {
            "canvas": node("QwenImage2EmptyLatent", aspect_ratio="custom", size="1024", width=width, height=height,
                           batch_size=1),
            "encode": node("QwenImage2TextEncode", clip=["loader", 1], prompt=example.prompt, negative_prompt=""),
        }

    def _edit(self, prompt: str, sources: Sequence[Image.Image]) -> Graph:
        nodes, images = {}, {}
        for number, source in enumerate(sources, start=1):
            path = self.folder / f"reference_{number}.png"
            source.save(path)
            nodes[f"load {number}"] = node("LoadImage", image=self.client.upload_image(path))
            nodes[f"join {number}"] = node("JoinImageWithAlpha", image=[f"load {number}", 0],
                                           alpha=[f"load {number}", 1])
            images[f"images.image_{number}"] = [f"join {number}", 0]
        nodes["encode"] = node("QwenImage2EditEncode", clip=["loader", 1], vae=["loader", 2], prompt=prompt,
                               negative_prompt="", resolution="128", canvas="last reference", width=1024, height=1024,
                               grid_guard=True, batch_size=1, **images)
        return nodes


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}
