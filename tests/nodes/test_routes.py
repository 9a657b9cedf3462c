"""The route when something goes wrong behind it."""
import asyncio
import time

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer


@pytest.fixture
def routes(comfyui):
    from qwen_image_2.nodes import routes
    return routes


def ask(routes, *texts):
    """(status, answer) for each of these texts, sent at once."""
    async def session():
        app = web.Application()
        app.router.add_post(routes.PATH, routes.measure)
        async with TestClient(TestServer(app)) as client:
            answers = await asyncio.gather(*(client.post(routes.PATH, json={"text": text}) for text in texts))
            return [(answer.status, await answer.json()) for answer in answers]
    return asyncio.run(session())


def test_an_error_says_nothing_of_this_machine(routes, monkeypatch, caplog):
    def fail(text):
        raise OSError(f"No such file: /home/me/{text}")
    monkeypatch.setattr(routes, "count_tokens", fail)
    (status, answer), = ask(routes, "secret")
    assert status == 500 and "/" not in answer["error"] and "secret" not in answer["error"]
    assert "/home/me/secret" in caplog.text  # but the log does


def test_takes_a_bounded_time(routes, monkeypatch):
    monkeypatch.setattr(routes, "count_tokens", lambda text: time.sleep(0.3) or 1)
    monkeypatch.setattr(routes, "SECONDS", 0.5)
    begin = time.monotonic()
    answers = ask(routes, "a", "b", "c", "d")
    assert time.monotonic() - begin < 2
    assert sorted(status for status, _ in answers) == [200, 503, 503, 503]


def test_counts_one_at_a_time(routes, monkeypatch):
    running, most = [], []

    def count(text):
        running.append(text)
        most.append(len(running))
        time.sleep(0.05)
        running.remove(text)
        return 1
    monkeypatch.setattr(routes, "count_tokens", count)
    assert {status for status, _ in ask(routes, *"abcdef")} == {200}
    assert max(most) == 1
