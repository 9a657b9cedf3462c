"""Cancelling: within a step, as often as one likes, without losing memory."""
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen_image_2.tests import reference as oracle
from qwen_image_2.tests.server import conftest as here
from qwen_image_2.tests.server.conftest import Graph
from qwen_image_2.tests.server.test_edit import edit_nodes, pictures
from qwen_image_2.tools import tiny
from qwen_image_2.tools.comfyui.client import WorkflowInterrupted

SLOW = dict(width=768, height=768, steps=200, prompt="a poster " * 400)


def resident(server) -> int:
    """Anonymous memory of the server, bytes: what grows when something is not given back."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


def cancel_after(client, step: int, seed: int) -> int:
    """Run the slow graph, cancel at a step, return the last step that was reported."""
    last = 0

    def on_event(event):
        nonlocal last
        if event.kind == "progress" and event.node == "sampler":
            last = int(event.value)
            if last == step:
                client.interrupt()

    with pytest.raises(WorkflowInterrupted):
        client.run(Graph(seed=seed, **SLOW).nodes(), on_event=on_event, timeout=120)
    return last


def test_cancelling_ends_within_a_step(client):
    assert cancel_after(client, step=3, seed=1) <= 4


def test_ten_cancelled_runs_leave_no_memory_behind(client, server):
    for seed in range(3):  # caches and allocator pools fill once
        cancel_after(client, step=2, seed=seed)
    before = resident(server)
    for seed in range(10, 20):
        cancel_after(client, step=2, seed=seed)
    assert resident(server) - before < 60 * 2**20
    assert here.images(client, client.run(Graph().nodes())).std() > 10


@pytest.fixture
def deep(models):
    """A transformer of eight blocks: in the tests' own, of two, there is hardly a place between blocks to end at."""
    path = models / "diffusion_models" / "deep.safetensors"
    tiny.save(tiny.to_comfy_transformer(oracle.transformer(layers=8).state_dict()), path, {}, torch.float32)
    yield path.name
    path.unlink()


def test_cancelling_ends_within_the_pass_over_the_prefix(client, tmp_path, deep):
    """The 4,096 tokens of a reference take nearly all of the time here, all of it before the first step ends."""
    nodes = edit_nodes(client, tmp_path, pictures([((64, 64), "RGB")]), resolution="1024", canvas="custom")
    nodes["loader"]["inputs"]["diffusion_model"] = deep

    def run(seed, on_event=None):
        nodes["sampler"]["inputs"] |= {"seed": seed, "steps": 1}
        result = client.run(nodes, on_event)
        return result.seconds["sampler"], here.images(client, result)

    def cancel(event):
        nonlocal cancelled
        if event.kind == "started" and event.node == "sampler":
            time.sleep(whole / 8)
            cancelled = time.monotonic()
            client.interrupt()

    _, expected = run(1)
    client.free()  # or ComfyUI would repeat what it has kept
    (whole, _), cancelled = run(2), None
    with pytest.raises(WorkflowInterrupted):
        run(3, cancel)
    assert time.monotonic() - cancelled < whole / 2
    assert np.array_equal(run(1)[1], expected)
