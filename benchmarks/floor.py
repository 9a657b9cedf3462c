"""What a measurement cannot fall below: its matrix products, convolutions and attention alone, timed in the same run.

A pass is recorded once. Then only these operations are called again, on the same weights and on random tensors of the
same shapes and strides, of which there is one of each kind.
"""
from collections.abc import Callable

import torch
from timing import Budget, Comparison, iter_blocks, of_costs
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution"}
ATTENTION = "_scaled_dot_product"
FLOOR = "products, convolutions, attention alone"


class Recorder(TorchDispatchMode):
    """The calls to replay. Of a whole pass no tensor stays but the weights."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.weights = {value.untyped_storage().data_ptr() for value in module.parameters()}
        self.made: dict[tuple, Tensor] = {}
        self.calls: list[Callable[[], Tensor]] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        if name in PRODUCTS or name.startswith(ATTENTION):
            given, named = tree_map(self._like, arguments), tree_map(self._like, options or {})
            self.calls.append(lambda: function(*given, **named))
        return function(*arguments, **(options or {}))

    def _like(self, value: object) -> object:
        if not isinstance(value, Tensor) or value.untyped_storage().data_ptr() in self.weights:
            return value
        key = (value.shape, value.stride(), value.dtype)
        if key not in self.made:
            self.made[key] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).normal_()
        return self.made[key]


def products_alone(way: Callable[[], Tensor], module: nn.Module) -> Callable[[], Tensor]:
    """Records what `way` multiplies with the module's weights -> a way of these operations alone."""
    with Recorder(module) as recorder:
        way()

    def replay() -> Tensor:
        for call in recorder.calls:
            result = call()
        return result
    return replay


def beside_floor(what: str, way: Callable[[], Tensor], module: nn.Module, budget: Budget,
                 goal: float | None = None) -> Comparison:
    """A way against its own floor."""
    return _timed(f"{what}, to its floor", {"ours": way, FLOOR: products_alone(way, module)}, budget, goal)


def of_floors(what: str, ways: dict[str, Callable[[], Tensor]], module: nn.Module, budget: Budget) -> Comparison:
    """Two ways' floors against each other: the ratio that no form of the rest can fall below."""
    return _timed(f"{what}, floors", {f"floor of {name}": products_alone(way, module) for name, way in ways.items()},
                  budget, None)


def _timed(what: str, ways: dict[str, Callable[[], Tensor]], budget: Budget, goal: float | None) -> Comparison:
    _, costs = iter_blocks(ways, budget)
    first, second = costs.items()
    return of_costs(what, first, second, goal=goal)
