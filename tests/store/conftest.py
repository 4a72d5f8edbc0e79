"""What the tests of the store share: a server, a cache, and a clock that does not wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ckptkit.base.net import Policy
from ckptkit.registry.schema import Entry
from ckptkit.store.cache import Home
from ckptkit.store.fetch import Fetched, Job, fetch, import_file
from tests.support.entries import anything, final_files
from tests.support.http_server import FaultServer


@dataclass
class Store:
    """A cache folder with a `fetch` that records its waits and its notes."""

    home: Home
    slept: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def policy(self) -> Policy:
        return Policy(
            connect_timeout=5,
            read_timeout=1,
            retries=3,
            sleep=self.slept.append,
            chance=lambda: 0.0,
            clock=lambda: 1_700_000_000.0,
        )

    def fetch(self, entry: Entry, **options: Any) -> Fetched:
        options = {"policy": self.policy, "fits": anything, **options}
        return fetch(Job(entry, self.home, notes=self.notes.append, warn=self.warnings.append, **options))

    def import_file(self, entry: Entry, file: Path, **options: bool) -> Fetched:
        job = Job(entry, self.home, anything, notes=self.notes.append, warn=self.notes.append, **options)  # type: ignore[arg-type]
        return import_file(job, file)

    @property
    def files(self) -> list[Path]:
        """Everything under a final name."""
        return final_files(self.home.path)

    def leftovers(self, id: str = "test-entry") -> list[str]:
        """Names of temporary files of an entry."""
        return sorted(path.name for path in self.home.artefact_folder(id).glob(".*"))


AssertOnly = Callable[[Store, bytes], None]


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Home(tmp_path / "home"))


@pytest.fixture
def assert_only() -> AssertOnly:
    """Check that the one file under a final name has the right bytes, and that nothing temporary is left."""

    def check(store: Store, body: bytes) -> None:
        assert [path.read_bytes() == body for path in store.files] == [True]
        assert store.leftovers() == []

    return check
