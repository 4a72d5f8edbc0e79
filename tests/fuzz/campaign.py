"""Many cases in worker processes, under a watchdog: a case that hangs or kills its process is a fault too."""

from __future__ import annotations

import contextlib
import importlib
import math
import multiprocessing
import multiprocessing.connection
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.fuzz.target import Outcome, place

DAMAGED = "tests.fuzz.target"
"""Where the damaged files are."""
HANG_SECONDS = 30.0
"""Wall time without a word from a worker: it waits for something that will not come."""
START_SECONDS = 300.0
"""Until its first word: imports of three frameworks, where others want the processor too."""


@dataclass(frozen=True)
class Fault:
    """A case that ended as none may."""

    format: str
    number: int
    seed_file: str
    outcome: Outcome


@dataclass
class Tally:
    """What became of the cases so far."""

    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    slowest: tuple[float, str, int] = (0.0, "", 0)
    biggest: tuple[int, str, int] = (0, "", 0)
    faults: list[Fault] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Cases so far."""
        return sum(sum(counter.values()) for counter in self.kinds.values())

    def add(self, format: str, number: int, seed_file: str, outcome: Outcome) -> None:
        """Count one case."""
        self.kinds.setdefault(format, Counter())[outcome.kind] += 1
        self.slowest = max(self.slowest, (outcome.seconds, format, number))
        self.biggest = max(self.biggest, (outcome.nbytes, format, number))
        if outcome.is_fault:
            self.faults.append(Fault(format, number, seed_file, outcome))


@dataclass(frozen=True)
class Plan:
    """Which cases to run, and in which module they are: number i is of format i modulo their number.

    The module has ``case``, ``examine`` and ``warm_up`` as `tests.fuzz.target` has them.
    """

    formats: Sequence[str]
    count: int
    seed: int
    first: int = 0
    module: str = DAMAGED

    @property
    def cases(self) -> ModuleType:
        """The module."""
        return importlib.import_module(self.module)

    def format_of(self, number: int) -> str:
        """Format of a case."""
        return self.formats[number % len(self.formats)]


def scratch_folder() -> Path:
    """Memory rather than disk, where there is some: every case writes its files anew."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


def _work(pipe: Any, plan: Plan, numbers: range, folder: Path) -> None:
    """Run in a worker process: examine cases, and tell of each."""
    module = plan.cases
    module.warm_up(plan.formats, plan.seed, folder)
    pipe.send((-1, "", Outcome("ready", 0.0, 0)))
    for number in numbers:
        format = plan.format_of(number)
        seed_file, files, opened, how = module.case(format, plan.seed, number)
        pipe.send((number, seed_file, module.examine(format, files, opened, folder, how)))
    pipe.close()


@dataclass
class _Worker:
    """A process, the cases it has still to do, and when it was last heard of."""

    process: Any
    pipe: Any
    rest: range
    heard: float
    started: bool = False


def run(
    plan: Plan,
    *,
    jobs: int = 2,
    seconds: float = math.inf,
    hang_seconds: float = HANG_SECONDS,
    tell: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Run a campaign.

    Parameters
    ----------
    plan : Plan
    jobs : int
        Worker processes.
    seconds : float
        When to stop, however many cases are left.
    hang_seconds : float
        When a silent worker is killed.
    tell : callable
        Called now and then with the tally so far.
    """
    context = multiprocessing.get_context("spawn")
    tally = Tally()
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(dir=scratch_folder(), prefix="ckptkit-fuzz-") as place:

        def start(rest: range) -> _Worker:
            ours, theirs = context.Pipe(duplex=False)
            folder = Path(place) / f"job-{rest.start % jobs}"
            process = context.Process(target=_work, args=(theirs, plan, rest, folder), daemon=True)
            process.start()
            theirs.close()
            return _Worker(process, ours, rest, time.monotonic() + START_SECONDS)

        def lost(worker: _Worker, kind: str) -> None:
            """Note the case at which a worker was lost, and have another go on behind it."""
            worker.process.kill()
            worker.process.join()
            workers.remove(worker)
            number = worker.rest.start
            seed_file = plan.cases.case(plan.format_of(number), plan.seed, number)[0]
            tally.add(plan.format_of(number), number, seed_file, Outcome(kind, 0.0, 0))
            if len(worker.rest) > 1 and len(tally.faults) < 100:
                workers.append(start(worker.rest[1:]))

        stop = plan.first + plan.count
        ranges = (range(plan.first + job, stop, jobs) for job in range(jobs))
        workers = [start(numbers) for numbers in ranges if numbers]
        while workers and time.monotonic() < end:
            ready = multiprocessing.connection.wait([worker.pipe for worker in workers], timeout=0.5)
            for worker in [*workers]:
                if worker.pipe in ready:
                    try:
                        number, seed_file, outcome = worker.pipe.recv()
                    except EOFError:
                        worker.process.join()
                        if not worker.started:
                            raise RuntimeError(
                                "a worker died before its first case; its error stands above"
                            ) from None
                        if worker.rest:
                            lost(worker, f"fault: process died ({worker.process.exitcode})")
                        else:
                            workers.remove(worker)
                        continue
                    worker.heard = time.monotonic()
                    if number < 0:
                        worker.started = True
                        continue
                    worker.rest = worker.rest[1:]
                    tally.add(plan.format_of(number), number, seed_file, outcome)
                    if tally.count % 1000 == 0:
                        tell(tally)
                elif time.monotonic() - worker.heard > hang_seconds:
                    lost(worker, "fault: hangs")
        for worker in workers:
            worker.process.kill()
            worker.process.join()
    return tally


def minimised(fault: Fault, seed: int, budget: int = 400) -> dict[str, bytes]:
    """Files that still show a fault, with as little damage as could be found in ``budget`` tries.

    Faults that kill or hang the process are given as they are: each try would need a process.
    """
    from tests.fuzz.seeds import seeds
    from tests.fuzz.target import case, examine

    _, files, opened, how = case(fault.format, seed, fault.number)
    good = next(one for one in seeds(fault.format) if one.name == fault.seed_file).files
    if not fault.outcome.trace:
        return files
    with tempfile.TemporaryDirectory(dir=scratch_folder(), prefix="ckptkit-fuzz-") as folder:

        def still(candidate: dict[str, bytes]) -> bool:
            found = examine(fault.format, candidate, opened, Path(folder) / "min", how)
            return found.kind == fault.outcome.kind

        for name in files:
            if files[name] != good[name]:
                files = _less_damage(files, name, good[name], still, budget)
    return files


def _less_damage(
    files: dict[str, bytes], name: str, good: bytes, still: Callable[[dict[str, bytes]], bool], budget: int
) -> dict[str, bytes]:
    """Undo damage chunk by chunk where lengths agree, else cut chunks out."""
    size = max(1, len(files[name]) // 2)
    while size and budget > 0:
        place = 0
        while place < len(files[name]) and budget > 0:
            now = files[name]
            same_length = len(now) == len(good)
            middle = good[place : place + size] if same_length else b""
            candidate = {**files, name: now[:place] + middle + now[place + size :]}
            budget -= 1
            if candidate[name] != now and still(candidate):
                files = candidate
                if not same_length:
                    continue
            place += size
        size //= 2
    return files


def save(fault: Fault, plan: Plan, folder: Path) -> Path:
    """Keep a fault: its files, and how to see it again."""
    home = folder / f"{fault.format}-{fault.number}"
    damaged = plan.module == DAMAGED
    if damaged:
        files = minimised(fault, plan.seed)
    else:
        files = plan.cases.case(fault.format, plan.seed, fault.number)[1]
    place(files, home)
    with contextlib.suppress(OSError):
        (home / "FAULT.txt").write_text(
            f"{fault.outcome.kind}\n{again(fault, plan)}\n\n{fault.outcome.trace}"
        )
    return home


def again(fault: Fault, plan: Plan) -> str:
    """The command that shows a fault again."""
    which = "" if plan.module == DAMAGED else " --differential"
    return f"python -m tests.fuzz{which} --seed {plan.seed} --format {fault.format} --case {fault.number}"
