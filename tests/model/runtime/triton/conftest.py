"""The module of kernels that a test file names in KERNELS, as Triton takes it: its decorator asks the environment
whether to interpret."""
import importlib
from types import ModuleType

import pytest


def fresh(name: str) -> ModuleType:
    return importlib.reload(importlib.import_module(f"qwen_image_2.model.runtime.triton.{name}"))


@pytest.fixture
def interpreted(monkeypatch, request):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    yield fresh(request.module.KERNELS)
    monkeypatch.undo()
    fresh(request.module.KERNELS)


@pytest.fixture
def compiled(monkeypatch, request):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return fresh(request.module.KERNELS)
