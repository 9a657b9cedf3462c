"""Upscale: whole passes on random weights, sizes, words, and what the node refuses."""
from types import SimpleNamespace

import pytest
import torch

from qwen_image_2.messages import Refusal
from qwen_image_2.tests.nodes.test_sampler import prompt
from qwen_image_2.tests.reference import error

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")
SETTINGS = dict(scale=2.0, longer_side=0, strength=0.3, seed=3, preset="Custom", steps=6, cfg=1.0, tile=0, overlap=0,
                expected_text="")


@pytest.fixture
def node(comfyui, monkeypatch):
    from qwen_image_2.nodes.upscale import QwenImage2Upscale
    monkeypatch.setattr(QwenImage2Upscale, "hidden", SimpleNamespace(unique_id=None), raising=False)
    return QwenImage2Upscale


@pytest.fixture
def small_tiles(comfyui, monkeypatch):
    """Tiles that random weights draw in no time."""
    from qwen_image_2.nodes.common import upsampling
    monkeypatch.setattr(upsampling, "TILE_SIDES", (64, 96, 128))
    return upsampling


def picture(width: int = 90, height: int = 64, channels: int = 3, count: int = 1) -> torch.Tensor:
    small = torch.rand(count, channels, 4, 5, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 1).movedim(1, -1)


def upscaled(node, model, vae, image=None, positive=None, **changes):
    out = node.execute(model, prompt(0) if positive is None else positive, vae, picture() if image is None else image,
                       **(SETTINGS | changes))
    return out.args


@pytest.fixture
def undrifted(comfyui, monkeypatch):
    """Random weights keep no colour: without this every pass would be followed by another."""
    from qwen_image_2.model.images import drift
    monkeypatch.setattr(drift, "LIMIT", 1000.0)


@pytest.mark.parametrize("channels", [3, 4])
def test_one_tile_is_plain_image_to_image_with_the_source_s_colours(node, model, vae, undrifted, channels):
    from qwen_image_2.model.images.drift import held
    from qwen_image_2.model.qwen_image_2.schedule import SHIFT
    from qwen_image_2.nodes.bridge.guider import guider_for, sample
    from qwen_image_2.nodes.common.schedules import noise_for
    from qwen_image_2.nodes.common.upsampling import canvas_of
    image = picture(channels=channels)
    found, report = upscaled(node, model, vae, image, tile=512)
    assert found.shape == (1, 128, 180, channels) and "192 x 128 pixels in 1 tiles of 192 x 128" in report
    source = canvas_of(image, (180, 128))
    latent = {"samples": vae.encode(source)}
    whole = SHIFT.sigmas(6, 8 * 12)
    sigmas = torch.cat([torch.tensor([0.3]), whole[whole < 0.3]])
    made = sample(guider_for(model, prompt(0), None, 1.0), latent, noise_for(latent, 3), sigmas, 3)
    drawn = held(vae.decode(made)[..., :3].float(), source[..., :3])[:, :128, :180]
    assert (found[..., :3] - drawn).abs().max() < 1e-4
    if channels == 4:
        assert torch.equal(found[..., 3], source[:, :128, :180, 3]), "transparency is the source's"


def test_the_schedule_is_that_of_a_tile(node, model, vae, small_tiles, undrifted, monkeypatch):
    """mu of the whole picture would move sigmas below the start to other places."""
    from qwen_image_2.model.qwen_image_2.schedule import SHIFT
    from qwen_image_2.nodes.bridge import tiled
    seen = []
    run = tiled.sample_by_tiles
    monkeypatch.setattr(tiled, "sample_by_tiles", lambda guider, latent, noise, sigmas, *more: seen.append(
        sigmas) or run(guider, latent, noise, sigmas, *more))
    _, report = upscaled(node, model, vae, tile=96)
    assert "192 x 128 pixels in 6 tiles of 96 x 96" in report
    whole = SHIFT.sigmas(6, 36)
    assert torch.allclose(seen[0], torch.cat([torch.tensor([0.3]), whole[whole < 0.3]]))


def test_two_passes_and_the_longer_side(node, model, vae, small_tiles, undrifted):
    found, report = upscaled(node, model, vae, picture(64, 40), longer_side=200)
    assert found.shape == (1, 125, 200, 3)
    assert "Pass 1/2: 128 x 96 pixels" in report and "Pass 2/2: 224 x 128 pixels" in report


def test_a_batch_has_a_seed_for_each_picture(node, model, vae, undrifted):
    batch = picture(40, 40).expand(2, -1, -1, -1)
    found, _ = upscaled(node, model, vae, batch)
    alone, _ = upscaled(node, model, vae, batch[:1], seed=4)
    assert len(found) == 2 and error(found[1:], alone) < 1e-5 < error(found[:1], alone)


def test_what_drifts_is_drawn_again_from_a_lower_sigma_and_then_given_up(node, model, vae):
    found, report = upscaled(node, model, vae)
    assert "was drawn once more from sigma 0.15" in report and "was taken from the source" in report
    from qwen_image_2.model.images.drift import differences
    from qwen_image_2.nodes.common.upsampling import canvas_of
    source = canvas_of(picture(), (180, 128))[:, :128, :160]
    assert differences(found[:, :128, :160], source[..., :3]).max() < 6


def test_a_tile_s_own_reference_costs_and_says_so(node, model, vae, small_tiles, undrifted):
    plain, _ = upscaled(node, model, vae, tile=96)
    found, report = upscaled(node, model, vae, tile=96, tile_reference=True)
    assert "6 tiles of 96 x 96, 1 at once" in report and "GiB of keys and values a tile" in report
    assert error(found, plain) > 1e-3


# ---------------------------------------------------------------- words

def line(text: str, status: str, box=None):
    from qwen_image_2.model.images.boxes import Box
    from qwen_image_2.pages.compare import Line
    return Line(text, status, boxes=(Box(*box),) if box else ())


def comparison(*lines):
    from qwen_image_2.pages.compare import Comparison
    return Comparison(lines, (), (), 1.0, 1.0, True)


def test_a_line_that_is_lost_is_put_back_and_nothing_else(comfyui, monkeypatch):
    from qwen_image_2.nodes.common import words
    source, made = torch.zeros(1, 100, 200, 3), torch.ones(1, 100, 200, 3)
    looks = iter([comparison(line("SALE", "right", (20, 20, 60, 40)), line("NOW", "right", (120, 60, 160, 80)),
                             line("HERE", "wrong")),
                  comparison(line("SALE", "wrong"), line("NOW", "right"), line("HERE", "right")),
                  comparison(line("SALE", "right"), line("NOW", "right"), line("HERE", "right"))])
    monkeypatch.setattr(words, "_read", lambda *_: next(looks))
    found, told = words.with_words(made, source, ["SALE", "NOW", "HERE"])
    assert told == ("Words: 1 lines were right before and wrong after (SALE); they were put back from the source. 3 of "
                    "3 lines are right, 2 were before.")
    assert not found[:, 20:40, 20:60].any(), "the line is the source's"
    assert (found[:, :4] == 1).all() and (found[:, :, 100:] == 1).all(), "all else is what the model drew"
    assert 0 < found[0, 30, 12, 0] < 1, "without a hard edge"


def test_words_that_survive_are_left_alone(comfyui, monkeypatch):
    from qwen_image_2.nodes.common import words
    looks = iter([comparison(line("SALE", "wrong")), comparison(line("SALE", "wrong"))])
    monkeypatch.setattr(words, "_read", lambda *_: next(looks))
    made = torch.ones(1, 10, 20, 3)
    found, told = words.with_words(made, torch.zeros(1, 10, 20, 3), ["SALE"])
    assert found is made and told == "Words: 0 of 1 lines are right, 0 were before."


# ---------------------------------------------------------------- what is refused

@pytest.mark.parametrize("changes, words", [
    ({"scale": 0.5}, "enlarged 0.5 times; 1 to 8"), ({"scale": 9.0}, "enlarged 9 times"),
    ({"strength": 0.0}, "Strength is 0, but it must be a sigma between 0.1"), ({"strength": 0.9}, "Strength is 0.9"),
    ({"longer_side": 60}, "between 64 and 4096"), ({"longer_side": 5000}, "between 64 and 4096"),
    ({"longer_side": 64}, "enlarged 0.7111 times"), ({"scale": 8.0, "image": (600, 200)}, "4800 x 1600; at most 4096"),
    ({"image": (1, 1)}, "2 x 2; the model draws no side below 64"),
    ({"image": (12000, 8)}, "12000 x 8; results have at most 4096"),
    ({"tile": 256}, "Tile is 256 pixels; .* between 512"), ({"tile": 520}, "multiple of 32"),
    ({"overlap": 288}, "Overlap is 288 pixels; .* at most half of the tile .512."), ({"overlap": 10}, "multiple of 32"),
    ({"positive": []}, "needs a prompt"),
    ({"cfg": 2.0}, "no negative prompt"), ({"expected_text": " \u200b"}, "Expected text is empty"),
])
def test_what_cannot_be_is_one_sentence_before_any_work(node, model, vae, changes, words, monkeypatch):
    from qwen_image_2.nodes.common import upsampling
    monkeypatch.setattr(upsampling, "encode_images", lambda *_: pytest.fail("something was computed"))
    image = torch.zeros(1, *reversed(changes.pop("image", (90, 64))), 3)
    with pytest.raises(Refusal, match=words) as refused:
        upscaled(node, model, vae, image, **changes)
    assert len(str(refused.value)) <= 400


def test_parts_of_two_families_are_refused(node, model, vae_1):
    with pytest.raises(Refusal, match="the VAE is that of Qwen-Image 1.x"):
        upscaled(node, model, vae_1)


@pytest.mark.parametrize("changes, words", [
    ({"strength": 0.05}, "Strength is 0.05"), ({"scale": 0.9}, "enlarged 0.9"), ({"longer_side": 9000}, "Longer side"),
    ({"cfg": 2.0}, "no negative"), ({"scale": None, "strength": None, "longer_side": None, "cfg": None}, None)])
def test_before_anything_runs(node, changes, words):
    given = dict(scale=2.0, longer_side=0, strength=0.3, cfg=1.0, expected_text="") | changes
    found = node.validate_inputs(**given)
    assert found is True if words is None else words in found
