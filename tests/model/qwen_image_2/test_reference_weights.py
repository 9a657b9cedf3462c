"""Strength and mask of references, and where they stand, against a plain oracle without a cache."""
import pytest
import torch

from qwen_image_2.model.qwen_image_2.control import Control, Controlling, prefix_controls
from qwen_image_2.model.qwen_image_2.prefix_cache import Condition
from qwen_image_2.model.qwen_image_2.spec import ControlSpec
from qwen_image_2.model.qwen_image_2.transformer import Transformer
from qwen_image_2.model.runtime import kernels
from qwen_image_2.model.runtime.key_weights import AS_TRAINED, ReferenceWeight
from qwen_image_2.tests.model.qwen_image_2.test_control import BASE, picture, plain_velocity
from qwen_image_2.tests.reference import error
from qwen_image_2.tools import tiny

HALF = torch.zeros(64, 96)
HALF[:, :40] = 1
WEIGHTS = {
    "fainter": (ReferenceWeight(0.3), AS_TRAINED), "stronger": (AS_TRAINED, ReferenceWeight(2.0)),
    "off": (ReferenceWeight(0.0), AS_TRAINED), "all off": (ReferenceWeight(0.0), ReferenceWeight(0.0)),
    "masked": (ReferenceWeight(1.0, HALF), AS_TRAINED), "all of it": (ReferenceWeight(0.6, HALF), ReferenceWeight(1.7)),
}


@pytest.fixture(scope="module")
def networks() -> tuple[Transformer, Control]:
    base, control = Transformer(BASE).eval(), Control(ControlSpec(BASE, blocks=2)).eval()
    for seed, network in enumerate((base, control)):
        network.load_state_dict(tiny.randomise(network.state_dict(), seed))
    return base, control


def case(batch: int = 1, grids=((4, 6), (4, 6)), target=(6, 8)):
    generator = torch.Generator().manual_seed(batch)
    latents = tuple(torch.randn(1, 64, *grid, generator=generator) for grid in grids)
    condition = Condition(torch.randn(1, 11, 48, generator=generator), (5, 7)[:len(grids)], latents)
    return condition, torch.randn(batch, 64, *target, generator=generator), torch.linspace(0.3, 0.9, batch)


def plain_weights(condition: Condition, weights) -> torch.Tensor:
    """Of each token of the prefix, one by one."""
    out = []
    for segment in condition.segments():
        for token in range(segment.end - segment.start):
            if segment.grid is None:
                out.append(1.0)
                continue
            row, column = divmod(token, segment.grid[1])
            weight, (height, width) = weights[segment.source], segment.grid
            out.append(weight.strength if weight.mask is None else weight.strength * weight.mask[
                64 * row // height:64 * (row + 1) // height, 96 * column // width:96 * (column + 1) // width].mean())
    return torch.tensor(out)


@torch.no_grad()
@pytest.mark.parametrize("controlled", [False, True], ids=["alone", "with control"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("which", WEIGHTS)
def test_the_target_looks_as_a_plain_biased_softmax_does(networks, which, batch, controlled):
    """The cache is that of all weights: the prefix does not depend on them."""
    base, network = networks
    condition, x, sigma = case(batch)
    applied = [Controlling(network, picture(3), 0.8)] if controlled else []
    cache = base.encode_prefix(condition, controls=prefix_controls(applied))
    expected = plain_velocity(base, condition, x, sigma, applied, plain_weights(condition, WEIGHTS[which]))
    found = base(x, sigma, cache, controls=applied, weights=condition.key_weights(WEIGHTS[which]))
    assert error(found, expected) < 1e-4
    assert error(base(x, sigma, cache, controls=applied), expected) > 1e-3


@torch.no_grad()
def test_weights_of_1_are_today_s_bits(networks):
    base, _ = networks
    condition, x, sigma = case()
    cache = base.encode_prefix(condition)
    weights = condition.key_weights((AS_TRAINED, ReferenceWeight(1.0, torch.ones(20, 20))))
    assert weights.plain
    assert torch.equal(base(x, sigma, cache, weights=weights), base(x, sigma, cache))


@torch.no_grad()
def test_at_0_no_key_of_the_reference_is_there(networks):
    """Nor is it a mask: the attention that is asked gets fewer keys, once."""
    base, _ = networks
    condition, x, sigma = case()
    cache, asked = base.encode_prefix(condition), []

    def counted(q, k, v):
        asked.append(k.shape[1])
        return kernels.attention(q, k, v)
    base(x, sigma, cache, counted, weights=condition.key_weights((ReferenceWeight(0.0), AS_TRAINED)))
    assert asked == [11 + 24 + 48] * BASE.layers
    for layer in range(BASE.layers):  # whatever the reference's keys and values are
        for each in cache.layers[layer]:
            each[:, 5:5 + 24] = 1e4
    found = base(x, sigma, cache, weights=condition.key_weights((ReferenceWeight(0.0), AS_TRAINED)))
    expected = plain_velocity(base, condition, x, sigma, [], plain_weights(condition, WEIGHTS["off"]))
    assert error(found, expected) < 1e-4


# ---------------------------------------------------------------- centres

@torch.no_grad()
@pytest.mark.parametrize(("grid", "target", "shift"), [
    ((3, 6), (6, 8), (0.5, 0.0)), ((4, 5), (6, 8), (0.0, 0.5)), ((4, 6), (5, 7), (-0.5, -0.5)),
    ((3, 5), (5, 7), (0.0, 0.0)), ((3, 6), (6, 7), (0.5, -0.5))])
def test_a_reference_of_another_parity_is_shifted_by_half_a_token(networks, grid, target, shift):
    """Core: 0.5 * (rows % 2 - rows of the target % 2), and columns alike (ComfyUI's pull request 16400)."""
    base, _ = networks
    condition, x, sigma = case(1, (grid,), target)
    shifts = torch.zeros(11 + grid[0] * grid[1], 3)
    shifts[5:5 + grid[0] * grid[1], 1:] = torch.tensor(shift)
    centred = Condition(condition.text, condition.slots, condition.references, centred=True)
    found = base(x, sigma, base.encode_prefix(centred, target=target))
    assert error(found, plain_velocity(base, condition, x, sigma, [], shifts=shifts)) < 1e-4
    as_ever = base(x, sigma, base.encode_prefix(condition, target=target))
    assert torch.equal(found, as_ever) == (shift == (0.0, 0.0))
    assert error(as_ever, plain_velocity(base, condition, x, sigma, [])) < 1e-4
