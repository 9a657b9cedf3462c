"""Keys and values that visit the device in turn: the very same result, the order of the copies, who waits for whom."""
import pytest
import torch

from qwen_image_2.model.qwen_image_2.prefix_prefetch import PrefetchedPrefix
from qwen_image_2.model.runtime.offload import BUFFERS, Transfer
from qwen_image_2.tests.model.runtime.test_offload import SPEC, Pinnable, backend, condition, transformer  # noqa: F401

CPU = torch.device("cpu")


class Recorder(Transfer):
    """Writes down which block's keys each copy brings."""

    def __init__(self, layers):
        super().__init__(CPU)
        self.copied, self.number = [], {k.data_ptr(): number for number, (k, _) in enumerate(layers)}

    def copy(self, parts, buffer):
        self.copied.append(self.number[parts[0].data_ptr()])
        super().copy(parts, buffer)


@torch.inference_mode()
def steps(transformer, cache) -> torch.Tensor:  # noqa: F811
    x = torch.randn(2, 64, 4, 6, generator=torch.Generator().manual_seed(2))
    return torch.stack([transformer(x, torch.tensor([sigma]), cache) for sigma in (0.9, 0.4)])


@pytest.fixture
def kept(transformer, condition):  # noqa: F811
    with torch.inference_mode():
        return transformer.encode_prefix(condition)


def test_the_result_is_that_of_keys_and_values_beside_the_model(transformer, kept):  # noqa: F811
    transfer = Recorder(kept.layers)
    cache = PrefetchedPrefix(kept.position, kept.layers, transfer=transfer)
    assert torch.equal(steps(transformer, cache), steps(transformer, kept))
    order = list(range(SPEC.layers))
    assert transfer.copied == [*order, *order, 0]  # each once a step, and the first of a third already under way


def test_a_pass_that_breaks_off_is_followed_by_a_whole_one(transformer, kept):  # noqa: F811
    cache = PrefetchedPrefix(kept.position, kept.layers)
    for number in range(4):
        cache.layer(number, CPU)
    assert torch.equal(steps(transformer, cache), steps(transformer, kept))


def test_a_copy_that_fails_is_made_anew(transformer, kept):  # noqa: F811
    class Broken(Transfer):
        left = 3

        def copy(self, parts, buffer):
            self.left -= 1
            if not self.left:
                raise MemoryError("no room")
            super().copy(parts, buffer)

    cache = PrefetchedPrefix(kept.position, kept.layers, transfer=Broken(CPU))
    with pytest.raises(MemoryError, match="no room"):
        steps(transformer, cache)
    assert torch.equal(steps(transformer, cache), steps(transformer, kept))


@pytest.mark.parametrize("pinned", [True, False])
def test_copies_and_computing_wait_for_each_other(transformer, kept, backend, monkeypatch, pinned):  # noqa: F811
    """Into a buffer is copied when the block before has been computed, out of it read when it has been filled."""
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: pinned)
    cache = PrefetchedPrefix(kept.position, kept.layers, transfer=Pinnable(CPU))
    with torch.inference_mode():
        for number in range(3):
            cache.layer(number, CPU)
    first, second = cache._buffers
    names = {id(event): f"{name} {kind}" for name, buffer in (("first", first), ("second", second))
             for kind, event in (("used", buffer.used), ("filled", buffer.filled))}
    log = [(entry[0], names[entry[1]], "main" if entry[2] is backend.main else "copies")
           for entry in backend.log if entry[0] in ("record", "wait")]
    copy = {name: [("wait", f"{name} used", "copies"), ("record", f"{name} filled", "copies")]
            for name in ("first", "second")}
    assert log == [
        ("record", "first used", "main"), ("record", "second used", "main"),      # free from the start
        *copy["first"], ("wait", "first filled", "main"), *copy["second"],        # block 0, block 1 under way
        ("record", "first used", "main"), ("wait", "second filled", "main"), *copy["first"],
        ("record", "second used", "main"), ("wait", "first filled", "main"), *copy["second"]]
    cache.release()
    assert backend.log[-1] == ("finish", backend.copies) and not cache._buffers
    assert torch.equal(steps(transformer, cache), steps(transformer, kept))


def test_there_are_two_buffers_of_one_block(kept):
    cache = PrefetchedPrefix(kept.position, kept.layers)
    pieces = {tensor.untyped_storage().data_ptr() for number in range(SPEC.layers)
              for tensor in cache.layer(number, CPU)}
    assert len(pieces) == BUFFERS == len(cache._buffers)
