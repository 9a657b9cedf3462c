"""Which Chromium is taken, and what happens where there is none."""
import subprocess
from types import SimpleNamespace

import pytest

from qwen_image_2.tools.comfyui import browser


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch):
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr(browser.shutil, "which", lambda name: None)


def playwright(path="/none"):
    return SimpleNamespace(chromium=SimpleNamespace(executable_path=str(path), launch=lambda **given: given))


def test_the_named_one_before_the_systems_before_playwrights(monkeypatch, tmp_path):
    own, system, named = (tmp_path / name for name in ("own", "system", "named"))
    for path in (own, system, named):
        path.touch()
    assert browser.find(playwright(own)) == own
    monkeypatch.setattr(browser.shutil, "which", lambda name: str(system) if name == "google-chrome" else None)
    assert browser.find(playwright(own)) == system
    monkeypatch.setenv("CHROMIUM", str(named))
    assert browser.launch(playwright(own))["executable_path"] == named


def test_none_is_none(monkeypatch, tmp_path):
    assert browser.launch(playwright()) is None
    (tmp_path / "own").touch()
    monkeypatch.setenv("CHROMIUM", "/none")  # a name that leads nowhere is not replaced in silence
    assert browser.launch(playwright(tmp_path / "own")) is None


@pytest.mark.parametrize("found, fails", [(True, False), (False, False), (False, True)])
def test_fetches_only_what_is_missing_and_says_when_it_cannot(monkeypatch, capsys, found, fails):
    pytest.importorskip("playwright")
    asked = []

    def fetch(command, **given):
        asked.append(command)
        if fails:
            raise subprocess.CalledProcessError(1, command)
    monkeypatch.setattr(browser, "find", lambda playwright: found)
    monkeypatch.setattr(browser.subprocess, "run", fetch)
    browser.provide()
    assert len(asked) == (not found)
    printed = capsys.readouterr()
    assert ("could not be fetched" in printed.out + printed.err) == fails
