"""Upscale: seams, shifts, colours and words of the miniature's pictures, seconds and memory, and the published size.

    python tools/dev.py bench upscale [--pictures N] [--small] [--only SECTION] [--save]

quality: posters of the miniature's world at twice its trained size, as the model draws them, without what Upscale does
against drift, and as the node gives them. Gradients are those of the difference from the resized source. Posters have
their things on a grid, so each border of tiles is compared with the same rows and columns where other tiles have none:
every picture is drawn twice. speed: seconds and peak memory, one process, sizes
ascending. counted: arithmetic and bytes from 2048 to 4096 at the published widths; times are a roofline and no
measurement.
"""
import math
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import load_process
import numpy
import report
import torch
from torch import Tensor

from qwen_image_2.model.images import drift, tiles
from qwen_image_2.model.qwen_image_2.spec import TransformerSpec
from qwen_image_2.model.qwen_image_2.vae_memory import MEMORY
from qwen_image_2.model.runtime.sigmas import beginning_at
from qwen_image_2.tools.miniature import examples, judge, scenes

SEED = 20261128
PICTURES, STRENGTHS = 12, (0.1, 0.3)
GRADIENT_GOAL, SHIFT_GOAL, COLOUR_GOAL = 1.05, 0.5, 2.0
TOKEN = 16                     # pixels along a side
SIDES = (256, 512, 1024)       # of the results whose time is taken
TEXT_TOKENS, STEPS = 300, 40
# Tiles of the miniature at 256, as the node has them and otherwise, and borders that only one of both has.
TILINGS = [tiles.Tiling(128, 128, starts, starts) for starts in ((0, 64, 128), (0, 32, 96, 128))]
BORDERS = [(64, 192), (32, 96, 160, 224)]
CARDS = (12, 16, 24)           # GiB
FLOPS, COPY = 165e12, 25e9     # an RTX 4090's bf16 with fp32 sums (NVIDIA's Ada whitepaper), and PCIe 4.0 x16 in use
WEIGHTS = 14.2e9               # bytes of the transformer in bf16, the published file's


class Parts(NamedTuple):
    model: object
    clip: object
    vae: object


def miniature() -> Parts:
    from qwen_image_2.nodes.bridge.files import miniature
    from qwen_image_2.nodes.bridge.loading import load_model
    from qwen_image_2.nodes.bridge.text_encoders.families import load_text_encoder
    from qwen_image_2.nodes.bridge.vae import load_vae
    return Parts(load_model(miniature.path("diffusion_models"), miniature.NAME, "base"),
                 load_text_encoder(miniature.path("text_encoders"), miniature.NAME),
                 load_vae(miniature.path("vae"), miniature.NAME))


def posters(count: int) -> Iterator[examples.Example]:
    """Square ones with a word, on a background that is no transparency."""
    rng = random.Random(SEED)
    while count:
        example = examples.invent_prompt(rng)
        if example.target.word and example.target.canvas == (128, 128) and example.target.background != "transparent":
            count -= 1
            yield example


def image_of(example: examples.Example) -> Tensor:
    return torch.from_numpy(numpy.asarray(scenes.draw(example.target).convert("RGB")).astype(numpy.float32) / 255)[None]


def upscaler(parts: Parts, example: examples.Example, strength: float, steps: int):
    from qwen_image_2.nodes.bridge.text_encoders.families import encode_together
    from qwen_image_2.nodes.common.schedules import CUSTOM, sigmas_for
    from qwen_image_2.nodes.common.upsampling import Upsampler
    positive = list(encode_together(parts.clip, (example.prompt, ""), [])[0])
    return Upsampler(parts.model, parts.vae, positive, None, 1.0, True,
                     lambda tile: sigmas_for(parts.model, CUSTOM, steps, 1.0, tile), strength, 0, 0, None, 0.0, False,
                     lambda message: None)


# ---------------------------------------------------------------- quality

def quality(parts: Parts, pictures: int, small: bool) -> report.Found:
    steps = 8 if small else STEPS
    data = {}
    for strength in STRENGTHS[:1] if small else STRENGTHS:
        for name, limit in (("as drawn", math.inf), ("as the node gives it", drift.LIMIT)):
            data[f"sigma {strength:g}, {name}"] = [measured(parts, example, strength, steps, limit)
                                                   for example in posters(pictures)]
    rows = [("from 128 to 256", "gradient at tile borders / elsewhere", "shift (px): median", "largest",
             "colours (CIE): mean", "largest cell", "words right before", "after"),
            *((name, *summary(found)) for name, found in data.items())]
    goals = (f"Goals: ratio at most {GRADIENT_GOAL}, shift at most {SHIFT_GOAL} px, colours within {COLOUR_GOAL:g} CIE "
             "units, as many words as before.")
    return report.Found(data, f"{pictures} pictures, nine tiles each, {steps} steps of the whole schedule. {goals}\n\n"
                       f"{report.aligned(rows)}")


def measured(parts: Parts, example: examples.Example, strength: float, steps: int, limit: float) -> dict:
    from qwen_image_2.model.images.references import resize
    from qwen_image_2.nodes.common.words import with_words
    from qwen_image_2.pages.survival import right
    image = image_of(example)
    source = resize(image[0], 256, 256)
    as_drawn = math.isinf(limit)
    drawn = [made_with(parts, example, image, strength, steps, limit, tiling)
             for tiling in (TILINGS if as_drawn else TILINGS[:1])]
    made = drawn[0]
    seen = []
    kept, _ = with_words(made, source, [example.target.word.text], seen.append)
    colours = drift.differences(made, source[..., :3])
    return {"gradient": gradients(drawn, source[..., :3]) if as_drawn else None,
            "shift": float(numpy.hypot(*judge.shift(eight_bits(source), eight_bits(kept)))),
            "colour": colours.mean().item(), "largest colour": colours.max().item(),
            "words": [right(seen[0]), right(seen[-1])]}


def made_with(parts: Parts, example: examples.Example, image: Tensor, strength: float, steps: int, limit: float,
              tiling: tiles.Tiling) -> Tensor:
    """The picture at 256 x 256, by these tiles."""
    from qwen_image_2.nodes.common import upsampling
    before = drift.LIMIT, upsampling.tiling_of
    drift.LIMIT, upsampling.tiling_of = limit, lambda *_: tiling
    try:
        return upscaler(parts, example, strength, steps).enlarged(image, (256, 256), 1)
    finally:
        drift.LIMIT, upsampling.tiling_of = before


def eight_bits(image: Tensor) -> numpy.ndarray:
    rgba = image if image.shape[-1] == 4 else torch.cat([image, torch.ones_like(image[..., :1])], -1)
    return (rgba[0].clamp(0, 1) * 255).round().byte().numpy()


def gradients(drawn: list[Tensor], source: Tensor) -> tuple[float, float]:
    """Differences between neighbouring rows and columns across borders of tiles, and across the same places where the
    other tiling has none; drawn by each of TILINGS."""
    at, elsewhere = 0.0, 0.0
    for number, made in enumerate(drawn):
        for axis in (0, 1):
            steps = (made - source)[0].diff(dim=axis).abs().mean(dim=(1 - axis, 2))
            at += sum(steps[place - 1].item() for place in BORDERS[number])
            elsewhere += sum(steps[place - 1].item() for place in BORDERS[1 - number])
    return at, elsewhere


def summary(found: list[dict]) -> tuple[str, ...]:
    pairs = [one["gradient"] for one in found if one["gradient"]]
    ratio = f"{sum(at for at, _ in pairs) / sum(elsewhere for _, elsewhere in pairs):.3f}" if pairs else ""
    shifts = [one["shift"] for one in found]
    return (ratio, f"{statistics.median(shifts):.2f}", f"{max(shifts):.2f}",
            f"{statistics.mean(one['colour'] for one in found):.1f}",
            f"{max(one['largest colour'] for one in found):.1f}",
            *(str(sum(one["words"][place] for one in found)) for place in (0, 1)))


# ---------------------------------------------------------------- speed

def speed(parts: Parts, pictures: int, small: bool) -> report.Found:
    example, rows, data = next(posters(1)), [("result", "tiles of the last pass", "seconds", "peak of the process")], []
    image = image_of(example)
    for side in SIDES[:1] if small else SIDES:
        begun = time.perf_counter()
        upscaler(parts, example, STRENGTHS[0], 8 if small else STEPS).enlarged(image, (side, side), 1)
        seconds, peak = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        count = len(tiles.tiling(side, side, 128, 128, 32).places)
        data.append({"side": side, "tiles": count, "seconds": seconds, "peak": peak})
        rows.append((f"{side} x {side}", str(count), f"{seconds:.1f}", f"{peak / 2**30:.2f} GiB"))
    return report.Found(data, f"from 128 x 128, sigma {STRENGTHS[0]:g}, on the CPU\n\n{report.aligned(rows)}")


# ---------------------------------------------------------------- counted

def counted(parts: Parts, pictures: int, small: bool) -> report.Found:
    """At the published size, whatever else is small."""
    from qwen_image_2.nodes.bridge.qwen_image_2 import kept_bytes, working_bytes
    from qwen_image_2.nodes.bridge.tiled import ENOUGH_TOKENS, SHARE_OF_MEMORY
    from qwen_image_2.nodes.common.upsampling import TILE_SIDES
    spec = TransformerSpec()
    side = tiles.cheapest(4096, 4096, TILE_SIDES, TILE_SIDES[0], 0, TEXT_TOKENS, tiles.balance(spec.dim, spec.mlp_dim))
    tiling = tiles.tiling(4096, 4096, side, TILE_SIDES[0], tiles.overlap_of(side, 0))
    each, count = tiling.height * tiling.width // TOKEN ** 2, len(tiling.places)
    whole = (4096 // TOKEN) ** 2
    tiled, untiled = count * step_flops(spec, each), step_flops(spec, whole)
    kept, vae = kept_bytes(spec, TEXT_TOKENS, 2), MEMORY.expected(4096 ** 2, 2)
    steps = sampled_steps(each)
    rows = [("card", "tiles at once", "working set of a pass", "weights that stay", "streamed in a pass",
             "roofline, seconds", "one untiled pass at 4096: working set", "weights that stay", "roofline, seconds")]
    data = {"tile": tiling.width, "tiles": count, "flops": tiled, "untiled flops": untiled, "vae": vae,
            "steps": steps, "cards": {}}
    for gib in CARDS:
        room = gib * 2**30
        together = tiles.at_once(count, each, room * SHARE_OF_MEMORY, working_bytes(spec, 1, 2), ENOUGH_TOKENS)
        ways = [way(spec, room, working_bytes(spec, tokens + TEXT_TOKENS, 2) + kept, flops, passes, steps)
                for tokens, flops, passes in ((together * each, tiled, math.ceil(count / together)),
                                              (whole, untiled, 1))]
        data["cards"][gib] = [together, *ways]
        rows.append((f"{gib} GiB", str(together), *ways[0].in_words(), *ways[1].in_words(moved=False)))
    text = (f"{count} tiles of {tiling.width} x {tiling.height}, {steps} of {STEPS} steps from sigma "
            f"{STRENGTHS[-1]:g}, {TEXT_TOKENS} text tokens, bf16, {FLOPS / 1e12:.0f} TFLOP/s and {COPY / 1e9:.0f} "
            f"GB/s. A step: {tiled / 1e12:.0f} TFLOP by tiles, {untiled / 1e12:.0f} untiled, ratio "
            f"{tiled / untiled:.2f}. KV cache of the prompt {kept / 2**30:.2f} GiB. The VAE asks for "
            f"{vae / 2**30:.2f} GiB at 4096 x 4096.")
    return report.Found(data, f"{text}\n\n{report.aligned(rows)}")


class Way(NamedTuple):
    working: float
    staying: float
    moved: float
    seconds: float

    def in_words(self, moved: bool = True) -> tuple[str, ...]:
        shown = [f"{self.working / 2**30:.1f} GiB", f"{self.staying / 2**30:.1f} GiB"]
        return (*shown, *[f"{self.moved / 2**30:.1f} GiB"][:moved], f"{self.seconds:.0f}")


def way(spec: TransformerSpec, room: float, working: float, flops: float, passes: int, steps: int) -> Way:
    """All steps on a card: weights that do not stay are copied once in a pass, while it computes."""
    staying = max(0.0, min(WEIGHTS, room - working))
    moved = WEIGHTS - staying
    return Way(working, staying, moved, steps * max(flops / FLOPS, passes * moved / COPY))


def step_flops(spec: TransformerSpec, tokens: int) -> float:
    """Of one image's step over its own tokens, two for each product."""
    linear = 2 * (4 * spec.dim ** 2 + 3 * spec.dim * spec.mlp_dim) * spec.layers * tokens
    return linear + 4 * spec.dim * spec.layers * tokens * (tokens + TEXT_TOKENS)


def sampled_steps(tokens: int) -> int:
    from qwen_image_2.model.qwen_image_2.schedule import SHIFT
    return len(beginning_at(SHIFT.sigmas(STEPS, tokens), STRENGTHS[-1])) - 1


SECTIONS: dict[str, Callable[[Parts, int, bool], report.Found]] = {
    "quality": quality, "speed": speed, "counted": counted}


@torch.inference_mode()
def main() -> None:
    parser = report.parser("upscale", __doc__, "the whole run")
    parser.add_argument("--small", action="store_true", help="a miniature size, in seconds: does it run")
    parser.add_argument("--only", choices=SECTIONS, help="one section")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="whose quality is measured (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default: %(default)s)")
    chosen = parser.parse_args()
    if chosen.save and (chosen.small or chosen.only):
        parser.error("--save keeps whole runs, without --small and --only.")
    torch.set_num_threads(chosen.threads)
    load_process.import_comfyui()
    import folder_paths
    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_user_directory(folder)
        given = miniature(), 1 if chosen.small else chosen.pictures, chosen.small
        report.run("upscale", {name: partial(measure, *given) for name, measure in SECTIONS.items()}, chosen)


if __name__ == "__main__":
    main()
