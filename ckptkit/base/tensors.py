"""What a tensor is called, what it is made of, and how to walk over its bytes.

``DTYPES`` is the one table of element types; every container format looks its codes up here.
numpy is imported late: listing a registry needs none of this.
"""

from __future__ import annotations

import ast
import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from ckptkit.base.errors import one_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]
else:
    Array = Any

CHUNK_BYTES = 4 << 20
"""How much of a tensor is made contiguous at a time. Smaller pieces stay in a core's own cache until they are
checksummed and written, but each costs some calls after which two threads wait for the interpreter lock.
Measured: see tests/benchmarks/README.md."""

_TILE_COLUMNS, _TILE_PADDING = 256, 16
"""Tile of a transpose, in elements: these columns of a whole strip. It is first copied as stored into a
buffer of its own: rows of a large matrix are often a multiple of 4096 bytes apart, fall into the same few
cache lines and push each other out; the padding sets them apart. Smaller tiles suit one thread as well, but
cost more calls. Measured: see tests/benchmarks/README.md."""


FLOAT_DTYPES = ("float32", "float16", "bfloat16")
"""Element types that floating tensors can be cast to."""

_FLOAT_ALIASES = {
    **dict.fromkeys(("fp32", "f32", "float", "single"), "float32"),
    **dict.fromkeys(("fp16", "f16", "half"), "float16"),
    "bf16": "bfloat16",
}


def dtype_named(text: str) -> DType | None:
    """The element type that a user names, of those that are read as numbers; None where there is none.

    >>> str(dtype_named("bf16")), str(dtype_named("int64")), dtype_named("float33")
    ('bfloat16', 'int64', None)
    """
    return DTYPES.get(_FLOAT_ALIASES.get(text, text))


def float_named(text: str) -> str:
    """The element type that a user names, for floating tensors to be cast to.

    >>> float_named("bf16"), float_named("half"), float_named("float32")
    ('bfloat16', 'float16', 'float32')
    """
    return one_of("dtype", text, FLOAT_DTYPES, _FLOAT_ALIASES)


@dataclass(frozen=True)
class DType:
    """One element type and what each container calls it.

    An *opaque* type is one that nothing here computes with: its bytes are carried to a container that has
    the same type, and nowhere else.
    """

    name: str  # numpy's, or ml_dtypes' where numpy has none; of an opaque type what its container calls it
    itemsize: int  # bytes per element; 0 for an opaque type whose elements are not whole bytes, or unknown
    kind: str  # "float", "int", "uint", "bool", "complex" or "opaque"
    tf: int | None = None  # number in TensorFlow's `DataType` enum (tensorflow/core/framework/types.proto)
    torch_storage: str | None = None  # name of the legacy storage class in pickles
    safetensors: str | None = None  # code in a safetensors header
    torch: str | None = None  # name of the torch dtype
    npy: str | None = None  # `descr` of an opaque type in the header of a `.npy` array, as Python writes it
    bits: int | None = None  # bits per element, where that is known and not a number of whole bytes

    @cached_property
    def numpy(self) -> np.dtype[Any]:
        """The little-endian numpy dtype (from ml_dtypes where numpy has none); void where nothing has one."""
        import numpy

        if self.name in NOT_IN_NUMPY:
            import ml_dtypes

            if hasattr(ml_dtypes, self.name):  # an older release lacks the newest types
                extension: np.dtype[Any] = numpy.dtype(getattr(ml_dtypes, self.name))
                return extension
        if self.npy is not None:
            with contextlib.suppress(TypeError, ValueError):  # a long double of another machine
                return numpy.lib.format.descr_to_dtype(ast.literal_eval(self.npy))
        if self.is_opaque:
            return numpy.dtype(f"V{self.itemsize}")
        return numpy.dtype(self.name).newbyteorder("<")

    @property
    def is_float(self) -> bool:
        """Whether a change of float precision applies to it."""
        return self.kind == "float"

    @property
    def is_opaque(self) -> bool:
        """Whether its elements are bytes to be carried, and no numbers."""
        return self.kind == "opaque"

    def __str__(self) -> str:
        return self.name


NOT_IN_NUMPY = frozenset(
    {
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e4m3fnuz",
        "float8_e5m2fnuz",
        "float8_e4m3b11fnuz",
        "float8_e8m0fnu",
        "float4_e2m1fn",
        "int4",
        "uint4",
        "int2",
        "uint2",
    }
)
"""Types that ml_dtypes has and numpy has not."""

DTYPES: dict[str, DType] = {
    d.name: d
    for d in (
        DType("float32", 4, "float", 1, "FloatStorage", "F32", "float32"),
        DType("float64", 8, "float", 2, "DoubleStorage", "F64", "float64"),
        DType("float16", 2, "float", 19, "HalfStorage", "F16", "float16"),
        DType("bfloat16", 2, "float", 14, "BFloat16Storage", "BF16", "bfloat16"),
        DType("float8_e4m3fn", 1, "float", 25, None, "F8_E4M3", "float8_e4m3fn"),
        DType("float8_e5m2", 1, "float", 24, None, "F8_E5M2", "float8_e5m2"),
        DType("float8_e4m3fnuz", 1, "float", 26, None, "F8_E4M3FNUZ", "float8_e4m3fnuz"),
        DType("float8_e5m2fnuz", 1, "float", 28, None, "F8_E5M2FNUZ", "float8_e5m2fnuz"),
        DType("float8_e4m3b11fnuz", 1, "float", 27),
        DType("int8", 1, "int", 6, "CharStorage", "I8", "int8"),
        DType("int16", 2, "int", 5, "ShortStorage", "I16", "int16"),
        DType("int32", 4, "int", 3, "IntStorage", "I32", "int32"),
        DType("int64", 8, "int", 9, "LongStorage", "I64", "int64"),
        DType("uint8", 1, "uint", 4, "ByteStorage", "U8", "uint8"),
        DType("uint16", 2, "uint", 17, "UInt16Storage", "U16", "uint16"),
        DType("uint32", 4, "uint", 22, "UInt32Storage", "U32", "uint32"),
        DType("uint64", 8, "uint", 23, "UInt64Storage", "U64", "uint64"),
        DType("bool", 1, "bool", 10, "BoolStorage", "BOOL", "bool"),
        DType("complex64", 8, "complex", 8, "ComplexFloatStorage", "C64", "complex64"),
        DType("complex128", 16, "complex", 18, "ComplexDoubleStorage", None, "complex128"),
    )
}
"""Types that are read as numbers."""

OPAQUE: dict[str, DType] = {
    d.name: d
    for d in (
        DType("float8_e8m0fnu", 1, "opaque", None, None, "F8_E8M0", "float8_e8m0fnu"),
        # Two elements a byte. torch counts bytes, safetensors elements: a shape here counts elements.
        DType("float4_e2m1fn_x2", 0, "opaque", None, None, "F4", "float4_e2m1fn_x2", bits=4),
        DType("float6_e2m3fn", 0, "opaque", None, None, "F6_E2M3", bits=6),
        DType("float6_e3m2fn", 0, "opaque", None, None, "F6_E3M2", bits=6),
        DType("complex32", 4, "opaque", torch="complex32"),
        DType("bits8", 1, "opaque", torch="bits8"),
        DType("bits16", 2, "opaque", torch="bits16"),
        DType("bits1x8", 1, "opaque", torch="bits1x8"),
        DType("bits2x4", 1, "opaque", torch="bits2x4"),
        DType("bits4x2", 1, "opaque", torch="bits4x2"),
        DType("qint8", 1, "opaque", 11),
        DType("quint8", 1, "opaque", 12),
        DType("qint32", 4, "opaque", 13),
        DType("qint16", 2, "opaque", 15),
        DType("quint16", 2, "opaque", 16),
        # TensorFlow stores one element a byte, however few bits it has.
        DType("int4", 1, "opaque", 29),
        DType("uint4", 1, "opaque", 30),
        DType("int2", 1, "opaque", 31),
        DType("uint2", 1, "opaque", 32),
        DType("float4_e2m1fn", 1, "opaque", 33),
    )
}
"""Opaque types that a format's own specification names. Readers make up others as they meet them."""

KNOWN = (*DTYPES.values(), *OPAQUE.values())


def swapped(array: Array, dtype: DType) -> Array:
    """Read-only copy with the bytes of each element, or of both parts of a complex one, the other way round.

    >>> import numpy
    >>> swapped(numpy.array([1, 256], "int16"), DTYPES["int16"]).tolist()
    [256, 1]
    """
    import numpy

    if dtype.itemsize == 1:
        return array
    plain = array if dtype.name not in NOT_IN_NUMPY else array.view(numpy.dtype(f"u{dtype.itemsize}"))
    result: Array = plain.byteswap().view(array.dtype)
    result.flags.writeable = False
    return result


def dtype_of(array: Array) -> DType:
    """The table row of an array's dtype.

    >>> import numpy
    >>> dtype_of(numpy.zeros(3, "float32")).safetensors
    'F32'
    """
    return DTYPES[array.dtype.name]


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of one tensor: everything but its bytes.

    >>> TensorSpec("w", DTYPES["float32"], (3, 3, 8, 16)).nbytes
    4608
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    stored: int | None = None  # bytes of the tensor, where an opaque type of unknown size does not tell

    @property
    def size(self) -> int:
        """Number of elements; 1 for a 0-d tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the contiguous tensor."""
        if self.stored is not None:
            return self.stored
        if self.dtype.bits is not None:
            return -(-self.size * self.dtype.bits // 8)
        return self.size * self.dtype.itemsize


def array_dtype(spec: TensorSpec) -> DType | None:
    """Element type of the array that a tensor's bytes are read as; None where elements are not whole bytes.

    >>> odd = DType("Q7_X", 0, "opaque", safetensors="Q7_X")
    >>> array_dtype(TensorSpec("w", odd, (3,), stored=5))
    >>> array_dtype(TensorSpec("w", odd, (3,), stored=6)).numpy
    dtype('V2')
    """
    if spec.dtype.itemsize:
        return spec.dtype
    width, rest = divmod(spec.nbytes, spec.size) if spec.size else (1, spec.nbytes)
    return DType(spec.dtype.name, width, "opaque") if width and not rest else None


@dataclass(frozen=True)
class RawTensor:
    """A tensor's bytes as they are in a file, C order and little-endian, to be carried over as they are.

    Nothing here needs numpy, whose import takes a quarter of a short conversion.
    """

    shape: tuple[int, ...]
    data: memoryview  # of bytes; it keeps the file mapped while it lives


Piece: TypeAlias = "Array | memoryview"
"""Some bytes of a tensor on their way: 1-d, contiguous, uint8."""


def contiguous_chunks(
    array: Array, dtype: DType | None = None, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[Array]:
    """Walk over a tensor's elements in C order, in contiguous pieces of about ``chunk_bytes``.

    A strided view (a transpose, say) is made contiguous strip by strip, so memory stays bounded by the
    piece and not by the tensor; a contiguous array of the right type is yielded as views without a copy.

    >>> import numpy
    >>> a = numpy.arange(6, dtype="int32").reshape(2, 3)
    >>> [piece.tolist() for piece in contiguous_chunks(a.T, chunk_bytes=16)]
    [[0, 3, 1, 4], [2, 5]]
    """
    target = array.dtype if dtype is None else dtype.numpy
    if target.name == "bfloat16" and array.dtype.name == "float64":  # ml_dtypes would round twice
        for chunk in contiguous_chunks(array, None, chunk_bytes):
            yield _float32_rounded_to_odd(chunk).astype(target)
        return
    itemsize = max(array.dtype.itemsize, target.itemsize)
    matrix = _as_transposed_matrix(array)
    if matrix is not None:
        yield from _transposed_chunks(matrix, target, chunk_bytes // itemsize)
    elif array.flags.c_contiguous:
        flat = array.reshape(-1)
        step = max(1, chunk_bytes // itemsize)
        for start in range(0, flat.size, step):
            yield flat[start : start + step].astype(target, copy=False)
    elif math.prod(array.shape[1:]) * itemsize > chunk_bytes:
        for row in array:
            yield from contiguous_chunks(row, dtype, chunk_bytes)
    else:
        rows = max(1, chunk_bytes // max(1, math.prod(array.shape[1:]) * itemsize))
        for start in range(0, len(array), rows):
            yield array[start : start + rows].astype(target, order="C").reshape(-1)


def copy_elements(source: Array, target: Array) -> None:
    """Copy an array into another of its shape and type, whatever the strides of both.

    >>> import numpy
    >>> fused = numpy.zeros((2, 4), "int8")
    >>> copy_elements(numpy.array([[1, 2], [3, 4]], "int8").T, fused[:, 2:])
    >>> fused.tolist()
    [[0, 0, 1, 3], [0, 0, 2, 4]]
    """
    if source.flags.c_contiguous or source.nbytes <= CHUNK_BYTES >> 4:
        target[...] = source
    elif target.flags.c_contiguous:
        flat, start = target.reshape(-1), 0
        for chunk in contiguous_chunks(source):
            flat[start : start + chunk.size] = chunk
            start += chunk.size
    elif source[0].nbytes > CHUNK_BYTES:
        for row, place in zip(source, target, strict=True):
            copy_elements(row, place)
    else:
        rows = max(1, CHUNK_BYTES // source[0].nbytes)
        for start in range(0, len(source), rows):
            strip = source[start : start + rows]
            (chunk,) = contiguous_chunks(strip)  # no longer than a piece
            target[start : start + rows] = chunk.reshape(strip.shape)


def byte_pieces(array: Array | RawTensor, dtype: DType | None = None) -> Iterator[Piece]:
    """Walk over a tensor's bytes as a writer needs them: `contiguous_chunks`, as uint8."""
    if isinstance(array, RawTensor):
        for start in range(0, array.data.nbytes, CHUNK_BYTES):
            yield array.data[start : start + CHUNK_BYTES]
        return
    import numpy

    for chunk in contiguous_chunks(array, dtype):
        yield chunk.view(numpy.uint8)


def _float32_rounded_to_odd(array: Array) -> Array:
    """Narrow float64 so that rounding the result again gives the same as rounding directly.

    What is inexact is cut off and its last bit set, so that it never looks like a tie.
    """
    import numpy

    with numpy.errstate(over="ignore", under="ignore"):
        nearest = array.astype(numpy.float32)
    back = nearest.astype(numpy.float64)
    bits = nearest.view(numpy.uint32)
    bits -= numpy.abs(back) > numpy.abs(array)
    bits |= (back != array) & ~numpy.isnan(array)
    return nearest


def _as_transposed_matrix(array: Array) -> Array | None:
    """View an array as a matrix stored column by column in memory; None when it is not one.

    Axes that are one run of memory count as one, so a transposed kernel of any rank is found.
    """
    axes: list[tuple[int, int]] = []
    for size, stride in zip(array.shape, array.strides, strict=True):
        if size == 1:
            continue
        if axes and axes[-1][1] == stride * size:
            axes[-1] = (axes[-1][0] * size, stride)
        else:
            axes.append((size, stride))
    if len(axes) != 2 or array.size == 0 or axes[0][1] != array.itemsize or axes[1][1] <= array.itemsize:
        return None
    (rows, _), (columns, _) = axes
    return array.reshape(rows, columns)  # a view: only axes that are one run of memory are joined


def _transposed_chunks(matrix: Array, target: np.dtype[Any], chunk_items: int) -> Iterator[Array]:
    """Make a column-by-column matrix contiguous in row-by-row order, a strip of rows at a time."""
    import numpy

    rows, columns = matrix.shape
    if columns > chunk_items:  # not even one row fits
        for row in matrix:
            for start in range(0, columns, max(1, chunk_items)):
                yield row[start : start + max(1, chunk_items)].astype(target)
        return
    strip_rows = min(rows, chunk_items // columns)
    buffer = numpy.empty((min(columns, _TILE_COLUMNS), strip_rows + _TILE_PADDING), matrix.dtype)
    reused = numpy.empty((strip_rows, columns), target)
    for start in range(0, rows, strip_rows):
        source = matrix[start : start + strip_rows]
        strip = reused[: len(source)]
        for left in range(0, columns, _TILE_COLUMNS):
            as_it_lies = source[:, left : left + _TILE_COLUMNS].T
            tile = buffer[: as_it_lies.shape[0], : as_it_lies.shape[1]]
            tile[...] = as_it_lies
            strip[:, left : left + _TILE_COLUMNS] = tile.T
        yield strip.reshape(-1)
