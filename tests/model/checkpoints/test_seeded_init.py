"""Weights that are drawn instead of stored must never change: a transformer was trained to read them."""
import hashlib

import torch

from qwen_image_2.model.checkpoints import seeded_init

SHAPES = {"embed_tokens.weight": (50, 16), "layers.0.q_proj.weight": (32, 16), "layers.0.norm.weight": (16,),
          "visual.patch_embed.proj.weight": (8, 3, 2, 4, 4), "visual.fc.bias": (8,)}


def test_every_value_is_the_one_of_always():
    drawn = seeded_init.random_state_dict(SHAPES, seed=2, gain=0.5)
    content = b"".join(value.view(torch.int16).numpy().astype("<i2").tobytes() for value in drawn.values())
    assert hashlib.sha256(content).hexdigest() == "52313139bfa01058ce372118ac9825f128ce41c4ac03349be206ed1c233d2ac3"


def test_values_are_spread_as_promised():
    drawn = seeded_init.random_state_dict({"a.weight": (256, 300), "embed.weight": (500, 64)}, seed=0, gain=0.5)
    # The deviation is within the step between two powers of two.
    assert 0.5 / 2**0.5 < drawn["a.weight"].float().std() * 300**0.5 < 0.5 * 2**0.5
    assert drawn["embed.weight"].float().abs().max() == 1
    assert all(abs(value.float().mean()) < 0.01 for value in drawn.values())


def test_norms_do_nothing_and_biases_are_nothing():
    drawn = seeded_init.random_state_dict(SHAPES, seed=2, gain=0.5)
    assert torch.equal(drawn["layers.0.norm.weight"], torch.ones(16, dtype=torch.bfloat16))
    assert torch.equal(drawn["visual.fc.bias"], torch.zeros(8, dtype=torch.bfloat16))


def test_tensors_and_seeds_differ():
    shapes = {"a.weight": (8, 8), "b.weight": (8, 8)}
    one, other = (seeded_init.random_state_dict(shapes, seed, gain=1.0) for seed in (1, 2))
    assert not torch.equal(one["a.weight"], one["b.weight"])
    assert not torch.equal(one["a.weight"], other["a.weight"])
