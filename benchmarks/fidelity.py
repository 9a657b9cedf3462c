#!/usr/bin/env python3
"""What each weight format costs in exactness.

    python tools/dev.py bench fidelity

First one step of a wide random transformer in fp32 against the same weights in each format. A real model's activations
have a few channels far larger than the rest; so have these. Then pictures of the trained miniature against its own
without quantization: PSNR, SSIM, and how often the judge finds everything right.
"""
import os
import random
import statistics
import sys
import tempfile
from pathlib import Path

import bootstrap
import numpy
import report
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor

from qwen_image_2.model.checkpoints import gguf as pack_gguf
from qwen_image_2.model.qwen_image_2.prefix_cache import Condition
from qwen_image_2.model.qwen_image_2.spec import TransformerSpec
from qwen_image_2.model.qwen_image_2.transformer import Transformer
from qwen_image_2.tools import tiny
from qwen_image_2.tools.comfyui.client import Client
from qwen_image_2.tools.comfyui.server import Server
from qwen_image_2.tools.miniature import examples, judge, scenes
from qwen_image_2.tools.miniature.painter import BUILT_IN, Painter

SPEC = TransformerSpec(layers=4, dim=1024, heads=8, head_dim=128, mlp_dim=3072, context_dim=1024,
                       rope_axes=(16, 56, 56))
OUTLIERS, FACTOR = 8, 20.0  # channels of the residual stream that are so many times larger

CONVROT = {"convrot": True, "convrot_groupsize": 256}
# ComfyUI's name, settings beside it, arguments of its quantiser.
FORMATS = {
    "int8 (ConvRot)": ("int8_tensorwise", CONVROT, {"per_channel": True, **CONVROT}),
    "int8 per row": ("int8_tensorwise", {}, {"per_channel": True}),
    "fp8": ("float8_e4m3fn", {}, {"scale": "recalculate"}),
    "fp8 (e5m2)": ("float8_e5m2", {}, {"scale": "recalculate"}),
    "mxfp8": ("mxfp8", {}, {}),
    "4-bit (nvfp4)": ("nvfp4", {}, {}),
    "4-bit ConvRot": ("convrot_w4a4", {"convrot_groupsize": 256}, {"convrot_groupsize": 256}),
}
# Those that the gguf package can write; K types are llama.cpp's own work.
GGUF = ("Q8_0", "Q4_0")
OFFERED = ("int8 (ConvRot)", "fp8", "4-bit (nvfp4)")  # by the loader
SEED = 5
STEPS = 8  # int8 products take a CPU a second and a half for each step of even the miniature


# ---------------------------------------------------------------- one step

def random_state() -> dict[str, Tensor]:
    """Random weights whose modulation makes a few channels large, before every block's matrices."""
    state = tiny.randomise(tiny.shapes(Transformer(SPEC)), SEED)
    large = torch.randperm(SPEC.dim, generator=torch.Generator().manual_seed(SEED))[:OUTLIERS]
    for name in ("img_in.weight", "txt_in.out_layer.weight"):
        state[name][large] *= FACTOR
    return state


def velocity(network: torch.nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    condition = Condition(torch.randn(1, 64, SPEC.context_dim, generator=generator), (), ())
    latent = torch.randn(1, 64, 16, 16, generator=generator)
    with torch.no_grad():
        cache = network.encode_prefix(condition)
        return Transformer.forward(network, latent, torch.tensor([0.7]), cache)


def step_errors(folder: Path) -> dict[str, float]:
    """Relative error of one step's velocity in each format."""
    from qwen_image_2.nodes.bridge.loading import load_model
    state = random_state()
    plain = Transformer(SPEC)
    plain.load_state_dict(state)
    exact, found = velocity(plain), {}
    for name, (algorithm, settings, arguments) in FORMATS.items():
        stored, _ = tiny.quantized(lambda key: "transformer_blocks" in key, state, algorithm, settings, arguments)
        path = folder / "quantised.safetensors"
        tiny.save_as_they_are(stored, path)
        network = load_model(path, path.name, "base").model.diffusion_model
        found[name] = _error(network, exact)
        print(f"{name}: {found[name]:.4f}", flush=True)
    for kind in GGUF:
        plain.load_state_dict({name: _through_gguf(value, kind) if "transformer_blocks" in name and value.ndim == 2
                               else value for name, value in state.items()})
        found[f"GGUF {kind}"] = _error(plain, exact)
        print(f"GGUF {kind}: {found[f'GGUF {kind}']:.4f}", flush=True)
    return found


def _error(network: torch.nn.Module, exact: Tensor) -> float:
    return ((velocity(network) - exact).norm() / exact.norm()).item()


def _through_gguf(matrix: Tensor, kind: str) -> Tensor:
    import gguf
    packed = gguf.quants.quantize(matrix.numpy(), gguf.GGMLQuantizationType[kind])
    return pack_gguf.dequantize(torch.from_numpy(packed), kind)


# ---------------------------------------------------------------- pictures

def psnr(first: ndarray, second: ndarray) -> float:
    """dB; equal pictures count as 99."""
    error = numpy.mean((first.astype(float) - second.astype(float)) ** 2)
    return 99.0 if error == 0 else 10 * numpy.log10(255 ** 2 / error)


def ssim(first: ndarray, second: ndarray) -> float:
    """Structural similarity (Wang et al. 2004) with a window of 8 x 8, mean over channels."""
    x, y = (torch.from_numpy(image.astype(numpy.float32)).permute(2, 0, 1).unsqueeze(0) for image in (first, second))
    mean_x, mean_y, xx, yy, xy = (F.avg_pool2d(t, 8, 1) for t in (x, y, x * x, y * y, x * y))
    variance_x, variance_y, covariance = xx - mean_x ** 2, yy - mean_y ** 2, xy - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)
              / ((mean_x ** 2 + mean_y ** 2 + c1) * (variance_x + variance_y + c2)))
    return values.mean().item()


def held_out(count: int) -> list[examples.Example]:
    rng, found = random.Random(f"fidelity {SEED}"), []
    while len(found) < count:
        example = examples.invent_prompt(rng)
        if scenes.held_out(example.target):
            found.append(example)
    return found


def pictures(asked: list[examples.Example], folder: Path) -> dict[str, list[ndarray]]:
    """The same prompts and seeds in every format that the loader offers."""
    drawn = {}
    with Server(Path(os.environ["COMFYUI_PATH"])) as server:
        for name in ("as stored", *OFFERED):
            painter = Painter(Client(server.url), folder, BUILT_IN | {"weight_format": name})
            drawn[name] = [painter.paint(example, seed, preset="Custom", steps=STEPS)
                           for seed, example in enumerate(asked)]
            print(f"{name}: {len(asked)} pictures", flush=True)
    return drawn


def main() -> None:
    parser = report.parser("fidelity", __doc__)
    parser.add_argument("--pictures", type=int, default=40, help="prompts for the miniature (40)")
    chosen = parser.parse_args()
    host = report.host()
    sys.path.remove(str(bootstrap.ROOT))  # its `nodes` would hide ComfyUI's
    sys.path.append(os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args
    args.cpu = not torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        errors = step_errors(Path(folder))
        asked = held_out(chosen.pictures)
        drawn = pictures(asked, Path(folder))
    plain = drawn["as stored"]
    data, rows = {}, [("format", "error of a step", "PSNR (dB)", "SSIM", "everything right")]
    for name in dict.fromkeys(("as stored", *errors)):
        entry = {"error": errors.get(name)}
        if name in drawn:
            pairs = list(zip(drawn[name], plain, strict=True))
            entry |= {"psnr": statistics.median(psnr(*pair) for pair in pairs),
                      "ssim": statistics.fmean(ssim(*pair) for pair in pairs),
                      "right": statistics.fmean(judge.compare(judge.look(picture), example.target).all
                                                for picture, example in zip(drawn[name], asked, strict=True))}
        data[name] = entry
        rows.append((name, *(_cell(entry.get(key), form) for key, form in
                             (("error", ".4f"), ("psnr", ".1f"), ("ssim", ".4f"), ("right", ".0%")))))
    text = report.aligned(rows)
    print(text)
    if chosen.save:
        report.keep("fidelity", host, {"pictures": chosen.pictures, "formats": data}, text)


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    main()
