"""CONDITIONING that is encoded when somebody reads it: not before, once, and for ComfyUI's nodes like any other."""
import copy
import pickle

import pytest
import torch

ENTRY = [[torch.ones(1, 3, 4), {"pooled_output": None}]]


@pytest.fixture
def lazy(comfyui):
    """The conditioning, and how often it was encoded."""
    from qwen_image_2.nodes.bridge.text_encoders.lazy import LazyConditioning
    made = []
    return LazyConditioning(lambda: made.append(1) or ENTRY), made


def test_it_is_encoded_once_and_not_before_it_is_read(lazy):
    conditioning, made = lazy
    assert not made and not conditioning.is_encoded
    assert len(conditioning) == 1 and conditioning[0] is ENTRY[0] and list(conditioning) == ENTRY
    assert made == [1] and conditioning.is_encoded


@pytest.mark.parametrize("read", [
    lambda it: it + [], lambda it: [] + it, lambda it: it.copy(), copy.copy, copy.deepcopy, list,
    lambda it: pickle.loads(pickle.dumps(it)), lambda it: it[:], lambda it: [*it]],
    ids=["sum", "right of a sum", "copy", "copy.copy", "deepcopy", "list", "pickle", "slice", "spread"])
def test_what_is_made_of_it_is_a_plain_list(lazy, read):
    conditioning, made = lazy
    found = read(conditioning)
    assert type(found) is list and len(found) == 1 and torch.equal(found[0][0], ENTRY[0][0]) and made == [1]


def test_two_of_them_add_up(lazy):
    conditioning, _ = lazy
    assert len(conditioning + conditioning) == 2


def test_an_interrupted_reader_leaves_it_to_the_next_one(comfyui):
    from qwen_image_2.nodes.bridge.text_encoders.lazy import LazyConditioning
    answers = iter([InterruptedError(), ENTRY])

    def encode():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    conditioning = LazyConditioning(encode)
    with pytest.raises(InterruptedError):
        len(conditioning)
    assert not conditioning.is_encoded and conditioning[0] is ENTRY[0]


@pytest.mark.parametrize("use", [
    lambda nodes, it: nodes.ConditioningCombine().combine(ENTRY, it)[0],
    lambda nodes, it: nodes.ConditioningCombine().combine(it, ENTRY)[0],
    lambda nodes, it: nodes.ConditioningConcat().concat(it, it)[0],
    lambda nodes, it: nodes.ConditioningAverage().addWeighted(it, it, 0.5)[0],
    lambda nodes, it: nodes.ConditioningSetArea().append(it, 64, 64, 0, 0, 1.0)[0],
    lambda nodes, it: nodes.ConditioningZeroOut().zero_out(it)[0],
    lambda nodes, it: nodes.ConditioningSetTimestepRange().set_range(it, 0.0, 0.5)[0],
], ids=["combine", "combine the other way", "concat", "average", "area", "zero", "range"])
def test_core_s_nodes_take_it(lazy, use):
    import nodes
    conditioning, made = lazy
    assert not made
    found, expected = use(nodes, conditioning), use(nodes, ENTRY)
    assert made == [1] and len(found) == len(expected) and torch.equal(found[0][0], expected[0][0])
