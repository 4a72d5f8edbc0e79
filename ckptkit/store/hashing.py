"""Checksums of bytes as they arrive, taken in threads of their own.

Of the three kinds sha256 is always taken (records and pins speak of it), md5 and crc32c only where somebody
promised one: md5 takes longer than receiving does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from ckptkit.base.checksums import crc32c
from ckptkit.store.behind import Worker
from ckptkit.store.integrity import Digests

_AT_ONCE = 1 << 20
"""Bytes up to which a file is hashed where it is received: a thread would take longer to start."""


class BackgroundHasher:
    """Checksums of one file, in one pass.

    Parameters
    ----------
    algorithms : iterable of str
        What is needed beside sha256: ``md5``, ``crc32c``.

    Attributes
    ----------
    algorithms : frozenset of str
        What is taken.
    size : int
        Bytes given so far.

    Examples
    --------
    >>> hasher = BackgroundHasher(["crc32c"])
    >>> hasher.update(b"123456789")
    >>> digests = hasher.digests()
    >>> digests.crc32c, digests.md5
    ('e3069283', '')
    """

    def __init__(self, algorithms: Iterable[str] = ()) -> None:
        self.algorithms = frozenset({"sha256", *algorithms})
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._crc32c = 0
        quick: list[Callable[[bytes | memoryview], None]] = [self._sha256.update]
        if "crc32c" in self.algorithms:
            quick.append(self._add_crc32c)
        self._lanes = [(Worker("hash"), quick)]
        if "md5" in self.algorithms:  # takes more than twice as long as both others: a thread for itself
            self._lanes.append((Worker("md5"), [self._md5.update]))

    def _add_crc32c(self, data: bytes | memoryview) -> None:
        self._crc32c = crc32c(data, self._crc32c)

    def update(self, data: bytes | memoryview) -> None:
        """Add bytes; they must not change before `behind.OUTSTANDING` further calls, or `digests`."""
        behind = self.size >= _AT_ONCE
        self.size += len(data)
        for worker, functions in self._lanes:
            for function in functions:
                if behind:
                    worker.do(function, data)
                else:
                    function(data)

    def digests(self) -> Digests:
        """Checksums of everything so far; empty text for those that are not taken."""
        for worker, _ in self._lanes:
            worker.wait()
        return Digests(
            self.size,
            self._sha256.hexdigest(),
            self._md5.hexdigest() if "md5" in self.algorithms else "",
            f"{self._crc32c:08x}" if "crc32c" in self.algorithms else "",
        )

    def close(self) -> None:
        """End the threads."""
        for worker, _ in self._lanes:
            worker.close()
