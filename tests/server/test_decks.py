"""A deck of ten slides through a running server: one run per slide, one file of all, and what LibreOffice shows."""
import io
import re

import numpy as np
import pytest
from PIL import Image
from pptx import Presentation

from qwen_image_2.tests.nodes.test_decks import PAGE, TEN
from qwen_image_2.tests.server.conftest import Graph, node
from qwen_image_2.tools import render_deck
from qwen_image_2.tools.comfyui import workflow
from qwen_image_2.tools.comfyui.client import WorkflowError

POSTERS = [f"A {colour} poster: a large {other} {shape} {place}."
           for shape, place in (("circle", "at the top"), ("square", "at the bottom"))
           for colour, other in (("red", "white"), ("blue", "yellow"), ("white", "black"), ("green", "white"),
                                 ("yellow", "blue"))]


def outline(text, **fields) -> dict:
    return node("QwenImage2DeckOutline", **{"outline": text, "footer": "", "title_position": "top left",
                                            "picture_position": "right"} | PAGE | fields)


def deck(text, name="deck", files="PPTX", **fields) -> dict:
    nodes = Graph(steps=1).nodes() | {"outline": outline(text, **fields)}
    nodes["prompt"]["inputs"]["prompt"] = ["outline", 0]
    nodes["sampler"]["inputs"]["seed"] = ["outline", 6]
    nodes["canvas"]["inputs"] |= {"aspect_ratio": "custom", "width": ["outline", 1], "height": ["outline", 2]}
    nodes["deck"] = node("QwenImage2SaveDeck", images=["decode", 0], filename_prefix=name, files=files,
                         page="as the pictures", texts=["outline", 3], notes=["outline", 4])
    return nodes


def test_ten_slides_run_one_by_one_into_one_file(client):
    result = client.run(deck(TEN, aspect_ratio="custom", width=128, height=96), timeout=240)
    file, = (file for file in result.files if file.node == "deck")
    slides = Presentation(io.BytesIO(client.view(file))).slides
    assert len(slides) == 10
    texts = [slide.shapes[0]._element._nvXxPr.cNvPr.get("descr") for slide in slides]
    assert texts[0] == "Talk" and texts[9] == "Slide 10\nPoint 10\n第10点"
    assert slides[9].notes_slide.notes_text_frame.text.startswith("Say 10\n")
    assert len({slide.shapes[0].image.sha1 for slide in slides}) > 1, "each slide has its own picture"


@pytest.mark.skipif(render_deck.missing() is not None, reason=str(render_deck.missing()))
def test_libreoffice_shows_every_slide(client, tmp_path):
    """Ten slides of the miniature: each page looks like its own picture, and like no other. The titles are the prompts:
    what a brief makes of them is too long for it."""
    graph = deck("".join(f"## {title}\n" for title in POSTERS), aspect_ratio="custom", width=160, height=96)
    graph["loader"]["inputs"] |= dict.fromkeys(("diffusion_model", "text_encoder", "vae"), workflow.MINIATURE)
    graph["prompt"]["inputs"]["prompt"] = ["outline", 3]
    graph["sampler"]["inputs"] |= {"preset": "Custom", "steps": 8}
    file, = (file for file in client.run(graph, timeout=240).files if file.node == "deck")
    path = tmp_path / "deck.pptx"
    path.write_bytes(client.view(file))
    pictures = [small(io.BytesIO(slide.shapes[0].image.blob)) for slide in Presentation(path).slides]
    pages = [small(page) for page in render_deck.render(path, tmp_path / "pages")]
    assert len(pages) == len(pictures) == 10
    errors = np.array([[np.abs(page - picture).mean() for picture in pictures] for page in pages])
    assert errors.diagonal().max() < 4 and (errors.argmin(1) == range(10)).all()


def small(file) -> np.ndarray:
    """As numbers, small enough that how a program resamples does not matter."""
    return np.asarray(Image.open(file).convert("RGB").resize((40, 24), Image.Resampling.BOX), np.float32)


def drawn(client, text, **fields) -> list[str]:
    """One digest for each slide's picture."""
    result = client.run(deck(text, aspect_ratio="custom", width=128, height=96, **fields), timeout=240)
    file, = (file for file in result.files if file.node == "deck")
    return [slide.shapes[0].image.sha1 for slide in Presentation(io.BytesIO(client.view(file))).slides]


def test_every_slide_has_its_own_noise_and_one_can_be_drawn_anew(client):
    alike = "## A\n## A\n## A\nSeed: 9\n"
    first = drawn(client, alike, seed=9)
    assert len(set(first)) == 2 and first[0] == first[2], "the seeds are 9, 10 and 9"
    second = drawn(client, alike.replace("Seed: 9", "Seed: 90"), seed=9)
    assert second[:2] == first[:2] and second[2] not in first


def test_an_older_workflow_without_a_seed_still_runs(client):
    graph = deck("## A", aspect_ratio="custom", width=128, height=96)
    assert "seed" not in graph["outline"]["inputs"]
    assert client.run(graph, timeout=240).files


@pytest.mark.parametrize(("change", "words"), [
    ({"text": ""}, "The outline has no slides"),
    ({"text": "## A\n" * 300}, "The outline has 300 slides"),
    ({"text": "## A\nColour: red"}, "Slide 1 (A) contains the unknown hint 'Colour'"),
    ({"text": TEN, "name": "../deck"}, "points outside ComfyUI's output folder"),
])
def test_faults_are_refused_before_anything_runs(client, change, words):
    started = []
    with pytest.raises(WorkflowError, match=re.escape(words)) as raised:
        client.run(deck(**change), started.append)
    assert "\n" not in raised.value.message and not any(event.kind == "started" for event in started)


def test_a_deck_is_named_as_save_image_names_a_picture(client):
    nodes = deck("## A\n- one", name="%KSampler2.seed%%QwenImage2SaveDeck.page%/%Slides.footer%_%width%", footer="x/y",
                 aspect_ratio="custom", width=128, height=96)
    nodes["outline"]["_meta"] = {"title": "Slides"}
    file, = (file for file in client.run(nodes, timeout=240).files if file.node == "deck")
    assert (file.subfolder, file.filename) == ("%KSampler2.seed%as the pictures", "x_y_128_00001_.pptx")
