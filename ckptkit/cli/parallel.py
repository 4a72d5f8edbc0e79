"""Several calls at once on the command line: threads that Ctrl+C ends, and one progress bar for each."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from ckptkit.base.errors import CkptkitError
from ckptkit.base.progress import Advance, Say
from ckptkit.cli.output import Output, drawn

Result = TypeVar("Result")

_SHUTDOWN_SECONDS = 2.0
"""How long threads get to put away what they have when they are stopped."""
_POLL_SECONDS = 0.2


@dataclass
class SharedOutput:
    """Where several calls that run at once report: a bar each, and notes above the bars."""

    note: Say
    warn: Say
    progress: Callable[[str, int | None], AbstractContextManager[Advance]]


def run_parallel(
    calls: Sequence[Callable[[], Result]], jobs: int, stop: threading.Event
) -> list[Result | CkptkitError]:
    """Make every call, several at once; results and ckptkit's own errors are in the order of the calls.

    Any other error ends all of it, and so does Ctrl+C: `stop` is set, which calls look at themselves, and the
    threads are waited for a short time only. They are daemons: one that hears nothing from its server does
    not hold the process.

    Examples
    --------
    >>> run_parallel([lambda: 1, lambda: 2], 2, threading.Event())
    [1, 2]
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    outcomes: dict[int, Result | CkptkitError] = {}
    faults: list[BaseException] = []

    for index in range(len(calls)):
        waiting.put(index)
    shared = calls, waiting, outcomes, faults, stop
    threads = [
        threading.Thread(target=_work, args=shared, name=f"ckptkit-job-{number}", daemon=True)
        for number in range(min(jobs, len(calls)))
    ]
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) and not faults:
            for thread in threads:
                thread.join(_POLL_SECONDS / len(threads))
        if faults:
            raise faults[0]
    except BaseException:  # Ctrl+C too: raised again once what has arrived is put away
        stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join(_SHUTDOWN_SECONDS / len(threads))
        raise
    return [outcomes[index] for index in sorted(outcomes)]


def _work(
    calls: Sequence[Callable[[], Result]],
    waiting: queue.SimpleQueue[int],
    outcomes: dict[int, Result | CkptkitError],
    faults: list[BaseException],
    stop: threading.Event,
) -> None:
    while not stop.is_set():
        try:
            index = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            outcomes[index] = calls[index]()
        except CkptkitError as error:  # the others go on
            outcomes[index] = error
        except BaseException as error:  # raised again in the main thread
            faults.append(error)
            return


@contextmanager
def shared_output(output: Output) -> Iterator[SharedOutput]:
    """Let several calls use the terminal at once."""
    if output.quiet or not output.stderr.isatty():
        yield SharedOutput(output.note, output.warn, output.progress)
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
    def progress(description: str, total: int | None, /, *, unit: str = "bytes") -> Iterator[Advance]:
        task = shown.add_task(output.line(description), total=total)
        try:
            yield lambda steps: shown.advance(task, steps)
        finally:
            shown.remove_task(task)  # a hundred bars that are full would leave no room for the others

    with shown:
        yield SharedOutput(say, lambda text: say(f"warning: {text}"), progress)
