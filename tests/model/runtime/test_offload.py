"""Blocks that visit the device in turn: what stays, the order of the copies, and the very same result."""
import random
import threading
from contextlib import contextmanager

import pytest
import torch

from qwen_image_2.model.qwen_image_2.prefix_cache import Condition, RecomputedPrefix
from qwen_image_2.model.qwen_image_2.spec import TransformerSpec
from qwen_image_2.model.qwen_image_2.transformer import Transformer, prefix_end
from qwen_image_2.model.runtime import offload
from qwen_image_2.model.runtime.offload import BUFFERS, Plan, Streamer, Transfer

SPEC = TransformerSpec(layers=6, dim=32, heads=2, head_dim=16, mlp_dim=48, context_dim=24, rope_axes=(4, 6, 6))


# ---------------------------------------------------------------- plans

@pytest.mark.parametrize("seed", range(20))
def test_the_budget_holds_and_nothing_more_would_fit(seed):
    rng = random.Random(seed)
    sizes, fixed = [rng.randint(50, 100) for _ in range(rng.randint(3, 40))], rng.randint(1, 300)
    least = offload.plan(fixed, sizes, 0)
    assert least.streamed == frozenset(range(len(sizes)))
    for budget in range(least.on_device, fixed + sum(sizes) + 100, 37):
        plan = offload.plan(fixed, sizes, budget)
        assert plan.on_device <= budget
        assert plan.resident + plan.moved == fixed + sum(sizes)
        kept = len(sizes) - len(plan.streamed)
        assert kept == len(sizes) or plan.keeping(kept + 1).on_device > budget


def test_blocks_that_stay_lie_evenly_between_those_that_stream():
    assert Plan(0, (1,) * 8, frozenset()).keeping(4).streamed == {1, 3, 5, 7}
    assert Plan(0, (1,) * 9, frozenset()).keeping(6).streamed == {1, 4, 7}


def test_all_fits():
    plan = offload.plan(10, [5, 5], 20)
    assert (plan.streamed, plan.buffers, plan.on_device, plan.moved) == (frozenset(), 0, 20, 0)


# ---------------------------------------------------------------- passes

class Recorder(Transfer):
    """Writes down what happens, in order."""

    def __init__(self):
        super().__init__(torch.device("cpu"))
        self.events: list[tuple[str, int]] = []

    def copy(self, parts, buffer):
        self.events.append(("copy", buffer.block))
        super().copy(parts, buffer)


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    made = Transformer(SPEC).requires_grad_(False)
    for name, parameter in made.named_parameters():
        if name.endswith("text_norm.weight"):
            torch.nn.init.zeros_(parameter)
    return made


@pytest.fixture
def condition():
    return Condition(torch.randn(1, 7, SPEC.context_dim, generator=torch.Generator().manual_seed(1)))


def stream(transformer: Transformer, kept: int, transfer: Transfer | None = None) -> Streamer:
    sizes = [sum(map(offload.size_of, offload.entries(block))) for block in transformer.transformer_blocks]
    plan = Plan(0, tuple(sizes), frozenset()).keeping(kept)
    transformer.streamer = Streamer(transformer.transformer_blocks, plan, transfer or Transfer(torch.device("cpu")))
    return transformer.streamer


@torch.inference_mode()
def velocity(transformer: Transformer, condition: Condition, recomputed: bool = False) -> torch.Tensor:
    x = torch.randn(1, 64, 4, 6, generator=torch.Generator().manual_seed(2))
    cache = (RecomputedPrefix(prefix_end(condition), compute=lambda: transformer.prefix_layers(condition))
             if recomputed else transformer.encode_prefix(condition))
    return torch.stack([transformer(x, torch.tensor([sigma]), cache) for sigma in (0.9, 0.4)])


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("kept", [0, 1, 3, 4, 5])
def test_the_result_is_that_of_the_resident_model(transformer, condition, kept, recomputed):
    expected = velocity(transformer, condition)
    streamer = stream(transformer, kept)
    own = [entry.parameter for entry in offload.entries(transformer)]
    assert torch.equal(velocity(transformer, condition, recomputed), expected)
    streamer.release()
    assert all(entry.parameter is parameter
               for entry, parameter in zip(offload.entries(transformer), own, strict=True))


def test_every_block_is_copied_once_a_pass_and_in_order(transformer, condition):
    transfer = Recorder()
    streamer = stream(transformer, 2, transfer)
    order = sorted(streamer.plan.streamed)
    velocity(transformer, condition)
    streamer.release()
    copied = [block for _, block in transfer.events]
    # Three passes, and the first block of a fourth that was already on its way.
    assert copied == (order * 3 + order)[:len(copied)] and len(copied) == 3 * len(order) + 1


def test_the_next_block_is_on_its_way_while_one_computes(transformer, condition):
    """The copy of a block can end while the block before it is held: nothing waits for the pass to move on."""
    streamer = stream(transformer, 0)
    passing = streamer.iter_blocks()
    next(passing)
    following = next(buffer for buffer in streamer.buffers if buffer.block == 1)
    assert following.arrival.result(timeout=10) is None and following.holders == 0
    passing.close()
    streamer.release()


def test_there_are_two_buffers_of_one_block(transformer, condition):
    streamer = stream(transformer, 0)
    pieces = set()
    for block in streamer.iter_blocks():
        pieces |= {entry.parameter.untyped_storage().data_ptr() for entry in offload.entries(block)}
        assert len(streamer.buffers) == BUFFERS
        assert sum(buffer.memory.nbytes for buffer in streamer.buffers) == streamer.plan.buffers
    assert len(pieces) == BUFFERS
    streamer.release()
    assert not streamer.buffers


def test_a_pass_that_breaks_off_leaves_every_block_with_its_own_weights(transformer, condition):
    expected = velocity(transformer, condition)
    streamer = stream(transformer, 0)
    own = [entry.parameter for entry in offload.entries(transformer)]

    def cancelled(*args, **kwargs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), torch.inference_mode():
        transformer(torch.zeros(1, 64, 4, 6), torch.tensor([0.5]), transformer.encode_prefix(condition), cancelled)
    abandoned = streamer.iter_blocks()
    next(abandoned)
    streamer.release()
    abandoned.close()
    assert all(entry.parameter is parameter
               for entry, parameter in zip(offload.entries(transformer), own, strict=True))
    assert not any(thread.name.startswith("weights") for thread in threading.enumerate())
    assert torch.equal(velocity(transformer, condition), expected)


def test_weights_that_change_between_passes_are_copied_anew(transformer, condition):
    streamer = stream(transformer, 0)
    velocity(transformer, condition)
    with torch.no_grad():
        transformer.transformer_blocks[0].attn.to_q.weight.mul_(3)
    streamer.expect("changed")
    found = velocity(transformer, condition)
    streamer.release()
    transformer.streamer = None
    assert torch.equal(found, velocity(transformer, condition))


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_copy_that_fails_is_told_once_and_made_anew(transformer, condition, failing):
    """As where no memory could be pinned for it: the step is repeated with less in use."""
    class Broken(Transfer):
        left = failing

        def copy(self, parts, buffer):
            self.left -= 1
            if not self.left:
                raise MemoryError("no room")
            super().copy(parts, buffer)

    expected = velocity(transformer, condition)
    streamer = stream(transformer, 0, Broken(torch.device("cpu")))
    with pytest.raises(MemoryError, match="no room"):
        velocity(transformer, condition)
    assert torch.equal(velocity(transformer, condition), expected)
    streamer.release()


# ---------------------------------------------------------------- streams, without a card

class Backend:
    """Stands for torch.cuda: writes down what a device with streams would be asked to do, in order."""

    def __init__(self):
        self.log: list[tuple] = []
        backend = self

        class Event:
            def record(self, stream):
                backend.log.append(("record", id(self), stream))

            def synchronize(self):
                backend.log.append(("synchronize", id(self)))

        class Stream:
            def wait_event(self, event):
                backend.log.append(("wait", id(event), self))

            def synchronize(self):
                backend.log.append(("finish", self))

        self.Event, self.main, self.copies = Event, Stream(), Stream()
        self.Stream = lambda device: self.copies

    def current_stream(self, device):
        return self.main

    @contextmanager
    def stream(self, stream):
        self.log.append(("into", stream))
        yield


@pytest.fixture
def backend(monkeypatch):
    backend = Backend()
    monkeypatch.setattr(torch, "get_device_module", lambda device: backend)
    return backend


class Pinnable(offload.CudaTransfer):
    def staging(self, size):
        return torch.empty(size, dtype=torch.uint8)


@pytest.mark.parametrize("pinned", [False, True])
def test_copies_and_computing_wait_for_each_other(transformer, condition, backend, monkeypatch, pinned):
    """Into a buffer is copied when the block before has been computed, out of it computed when it has been filled."""
    expected = velocity(transformer, condition)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: pinned)
    streamer = stream(transformer, 0, Pinnable(torch.device("cpu")))
    passing = streamer.iter_blocks()
    next(passing)
    buffers = list(streamer.buffers)
    for buffer in buffers:
        buffer.arrival.result()
    passing.close()
    events = [[entry[0] for entry in backend.log if len(entry) > 1 and id(event) in entry]
              for event in (buffers[0].used, buffers[0].filled)]
    staged = [] if pinned else ["synchronize"]
    assert events[0][:2] == ["record", "wait"]                     # free from the start; the copy waits for it
    assert events[1][:2 + len(staged)] == [*staged, "record", "wait"]  # filled, and the computing waits for it
    waits = {(entry[1], entry[2]) for entry in backend.log if entry[0] == "wait"}
    assert (id(buffers[0].used), backend.copies) in waits and (id(buffers[0].filled), backend.main) in waits
    streamer.release()
    assert backend.log[-1] == ("finish", backend.copies)
    assert torch.equal(velocity(transformer, condition), expected)
    streamer.release()


def test_an_abandoned_pass_that_is_closed_late_takes_no_buffer(transformer, condition):
    """An exception may keep a pass open until after the next one has begun with other weights."""
    expected = velocity(transformer, condition)
    streamer = stream(transformer, 0)
    abandoned = streamer.iter_blocks()
    next(abandoned)
    streamer.expect("other weights")
    later = streamer.iter_blocks()
    next(later)
    abandoned.close()
    assert sum(buffer.holders for buffer in streamer.buffers) == 1
    later.close()
    assert torch.equal(velocity(transformer, condition), expected)
    streamer.release()


def test_copies_are_timed():
    assert offload.copy_rate(Transfer(torch.device("cpu")), size=2**20) > 1e6
