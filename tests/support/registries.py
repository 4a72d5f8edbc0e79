"""Registry files for tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from ckptkit.registry import Registry, load_registry

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
