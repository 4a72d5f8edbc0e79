"""One damaged checkpoint, opened and read to its end as ckptkit would, and judged."""

from __future__ import annotations

import functools
import gc
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ckptkit.base.errors import CkptkitError, FormatError, NotFoundError, RegistryError, UsageError
from tests.fuzz.other_seeds import USES

MAX_SECONDS = 1.0
"""Processor time for one file: wall time would blame the file for what else the machine does."""
MAX_BYTES = 256 << 20
"""Memory for one file, beyond what the process held before."""

_DOCUMENTED = (FormatError, NotFoundError, UsageError)
_READ_WHOLE = 4 << 20
_THREADS = 6 << 30
"""Addresses that the threads of tensorstore reserve, and do not use; what is used is bounded all the same."""


class TooLong(BaseException):
    """Time is up; no handler of Exception may swallow this."""


@dataclass(frozen=True)
class Outcome:
    """What became of one file: ``kind`` begins with ``fault`` where it is not allowed."""

    kind: str
    seconds: float
    nbytes: int
    trace: str = ""

    @property
    def is_fault(self) -> bool:
        """Whether something else happened than a result or a refusal."""
        return self.kind.startswith("fault")


Opener = Callable[[Path], Any]


def readers(format: str) -> tuple[Opener, ...]:
    """How files of a format may be opened: by their content, and directly."""
    from ckptkit.formats.detect import open_reader
    from ckptkit.formats.keras import KerasH5Reader
    from ckptkit.formats.npz import NpzReader
    from ckptkit.formats.safetensors import SafetensorsReader
    from ckptkit.formats.tf_bundle import TfBundleReader
    from ckptkit.formats.tf_graph import TfGraphReader
    from ckptkit.formats.tf_v1 import TfV1Reader
    from ckptkit.formats.torch_reader import TorchReader

    direct: Mapping[str, Opener] = {
        "tf": TfBundleReader,
        "tar": TfBundleReader,
        "torch": TorchReader,
        "safetensors": SafetensorsReader,
        "sharded": open_reader,
        "npz": NpzReader,
        "keras": KerasH5Reader,
        "tf1": TfV1Reader,
        "graphdef": TfGraphReader,
        **dict.fromkeys(("flax", "orbax", "onnx", "gguf", "paddle", "dcp", "deepspeed"), open_reader),
    }
    family = format.replace(".", "-").partition("-")[0]
    return open_reader, direct[family], lambda path: open_reader(path, weights="auto")


def read_to_the_end(path: Path, opener: Opener) -> str:
    """Open a checkpoint and use everything it offers; what happened, in two words."""
    try:
        reader = opener(path)
    except _DOCUMENTED as error:
        _judge_message(error)
        return f"refused ({type(error).__name__})"
    damaged = False
    with reader:
        _recognise(tuple(reader.specs.values()))
        for name, spec in reader.specs.items():
            for use in (reader.check, lambda name, spec=spec: _touch(reader.read(name), spec)):
                try:
                    use(name)
                except FormatError as error:
                    _judge_message(error)
                    damaged = True
            reader.release(name)
        dict(getattr(reader, "extras", {}))
        str(reader.metadata)
        [*map(str, reader.notes)]
    return "opened, a tensor refused" if damaged else "read"


def _used(use: Callable[[Path], str], path: Path) -> str:
    """Use a text; what happened, in two words."""
    try:
        return use(path)
    except (RegistryError, *_DOCUMENTED) as error:
        _judge_message(error)
        return f"refused ({type(error).__name__})"


@functools.lru_cache(maxsize=1000)
def _recognise(specs: tuple[Any, ...]) -> None:
    """Recognise a table of tensors, once: that of a good file comes again and again, and takes long."""
    from ckptkit.families.recognition import recognise

    recognise({spec.name: spec for spec in specs})


def _touch(array: Any, spec: Any) -> None:
    from ckptkit.base.tensors import byte_pieces

    sized = spec.dtype.itemsize or not spec.dtype.is_opaque  # else the file alone says how long an element is
    assert array.shape == spec.shape and array.nbytes == spec.nbytes, "not what its spec says"
    assert not sized or array.dtype == spec.dtype.numpy, "not what its spec says"
    if array.nbytes <= _READ_WHOLE:
        for piece in byte_pieces(array):
            piece.sum()
    else:
        array[(0,) * array.ndim].tobytes()
        array[(-1,) * array.ndim].tobytes()


def _judge_message(error: CkptkitError) -> None:
    text = str(error)
    assert text.isprintable(), "a message of several lines, or with control characters"
    assert len(text) < 5000, f"a message of {len(text)} characters"


@contextmanager
def _time_limit() -> Iterator[None]:
    end = time.process_time() + MAX_SECONDS

    def stop(number: int, frame: FrameType | None) -> None:
        left = end - time.process_time()
        if left <= 0:
            raise TooLong
        # the timer counts ticks, which on a busy machine run ahead of the clock that measures
        signal.setitimer(signal.ITIMER_PROF, left)

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def limit_memory(more: int = 0) -> None:
    """Let this process grow by `MAX_BYTES` (and a little for its own sake), not more."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MAX_BYTES + (32 << 20) + more
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"no {field} in /proc/self/status")


def _restart_peak() -> int:
    """Have the kernel forget the highest resident size so far; returns the present one."""
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def place(files: Mapping[str, bytes], folder: Path) -> None:
    """Write files into an empty folder; new inodes, since a map of an older file may still live."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, raw in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)


def examine(format: str, files: Mapping[str, bytes], opened: str, folder: Path, how: int) -> Outcome:
    """Place a checkpoint in a folder, read it, and judge: outcome, time, memory, what is left behind.

    Parameters
    ----------
    format : str
        One of `tests.fuzz.seeds.FORMATS`.
    files : mapping of str to bytes
    opened : str
        Name of the file, prefix or folder to open.
    folder : Path
        Will be emptied.
    how : int
        Which of `readers` opens it.
    """
    place(files, folder)
    if format in USES:
        return measured(lambda: _used(USES[format], folder / opened), folder)
    openers = readers(format)
    return measured(lambda: read_to_the_end(folder / opened, openers[how % len(openers)]), folder)


def measured(work: Callable[[], str], folder: Path) -> Outcome:
    """Do something under the bounds of one file: what it returns, or the fault."""
    scratch = folder.with_name(folder.name + "-scratch")
    scratch.mkdir(exist_ok=True)
    usual, tempfile.tempdir = tempfile.tempdir, str(scratch)
    before = _restart_peak()
    start = time.process_time()
    kind, trace = "", ""
    try:
        with _time_limit():
            kind = work()
    except TooLong:
        kind, trace = "fault: too long", traceback.format_exc()
    except Exception as error:  # whatever it is, it is a fault
        kind, trace = f"fault: {type(error).__name__}", traceback.format_exc()
    finally:
        tempfile.tempdir = usual
    seconds = time.process_time() - start
    nbytes = max(0, _resident("VmHWM") - before)
    if nbytes > MAX_BYTES:
        kind, trace = "fault: too much memory", f"{nbytes} bytes"
    if left := [*scratch.iterdir()]:
        kind, trace = "fault: left behind", ", ".join(path.name for path in left)
        shutil.rmtree(scratch)
    return Outcome(kind, seconds, nbytes, trace)


def case(format: str, seed: int, number: int) -> tuple[str, dict[str, bytes], str, int]:
    """Case ``number`` of a campaign: name of its seed file, damaged files, what to open, and how."""
    from tests.fuzz.mutators import mutate
    from tests.fuzz.seeds import seeds

    source = random.Random(f"{seed}/{format}/{number}")
    chosen = source.choice(seeds(format))
    layer = source.choice(chosen.layers)
    foreign = [other.payload for one in seeds(format) for other in one.layers]
    damaged = layer.files(mutate(source, layer.payload, foreign, layer.grammar))
    how = source.choice((0, 0, 1, 1, 2))
    return chosen.name, {**chosen.files, **damaged}, chosen.opened, how


def warm_up(formats: Sequence[str], seed: int, folder: Path) -> None:
    """Open every good file once, so that no case pays for an import; then limit this process's memory."""
    from tests.fuzz.seeds import seeds

    for format in formats:
        case(format, seed, 0)
        for good in seeds(format):
            outcome = examine(format, dict(good.files), good.opened, folder, 1)
            if outcome.kind != good.kind:
                raise RuntimeError(f"the seed {format}/{good.name} is not good: {outcome}")
    limit_memory(_THREADS if "orbax" in formats else 0)
