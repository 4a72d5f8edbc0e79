"""Damaged copies of files, the same in every run."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from ckptkit.base.errors import CkptkitError, FormatError, NotFoundError


def no_maps(*_arguments: object, **_options: object) -> NoReturn:
    """Stand for `mmap.mmap` on a file system that has no maps."""
    raise OSError(errno.ENODEV, "No such device")


def mutations(raw: bytes, count: int, seed: int, within: range | None = None) -> Iterator[bytes]:
    """Copies with a few bytes changed, cut out, doubled or overwritten by what parsers choke on."""
    source = random.Random(seed)
    nasty = [b"\xff" * 4, b"\x00" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\x80", b"\xff\xff\xff\x7f"]
    places = within or range(len(raw))
    for _ in range(count):
        damaged = bytearray(raw)
        for _ in range(source.randint(1, 3)):
            where = min(source.choice(places), len(damaged) - 1)
            kind = source.randrange(5)
            if kind == 0:
                damaged[where] ^= 1 << source.randrange(8)
            elif kind == 1:
                damaged[where] = source.randrange(256)
            elif kind == 2:
                piece = source.choice(nasty)
                damaged[where : where + len(piece)] = piece
            elif kind == 3:
                del damaged[where : where + source.randint(1, 9)]
            else:
                damaged[where:where] = damaged[where : where + source.randint(1, 9)]
        yield bytes(damaged)


def read_all(reader: Any) -> None:
    """Read and check every tensor of an open reader, then close it."""
    with reader:
        for name, spec in reader.specs.items():
            with suppress(FormatError):  # a checksum that differs is what checksums are for
                reader.check(name)
            array = reader.read(name)
            assert array.shape == spec.shape
            assert not array.flags.writeable
            if array.size:
                array.reshape(-1)[-1].tobytes()
            reader.release(name)


def survives(path: Path, raw: bytes, opener: Callable[[Path], Any]) -> bool:
    """Whether a damaged file still opens; anything but success and a proper refusal escapes."""
    path.write_bytes(raw)
    try:
        read_all(opener(path))
    except (FormatError, NotFoundError) as error:
        assert isinstance(error, CkptkitError)
        assert "\n" not in str(error), error
        assert str(path.name) in str(error)
        return False
    return True
