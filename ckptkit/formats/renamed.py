"""Readers over other readers: their tensors as one checkpoint, or under other names than in the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ckptkit.base.errors import NotFoundError
from ckptkit.base.tensors import Array, RawTensor
from ckptkit.formats.base import Reader


class Relay(Reader):
    """The tensors of some readers, which are closed with this one; the first decides what there is one of."""

    def __init__(self, readers: list[Reader], names: Mapping[str, str]) -> None:
        self._readers = readers
        self._names = names  # name in the file -> name here; names that are not in it stay
        first = readers[0]
        self.format, self.weights = first.format, first.weights
        self.state_dicts, self.state_dict = first.state_dicts, first.state_dict
        self._homes: dict[str, tuple[Reader, str]] = {}
        specs, left_out = {}, {}
        for reader in readers:
            for own, spec in reader.specs.items():
                name = names.get(own, own)
                self._homes[name] = reader, own
                specs[name] = spec if name == own else replace(spec, name=name)
            left_out.update({names.get(own, own): why for own, why in reader.left_out.items()})
        self.specs, self.left_out = specs, left_out
        self.metadata = self._merged(reader.metadata for reader in readers)
        self.optimizer = {names.get(own, own) for reader in readers for own in reader.optimizer}
        self.namesakes = self._renamed(reader.namesakes for reader in readers)

    @staticmethod
    def _merged(tables: Iterable[Mapping[str, str]]) -> dict[str, str]:
        """Several tables as one, in which the first has the word."""
        return {key: text for table in reversed(list(tables)) for key, text in table.items()}

    def _renamed(self, tables: Iterable[Mapping[str, str]]) -> dict[str, str]:
        get = self._names.get
        return {get(one, one): get(other, other) for table in tables for one, other in table.items()}

    @property
    def extras(self) -> Mapping[str, str]:
        """What else is in the files, in detail."""
        return self._merged(reader.extras for reader in self._readers)

    @property
    def also(self) -> Mapping[str, str]:
        """What else is in the files, in a few words."""
        return self._merged(reader.also for reader in self._readers)

    @property
    def same(self) -> Mapping[str, str]:
        """Tensors that are the very same as an earlier one of their file."""
        return self._renamed(reader.same for reader in self._readers)

    @property
    def overlapping(self) -> Sequence[str]:
        """Tensors whose bytes touch those of one before them."""
        return [self._names.get(own, own) for reader in self._readers for own in reader.overlapping]

    def _home(self, name: str) -> tuple[Reader, str]:
        if name not in self._homes:
            raise NotFoundError(f"{self.path}: no tensor {name!r}")
        return self._homes[name]

    def read(self, name: str) -> Array:
        """Read-only view of one tensor."""
        reader, own = self._home(name)
        return reader.read(own)

    def raw(self, name: str) -> RawTensor | None:
        """The bytes of one tensor without numpy; None where they are not in C order in one piece."""
        reader, own = self._home(name)
        return reader.raw(own)

    def check(self, name: str, known: int | None = None) -> bool:
        """Compare one tensor with the checksum its file stores for it."""
        reader, own = self._home(name)
        return reader.check(own, known)

    def check_rest(self) -> None:
        """Check what the files keep checksums for beside their tensors."""
        for reader in self._readers:
            reader.check_rest()

    def release(self, name: str) -> None:
        """Give back the memory pages of one tensor."""
        reader, own = self._home(name)
        reader.release(own)

    def close(self) -> None:
        """Close every file."""
        for reader in self._readers:
            reader.close()


class Renamed(Relay):
    """One reader's tensors under other names, given for every tensor, those that are left out among them."""

    def __init__(self, reader: Reader, names: Mapping[str, str], note: str) -> None:
        super().__init__([reader], names)
        self.path = reader.path
        self.notes = [*reader.notes, note]
