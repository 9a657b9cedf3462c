"""A picture -> a larger one, by the model that draws pictures: its passes, and what is held to the source."""
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from ...messages import Message, Refusal
from ...model.images import drift, sizes, tiles
from ...model.images.references import over_white, resize
from ...model.images.tiles import Tiling
from ...model.runtime.sigmas import beginning_at
from ..bridge import tiled
from ..bridge.control import AppliedControl, LoadedControl, apply_control
from ..bridge.files import miniature
from ..bridge.guider import guider_for
from ..bridge.vae import decode_images, encode_images
from .images import as_vae_takes
from .schedules import noise_for

MAX_SIDE, MAX_SCALE = 4096, 8.0
LEAST_STRENGTH, MOST_STRENGTH = 0.1, 0.6
TILE_SIDES = (512, 768, 1024, 1280, 1536, 2048)  # of 2.x, trained; the first of them is the smallest
AGAIN = 0.5  # share of the strength from which a region is drawn once more


# ---------------------------------------------------------------- sizes

def check_strength(strength: float) -> None:
    if not LEAST_STRENGTH <= strength <= MOST_STRENGTH:
        raise Refusal("upscale_strength", "Strength is {strength}, but it must be a sigma between {least} (sharpens) "
                      "and {most} (redraws shapes): below, the picture would only be resized, above, another one "
                      "would be drawn. Set it to 0.3 to begin with.", strength=f"{strength:g}",
                      least=f"{LEAST_STRENGTH:g}", most=f"{MOST_STRENGTH:g}")


def check_scale(scale: float) -> None:
    if not 1 <= scale <= MAX_SCALE:
        raise Refusal("upscale_scale", "The image would be enlarged {scale} times; 1 to {max} times are possible. "
                      "Change Scale, or Longer side where that is set.", scale=f"{scale:.4g}", max=f"{MAX_SCALE:g}")


def check_side(side: int) -> None:
    if side and not sizes.MIN_SIDE <= side <= MAX_SIDE:
        raise Refusal("upscale_side", "Longer side is {side}; it must be between {min} and {max} pixels, or 0 to use "
                      "Scale.", side=side, min=sizes.MIN_SIDE, max=MAX_SIDE)


def target_size(width: int, height: int, scale: float, longer_side: int) -> tuple[int, int]:
    """(width, height) of the result. Raises Refusal for one that cannot be."""
    if max(width, height) > MAX_SIDE:
        raise Refusal("upscale_source", "The image is {width} x {height}; results have at most {max} pixels along a "
                      "side, so it cannot be enlarged. Crop it, or make it smaller first.", width=width,
                      height=height, max=MAX_SIDE)
    factor = longer_side / max(width, height) if longer_side else scale
    check_scale(factor)
    target = round(width * factor), round(height * factor)
    if max(target) > MAX_SIDE:
        raise Refusal("upscale_large", "The result would be {width} x {height}; at most {max} pixels along a side are "
                      "possible. Lower Scale, or set Longer side to {max}.", width=target[0], height=target[1],
                      max=MAX_SIDE)
    if min(target) < sizes.MIN_SIDE:
        raise Refusal("upscale_small", "The result would be {width} x {height}; the model draws no side below {min} "
                      "pixels. Use a larger image, or raise Scale.", width=target[0], height=target[1],
                      min=sizes.MIN_SIDE)
    return target


def canvas_of(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """IMAGE (1, H, W, 3 or 4), resized to (width, height) and continued to multiples of 32 by its last row and column
    -> (1, H', W', 4)."""
    width, height = size
    pixels = resize(image[0], width, height).movedim(-1, 1)
    more = [tiles.up_to_step(side) - side for side in (width, height)]
    return F.pad(pixels, (0, more[0], 0, more[1]), mode="replicate").movedim(1, -1)


# ---------------------------------------------------------------- tiles

def tile_sides(model) -> tuple[int, ...]:
    """Sides that the model was trained on, the smallest first."""
    return (min(sizes.MINIATURE[0]),) if model.model.label == miniature.NAME else TILE_SIDES


def check_tile(model, tile: int, overlap: int) -> None:
    """0 leaves either to the node."""
    smallest = tile_sides(model)[0]
    if tile and (not smallest <= tile <= TILE_SIDES[-1] or tile % tiles.STEP):
        raise Refusal("upscale_tile", "Tile is {tile} pixels; it must be a multiple of {step} between {least}, the "
                      "smallest size that this model was trained on, and {most}, or 0 to leave it to the memory.",
                      tile=tile, step=tiles.STEP, least=smallest, most=TILE_SIDES[-1])
    if overlap and (overlap % tiles.STEP or overlap > (tile or smallest) // 2):
        raise Refusal("upscale_overlap", "Overlap is {overlap} pixels; it must be a multiple of {step} and at most "
                      "half of the tile ({tile}), or 0 for a sixth of it.", overlap=overlap, step=tiles.STEP,
                      tile=tile or smallest)


def tiling_of(model, width: int, height: int, tile: int, overlap: int, prefix: int) -> Tiling:
    """Tiles for a canvas. prefix: tokens of the prompt and its references."""
    sides, spec = tile_sides(model), model.model.spec
    if not tile:
        fitting = [side for side in sides if side ** 2 // 256 * tiled.bytes_per_token(model) <= tiled.tile_room(model)]
        tile = tiles.cheapest(width, height, fitting or sides[:1], sides[0], overlap, prefix,
                              tiles.balance(spec.dim, spec.mlp_dim))
    return tiles.tiling(width, height, tile, sides[0], tiles.overlap_of(tile, overlap))


# ---------------------------------------------------------------- passes

@dataclass(frozen=True)
class Upsampler:
    """What the passes of all pictures share. schedule: latents of a tile -> its sigmas, from 1 on; strength: the sigma
    to begin with; report: takes what is told."""

    model: object
    vae: object
    positive: list
    negative: list | None
    cfg: float
    rescale: bool
    schedule: Callable[[torch.Tensor], torch.Tensor]
    strength: float
    tile: int
    overlap: int
    control: LoadedControl | None
    control_strength: float
    own_reference: bool
    report: Callable[[Message], None]

    def enlarged(self, image: torch.Tensor, target: tuple[int, int], seed: int) -> torch.Tensor:
        """IMAGE (1, H, W, 3 or 4) -> (1, H', W', 3 or 4) of exactly the target's size."""
        steps = list(self._passes(image, target))
        channels = image.shape[-1]
        for number, size in enumerate(steps, start=1):
            image = self._pass(image, size, seed, f"{number}/{len(steps)}")
        return image[..., :channels]

    def _passes(self, image: torch.Tensor, target: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """Sizes after each pass; below what the model was trained on the picture is only resized."""
        *between, last = tiles.passes(image.shape[2], image.shape[1], target)
        smallest = tile_sides(self.model)[0]
        yield from (size for size in between if max(size) >= smallest)
        yield last

    def _pass(self, image: torch.Tensor, size: tuple[int, int], seed: int, number: str) -> torch.Tensor:
        source = canvas_of(image, size)
        height, width = source.shape[1:3]
        tiling = tiling_of(self.model, width, height, self.tile, self.overlap, self._prefix_tokens)
        run = Run(self, source, tiling, seed)
        self.report(run.in_words(number))
        if self.own_reference:
            self.report(own_reference_note(self.model, tiling))
        made = run.with_source(run.drawn_again(run.drawn()))
        whole = torch.cat([drift.held(made[..., :3], source[..., :3]), source[..., 3:]], -1)
        return whole[:, :size[1], :size[0]]

    @cached_property
    def _prefix_tokens(self) -> int:
        return max(text.shape[1] for text, _ in self.positive)


class Run:
    """One pass over one picture. source: on its canvas (1, H, W, 4)."""

    def __init__(self, upsampler: Upsampler, source: torch.Tensor, tiling: Tiling, seed: int):
        self.of, self.source, self.tiling, self.seed = upsampler, source, tiling, seed
        self.latent = encode_images(upsampler.vae, as_vae_takes(source, upsampler.vae))
        scale = upsampler.model.model.pixels_per_latent
        tile = torch.empty(1, 1, tiling.height // scale, tiling.width // scale, device="meta")
        self.schedule = upsampler.schedule(tile)
        self.model = self._controlled()
        self.samples = self.latent

    def _controlled(self):
        """The MODEL, with the source in grey as what a control network is shown: one of the pictures that it knows."""
        if self.of.control is None:
            return self.of.model
        grey = self.source[..., :3].mean(-1, keepdim=True).expand(-1, -1, -1, 3)
        return apply_control(self.of.model, AppliedControl(
            self.of.control, self.of.vae, grey, None, None, self.of.control_strength, 0.0, 1.0, False))

    def in_words(self, number: str) -> Message:
        count = len(self.tiling.places)
        at_once = 1 if self.of.own_reference else tiled.tiles_at_once(self.model, self.tiling)
        return Message("upscale_pass", "Pass {number}: {width} x {height} pixels in {count} tiles of {tile_width} x "
                       "{tile_height}, {together} at once, {steps} steps from sigma {sigma}.", number=number,
                       width=self.source.shape[2], height=self.source.shape[1], count=count,
                       tile_width=self.tiling.width, tile_height=self.tiling.height, together=at_once,
                       steps=len(beginning_at(self.schedule, self.of.strength)) - 1, sigma=f"{self.of.strength:g}")

    def drawn(self) -> torch.Tensor:
        """The picture (1, H, W, C), as the model draws it from the source."""
        self.samples = self._sampled({"samples": self.latent}, self.of.strength)
        return self._decoded()

    def drawn_again(self, made: torch.Tensor) -> torch.Tensor:
        """The picture, and where its colours have drifted from the source's the same once more from a lower sigma."""
        found = self._differences(made)
        if not (found > drift.LIMIT).any():
            self.of.report(Message("upscale_drift", "Colours: {mean} CIE units from the source on average, {most} at "
                                   "most.", mean=f"{found.mean():.1f}", most=f"{found.max():.1f}"))
            return made
        region = drift.region(found, drift.LIMIT)
        cell = drift.CELL // self.of.model.model.pixels_per_latent
        mask = region.repeat_interleave(cell, -2).repeat_interleave(cell, -1).unsqueeze(1)
        begun = torch.where(mask.reshape(1, *[1] * (self.latent.ndim - 3), *mask.shape[-2:]) > 0, self.latent,
                            self.samples)
        sigma = self.of.strength * AGAIN
        self.samples = self._sampled({"samples": begun, "noise_mask": mask}, sigma)
        again = self._decoded()
        after = self._differences(again)
        self.of.report(Message("upscale_again", "Colours were up to {before} CIE units from the source: {share} % of "
                               "the picture was drawn once more from sigma {sigma}, now {after} at most.",
                               before=f"{found.max():.1f}", share=f"{100 * region.mean():.0f}", sigma=f"{sigma:g}",
                               after=f"{after.max():.1f}"))
        return again

    def with_source(self, made: torch.Tensor) -> torch.Tensor:
        """The picture, and where its colours are still not the source's the source itself: held to its low frequencies,
        what the model has drawn there would have halos."""
        found = self._differences(made)
        if not (found > drift.LIMIT).any():
            return made
        share = drift.spread(drift.region(found, drift.LIMIT), *made.shape[1:3])
        self.of.report(Message("upscale_source_kept", "{share} % of the picture is still more than {limit} CIE units "
                               "from the source: that part was taken from the source. Lower Strength, or write into "
                               "the prompt what is there.", share=f"{100 * share.mean():.0f}",
                               limit=f"{drift.LIMIT:g}"))
        return torch.lerp(made[..., :3], self.source[..., :3], share)

    def _sampled(self, latent: dict, sigma: float) -> torch.Tensor:
        of = self.of
        guider = guider_for(self.model, of.positive, of.negative, of.cfg, of.report, of.rescale)
        return tiled.sample_by_tiles(guider, latent, noise_for(latent, self.seed), beginning_at(self.schedule, sigma),
                                     self.seed, self.tiling, of.own_reference)

    def _decoded(self) -> torch.Tensor:
        return decode_images(self.of.vae, self.samples).cpu().float()

    def _differences(self, made: torch.Tensor) -> torch.Tensor:
        """Of each cell, both over white with the source's transparency."""
        shown = torch.cat([made[..., :3].clamp(0, 1), self.source[..., 3:]], -1)
        return drift.differences(over_white(shown), over_white(self.source))


def own_reference_note(model, tiling: Tiling) -> Message:
    """What it costs that each tile sees its source."""
    count = len(tiling.places)
    size = tiled.reference_bytes(model, tiling)
    return Message("upscale_reference", "Each of {count} tiles has its source as a reference: {size} GiB of keys and "
                   "values a tile, {all} GiB in system RAM, or recomputed every step where they do not fit.",
                   count=count, size=f"{size / 2**30:.2f}", all=f"{count * size / 2**30:.1f}")


def strength_words(strength: float) -> Message:
    """What a strength does."""
    if strength < 0.2:
        return Message("strength_light", "sharpens edges and adds fine grain; letters and faces stay")
    if strength < 0.4:
        return Message("strength_middle", "redraws textures and edges; small letters may change")
    return Message("strength_strong", "redraws small shapes; letters and faces change")
