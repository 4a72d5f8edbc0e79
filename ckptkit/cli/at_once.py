"""Several works at once on the command line: threads that Ctrl+C ends, and one progress bar for each."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from ckptkit.base.errors import CkptkitError
from ckptkit.base.progress import Advance
from ckptkit.cli.output import Output, drawn

Result = TypeVar("Result")

_FAREWELL = 2.0
"""Seconds that threads get to put away what they have when they are stopped."""
_NAP = 0.2


@dataclass
class Voice:
    """Where several works at once say what they have to say."""

    note: Callable[[str], None]
    warn: Callable[[str], None]
    progress: Callable[[str, int | None], AbstractContextManager[Advance]]


class Works(Generic[Result]):
    """Calls to be made by a number of threads.

    Parameters
    ----------
    calls : sequence of callable
    jobs : int
        How many at once.
    stop : threading.Event
        Set when all of it is to end; calls look at it themselves.

    Examples
    --------
    >>> Works([lambda: 1, lambda: 2], 2, threading.Event()).run()
    [1, 2]
    """

    def __init__(self, calls: Sequence[Callable[[], Result]], jobs: int, stop: threading.Event) -> None:
        self._calls = calls
        self._stop = stop
        self._jobs = min(jobs, len(calls))
        self._waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._outcomes: list[Result | CkptkitError | None] = [None] * len(calls)
        self._fault: BaseException | None = None

    def run(self) -> list[Result | CkptkitError]:
        """Make every call; results and ckptkit's own errors stand in the order of the calls.

        Any other error ends all of it, and so does Ctrl+C: `stop` is set, and the threads are waited for
        a short time only. They are daemons: one that hears nothing from its server does not hold the process.
        """
        for index in range(len(self._calls)):
            self._waiting.put(index)
        threads = [
            threading.Thread(target=self._work, name=f"ckptkit-job-{number}", daemon=True)
            for number in range(self._jobs)
        ]
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads) and self._fault is None:
                for thread in threads:
                    thread.join(_NAP / len(threads))
        except BaseException:  # Ctrl+C: raised again once what has arrived is put away
            self._end(threads)
            raise
        if self._fault is not None:
            self._end(threads)
            raise self._fault
        return [outcome for outcome in self._outcomes if outcome is not None]

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        self._stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join(_FAREWELL / len(threads))

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                index = self._waiting.get_nowait()
            except queue.Empty:
                return
            try:
                self._outcomes[index] = self._calls[index]()
            except CkptkitError as error:  # the others go on
                self._outcomes[index] = error
            except BaseException as error:  # raised again by `run`, in the main thread
                self._fault = self._fault or error
                return


@contextmanager
def one_voice(output: Output) -> Iterator[Voice]:
    """Let several works use the terminal at once: a bar each, and notes above the bars."""
    if output.quiet or not output.stderr.isatty():
        yield Voice(output.note, output.warn, output.progress)
        return
    from rich import progress as bars
    from rich.console import Console

    console = Console(file=drawn(output.stderr))
    shown = bars.Progress(
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.TaskProgressColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
        console=console,
    )

    def say(text: str) -> None:
        shown.console.print(output.line(text), markup=False, emoji=False, highlight=False, soft_wrap=True)

    @contextmanager
    def progress(description: str, total: int | None) -> Iterator[Advance]:
        task = shown.add_task(output.line(description), total=total)
        try:
            yield lambda steps: shown.advance(task, steps)
        finally:
            shown.remove_task(task)  # a hundred bars that are full would leave no room for the others

    with shown:
        yield Voice(say, lambda text: say(f"warning: {text}"), progress)
