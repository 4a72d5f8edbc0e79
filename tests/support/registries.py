"""Registry files for tests."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ckptkit.registry.edit import Addition, Pin, preview_addition, preview_pins
from ckptkit.registry.loading import load_registry
from ckptkit.registry.query import Registry

#: Two entries that a reader sees at once; faults are planted by replacing pieces of it.
SMALL = """\
# a registry of two
families:
  moat:
    layout: deeplab2
    format: tf        # all of them
    license: Apache-2.0

entries:
  - id: one
    family: moat
    variant: moat0
    display_name: One
    published_params: 27.8M
    published_top1: 83.3
    sources:
      - url: https://a.org/one.tar.gz
        bn_statistics: true

  # the second
  - id: two
    family: moat
    variant: moat1
    display_name: Two
    pos_emb: false
    sources:
      - url: https://a.org/two.tar.gz   # best
      - url: https://b.org/two.tar.gz
"""


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    """Write a registry file, newlines as they are."""
    path = folder / name
    path.write_bytes(text.encode())
    return path


@cache
def published() -> Registry:
    """Return the built-in registry, read once: its entries are frozen."""
    return load_registry()


def pin_many(path: Path, pins: Sequence[Pin], **options: Any) -> bool:
    """Write checksums into a registry file; tells whether it changed."""
    edit = preview_pins(path, pins, **options)
    edit.write()
    return edit.changes


def add_entry(path: Path, *arguments: Any, **options: Any) -> Addition:
    """Write an entry into a registry file."""
    addition = preview_addition(path, *arguments, **options)
    addition.edit.write()
    return addition
