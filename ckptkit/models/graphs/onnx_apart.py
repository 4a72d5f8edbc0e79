"""An ONNX file that others made, checked and run in a process of its own.

A few hundred bytes of ONNX can ask for any amount of memory or time, already while the file is being checked:
onnx expands functions, and ONNX Runtime computes what is constant. So all of that happens in another process
with limits. What no graph of images to logits has (loops, functions, sequences, sparse tensors) is refused as
soon as the file is parsed; the rest gets as much processor time and memory as its weights and PyTorch's own
model of the same checkpoint suggest, many times over. The process ends when its standard input does, so it
never outlives this one.

Limits are those of the system (``setrlimit``): Linux keeps both, macOS that of time; on Windows only the
clock counts.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ckptkit.base.errors import CkptkitError, FormatError, NotFoundError, listed
from ckptkit.base.text import counted
from ckptkit.models.graphs.onnx_graph import LOGITS, OnnxGraph, is_stage, onnx_runtime, open_onnx

if TYPE_CHECKING:
    from ckptkit.base.tensors import Array

_MB = 1 << 20
_LARGEST_FILE = (1 << 31) - 1
"""A protocol-buffer message has less than 2 GB; larger weights are in a file beside."""

_NODES, _DEPTH, _OUTPUTS = 100_000, 8, 100
_RANK, _LARGEST = 4, 1 << 28  # dimensions, numbers: 1 GB
_DOMAINS = ("", "ai.onnx")
_REFUSED = frozenset(
    {
        *("Loop", "Scan", "SequenceMap", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase"),
        *("SequenceInsert", "SequenceLength", "SplitToSequence", "ConcatFromSequence", "Optional"),
        *("OptionalGetElement", "OptionalHasElement", "StringConcat", "StringNormalizer", "StringSplit"),
        *("RegexFullMatch", "TfIdfVectorizer"),
    }
)
_OUT_OF_TIME, _KILLED = getattr(signal, "SIGXCPU", 24), getattr(signal, "SIGKILL", 9)
_REASON = 200
_NO_MEMORY = re.compile(r"bad_alloc|bfc_arena|[Ff]ailed to allocate|more than \d+ bytes")
_HEADER_BYTES = 1 << 20


@dataclass(frozen=True)
class Allowance:
    """What a step in the other process may take beyond what it has."""

    seconds: float  # of processor time, all cores together
    nbytes: int  # of memory

    @classmethod
    def to_load(cls, nbytes: int) -> Allowance:
        """For a file of this size, its weights included."""
        return cls(2 + nbytes / (16 * _MB), 256 * _MB + 6 * nbytes)

    @classmethod
    def to_run(cls, images: Array, like: Mapping[str, Array], seconds: float) -> Allowance:
        """For what PyTorch computed in so much processor time: inside are larger maps than those it gives."""
        largest = max((array.nbytes for array in like.values()), default=0)
        return cls(2 + 20 * seconds, 256 * _MB + 4 * images.nbytes + 128 * largest)


_PLENTY = Allowance(1e6, 1 << 50)
"""For a graph that was just exported: a busy machine may take its time."""


def open_foreign_onnx(path: Path, *, limited: bool = True) -> OnnxGraph:
    """Check an ONNX file and load it into ONNX Runtime, in another process; one of ours needs no limits."""
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file")
    if path.stat().st_size > _LARGEST_FILE:
        raise FormatError(path, f"not a valid ONNX file: more than {_LARGEST_FILE:,} bytes")
    apart = _Apart(path, limited=limited)
    try:
        found, _ = apart.ask({}, b"", Allowance.to_load(_weight(path)), "load")
    except BaseException:
        apart.end()
        raise
    size = found["size"]
    return OnnxGraph(
        path,
        found["opset"],
        tuple(found["outputs"]),
        found["batch"],
        None if size is None else (size[0], size[1]),
        found["metadata"],
        found["versions"],
        apart,
    )


def _weight(path: Path) -> int:
    """Bytes of a file, and of what may be its weights beside it; holes count for nothing."""
    beside = path.with_name(path.name + ".data")
    files = [path, beside] if beside.is_file() else [path]
    return sum(
        min(status.st_size, getattr(status, "st_blocks", 1 << 60) * 512) for status in map(Path.stat, files)
    )


class _Apart:
    """The other process, which answers as a session of ONNX Runtime does."""

    def __init__(self, path: Path, *, limited: bool) -> None:
        self._path, self._limited = path, limited
        code = (
            "import sys; sys.path[:] = {!r}; from ckptkit.models.graphs.onnx_apart import serve; serve({!r})"
        )
        places = [place for place in sys.path if Path(place).is_absolute()]  # never the current folder
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", code.format(places, str(path))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.end = weakref.finalize(self, _end, self._process)

    def run(
        self, outputs: list[str], planes: Array, like: Mapping[str, Array], seconds: float
    ) -> list[Array]:
        """Run the graph on (N, 3, H, W) float32; see `Allowance.to_run`."""
        import numpy

        allowance = Allowance.to_run(planes, like, seconds)
        most = 64 * _MB + 4 * sum(array.nbytes for array in like.values())
        request = {"outputs": outputs, "shape": planes.shape, "most": most}
        answer, content = self.ask(request, planes.tobytes(), allowance, "run")
        arrays = []
        for shape in answer["shapes"]:
            count = math.prod(shape)
            arrays.append(numpy.frombuffer(content, numpy.float32, count).reshape(shape))
            content = content[4 * count :]
        return arrays

    def ask(
        self, request: dict[str, Any], content: bytes, allowance: Allowance, what: str
    ) -> tuple[dict[str, Any], bytes]:
        """Send a request; gives the answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        allowance = allowance if self._limited else _PLENTY
        patience = threading.Timer(60 + 20 * allowance.seconds, self._process.kill)  # of a busy machine
        patience.daemon = True
        patience.start()
        try:
            _send(self._process.stdin, {**request, **vars(allowance)}, content)
            answer, content = _receive(self._process.stdout, request.get("most", 0))
        except (EOFError, OSError, ValueError) as error:
            raise FormatError(self._path, self._why_it_ended(allowance, what)) from error
        finally:
            patience.cancel()
        if answer.get("no_memory"):
            raise FormatError(
                self._path, f"takes more than {allowance.nbytes // _MB:,} MB of memory to {what}"
            )
        if "error" in answer:
            raise FormatError(self._path, str(answer["error"])[:_REASON], hint=answer.get("hint"))
        return answer, content

    def _why_it_ended(self, allowance: Allowance, what: str) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self.end()
        status = self._process.returncode
        if status == -_OUT_OF_TIME:
            return f"takes more than {math.ceil(allowance.seconds)} s of processor time to {what}"
        if status == -_KILLED:
            return f"takes too long to {what}"
        return f"ONNX Runtime ended with status {status} while it was asked to {what} it"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):  # of what it did not take any more
                stream.close()


def _send(stream: BinaryIO | Any, header: dict[str, Any], content: bytes = b"") -> None:
    text = json.dumps({**header, "nbytes_after": len(content)}).encode()
    stream.write(len(text).to_bytes(8, "big") + text + content)
    stream.flush()


def _receive(stream: BinaryIO | Any, most: int) -> tuple[dict[str, Any], bytes]:
    """Read what `_send` wrote."""
    length = int.from_bytes(_exactly(stream, 8), "big")
    if length > _HEADER_BYTES:
        raise ValueError("too long")
    header = json.loads(_exactly(stream, length))
    if header["nbytes_after"] > most:
        raise ValueError("too long")
    return header, _exactly(stream, header["nbytes_after"])


def _exactly(stream: BinaryIO | Any, count: int) -> bytes:
    content: bytes = stream.read(count)
    if len(content) != count:
        raise EOFError
    return content


# What follows runs in the other process.


def serve(name: str) -> None:
    """Answer requests on standard input until it ends."""
    import queue

    path = Path(name)
    stdin, stdout = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints
    import numpy
    import onnx

    onnx_runtime()
    del numpy, onnx  # their memory and time are not the file's
    requests: queue.SimpleQueue[tuple[dict[str, Any], bytes]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(stdin, requests), daemon=True).start()
    graph: OnnxGraph | None = None
    while True:
        request, content = requests.get()
        _limit(request["seconds"], request["nbytes"])
        try:
            if graph is None:
                graph = open_onnx(path, check=check_foreign)
                _send(stdout, _described(graph))
            else:
                _answer(stdout, graph, request, content)
        except FormatError as error:
            _send(
                stdout, {"error": error.reason, "hint": error.hint, "no_memory": _is_no_memory(error.reason)}
            )
        except CkptkitError as error:
            _send(stdout, {"error": str(error)})
        except MemoryError:
            _send(stdout, {"no_memory": True})


def _listen(stdin: BinaryIO, requests: Any) -> None:
    """Take requests as they come; when the other end is gone, so is the process, whatever it computes."""
    try:
        while True:
            requests.put(_receive(stdin, 1 << 40))
    except BaseException:
        os._exit(1)


def _limit(seconds: float, nbytes: int) -> None:
    """Limit this process' time and memory to so much more than it has taken."""
    try:
        import resource
    except ImportError:  # Windows
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    _set_limit(resource.RLIMIT_CORE, 0)
    _set_limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + seconds))
    try:
        pages = Path("/proc/self/statm").read_text().split()
    except OSError:
        return
    stacks = 10 * _MB * (os.cpu_count() or 1)
    _set_limit(resource.RLIMIT_DATA, int(pages[5]) * resource.getpagesize() + stacks + nbytes)


def _set_limit(what: int, value: int) -> None:
    import resource

    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _is_no_memory(reason: str) -> bool:
    """Whether ONNX Runtime says, in one of its ways, that it got no memory."""
    return _NO_MEMORY.search(reason) is not None


def _described(graph: OnnxGraph) -> dict[str, Any]:
    metadata = {key[:100]: value[:10_000] for key, value in list(graph.metadata.items())[:100]}
    return {
        "opset": graph.opset,
        "outputs": graph.outputs,
        "batch": graph.batch,
        "size": graph.size,
        "metadata": metadata if len(json.dumps(metadata)) < _HEADER_BYTES // 2 else {},
        "versions": graph.versions,
    }


def _answer(stdout: BinaryIO, graph: OnnxGraph, request: dict[str, Any], content: bytes) -> None:
    import numpy

    planes = numpy.frombuffer(content, numpy.float32).reshape(request["shape"])
    arrays = graph.on_planes(request["outputs"], planes)
    for name, array in zip(request["outputs"], arrays, strict=True):
        if not isinstance(array, numpy.ndarray) or array.dtype != numpy.float32:
            raise FormatError(graph.path, f"its {name} is not a float32 tensor")
    if sum(array.nbytes for array in arrays) > request["most"]:
        raise FormatError(graph.path, f"its outputs have more than {request['most'] // _MB:,} MB")
    _send(
        stdout,
        {"shapes": [array.shape for array in arrays]},
        b"".join(numpy.ascontiguousarray(array).tobytes() for array in arrays),
    )


def check_foreign(path: Path, model: Any) -> None:
    """Refuse what no graph from images to logits has, before anything looks closer at the file."""
    reason = next(_faults(model), None)
    if reason is not None:
        raise FormatError(path, reason, hint="export the model again")


def _faults(model: Any) -> Iterator[str]:
    if model.functions:
        yield f"it has {len(model.functions):,} local functions"
    if model.training_info:
        yield "it has graphs for training"
    domains = {entry.domain for entry in model.opset_import} - {*_DOMAINS}
    graph = model.graph
    yield from _faults_of_nodes(graph)
    if domains:
        yield f"it uses operators of {_short(domains)}"
    for value in (*graph.input, *graph.output):
        if value.type.WhichOneof("value") != "tensor_type":
            yield f"its {_short([value.name])} is not a tensor"
    if len(graph.output) > _OUTPUTS:
        yield f"it has {counted(len(graph.output), 'output')}"
    others = [value.name for value in graph.output if value.name != LOGITS and not is_stage(value.name)]
    if others:
        yield f"its graph gives {_short(others)}, neither {LOGITS} nor stages"
    for value in (*graph.input, *graph.output):
        shape = [max(extent.dim_value, 1) for extent in value.type.tensor_type.shape.dim]
        if len(shape) > _RANK or math.prod(shape) > _LARGEST:
            yield f"its {_short([value.name])} of {'x'.join(map(str, shape[:_RANK]))} is too large"


def _faults_of_nodes(graph: Any) -> Iterator[str]:
    """Faults of a graph's nodes and of those in its branches."""
    nodes, waiting = 0, [(graph, 0)]
    while waiting:
        one, depth = waiting.pop()
        nodes += len(one.node)
        if nodes > _NODES or depth > _DEPTH:
            yield f"it has more than {_NODES:,} nodes, or branches more than {_DEPTH} deep"
            return
        if one.sparse_initializer:
            yield "it has sparse tensors"
        for node in one.node:
            if node.domain not in _DOMAINS or node.op_type in _REFUSED:
                yield f"it uses {_short([f'{node.domain}.{node.op_type}' if node.domain else node.op_type])}"
            for attribute in node.attribute:
                if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                    yield "it has sparse tensors"
                waiting += [(below, depth + 1) for below in attribute.graphs]
                if attribute.HasField("g"):
                    waiting.append((attribute.g, depth + 1))


def _short(names: Any) -> str:
    return listed([name[:40] for name in sorted(names)[:1000]], 3)
