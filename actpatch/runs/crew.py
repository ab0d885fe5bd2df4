"""Actors that run the units of a stored run, and who hands units out to them.

An actor per device or core share loads the model once, takes units, and writes their parts itself. One that dies is
replaced, and the unit that it was at is tried again; a unit that ends its actor three times is left alone, as one that
fails. Where a whole machine goes, no unit is to blame. Nothing here knows how a cluster is found.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from actpatch.core.text import count
from actpatch.core.warn import warn_user
from actpatch.runs.folder import ATTEMPTS, RunFolder, shortened_error
from actpatch.runs.spec import Spec
from actpatch.runs.units import Unit
from actpatch.runs.waiting import Waiting
from actpatch.runs.worker import Worker, engine_of

AHEAD = 2
"""An actor has so many units, one to run and others to go on with at once; near the end it has one."""
GRACE = 5.0
"""Seconds from the death of an actor until its unit is blamed: by then it is known whether its whole machine went."""
TICK = 0.5
"""Seconds after which it is looked again, where nothing is heard."""


@dataclass(frozen=True)
class Orders:
    """What an actor is told."""

    folder: Path
    run: str
    """Id of the run."""
    device: str | None
    batch_size: int | None
    load: Callable[[], Any] | None
    threads: int = 1


@dataclass(frozen=True)
class Share:
    """How many actors there are, and what each of them has."""

    workers: int
    cores: int
    gpus: int
    device: str | None


@dataclass
class _Seat:
    """A place for an actor."""

    actor: Any
    calls: dict[Any, Unit | None]
    """What it was asked and has not answered, in the order in which it does it; None for loading the model."""
    node: str = ""
    """Where it is, once it has loaded the model."""
    has_worked: bool = False
    """Whether any actor loaded the model here."""
    lost: int = 0
    """How many actors died here, one after the other, before they had loaded it."""


@dataclass(frozen=True)
class _Suspect:
    """A unit at which an actor died."""

    unit: Unit
    node: str
    said: str
    since: float = field(default_factory=time.monotonic)


class Crew:
    """The actors of a run, and what each is at.

    Args:
        folder: of the run.
        waiting: the units.
        orders: what each actor is told.
        workers: how many actors; None for as many as there is room for.
    """

    def __init__(self, folder: RunFolder, waiting: Waiting, orders: Orders, workers: int | None) -> None:
        import ray

        self._ray, self._folder, self._waiting = ray, folder, waiting
        share = share_of([node["Resources"] for node in ray.nodes() if node["Alive"]], workers, orders.device)
        self._orders = replace(orders, device=share.device, threads=max(1, share.cores))
        # Ray restarts no actor: only of one that is dead for good does it say what it died of.
        self._kind: Any = ray.remote(num_cpus=share.cores, num_gpus=share.gpus, scheduling_strategy="SPREAD")(
            UnitsActor
        )
        self._seats: list[_Seat] = []
        self._suspects: deque[_Suspect] = deque()
        self._n_wanted = min(share.workers, len(waiting))

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for seat in self._seats:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(seat.actor)

    def run(self, show_progress: bool) -> None:
        """Run the units until none waits and none is at hand."""
        for _ in range(self._n_wanted):
            self._seats.append(_Seat(*self._new_actor()))
        with self._waiting.shown(show_progress) as progress:
            while self._waiting or self._suspects or any(unit for seat in self._seats for unit in seat.calls.values()):
                self._hand_out()
                asked = {ref: seat for seat in self._seats for ref in seat.calls}
                self._ray.wait([*asked], num_returns=1, timeout=TICK)
                ready, _ = self._ray.wait([*asked], num_returns=len(asked), timeout=0)
                for ref in ready:
                    if ref in asked[ref].calls:  # one that died has been seen to
                        progress.update(self._settled(asked[ref], ref))
                self._judge()

    def _new_actor(self) -> tuple[Any, dict[Any, Unit | None]]:
        actor = self._kind.remote(self._orders)
        return actor, {actor.begin.remote(): None}

    def _hand_out(self) -> None:
        loaded = [seat for seat in self._seats if seat.node]
        for n_ahead in range(1, AHEAD + 1):
            for seat in loaded:
                enough = n_ahead == 1 or len(self._waiting) > len(self._seats)  # so that none holds up the end
                if self._waiting and enough and len(seat.calls) < n_ahead:
                    unit = self._waiting.take()
                    seat.calls[seat.actor.attempt.remote(unit.number)] = unit

    def _settled(self, seat: _Seat, ref: Any) -> int:
        """See to what an actor has answered; how many patched runs are stored by it."""
        try:
            answer = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            if not seat.has_worked or seat.calls[ref] is not None or len(self._seats) == 1:
                raise error.cause from None
            self._seats.remove(seat)  # it is in another place now, and the others go on
            warn_user(f"a worker could not be replaced, and there is one less: {error.cause}")
            return 0
        except self._ray.exceptions.RayError as error:
            return self._died(seat, error)
        unit = seat.calls.pop(ref)
        if unit is None:
            seat.node, seat.has_worked, seat.lost = answer, True, 0
        elif answer is not None:
            self._waiting.failed(unit, RuntimeError(answer))
        else:
            return self._waiting.runs_of(unit)
        return 0

    def _died(self, seat: _Seat, error: Exception) -> int:
        """Put a new actor in the place of one that died; how many patched runs it stored that were not counted yet."""
        units = [unit for unit in seat.calls.values() if unit is not None]
        left = [unit for unit in units if not self._folder.part(unit).exists()]
        n_stored = sum(self._waiting.runs_of(unit) for unit in units if unit not in left)
        if left and not isinstance(error, self._ray.exceptions.ActorUnavailableError):  # of that one nothing is known
            self._suspects.append(_Suspect(left.pop(0), seat.node, _cause(error)))
        for unit in reversed(left):
            self._waiting.again(unit)
        seat.lost += not seat.node
        if seat.lost >= ATTEMPTS:
            raise RuntimeError(
                f"{count(seat.lost, 'actor')} died one after the other while they loaded the model: {_cause(error)}. "
                "Is there memory for so many workers? With fewer of them each has more"
            )
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(seat.actor)
        seat.node, (seat.actor, seat.calls) = "", self._new_actor()
        return n_stored

    def _judge(self) -> None:
        """Decide on units at which an actor died: their own failure, unless their machine went."""
        while self._suspects and time.monotonic() - self._suspects[0].since >= GRACE:
            suspect = self._suspects.popleft()
            if suspect.node not in {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}:
                self._waiting.again(suspect.unit)
                continue
            error = RuntimeError(f"its process died: {suspect.said}")
            self._folder.fail(suspect.unit, error)
            self._waiting.failed(suspect.unit, error)


class UnitsActor:
    """A process of its own that holds the model of a run and runs its units."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders

    def begin(self) -> str:
        """Load the model; the id of the machine's node.

        Raises:
            ValueError: where the folder is not seen here, and for a model that is not the run's.
        """
        import ray

        orders, folder = self._orders, RunFolder(self._orders.folder)
        torch.set_num_threads(orders.threads)
        spec = _seen(folder, orders.run)
        model = None if orders.load is None else orders.load()
        engine = engine_of(folder, spec, model, orders.device, orders.batch_size, False)
        self._units, self._worker = spec.units, Worker(folder, spec, spec.asked, engine)
        return ray.get_runtime_context().get_node_id()

    def attempt(self, number: int) -> str | None:
        """Run a unit into its part; what it failed of, in words, if it did."""
        error = self._worker.attempt(self._units[number])
        return None if error is None else shortened_error(error)


def share_of(nodes: Sequence[dict[str, float]], workers: int | None, device: str | None) -> Share:
    """An actor per GPU, or per core, or as many as asked for with an equal share of the cores.

    Args:
        nodes: what each machine has.
        workers: how many actors; None for as many as there are GPUs or cores.
        device: on what models run; None for GPUs where there are some.

    Raises:
        ValueError: where there are not so many.
    """
    cores, gpus = ([int(node.get(name, 0)) for node in nodes] for name in ("CPU", "GPU"))
    on_gpus = sum(gpus) > 0 if device is None else device.startswith("cuda")
    what, each = ("GPU", gpus) if on_gpus else ("core", cores)
    n_workers = sum(each) if workers is None else workers
    if not 1 <= n_workers <= sum(each):
        remedy = ", or device='cpu'" if on_gpus else ""
        raise ValueError(
            f"workers is {workers}, and the cluster has {count(sum(each), what)}: expected at least 1 and at most as "
            f"many as there are{remedy}"
        )
    if on_gpus:
        n_cores = min(n_cores // n_gpus for n_cores, n_gpus in zip(cores, gpus) if n_gpus)
        return Share(n_workers, n_cores, 1, device or "cuda")
    n_cores = max(n for n in range(1, max(cores) + 1) if sum(has // n for has in cores) >= n_workers)
    return Share(n_workers, n_cores, 0, device or "cpu")


def _seen(folder: RunFolder, run: str) -> Spec:
    """What was asked of this run, as its folder says it here."""
    try:
        spec = folder.read_spec()
        folder.check_can_be_written()
    except (ValueError, OSError) as error:
        found = str(error)
    else:
        if spec.id == run:
            return spec
        found = "it is another run there"
    raise ValueError(
        f"the machine {socket.gethostname()} does not see the run in {folder} ({found}): expected a folder on a file "
        "system that all machines of the cluster share, under the same path"
    )


def _cause(error: Exception) -> str:
    """Why an actor died, as Ray says it, without its ids."""
    text = " ".join(str(error).split()).rpartition("Worker exit detail: ")[2]
    return text[:400] or type(error).__name__
