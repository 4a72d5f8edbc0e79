"""The dtype table and the contiguous walk."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from ckptkit.base.tensors import DTYPES, TensorSpec, contiguous_chunks, dtype_of

RNG = np.random.default_rng(7)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_itemsize_is_numpys(dtype):
    assert dtype.numpy.itemsize == dtype.itemsize
    assert dtype_of(np.zeros(1, dtype.numpy)) is dtype


def test_codes_are_unique():
    for attribute in ("tf", "torch_storage", "safetensors"):
        codes = [getattr(d, attribute) for d in DTYPES.values() if getattr(d, attribute) is not None]
        assert len(codes) == len(set(codes)), attribute


@pytest.mark.parametrize(
    ("shape", "size"),
    [((), 1), ((0,), 0), ((3, 0, 5), 0), ((2, 3), 6)],
    ids=["0-d", "empty", "inner-0", "2-d"],
)
def test_spec_sizes(shape, size):
    spec = TensorSpec("x", DTYPES["float16"], shape)
    assert (spec.size, spec.nbytes) == (size, 2 * size)


VIEWS = {
    "contiguous": lambda a: a,
    "transposed": lambda a: a.T,
    "swapped": lambda a: a.transpose(2, 0, 1),
    "sliced": lambda a: a[::2, 1:, ::-1],
    "row": lambda a: a[0, 0],
    "scalar": lambda a: a[0, 0, 0],
    "empty": lambda a: a[:0],
    "broadcast": lambda a: np.broadcast_to(a[0], (4, *a[0].shape)),
}


@pytest.mark.parametrize("chunk_bytes", [1, 4, 100, 4096, 1 << 20])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_chunks_put_end_to_end_are_the_tensor(view, chunk_bytes):
    array = np.asarray(view(RNG.standard_normal((6, 70, 9)).astype(np.float32)))
    chunks = [chunk.copy() for chunk in contiguous_chunks(array, chunk_bytes=chunk_bytes)]
    joined = b"".join(chunk.tobytes() for chunk in chunks)
    assert joined == array.tobytes(order="C")
    assert all(chunk.flags.c_contiguous and chunk.ndim == 1 for chunk in chunks)
    assert all(chunk.nbytes <= max(chunk_bytes, array.itemsize) for chunk in chunks)


def test_wide_rows_are_split_too():
    array = np.arange(3 * 5000, dtype=np.float32).reshape(5000, 3).T
    chunks = [chunk.copy() for chunk in contiguous_chunks(array, chunk_bytes=1000)]
    assert max(chunk.nbytes for chunk in chunks) <= 1000
    assert b"".join(chunk.tobytes() for chunk in chunks) == array.tobytes()


@pytest.mark.parametrize("view", [VIEWS["contiguous"], VIEWS["transposed"]], ids=["contiguous", "transposed"])
def test_cast_rounds_to_nearest_even(view):
    # 1 + 2^-8 lies half-way between two bfloat16 numbers, 1 and 1 + 2^-7: the even one is 1.
    array = view(np.full((2, 3, 4), 1 + 2**-8, np.float32))
    cast = np.concatenate([c.copy() for c in contiguous_chunks(array, DTYPES["bfloat16"], chunk_bytes=8)])
    assert cast.dtype == ml_dtypes.bfloat16
    assert cast.astype(np.float32).tolist() == [1.0] * 24


def test_contiguous_pieces_are_views():
    array = np.zeros((100, 100), np.float32)
    assert all(np.shares_memory(chunk, array) for chunk in contiguous_chunks(array))
