"""A model run by ONNX Runtime on the CPU: exported once from PyTorch, the graph kept in the cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit._version import __version__
from ckptkit.base.errors import FormatError, StorageError, UsageError
from ckptkit.base.files import is_own_folder, translated
from ckptkit.base.locks import hold
from ckptkit.models.graphs.onnx_graph import INPUT, LOGITS, first_line, in_order, open_session, write_onnx
from ckptkit.models.loading import Loaded

if TYPE_CHECKING:
    from ckptkit.base.parse import Size
    from ckptkit.base.tensors import Array
    from ckptkit.workspace import Workspace

PACKAGES = ("torch", "onnx", "onnxruntime", "onnxscript")
"""What exporting a graph and running it takes."""

_GRAPH, _RECORD = "model.onnx", "loaded"
_NOT_KEPT = "the graph cannot be kept, so it is made each time"


class OnnxModel:
    """Called on (N, 3, H, W) float32 of the model's resolution, gives logits (N, classes) or the stages."""

    def __init__(self, path: Path, *, variant: str, resolution: Size, loaded: Loaded) -> None:
        self.variant = variant
        self.resolution = resolution
        self.loaded = loaded
        self._path = path
        self._session, self.versions = open_session(path)
        self.metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        self._outputs = in_order([output.name for output in self._session.get_outputs()])
        self.features_only = self._outputs != (LOGITS,)

    def __call__(self, images: Any) -> Any:
        """Logits, or the list of the stages' outputs, channels first."""
        import numpy

        planes: Array = numpy.ascontiguousarray(images, dtype=numpy.float32)
        if planes.ndim != 4 or planes.shape[1] != 3 or 0 in planes.shape:
            raise UsageError(f"input of shape {list(planes.shape)}", hint="the model takes (N, 3, H, W)")
        if planes.shape[2:] != self.resolution:
            height, width = planes.shape[2:]
            raise UsageError(
                f"images of {height}x{width} for a graph of {self.resolution[0]}x{self.resolution[1]}",
                hint=f"build the model with resolution=({height}, {width})",
            )
        try:
            outputs = self._session.run(list(self._outputs), {INPUT: planes})
        except Exception as error:  # ONNX Runtime's exceptions have no base class but this
            raise FormatError(self._path, f"ONNX Runtime cannot run it: {first_line(error)}") from error
        return outputs if self.features_only else outputs[0]


def onnx_model(
    make: Callable[[], Any],
    loaded: Loaded,
    *,
    size: Size,
    features_only: bool,
    key: Mapping[str, Any] | None,
    workspace: Workspace,
) -> OnnxModel:
    """Open the graph of a model, from the cache or exported from the PyTorch model that ``make`` builds.

    Without a key, and where the model has tensors that no file filled, the graph is made for this once.
    """
    facts: dict[str, Any] = {"variant": loaded.variant, "resolution": size}
    if key is None:
        return _made_for_once(make, facts, features_only=features_only)
    text = json.dumps({**key, "ckptkit": __version__}, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:32]
    place = workspace.home.writable("onnx") / f"{loaded.variant}-{digest}"
    if (found := _kept(place, loaded, facts)) is not None:
        return found
    for folder in (place.parent, place):
        if os.path.lexists(folder) and not is_own_folder(folder):
            workspace.warn(f"{folder} is not a plain folder: {_NOT_KEPT}")
            return _made_for_once(make, facts, features_only=features_only)
    waiting = "waiting for another process that is exporting a graph"
    try:
        with hold(place.with_name("lock"), waiting=lambda: workspace.note(waiting)):
            found = _kept(place, loaded, facts)
            return found or _export(make, place, facts, features_only=features_only, workspace=workspace)
    except StorageError as error:
        workspace.warn(f"{error.message}: {_NOT_KEPT}")
        return _made_for_once(make, facts, features_only=features_only)


def _kept(place: Path, loaded: Loaded, facts: Mapping[str, Any]) -> OnnxModel | None:
    """The graph in the cache; None where there is none, a damaged one, or one of another user."""
    if not _is_ours(place):
        return None
    try:
        model = OnnxModel(place / _GRAPH, loaded=loaded, **facts)
        record = json.loads(model.metadata[_RECORD])
        model.loaded = replace(loaded, weights=record["weights"], tensors=int(record["tensors"]))
    except (FormatError, KeyError, ValueError, TypeError):
        return None
    with contextlib.suppress(OSError):
        os.utime(place)  # `ckptkit cache prune` removes what was not used for long
    return model


def _is_ours(place: Path) -> bool:
    """Whether a folder has a graph in files of this user, nothing of it reached through a link."""
    try:
        folders = [place.parent.lstat(), place.lstat()]
        files = [path.lstat() for path in place.iterdir()]
    except OSError:
        return False
    user = os.getuid() if hasattr(os, "getuid") else None
    return (
        all(stat.S_ISDIR(folder.st_mode) for folder in folders)
        and all(stat.S_ISREG(file.st_mode) for file in files)
        and (place / _GRAPH).exists()
        and all(user in (None, status.st_uid) for status in (*folders, *files))
    )


def _export(
    make: Callable[[], Any],
    place: Path,
    facts: Mapping[str, Any],
    *,
    features_only: bool,
    workspace: Workspace,
) -> OnnxModel:
    """Make the graph and keep it; the caller holds the lock, so an unfinished one is a dead process'."""
    workspace.note(f"{place.name.rpartition('-')[0]}: exporting the graph for ONNX Runtime, once …")
    part = place.with_name(f"{place.name}.part")
    with translated(place):
        for old in (place, part):
            shutil.rmtree(old, ignore_errors=True)
        part.mkdir(parents=True)
    try:
        loaded = _write(make, part / _GRAPH, facts["resolution"], features_only=features_only)
        if loaded.initialised or loaded.misfits:
            return OnnxModel(part / _GRAPH, loaded=loaded, **facts)
        with translated(place):
            part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return OnnxModel(place / _GRAPH, loaded=loaded, **facts)


def _made_for_once(make: Callable[[], Any], facts: Mapping[str, Any], *, features_only: bool) -> OnnxModel:
    with tempfile.TemporaryDirectory(prefix="ckptkit-onnx-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / _GRAPH
        loaded = _write(make, path, facts["resolution"], features_only=features_only)
        return OnnxModel(path, loaded=loaded, **facts)


def _write(make: Callable[[], Any], path: Path, size: Size, *, features_only: bool) -> Loaded:
    model = make()
    loaded: Loaded = model.loaded
    record = json.dumps({"weights": loaded.weights, "tensors": loaded.tensors})
    write_onnx(model, path, size=size, features=features_only, metadata={_RECORD: record})
    return loaded
