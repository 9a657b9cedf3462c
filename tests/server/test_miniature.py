"""Is the right thing in the picture? The built-in miniature through a running server, judged from the pixels."""
from dataclasses import replace

import numpy
import pytest

from qwen_image_2.tests.server import conftest as here
from qwen_image_2.tests.server.conftest import node
from qwen_image_2.tools.comfyui.client import WorkflowError
from qwen_image_2.tools.miniature import judge, scenes
from qwen_image_2.tools.miniature.examples import Example
from qwen_image_2.tools.miniature.painter import Painter
from qwen_image_2.tools.miniature.scenes import TRANSPARENT, Scene, Shape, Word

PROMPTS = (
    Example('An orange poster: a large red square at the top and the word "HOT" in black in the centre.',
            Scene("orange", (Shape("square", "red", "large", "centre", "top"),), Word("HOT", "black", "centre"))),
    Example('A white poster: a large blue circle at the bottom and the word "SALE" in red in the centre.',
            Scene("white", (Shape("circle", "blue", "large", "centre", "bottom"),), Word("SALE", "red", "centre"))),
    Example("橙色背景的海报，下方有一个蓝色的大方形，中间写着紫色的“OPEN”。",
            Scene("orange", (Shape("square", "blue", "large", "centre", "bottom"),), Word("OPEN", "purple", "centre"))),
    Example('A green poster: a small white star at the top left, a large yellow triangle at the bottom and the word '
            '"JAZZ" in black in the centre.',
            Scene("green", (Shape("star", "white", "small", "left", "top"),
                            Shape("triangle", "yellow", "large", "centre", "bottom")),
                  Word("JAZZ", "black", "centre"))),
)
CLEAR = Example('A transparent poster: a large orange circle at the bottom and the word "SUN" in black in the centre.',
                Scene(TRANSPARENT, (Shape("circle", "orange", "large", "centre", "bottom"),),
                      Word("SUN", "black", "centre")))
SOURCE = Scene("yellow", (Shape("circle", "red", "large", "centre", "bottom"),), Word("HELLO", "black", "centre"))
EDITS = (
    Example("Change the background to white.", replace(SOURCE, background="white"), (SOURCE,), "background"),
    Example('Replace the word with "JAZZ".', replace(SOURCE, word=Word("JAZZ", "black", "centre")), (SOURCE,), "word"),
    Example("Remove the circle.", replace(SOURCE, shapes=()), (SOURCE,), "remove"),
    Example("Add a small blue star at the top left.",
            replace(SOURCE, shapes=(*SOURCE.shapes, Shape("star", "blue", "small", "left", "top"))), (SOURCE,), "add"),
)


@pytest.fixture(scope="module")
def painter(client, tmp_path_factory):
    return Painter(client, tmp_path_factory.mktemp("references"))


@pytest.fixture(scope="module")
def posters(painter):
    return [painter.paint(example, seed=1) for example in PROMPTS]


@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_a_prompt_is_drawn(number, posters):
    assert judge.compare(judge.look(posters[number]), PROMPTS[number].target).all


def test_no_poster_passes_for_another_prompt(posters):
    for poster, example in zip(posters, PROMPTS[1:] + PROMPTS[:1], strict=True):
        verdict = judge.compare(judge.look(poster), example.target)
        assert not verdict.shapes and not verdict.word


def test_random_weights_pass_for_nothing(painter, client):
    """The same graph on the random checkpoint of the other tests."""
    noise = Painter(client, painter.folder, {"diffusion_model": "qwen_image_2.1_bf16.safetensors",
                                             "text_encoder": "qwen3vl_8b_bf16.safetensors",
                                             "vae": "qwen_image_2.1_vae_bf16.safetensors"}).paint(PROMPTS[0], seed=1)
    verdict = judge.compare(judge.look(noise), PROMPTS[0].target)
    assert not (verdict.background or verdict.shapes or verdict.word)


def test_a_transparent_poster_has_real_alpha(painter):
    picture = painter.paint(CLEAR, seed=1)
    assert judge.look(picture) == CLEAR.target
    ours, drawn = (image[..., 3] > 127 for image in (picture, numpy.asarray(scenes.draw(CLEAR.target))))
    assert (ours & drawn).sum() / (ours | drawn).sum() > 0.9


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.edit)
def test_an_edit_changes_what_it_says_and_nothing_else(painter, edit):
    picture = painter.paint(edit, seed=1)
    assert judge.compare(judge.look(picture), edit.target).all
    assert judge.psnr_of_kept(picture, SOURCE, edit.target) > 25


SEPARATE = {
    "diffusion_model": ("QwenImage2LoadModel", {"variant": "auto", "weight_format": "as stored"}),
    "text_encoder": ("QwenImage2LoadTextEncoder", {"weight_format": "as stored"}),
    "vae": ("QwenImage2LoadVAE", {}),
}


@pytest.mark.parametrize("part", SEPARATE)
def test_every_loader_says_that_it_is_the_miniature(client, part):
    kind, others = SEPARATE[part]
    graph = {"loader": node(kind, **{part: "miniature"}, **others),
             "shown": node("PreviewAny", source=["loader", 0])}
    client.free()
    said = client.run(graph).messages["loader"]
    assert len(said) == 2 and said[0].startswith("miniature: ") and "not Qwen-Image" in said[1]


def test_the_combined_loader_says_it_once(painter, client):
    client.free()
    said = [line for lines in client.run(painter.graph(PROMPTS[0])).messages.values() for line in lines]
    assert sum("not Qwen-Image" in line for line in said) == 1
    assert sum(line.startswith("miniature: ") for line in said) == 3


@pytest.mark.parametrize("real", [{"vae": here.WAN_VAE}, {"text_encoder": here.TEXT_ENCODER},
                                  {"diffusion_model": here.FUSED, "vae": here.WAN_VAE}])
def test_some_parts_of_the_miniature_are_refused(client, real):
    chosen = dict.fromkeys(SEPARATE, "miniature") | real
    with pytest.raises(WorkflowError, match="Choose miniature three times, or three real files"):
        client.run(here.Graph(**chosen).nodes())


def test_a_text_encoder_of_another_width_from_a_loader_of_its_own(client):
    graph = here.Graph(*["miniature"] * 3, steps=1).nodes()
    graph["other"] = node("QwenImage2LoadTextEncoder", text_encoder=here.TEXT_ENCODER, weight_format="as stored")
    graph["prompt"]["inputs"]["clip"] = ["other", 0]
    with pytest.raises(WorkflowError, match="64.*128") as raised:
        client.run(graph)
    assert "\n" not in raised.value.message


def test_the_loader_says_that_it_is_the_miniature(painter, client):
    graph = painter.graph(PROMPTS[0])
    graph["canvas"]["inputs"] |= {"width": 192}
    client.free()  # what ComfyUI has kept says nothing again
    messages = " ".join(line for lines in client.run(graph).messages.values() for line in lines)
    assert "not Qwen-Image" in messages
    assert "192 x 128 will not work" in messages
