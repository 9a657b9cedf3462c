"""How much of single references an edit looks at."""
import torch
from comfy_api.latest import io

from ..messages import Message, Refusal
from ..model.images.references import MAX_REFERENCES
from ..model.images.regions import FAINTEST, as_masks
from .bridge.reference_weights import MAX_STRENGTH, with_weight
from .common import categories
from .common.checks import check_before_run
from .common.schemas import schema
from .notices import notify


class QwenImage2ReferenceStrength(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2ReferenceStrength",
            display_name="Reference Strength (Qwen-Image 2)",
            category=categories.CONDITIONING,
            description="Sets how strongly one reference of an edit counts, and which part of it is looked at. One "
                        "node for each reference; the KV cache of the prompt stays as it is.",
            search_aliases=["reference strength", "reference mask", "image weight", "ip adapter weight", "attention "
                            "mask"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="From Encode Edit, or from another of these nodes."),
                io.Conditioning.Input("negative", tooltip="From there, too. It is encoded only where CFG is above 1."),
                io.Int.Input("reference", default=1, min=1, max=MAX_REFERENCES,
                             tooltip="Number of the reference: 1 is image_1. Each image of a batch counts."),
                io.Float.Input("strength", default=1.0, min=0.0, max=MAX_STRENGTH, step=0.05,
                               tooltip="Factor of the attention that the image pays to this reference. 1 as trained. "
                                       "0: none; the prompt still knows it, since the text encoder has seen it."),
                io.Mask.Input("mask", optional=True, tooltip="1 is looked at, 0 is not. Stretched to the reference."),
            ],
            outputs=[io.Conditioning.Output(display_name="positive"), io.Conditioning.Output(display_name="negative")],
        )

    @check_before_run
    def validate_inputs(cls, strength):
        check_strength(strength)

    @classmethod
    def execute(cls, positive, negative, reference, strength, mask=None):
        check_strength(strength)
        looked_at = None if mask is None else checked_mask(mask)
        weighted = list(with_weight(positive, reference, strength, looked_at))
        return io.NodeOutput(weighted, with_weight(negative, reference, strength, looked_at),
                             ui=notify(cls, in_words(reference, strength, looked_at)))


def check_strength(strength: float | None) -> None:
    """None is what is linked."""
    if strength is not None and not 0 <= strength <= MAX_STRENGTH:
        raise Refusal("strength_range", "The strength of a reference must be between 0 and {max}, got {strength}.",
                      max=f"{MAX_STRENGTH:g}", strength=str(strength))


def checked_mask(mask: torch.Tensor) -> torch.Tensor:
    """A MASK -> (H, W) in [0, 1]. Raises Refusal for several, and for one that leaves nothing to look at."""
    masks = as_masks(mask)
    if len(masks) != 1:
        raise Refusal("strength_masks", "Got {count} masks for one reference. Connect one mask, and use a node of "
                      "these for each reference.", count=len(masks))
    if masks.max() < FAINTEST:
        raise Refusal("strength_mask_empty", "The mask is empty, so nothing of the reference would be looked at. Paint "
                      "what is to be looked at, or set Strength to 0 for that.")
    return masks[0]


def in_words(reference: int, strength: float, mask: torch.Tensor | None) -> Message:
    if mask is None:
        return Message("strength_set", "Reference {number}: strength {strength}.", number=reference,
                       strength=f"{strength:g}")
    return Message("strength_masked", "Reference {number}: strength {strength}; {share} % of it is looked at.",
                   number=reference, strength=f"{strength:g}", share=f"{100 * mask.mean().item():.0f}")
