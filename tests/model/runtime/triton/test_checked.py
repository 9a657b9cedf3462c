"""Which of the two forms of an operation runs. No card is needed: a tensor says that it is on one."""
import logging

import pytest
import torch

from qwen_image_2.model.runtime.triton import checked
from qwen_image_2.model.runtime.triton.checked import Checked


class OnCard(torch.Tensor):
    """A tensor of the CPU that says it is on a graphics card."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


@pytest.fixture
def forms(monkeypatch, caplog):
    """What has been called, and a function that makes an operation of which the kernel does as it is told."""
    monkeypatch.setattr(checked.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.delenv(checked.SETTING, raising=False)
    caplog.set_level(logging.WARNING, checked.__name__)
    calls: list[str] = []

    def plain(x, factor):
        calls.append("plain")
        return torch.Tensor.as_subclass(x, torch.Tensor) * factor

    def make(kernel) -> Checked:
        def triton(x, factor):
            calls.append("triton")
            return kernel(torch.Tensor.as_subclass(x, torch.Tensor), factor)
        return Checked("Numbers are multiplied", plain, lambda: triton, lambda x, factor: (x[:1], factor))

    return calls, make


X = torch.ones(3).as_subclass(OnCard)


def test_a_kernel_that_does_the_same_runs_and_is_checked_once(forms, caplog):
    calls, make = forms
    operation = make(torch.mul)
    assert operation(X, 2).tolist() == [2, 2, 2] and calls == ["plain", "triton", "triton"]
    operation(X, 2)
    assert calls[3:] == ["triton"]
    operation(X, 3)  # a setting: another kernel
    assert calls[4:] == ["plain", "triton", "triton"] and not caplog.messages


def broken(x, factor):
    raise RuntimeError("Failed to find C compiler\n")


@pytest.mark.parametrize("kernel, reason", [
    (lambda x, factor: x * factor * 1.001, "the kernel's result differs on a card"),
    (lambda x, factor: x * torch.nan, "the kernel's result differs on a card"),
    (lambda x, factor: (x * factor).double(), "the kernel's result differs on a card"),
    (lambda x, factor: (x * factor)[None], "the kernel's result differs on a card"),
    (broken, "RuntimeError: Failed to find C compiler")])
def test_one_that_does_not_is_told_once_and_left_alone(forms, caplog, kernel, reason):
    calls, make = forms
    operation = make(kernel)
    assert operation(X, 2).tolist() == operation(X, 2).tolist() == [2, 2, 2]
    assert calls == ["plain", "triton", "plain", "plain"]
    operation(X, 3)
    assert caplog.messages == ["Numbers are multiplied by PyTorch's own operations, which takes longer than one kernel "
                               f"of Triton's: {reason}."]


def test_without_triton_none_is_tried(forms, caplog, monkeypatch):
    calls, make = forms
    monkeypatch.setattr(checked.importlib.util, "find_spec", lambda name: None)
    assert make(torch.mul)(X, 2).tolist() == [2, 2, 2] and calls == ["plain"]
    assert len(caplog.messages) == 1 and caplog.messages[0].endswith(": Triton is not installed.")


def test_a_setting_switches_them_off(forms, caplog, monkeypatch):
    calls, make = forms
    monkeypatch.setenv("QWEN_IMAGE_2_TRITON", "0")
    assert make(torch.mul)(X, 2).tolist() == [2, 2, 2] and calls == ["plain"]
    assert len(caplog.messages) == 1 and caplog.messages[0].endswith(": QWEN_IMAGE_2_TRITON is 0.")


def test_memory_that_runs_out_says_nothing_about_a_kernel(forms, caplog):
    def out_of_memory(x, factor):
        raise torch.OutOfMemoryError
    calls, make = forms
    operation = make(out_of_memory)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            operation(X, 2)
    assert calls == ["plain", "triton"] * 2 and not caplog.messages


def test_on_a_cpu_for_gradients_and_in_a_compiled_graph_the_plain_form_runs(forms, monkeypatch):
    calls, make = forms
    operation = make(torch.mul)
    operation(torch.ones(3), 2)
    learnt = torch.ones(3).as_subclass(OnCard)
    learnt.requires_grad_()
    operation(learnt, 2)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    operation(X, 2)
    assert calls == ["plain"] * 3
