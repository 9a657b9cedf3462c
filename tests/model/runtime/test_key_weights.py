"""Weights of keys: the softmax that they mean, what costs nothing, and masks on a grid."""
import pytest
import torch

from qwen_image_2.model.runtime.kernels import attention
from qwen_image_2.model.runtime.key_weights import ReferenceWeight, key_weights, weighted_attention
from qwen_image_2.tests.reference import error


def states(keys: int = 9, dtype=torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(keys)
    return [torch.randn(2, tokens, 3, 8, generator=generator).to(dtype) for tokens in (5, keys, keys)]


def with_logarithms(q, k, v, weights) -> torch.Tensor:
    """What they mean: the logarithm of each key's weight, added to its logits."""
    q, k, v = (each.double().transpose(1, 2) for each in (q, k, v))
    logits = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + weights.double().log()
    return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)


MIXED = torch.tensor([1, 0.5, 0, 2, 1, 0.01, 1, 0, 1.3])


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_it_is_the_softmax_with_logarithms_of_the_weights(dtype, bound):
    q, k, v = states(dtype=dtype)
    weights = key_weights(MIXED)
    found = weighted_attention(attention, q, weights.choose(k), weights.choose(v), weights.factors)
    assert error(found.double(), with_logarithms(q, k, v, MIXED)) < bound
    assert error(attention(q, k, v).double(), with_logarithms(q, k, v, MIXED)) > 0.05


@pytest.mark.parametrize(("weights", "keys"), [(torch.ones(9), [9]), ((MIXED > 0.7).float(), [5]), (MIXED, [7, 7])])
def test_only_weights_other_than_0_and_1_run_twice(weights, keys):
    """None for what counts as trained; what does not count is not there at all."""
    q, k, v = states()
    asked, chosen = [], key_weights(weights)

    def counted(q, k, v):
        asked.append(k.shape[1])
        return attention(q, k, v)
    weighted_attention(counted, q, chosen.choose(k), chosen.choose(v), chosen.factors)
    assert asked == keys and chosen.plain == (keys == [9])
    assert (chosen.choose(k) is k) == (len(k[0]) == keys[0])


def test_a_key_without_weight_may_hold_anything():
    q, k, v = states()
    weights = key_weights(torch.tensor([1, 0, 1, 1, 1, 1, 1, 1, 0.5]))
    spoiled_k, spoiled_v = (each.index_fill(1, torch.tensor([1]), torch.nan) for each in (k, v))
    expected, found = (weighted_attention(attention, q, weights.choose(a), weights.choose(b), weights.factors)
                       for a, b in ((k, v), (spoiled_k, spoiled_v)))
    assert found.isfinite().all() and torch.allclose(found, expected)


def test_a_mask_gives_each_token_the_mean_of_its_cell():
    mask = torch.zeros(32, 48)
    mask[:, 24:] = 1
    mask[:8, 40:] = 0
    found = ReferenceWeight(0.5, mask).of_tokens((2, 3)).view(2, 3)
    assert torch.allclose(found, 0.5 * torch.tensor([[0, 0.5, 0.75], [0, 0.5, 1]]))
    assert torch.equal(ReferenceWeight(2.0).of_tokens((2, 3)), torch.full((6,), 2.0))
    assert torch.equal(ReferenceWeight(1.0, torch.full((5, 5), 0.99)).of_tokens((2, 2)), torch.ones(4)), "white"
    assert not ReferenceWeight(1.0, torch.full((5, 5), 0.02)).of_tokens((2, 2)).any(), "black"
