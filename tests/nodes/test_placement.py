"""Where keys and values of a prefix are kept."""
import pytest
import torch

from qwen_image_2.model.prefix import RecomputedPrefix

CARD = torch.device("cuda")


@pytest.fixture
def placement(comfyui):
    from qwen_image_2.nodes.bridge import placement
    return placement


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


def pairs():
    return iter([(Pair(), Pair()), (Pair(), Pair())])


GIB = 2**30


@pytest.mark.parametrize(("video", "ram", "place"), [
    (8 * GIB, 0, "DEVICE"), (4 * GIB, 8 * GIB, "RAM"), (4 * GIB, 3 * GIB, "NOWHERE")])
def test_the_fastest_place_with_room_is_taken(placement, memory, video, ram, place):
    memory(video, ram)
    cache, found = placement.keep(pairs, 5, needed=4 * GIB, working=GIB, device=CARD)
    assert found == placement.Place[place]
    assert cache.position == 5
    if place == "NOWHERE":
        assert isinstance(cache, RecomputedPrefix) and not cache.layers
    else:
        device = CARD if place == "DEVICE" else torch.device("cpu")
        assert {t.device for pair in cache.layers for t in pair} == {device}


def test_running_out_of_video_memory_moves_on_to_ram(placement, memory):
    memory(100 * GIB, 100 * GIB)
    starts = []

    def layers():
        starts.append(1)
        if len(starts) == 1:
            yield Pair(), Pair()
            raise torch.cuda.OutOfMemoryError("no room")
        yield from pairs()

    cache, found = placement.keep(layers, 0, GIB, GIB, CARD)
    assert found == placement.Place.RAM and len(cache.layers) == 2


def test_without_a_card_ram_is_the_only_place(placement, memory):
    for ram, place in ((8 * GIB, "DEVICE"), (3 * GIB, "NOWHERE")):
        memory(0, ram)
        assert placement.keep(pairs, 0, GIB, GIB, torch.device("cpu"))[1] == placement.Place[place]


def test_a_pass_over_the_prefix_can_be_cancelled_between_blocks(placement, memory):
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
        placement.keep(layers, 0, GIB, GIB, torch.device("cpu"))
    assert done == [0, 1]


def test_what_other_prefixes_keep_on_the_card_counts(placement, memory):
    """Guidance has two prompts: the second must not be tried where the first has taken the room."""
    memory(4 * GIB, 8 * GIB)
    assert placement.keep(pairs, 0, GIB, GIB, CARD, others=2 * GIB)[1] == placement.Place.DEVICE
    assert placement.keep(pairs, 0, GIB, GIB, CARD, others=2 * GIB + 1)[1] == placement.Place.RAM
