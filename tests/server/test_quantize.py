"""Quantizing and saving through a running server: the file is offered at once and draws what was drawn before."""
import pytest

from qwen_image_2.tests.reference import error
from qwen_image_2.tests.server import conftest as here
from qwen_image_2.tests.server.conftest import Graph, node
from qwen_image_2.tools.comfyui.client import WorkflowError

INT8 = "int8 (ConvRot)"
# Of activations to int8, as a fraction of the largest value of a latent.
ROUNDING = 0.02


def save(**inputs) -> dict:
    return node("QwenImage2SaveQuantized", **inputs)


def names(client, kind: str) -> list[str]:
    return client.object_info()["QwenImage2Loader"]["input"]["required"][kind][1]["options"]


def test_a_saved_model_and_text_encoder_draw_what_they_drew(client):
    graph = Graph(weight_format=INT8)
    result = client.run({**graph.nodes(), "save": save(model=["loader", 0], clip=["loader", 1],
                                                       filename_prefix="tiny_int8")})
    said = " ".join(result.messages["save"])
    assert "Saved tiny_int8_00001_.safetensors" in said and "into diffusion_models" in said and "into clip" in said
    name = "tiny_int8_00001_.safetensors"
    assert name in names(client, "diffusion_model") and name in names(client, "text_encoder")
    again = client.run(Graph(diffusion_model=name, text_encoder=name).nodes())
    before = here.latent(client, result)
    plain = here.latent(client, client.run(Graph().nodes()))
    assert 1e-4 < error(before, plain) < 0.2
    # The plain weights among them lie elsewhere, and int8 may round activations to the other side of a half by that.
    assert error(here.latent(client, again), before) < ROUNDING


@pytest.mark.parametrize("inputs, words", [
    ({}, "Nothing to save. Connect a model, a text encoder, or both"),
    *(({"model": ["loader", 0], "filename_prefix": name}, words) for name, words in (
        ("../../outside", "'../../outside' points outside ComfyUI's output folder. Choose a name, or subfolders"),
        ("../beside", "'../beside' points outside"), ("C:\\x", "points outside ComfyUI's output folder"),
        ("below/", "'below/' is not a valid file name"))),
])
def test_what_cannot_be_saved_is_refused(client, inputs, words):
    nodes = {"loader": Graph().nodes()["loader"], "save": save(**{"filename_prefix": "x", **inputs})}
    with pytest.raises(WorkflowError, match=words) as raised:
        client.run(nodes)
    assert "\n" not in raised.value.message


def test_a_linked_name_is_checked_as_well(client):
    nodes = {"loader": Graph().nodes()["loader"], "name": node("PrimitiveString", value="../beside"),
             "save": save(model=["loader", 0], filename_prefix=["name", 0])}
    with pytest.raises(WorkflowError, match="'../beside' points outside"):
        client.run(nodes)
