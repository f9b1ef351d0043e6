"""A queue before workers of several kinds, event by event: the arithmetic under ``fleet``. Pure, seeded by its caller.

Every job joins one queue, first come first served. A free slot takes the head of it; of several free slots the one
named first. An attempt may fail part of the way, wait, and join the queue's end again.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random


@dataclass(frozen=True)
class Arrival:
    """One job: when it comes and how many seconds each kind of worker needs for it."""

    at_s: float
    work_s: Mapping[str, float]


@dataclass
class Run:
    """What became of one job."""

    arrival: Arrival
    waited_s: float = 0.0
    """Time in the queue, over all attempts."""
    worked_s: float = 0.0
    attempts: int = 0
    finished_s: float = math.nan
    succeeded: bool = False


@dataclass(frozen=True)
class Faults:
    """How attempts fail.

    Attributes:
        rate: Chance that an attempt fails, at a random part of its way.
        most: Attempts after which a job has failed.
        pause_s: Time between a failure and the next try.
    """

    rate: float = 0.0
    most: int = 6
    pause_s: float = 0.0


@dataclass
class Outcome:
    """A finished simulation: every job that came has ended."""

    runs: list[Run]
    slots: Counter[str]
    busy_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    ended_s: float = 0.0
    """Time of the last event."""

    @property
    def utilisation(self) -> dict[str, float]:
        """Part of the time that each kind's slots were busy."""
        return {kind: self.busy_s[kind] / (count * self.ended_s) for kind, count in self.slots.items()}

    @property
    def mean_delay_s(self) -> float:
        """Mean time in the queue."""
        return sum(run.waited_s for run in self.runs) / len(self.runs)

    def delay_s(self, part: float) -> float:
        """The time in the queue that ``part`` (0 to 1) of the jobs do not exceed."""
        ordered = sorted(run.waited_s for run in self.runs)
        return ordered[min(len(ordered) - 1, math.ceil(part * len(ordered)) - 1)]


class Simulation:
    """One run: ``Simulation(...).run()``.

    Args:
        arrivals: Jobs, in order of time.
        slots: The kind of every slot, the preferred first.
        faults: How attempts fail.
        chance: Source of chance for failures.
    """

    def __init__(self, arrivals: Iterable[Arrival], slots: Sequence[str], faults: Faults, chance: Random) -> None:
        self._slots, self._faults, self._chance = slots, faults, chance
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._queue: deque[tuple[Run, float]] = deque()
        self._free = list(range(len(slots)))  # a heap: the preferred slot first
        self._arrivals = iter(arrivals)
        self._outcome = Outcome([], Counter(slots))

    def run(self) -> Outcome:
        """Go through all events."""
        self._next_arrival()
        while self._events:
            now_s, _, event = heapq.heappop(self._events)
            self._outcome.ended_s = now_s
            event(now_s)
        return self._outcome

    def _at(self, time_s: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (time_s, next(self._order), event))

    def _next_arrival(self) -> None:
        arrival = next(self._arrivals, None)
        if arrival is not None:
            run = Run(arrival)
            self._outcome.runs.append(run)
            self._at(arrival.at_s, lambda now_s: self._arrive(run, now_s))

    def _arrive(self, run: Run, now_s: float) -> None:
        self._next_arrival()
        self._join(run, now_s)

    def _join(self, run: Run, now_s: float) -> None:
        self._queue.append((run, now_s))
        self._start_waiting(now_s)

    def _start_waiting(self, now_s: float) -> None:
        while self._queue and self._free:
            run, since_s = self._queue.popleft()
            run.waited_s += now_s - since_s
            self._begin(run, heapq.heappop(self._free), now_s)

    def _begin(self, run: Run, slot: int, now_s: float) -> None:
        run.attempts += 1
        work_s = run.arrival.work_s[self._slots[slot]]
        fails = self._chance.random() < self._faults.rate
        spent_s = work_s * self._chance.random() if fails else work_s
        self._at(now_s + spent_s, lambda end_s: self._end(run, slot, spent_s, fails, end_s))

    def _end(self, run: Run, slot: int, spent_s: float, failed: bool, now_s: float) -> None:
        run.worked_s += spent_s
        self._outcome.busy_s[self._slots[slot]] += spent_s
        heapq.heappush(self._free, slot)
        if failed and run.attempts < self._faults.most:
            self._at(now_s + self._faults.pause_s, lambda again_s: self._join(run, again_s))
        else:
            run.finished_s, run.succeeded = now_s, not failed
        self._start_waiting(now_s)


def simulate(arrivals: Iterable[Arrival], slots: Sequence[str], faults: Faults | None = None, seed: int = 1) -> Outcome:
    """Run a simulation to its end."""
    return Simulation(arrivals, slots, faults or Faults(), Random(seed)).run()


def poisson(rate_per_s: float, count: int, work: Callable[[Random], Mapping[str, float]], seed: int) -> list[Arrival]:
    """Jobs that come independently of each other, ``rate_per_s`` in the mean; ``work`` draws what each needs."""
    chance, now_s, found = Random(seed), 0.0, []
    for _ in range(count):
        now_s += chance.expovariate(rate_per_s)
        found.append(Arrival(now_s, work(chance)))
    return found
