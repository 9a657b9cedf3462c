"""A deck of ten slides through a running server, with the miniature: one run per slide, one file of all."""
import io
import re

import pytest
from pptx import Presentation

from qwen_image_2.tests.nodes.test_decks import PAGE, TEN
from qwen_image_2.tests.server.conftest import Graph, node
from qwen_image_2.tools.client import WorkflowError

pytestmark = pytest.mark.server


def outline(text, **fields) -> dict:
    return node("QwenImage2DeckOutline", **{"outline": text, "footer": "", "title_position": "top left",
                                            "picture_position": "right"} | PAGE | fields)


def deck(text, name="deck", files="PPTX", **fields) -> dict:
    nodes = Graph(steps=1).nodes() | {"outline": outline(text, **fields)}
    nodes["prompt"]["inputs"]["prompt"] = ["outline", 0]
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


@pytest.mark.parametrize(("change", "words"), [
    ({"text": ""}, "The outline has no slides"),
    ({"text": "## A\n" * 300}, "The outline has 300 slides"),
    ({"text": "## A\nColour: red"}, "Slide 1 (A) has the unknown hint 'Colour'"),
    ({"text": TEN, "name": "../deck"}, "leaves ComfyUI's output folder"),
])
def test_faults_are_refused_before_anything_runs(client, change, words):
    started = []
    with pytest.raises(WorkflowError, match=re.escape(words)) as raised:
        client.run(deck(**change), started.append)
    assert "\n" not in raised.value.message and not any(event.kind == "started" for event in started)
