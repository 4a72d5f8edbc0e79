"""HDF5 files to damage: each of their structures with its checksum made right again, and packed chunks."""

from __future__ import annotations

import functools
import importlib.util
import io
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tests.fuzz.layers import (
    Layer,
    Seed,
    arrays,
    member_layers,
    nested,
    raw_layers,
    stored_zip,
    written,
    zip_layers,
)

_MASK = 0xFFFFFFFF


def lookup3(data: bytes) -> int:
    """Bob Jenkins' hash (lookup3.c, ``hashlittle`` with initval 0), HDF5's checksum of its own structures."""

    def rotated(value: int, bits: int) -> int:
        return (value << bits | value >> 32 - bits) & _MASK

    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    words = [int.from_bytes(data[place : place + 4], "little") for place in range(0, len(data), 4)]
    words += [0] * (-len(words) % 3)
    for place in range(0, len(words), 3):
        a, b, c = (old + new & _MASK for old, new in zip((a, b, c), words[place : place + 3], strict=True))
        if place == len(words) - 3:
            break
        for bits in (4, 6, 8, 16, 19, 4):
            a, b, c = b, c, a  # the names turn round: below, ``c`` is what ``a`` was
            c = c - b & _MASK
            c ^= rotated(b, bits)
            b = b + a & _MASK
    if not data:
        return c
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - rotated(b, bits) & _MASK
        a, b, c = b, c, a
    return b


_MARKS = (b"OHDR", b"OCHK", b"FRHP", b"FHIB", b"BTHD", b"BTLF", b"BTIN", b"FSHD", b"FSSE", b"FAHD", b"FADB",
          b"EAHD", b"EAIB", b"EASB", b"EADB", b"SMTB", b"SMLI")  # fmt: skip
_LONGEST = 1500


def checked_spans(raw: bytes) -> list[tuple[int, int]]:
    """Where structures with a checksum begin, and where their checksums are."""
    spans = []
    if raw[8] >= 2:
        spans.append((0, 44))
    for mark in re.finditer(b"|".join(_MARKS), raw):
        start = mark.start()
        for stop in range(start + 8, min(start + _LONGEST, len(raw) - 3)):
            stored = raw[stop : stop + 4]
            if stored != b"\0\0\0\0" and lookup3(raw[start:stop]) == int.from_bytes(stored, "little"):
                spans.append((start, stop))
                break
    return spans


def hdf5_layers(file: str, raw: bytes) -> list[Layer]:
    """Each structure: those with a checksum have a right one, whatever is in them; heap blocks too."""
    layers = []
    for start, stop in checked_spans(raw):

        def wrap(damaged: bytes, start: int = start, stop: int = stop) -> bytes:
            damaged = damaged[: stop - start].ljust(stop - start, b"\0")
            return raw[:start] + damaged + lookup3(damaged).to_bytes(4, "little") + raw[stop + 4 :]

        layers.append(Layer(file, raw[start:stop], wrap))
    for mark in re.finditer(b"FHDB|TREE|SNOD|HEAP", raw):
        start = mark.start()
        stop = min(len(raw), start + (512 if mark[0] == b"FHDB" else 128))
        layers.append(Layer(file, raw[start:stop], functools.partial(_replaced, raw, start, stop)))
    return layers


def _replaced(raw: bytes, start: int, stop: int, damaged: bytes) -> bytes:
    damaged = damaged[: stop - start].ljust(stop - start, b"\0")
    if damaged[:4] == b"FHDB":
        damaged = _block_checked(raw, start, damaged)
    return raw[:start] + damaged + raw[stop:]


def _block_checked(raw: bytes, start: int, damaged: bytes) -> bytes:
    """A block of a heap with its checksum, which is at a place of its head that depends on the heap."""
    for place in range(14, 22):
        for size in (512, 1024, 2048):
            block = raw[start : start + size]
            blank = block[:place] + bytes(4) + block[place + 4 :]
            if lookup3(blank) == int.from_bytes(block[place : place + 4], "little"):
                changed = damaged + raw[start + len(damaged) : start + size]
                blank = changed[:place] + bytes(4) + changed[place + 4 :]
                return damaged[:place] + lookup3(blank).to_bytes(4, "little") + damaged[place + 4 :]
    return damaged


def without_times(raw: bytes) -> bytes:
    """The same file in every run: newer headers say when they were written."""
    for mark in re.finditer(b"OHDR", raw):
        start, flags = mark.start(), raw[mark.start() + 5]
        size_at = start + 22 + (4 if flags & 0x10 else 0)
        messages = size_at + (1 << (flags & 3))
        stop = messages + int.from_bytes(raw[size_at:messages], "little")
        if flags & 0x20 and lookup3(raw[start:stop]) == int.from_bytes(raw[stop : stop + 4], "little"):
            head = raw[start : start + 6] + bytes(16) + raw[start + 22 : stop]
            raw = raw[:start] + head + lookup3(head).to_bytes(4, "little") + raw[stop + 4 :]
    return raw


def fletcher32(data: bytes) -> bytes:
    """Checksum that HDF5 puts behind a chunk."""
    first = second = 0
    for place in range(0, len(data) - 1, 2):
        first = (first + (data[place] << 8 | data[place + 1])) % 65535
        second = (second + first) % 65535
    if len(data) % 2:
        first = (first + (data[-1] << 8)) % 65535
        second = (second + first) % 65535
    return (second << 16 | first).to_bytes(4, "little")


# -- seeds ---------------------------------------------------------------------------------------------------


def keras_seeds() -> Iterator[Seed]:
    held = {
        f"layers/{name.replace('/', '_')}/vars/{number}": array
        for number, (name, array) in enumerate(arrays().items())
        if array.dtype.name != "bool"
    }
    files = written("keras", held, "m.weights.h5")
    (raw,) = files.values()
    own = [*raw_layers(files), *hdf5_layers("m.weights.h5", raw)]
    yield Seed("keras", "written by ckptkit", files, "m.weights.h5", own)
    yield _archive("model", raw, own)
    if importlib.util.find_spec("h5py") is None:
        return
    for options in ({}, {"track_order": True}, {"libver": "latest"}, {"libver": ("earliest", "v108")}):
        other = without_times(_by_h5py(**options))
        layers = [*raw_layers({"m.weights.h5": other}), *hdf5_layers("m.weights.h5", other)]
        yield Seed("keras", f"h5py, {options}", {"m.weights.h5": other}, "m.weights.h5", layers)
        if options:
            yield _archive(f"model by h5py, {options}", other, layers)
    yield _chunks()
    for fixed in (False, True):
        old = _by_keras_2(fixed)
        layers = [*raw_layers({"m.h5": old}), *hdf5_layers("m.h5", old)]
        yield Seed("keras", f"Keras 2, fixed={fixed}", {"m.h5": old}, "m.h5", layers)


def _archive(name: str, raw: bytes, layers: list[Layer]) -> Seed:
    """A whole model: the archive's own layers, and those of the weights in it."""
    members = {"metadata.json": b'{"keras_version": "3.5.0"}', "config.json": b"{}", "model.weights.h5": raw}
    file = stored_zip(members)

    def outer(damaged: bytes) -> bytes:
        return stored_zip({**members, "model.weights.h5": damaged})

    grammars = {"metadata.json": "json", "config.json": "json"}
    own = [
        Layer("m.keras", file, lambda damaged: damaged),
        *member_layers("m.keras", members, stored_zip, grammars),
        *zip_layers("m.keras", file),
        *nested(layers, "m.keras", outer),
    ]
    return Seed("keras", name, {"m.keras": file}, "m.keras", own)


def _by_h5py(**options: Any) -> bytes:
    """Groups, attributes, links, contiguous, compact, chunked and compressed datasets as libhdf5 has them."""
    import h5py

    file, track = io.BytesIO(), bool(options.get("track_order"))
    new = options.get("libver") == "latest"
    with h5py.File(file, "w", **options) as root:
        root.attrs["note"] = "a text"
        root["tied"] = h5py.SoftLink("/layers/dense_0/vars/0")
        many = root.create_group("many/vars", track_order=track)
        for number in range(12):
            many[str(number)] = np.float32(number)
            many.attrs[f"a{number}"] = "x" * number**3
        for number in range(3):
            variables = root.create_group(f"layers/dense_{number}/vars")
            variables.attrs["name"] = f"dense_{number}"
            variables.create_dataset("0", data=np.arange(12, dtype="float32").reshape(3, 4))
            if not new:  # its index of chunks is one that ckptkit does not read
                chunked = {"chunks": (16,), "compression": "gzip", "shuffle": True, "fletcher32": number == 2}
                variables.create_dataset("1", data=np.arange(64, dtype="float32"), **chunked)
                variables.create_dataset("3", data=np.array([True, False, True]))
                partly = variables.create_dataset("4", (6, 4), ">i2", chunks=(2, 3), fillvalue=7)
                partly[:2] = 1
            variables.create_dataset("2" if not new else "1", data=np.float64(3), track_times=False)
    return file.getvalue()


def _chunks() -> Seed:
    """Chunks as they are after each of their filters, and how much of them the file says there is."""
    values = np.arange(60, dtype="<i4").reshape(10, 6)
    filters = {"0": {}, "1": {"compression": "gzip"}, "2": {"compression": "gzip", "shuffle": True},
               "3": {"fletcher32": True}, "4": {"compression": "gzip", "fletcher32": True}}  # fmt: skip
    plain = values[:5, :3].tobytes()
    shuffled = np.frombuffer(plain, "u1").reshape(-1, 4).T.tobytes()
    packed = {
        "0": plain,
        "1": zlib.compress(plain),
        "2": zlib.compress(shuffled),
        "3": plain,
        "4": zlib.compress(plain),
    }
    stored = {name: raw + (fletcher32(raw) if name in "34" else b"") for name, raw in packed.items()}

    def build(changed: Mapping[str, bytes]) -> bytes:
        import h5py

        file = io.BytesIO()
        with h5py.File(file, "w") as root:
            group = root.create_group("layers/dense/vars")
            for name, options in filters.items():
                made = group.create_dataset(name, values.shape, "<i4", chunks=(5, 3), **options)
                made[5:] = values[5:]
                for place in ((0, 0), (0, 3)):
                    made.id.write_direct_chunk(place, changed[name] or b"\0")  # none is not taken
        return file.getvalue()

    def layer(name: str, payload: bytes, encode: Callable[[bytes], bytes]) -> Layer:
        return Layer("m.weights.h5", payload, lambda damaged: build({**stored, name: encode(damaged)}))

    def summed(raw: bytes) -> bytes:
        return raw + fletcher32(raw)

    layers = [layer(name, raw, lambda damaged: damaged) for name, raw in stored.items()]
    layers += [
        layer("1", plain, zlib.compress),
        layer("2", shuffled, zlib.compress),
        layer("3", plain, summed),
        layer("4", packed["4"], summed),
        layer("4", plain, lambda damaged: summed(zlib.compress(damaged))),
    ]
    files = {"m.weights.h5": build(stored)}
    return Seed("keras", "chunks", files, "m.weights.h5", layers)


def _by_keras_2(fixed: bool) -> bytes:
    """A whole model with its lists in either spelling, the long one in parts."""
    import h5py

    from tests.support.hdf5_files import legacy_weights

    layers = {
        layer: {
            f"{layer}/kernel:0": np.arange(12, dtype="float32").reshape(3, 4),
            f"{layer}/bias:0": np.ones(4),
        }
        for layer in ("b/conv", "a", "top_level_model_weights")
    }
    file = io.BytesIO()
    with h5py.File(file, "w") as root:
        root.attrs["model_config"] = "{}"
        legacy_weights(root.create_group("model_weights"), layers, fixed=fixed, split=2 * fixed)
        root["optimizer_weights/iter:0"] = np.int64(1)
    return file.getvalue()
