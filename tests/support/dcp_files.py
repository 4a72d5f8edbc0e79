"""Checkpoints of torch.distributed put together by hand, so that tests can also build what it would not.

Nothing here uses ckptkit's own encoders, and nothing imports torch.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.support.torch_files import call, name, number, numbers, storage, tensor, text, whole

MODULE = "torch.distributed.checkpoint.metadata"
FILES = "torch.distributed.checkpoint.filesystem"
STORAGES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "bfloat16": "BFloat16Storage",
    "bool": "BoolStorage",
}


def made(kind: str, state: bytes, module: str = MODULE) -> bytes:
    """An object of a class, with its state."""
    return name(module, kind) + b")\x81" + state + b"b"


def mapping(pairs: Sequence[tuple[bytes, bytes]]) -> bytes:
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


def state(**values: bytes) -> bytes:
    return mapping([(text(key), value) for key, value in values.items()])


def size(shape: Sequence[int]) -> bytes:
    return call("torch", "Size", numbers(*shape))


def saved(pickled: bytes, raw: bytes = b"") -> bytes:
    """What torch.save writes of one value."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo("archive/data.pkl", (1980, 1, 1, 0, 0, 0))
        archive.writestr(info, pickled)
        archive.writestr(zipfile.ZipInfo("archive/byteorder", (1980, 1, 1, 0, 0, 0)), b"little")
        if raw:
            archive.writestr(zipfile.ZipInfo("archive/data/0", (1980, 1, 1, 0, 0, 0)), raw)
        archive.writestr(zipfile.ZipInfo("archive/version", (1980, 1, 1, 0, 0, 0)), b"3\n")
    return file.getvalue()


def saved_array(array: np.ndarray, dtype: str = "float32") -> bytes:
    """What torch.save writes of a tensor."""
    array = np.array(array, order="C")
    strides = tuple(step // array.itemsize for step in array.strides)
    store = storage(kind=STORAGES[dtype], count=array.size)
    return saved(whole(tensor(store=store, shape=array.shape, strides=strides)), array.tobytes())


@dataclass
class Chunk:
    """A box of a tensor in a file."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    content: bytes
    file: str = "__0_0.distcp"


@dataclass
class Dcp:
    """A checkpoint being put together: change what should be wrong, then ask for its files."""

    tensors: dict[str, tuple[tuple[int, ...], list[Chunk]]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # what torch.save wrote
    dtype: str = "float32"
    paths: dict[str, bytes] | None = None  # a pickled tuple for each name
    version: bytes = text("1.0.0")
    info: Mapping[str, bytes] = field(default_factory=dict)  # of every place, beside the usual
    index_module: str = MODULE
    properties_module: str = MODULE
    extra: bytes = b""  # put at the top of .metadata, and taken off its stack

    def add(self, key: str, array: np.ndarray, cuts: Sequence[Sequence[slice]] = (), files: int = 1) -> None:
        """A tensor, whole or cut."""
        boxes = cuts or [tuple(slice(0, length) for length in array.shape)]
        chunks = []
        for index, box in enumerate(boxes):
            part = array[tuple(box)]
            offsets = tuple(one.start or 0 for one in box)
            content = saved_array(part, self.dtype)
            chunks.append(Chunk(offsets, part.shape, content, f"__{index % files}_0.distcp"))
        self.tensors[key] = (array.shape, chunks)

    def files(self) -> dict[str, bytes]:
        """Names and contents."""
        files: dict[str, bytearray] = {}
        listed, stored = [], []

        def place(key: str, offset: bytes, content: bytes, file: str) -> None:
            into = files.setdefault(file, bytearray())
            where = {"relative_path": text(file), "offset": number(len(into)), "length": number(len(content))}
            into += content
            index = made("MetadataIndex", state(fqn=text(key), offset=offset, index=b"N"), self.index_module)
            stored.append((index, made("_StorageInfo", state(**{**where, **self.info}), FILES)))

        for key, content in self.objects.items():
            listed.append((text(key), name(MODULE, "BytesStorageMetadata") + b")\x81"))
            place(key, b"N", content, "__0_0.distcp")
        for key, (shape, chunks) in self.tensors.items():
            layout = call("torch.serialization", "_get_layout", text("torch.strided"))
            encoding = call(MODULE, "_MEM_FORMAT_ENCODING", number(0))
            properties = b"(" + name("torch", self.dtype) + layout + b"\x89" + encoding + b"\x89t"
            boxes = b"".join(
                made("ChunkStorageMetadata", state(offsets=size(one.offsets), sizes=size(one.sizes)))
                for one in chunks
            )
            listed.append(
                (
                    text(key),
                    made(
                        "TensorStorageMetadata",
                        state(
                            properties=made("TensorProperties", properties, self.properties_module),
                            size=size(shape),
                            chunks=b"](" + boxes + b"e",
                        ),
                    ),
                )
            )
            for one in chunks:
                place(key, size(one.offsets), one.content, one.file)
        planned = (
            b"N" if self.paths is None else mapping([(text(key), path) for key, path in self.paths.items()])
        )
        metadata = made(
            "Metadata",
            state(
                state_dict_metadata=mapping(listed),
                planner_data=planned,
                storage_data=mapping(stored),
                storage_meta=b"N",
                version=self.version,
            ),
        )
        if self.extra:
            metadata = metadata + self.extra + b"0"
        return {".metadata": whole(metadata), **{file: bytes(raw) for file, raw in files.items()}}

    def write(self, folder: Path) -> Path:
        """Write its files into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for file, raw in self.files().items():
            (folder / file).write_bytes(raw)
        return folder


def path(*keys: str | int) -> bytes:
    """A pickled path of keys."""
    return b"(" + b"".join(text(key) if isinstance(key, str) else number(key) for key in keys) + b"t"
