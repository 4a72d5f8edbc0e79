"""HDF5 files as h5py writes them, harmless and otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

h5py = pytest.importorskip("h5py")

KERNEL = np.arange(12, dtype=np.float32).reshape(3, 4)
"""In every file under ``dense/vars/0``."""


def keras_file(path: Path, more: Callable[[Any], object] | None = None, **options: Any) -> Path:
    """Weights of one layer as Keras 3 saves them, and what ``more`` puts beside them."""
    with h5py.File(path, "w", **options) as file:
        group = file.create_group("dense").create_group("vars")
        group.attrs["name"] = "dense"
        group["0"] = KERNEL
        if more is not None:
            more(file)
    return path


Layers = Mapping[str, Mapping[str, Any]]


def legacy_weights(
    group: Any, layers: Layers, *, fixed: bool = False, split: int = 0, **options: Any
) -> None:
    """Weights by layer and by name as Keras 2 saves them into a group.

    Lists of texts are of any length, as today's h5py stores lists of bytes; ``fixed`` stores them as older
    versions did, and ``split`` breaks them up into so many attributes, as Keras does with those of 64 kB.
    """

    def put(owner: Any, name: str, texts: Iterable[str]) -> None:
        raw = [text.encode() for text in texts]
        parts = [list(part) for part in np.array_split(np.array(raw, object), split)] if split else [raw]
        for number, part in enumerate(parts):
            owner.attrs[f"{name}{number}" if split else name] = np.array(part, "S") if fixed else part

    put(group, "layer_names", [name for name in layers if name != "top_level_model_weights"])
    group.attrs["backend"] = b"tensorflow"
    group.attrs["keras_version"] = b"2.15.0"
    for layer in sorted(layers):
        made = group.require_group(layer)
        put(made, "weight_names", layers[layer])
        for name, value in layers[layer].items():
            made.create_dataset(name, data=value, **options)


def legacy_file(
    path: Path, layers: Layers, more: Callable[[Any], object] | None = None, **options: Any
) -> Path:
    """What Keras 2's ``model.save_weights`` writes, and what ``more`` does to it."""
    with h5py.File(path, "w") as file:
        legacy_weights(file, layers, **options)
        if more is not None:
            more(file)
    return path


def compact(file: Any) -> None:
    """A dataset inside of its own header."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    values = np.array([1.5, 2.5, 3.5])
    space = h5py.h5s.create_simple(values.shape)
    made = h5py.h5d.create(file.id, b"compact", h5py.h5t.IEEE_F64LE, space, plist)
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, values)


def virtual(file: Any) -> None:
    """A dataset put together from others, which may stand in other files."""
    layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "data", shape=(4,))
    file.create_virtual_dataset("dense/vars/1", layout)


def links_upon_links(file: Any) -> None:
    """Thirty groups, each with two links to the next: two to the power of thirty ways to the last."""
    for number in range(30):
        for name in ("a", "b"):
            file[f"g{number}/{name}"] = file.require_group(f"g{number + 1}")


HOSTILE: dict[str, tuple[Callable[[Any], object], str]] = {
    "external link": (
        lambda f: f.__setitem__("dense/vars/1", h5py.ExternalLink("/etc/passwd", "/x")),
        "link to another file",
    ),
    "links upon links": (links_upon_links, "bytes of names in a file of"),
    "data elsewhere": (
        lambda f: f.create_dataset("dense/vars/1", (4,), "f4", external=[("/etc/passwd", 0, 16)]),
        "its data is kept in another file",
    ),
    "virtual": (virtual, "a virtual dataset"),
    "petabytes": (
        lambda f: f.create_dataset("dense/vars/1", (1 << 50,), "f4", chunks=(1 << 20,), compression="gzip"),
        "bytes when unpacked, too many for a file of",
    ),
    "a chunk of gigabytes": (
        lambda f: f.create_dataset("dense/vars/1", (1 << 29,), "f4", chunks=(1 << 29,)),
        "bytes when unpacked, too many for a file of",
    ),
    "petabytes never written": (
        lambda f: f.create_dataset("dense/vars/1", (1 << 50,), "f4"),
        "bytes when unpacked, too many for a file of",
    ),
    "lzf": (
        lambda f: f.create_dataset("dense/vars/1", data=np.zeros(64), compression="lzf"),
        "packed by filter 'lzf'",
    ),
    "scale and offset": (
        lambda f: f.create_dataset("dense/vars/1", data=np.zeros(64, "i4"), scaleoffset=0),
        "not supported",
    ),
    "deep": (lambda f: f.create_group("/".join("x" * 80)), "deeper than any model's"),
    "long name": (lambda f: f.create_group("x" * 2000), "longer than any layer's"),
    "Keras 2 without lists of weights": (
        lambda f: f.attrs.__setitem__("layer_names", [b"dense"]),
        "group dense: no attribute weight_names",
    ),
    "Keras 2 without weights": (
        lambda f: f.attrs.__setitem__("model_config", "{}"),
        "a Keras 2 file without weights",
    ),
    "bad metadata": (lambda f: f.attrs.__setitem__("ckptkit", "{"), "not valid JSON"),
    "deep metadata": (lambda f: f.attrs.__setitem__("ckptkit", "[" * 50_000), "not valid JSON"),
    "other metadata": (lambda f: f.attrs.__setitem__("ckptkit", '{"a": 1}'), "not a table of texts"),
}
"""What ckptkit refuses, by name: how it is put into a file, and what is said of it."""
