"""One edit of one region: cut, asked for in words and letters, sampled, put back. Outside it no bit changes."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...messages import Message
from ...model.images import references, regions, sizes
from ...pages import repair, typeset
from ...pages.page_fonts import Fonts
from ..bridge.guider import guider_for, sample
from ..bridge.keys import FAMILY_2
from ..bridge.vae import decode_images, family_of
from .checks import check_latent
from .editing import conditioned
from .images import empty_latent, with_alpha
from .schedules import noise_for, sigmas_for


@dataclass(frozen=True)
class RegionEditor:
    """How regions are edited. resolution: side of the square with the area that a region is scaled to; context: margin
    around it, as a share of its longer side; feather: pixels over which an edit fades into the picture; letters: in
    which fonts the words are set for the second reference, None for none."""

    model: object
    clip: object
    vae: object
    instruction: str
    negative_prompt: str
    seed: int
    preset: str
    steps: int
    cfg: float
    context: float
    resolution: int
    feather: int
    letters: Fonts | None
    report: Callable[[str | None], None]

    def __call__(self, image: torch.Tensor, region: repair.Region, number: int) -> torch.Tensor:
        """IMAGE (1, H, W, 3 or 4) with the region edited; what is farther from it than the feather keeps its bits."""
        mask = torch.zeros(image.shape[:3])
        mask[:, region.box.top:region.box.bottom, region.box.left:region.box.right] = 1
        soft = regions.feathered(mask, self.feather)
        crop = regions.box_around(soft, self.context)
        size = self._size(crop)
        part = references.resize(regions.cut(image, crop)[0], *size)
        shown = [part, *self._letters(region, crop, size)]
        return regions.put_back(image, self._edited(shown, region, size, self.seed + number), soft, crop)

    def _size(self, crop: regions.Box) -> tuple[int, int]:
        """Width and height of the edit: off the one size at which 2.x fails."""
        size = sizes.size_for_area(self.resolution, crop.width / crop.height)
        failing = family_of(self.vae) == FAMILY_2 and references.off_failing_grid(size, [size])
        return (references.CLEAN_SIDE,) * 2 if failing else size

    def _letters(self, region: repair.Region, crop: regions.Box, size: tuple[int, int]) -> list[torch.Tensor]:
        if self.letters is None or not region.lines:
            return []
        page = typeset.typeset(repair.letters_of(region, crop, *size), self.letters, typeset.WHITE).page
        return [with_alpha(torch.from_numpy(page.astype(np.float32) / 255).unsqueeze(0))]

    def _edited(self, shown: Sequence[torch.Tensor], region: repair.Region, size: tuple[int, int], seed: int
                ) -> torch.Tensor:
        """The edited crop (1, h, w, 4). shown: references (1, h, w, 4), the crop first."""
        prompt = repair.instruction_for(region, self.instruction, len(shown) > 1)
        positive, negative = conditioned(self.clip, self.vae, (prompt, self.negative_prompt),
                                         [image[0] for image in shown], shown)
        samples = check_latent(self.model, empty_latent(*size, 1))
        sigmas = sigmas_for(self.model, self.preset, self.steps, 1.0, samples)
        guider = guider_for(self.model, positive, negative, self.cfg, self.report)
        latent = {"samples": samples}
        return with_alpha(decode_images(self.vae, sample(guider, latent, noise_for(latent, seed), sigmas, seed)))


def before_edit(number: int, rounds: int, region: int, regions: int, score: float) -> Message:
    """What is shown while a region is edited."""
    return Message("repair_progress", "Round {number} of {rounds}, region {region} of {regions}; score so far {score}.",
                   number=number, rounds=rounds, region=region, regions=regions, score=f"{score:.2f}")
