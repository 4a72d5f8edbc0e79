"""Checkpoints that several parity tests read and none changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.moat_files import write_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefix of tiny-moat0 with position embedding."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "model.ckpt")


@pytest.fixture(scope="session")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefix of tiny-moat0 with raw weights and their moving averages."""
    return write_tiny(tmp_path_factory.mktemp("twins") / "model.ckpt", twins=True)
