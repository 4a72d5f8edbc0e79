"""Python programs in processes of their own that begin with imports already done.

TensorFlow takes five seconds of processor time to import, PyTorch two, onnx one. One process imports them and
then does nothing but fork: each fork is a program with its own streams, environment, folder and end, as
`subprocess.Popen` would have started it. It runs nothing, and so has no threads that a fork would miss.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]

_SERVER = r"""
import atexit, fcntl, gc, importlib, json, os, runpy, select, shutil, socket, sys, traceback

listener, folder = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
for place in sys.argv[3:]:
    module, _, function = place.partition(":")
    try:
        found = importlib.import_module(module)
    except ImportError:  # a program that needs it says so itself
        continue
    if function:
        getattr(found, function)()
gc.collect()
gc.freeze()


def run(words):
    if not words[0].startswith("-"):
        sys.argv, sys.path[0] = words, os.path.dirname(os.path.abspath(words[0]))
        runpy.run_path(words[0], run_name="__main__")
        return
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
    lines = 1 if os.environ.get("PYTHONUNBUFFERED") else -1
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", buffering=lines, closefd=False)
    sys.stderr = sys.__stderr__ = open(
        2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
    )


while True:
    if 0 in select.select([0, listener], [], [])[0]:  # nobody is left who may ask
        with open(f"{folder}/lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if 0 in select.select([0], [], [], 0)[0]:  # nor came another meanwhile
                shutil.rmtree(folder, ignore_errors=True)
                os._exit(0)
        continue
    asking = listener.accept()[0]
    if waiter := os.fork():
        os.waitpid(waiter, 0)
        asking.close()
        continue
    listener.close()
    if os.fork():  # nobody waits for what comes, which waits for the program, as a parent does
        os._exit(0)
    text, streams, _, _ = socket.recv_fds(asking, 1 << 20, 3)
    program = os.fork()
    if program:
        for stream in (0, *streams):
            os.close(stream)
        asking.send(b"%d" % program)
        asking.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(program, 0)[1]))
        os._exit(0)
    asking.close()
    for number, stream in enumerate(streams):
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


class Program(subprocess.Popen[Any]):
    """A program as `subprocess.Popen` starts it, but that another process forks."""

    def __init__(self, address: str, command: Sequence[str | Path], **more: Any) -> None:
        self._address, self._session = address, more.get("start_new_session", False)
        super().__init__([*map(str, command)], **more)

    def _execute_child(self, args: list[str], *more: Any) -> None:
        cwd, env, pipes = more[4], more[5], more[9:15]  # each of three streams has two ends
        python, *words = args
        assert python == sys.executable
        given = [number if pipe == -1 else pipe for number, pipe in enumerate((pipes[0], *pipes[3::2]))]
        request = {
            "words": words,
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "session": self._session,
        }
        self._told = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._told.connect(self._address)
            socket.send_fds(self._told, [json.dumps(request).encode()], given)
        finally:
            self._close_pipe_fds(*pipes)
        self.pid = int(self._told.recv(20))
        self._child_created = True

    def _wait(self, timeout: float | None) -> int:
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(self._told.recv(20))
            self._told.close()
        return self.returncode

    def _internal_poll(self, _deadstate: int | None = None) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._wait(0)
        return None


class Preloaded:
    """Starts programs that have imported these modules, or called these functions (``module:function``).

    The processes of one run of pytest-xdist share the one that forks: the first to need it starts it, and it
    ends with the last.
    """

    def __init__(self, *modules: str) -> None:
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
        kind = hashlib.sha256("\0".join((run, sys.executable, str(REPOSITORY), *modules)).encode())
        folder = Path(tempfile.gettempdir(), f"ckptkit-preloaded-{kind.hexdigest()[:16]}")
        self.address = f"{folder}/socket"
        with _locked(folder):
            try:
                self._alive = os.open(folder / "alive", os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # it has not been started
                self._alive = self._start(folder, modules)

    def _start(self, folder: Path, modules: Sequence[str]) -> int:
        """Start the process; it runs while anybody has the returned end of its input open."""
        for name in ("alive", "socket"):  # of a run that was killed
            (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / "alive")
        reading = os.open(folder / "alive", os.O_RDONLY | os.O_NONBLOCK)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(self.address)
            listener.listen(16)
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVER, str(listener.fileno()), str(folder), *modules],
                pass_fds=[listener.fileno()],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd=REPOSITORY,
            )
        writing = os.open(folder / "alive", os.O_WRONLY)
        os.close(reading)
        return writing


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make a folder, which the process that forks removes at its end, and be alone there."""
    import fcntl

    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            lock = (folder / "lock").open("w")
        except FileNotFoundError:  # removed since
            continue
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock.fileno()).st_nlink:
                yield
                return


of = cache(Preloaded)
FRAMEWORKS = ("torch", "tensorflow", "keras", "tests.support.preloaded:start_forks_here_too")
COMMANDS = (
    *("numpy", "tests.support.preloaded:make_ready", "ckptkit.convert.execution", "ckptkit.models.synth"),
    *("ckptkit.store.install", "ckptkit.store.transfer", "ckptkit.store.sources"),
)
"""What most commands import that run no model."""


def preloaded(*modules: str) -> SimpleNamespace:
    """What takes the place of the module `subprocess` where ckptkit starts Python, with these imported.

    The process that imports them starts when it is needed first.
    """
    return _in_place(lambda *given, **more: Program(of(*modules).address, *given, **more))


def _in_place(popen: Callable[..., Program]) -> SimpleNamespace:
    kept = {name: getattr(subprocess, name) for name in ("PIPE", "STDOUT", "DEVNULL", "TimeoutExpired")}
    return SimpleNamespace(Popen=popen, **kept)


def make_ready() -> None:
    """In the process that forks: the commands and the built-in registry, which nearly all programs need."""
    from ckptkit.cli.app import load_commands
    from ckptkit.registry.loading import built_in_path, load_texts, read_text

    load_commands()
    load_texts([(built_in_path(), read_text(built_in_path()))])


def start_forks_here_too() -> None:
    """In the process that forks: models that its programs run in processes of their own are forks of it."""
    import __main__
    from ckptkit.parity import process

    address = __main__.listener.getsockname()
    process.subprocess = _in_place(lambda *given, **more: Program(address, *given, **more))  # type: ignore[assignment]


def run(
    command: Sequence[str | Path],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    modules: Sequence[str] = FRAMEWORKS,
) -> subprocess.CompletedProcess[str]:
    """Run Python to its end with these modules imported, else both frameworks; what it prints is text."""
    if not hasattr(os, "fork"):
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        more = {"stdout": out, "stderr": err, "cwd": folder, "env": environment}
        program = Program(of(*modules).address, command, stdin=subprocess.DEVNULL, **more)
        try:
            program.wait(300)
        finally:
            program.kill()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(command, program.wait(), *texts)


_SHIM = """#!{python} -SE
import json, os, socket, sys
program = "import sys; sys.argv[0] = 'ckptkit'; from ckptkit.cli.app import main; main()"
words = ["-c", program, *sys.argv[1:]]
asking = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
asking.connect({address!r})
request = {{"words": words, "cwd": os.getcwd(), "env": dict(os.environ), "session": False}}
socket.send_fds(asking, [json.dumps(request).encode()], [0, 1, 2])
asking.recv(20)
status = int(asking.recv(20))
sys.exit(status if status >= 0 else 128 - status)
"""


def write_command(*modules: str) -> Path:
    """Write a file ``ckptkit`` for a shell, whose processes begin with these modules imported."""
    started = of(*modules)
    path = Path(started.address).with_name("ckptkit")
    draft = path.with_name(f"draft-{os.getpid()}")
    draft.write_text(_SHIM.format(python=sys.executable, address=started.address))
    draft.chmod(0o755)
    return draft.replace(path)
