"""Files put together by hand that ask for far more than they are: refused, or read, within the same bounds.

Other bombs have their tests beside the parsers they aim at: pickles in tests/formats/test_hostile_pickles.py,
zip entries in test_npz.py and test_zip_directory.py, archives in test_tar_members.py.
"""

from __future__ import annotations

import json
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import target
from tests.fuzz.tf_seeds import table_of_blocks
from tests.support.tf_files import block, entry, header, varint

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures memory by /proc")

Files = dict[str, bytes]
DATA = "m.data-00000-of-00001"


def snappy_zeros(size: int) -> bytes:
    """As much as snappy can make of little: one zero, then copies of 64 bytes from one byte back."""
    whole, rest = divmod(size - 1, 64)
    last = bytes([(rest - 1) << 2 | 2, 1, 0]) if rest else b""
    return varint(size) + b"\0\0" + b"\xfe\x01\x00" * whole + last


def tf(*blocks: bytes, kind: int = 0) -> Files:
    return {"m.index": table_of_blocks(list(blocks), kind), DATA: b"x"}


def long_shared_keys() -> Files:
    """Each entry of four bytes repeats, and lengthens, a key of 100 kB."""
    key = b"k" * 100_000
    body = varint(0) + varint(len(key)) + varint(0) + key
    body += b"".join(varint(len(key) + n) + b"\x01\x00a" for n in range(5000))
    return tf(body + struct.pack("<II", 0, 1))


def one_value_of(size: int) -> Files:
    return tf(block([(b"", header()), (b"w", bytes(size))]))


def endless_slices() -> Files:
    """A variable of one element that is said to lie in twenty thousand parts."""
    parts = [[(0, 1)]] * 20_000
    return tf(block([(b"", header()), (b"w", entry(1, (1,), slices=parts))]))


def safetensors(head: bytes, data: bytes = b"") -> Files:
    return {"m.safetensors": len(head).to_bytes(8, "little") + head + data}


def deep_index() -> Files:
    return {"m.safetensors.index.json": b'{"weight_map":' + b'{"a":' * 1_000_000}


def many_names_for_one_shard() -> Files:
    homes = {f"{number}": "m-00001-of-00001.safetensors" for number in range(300_000)}
    return {
        "m.safetensors.index.json": json.dumps({"weight_map": homes}).encode(),
        **{"m-00001-of-00001.safetensors": safetensors(b"{}")["m.safetensors"]},
    }


def quine_like_zip() -> Files:
    """Sixty thousand entries of the directory for one and the same array."""
    head = b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}"
    array = head.ljust(80) + bytes(4)
    local = (
        struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, len(array), len(array), 5, 0)
        + b"a.npy"
        + array
    )
    central = b"".join(
        struct.pack(
            "<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, len(array), len(array), 11, 0, 0, 0, 0, 0, 0
        )
        + b"%07d.npy" % number
        for number in range(60_000)
    )
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 60_000, 60_000, len(central), len(local), 0)
    return {"m.npz": local + central + end}


def long_shard_name() -> Files:
    """What the fuzzer found first: a name that no file system takes."""
    table = {"weight_map": {"w": "m" * 5000 + ".safetensors"}}
    return {"m.safetensors.index.json": json.dumps(table).encode()}


BOMBS: dict[str, tuple[str, Callable[[], Files], str]] = {
    "snappy: 256 MB in one block": ("tf", lambda: tf(snappy_zeros(255 << 20), kind=1), "refused"),
    "snappy: 64 MB in one block": ("tf", lambda: tf(snappy_zeros(64 << 20), kind=1), "refused"),
    "snappy: twenty blocks of 40 MB": ("tf", lambda: tf(*[snappy_zeros(40 << 20)] * 20, kind=1), "refused"),
    "snappy: says 4 GB": ("tf", lambda: tf(varint(2**32 - 1) + b"\0\0", kind=1), "refused"),
    "keys that share 100 kB": ("tf", long_shared_keys, "refused"),
    "an entry of 30 MB": ("tf", lambda: one_value_of(30 << 20), "refused"),
    "twenty thousand parts of one number": ("tf", endless_slices, "refused"),
    "header of spaces": ("safetensors", lambda: safetensors(b"{}" + b" " * 90_000_000), "read"),
    "header of one long name": (
        "safetensors",
        lambda: safetensors(b'{"%b":1}' % (b"a" * 90_000_000)),
        "refused",
    ),
    "header of commas": (
        "safetensors",
        lambda: safetensors(b'{"a":[%b1]}' % (b"1," * 20_000_000)),
        "refused",
    ),
    "header of braces": ("safetensors", lambda: safetensors(b'{"a":' * 8_000_000), "refused"),
    "header of escapes": (
        "safetensors",
        lambda: safetensors(b'{"%b":1}' % (b"\\ud800" * 5_000_000)),
        "refused",
    ),
    "header of one endless number": (
        "safetensors",
        lambda: safetensors(b'{"a":%b}' % (b"9" * 9_000_000)),
        "refused",
    ),
    "index of braces": ("sharded", deep_index, "refused"),
    "index of many names": ("sharded", many_names_for_one_shard, "refused"),
    "index with a long name of a file": ("sharded", long_shard_name, "refused"),
    "zip: one entry under many names": ("npz", quine_like_zip, "refused"),
}


ATTEMPTS = 3
"""The bound is for a core of one's own; one that shares its memory with others may miss it once."""


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_end_soon_and_stay_small(case: str, tmp_path: Path) -> None:
    format, make, wanted = BOMBS[case]
    files = make()
    opened = "m" if format == "tf" else next(iter(files))
    for attempt in range(ATTEMPTS):
        found = target.examine(format, files, opened, tmp_path / f"bomb{attempt}", 1)
        if found.kind != "fault: too long":
            break
    assert found.kind.startswith(wanted), found
    assert found.seconds <= target.MAX_SECONDS
    assert found.nbytes <= target.MAX_BYTES


def test_the_snappy_bomb_is_one(tmp_path: Path) -> None:
    """The compressor's own decoder makes of it what it claims."""
    import cramjam

    assert bytes(cramjam.snappy.decompress_raw(snappy_zeros(100_000))) == bytes(100_000)


def test_the_zip_bomb_is_one(tmp_path: Path) -> None:
    """Python's own reader hands out the one array under every name."""
    (tmp_path / "m.npz").write_bytes(quine_like_zip()["m.npz"])
    with zipfile.ZipFile(tmp_path / "m.npz") as archive:
        assert len(archive.namelist()) == 60_000
