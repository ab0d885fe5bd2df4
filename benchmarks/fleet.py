"""How long does a fleet of workers take for units of known lengths, when some are slow and some die?

A simulation of events. Each worker loads the model, then takes a unit after another: the next of all, as a cluster
hands them out, or of a share of its own, as jobs of a scheduler have them (`--shard K/N`). What dies loses the unit in
hand, waits to be started again, and loads the model; the death of a node takes all workers on it. The unit that was
lost is run next, by whoever may. No unit is run by two, and nothing waits for files. Nothing here knows a model.

What is drawn: how slow each worker is, for good, and each unit besides (lognormal, median 1); when workers and nodes
die (exponential).
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Event = Literal["ready", "finished", "death", "death of node"]


@dataclass(frozen=True)
class Fleet:
    """Workers, and what befalls them. Times are seconds, rates per second."""

    workers: int
    load: float = 0.0
    """How long a worker loads the model."""
    restart: float = 0.0
    """How long it takes until a worker that died is there again and begins to load."""
    deaths: float = 0.0
    """Rate at which a worker that is there dies by itself."""
    deaths_of_node: float = 0.0
    """Rate at which a node dies, with all workers on it."""
    per_node: int = 8
    slow_workers: float = 0.0
    """Standard deviation of the logarithm of how slow workers are."""
    slow_units: float = 0.0
    """The same of units."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    seconds: float
    """Until the last unit was finished."""
    finished: float
    """Seconds of all workers together in units that were finished."""
    lost: float
    """Seconds of all workers together in units that were lost."""
    deaths: int
    """How many workers died, those of a node each."""


def simulate(
    units: Sequence[float], fleet: Fleet, *, seed: int, shares: Sequence[Sequence[int]] | None = None
) -> Outcome:
    """Run all units once.

    Args:
        units: how long each takes on a worker of median speed, in seconds.
        fleet: who runs them.
        seed: of what is drawn.
        shares: numbers of the units of each worker; None to hand out the next unit of all.
    """
    return _Run(units, fleet, random.Random(seed), shares).outcome()


class _Run:
    def __init__(
        self, units: Sequence[float], fleet: Fleet, drawn: random.Random, shares: Sequence[Sequence[int]] | None
    ) -> None:
        self.units, self.fleet, self.drawn = units, fleet, drawn
        common = deque(range(len(units)))
        self.queues = [common] * fleet.workers if shares is None else [deque(share) for share in shares]
        self.slowness = [drawn.lognormvariate(0.0, fleet.slow_workers) for _ in range(fleet.workers)]
        self.lives = [0] * fleet.workers
        """How often each died: events of an earlier life count no more."""
        self.at: dict[int, tuple[int, float]] = {}
        """Worker -> the unit that it is at, and since when."""
        self.idle: dict[int, None] = {}
        self.events: list[tuple[float, int, Event, int, int]] = []
        self.n_events = 0
        self.now = self.finished = self.lost = 0.0

    def outcome(self) -> Outcome:
        fleet, left = self.fleet, len(self.units)
        for worker in range(fleet.workers):
            self._after(fleet.load, "ready", worker)
        for node in range(-(-fleet.workers // fleet.per_node)):
            self._await_death(fleet.deaths_of_node, "death of node", node, 0)
        while left:
            self.now, _, event, who, life = heapq.heappop(self.events)
            if event == "death of node":
                for worker in range(who * fleet.per_node, min((who + 1) * fleet.per_node, fleet.workers)):
                    self._dies(worker)
                self._await_death(fleet.deaths_of_node, event, who, 0)
            elif life != self.lives[who]:
                continue
            elif event == "death":
                self._dies(who)
            else:
                if event == "finished":
                    _, began = self.at.pop(who)
                    self.finished += self.now - began
                    left -= 1
                else:
                    self._await_death(fleet.deaths, "death", who, life)
                self._takes(who)
        return Outcome(self.now, self.finished, self.lost, sum(self.lives))

    def _takes(self, worker: int) -> None:
        queue = self.queues[worker]
        if not queue:
            self.idle[worker] = None
            return
        unit = queue.popleft()
        self.at[worker] = unit, self.now
        slow = self.slowness[worker] * self.drawn.lognormvariate(0.0, self.fleet.slow_units)
        self._after(self.units[unit] * slow, "finished", worker)

    def _dies(self, worker: int) -> None:
        self.lives[worker] += 1
        self.idle.pop(worker, None)
        self._after(self.fleet.restart + self.fleet.load, "ready", worker)
        if worker not in self.at:
            return
        unit, began = self.at.pop(worker)
        self.lost += self.now - began
        queue = self.queues[worker]
        queue.appendleft(unit)
        waiting = next((other for other in self.idle if self.queues[other] is queue), None)
        if waiting is not None:
            del self.idle[waiting]
            self._takes(waiting)

    def _await_death(self, rate: float, event: Event, who: int, life: int) -> None:
        if rate:
            self._push(self.now + self.drawn.expovariate(rate), event, who, life)

    def _after(self, seconds: float, event: Event, worker: int) -> None:
        self._push(self.now + seconds, event, worker, self.lives[worker])

    def _push(self, at: float, event: Event, who: int, life: int) -> None:
        heapq.heappush(self.events, (at, self.n_events, event, who, life))
        self.n_events += 1
