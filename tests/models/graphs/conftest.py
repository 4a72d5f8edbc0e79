"""The toys, for every test of graphs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.toys import toy_variants


@pytest.fixture(autouse=True, scope="package")
def _toys() -> Iterator[None]:
    with toy_variants():
        yield
