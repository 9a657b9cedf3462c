"""An operation in two forms: plain PyTorch, and a Triton kernel that runs where it has shown to do the same.

Triton is no requirement of the pack: PyTorch brings it on Linux, and elsewhere there may be none. Nor has anybody run
these kernels on every card. So a kernel is compared with the plain form at its first use on a device. Where it cannot
run, or differs, one sentence in the log says why, and the plain form computes from then on.
"""
import importlib.util
import logging
import os
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

SETTING = "QWEN_IMAGE_2_TRITON"  # an environment variable: with 0 no kernel of ours runs
MAX_REASON = 200  # characters of a compiler's complaint


class Checked:
    """A function of tensors and settings, called like its plain form. Its first argument says on which device.

    what: the beginning of the sentence in the log, "GGUF weights are dequantized".
    plain: the form that defines the result.
    kernel: gives the Triton form of the same arguments; importing Triton is its business.
    example: arguments as given -> small ones of the same kind, for the comparison.
    tolerance: of the comparison, in steps of the result's dtype.
    """

    def __init__(self, what: str, plain: Callable[..., Tensor], kernel: Callable[[], Callable[..., Tensor]],
                 example: Callable[..., tuple], tolerance: float = 1.0):
        self.what, self.plain, self.kernel, self.example, self.tolerance = what, plain, kernel, example, tolerance
        self._chosen: dict[Hashable, Callable[..., Tensor]] = {}
        self._told: set[str] = set()

    def __call__(self, tensor: Tensor, *args: Any) -> Tensor:
        # A graph that is being compiled is fused by its own compiler, and may not take the way of this comparison. Nor
        # have kernels derivatives.
        if tensor.device.type != "cuda" or torch.compiler.is_compiling() or _is_learnt(tensor, *args):
            return self.plain(tensor, *args)
        # The device and what a kernel is compiled for: dtypes and settings.
        case = (tensor.device, *(each.dtype if isinstance(each, Tensor) else each for each in (tensor, *args)))
        if case not in self._chosen:
            self._chosen[case] = self._choose(tensor, *args)
        return self._chosen[case](tensor, *args)

    def _choose(self, *args: Any) -> Callable[..., Tensor]:
        """The kernel, if it computes an example as the plain form does."""
        try:
            reason = self._difference(*args)
        except torch.OutOfMemoryError:  # says nothing about the kernel
            raise
        except Exception as error:  # a compiler, a driver or a linker may complain in any way
            reason = f"{type(error).__name__}: {str(error).strip()[:MAX_REASON]}"
        if not reason:
            return self.kernel()
        if reason not in self._told:
            self._told.add(reason)
            log.warning("%s by PyTorch's own operations, which takes longer than one kernel of Triton's: %s.",
                        self.what, reason)
        return self.plain

    def _difference(self, *args: Any) -> str:
        """Why the kernel may not run on this device; empty if it may."""
        if os.environ.get(SETTING) == "0":
            return f"{SETTING} is 0"
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        given = self.example(*args)
        expected, found = self.plain(*given), self.kernel()(*given)
        same = found.shape == expected.shape and found.dtype == expected.dtype and torch.allclose(
            found.float(), expected.float(), rtol=self.tolerance * torch.finfo(expected.dtype).eps,
            atol=self.tolerance * torch.finfo(expected.dtype).smallest_normal)
        return "" if same else f"the kernel's result differs on {torch.cuda.get_device_name(found.device)}"


def _is_learnt(*args: Any) -> bool:
    return torch.is_grad_enabled() and any(isinstance(each, Tensor) and each.requires_grad for each in args)
