"""Processes of ckptkit's own that run models, so that frameworks do not meet and a crash is a message.

A child answers requests (`child.serve`): lines of JSON, one answer for each; arrays travel as files. It has a
group of its own, so that Ctrl+C is ours: it is ended then, with whatever it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from ckptkit.base import errors
from ckptkit.base.errors import WHOLE_LISTS, CkptkitError, ConversionError

_PROGRAM = "import sys; sys.path[:] = {!r}; from {} import serve; serve()"
_LAST_LINES, _ALL_LINES = 3, 40
_KILLED_BY = {"SIGKILL": "the system does that where memory is short: a smaller batch needs less"}
_SPARE = 2 << 30


class ChildProcess:
    """A process that starts at once, answers requests in their order, and ends with `end`."""

    def __init__(
        self, called: str, log: Path, serving: str, folder: Path | None = None, timeout: float | None = None
    ) -> None:
        self.called = called  # in messages
        self._log, self._timeout, self._timed_out = log, timeout, False
        self._asked = 0
        self._start(serving, folder)

    def _start(self, serving: str, folder: Path | None) -> None:
        places = [place for place in sys.path if Path(place).is_absolute()]  # never the current folder
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 (Python itself, with a program of our own)
                [sys.executable, "-c", _PROGRAM.format(places, serving)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                env={
                    "KERAS_BACKEND": "tensorflow",
                    **os.environ,
                    "CUDA_VISIBLE_DEVICES": "-1",
                    "TF_CPP_MIN_LOG_LEVEL": "3",
                    "PYTHONIOENCODING": "utf-8",
                    "PYTHONDONTWRITEBYTECODE": "1",  # nothing is left beside the user's code
                },
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request; gives the answer."""
        self.send(request)
        return self.receive()

    def send(self, request: dict[str, Any]) -> None:
        """Send a request; `receive` gives the answer to the last one."""
        self._asked += 1
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: `receive` says why
            self._process.stdin.write(json.dumps({**request, "number": self._asked}).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """Wait for the answer."""
        patience = threading.Timer(self._timeout or threading.TIMEOUT_MAX, self._give_up)
        patience.daemon = True
        patience.start()
        try:
            answer = self._answer()
        finally:
            patience.cancel()
        if "error" in answer:
            raise self._error(answer)
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = {"number": 0}
        while answer["number"] != self._asked:  # nobody waited for the others
            line = self._process.stdout.readline()
            if not line.endswith(b"\n"):
                raise self._why_it_ended()
            answer = json.loads(line)
        return answer

    def _error(self, answer: dict[str, Any]) -> CkptkitError:
        kind = getattr(errors, answer["kind"], ConversionError)
        kind = kind if kind in (errors.UsageError, errors.NotFoundError) else ConversionError
        details = [*answer.get("details", ()), *([self._last_words()] if WHOLE_LISTS.get() else [])]
        error: CkptkitError = kind(
            f"{self.called}: {answer['error']}", details=details, hint=answer.get("hint")
        )
        return error

    def _give_up(self) -> None:
        self._timed_out = True
        self._kill()

    def _why_it_ended(self) -> ConversionError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        if self._timed_out:
            return ConversionError(
                f"{self.called}: no answer within {self._timeout} s",
                hint="a larger timeout in the case file gives it more",
            )
        status = self._process.returncode
        ended = f"status {status}"
        if status is not None and status < 0:
            with contextlib.suppress(ValueError):
                ended = f"signal {signal.Signals(-status).name}"
        words = self._last_words()
        return ConversionError(
            f"{self.called} ended with {ended}" + (f": {words}" if words else ""),
            hint=_KILLED_BY.get(ended.removeprefix("signal ")),
        )

    def _last_words(self) -> str:
        """The last lines that the process wrote."""
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - 20_000))
            lines = log.read().decode(errors="replace").splitlines()
        kept = [" ".join(line.split()) for line in lines if line.strip()]
        return " | ".join(kept[-(_ALL_LINES if WHOLE_LISTS.get() else _LAST_LINES) :])

    def _kill(self) -> None:
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()

    def end(self) -> None:
        """End the process and what it started."""
        self._kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def is_room_for_two() -> bool:
    """Whether two models may run at the same time: there are two cores, and some memory is free."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
        return cores > 1 and free >= _SPARE
    return cores > 1
