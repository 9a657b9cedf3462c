"""The memory node through a running server: the very same picture within a budget, and what it refuses."""
import numpy as np
import pytest
import torch

from qwen_image_2.tests.server import conftest as here
from qwen_image_2.tests.server.conftest import Graph, node
from qwen_image_2.tools.comfyui.client import WorkflowError

MINIATURE = Graph(diffusion_model="miniature", text_encoder="miniature", vae="miniature", steps=2)
SMALL = 0.005  # GiB: enough for two of the miniature's eight blocks


def within(vae: bool = False, **inputs) -> dict:
    nodes = MINIATURE.nodes()
    settings = {"vram_for_weights": 0.0, "prefix": "automatic", "vae_peak": 0.0, **inputs}
    if vae:
        settings["vae"] = ["loader", 2]
        nodes["decode"]["inputs"]["vae"] = ["memory", 1]
    nodes["memory"] = node("QwenImage2Memory", model=["loader", 0], **settings)
    nodes["report"] = node("PreviewAny", source=["memory", 2])
    nodes["sampler"]["inputs"]["model"] = ["memory", 0]
    return nodes


@pytest.fixture(scope="module")
def expected(client):
    return client.run(MINIATURE.nodes())


@pytest.mark.parametrize("inputs", [{"vram_for_weights": SMALL}, {"vram_for_weights": SMALL, "prefix": "recompute"},
                                    {"prefix": "RAM"}, {}], ids=str)
def test_a_budget_changes_no_picture(client, expected, inputs):
    result = client.run(within(**inputs))
    assert torch.equal(here.latent(client, result), here.latent(client, expected))
    report, told = "\n".join(result.messages["memory"]), "\n".join(result.messages["sampler"])
    assert result.outputs["report"]["text"] == [report]
    if "vram_for_weights" in inputs:
        assert "2 of 8 blocks and all other weights stay in system RAM" in report and "GB/s" in report
        assert "2 of 8 blocks and all other weights stay in system RAM" in told
    else:
        assert "All 8 blocks stay in system RAM" in report and "blocks" not in told
    assert ("recomputed every step" in told) is (inputs.get("prefix") == "recompute")


def test_a_peak_for_the_vae_changes_no_picture(client, expected):
    result = client.run(within(vae=True, vae_peak=0.2))
    found, whole = (here.images(client, one).astype(int) for one in (result, expected))
    assert np.abs(found - whole).max() <= 1  # convolutions over other shapes, then rounded to 8 bits
    assert any("at most 0.20 GiB" in sentence for sentence in result.messages["memory"])


def test_a_guided_run_streams_twice_a_step(client):
    nodes = within(vram_for_weights=SMALL)
    plain = MINIATURE.nodes()
    for graph in (nodes, plain):
        graph["sampler"]["inputs"]["cfg"] = 3.0
    assert torch.equal(here.latent(client, client.run(nodes)), here.latent(client, client.run(plain)))


@pytest.mark.parametrize(("inputs", "words"), [
    ({"vram_for_weights": 0.001}, "VRAM for weights is 0.00 GiB, but this model needs at least .* two streaming"),
    ({"vae_peak": 1.0}, "no VAE is connected"),
    ({"vae": True, "vae_peak": 0.01}, "The VAE needs at least .* GiB for 96 x 64 pixels, but VRAM for VAE"),
])
def test_what_cannot_be_held_is_refused(client, inputs, words):
    with pytest.raises(WorkflowError, match=words):
        client.run(within(**inputs))
