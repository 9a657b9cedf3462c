"""The published sizes and constants against the reference's own defaults."""
import inspect

import pytest
import torch
from diffusers import AutoencoderKLQwenImage21, QwenImage21Transformer2DModel

from qwen_image_2.model.qwen_image_2.spec import TransformerSpec, VAESpec
from qwen_image_2.model.runtime.rope import image_positions, rotations, text_positions
from qwen_image_2.tests import reference


def defaults(cls) -> dict:
    return {name: p.default for name, p in inspect.signature(cls.__init__).parameters.items()}


def test_transformer_defaults():
    theirs, ours = defaults(QwenImage21Transformer2DModel), TransformerSpec()
    assert (ours.layers, ours.heads, ours.head_dim) == (
        theirs["num_layers"], theirs["num_attention_heads"], theirs["attention_head_dim"])
    assert ours.dim == ours.heads * ours.head_dim and ours.mlp_dim == ours.dim * theirs["mlp_ratio"]
    assert (ours.context_dim, ours.channels) == (theirs["context_in_dim"], theirs["in_channels"])
    assert (ours.rope_axes, ours.eps, ours.causal_condition) == (
        theirs["axes_dims_rope"], theirs["eps"], theirs["causal_condition"])


def test_vae_defaults():
    theirs, ours = defaults(AutoencoderKLQwenImage21), VAESpec()
    assert (ours.base_dim, ours.decoder_base_dim, ours.latent_channels, ours.res_blocks) == (
        theirs["base_dim"], theirs["decoder_base_dim"], theirs["z_dim"], theirs["num_res_blocks"])
    assert (list(ours.dim_mult), list(ours.video_levels)) == (theirs["dim_mult"], theirs["temperal_downsample"])
    assert (ours.pixel_channels, ours.scale) == (theirs["in_channels"], theirs["scale_factor_spatial"])


def test_rotations_equal_the_reference_at_2048():
    """Large positions, odd grids: 700 text tokens, a reference of 97 x 64 latents, a target of 128 x 129."""
    spec = TransformerSpec()
    mask = torch.tensor([False] * 700 + [True] * (97 * 64) + [False] * 3 + [True] * (128 * 129))
    theirs = reference.transformer().pos_embed([(1, 97, 64), (1, 128, 129)], mask, device="cpu")
    after = 700 + 97
    ours = rotations(torch.cat([text_positions(0, 700), image_positions(700, 97, 64), text_positions(after, 3),
                                image_positions(after + 3, 128, 129)]), spec.rope_axes, spec.rope_theta)
    assert (ours - theirs).abs().max() < 1e-6


@pytest.mark.parametrize("change, words", [
    (lambda: TransformerSpec(rope_axes=(16, 56, 54)), "add up to 126, but head_dim is 128"),
    (lambda: TransformerSpec(rope_axes=(15, 57, 56)), "must be even"),
    (lambda: VAESpec(video_levels=(True,)), "5 levels resize 4 times, but video_levels has 1"),
    (lambda: VAESpec(latent_mean=(0.0,)), "64 latent channels, but 1 means"),
])
def test_specs_check_their_arithmetic(change, words):
    with pytest.raises(ValueError, match=words):
        change()
