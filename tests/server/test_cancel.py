"""Cancelling: within a step, as often as one likes, without losing memory."""
from pathlib import Path

import pytest

from qwen_image_2.tests.server import conftest as here
from qwen_image_2.tests.server.conftest import Graph
from qwen_image_2.tools.client import WorkflowInterrupted

pytestmark = pytest.mark.server

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
