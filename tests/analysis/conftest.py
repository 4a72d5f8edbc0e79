"""All of this needs PyTorch; its meta device is enough."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _torch() -> None:
    pytest.importorskip("torch")
