"""The conditioning object: what it refuses, and how long it keeps keys and values."""
import pytest
import torch

from qwen_image_2.model.qwen_image_2.prefix_cache import Condition, PrefixCache


@pytest.fixture
def prefix_cond():
    from qwen_image_2.nodes.bridge import prefix_cond
    return prefix_cond


@pytest.fixture
def prefix(prefix_cond):
    text = torch.randn(1, 20, 64, generator=torch.Generator().manual_seed(0))
    return prefix_cond.PromptPrefix(Condition(text))


def test_keys_and_values_are_released_when_others_take_their_place_and_at_the_end(prefix):
    released = []

    class Cache(PrefixCache):
        def release(self):
            released.append(self.position)

    prefix.cache("plain", lambda: Cache(1))
    prefix.cache("plain", lambda: Cache(1))
    prefix.cache("with LoRA", lambda: Cache(2))
    assert released == [1]
    prefix.clear()
    prefix.clear()
    assert released == [1, 2]


def test_what_a_prefix_takes_on_a_card(prefix):
    assert prefix.video_memory == 0
    card, ram = (torch.empty(1, 20, 2, 8, device=device) for device in ("meta", "cpu"))
    prefix.cache("on the card", lambda: PrefixCache(0, [(card, card)] * 3))
    assert prefix.video_memory == 6 * card.nbytes
    prefix.cache("in RAM", lambda: PrefixCache(0, [(ram, ram)] * 3))
    assert prefix.video_memory == 0


def test_conditionings_that_do_not_fit_are_refused(prefix_cond, model):
    def check(**cond):
        return prefix_cond.condition_from(cond, model.model.spec, model.model.process_latent_in)

    with pytest.raises(ValueError, match="a prompt of width 2048, but this transformer reads width 64"):
        check(cross_attn=torch.zeros(1, 77, 2048))
    with pytest.raises(ValueError, match="holds no prompt"):
        check()
    with pytest.raises(ValueError, match="0 reference latents and 1 image slots"):
        check(cross_attn=torch.zeros(1, 20, 64), qwen_image_2_slots=((3, 4),))
