"""Systems under the same load in turns, A B A B, so that other work of the machine affects all of them alike."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench import usage, wrk
from bench.targets import Target

# After a turn: unfinished requests end and writes reach the disk, so that the next turn does not pay for them.
SETTLE_S = 0.5
_WARM_UP_S = 1


@dataclass(frozen=True, slots=True)
class Turn:
    """One system under load once. `cpu_ms` is the CPU time a request in each part."""

    load: wrk.Load
    cpu_ms: dict[str, float]

    @property
    def cost_ms(self) -> float:
        """The CPU time a request in all parts, without wrk."""
        return sum(cost for part, cost in self.cpu_ms.items() if part != "wrk")


@dataclass(frozen=True, slots=True)
class Series:
    target: Target
    turns: list[Turn]

    def median(self, value: Callable[[Turn], float]) -> float:
        return statistics.median(value(turn) for turn in self.turns)

    def rates(self) -> list[float]:
        return [turn.load.rate for turn in self.turns]


def take(
    targets: Sequence[Target],
    make_requests: Callable[[Target], wrk.Requests],
    *,
    connections: int,
    seconds: float,
    rounds: int,
    between: Callable[[Target], None] = lambda _: None,
) -> list[Series]:
    """Runs the turns. `between` is called after each of them, and is not measured."""
    series = [Series(target, []) for target in targets]
    sending = [make_requests(target) for target in targets]
    for target, requests in zip(targets, sending, strict=True):
        if seconds <= _WARM_UP_S:
            break  # a trial run
        _send(target, requests, connections, _WARM_UP_S)
        _settle(target, between)
    for _ in range(rounds):
        for one, requests in zip(series, sending, strict=True):
            before = usage.by_part(one.target.roots)
            load = _send(one.target, requests, connections, seconds)
            after = usage.by_part(one.target.roots)
            one.turns.append(Turn(load, _costs(before, after, load)))
            _settle(one.target, between)
    return series


def _send(target: Target, requests: wrk.Requests, connections: int, seconds: float) -> wrk.Load:
    try:
        return wrk.send(requests, target.port, connections=connections, seconds=seconds)
    except wrk.BenchError as error:
        raise wrk.BenchError(f"{target.name}: {error}") from None


def _settle(target: Target, between: Callable[[Target], None]) -> None:
    time.sleep(SETTLE_S)
    between(target)
    os.sync()


def _costs(before: dict[str, usage.Usage], after: dict[str, usage.Usage], load: wrk.Load) -> dict[str, float]:
    costs = {
        part: (now.cpu_s - before.get(part, usage.Usage()).cpu_s) * 1000 / load.requests for part, now in after.items()
    }
    return costs | {"wrk": load.cpu_s * 1000 / load.requests}


def ratios(ours: Series, theirs: Series) -> list[float]:
    """Returns the ratios of neighbouring turns."""
    return [mine / other for mine, other in zip(ours.rates(), theirs.rates(), strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def show(title: str, series: Sequence[Series]) -> None:
    print(f"\n{title}\n")
    print(
        "| service | requests/s, median (least to most) | p50 ms | p99 ms | CPU ms a request | peak MB of one process |"
    )
    print("|---|---|---|---|---|---|")
    for one in series:
        p50, p99 = one.median(lambda turn: turn.load.p50_ms), one.median(lambda turn: turn.load.p99_ms)
        parts = sorted({part for turn in one.turns for part in turn.cpu_ms})
        costs = {part: one.median(lambda turn, part=part: turn.cpu_ms.get(part, 0)) for part in parts}  # type: ignore[misc]
        cpu = ", ".join(f"{part} {cost:.2f}" for part, cost in costs.items() if cost >= 0.005)
        peak = ", ".join(
            f"{part} {used.peak_mb:.0f}"
            for part, used in sorted(usage.by_part(one.target.roots).items())
            if used.cpu_s > 0.1
        )
        print(f"| {one.target.name} | {spread(one.rates(), 0)} | {p50:.1f} | {p99:.1f} | {cpu} | {peak} |")


def compare(ours: Series, theirs: Series, goal: float) -> None:
    """Prints the ratio of the rates, and whether its median reaches the goal."""
    values = ratios(ours, theirs)
    median = statistics.median(values)
    verdict = "reached" if median >= goal else f"missed by {1 - median / goal:.0%}"
    print(f"\n{ours.target.name} / {theirs.target.name}: {spread(values)}, target {goal}: {verdict}")


def compare_costs(ours: Series, theirs: Series, maximum: float) -> None:
    """Prints the ratio of the CPU time a request, and whether its median is within the maximum."""
    values = [mine.cost_ms / other.cost_ms for mine, other in zip(ours.turns, theirs.turns, strict=True)]
    median = statistics.median(values)
    verdict = "reached" if median <= maximum else f"missed by {median / maximum - 1:.0%}"
    costs = " / ".join(f"{one.median(lambda turn: turn.cost_ms):.2f}" for one in (ours, theirs))
    print(
        f"\nCPU of {ours.target.name} / {theirs.target.name}: {spread(values)}, {costs} ms,"
        f" target at most {maximum:g}: {verdict}"
    )


def limit(name: str, value: float, maximum: float) -> None:
    """Prints a value, and whether it is within the maximum."""
    verdict = "reached" if value <= maximum else f"missed by {value / maximum - 1:.0%}"
    print(f"\n{name}: {value:.2f}, target at most {maximum:g}: {verdict}")
