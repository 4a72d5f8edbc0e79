"""Random checkpoints carried from every format into every other: nothing about them changes."""

from __future__ import annotations

import itertools
import string
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptkit.base.tensors import TensorSpec, dtype_of
from ckptkit.convert.execution import check_written
from ckptkit.formats.detect import open_reader, writer_for
from ckptkit.formats.names import EXTENSIONS
from tests.support.carrying import carry

FORMATS = tuple(EXTENSIONS)

COMMON = {
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
}
BFLOAT, FLOAT8 = {"bfloat16"}, {"float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"}
ONLY_TF = {"float8_e4m3b11fnuz"}
HOLDS = {
    "tf": COMMON | BFLOAT | FLOAT8 | ONLY_TF | {"bool", "complex64", "complex128"},
    "torch": COMMON | BFLOAT | FLOAT8 | {"bool", "complex64", "complex128"},
    "dcp": COMMON | BFLOAT | FLOAT8 | {"bool", "complex64", "complex128"},
    "safetensors": COMMON | BFLOAT | FLOAT8 | {"bool", "complex64"},
    "npz": COMMON | {"bool", "complex64", "complex128"},
    "keras": COMMON | BFLOAT | {"bool", "complex64", "complex128"},
    "keras2": COMMON | {"bool", "complex64", "complex128"},
}
"""What each container can name, from its own documentation: see `test_the_table_is_whole`."""

_PLAIN = "abzAZ019_.-:/"
_STRANGE = " ünïλ名🜁\u0301\u200f"


def _names(strange: bool) -> st.SearchStrategy[str]:
    """Names as variables have them; or any text that is a proper path for a container of paths."""
    alphabet = _PLAIN + (_STRANGE if strange else "")
    return st.text(alphabet, min_size=1, max_size=12).filter(
        lambda name: (
            all(part not in ("", ".", "..") for part in name.split("/"))
            and not (name[1:3] == ":/" and name[0] in string.ascii_letters)  # an absolute path of Windows
        )
    )


def numpy_type(name: str) -> Any:
    return np.dtype(getattr(ml_dtypes, name)) if name in BFLOAT | FLOAT8 | ONLY_TF else np.dtype(name)


@st.composite
def checkpoints(draw: Any, types: set[str]) -> dict[str, Any]:
    """Up to six tensors: any type of ``types``, any bit pattern (NaNs too), any axis order, 0-d, empty."""
    held: dict[str, Any] = {}
    for name in draw(st.lists(_names(True), min_size=1, max_size=6, unique=True)):
        taken = any(one.startswith(f"{name}/") or name.startswith(f"{one}/") for one in held)
        if taken:  # a group and a tensor of one name: containers of paths cannot
            continue
        dtype = numpy_type(draw(st.sampled_from(sorted(types))))
        shape = draw(st.lists(st.integers(0, 5), max_size=4))
        count = int(np.prod(shape))
        raw = draw(st.randoms(use_true_random=False)).randbytes(count * dtype.itemsize)
        flat = np.frombuffer(raw, np.uint8) % 2 if dtype.kind == "b" else np.frombuffer(raw, np.uint8)
        array = flat.view(dtype).reshape(shape)
        held[name] = array.transpose(draw(st.permutations(range(array.ndim))))
    return held


def write(path: Path, format: str, held: dict[str, Any], **options: Any) -> Path:
    specs = [TensorSpec(name, dtype_of(array), array.shape) for name, array in held.items()]
    with writer_for(format)(path, specs, {"a key": "ä value"}, **options) as writer:
        checksums = {name: writer.write(name, held[name]) for name in writer.order}
        files = writer.finish()
    result = next((file for file in files if file.name.endswith((".index.json", ".weights.json"))), path)
    check_written(result, specs=specs, checksums=checksums, output=path)
    return result


def assert_holds(path: Path, held: dict[str, Any]) -> None:
    with open_reader(path) as reader:
        assert set(reader.specs) == set(held)
        for name, array in held.items():
            found = reader.read(name)
            assert found.dtype == array.dtype, name
            assert found.shape == array.shape == reader.specs[name].shape, name
            assert found.tobytes() == np.ascontiguousarray(array).tobytes(), name
        assert reader.metadata["a key"] == "ä value"


def pairs() -> list[Any]:
    """Each format to itself, to the next one and from the one before; the other pairs are slow."""
    places = {format: place for place, format in enumerate(FORMATS)}
    return [
        pytest.param(one, other, marks=() if step in (0, 1) else pytest.mark.slow)
        for one, other in itertools.product(FORMATS, FORMATS)
        for step in [(places[other] - places[one]) % len(FORMATS)]
    ]


@pytest.mark.parametrize(("one", "other"), pairs())
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_pair_of_formats(one: str, other: str, data: st.DataObject) -> None:
    held = data.draw(checkpoints(HOLDS[one] & HOLDS[other]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = write(folder / f"one{EXTENSIONS[one]}", one, held)
        assert_holds(first, held)
        second = carry(first, folder / f"other{EXTENSIONS[other]}", other)
        assert_holds(second, held)
        back = carry(second, folder / f"back{EXTENSIONS[one]}", one)
        assert_holds(back, held)


@settings(max_examples=40, deadline=None)
@given(held=checkpoints(HOLDS["safetensors"]), limit=st.integers(1, 400))
def test_shards(held: dict[str, Any], limit: int) -> None:
    _in_shards("m.safetensors", "safetensors", held, limit)


@settings(max_examples=30, deadline=None)
@given(held=checkpoints(HOLDS["torch"] & HOLDS["tf"]), limit=st.integers(1, 400))
def test_shards_of_torch(held: dict[str, Any], limit: int) -> None:
    _in_shards("pytorch_model.bin", "torch", held, limit)


@settings(max_examples=30, deadline=None)
@given(held=checkpoints(HOLDS["keras"]), limit=st.integers(1, 400))
def test_shards_of_keras(held: dict[str, Any], limit: int) -> None:
    _in_shards("m.weights.h5", "keras", {f"{name}/vars/0": array for name, array in held.items()}, limit)


def _in_shards(target: str, format: str, held: dict[str, Any], limit: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write(folder / target, format, held, max_shard_size=limit)
        assert_holds(path, held)
        if path.name.endswith(".json"):
            assert_holds(folder, held)
        assert_holds(carry(path, folder / "m.ckpt", "tf"), held)


@settings(max_examples=30, deadline=None)
@given(held=checkpoints(HOLDS["safetensors"] & HOLDS["npz"]))
def test_a_ring_through_all_ends_where_it_began(held: dict[str, Any]) -> None:
    """safetensors → torch → npz → tf → safetensors: the same bytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = write(folder / "first.safetensors", "safetensors", held)
        path = first
        for number, format in enumerate(("torch", "npz", "tf", "safetensors")):
            path = carry(path, folder / f"{number}{EXTENSIONS[format]}", format)
        with open_reader(first) as one, open_reader(path) as last:
            assert list(one.specs) == list(last.specs)
            assert one.metadata == last.metadata
        assert first.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("format", FORMATS)
def test_the_table_is_whole(format: str, tmp_path: Path) -> None:
    """A type that a writer takes and the table above lacks would go untested."""
    from ckptkit.base.errors import CkptkitError
    from ckptkit.base.tensors import DTYPES

    taken = set()
    for name, dtype in DTYPES.items():
        path = tmp_path / f"{name}{EXTENSIONS[format]}"
        try:
            writer_for(format)(path, [TensorSpec("a/vars/0", dtype, (1,))], {}).__exit__(None, None, None)
        except CkptkitError:
            continue
        taken.add(name)
    assert taken == HOLDS[format]
