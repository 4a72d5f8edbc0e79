"""The checksum that TensorFlow checkpoints and cloud stores carry, in one place.

crc32c is the library of that name because it lets go of the interpreter lock, so that two threads really
checksum at once; it ran 11.7 GB/s here where google-crc32c ran 6.0.
"""

from __future__ import annotations

from functools import cache
from typing import Any


def crc32c(data: Any, crc: int = 0) -> int:
    """crc32c (Castagnoli) of some bytes, going on from that of the bytes before.

    >>> hex(crc32c(b"123456789"))  # the check value of RFC 3720
    '0xe3069283'
    >>> crc32c(b"6789", crc32c(b"12345")) == crc32c(b"123456789")
    True
    """
    import crc32c as library

    return int(library.crc32c(data, crc))


def crc32(data: Any, crc: int = 0) -> int:
    """CRC-32 as zip archives use it, like `zlib.crc32`, of which isal's is four times as fast.

    >>> hex(crc32(b"123456789"))
    '0xcbf43926'
    """
    return int(_crc32_library().crc32(data, crc))


@cache
def _crc32_library() -> Any:
    try:
        from isal import isal_zlib
    except ImportError:  # a platform it is not built for
        import zlib

        return zlib
    return isal_zlib
