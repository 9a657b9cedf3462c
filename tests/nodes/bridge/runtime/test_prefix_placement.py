"""Where keys and values of a prefix are kept."""
from types import SimpleNamespace

import pytest
import torch

from qwen_image_2.model.qwen_image_2.prefix_cache import RecomputedPrefix
from qwen_image_2.tests.nodes.bridge.runtime.runs import reporting_to, sample

CARD = torch.device("cuda")


@pytest.fixture
def prefix_placement(comfyui):
    from qwen_image_2.nodes.bridge.runtime import prefix_placement
    return prefix_placement


@pytest.fixture
def memory(comfyui, monkeypatch):
    """Sets the bytes that ComfyUI reports: a card's whole memory, and free RAM."""
    import comfy.model_management as management

    def have(video: int, ram: int):
        monkeypatch.setattr(management, "get_total_memory", lambda device: video)
        monkeypatch.setattr(management, "extra_reserved_memory", lambda: 0)
        monkeypatch.setattr(management, "get_free_memory", lambda device: ram)
    return have


class Pair:
    """Keys or values that only remember where they were moved to."""

    def to(self, device):
        self.device = device
        return self

    def contiguous(self):
        return self


def pairs():
    return iter([(Pair(), Pair()), (Pair(), Pair())])


GIB = 2**30


@pytest.mark.parametrize(("video", "ram", "place"), [
    (8 * GIB, 0, "VRAM"), (4 * GIB, 8 * GIB, "RAM"), (4 * GIB, 3 * GIB, "RECOMPUTE")])
def test_the_fastest_place_with_room_is_taken(prefix_placement, memory, video, ram, place):
    memory(video, ram)
    cache, found = prefix_placement.allocate_prefix_cache(pairs, 5, needed=4 * GIB, working=GIB, device=CARD)
    assert found == prefix_placement.CacheLocation[place]
    assert cache.position == 5
    if place == "RECOMPUTE":
        assert isinstance(cache, RecomputedPrefix) and not cache.layers
    else:
        device = CARD if place == "VRAM" else torch.device("cpu")
        assert {t.device for pair in cache.layers for t in pair} == {device}


def test_running_out_of_video_memory_moves_on_to_ram(prefix_placement, memory):
    memory(100 * GIB, 100 * GIB)
    starts = []

    def layers():
        starts.append(1)
        if len(starts) == 1:
            yield Pair(), Pair()
            raise torch.cuda.OutOfMemoryError("no room")
        yield from pairs()

    cache, found = prefix_placement.allocate_prefix_cache(layers, 0, GIB, GIB, CARD)
    assert found == prefix_placement.CacheLocation.RAM and len(cache.layers) == 2


def test_without_a_card_ram_is_the_only_place(prefix_placement, memory):
    for ram, place in ((8 * GIB, "VRAM"), (3 * GIB, "RECOMPUTE")):
        memory(0, ram)
        _, found = prefix_placement.allocate_prefix_cache(pairs, 0, GIB, GIB, torch.device("cpu"))
        assert found == prefix_placement.CacheLocation[place]


def test_a_pass_over_the_prefix_can_be_cancelled_between_blocks(prefix_placement, memory):
    import comfy.model_management as management
    memory(0, 100 * GIB)
    done = []

    def layers():
        for number in range(4):
            done.append(number)
            if number == 1:
                management.interrupt_current_processing()
            yield Pair(), Pair()

    with pytest.raises(management.InterruptProcessingException):
        prefix_placement.allocate_prefix_cache(layers, 0, GIB, GIB, torch.device("cpu"))
    assert done == [0, 1]


def test_what_other_prefixes_keep_on_the_card_counts(prefix_placement, memory):
    """Guidance has two prompts: the second must not be tried where the first has taken the room."""
    memory(4 * GIB, 8 * GIB)
    for others, place in ((2 * GIB, "VRAM"), (2 * GIB + 1, "RAM")):
        _, found = prefix_placement.allocate_prefix_cache(pairs, 0, GIB, GIB, CARD, others=others)
        assert found == prefix_placement.CacheLocation[place]


# ---------------------------------------------------------------- pinned RAM

@pytest.fixture
def pins(monkeypatch):
    """ComfyUI's account of pinned memory, with room for as many tensors as told."""
    import comfy.model_management as management

    def pin(tensor):
        if len(pins.held) == pins.room or not tensor.is_contiguous():
            return False
        pins.held.append(tensor.data_ptr())
        return True

    pins = SimpleNamespace(room=0, held=[])
    monkeypatch.setattr(management, "pin_memory", pin)
    monkeypatch.setattr(management, "unpin_memory", lambda tensor: pins.held.remove(tensor.data_ptr()))
    return pins


def real_pairs():
    """Keys and values of two blocks; the first one's keys are a view of something larger."""
    return iter([(torch.ones(1, 5, 4, 2)[..., :1], torch.ones(1, 5, 4, 1)),
                 (torch.ones(1, 5, 4, 1), torch.ones(1, 5, 4, 1))])


@pytest.fixture
def in_ram(prefix_placement, memory, monkeypatch):
    from qwen_image_2.model.runtime.offload import Transfer
    monkeypatch.setattr(prefix_placement, "transfer_for", lambda device: Transfer(torch.device("cpu")))
    memory(0, 8 * GIB)
    return lambda: prefix_placement.allocate_prefix_cache(real_pairs, 5, GIB, GIB, CARD)


def waits(prefix_placement, cache, location) -> bool:
    """Whether it is said that every block waits for its copy."""
    _, *more = prefix_placement.in_words(cache, location, prefix_placement.CacheLocation.VRAM, 5, GIB, CARD)
    return any("could not be pinned" in sentence for sentence in more)


def test_ram_is_pinned_until_the_run_ends(prefix_placement, pins, in_ram):
    pins.room = 4
    cache, location = in_ram()
    assert isinstance(cache, prefix_placement.PinnedPrefix) and len(pins.held) == 4
    assert not waits(prefix_placement, cache, location)
    assert cache.layer(1, torch.device("cpu"))[0].sum() == 20
    cache.release()
    cache.release()
    assert not pins.held


def test_pins_do_not_outlive_their_tensors(pins, in_ram):
    pins.room = 4
    cache = in_ram()[0]
    assert pins.held
    del cache
    assert not pins.held


def test_without_room_for_all_nothing_stays_pinned(prefix_placement, pins, in_ram):
    pins.room = 3
    cache, location = in_ram()
    assert type(cache).__name__ == "PrefixCache" and location is prefix_placement.CacheLocation.RAM and not pins.held
    assert waits(prefix_placement, cache, location)
    assert not waits(prefix_placement, cache, prefix_placement.CacheLocation.VRAM)


# ---------------------------------------------------------------- the user's choice

@torch.inference_mode()
@pytest.mark.parametrize(("choice", "words"), [("automatic", "MiB, in system RAM."), ("RAM", "MiB, in system RAM."),
                                               ("recompute", "recomputed every step.")])
def test_the_place_of_keys_and_values_is_the_users_choice(load, choice, words):
    from qwen_image_2.nodes.bridge.keys import CACHE_LOCATION_KEY
    from qwen_image_2.nodes.memory import PLACES
    model, told = load(), []
    expected = sample(model)
    chosen = reporting_to(told.append, model)
    chosen.model_options["transformer_options"][CACHE_LOCATION_KEY] = PLACES[choice]
    assert torch.equal(sample(chosen), expected)
    assert words in told[0]


@pytest.mark.parametrize(("device", "words"), [(CARD, "MiB, in VRAM."), (torch.device("cpu"), "MiB, in system RAM.")])
def test_beside_the_model_is_in_the_memory_of_its_device(prefix_placement, device, words):
    place = prefix_placement.CacheLocation.VRAM
    sentence, = prefix_placement.in_words(object(), place, place, 5, GIB, device)
    assert sentence.endswith(words)
