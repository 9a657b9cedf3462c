"""What nodes that edit have in common: instruction and references -> CONDITIONING."""
from collections.abc import Sequence

import torch

from ...messages import Refusal
from ...model.images import sizes
from ...model.images.references import resize
from ...model.qwen_image_1 import prompt as prompt_1
from ..bridge.keys import FAMILY_1
from ..bridge.text_encoders.families import encode_together
from ..bridge.text_encoders.lazy import LazyConditioning, with_references
from ..bridge.vae import encode_images
from ..bridge.vae import family_of as vae_family
from .images import as_vae_takes

# What 1.x's text encoder sees of a reference: all its edit models but the first were trained on such small pictures.
EYES_AREA = 384
EDIT_PLUS, EDIT = "Edit Plus (2509, 2511)", "Edit (first model)"
TEMPLATES = {EDIT_PLUS: prompt_1.EDIT_PLUS, EDIT: prompt_1.EDIT}


def check_edit_vae(vae) -> None:
    """Raises Refusal for the VAE of Qwen-Image-Layered: nothing in an edit model's file tells of it later."""
    if vae_family(vae) == FAMILY_1 and vae.output_channels == 4:
        raise Refusal("edit_layered_vae", "This VAE is that of Qwen-Image-Layered; the edit models of Qwen-Image 1.x "
                      "do not know its latents. Choose qwen_image_vae.")


def seen_by_1(references: Sequence[torch.Tensor], resized: Sequence[torch.Tensor], edit_model: str
              ) -> Sequence[torch.Tensor]:
    """What the text encoder of 1.x sees: small pictures of its own, or with the first edit model what the VAE sees."""
    if edit_model == EDIT:
        return resized
    return [resize(image, *sizes.size_for_area(EYES_AREA, image.shape[1] / image.shape[0])) for image in references]


def conditioned(clip, vae, prompts: Sequence[str], references: Sequence[torch.Tensor], resized: Sequence[torch.Tensor],
                edit_model: str = EDIT_PLUS, centred: bool = False) -> list[LazyConditioning]:
    """CONDITIONING of each prompt with the references (H, W, C), resized (1, h, w, 4) as the transformer sees them.

    edit_model: whose template the prompts get with 1.x; centred: see Condition of 2.x.
    """
    latents = [encode_images(vae, as_vae_takes(image, vae)) for image in resized]
    if vae_family(vae) == FAMILY_1:
        encoded = encode_together(clip, [prompt_1.with_labels(text) for text in prompts],
                                  seen_by_1(references, resized, edit_model), TEMPLATES[edit_model])
    else:
        encoded = encode_together(clip, prompts, resized)
    return [with_references(one, latents, centred) for one in encoded]
