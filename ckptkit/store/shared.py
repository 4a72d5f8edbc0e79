"""Several cache folders read as one: what somebody else fetched need not be fetched again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckptkit.base.files import regular_status
from ckptkit.store.cache import Home, Record


class SharedHome(Home):
    """A folder to write to, on top of others to read from.

    An entry whose places in the first folder cannot be written (somebody else made them) is written to the
    next folder where they can. What was fetched there comes before what lies in the others, so that a fetch
    that was asked for (``--force``, ``--accept-new``) counts even where a shared folder holds the same entry.
    An untouched file comes before one that was touched or damaged, wherever they lie.

    Parameters
    ----------
    path : Path
        Where everything is written, if it can be: files, records, conversions, locks, stamps of use.
    others : sequence of Path
        Looked at, and written to where those before cannot be.

    Examples
    --------
    >>> home = SharedHome(Path("mine"), [Path("shared")])
    >>> [path.as_posix() for path in home.everywhere(home.unpacked_folder("moat0-224"))]
    ['mine/unpacked/moat0-224', 'shared/unpacked/moat0-224']
    """

    def __init__(self, path: Path, others: Sequence[Path]) -> None:
        super().__init__(path)
        self._homes = (Home(path), *map(Home, others))

    @property
    def homes(self) -> Sequence[Home]:
        """The single folders it consists of, the one that is written to first."""
        return self._homes

    def at(self, id: str) -> Home:
        """Return the first folder in which everything of an entry can be written."""
        return next((home for home in self._homes if home.can_write(id)), self._homes[0])

    def _folder(self, kind: str, id: str) -> Path:
        return self.at(id)._folder(kind, id)

    def record(self, id: str) -> Record | None:
        """Return the record of the copy to use; None where no folder has one."""
        holder = self._holder(id)
        return holder.record(id) if holder else None

    def records(self, id: str) -> list[Record]:
        """Every sound record of an entry, in all folders."""
        return [record for home in self._homes for record in home.records(id)]

    def artefact(self, record: Record) -> Path:
        """Path of the artefact a record describes: in the first folder that has this very record."""
        for home in self._homes:
            if record in home.records(record.id):
                return home.artefact(record)
        return self.at(record.id).artefact(record)

    def is_cached(self, id: str) -> bool:
        """Whether an artefact lies in some folder with the size that its record says."""
        return any(home.is_cached(id) for home in self._homes)

    def fetched_ids(self) -> list[str]:
        """Ids of the entries that some folder holds, sorted."""
        return sorted({id for home in self._homes for id in home.fetched_ids()})

    def _holder(self, id: str) -> Home | None:
        recorded = [home for home in self._homes if home.record(id)]
        if len(recorded) > 1:  # of equals the one that is written to
            own = self.at(id)
            recorded.sort(key=lambda home: home is not own)
        return max(recorded, key=lambda home: _worth(home, id), default=None)


def _worth(home: Home, id: str) -> int:
    """2 for an untouched file, 1 for one of the recorded size, 0 for none or another."""
    record = home.record(id)
    if record is None:
        return 0
    status = regular_status(home.artefact(record))
    if status is None:
        return 0
    return (status.st_size == record.size) + (
        status.st_size == record.size and status.st_mtime_ns == record.mtime_ns
    )
