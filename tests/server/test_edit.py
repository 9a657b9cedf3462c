"""Edits through a running server against the reference pipeline, and what the edit node refuses."""
import numpy as np
import pytest
import torch
from PIL import Image

from qwen_image_2.model.qwen_image_2 import latents
from qwen_image_2.tests.server import conftest as here
from qwen_image_2.tests.server.conftest import Graph, node
from qwen_image_2.tests.server.test_equality import LATENT_BOUND, PIXEL_BOUND
from qwen_image_2.tools.comfyui.client import WorkflowError

SEED = 11
STEPS = 8
REFERENCES = {
    "one": [((104, 64), "RGB")],
    "one transparent": [((90, 90), "RGBA")],
    "two": [((64, 96), "RGBA"), ((200, 120), "RGB")],
    "three": [((33, 57), "RGB"), ((128, 128), "RGBA"), ((96, 40), "RGB")],
}


def pictures(kinds) -> list[Image.Image]:
    """Noise at the asked sizes, transparency included: every detail of a resize shows in it."""
    rng = np.random.default_rng(len(kinds))
    return [Image.fromarray(rng.integers(0, 256, (height, width, len(mode)), dtype=np.uint8), mode)
            for (width, height), mode in kinds]


def edit_nodes(client, tmp_path, images, prompt="make <image1> blue", resolution="128", **inputs) -> dict:
    """The plain graph with an edit node instead of prompt and canvas."""
    nodes = Graph(steps=STEPS, seed=SEED).nodes()
    del nodes["canvas"]
    wired = {}
    for number, image in enumerate(images, start=1):
        path = tmp_path / f"{number}-{image.mode}-{image.width}x{image.height}.png"
        image.save(path)
        nodes[f"load{number}"] = node("LoadImage", image=client.upload_image(path))
        wired[f"images.image_{number}"] = [f"load{number}", 0]
        if image.mode == "RGBA":  # Load Image hands transparency over as a mask of its own
            nodes[f"join{number}"] = node("JoinImageWithAlpha", image=[f"load{number}", 0], alpha=[f"load{number}", 1])
            wired[f"images.image_{number}"] = [f"join{number}", 0]
    settings = dict(canvas="last reference", width=64, height=64, grid_guard=True, batch_size=1, negative_prompt="")
    nodes["prompt"] = node("QwenImage2EditEncode", clip=["loader", 1], vae=["loader", 2], prompt=prompt,
                           resolution=resolution, **(settings | inputs), **wired)
    nodes["sampler"]["inputs"]["latent"] = ["prompt", 2]
    return nodes


def test_a_seed_that_made_the_reference_is_pointed_out(client, tmp_path):
    """Known from the file that ComfyUI saved, and from the graph itself."""
    made = client.run(Graph(width=64, height=64, seed=77, steps=1).nodes())
    saved, = (file for file in made.files if file.node == "image")
    path = tmp_path / "made.png"
    path.write_bytes(client.view(saved))
    for seed, told in ((77, True), (78, False)):
        nodes = edit_nodes(client, tmp_path, [Image.new("RGB", (64, 64))])
        nodes["load1"]["inputs"]["image"] = client.upload_image(path)
        nodes["sampler"]["inputs"] |= {"seed": seed, "steps": 1}
        assert ("made with this very seed" in str(client.run(nodes).messages["sampler"])) == told
    nodes["again"] = nodes["sampler"] | {"inputs": nodes["sampler"]["inputs"] | {"positive": ["second", 0]}}
    nodes["second"] = nodes["prompt"] | {"inputs": nodes["prompt"]["inputs"] | {"images.image_1": ["decode", 0]}}
    nodes["latent"]["inputs"]["samples"] = ["again", 0]
    assert "made with this very seed" in str(client.run(nodes).messages["again"])


def test_the_seed_of_a_text_is_no_picture_s(client):
    """A deck's slides, and what a language model has written, have seeds: no reference was made with them."""
    nodes = Graph(width=64, height=64, seed=5, steps=1).nodes()
    nodes["words"] = node("QwenImage2PromptEnhance", prompt="A fox", enabled=False, system_prompt="built-in",
                          aspect_ratio="custom", size="1024", width=64, height=64, follow_proposal=False, seed=5,
                          max_tokens=0)
    prompt, = (key for key, value in nodes.items() if value["class_type"] == "QwenImage2TextEncode")
    nodes[prompt]["inputs"]["prompt"] = ["words", 0]
    said = client.run(nodes).messages
    assert "enhancer is off" in str(said["words"]) and "very seed" not in str(said)


@pytest.mark.parametrize("references", REFERENCES)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_whole_edit_equals_the_reference(client, reference, tmp_path, references, cfg):
    images = pictures(REFERENCES[references])
    prompt, negative = "make <image1> blue, 加上“你好”", "blurry"

    def expected(output_type):
        return reference(prompt, image=images, negative_prompt=negative if cfg > 1 else None, true_cfg_scale=cfg,
                         num_inference_steps=STEPS, output_resolution=128, output_type=output_type,
                         generator=torch.Generator().manual_seed(SEED)).images

    nodes = edit_nodes(client, tmp_path, images, prompt, negative_prompt=negative)
    nodes["sampler"]["inputs"]["cfg"] = cfg
    result = client.run(nodes)
    kept = [line for line in result.messages["sampler"] if "KV cache of prompt and references" in line]
    assert len(kept) == (1 if cfg == 1 else 2) and all("MiB, in system RAM." in line for line in kept)
    found = latents.normalize(here.latent(client, result))
    theirs = expected("latent").transpose(1, 2).unflatten(2, found.shape[-2:])
    assert (found - theirs).abs().max() < LATENT_BOUND
    picture, theirs = here.images(client, result)[0], np.asarray(expected("pil")[0])
    assert picture.shape == theirs.shape and picture.std() > 10
    assert np.abs(picture.astype(int) - theirs).max() <= PIXEL_BOUND


def canvas_of(client, nodes) -> tuple[int, int]:
    """(width, height) of the edit's latent, in pixels; nothing is sampled."""
    only = {name: nodes[name] for name in nodes if name.startswith(("load", "join", "prompt"))}
    only["latent"] = node("SaveLatent", samples=["prompt", 2], filename_prefix="canvas")
    result = client.run(only)
    shape = here.latent(client, result).shape
    return (shape[3] * 16, shape[2] * 16), result


@pytest.mark.parametrize("inputs, expected", [
    (dict(canvas="last reference"), (160, 96)),
    (dict(canvas="first reference"), (96, 160)),
    (dict(canvas="custom", width=224, height=64), (224, 64)),
    (dict(canvas="last reference", resolution="as it is"), (192, 128)),
])
def test_canvas(client, tmp_path, inputs, expected):
    images = pictures([((60, 100), "RGB"), ((200, 120), "RGB")])
    assert canvas_of(client, edit_nodes(client, tmp_path, images, **inputs))[0] == expected


@pytest.mark.parametrize("guard, expected", [(True, (1056, 1056)), (False, (1024, 1024))])
def test_grid_guard(client, tmp_path, guard, expected):
    nodes = edit_nodes(client, tmp_path, pictures([((50, 50), "RGB")]), resolution="1024", grid_guard=guard)
    size, result = canvas_of(client, nodes)
    assert size == expected
    assert ("Size changed from 1024 x 1024 to 1056 x 1056" in str(result.messages.get("prompt"))) == guard


@pytest.mark.parametrize("canvas, told", [("last reference", False), ("first reference", False), ("custom", True)])
def test_a_canvas_of_no_reference_is_pointed_out_by_the_sampler(client, tmp_path, canvas, told):
    images = pictures([((60, 100), "RGB"), ((200, 120), "RGB")])
    nodes = edit_nodes(client, tmp_path, images, canvas=canvas, width=224, height=64)
    nodes["sampler"]["inputs"]["steps"] = 1
    said = [line for line in client.run(nodes).messages["sampler"] if "shift or zoom" in line]
    assert bool(said) == told
    assert all("The latent is 224 x 64 pixels" in line and "96 x 160, 160 x 96" in line for line in said)


def test_every_picture_of_a_batch_is_a_reference(client, tmp_path):
    images = pictures([((64, 64), "RGB"), ((64, 64), "RGB")])
    apart = here.latent(client, client.run(edit_nodes(client, tmp_path, images)))
    nodes = edit_nodes(client, tmp_path, images)
    nodes["batch"] = node("ImageBatch", image1=["load1", 0], image2=["load2", 0])
    nodes["prompt"]["inputs"]["images.image_1"] = ["batch", 0]
    del nodes["prompt"]["inputs"]["images.image_2"]
    assert torch.equal(here.latent(client, client.run(nodes)), apart)


def test_batch_of_results_equals_single_results(client, tmp_path):
    nodes = edit_nodes(client, tmp_path, pictures([((64, 64), "RGB")]), batch_size=2)
    batch = here.images(client, client.run(nodes))
    nodes = edit_nodes(client, tmp_path, pictures([((64, 64), "RGB")]))
    nodes["sampler"]["inputs"]["seed"] = SEED + 1
    second = here.images(client, client.run(nodes))
    assert np.abs(batch[1].astype(int) - second[0]).max() <= 1


def test_nothing_of_an_earlier_edit_is_reused(client, tmp_path):
    """Prompt, reference and size change one after the other; then the first edit comes out as it did."""
    def run(prompt="make it blue", side=64, colour="teal"):
        nodes = edit_nodes(client, tmp_path, [Image.new("RGB", (80, 80), colour)], prompt, canvas="custom", width=side,
                           height=64)
        return here.images(client, client.run(nodes))

    first = run()
    assert not np.array_equal(run(prompt="make it red"), first)
    assert not np.array_equal(run(colour="gold"), first)
    assert run(side=96).shape != first.shape
    client.free()  # ComfyUI itself would only repeat what it has kept
    assert np.array_equal(run(), first)


def test_unnamed_references_get_advice(client, tmp_path):
    images = pictures([((64, 64), "RGB"), ((64, 64), "RGB")])
    _, result = canvas_of(client, edit_nodes(client, tmp_path, images, "blend them"))
    assert result.messages["prompt"] == [
        "The prompt names none of the 2 references. Refer to them as <image1>, <image2>, ..."]


def message(client, nodes) -> str:
    with pytest.raises(WorkflowError) as raised:
        client.run(nodes)
    return raised.value.message


def test_a_reference_that_is_not_there(client, tmp_path):
    nodes = edit_nodes(client, tmp_path, pictures([((64, 64), "RGB")]), "put <image2> on <image1>")
    assert "names <image2>, but the references are only <image1>" in message(client, nodes)


def test_eleven_references(client, tmp_path):
    nodes = edit_nodes(client, tmp_path, pictures([((32, 32), "RGB")]))
    nodes["many"] = node("RepeatImageBatch", image=["load1", 0], amount=11)
    nodes["prompt"]["inputs"]["images.image_1"] = ["many", 0]
    assert "Got 11 references (each image of a batch counts)" in message(client, nodes)


def test_an_eleventh_input(client, tmp_path):
    """Only a program can connect it: the page stops at ten."""
    nodes = edit_nodes(client, tmp_path, pictures([((32, 32), "RGB")] * 11))
    assert "This node has no input images.image_11: it takes at most 10 images" in message(client, nodes)


def test_no_reference(client, tmp_path):
    nodes = edit_nodes(client, tmp_path, pictures([((32, 32), "RGB")]))
    del nodes["prompt"]["inputs"]["images.image_1"]
    assert "image_1" in message(client, nodes)


def test_no_vae(client, tmp_path):
    nodes = edit_nodes(client, tmp_path, pictures([((32, 32), "RGB")]))
    del nodes["prompt"]["inputs"]["vae"]
    assert "vae" in message(client, nodes)


def test_a_reference_one_pixel_wide(client, tmp_path):
    nodes = edit_nodes(client, tmp_path, pictures([((1, 200), "RGB")]))
    assert "Reference 1 is 1 x 200: its longer side is more than 16 times" in message(client, nodes)


@pytest.mark.parametrize("inputs, words", [
    (dict(canvas="custom", width=100, height=96), "The nearest size is 96 x 96"),
    (dict(canvas="custom", width=96, height=32000), "The nearest size is 96 x 8192"),
    (dict(canvas="second reference"), "Unknown canvas second reference; choose last reference, first reference"),
])
def test_a_canvas_that_cannot_be_is_refused_before_anything_runs(client, tmp_path, inputs, words):
    nodes = edit_nodes(client, tmp_path, pictures([((64, 64), "RGB")]), **inputs)
    with pytest.raises(WorkflowError, match=words) as raised:
        client.run(nodes)
    assert "custom_validation_failed" in raised.value.details


def test_a_linked_canvas_is_refused_at_its_turn(client, tmp_path):
    nodes = edit_nodes(client, tmp_path, pictures([((64, 64), "RGB")]), canvas="custom", height=96)
    nodes["width"] = node("PrimitiveInt", value=100)
    nodes["prompt"]["inputs"]["width"] = ["width", 0]
    assert "The nearest size is 96 x 96" in message(client, nodes)


@pytest.mark.parametrize("make", [
    lambda: Image.fromarray(np.linspace(0, 65535, 64 * 64, dtype=np.uint16).reshape(64, 64)),
    lambda: Image.new("RGB", (12000, 900), "teal"),
], ids=["16 bit", "12,000 pixels wide"])
def test_unusual_references_work(client, tmp_path, make):
    nodes = edit_nodes(client, tmp_path, [make()])
    nodes["sampler"]["inputs"]["steps"] = 1
    assert here.images(client, client.run(nodes)).std() > 1


def test_a_reference_that_is_a_strip(client, tmp_path):
    nodes = edit_nodes(client, tmp_path, [Image.new("RGB", (12000, 100))])
    assert "Reference 1 is 12000 x 100: its longer side is more than 16 times" in message(client, nodes)


def test_strength_and_mask_of_a_reference_and_a_window_of_cfg(client, tmp_path):
    """At 1 the picture is that without the node; the node and the sampler say what they do."""
    nodes = edit_nodes(client, tmp_path, pictures(REFERENCES["two"]), "make <image2> blue", negative_prompt="blurry")
    nodes["sampler"]["inputs"] |= {"cfg": 3.0, "cfg_end": 0.5}
    plain = client.run(nodes)
    assert f"guides steps 1 to {STEPS // 2} of {STEPS}" in str(plain.messages["sampler"])
    nodes["strength"] = node("QwenImage2ReferenceStrength", positive=["prompt", 0], negative=["prompt", 1], reference=2,
                             strength=1.0)
    nodes["sampler"]["inputs"] |= {"positive": ["strength", 0], "negative": ["strength", 1]}
    assert torch.equal(here.latent(client, client.run(nodes)), here.latent(client, plain))
    nodes["strength"]["inputs"] |= {"strength": 0.5, "mask": ["mask", 0]}
    nodes["mask"] = node("SolidMask", value=1.0, width=40, height=40)
    found = client.run(nodes)
    assert not torch.allclose(here.latent(client, found), here.latent(client, plain), atol=1e-3)
    assert "Reference 2: strength 0.5; 100 % of it is looked at." in found.messages["strength"]
    nodes["strength"]["inputs"]["reference"] = 3
    with pytest.raises(WorkflowError, match="the conditioning holds only 2"):
        client.run(nodes)


def test_references_may_stand_with_their_centres_on_the_canvas(client, tmp_path):
    """A canvas of 7 x 5 latents under a reference of an even number of both."""
    nodes = edit_nodes(client, tmp_path, pictures(REFERENCES["one"]), canvas="custom", width=112, height=80)
    plain = here.latent(client, client.run(nodes))
    nodes["prompt"]["inputs"]["centre_references"] = True
    assert not torch.equal(here.latent(client, client.run(nodes)), plain)
    nodes["prompt"]["inputs"] |= {"width": 96, "height": 64}
    centred = here.latent(client, client.run(nodes))
    nodes["prompt"]["inputs"]["centre_references"] = False
    assert torch.equal(here.latent(client, client.run(nodes)), centred)
