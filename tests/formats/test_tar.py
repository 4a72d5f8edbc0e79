from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    zstd = pytest.importorskip("backports.zstd")

from ckptkit.base.errors import FormatError, MissingDependencyError, NotFoundError
from ckptkit.formats.members import DEFAULT_LIMITS, Limits, SafeMember
from ckptkit.formats.tar import iter_safe_members

CONTENT = {
    "a/model.index": b"i" * 700,
    "a/model.data-00000-of-00001": bytes(range(256)) * 20,
    "a/checkpoint": b"",
}


def zstd_compress(data: bytes) -> bytes:
    """As the zstd command does it, with a checksum at the end."""
    return zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "two gzip streams": lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:]),
    "bzip2": bz2.compress,
    "two bzip2 streams": lambda data: bz2.compress(data[:1000]) + bz2.compress(data[1000:]),
    "xz": lzma.compress,
    "two xz streams": lambda data: lzma.compress(data[:1000]) + bytes(600_000) + lzma.compress(data[1000:]),
    "zstd": zstd_compress,
    "two zstd frames": lambda data: zstd_compress(data[:1000]) + zstd_compress(data[1000:]),
}


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content)
    return info, content


def tar(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def walk(path: Path, data: bytes, limits: Limits = DEFAULT_LIMITS) -> dict[str, bytes | None]:
    path.write_bytes(data)
    found = {}
    for item, stream in iter_safe_members(path, limits=limits):
        found[item.name] = None if stream is None else stream.read()
        assert item.size == len(found[item.name] or b"")
    return found


SAMPLE = tar(member("a", kind=tarfile.DIRTYPE), *(member(name, content) for name, content in CONTENT.items()))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_walks_every_kind_of_archive(tmp_path: Path, compression: str, form: int) -> None:
    long_name = "a/" + "n" * 90 + "/" + "m" * 90
    data = tar(
        *(member(name, content) for name, content in CONTENT.items()), member(long_name, b"long"), form=form
    )
    found = walk(tmp_path / "x.tar", COMPRESSIONS[compression](data))
    assert found == {**CONTENT, long_name: b"long"}


JOINED: dict[str, bytes] = {
    "plain": SAMPLE + tar(member("b", b"more")),
    "zeros between": SAMPLE + bytes(300 << 10) + tar(member("b", b"more")),
    "one block of zeros between": SAMPLE.rstrip(b"\0").ljust(
        -(-len(SAMPLE.rstrip(b"\0")) // 512) * 512, b"\0"
    )
    + bytes(512)
    + tar(member("b", b"more")),
    "three": SAMPLE
    + tar(member("b/c", b""))
    + tar(member("b", kind=tarfile.DIRTYPE), member("b/d", b"more")),
    "pax after GNU": SAMPLE + tar(member("\u00e9" * 60, b"more"), form=tarfile.PAX_FORMAT),
    "nothing in the second": SAMPLE + bytes(20 << 10),
}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("joined", JOINED)
def test_archives_behind_each_other_are_read_whole(tmp_path: Path, joined: str, compression: str) -> None:
    more = {
        "three": {"b/c": b"", "b": None, "b/d": b"more"},
        "pax after GNU": {"\u00e9" * 60: b"more"},
        "nothing in the second": {},
    }
    found = walk(tmp_path / "x.tar", COMPRESSIONS[compression](JOINED[joined]))
    assert found == {"a": None, **CONTENT, **more.get(joined, {"b": b"more"})}


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd_compress])
@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (b"x", "what follows the end mark is not a tar archive"),
        (b"garbage" * 1000, "what follows the end mark is not a tar archive"),
        (bytes(4000) + b"x" * 96, "what follows the end mark is not a tar archive"),
        (tar(member("b", b"1"))[:300], "what follows the end mark is not a tar archive"),
        (tar(member("b", b"1" * 600))[:1024], "truncated|unexpected end"),
        (tar(member("b", b"1" * 600))[:1536], "truncated: the archive has no end mark"),
        (SAMPLE, "two members want the name"),
        (tar(member("../evil", b"x")), "'..'"),
        (tar(member("l", kind=tarfile.SYMTYPE, link="/etc")), "link"),
    ],
)
def test_what_follows_the_end_mark_is_checked_as_well(
    tmp_path: Path, compress: Callable[[bytes], bytes], tail: bytes, reason: str
) -> None:
    with pytest.raises(FormatError, match=reason):
        walk(tmp_path / "x.tar", compress(SAMPLE + tail))


def test_garbage_behind_the_compressed_archive_is_refused(tmp_path: Path) -> None:
    for compress in (gzip.compress, bz2.compress, lzma.compress, zstd_compress):
        with pytest.raises(FormatError):
            walk(tmp_path / "x.tar", compress(SAMPLE) + b"garbage")


def test_folders_and_sizes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(SAMPLE)
    members = [item for item, _ in iter_safe_members(path)]
    assert members[:2] == [SafeMember("a", 0, True), SafeMember("a/model.index", 700, False)]


def test_a_stream_ends_when_the_walk_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(SAMPLE))
    walked = iter_safe_members(path)
    next(walked)
    _, first = next(walked)
    assert first is not None
    assert first.read(10) == b"i" * 10
    _, second = next(walked)
    assert second is not None
    assert second.read() == CONTENT["a/model.data-00000-of-00001"]


def test_dot_names_of_tar_dot(tmp_path: Path) -> None:
    data = tar(member(".", kind=tarfile.DIRTYPE), member("./a/", kind=tarfile.DIRTYPE), member("./a/b", b"1"))
    assert walk(tmp_path / "x", data) == {"a": None, "a/b": b"1"}


DEVICE = {"character device": tarfile.CHRTYPE, "block device": tarfile.BLKTYPE, "pipe": tarfile.FIFOTYPE}
REFUSED: dict[str, tuple[bytes, str]] = {
    "parent": (tar(member("../evil", b"x")), "'..'"),
    "parent inside": (tar(member("a/../../evil", b"x")), "'..'"),
    "parent folder": (tar(member("a/..", kind=tarfile.DIRTYPE)), "'..'"),
    "absolute": (tar(member("/etc/evil", b"x")), "absolute"),
    "drive": (tar(member("C:/evil", b"x")), "absolute"),
    "backslash": (tar(member("a\\..\\evil", b"x")), "unsafe characters"),
    "newline": (tar(member("a\nb", b"x")), "unsafe characters"),
    "escape sequence": (tar(member("a\x1b[31m", b"x")), "unsafe characters"),
    "symbolic link": (tar(member("l", kind=tarfile.SYMTYPE, link="/etc/passwd")), "link"),
    "hard link": (tar(member("l", kind=tarfile.LNKTYPE, link="a")), "link"),
    **{name: (tar(member("d", kind=kind)), "neither a file nor a folder") for name, kind in DEVICE.items()},
    "unknown type": (tar(member("d", kind=b"Z")), "neither a file nor a folder"),
    "same name": (tar(member("a", b"1"), member("a", b"2")), "letter case"),
    "letter case": (tar(member("Model", b"1"), member("model", b"2")), "letter case"),
    "accents": (tar(member("\u00e9", b"1"), member("e\u0301", b"2"), form=tarfile.PAX_FORMAT), "letter case"),
    "same name by dots": (tar(member("a/b", b"1"), member("./a//b", b"2")), "letter case"),
    "file as folder": (tar(member("a", b"1"), member("A/b", b"2")), "letter case"),
    "folder as file": (tar(member("a/b", b"1"), member("a", b"2")), "letter case"),
    "file then folder": (tar(member("a", b"1"), member("a", kind=tarfile.DIRTYPE)), "letter case"),
    "normal form after folding": (
        tar(member("\u0390", b"1"), member("\u0399\u0308\u0301", b"2"), form=tarfile.PAX_FORMAT),
        "letter case",
    ),
    "dot at the end": (tar(member("a.", b"1")), "Windows"),
    "blank at the end": (tar(member("a /b", b"1")), "Windows"),
    "stream behind a colon": (tar(member("a/b:c", b"1")), "Windows"),
    "device of Windows": (tar(member("a/NUL.txt", b"1")), "Windows"),
    "no name": (tar(member("./", b"")), "no name"),
    "long name": (tar(member("/".join(["n" * 100] * 11), b"")), "too long"),
    "long component": (tar(member("n" * 256, b"")), "too long"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsafe_members_are_refused(tmp_path: Path, case: str) -> None:
    data, reason = REFUSED[case]
    if case == "no name":
        # tarfile will not write a file without a name: take the name out of the header, and mend its sum
        data = reheadered(tar(member("x", b"")), {0: b"." + bytes(99)})
    with pytest.raises(FormatError, match=reason):
        walk(tmp_path / "x.tar.gz", gzip.compress(data))


def reheadered(data: bytes, changes: dict[int, bytes]) -> bytes:
    """Overwrite parts of the first header, and correct its checksum."""
    header = bytearray(data[:512])
    for offset, value in changes.items():
        header[offset : offset + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


ONE = tar(member("x", b"y" * 600))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({124: b"\xff" * 12}, "negative|damaged"),  # base-256: -1
        ({124: b"\x80" + b"\x7f" + bytes(10)}, "truncated"),  # 127 * 2^80 bytes
        ({124: b"77777777777\0"}, "truncated"),
        ({124: b"zzzzzzzzzzz\0"}, "damaged"),
        ({156: b"L", 124: b"77777777777\0"}, "headers claim"),  # a long name of 8 GB
        ({156: b"x", 124: b"00010000000\0"}, "headers claim|truncated"),
        ({156: b"S"}, "neither a file|damaged"),  # GNU sparse
        ({0: b"\0" * 100}, "no name"),
    ],
)
def test_impossible_headers_are_refused(tmp_path: Path, changes: dict[int, bytes], reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        walk(tmp_path / "x", reheadered(ONE, changes))


def test_headers_about_headers_without_end_are_refused(tmp_path: Path) -> None:
    record = reheadered(tar(member("p", b"7 a=bc\n")), {156: b"x"})[:1024]
    with pytest.raises(FormatError, match=r"damaged|headers claim|truncated"):
        walk(tmp_path / "x", record * 5000)


def test_sparse_files_by_pax_records_are_refused(tmp_path: Path) -> None:
    info, content = member("x", b"1\n0\n512\n".ljust(512, b"\0") + b"z" * 512)
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "99999999"}
    with pytest.raises(FormatError, match="neither a file"):
        walk(tmp_path / "x", tar((info, content), form=tarfile.PAX_FORMAT))


@pytest.mark.parametrize("compression", ["plain", "gzip", "bzip2", "xz", "zstd"])
def test_a_truncated_archive_is_refused_wherever_it_ends(tmp_path: Path, compression: str) -> None:
    if compression == "plain":  # without the zeros at the end: any further byte missing is the last header's
        whole = SAMPLE[: -(-len(SAMPLE.rstrip(b"\0")) // 512) * 512 + 1]
    else:
        whole = COMPRESSIONS[compression](SAMPLE)
    assert len(whole) > 200
    for size in [0, 1, *range(2, len(whole) - 1, 97 if compression == "plain" else 11), len(whole) - 1]:
        with pytest.raises(FormatError):
            walk(tmp_path / "x", whole[:size])


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "xz", "zstd"])
def test_flipped_bytes_never_give_other_contents(tmp_path: Path, compression: str) -> None:
    whole = COMPRESSIONS[compression](SAMPLE)
    source = random.Random(7)
    for position in source.sample(range(len(whole)), min(150, len(whole))):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << source.randrange(8)
        try:
            found = walk(tmp_path / "x", bytes(damaged))
        except FormatError:
            continue
        assert {name: body for name, body in found.items() if body is not None} == CONTENT


def test_mutated_headers_give_format_errors_and_nothing_else(tmp_path: Path) -> None:
    source = random.Random(11)
    good = tar(member("a/b", b"12"), member("n" * 150, b"3"), form=tarfile.GNU_FORMAT)
    pax = tar(member("\u00e9" * 60, b"12"), form=tarfile.PAX_FORMAT)
    refused = 0
    for _ in range(1500):
        data = bytearray(source.choice([good, pax]))
        start = source.randrange(0, 5) * 512
        for _ in range(source.randrange(1, 4)):
            data[start + source.randrange(512)] = source.choice(
                [0, 0x20, 0x2F, 0x37, 0x80, 0xFF, source.randrange(256)]
            )
        if source.random() < 0.7:
            header = data[start : start + 512]
            header[148:156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(header)
        try:
            walk(tmp_path / "x", bytes(data))
        except FormatError:
            refused += 1
    assert refused > 300


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>404</html>", "an HTML page"),
        (b"\n<HTML><body>", "an HTML page"),
        (b"<?xml version='1.0'?><Error/>", "an XML document"),
        (b'{"error": "x"}', "a JSON text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        (b"PK\x03\x04rest", "a zip archive"),
        (b"\x00\x01\x02" * 300, "is not a tar archive"),
    ],
)
def test_what_is_no_archive_is_named(tmp_path: Path, data: bytes, what: str) -> None:
    with pytest.raises(FormatError, match=what):
        walk(tmp_path / "x.tar.gz", data)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstd_compress])
def test_compressed_things_that_are_no_tar_are_refused(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    with pytest.raises(FormatError):
        walk(tmp_path / "x.tar.gz", compress(b"<html>" * 500))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"x\.tar"):
        next(iter_safe_members(tmp_path / "x.tar"))


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(members=3), "more than 3 members"),
        (Limits(total_bytes=5000), "more than 5000 bytes"),
        (Limits(ratio=2, ratio_from_bytes=1000), "bomb"),
        (Limits(header_bytes=511), "headers claim"),
    ],
)
def test_limits(tmp_path: Path, limits: Limits, reason: str) -> None:
    assert len(walk(tmp_path / "x", gzip.compress(SAMPLE), Limits(members=4))) == 4
    with pytest.raises(FormatError, match=reason):
        walk(tmp_path / "x", gzip.compress(SAMPLE), limits)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstd_compress])
def test_a_bomb_is_stopped_also_when_nobody_reads_it(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(compress(tar(member("zeros", bytes(8 << 20)))))
    with pytest.raises(FormatError, match="bomb"):
        list(iter_safe_members(path, limits=Limits(ratio_from_bytes=1 << 20)))


def test_an_xz_file_that_wants_gigabytes_of_memory_is_refused(tmp_path: Path) -> None:
    small = bytearray(lzma.compress(b"x", preset=0))
    header = small[12 : 12 + (small[12] + 1) * 4]  # of the first block, after the stream's own 12 bytes
    assert header[2:4] == b"\x21\x01"  # LZMA2, one byte of properties
    header[4] = 38  # a dictionary of 2 GiB
    header[-4:] = zlib.crc32(header[:-4]).to_bytes(4, "little")
    small[12 : 12 + len(header)] = header
    with pytest.raises(FormatError, match=r"(?i)damaged compressed data: memory"):
        walk(tmp_path / "x", bytes(small))


def test_a_zstd_file_that_wants_gigabytes_of_memory_is_refused(tmp_path: Path) -> None:
    window = (31 - 10) << 3  # 2 GiB
    last_raw_block = (512 << 3 | 1).to_bytes(3, "little") + bytes(512)
    with pytest.raises(FormatError, match=r"(?i)damaged compressed data: .*memory"):
        walk(tmp_path / "x", b"\x28\xb5\x2f\xfd\x00" + bytes([window]) + last_raw_block)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python has it")
def test_zstd_without_its_package_names_it(tmp_path, monkeypatch):
    path = tmp_path / "a.tar.zst"
    path.write_bytes(zstd_compress(b"\0" * 10240))
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    monkeypatch.delattr("backports.zstd")
    with pytest.raises(MissingDependencyError, match=r"pip install 'backports\.zstd>=1'"):
        list(iter_safe_members(path))


def raw_header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **changed: bytes) -> bytes:
    """A ustar header; ``at_N`` puts bytes at byte N, under a right checksum."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    for place, found in changed.items():
        at = int(place.removeprefix("at_"))
        header[at : at + len(found)] = found
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def records(kind: bytes, text: bytes) -> bytes:
    return raw_header("x", kind, len(text)) + text + bytes(-len(text) % 512)


BODY = b"x" * 600 + bytes(424)
TWO_MEANINGS = {
    "a size of its own": (
        records(b"x", b"9 size=3\n") + raw_header("f", size=600) + BODY,
        "two sizes, 3 and 600",
    ),
    "the same size twice": (records(b"x", b"12 size=600\n") + raw_header("f", size=600) + BODY, None),
    "a global name": (records(b"g", b"10 path=e\n") + raw_header("f", size=600) + BODY, "a global header"),
    "a global comment": (records(b"g", b"13 comment=e\n") + raw_header("f", size=600) + BODY, None),
    "a folder with bytes": (raw_header("d", tarfile.DIRTYPE, 600) + BODY, "a folder of 600 bytes"),
    "a file called as a folder": (raw_header("d/"), "a file with the name of a folder"),
    "a prefix in GNU's header": (raw_header("f", at_257=b"ustar  \0", at_345=b"e"), "half of a name"),
    "a negative size": (raw_header("f", at_124=b"\xff" * 12), "negative size"),
    "endless zeros": (raw_header("f") + bytes(70 << 20), "zero bytes after its end mark"),
    "a number without end": (records(b"x", b"1" * 900_000) + raw_header("f"), "a number of 900,000 digits"),
    "numbers by the thousand": (
        b"".join(records(b"x", (b"1" * 255 + b" ") * 4000) + raw_header(f"f{n}") for n in range(20)),
        "steps of work",
    ),
    "a comment of digits": (
        records(b"x", b"268 comment=%b\n" % (b"1" * 255)) + raw_header("f", size=600) + BODY,
        None,
    ),
    "records by the million": (
        b"".join(records(b"x", b"5 a=\n" * 200_000) + raw_header(f"f{n}") for n in range(20)),
        "steps of work",
    ),
}


@pytest.mark.parametrize("case", TWO_MEANINGS)
def test_a_member_has_one_meaning(case: str, tmp_path: Path) -> None:
    raw, reason = TWO_MEANINGS[case]
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(raw + bytes(1024), 1))
    if reason is None:
        assert [found.name for found, _ in iter_safe_members(path)] == ["f"]
        return
    with pytest.raises(FormatError, match=reason):
        list(iter_safe_members(path))
