"""Python programs in processes of their own that begin with imports already done.

TensorFlow takes five seconds of processor time to import, PyTorch two, onnx one. One process imports them and
then does nothing but fork: each fork is a program with its own streams, environment, folder and end, as
`subprocess.Popen` would have started it. It has no threads, so a fork of it is sound.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

_SERVER = r"""
import atexit, gc, importlib, json, os, runpy, signal, socket, sys, traceback

for place in sys.argv[2:]:
    module, _, function = place.partition(":")
    found = importlib.import_module(module)
    if function:
        getattr(found, function)()
gc.collect()
gc.freeze()
ours = socket.socket(fileno=int(sys.argv[1]))


def run(words):
    kind, what, *arguments = words
    if kind == "-m":
        sys.argv = [what, *arguments]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *arguments]
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


def become(request):
    os.chdir(request["cwd"])
    if request["session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(request["env"])
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    places = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.path[:] = ["", *places, *(place for place in sys.path if place not in places)]
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.__stderr__ = open(
        2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
    )


while True:
    text, streams, _, _ = socket.recv_fds(ours, 1 << 20, 4)
    if not text:
        os._exit(0)
    if waiter := os.fork():  # which waits for the program, as a parent does
        os.waitpid(waiter, 0)
        for stream in streams:
            os.close(stream)
        continue
    ours.close()
    if os.fork():  # nobody waits for the waiter
        os._exit(0)
    *three, told = streams
    program = os.fork()
    if program:
        for stream in three:
            os.close(stream)
        os.write(told, b"%d\n" % program)
        os.write(told, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(program, 0)[1]))
        os._exit(0)
    os.close(told)
    for number, stream in enumerate(three):
        os.dup2(stream, number)
        os.close(stream)
    status = 1
    try:
        request = json.loads(text)
        become(request)
        run(request["words"])
        status = 0
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                pass
        os._exit(status)
"""


class Program:
    """A program that runs, with what tests and ckptkit use of `subprocess.Popen`."""

    def __init__(
        self, args: Sequence[str], stdin: BinaryIO | None, stdout: BinaryIO | None, told: BinaryIO
    ) -> None:
        self.args, self.stdin, self.stdout, self.stderr, self._told = args, stdin, stdout, None, told
        self.pid = int(told.readline())
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(self._told.readline())
            self._told.close()
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def kill(self) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class Preloaded:
    """Starts programs that have imported these modules."""

    def __init__(self, *modules: str) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVER, str(theirs.fileno()), *modules],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )

    def popen(
        self,
        command: Sequence[str | Path],
        *,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        cwd: Path | str | None = None,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
    ) -> Program:
        """Start ``python -c …`` or ``python -m …``; see `subprocess.Popen`."""
        python, *words = map(str, command)
        assert python == sys.executable and words[0] in ("-c", "-m")
        given, ours = [], []
        for asked, ends in ((stdin, (0, 1)), (stdout, (1, 0)), (stderr, (1, 0))):
            mine = None
            if asked == subprocess.PIPE:
                pipe = os.pipe()
                given.append(pipe[ends[0]])
                mine = os.fdopen(pipe[ends[1]], "wb" if ends[1] else "rb")
            elif asked == subprocess.STDOUT:
                given.append(os.dup(given[1]))
            elif asked is None or asked == subprocess.DEVNULL:
                given.append(os.open(os.devnull, os.O_RDWR))
            else:
                given.append(os.dup(asked if isinstance(asked, int) else asked.fileno()))
            ours.append(mine)
        reading, writing = os.pipe()
        request = {
            "words": words,
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "session": start_new_session,
        }
        socket.send_fds(self._socket, [json.dumps(request).encode()], [*given, writing])
        for stream in (*given, writing):
            os.close(stream)
        return Program(words, ours[0], ours[1], os.fdopen(reading, "rb", buffering=0))


_of = cache(Preloaded)


def preloaded(*modules: str) -> SimpleNamespace:
    """What stands in the place of the module `subprocess` where ckptkit starts Python, with these imported.

    The process that imports them starts when it is needed first, and ends with this one.
    """
    kept = {name: getattr(subprocess, name) for name in ("PIPE", "STDOUT", "DEVNULL", "TimeoutExpired")}
    return SimpleNamespace(Popen=lambda *given, **more: _of(*modules).popen(*given, **more), **kept)
