"""An open checkpoint whose tensors are called otherwise than in the file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from ckptkit.base.tensors import Array, RawTensor, TensorSpec
from ckptkit.formats.base import Reader

if TYPE_CHECKING:
    from typing_extensions import Self


class Renamed:
    """A `Reader` that gives another one's tensors under other names."""

    def __init__(self, reader: Reader, names: Mapping[str, str], note: str) -> None:
        self._reader = reader
        self._names = names
        self._own = {new: own for own, new in names.items()}
        self.path, self.format, self.metadata = reader.path, reader.format, reader.metadata
        self.state_dicts, self.state_dict, self.weights = (
            reader.state_dicts,
            reader.state_dict,
            reader.weights,
        )
        self.notes: Sequence[str] = [*reader.notes, note]
        self.specs: Mapping[str, TensorSpec] = {
            names[own]: replace(spec, name=names[own]) for own, spec in reader.specs.items()
        }
        self.optimizer: Collection[str] = {names.get(own, own) for own in reader.optimizer}
        self.namesakes: Mapping[str, str] = {
            names.get(one, one): names.get(other, other) for one, other in reader.namesakes.items()
        }
        self.left_out: Mapping[str, str] = {names[own]: why for own, why in reader.left_out.items()}

    @property
    def also(self) -> Mapping[str, str]:
        """What else is in the file, in a few words."""
        return self._reader.also

    @property
    def extras(self) -> Mapping[str, str]:
        """What else is in the file, in detail."""
        return self._reader.extras

    @property
    def same(self) -> Mapping[str, str]:
        """Tensors that are the very same as an earlier one."""
        return {self._names[one]: self._names[other] for one, other in self._reader.same.items()}

    @property
    def overlapping(self) -> Sequence[str]:
        """Tensors whose bytes touch those of one before them."""
        return [self._names[name] for name in self._reader.overlapping]

    def read(self, name: str) -> Array:
        """Read-only view of one tensor."""
        return self._reader.read(self._own.get(name, name))

    def raw(self, name: str) -> RawTensor | None:
        """The bytes of one tensor without numpy; None where they do not lie in C order in one piece."""
        return self._reader.raw(self._own.get(name, name))

    def check(self, name: str, known: int | None = None) -> bool:
        """Compare one tensor with the checksum the container stores for it."""
        return self._reader.check(self._own.get(name, name), known)

    def check_rest(self) -> None:
        """Check what the container keeps checksums for beside its tensors."""
        self._reader.check_rest()

    def release(self, name: str) -> None:
        """Say that a tensor's pages are not needed for now."""
        self._reader.release(self._own.get(name, name))

    def close(self) -> None:
        """Unmap and close; views handed out must not be used after."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
