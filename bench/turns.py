"""Services under the same load in turn, A B A B, so that what else the machine does falls on all of them."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench import usage, wrk
from bench.targets import Target

# After a turn: what its clients left half done ends, and what it wrote reaches the disk, at nobody else's cost.
SETTLE_S = 0.5
_WARM_UP_S = 1


@dataclass(frozen=True, slots=True)
class Turn:
    """One service under load once. `cpu_ms` is what a request cost in each part."""

    load: wrk.Load
    cpu_ms: dict[str, float]

    @property
    def cost_ms(self) -> float:
        """What a request cost in all, without the load's own."""
        return sum(cost for part, cost in self.cpu_ms.items() if part != "wrk")


@dataclass(frozen=True, slots=True)
class Series:
    subject: Target
    turns: list[Turn]

    def median(self, value: Callable[[Turn], float]) -> float:
        return statistics.median(value(turn) for turn in self.turns)

    def rates(self) -> list[float]:
        return [turn.load.rate for turn in self.turns]


def take(
    subjects: Sequence[Target],
    make_requests: Callable[[Target], wrk.Requests],
    *,
    connections: int,
    seconds: float,
    rounds: int,
    between: Callable[[Target], None] = lambda _: None,
) -> list[Series]:
    """`between` is run after each turn, outside of what is measured."""
    series = [Series(subject, []) for subject in subjects]
    sending = [make_requests(subject) for subject in subjects]
    for subject, requests in zip(subjects, sending, strict=True):
        if seconds <= _WARM_UP_S:
            break  # it is only tried whether this runs
        _send(subject, requests, connections, _WARM_UP_S)
        _settle(subject, between)
    for _ in range(rounds):
        for one, requests in zip(series, sending, strict=True):
            before = usage.by_part(one.subject.roots)
            load = _send(one.subject, requests, connections, seconds)
            after = usage.by_part(one.subject.roots)
            one.turns.append(Turn(load, _costs(before, after, load)))
            _settle(one.subject, between)
    return series


def _send(subject: Target, requests: wrk.Requests, connections: int, seconds: float) -> wrk.Load:
    try:
        return wrk.send(requests, subject.port, connections=connections, seconds=seconds)
    except wrk.BenchError as error:
        raise wrk.BenchError(f"{subject.name}: {error}") from None


def _settle(subject: Target, between: Callable[[Target], None]) -> None:
    time.sleep(SETTLE_S)
    between(subject)
    os.sync()


def _costs(before: dict[str, usage.Usage], after: dict[str, usage.Usage], load: wrk.Load) -> dict[str, float]:
    costs = {
        part: (now.cpu_s - before.get(part, usage.Usage()).cpu_s) * 1000 / load.requests for part, now in after.items()
    }
    return costs | {"wrk": load.cpu_s * 1000 / load.requests}


def ratios(ours: Series, theirs: Series) -> list[float]:
    """Of neighbouring turns."""
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
            for part, used in sorted(usage.by_part(one.subject.roots).items())
            if used.cpu_s > 0.1
        )
        print(f"| {one.subject.name} | {spread(one.rates(), 0)} | {p50:.1f} | {p99:.1f} | {cpu} | {peak} |")


def compare(ours: Series, theirs: Series, target: float) -> None:
    """Print the ratio of the rates, and whether its median is what was aimed at."""
    found = ratios(ours, theirs)
    median = statistics.median(found)
    verdict = "reached" if median >= target else f"missed by {1 - median / target:.0%}"
    print(f"\n{ours.subject.name} / {theirs.subject.name}: {spread(found)}, target {target}: {verdict}")


def compare_costs(ours: Series, theirs: Series, most: float) -> None:
    """Print the ratio of what a request costs in CPU time, and whether its median is small enough."""
    found = [mine.cost_ms / other.cost_ms for mine, other in zip(ours.turns, theirs.turns, strict=True)]
    median = statistics.median(found)
    verdict = "reached" if median <= most else f"missed by {median / most - 1:.0%}"
    costs = " / ".join(f"{one.median(lambda turn: turn.cost_ms):.2f}" for one in (ours, theirs))
    print(
        f"\nCPU of {ours.subject.name} / {theirs.subject.name}: {spread(found)}, {costs} ms,"
        f" target at most {most:g}: {verdict}"
    )


def limit(name: str, value: float, most: float) -> None:
    """Print a value that is to be small, and whether it is."""
    verdict = "reached" if value <= most else f"missed by {value / most - 1:.0%}"
    print(f"\n{name}: {value:.2f}, target at most {most:g}: {verdict}")
