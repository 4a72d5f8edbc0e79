"""What an evaluation depends on: whether an interrupted one may be gone on from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptkit._version import __version__
from ckptkit.analysis.evaluate.options import EvaluationOptions
from ckptkit.analysis.evaluate.progress import StateFile, default_state_path
from ckptkit.analysis.evaluate.samples import ImageSet, stamp_of
from ckptkit.analysis.model_source import ModelSource


def state_file(
    source: ModelSource,
    options: EvaluationOptions,
    images: ImageSet,
    settings: Mapping[str, Any],
    *,
    part: int | None,
) -> StateFile:
    """Where the progress of an evaluation is kept, and what it depends on."""
    choices = {
        "weights": source.weights,
        "state dict": str(source.located.state_dict),
        "prefixes": " ".join(source.located.strip_prefix),
        "settings": json.dumps(dict(settings), sort_keys=True),
        "preprocessing": str(source.preprocessing),
        "framework": options.framework,
        "precision": "amp" if options.amp else "float32",
        "limit": str(options.limit),
    }
    where = {
        "checkpoint": source.name if source.entry or source.made else str(source.located.path.absolute()),
        "data": "\n".join(os.path.abspath(one) for one in options.data),  # noqa: PTH100  # patterns too
        "labels": str(options.labels.absolute()) if options.labels else "",
    }
    path = options.state or default_state_path(
        source.workspace.home.writable("eval"), Path(source.name).name, {**choices, **where}
    )
    identity = {
        **{f"the {key}": value for key, value in choices.items()},
        "the checkpoint": checkpoint_stamp(source),
        "the data set": images.identity,
        "ckptkit": __version__,
    }
    if path.is_symlink():  # it stays a link to the written file
        path = Path(os.path.realpath(path))
    state = StateFile(path, identity, len(images), part)
    if options.state is not None:
        state.refuse_other_file()
    return state


def checkpoint_stamp(source: ModelSource) -> str:
    """What tells a checkpoint from another one without reading it."""
    located = source.located
    if source.made:
        return f"synthetic {source.name}"
    if located.sha256:
        return located.sha256
    path = located.path
    if path.is_dir():
        files = sorted(one for one in path.iterdir() if one.is_file())
    else:
        files = [path] if path.is_file() else sorted(path.parent.glob(f"{path.name}.*"))
    return "; ".join(stamp_of(file).replace("\0", " ") for file in files)
