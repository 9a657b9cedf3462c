"""What both trainings share: resumable states on disk, a log, a learning rate.

Everything random in a step is drawn from the seed and the step's number, so a resumed run goes on as if it had
never stopped.
"""
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from ... import atomic

SAVE_SECONDS = 300
LOG_STEPS = 25


def learning_rate(step: int, steps: int, warmup: int) -> float:
    """Share of the peak: a linear warm-up, then half a cosine down to nothing."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


class Muon(Optimizer):
    """Momentum whose step is the nearest orthogonal matrix, for matrices and convolutions (Jordan et al. 2024).

    It needs a fraction of Adam's steps here. torch.optim.Muon takes no convolutions and computes in bf16, which
    CPUs emulate. Steps are scaled to the root mean square of Adam's (Liu et al. 2025), so one rate serves both.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                direction = parameter.grad.lerp(momentum, group["momentum"]).flatten(1)
                step = orthogonal(direction) * 0.2 * max(direction.shape) ** 0.5
                parameter.sub_(step.view_as(parameter), alpha=group["lr"])


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Roughly U V' of matrix = U S V', by a quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix) / (matrix.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x


def optimizers(module: nn.Module, rate: float, by_adam: Callable[[str], bool] = lambda name: False) -> list[Optimizer]:
    """Muon for matrices and convolutions, AdamW for vectors and for the names that `by_adam` picks."""
    named = list(module.named_parameters())
    vectors = [parameter for name, parameter in named if parameter.ndim < 2 or by_adam(name)]
    matrices = [parameter for name, parameter in named if parameter.ndim >= 2 and not by_adam(name)]
    return [Muon(matrices, rate), torch.optim.AdamW(vectors, rate, betas=(0.9, 0.99), weight_decay=0)]


def set_rate(optimizers: Sequence[Optimizer], rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


class State:
    """Modules and optimisers that are saved together, without pickle: every tensor by its name."""

    def __init__(self, path: Path, modules: dict[str, nn.Module], optimizers: Sequence[Optimizer]):
        self.path, self.modules, self.optimizers = path, modules, optimizers

    def save(self, step: int) -> None:
        tensors = {f"{name}.{key}": value for name, module in self.modules.items()
                   for key, value in module.state_dict().items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, values in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer {number}.{index}.{key}": value for key, value in values.items()}
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        atomic.write_bytes(self.path, safetensors.torch.save(tensors, {"step": str(step)}))

    def load(self) -> int:
        """The step to go on with: 0 where nothing was saved."""
        if not self.path.exists():
            return 0
        with safe_open(self.path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            step = int(file.metadata()["step"])
        for name, module in self.modules.items():
            module.load_state_dict(_below(tensors, f"{name}."))
        for number, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in _below(tensors, f"optimizer {number}.").items():
                index, key = name.split(".")
                state.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        return step


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


class Log:
    """Means over the last steps, on the screen and in a file."""

    def __init__(self, path: Path):
        self.path = path
        self._restart()

    def _restart(self) -> None:
        self.values, self.steps, self.begin = defaultdict(list), 0, time.monotonic()

    def add(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.values[name].append(value)
        self.steps += 1
        if (step + 1) % LOG_STEPS == 0:
            means = "  ".join(f"{name} {fmean(values):.5f}" for name, values in self.values.items())
            self.say(f"step {step + 1}  {means}  {(time.monotonic() - self.begin) / self.steps:.2f} s per step")
            self._restart()

    def say(self, line: str) -> None:
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
