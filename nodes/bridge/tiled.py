"""One run over a large picture, computed by tiles: every step's velocity is the weighted mean of all tiles' that cover
a token.

ComfyUI samples the whole latent with one schedule, and asks this module for each prediction (its
model_function_wrapper). x and sigma are the same for all tiles, so the mean of their predictions is that of their
velocities: no tile drifts from its neighbour, and their order is nothing but rounding. Each tile has the rotary
positions of a picture of its size. The prompt's keys and values are computed once for all tiles and steps.
"""
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ...model.images.tiles import Tiling, at_once
from .guider import sample
from .keys import CACHE_LOCATION_KEY, FAMILY_2, PASS_SHAPE_KEY, TILES_KEY
from .qwen_image_2 import kept_bytes, working_bytes
from .runtime.prefix_placement import CacheLocation

WRAPPER = "model_function_wrapper"  # ComfyUI's name of what may stand around a MODEL's prediction
ENOUGH_TOKENS = 16384  # in one pass: more keep no card busier. Those of 2048 x 2048
SHARE_OF_MEMORY = 1 / 8  # of a device, for what a pass over tiles needs beside weights


class Tile(NamedTuple):
    """rows, columns: in latents; weight: (height, width) of them, which sum to 1 over all tiles at each place."""

    rows: slice
    columns: slice
    weight: Tensor


class Group(NamedTuple):
    """What one pass computes. first: number of its first tile; reference: that tile's own, where it has one."""

    first: int
    boxes: Sequence[tuple[slice, slice]]
    reference: Tensor | None


def tiles_of(tiling: Tiling) -> list[Tile]:
    """tiling: in latents."""
    by_row, by_column = (torch.tensor(values) for values in tiling.weights())
    return [Tile(slice(top, top + tiling.height), slice(left, left + tiling.width), torch.outer(rows, columns))
            for top, rows in zip(tiling.tops, by_row, strict=True)
            for left, columns in zip(tiling.lefts, by_column, strict=True)]


class JointStep:
    """ComfyUI's model_function_wrapper for latents that `tiling` (in latents) covers.

    group: tiles in one pass; reference: the picture's own latents (1, 64, h, w) on the transformer's scale, whose tiles
    are references, one tile in a pass then; mask: (h, w), where it is 0 nothing is asked for; inner: another node's
    wrapper; advance: called after each pass.
    """

    def __init__(self, tiling: Tiling, group: int = 1, reference: Tensor | None = None, mask: Tensor | None = None,
                 inner: Callable | None = None, advance: Callable[[], None] = lambda: None):
        self.canvas = tiling.canvas
        numbered = enumerate(tiles_of(tiling))
        self.tiles = [(number, tile) for number, tile in numbered
                      if mask is None or bool(mask[tile.rows, tile.columns].any())]
        self.group = 1 if reference is not None else group
        self.reference, self.inner, self.advance = reference, inner, advance

    @property
    def passes(self) -> int:
        """Of one step and one conditioning."""
        return math.ceil(len(self.tiles) / self.group)

    def groups(self) -> Iterator[list[tuple[int, Tile]]]:
        for start in range(0, len(self.tiles), self.group):
            yield self.tiles[start:start + self.group]

    def __call__(self, apply_model: Callable[..., Tensor], arguments: Mapping) -> Tensor:
        x, sigma, c = arguments["input"], arguments["timestep"], arguments["c"]
        assert x.shape[-2:] == self.canvas and len(x) == 1, "one picture at a time"
        total = torch.zeros_like(x)
        for group in self.groups():
            comfy.model_management.throw_exception_if_processing_interrupted()
            for (_, tile), one in zip(group, self._predicted(apply_model, arguments, x, sigma, c, group), strict=True):
                total[..., tile.rows, tile.columns] += one * tile.weight.to(one)
            self.advance()
        return total

    def _predicted(self, apply_model, arguments, x: Tensor, sigma: Tensor, c: dict, group) -> Tensor:
        """Predictions (T, C, ..., h, w) of tiles."""
        boxes = [(tile.rows, tile.columns) for _, tile in group]
        number = group[0][0]
        reference = None if self.reference is None else self.reference[..., boxes[0][0], boxes[0][1]]
        options = {**c.get("transformer_options", {}), TILES_KEY: Group(number, boxes, reference)}
        given = {**c, "transformer_options": options}
        parts = torch.cat([x[..., rows, columns] for rows, columns in boxes])
        sigmas = sigma.expand(len(boxes))
        if self.inner is None:
            return apply_model(parts, sigmas, **given)
        return self.inner(apply_model, {**arguments, "input": parts, "timestep": sigmas, "c": given})


# ---------------------------------------------------------------- a run

def tile_room(model) -> float:
    """Bytes that a pass over tiles may take beside the weights."""
    return comfy.model_management.get_total_memory(model.load_device) * SHARE_OF_MEMORY


def bytes_per_token(model) -> int:
    """Of a pass over target tokens, beside weights and kept keys and values."""
    return working_bytes(model.model.spec, 1, comfy.model_management.dtype_size(model.model.get_dtype_inference()))


def reference_bytes(model, tiling: Tiling) -> int:
    """Keys and values of one tile (in pixels) as a reference."""
    tokens = tiling.height * tiling.width // model.model.pixels_per_latent ** 2
    return kept_bytes(model.model.spec, tokens,
                      comfy.model_management.dtype_size(model.model.get_dtype_inference()))


def tiles_at_once(model, tiling: Tiling) -> int:
    """How many tiles (in pixels) one pass takes. Qwen-Image 1.x has its prompt in every row of a batch: one."""
    if model.model.family != FAMILY_2:
        return 1
    tokens = tiling.height * tiling.width // model.model.pixels_per_latent ** 2
    return at_once(len(tiling.places), tokens, tile_room(model), bytes_per_token(model), ENOUGH_TOKENS)


def sample_by_tiles(guider: comfy.samplers.CFGGuider, latent: dict, noise: Tensor, sigmas: Tensor, seed: int,
                    tiling: Tiling, own_reference: bool = False) -> Tensor:
    """As guider.sample, for one picture whose tiles are given in pixels. Where the latent has a noise_mask
    (1, 1, h, w), only the tiles that it touches are computed, and what lies outside of it stays.

    own_reference: each tile sees its part of the latent as a reference. Its keys and values do not stay beside the
    weights, which they would push out: a tile of 1024 x 1024 has 2 GiB of them.
    """
    model, scale = guider.model_patcher, guider.model_patcher.model.pixels_per_latent
    mask = latent.get("noise_mask")
    options = guider.model_options = comfy.model_patcher.create_model_options_clone(guider.model_options)
    joint = JointStep(tiling.divided(scale), tiles_at_once(model, tiling),
                      model.model.process_latent_in(latent["samples"]) if own_reference else None,
                      None if mask is None else mask[0, 0], options.get(WRAPPER))
    progress = TileProgress(model, (len(sigmas) - 1) * joint.passes * branches(guider))
    joint.advance = progress.advance
    options[WRAPPER] = joint
    more = options["transformer_options"]
    more[PASS_SHAPE_KEY] = (joint.group, tiling.height // scale, tiling.width // scale)
    if own_reference and more.get(CACHE_LOCATION_KEY, CacheLocation.VRAM) is CacheLocation.VRAM:
        more[CACHE_LOCATION_KEY] = CacheLocation.RAM
    return sample(guider, latent, noise, sigmas, seed, progress.step)


def branches(guider: comfy.samplers.CFGGuider) -> int:
    """Predictions of a step: one for each conditioning, which at CFG 1 are the positive ones alone."""
    return sum(len(conds) for name, conds in guider.original_conds.items()
               if name != "negative" or not math.isclose(guider.cfg, 1.0))


class TileProgress:
    """ComfyUI's bar by tiles and steps, and its preview of the whole picture after each step."""

    def __init__(self, model, passes: int):
        self.bar, self.done = comfy.utils.ProgressBar(passes), 0
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def advance(self) -> None:
        self.done += 1
        self.bar.update_absolute(self.done)

    def step(self, step: int, x0: Tensor, x: Tensor, steps: int) -> None:
        if self.previewer is not None:
            self.bar.update_absolute(self.done, None, self.previewer.decode_latent_to_preview_image("JPEG", x0))
