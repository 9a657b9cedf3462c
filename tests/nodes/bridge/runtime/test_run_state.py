"""What is known of a run while it lasts, and that nothing of it is left afterwards."""
import contextlib
import gc
import weakref

import pytest
import torch

from qwen_image_2.tests.nodes.bridge.runtime.runs import sample, text_and_noise

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")


@pytest.fixture
def run_state(comfyui):
    from qwen_image_2.nodes.bridge.runtime import run_state
    return run_state


class Prefix:
    """Keys and values that take seven bytes beside the model, until they are cleared."""

    def __init__(self, place):
        self.location, self.video_memory = place, 7

    def clear(self):
        self.location, self.video_memory = None, 0


def finish():
    pass


def fail():
    raise ZeroDivisionError


def cancel():
    import comfy.model_management
    comfy.model_management.interrupt_current_processing()
    comfy.model_management.throw_exception_if_processing_interrupted()


@pytest.mark.parametrize(("end", "error"), [(finish, None), (fail, "ZeroDivisionError"),
                                            (cancel, "InterruptProcessingException")])
def test_nothing_of_a_run_is_left_on_the_model(run_state, load, end, error):
    model, during = load(), []
    inner = model.model

    def callback(step, *_):
        state = inner.run_state
        during.append((state.cached_tokens, [prefix.cache is not None for prefix in state.prefixes]))
        state.oom_retried = True
        state.reported_patches.add("attn1_patch")
        during.append(weakref.ref(state))
        end()

    with pytest.raises(BaseException) if error else contextlib.nullcontext() as raised:
        sample(model, cfg=2.0, callback=callback)
    assert not error or raised.typename == error
    assert during[0] == (12 + 9, [True, True])
    assert inner.run_state == run_state.RunState() and not inner.run_state.prefixes
    del raised  # its traceback holds the run's frames
    gc.collect()
    assert during[1]() is None


def test_the_next_sampler_of_a_graph_starts_afresh(load):
    """Two samplers with the same model, or clones of it."""
    model, states = load(), []

    def callback(*_):
        states.append((model.model.run_state.oom_retried, len(model.model.run_state.prefixes)))
        model.model.run_state.oom_retried = True

    for patcher in (model, model.clone()):
        sample(patcher, steps=1, callback=callback)
    assert states == [(False, 1)] * 2


def test_a_run_inside_of_another(load):
    """ComfyUI lets a node sample from the callback of another's last step: both pictures are what they are alone."""
    model, inside, states = load(), [], []
    inner = model.model
    expected, alone = sample(model, steps=2), sample(model.clone(), steps=1, cfg=2.0)

    def callback(step, *_):
        if step == 1:
            outer = inner.run_state
            inside.append(sample(model.clone(), steps=1, cfg=2.0,
                                 callback=lambda *_: states.append((inner.run_state.outer is outer,
                                                                    len(inner.run_state.prefixes)))))
            states.append((inner.run_state is outer, inner.run_state.cached_tokens))

    assert torch.equal(sample(model, steps=2, callback=callback), expected)
    assert torch.equal(inside[0], alone)
    assert states == [(True, 3), (True, 12)]  # one prompt of the outer run, two of the inner one


def test_a_run_inside_of_another_sees_what_that_keeps(run_state):
    """Both share one card: the inner run places its keys and values beside the outer's, and may take their room."""
    from qwen_image_2.nodes.bridge.runtime.prefix_placement import CacheLocation
    first, second = Prefix(CacheLocation.VRAM), Prefix(CacheLocation.VRAM)
    outer = run_state.RunState().begin(12)
    outer.prefixes.add(first)
    outer.oom_retried = True
    inner = outer.begin(20)
    assert (inner.cached_tokens, inner.oom_retried, inner.reported_patches) == (20, False, set())
    assert inner.video_memory_beside(second) == 7 and inner.video_memory_beside(first) == 0
    inner.prefixes.add(second)
    assert inner.keeps_beside_model
    assert inner.end() is outer and not outer.keeps_beside_model and outer.oom_retried
    assert outer.end() == run_state.RunState()


def test_a_model_can_be_called_outside_of_a_run(run_state, load):
    """As nodes do that have a sampling loop of their own: they ask for conditionings, for memory, and for steps."""
    model = load()
    inner = model.model
    text, noise = text_and_noise(model)
    cond = inner.extra_conds(cross_attn=text)["prefix"]
    shapes = {name: [shape] for name, shape in inner.extra_conds_shapes(cross_attn=text).items()}
    assert inner.memory_required(noise.shape, shapes) > inner.memory_required(noise.shape)
    assert inner.run_state == run_state.RunState()
    velocities = [inner.apply_model(noise, torch.tensor([0.7]), prefix=cond.cond) for _ in range(2)]
    assert list(inner.run_state.prefixes) == [cond.cond]
    assert torch.equal(*velocities) and cond.cond.cache is not None
    sample(model, steps=1)  # ends with what was there before, as its room is the run's
    assert cond.cond.cache is None and inner.run_state == run_state.RunState()


def test_where_memory_has_run_out_keys_and_values_leave_the_card(run_state):
    from qwen_image_2.nodes.bridge.runtime.prefix_placement import CacheLocation
    state = run_state.RunState()
    assert [state.first_location(location) for location in CacheLocation] == list(CacheLocation)
    state.oom_retried = True
    assert [state.first_location(location) for location in CacheLocation] == [
        CacheLocation.RAM, CacheLocation.RAM, CacheLocation.RECOMPUTE]
