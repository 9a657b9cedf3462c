"""The conditioning object: what it refuses, and how long it keeps keys and values."""
import pytest
import torch

from qwen_image_2.model.qwen_image_2.prefix_cache import PrefixCache


@pytest.fixture
def prefix_cond():
    from qwen_image_2.nodes.bridge import prefix_cond
    return prefix_cond


def test_keys_and_values_are_released_once(prefix_cond, prefix):
    released = []

    class Cache(PrefixCache):
        def release(self):
            released.append(self.position)

    prefix.fill("plain", Cache(1), prefix_cond.CacheLocation.RAM)
    assert not released and prefix.location is prefix_cond.CacheLocation.RAM
    prefix.clear()
    prefix.clear()
    assert released == [1] and prefix.cache is prefix.location is None


def test_keys_and_values_are_valid_for_one_state_of_the_weights(prefix_cond, prefix):
    assert not prefix.is_valid("plain") and not prefix.is_valid(None)
    prefix.fill("plain", PrefixCache(1), prefix_cond.CacheLocation.VRAM)
    assert prefix.is_valid("plain") and not prefix.is_valid("with LoRA")
    prefix.clear()
    assert not prefix.is_valid("plain") and not prefix.is_valid(None)


def test_what_a_prefix_takes_on_a_card(prefix_cond, prefix):
    assert prefix.video_memory == 0
    card, ram = (torch.empty(1, 20, 2, 8, device=device) for device in ("meta", "cpu"))
    prefix.fill("on the card", PrefixCache(0, [(card, card)] * 3), prefix_cond.CacheLocation.VRAM)
    assert prefix.video_memory == 6 * card.nbytes
    prefix.fill("in RAM", PrefixCache(0, [(ram, ram)] * 3), prefix_cond.CacheLocation.RAM)
    assert prefix.video_memory == 0


def test_conditionings_that_do_not_fit_are_refused(prefix_cond, model):
    def check(**cond):
        return prefix_cond.condition_from(cond, model.model.spec, model.model.process_latent_in)

    with pytest.raises(ValueError, match="a prompt of width 2048, but this transformer expects width 64"):
        check(cross_attn=torch.zeros(1, 77, 2048))
    with pytest.raises(ValueError, match="holds no prompt"):
        check()
    with pytest.raises(ValueError, match="0 reference latents but 1 image placeholders"):
        check(cross_attn=torch.zeros(1, 20, 64), image_slots=[3])
