"""One small model with pictures of which it is known what the model answers."""

from __future__ import annotations

import contextlib

import pytest

from tests.support.evaluation import Known, known_model


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Models this small are slower on several threads, by far where other work goes on."""
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    """The model, its images and its right answers."""
    return known_model(tmp_path_factory.mktemp("evaluate"))
