"""Several ways to the same result, timed in turn: A B A B ..., never A A A then B B B.

A machine that slows down for a while then slows all ways alike, and the ratio within one round stays meaningful.
On a machine with much other work the ratio of processor time is the steadier one, best with a single thread.
"""
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

# Above this the ways did not compute the same thing, and their times say nothing.
ERROR_BOUND = 1e-3


@dataclass(frozen=True)
class Budget:
    """At most `rounds` rounds; after `seconds` no further one, once there are `least`."""

    rounds: int
    seconds: float
    least: int = 3

    def allows(self, done: int, spent: float) -> bool:
        return done < self.least or (done < self.rounds and spent < self.seconds)


@dataclass(frozen=True)
class Comparison:
    """Two ways, one value of each per round; the ratio is first / second, so below 1 the first needs less."""

    what: str
    first: str
    second: str
    values: tuple[tuple[float, float], ...]           # seconds on the clock, or bytes
    cpu_values: tuple[tuple[float, float], ...] = ()  # seconds of all threads together, waiting for each other included
    unit: str = "s"
    goal: float | None = None   # the largest median ratio that is good enough
    error: float | None = None  # largest difference of the two results, see relative_error

    @property
    def medians(self) -> tuple[float, float]:
        return tuple(statistics.median(column) for column in zip(*self.values))

    @property
    def ratio(self) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile of the rounds' ratios."""
        return _quartiles([first / second for first, second in self.values])

    @property
    def cpu_ratio(self) -> float | None:
        return statistics.median(first / second for first, second in self.cpu_values) if self.cpu_values else None

    @property
    def met(self) -> bool | None:
        return None if self.goal is None else self.ratio[1] <= self.goal


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    return tuple(statistics.quantiles(values, n=4, method="inclusive")) if len(values) > 1 else tuple(values * 3)


class Cost(NamedTuple):
    seconds: float  # on the clock
    cpu: float      # of all threads together


def cost_of(way: Callable[[], object]) -> Cost:
    begin, cpu = time.perf_counter(), time.process_time()
    way()
    return Cost(time.perf_counter() - begin, time.process_time() - cpu)


def iter_blocks(ways: Mapping[str, Callable[[], Tensor]],
            budget: Budget) -> tuple[dict[str, Tensor], dict[str, list[Cost]]]:
    """Results of each way, from a round of warming up that is not timed, then costs of each way, one per round."""
    results, costs = {name: way() for name, way in ways.items()}, {name: [] for name in ways}
    begin, done = time.perf_counter(), 0
    while budget.allows(done, time.perf_counter() - begin):
        for name, way in ways.items():
            costs[name].append(cost_of(way))
        done += 1
    return results, costs


def compare(what: str, ways: Mapping[str, Callable[[], Tensor]], budget: Budget,
            goals: tuple[float | None, ...] = (None,)) -> list[Comparison]:
    """The first way against each of the others, which have these goals."""
    results, costs = iter_blocks(ways, budget)
    first, *others = ways
    errors = [relative_error(results[first], results[other], what) for other in others]
    return [of_costs(what, (first, costs[first]), (other, costs[other]), goal=goal, error=error)
            for other, goal, error in zip(others, goals, errors, strict=True)]


def of_costs(what: str, first: tuple[str, list[Cost]], second: tuple[str, list[Cost]], **more) -> Comparison:
    """A comparison of two named lists of costs, one per round; the rest as Comparison has it."""
    (name, costs), (other, others) = first, second
    return Comparison(what, name, other, **more,
                      values=tuple((a.seconds, b.seconds) for a, b in zip(costs, others, strict=True)),
                      cpu_values=tuple((a.cpu, b.cpu) for a, b in zip(costs, others, strict=True)))


def relative_error(found: Tensor, expected: Tensor, what: str) -> float:
    """Largest absolute difference as a fraction of the largest expected value; ends the run above ERROR_BOUND."""
    if found.shape != expected.shape:
        raise SystemExit(f"{what}: the results have different shapes, {list(found.shape)} and {list(expected.shape)}.")
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    if not error <= ERROR_BOUND:  # NaN is refused too
        raise SystemExit(f"{what}: the results differ by {error:.1e} of the largest value, more than {ERROR_BOUND:g}, "
                         f"so comparing their times would mean nothing.")
    return error
