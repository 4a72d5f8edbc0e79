"""Checkpoints that several parity tests read and none changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.parity.backends import Model
from tests.support.moat_files import write_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefix of tiny-moat0 with position embedding."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "model.ckpt")


_BUILT: dict[tuple[object, ...], Any] = {}


@pytest.fixture
def keras_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build each Keras model once, which takes half of a run; each run fills it anew, over NaNs."""
    real = Model.build

    def build(model: Model, module: Any) -> Any:
        if not module.__name__.endswith("keras_model"):
            return real(model, module)
        key = (model.family.name, model.variant, model.structure, *sorted(model.settings.items()))
        if key not in _BUILT:
            for old in list(_BUILT)[3:]:
                del _BUILT[old]
            _BUILT[key] = real(model, module)
        for variable in _BUILT[key].variables:
            if "float" in str(variable.dtype):
                variable.assign(np.full(variable.shape, np.nan, np.float32))
        return _BUILT[key]

    monkeypatch.setattr(Model, "build", build)
