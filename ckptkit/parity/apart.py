"""The families' models in processes of their own: one a framework, kept for the next checkpoint.

The child opens the file anew and runs the same `ModelBackend` that its parent has; images and outputs are
files in the folder of the case, which are mapped and not read. So ckptkit's own process imports no framework,
none meets another, and both are imported at the same time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ckptkit.base import errors
from ckptkit.base.errors import CkptkitError, ConversionError
from ckptkit.base.files import translated
from ckptkit.base.progress import Say, say_nothing
from ckptkit.base.tensors import Array
from ckptkit.families.binding import wanted_copy
from ckptkit.models.images.decoding import open_image
from ckptkit.models.images.preprocessing import NoEquivalentError, Preprocessing
from ckptkit.parity import child
from ckptkit.parity.backends import (
    Backend,
    KerasBackend,
    ModelBackend,
    ModelFile,
    Pass,
    Ran,
    TorchBackend,
    examine,
)
from ckptkit.parity.inputs import pipeline
from ckptkit.parity.process import ChildProcess
from ckptkit.parity.report import FRAMEWORK_NAMES
from ckptkit.workspace import Located

ModelFramework = Literal["keras", "torch"]

_BACKENDS: Mapping[str, type[ModelBackend]] = {"keras": KerasBackend, "torch": TorchBackend}


class ModelProcess(ChildProcess):
    """A process of one framework; what ckptkit itself refuses in there is an error as it would be here."""

    def __init__(self, framework: ModelFramework, folder: Path) -> None:
        log = folder / f"{framework}.log"
        super().__init__(FRAMEWORK_NAMES[framework], log, "ckptkit.parity.apart")
        self.framework = framework
        self.begin("open")

    def begin(self, what: str, **how: Any) -> None:
        """Send a request, whose answer `receive` gives; any may be the first that is answered."""
        self.send({"do": what, "framework": self.framework, **how})

    def prepare(self, image: Path, wanted: Preprocessing, folder: Path) -> Array:
        """Have the framework alone prepare a picture."""
        import numpy

        output = folder / f"{self.framework}-image.npy"
        self.begin("prepare", image=str(image), wanted=vars(wanted), output=str(output))
        reason = self.receive()["reason"]
        if reason:
            raise NoEquivalentError(reason)
        prepared: Array = numpy.load(output)
        return prepared

    def _error(self, answer: dict[str, Any]) -> CkptkitError:
        if "details" not in answer:
            return super()._error(answer)
        kind: type[CkptkitError] = getattr(errors, answer["kind"], ConversionError)
        error = kind.__new__(kind)
        CkptkitError.__init__(error, answer["error"], details=answer["details"], hint=answer["hint"])
        return error


class ModelProcesses:
    """One process a framework, while a block lasts; each starts when it is needed, again if it was killed."""

    def __init__(self) -> None:
        self._running: dict[ModelFramework, ModelProcess] = {}

    def __enter__(self) -> ModelProcesses:
        self._logs = tempfile.TemporaryDirectory(prefix="ckptkit-parity-", ignore_cleanup_errors=True)
        return self

    def __exit__(self, *error: object) -> None:
        for one in self._running.values():
            one.end()
        self._logs.cleanup()

    def start(self, frameworks: Iterable[ModelFramework]) -> None:
        """Have these import their framework."""
        for framework in frameworks:
            if framework in self._running and self._running[framework].ended:
                self._running.pop(framework).end()  # what it started
            if framework not in self._running:
                self._running[framework] = ModelProcess(framework, Path(self._logs.name))

    def of(self, framework: ModelFramework, name: str) -> ModelProcess:
        """The one of a framework, for the checkpoint of a name."""
        self.start([framework])
        found = self._running[framework]
        found.called = f"{name}: the {FRAMEWORK_NAMES[framework]} side"
        return found


_KEPT: ContextVar[ModelProcesses | None] = ContextVar("_KEPT", default=None)


@contextmanager
def kept_processes() -> Iterator[ModelProcesses]:
    """Processes for all proofs of a block, which end with it; a block in another has those of that one."""
    kept = _KEPT.get()
    if kept is not None:
        yield kept
        return
    with ModelProcesses() as started:
        before = _KEPT.set(started)
        try:
            yield started
        finally:
            _KEPT.reset(before)


@dataclass
class ModelApart(Backend[Array]):
    """A family's model, run in the process of its framework."""

    model: ModelBackend
    name: str
    processes: ModelProcesses
    folder: Path  # of the case
    running: ModelProcess | None = None

    def __post_init__(self) -> None:
        self.framework: ModelFramework = "torch" if isinstance(self.model, TorchBackend) else "keras"

    def start(self, images: Array, /, say: Say = say_nothing) -> None:
        """Have it built, filled and run."""
        import numpy

        graphs = self.model.graphs if isinstance(self.model, TorchBackend) else None
        also = ", and exporting to onnx in a temporary folder" if graphs else ""
        say(f"loading {FRAMEWORK_NAMES[self.framework]} and running its model{also}")
        given = self.folder / "images.npy"
        if not given.exists():
            with translated(given):
                numpy.save(given, images)
        self.running = self.processes.of(self.framework, self.name)
        self.running.begin(
            "run",
            file=_place_of(self.model.file),
            known=dict(self.model.known),
            graphs=str(graphs) if graphs else None,
            images=str(given),
            outputs=str(self.folder / self.framework),
        )

    def run(self, images: Array, /, say: Say = say_nothing, reference: Ran | None = None) -> Ran:
        """Take what it gives."""
        import numpy

        if self.running is None:
            self.start(images, say)
        assert self.running is not None
        answer = self.running.receive()
        passes = {
            one["label"]: Pass(
                {name: numpy.load(path, mmap_mode="r") for name, path in one["outputs"].items()},
                one["seconds"],
                Path(one["graph"]) if one["graph"] else None,
            )
            for one in answer["passes"]
        }
        return Ran(passes, self.model.side(answer["versions"], answer["seconds"]))


def _place_of(file: ModelFile) -> dict[str, Any]:
    """How to open a file as this one was, and what was found in it."""
    located = file.located
    assert located is not None
    return {
        "path": str(located.path),
        "state_dict": located.state_dict,
        "strip_prefix": located.strip_prefix,
        "where_it_fits": located.where_it_fits,
        "copy": wanted_copy(file.copy, located.entry),
        "weights": file.plan.weights or "auto",
        "variant": file.recognition.variant,
        "allow_missing_bn": file.lacks_statistics,
    }


# What follows runs in the other process.


def serve() -> None:
    """Answer requests on standard input until it ends."""
    child.serve(dict.fromkeys(_BACKENDS, _Models))


class _Models:
    """The models of one framework."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self.kind = _BACKENDS[request["framework"]]
        self.kind.versions()

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do what the parent asks for."""
        if request["do"] == "run":
            return self._run(request)
        return self._prepare(request) if request["do"] == "prepare" else {}

    def _run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        import numpy

        file = request["file"]
        located = Located(
            Path(file["path"]),
            state_dict=file["state_dict"],
            strip_prefix=tuple(file["strip_prefix"]),
            where_it_fits=file["where_it_fits"],
        )
        found = {key: file[key] for key in ("weights", "variant", "allow_missing_bn")}
        images = numpy.load(request["images"])
        with located.open(file["copy"]) as reader:
            backend = self.kind(examine(reader, **found), request["known"], file["path"])
            if isinstance(backend, TorchBackend) and request["graphs"]:
                backend.graphs = Path(request["graphs"])
            ran = backend.run(images)
        return {
            "versions": ran.side.versions,
            "seconds": ran.side.seconds,
            "passes": [
                {
                    "label": label,
                    "outputs": {
                        name: _written(output, f"{request['outputs']}-{place}-{name}.npy")
                        for name, output in one.outputs.items()
                    },
                    "seconds": one.seconds,
                    "graph": str(one.graph) if one.graph else None,
                }
                for place, (label, one) in enumerate(ran.passes.items())
            ],
        }

    def _prepare(self, request: Mapping[str, Any]) -> dict[str, Any]:
        import numpy

        wanted = Preprocessing(**{**request["wanted"], "size": tuple(request["wanted"]["size"])})
        pixels = numpy.asarray(open_image(Path(request["image"])))
        try:
            _written(pipeline(request["framework"])(pixels, wanted), request["output"])
        except NoEquivalentError as error:
            return {"reason": str(error)}
        return {"reason": None}


def _written(array: Array, path: str) -> str:
    import numpy

    with translated(Path(path)):
        numpy.save(path, array)
    return path
