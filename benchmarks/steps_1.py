"""The transformer of Qwen-Image 1.x against diffusers: one denoising step, of a picture and of an edit.

The modulation of a step is evaluated in it, as diffusers does; that a run evaluates it once for both branches of
guidance, and off the card, is counted elsewhere (family1.py).
"""
from dataclasses import replace

import torch
from bootstrap import ROOT  # noqa: F401  first, it makes the pack importable
from diffusers import QwenImageTransformer2DModel
from timing import Budget, Comparison, compare
from torch import Tensor

from qwen_image_2.model.qwen_image_1.spec import TransformerSpec
from qwen_image_2.model.qwen_image_1.transformer import Condition, Transformer, latents, patches
from qwen_image_2.tools import tiny

SPEC = TransformerSpec(layers=8, dim=512, heads=4, mlp_dim=2048, context_dim=512)
EDIT_SPEC = replace(SPEC, layers=5, zero_cond_t=True)
TEXT_TOKENS = 256
SIDE = 64  # latents: pictures of 512 x 512, 1,024 tokens
SIGMA = 0.75  # a thousand times that, and divided again as pipelines do it, it is the same number


def setting(spec: TransformerSpec) -> str:
    images = "1,024 target tokens and a reference of 1,024 at t = 0" if spec.zero_cond_t else "1,024 target tokens"
    return (f"dim {spec.dim}, {spec.heads} heads of {spec.head_dim}, {spec.layers} layers, {TEXT_TOKENS} text tokens, "
            f"{images}, fp32, modulation evaluated in every step")


class Networks:
    """Both transformers with the same random weights."""

    def __init__(self, spec: TransformerSpec):
        self.theirs = QwenImageTransformer2DModel(
            num_layers=spec.layers, num_attention_heads=spec.heads, attention_head_dim=spec.head_dim,
            joint_attention_dim=spec.context_dim, axes_dims_rope=spec.rope_axes, zero_cond_t=spec.zero_cond_t,
            use_additional_t_cond=spec.layered, use_layer3d_rope=spec.layered).eval()
        self.theirs.load_state_dict(tiny.randomise(self.theirs.state_dict(), seed=0))
        self.ours = Transformer(spec).eval()
        self.ours.load_state_dict(self.theirs.state_dict())

    def our_velocity(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        self.ours.modulations.clear()
        return self.ours(x, sigma, condition)

    def their_velocity(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """x (B, 16, 1, h, w)."""
        images = [x[:, :, 0], *condition.references]
        grids = [[(1, image.shape[-2] // 2, image.shape[-1] // 2) for image in images]] * len(x)
        tokens = torch.cat([patches(image, 2).expand(len(x), -1, -1) for image in images], dim=1)
        out, = self.theirs(tokens, condition.text.expand(len(x), -1, -1), None, sigma, grids, return_dict=False)
        return latents(out[:, :x[0, 0].numel() // 4], x.shape, 2)


def inputs(spec: TransformerSpec) -> tuple[Tensor, Tensor, Condition]:
    generator = torch.Generator().manual_seed(1)
    x, reference = torch.randn(2, 1, spec.channels, 1, SIDE, SIDE, generator=generator)
    references = (reference[:, :, 0],) if spec.zero_cond_t else ()
    text = torch.randn(1, TEXT_TOKENS, spec.context_dim, generator=generator)
    return x, torch.tensor([SIGMA]), Condition(text, references=references)


def compared(what: str, spec: TransformerSpec, budget: Budget) -> list[Comparison]:
    nets, given = Networks(spec), inputs(spec)
    return compare(what, {"ours": lambda: nets.our_velocity(*given), "diffusers": lambda: nets.their_velocity(*given)},
                   budget, goals=(1.0,))
