"""A checkpoint taken from one container into another, tensor by tensor, names and axes as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ckptkit.convert.execution import tensor_crc32c
from ckptkit.formats.detect import open_reader, writer_for


def carry(source: Path, target: Path, format: str, **options: Any) -> Path:
    """Reader to writer; every checksum that the source stores is compared on the way."""
    with open_reader(source) as reader:
        specs = list(reader.specs.values())
        with writer_for(format)(target, specs, dict(reader.metadata), **options) as writer:
            for name in writer.order:
                reader.check(name)
                array = reader.read(name)
                assert writer.write(name, array) == tensor_crc32c(array)
            writer.finish()
    return target
