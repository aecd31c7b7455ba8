"""Puts several systems under the same load in turns, A B A B, so that other work of the machine affects all alike."""

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
    """One measurement of one system. `cpu_ms` is the CPU time per request of each part."""

    load: wrk.Load
    cpu_ms: dict[str, float]

    @property
    def total_cpu_ms(self) -> float:
        """The CPU time per request of all parts except wrk."""
        return sum(cost for part, cost in self.cpu_ms.items() if part != "wrk")


@dataclass(frozen=True, slots=True)
class Series:
    target: Target
    turns: list[Turn]

    def median(self, value: Callable[[Turn], float]) -> float:
        return statistics.median(value(turn) for turn in self.turns)

    def rates(self) -> list[float]:
        return [turn.load.rate for turn in self.turns]


def measure(
    targets: Sequence[Target],
    make_requests: Callable[[Target], wrk.Requests],
    *,
    connections: int,
    seconds: float,
    rounds: int,
    after_turn: Callable[[Target], None] = lambda _: None,
) -> list[Series]:
    """Runs `rounds` turns of each target and returns them. The time in `after_turn` is not measured.

    Raises BenchError if a response was wrong.
    """
    series = [Series(target, []) for target in targets]
    all_requests = [make_requests(target) for target in targets]
    for target, requests in zip(targets, all_requests, strict=True):
        if seconds <= _WARM_UP_S:
            break  # turns this short check that the row works; their figures do not count
        _send(target, requests, connections, _WARM_UP_S)
        _settle(target, after_turn)
    for _ in range(rounds):
        for one, requests in zip(series, all_requests, strict=True):
            before = usage.by_part(one.target.roots)
            load = _send(one.target, requests, connections, seconds)
            after = usage.by_part(one.target.roots)
            one.turns.append(Turn(load, _cpu_per_request(before, after, load)))
            _settle(one.target, after_turn)
    return series


def _send(target: Target, requests: wrk.Requests, connections: int, seconds: float) -> wrk.Load:
    try:
        return wrk.send(requests, target.port, connections=connections, seconds=seconds)
    except wrk.BenchError as error:
        raise wrk.BenchError(f"{target.name}: {error}") from None


def _settle(target: Target, after_turn: Callable[[Target], None]) -> None:
    time.sleep(SETTLE_S)
    after_turn(target)
    os.sync()


def _cpu_per_request(before: dict[str, usage.Usage], after: dict[str, usage.Usage], load: wrk.Load) -> dict[str, float]:
    cpu_ms = {
        part: (now.cpu_s - before.get(part, usage.Usage()).cpu_s) * 1000 / load.requests for part, now in after.items()
    }
    return cpu_ms | {"wrk": load.cpu_s * 1000 / load.requests}


def ratios(ours: Series, theirs: Series) -> list[float]:
    """Returns the ratio of the rates in each round."""
    return [mine / other for mine, other in zip(ours.rates(), theirs.rates(), strict=True)]


def format_spread(values: Sequence[float], digits: int = 2) -> str:
    """Returns e.g. "1.10 (0.95 to 1.15)": the median, the minimum and the maximum."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def print_table(title: str, series: Sequence[Series]) -> None:
    print(f"\n{title}\n")
    print(
        "| service | requests/s, median (min to max) | p50 ms | p99 ms | CPU ms per request | peak MB of one process |"
    )
    print("|---|---|---|---|---|---|")
    for one in series:
        p50, p99 = one.median(lambda turn: turn.load.p50_ms), one.median(lambda turn: turn.load.p99_ms)
        parts = sorted({part for turn in one.turns for part in turn.cpu_ms})
        cpu_ms = {part: one.median(lambda turn, part=part: turn.cpu_ms.get(part, 0)) for part in parts}  # type: ignore[misc]
        cpu = ", ".join(f"{part} {cost:.2f}" for part, cost in cpu_ms.items() if cost >= 0.005)
        peak = ", ".join(
            f"{part} {used.peak_mb:.0f}"
            for part, used in sorted(usage.by_part(one.target.roots).items())
            if used.cpu_s > 0.1
        )
        print(f"| {one.target.name} | {format_spread(one.rates(), 0)} | {p50:.1f} | {p99:.1f} | {cpu} | {peak} |")


def print_ratio(ours: Series, theirs: Series, goal: float) -> None:
    """Prints the ratio of the rates and whether its median reaches the goal."""
    values = ratios(ours, theirs)
    median = statistics.median(values)
    verdict = "reached" if median >= goal else f"missed by {1 - median / goal:.0%}"
    print(f"\n{ours.target.name} / {theirs.target.name}: {format_spread(values)}, target {goal}: {verdict}")


def print_cpu_ratio(ours: Series, theirs: Series, maximum: float) -> None:
    """Prints the ratio of the CPU time per request and whether its median is within the maximum."""
    values = [mine.total_cpu_ms / other.total_cpu_ms for mine, other in zip(ours.turns, theirs.turns, strict=True)]
    median = statistics.median(values)
    verdict = "reached" if median <= maximum else f"missed by {median / maximum - 1:.0%}"
    cpu_ms = " / ".join(f"{one.median(lambda turn: turn.total_cpu_ms):.2f}" for one in (ours, theirs))
    print(
        f"\nCPU of {ours.target.name} / {theirs.target.name}: {format_spread(values)}, {cpu_ms} ms,"
        f" target at most {maximum:g}: {verdict}"
    )


def print_maximum(name: str, value: float, maximum: float) -> None:
    """Prints a value and whether it is within the maximum."""
    verdict = "reached" if value <= maximum else f"missed by {value / maximum - 1:.0%}"
    print(f"\n{name}: {value:.2f}, target at most {maximum:g}: {verdict}")
