"""The miniature's world: what is drawn, said and held out, the program that judges it, and the training's parts."""
import random

import numpy
import pytest
import torch
from torch import nn

from qwen_image_2.tools.miniature import examples, judge, scenes, train_transformer, wording
from qwen_image_2.tools.miniature.pool import Prepared
from qwen_image_2.tools.miniature.scenes import TRANSPARENT, Scene, Shape, Word
from qwen_image_2.tools.miniature.training import Muon, State, optimizers, orthogonal


def some(count: int, invent, seed: int = 0) -> list:
    rng = random.Random(seed)
    return [invent(rng) for _ in range(count)]


# ---------------------------------------------------------------- scenes

@pytest.mark.parametrize("scene", some(20, scenes.sample), ids=str)
def test_nothing_overlaps_and_everything_shows(scene):
    """Leaving one thing out changes as many pixels as it has, wherever the others are."""
    whole = numpy.asarray(scenes.draw(scene)).astype(int)
    assert whole.shape == (*scene.canvas[::-1], 4)
    alone = 0
    parts = [Scene(scene.background, (shape,), None, scene.canvas) for shape in scene.shapes]
    parts += [Scene(scene.background, (), scene.word, scene.canvas)] * (scene.word is not None)
    empty = numpy.asarray(scenes.draw(Scene(scene.background, canvas=scene.canvas))).astype(int)
    for part in parts:
        ink = (numpy.asarray(scenes.draw(part)) != empty).any(2)
        assert ink.sum() > 60
        alone += ink.sum()
    assert (whole != empty).any(2).sum() == alone


def test_transparent_scenes_have_real_alpha():
    picture = numpy.asarray(scenes.draw(Scene(TRANSPARENT, (Shape("circle", "red", "large", "centre", "centre"),))))
    assert picture[0, 0].tolist() == [*scenes.COLOURS["white"], 0]
    assert picture[64, 64].tolist() == [*scenes.COLOURS["red"], 255]


def test_training_never_sees_what_is_held_out():
    for example in some(500, examples.for_training):
        assert not any(map(scenes.held_out, (example.target, *example.references)))
    share = sum(map(scenes.held_out, some(1000, scenes.sample))) / 1000
    assert 0.1 < share < 0.4


def test_what_is_held_out_is_the_same_everywhere():
    word = Word("SALE", "white", "top")
    assert [name for name in scenes.COLOURS if scenes.held_out(Scene(name, (), word))] == ["green"]


# ---------------------------------------------------------------- words

def test_prompts_say_everything():
    rng = random.Random(1)
    for scene in some(200, scenes.sample):
        text = wording.describe(scene, rng)
        english = text.isascii()
        named = [scene.background, *(name for shape in scene.shapes for name in (shape.kind, shape.colour, shape.size))]
        named += [scene.word.colour] if scene.word else []
        assert all((name if english else wording.CHINESE[name]) in text.lower() for name in named), text
        assert scene.word is None or scene.word.text in text
        assert "{" not in text and "a orange" not in text


@pytest.mark.parametrize("edit", examples.EDITS)
def test_edits_change_what_they_say_and_nothing_else(edit):
    for example in some(30, lambda rng: examples.invent_edit(rng, edit)):
        assert example.edit == edit and example.prompt
        source, target = example.references[0], example.target
        assert source.canvas == target.canvas and source != target
        changed = {name for name in ("background", "shapes", "word") if getattr(source, name) != getattr(target, name)}
        if edit == "combine":
            assert (target.background, target.word) == (example.references[1].background, None)
            assert target.shapes == source.shapes
        else:
            part = {"background": "background", "cut out": "background", "word": "word"}.get(edit, "shapes")
            assert changed == {part}
        if edit in ("colour", "add", "remove"):
            assert len(set(source.shapes) ^ set(target.shapes)) == (2 if edit == "colour" else 1)


# ---------------------------------------------------------------- the judge

@pytest.mark.parametrize("scene", some(12, scenes.sample, seed=3), ids=str)
def test_the_judge_reads_what_is_drawn(scene):
    assert judge.compare(judge.look(numpy.asarray(scenes.draw(scene))), scene).all


def test_the_judge_sees_every_difference():
    scene = Scene("blue", (Shape("star", "yellow", "large", "centre", "centre"),), Word("JAZZ", "white", "top"))
    shape, word = scene.shapes[0], scene.word
    wrong = [Scene("green", scene.shapes, word), Scene(TRANSPARENT, scene.shapes, word), Scene("blue", (), word),
             Scene("blue", scene.shapes), Scene("blue", scene.shapes, Word("SALE", "white", "top")),
             Scene("blue", scene.shapes, Word("JAZZ", "yellow", "top")),
             Scene("blue", scene.shapes, Word("JAZZ", "white", "bottom"))]
    wrong += [Scene("blue", (Shape(*values),), word) for values in (
        ("circle", *list(vars(shape).values())[1:]), ("star", "red", "large", "centre", "centre"),
        ("star", "yellow", "small", "centre", "centre"), ("star", "yellow", "large", "left", "centre"),
        ("star", "yellow", "large", "centre", "bottom"))]
    for other in wrong:
        assert not judge.compare(judge.look(numpy.asarray(scenes.draw(other))), scene).all, other


def test_a_shift_is_measured_whatever_the_colours():
    """Half a latent token is caught, a recolouring alone is none."""
    rng = random.Random(5)
    for _ in range(5):
        example = examples.invent_edit(rng, "background")
        source, result = (numpy.asarray(scenes.draw(scene)) for scene in (*example.references, example.target))
        assert numpy.hypot(*judge.shift(source, result)) < 0.1
        assert judge.shift(source, numpy.roll(result, (8, 0), (0, 1))) == pytest.approx((0, 8), abs=0.2)
        assert judge.shift(source, numpy.roll(result, (0, -1), (0, 1))) == pytest.approx((-1, 0), abs=0.2)


# ---------------------------------------------------------------- training

def test_orthogonal_keeps_directions_and_evens_out_strengths():
    torch.manual_seed(0)
    matrix = torch.randn(12, 40)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    strengths = torch.diagonal(u.T @ orthogonal(matrix) @ v.T)
    assert strengths.min() > 0.6 and strengths.max() < 1.3
    assert torch.allclose(orthogonal(matrix.T), orthogonal(matrix).T, atol=1e-5)


def test_a_stopped_training_goes_on_as_if_it_had_not(tmp_path):
    def make():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 2))
        both = optimizers(module, 1e-2)
        return module, both, State(tmp_path / "state.safetensors", {"net": module}, both)

    def run(module, both, steps):
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            module(torch.randn(4, 3, 4, 4, generator=generator)).square().mean().backward()
            for optimizer in both:
                optimizer.step()
                optimizer.zero_grad()

    whole, both, state = make()
    assert isinstance(both[0], Muon) and state.load() == 0
    run(whole, both, range(6))
    first, both, state = make()
    run(first, both, range(3))
    state.save(3)
    second, both, state = make()
    assert state.load() == 3
    run(second, both, range(3, 6))
    for expected, found in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(expected, found)


def test_a_training_step_reaches_every_weight():
    torch.manual_seed(0)
    transformer = train_transformer.build()
    for parameter in transformer.parameters():  # past the start, where the gates are shut
        parameter.data += 0.05 * torch.randn_like(parameter)
    prepared = [Prepared(torch.randn(20, 128), (4,), (torch.randn(64, 4, 4),), torch.randn(64, 6, 4))
                for _ in range(3)]
    batch = train_transformer.Batch(prepared, (0.0,) * 64, (1.0,) * 64, torch.Generator(), torch.device("cpu"))
    assert batch.noisy.shape == (3 * train_transformer.LEVELS, 64, 6, 4)
    train_transformer.loss(transformer, batch).backward()
    assert [name for name, value in transformer.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_each_example_is_shown_at_every_noise_level():
    sigmas = train_transformer._sigmas(5, torch.Generator()).view(train_transformer.LEVELS, 5)
    assert (sigmas > 0).all() and (sigmas <= 1).all()
    assert (sigmas[1:] > sigmas[:-1]).all()
