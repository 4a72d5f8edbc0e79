"""Small models that look at small pictures, loaded once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from ckptkit.analysis.cam.explain import Explainer
from ckptkit.analysis.model_source import SourceRequest
from ckptkit.models.images.preprocessing import Preprocessing
from ckptkit.workspace import Workspace

FAMILIES = ("tiny-moat0", "moganet-xt-224")


def _opened(what: str) -> Iterator[Explainer]:
    for package in ("torch", "captum", "PIL"):
        pytest.importorskip(package)
    with SourceRequest(what, synthetic=True, resolution=64).open(Workspace()) as source:
        yield Explainer(source)


@pytest.fixture(scope="package")
def moat() -> Iterator[Explainer]:
    yield from _opened(FAMILIES[0])


@pytest.fixture(scope="package")
def moganet() -> Iterator[Explainer]:
    yield from _opened(FAMILIES[1])


@pytest.fixture(params=["moat", "moganet"])
def explainer(request: pytest.FixtureRequest) -> Explainer:
    """Each family's in turn, at 64 pixels."""
    found: Explainer = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def varied() -> Callable[..., Explainer]:
    """A function that copies an explainer to change its model, or the size of the pictures it sees."""

    def vary(explainer: Explainer, *, model: Any = None, size: tuple[int, int] | None = None) -> Explainer:
        other = copy.copy(explainer)
        other.model = copy.deepcopy(explainer.model) if model is None else model
        if size is not None:
            other.source = replace(explainer.source, preprocessing=Preprocessing(size, "imagenet"))
        return other

    return vary
