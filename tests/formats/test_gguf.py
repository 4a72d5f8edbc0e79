"""GGUF files: those that the gguf package writes, and others put together byte by byte."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.base.errors import ConversionError, FormatError, UsageError
from ckptkit.formats.base import Sample
from ckptkit.formats.builtin import BUILT_IN, may_begin
from ckptkit.formats.detect import open_reader, writer_for
from ckptkit.formats.gguf import BLOCKS
from tests.support.carrying import carry
from tests.support.damage import mutations, survives
from tests.support.foreign_files import gguf_file, gguf_text
from tests.support.tensors import same_bits

SOURCE = np.random.default_rng(6)
W = SOURCE.standard_normal((3, 64)).astype("float32")
HALF = W[0].astype("float16")
TENSORS = {"blk.0.w": (0, (3, 64), W.tobytes()), "half": (1, (64,), HALF.tobytes())}
PAIRS = {
    "general.architecture": struct.pack("<I", 8) + gguf_text("toy"),
    "toy.layers": struct.pack("<II", 4, 3),
    "toy.rate": struct.pack("<Id", 12, 0.5),
    "toy.flag": struct.pack("<I?", 7, True),
    "tokens": struct.pack("<IIQ", 9, 8, 2) + gguf_text("a") + gguf_text("bc"),
    "scores": struct.pack("<IIQ", 9, 6, 2) + bytes(8),
    "nested": struct.pack("<IIQIQBBIQ", 9, 9, 2, 0, 2, 1, 2, 8, 1) + gguf_text("a"),
}


def write(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("alignment", [32, 64])
@pytest.mark.parametrize("version", [2, 3])
def test_a_file_by_hand(tmp_path: Path, version: int, alignment: int) -> None:
    pairs = PAIRS | {"general.alignment": struct.pack("<II", 4, alignment)}
    raw = gguf_file(TENSORS, pairs, version=version, alignment=alignment)
    path = write(tmp_path / "m", raw)
    with open_reader(path) as reader:
        assert reader.format == "gguf"
        assert same_bits(reader.read("blk.0.w"), W)
        assert same_bits(reader.read("half"), HALF)
        assert reader.metadata == {
            "general.architecture": "toy",
            "toy.layers": "3",
            "toy.rate": "0.5",
            "toy.flag": "true",
            "tokens": "a list of 2",
            "scores": "a list of 2",
            "nested": "a list of 2",
            "general.alignment": str(alignment),
        }
    assert may_begin("gguf", raw[:64])


def test_a_count_of_tensors_does_not_make_it_another_format(tmp_path: Path) -> None:
    """123 tensors have the first character of safetensors' header where it is."""
    tensors = {f"t{number}": (0, (1,), bytes(4)) for number in range(ord("{"))}
    for version in (2, 3):
        path = write(tmp_path / "m", gguf_file(tensors, version=version))
        assert not BUILT_IN["safetensors"].matches(Sample(path))
        with open_reader(path) as reader:
            assert (reader.format, len(reader.specs)) == ("gguf", 123)


def test_what_gguf_writes(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "toy")
    writer.add_uint32("toy.layers", 2)
    writer.add_array("tokens", ["a", "b", "c"])
    held: dict[str, Any] = {
        "a": W,
        "b": HALF,
        "c": W.astype("float64"),
        "d": np.arange(6, dtype="int32").reshape(1, 2, 3),
        "e": np.arange(5, dtype="int8"),
    }
    for name, array in held.items():
        writer.add_tensor(name, array)
    brain = gguf.quants.quantize(W, gguf.GGMLQuantizationType.BF16)
    writer.add_tensor("brain", brain, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_reader(path) as reader:
        assert list(reader.specs) == [*held, "brain"]
        for name, array in held.items():
            assert same_bits(reader.read(name), array), name
        assert str(reader.specs["brain"].dtype) == "bfloat16"
        assert reader.specs["brain"].shape == (3, 64)
        assert reader.read("brain").tobytes() == brain.tobytes()
        assert reader.metadata["toy.layers"] == "2"
        assert reader.metadata["tokens"] == "a list of 3"


def test_quantized_types_are_carried_as_they_are(tmp_path: Path) -> None:
    """Under their own name; a conversion refuses them by it."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "toy")
    kinds = ("Q8_0", "Q4_0", "Q5_1")
    packed = {kind: gguf.quants.quantize(W, gguf.GGMLQuantizationType[kind]) for kind in kinds}
    for kind, array in packed.items():
        writer.add_tensor(kind, array, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_reader(path) as reader:
        for kind in kinds:
            spec, raw = reader.specs[kind], reader.raw(kind)
            assert (str(spec.dtype), spec.shape, spec.nbytes) == (kind, (3, 64), packed[kind].nbytes)
            assert raw is not None and bytes(raw.data) == packed[kind].tobytes()
    with pytest.raises(ConversionError, match="safetensors has no name for Q8_0"):
        carry(path, tmp_path / "m.safetensors", "safetensors")


def test_blocks_are_those_of_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf")
    for number, (dtype, elements, nbytes) in BLOCKS.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (str(dtype), (elements, nbytes))


def test_it_is_read_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gguf files are read, not written"):
        writer_for("gguf")(tmp_path / "m.gguf", [], {})


# -- damaged and hostile -------------------------------------------------------------------------------------

GOOD = gguf_file(TENSORS, PAIRS)


def patched(at: int, form: str, value: int) -> bytes:
    raw = bytearray(GOOD)
    struct.pack_into(form, raw, at, value)
    return bytes(raw)


def one(kind: int = 0, shape: tuple[int, ...] = (4,), raw: bytes = bytes(16)) -> bytes:
    return gguf_file({"w": (kind, shape, raw)})


BAD: dict[str, tuple[bytes, str]] = {
    "cut off": (GOOD[:-1], "is not inside the file"),
    "a cut header": (GOOD[:100], "the header ends early"),
    "a mark alone": (b"GGUF", "the header ends early"),
    "another version": (patched(4, "<I", 9), "version 9, which is not known"),
    "big-endian": (patched(4, ">I", 3), "big-endian"),
    "many tensors": (patched(8, "<Q", 1 << 60), "entries in a file of"),
    "many pairs": (patched(16, "<Q", 1 << 60), "entries in a file of"),
    "a long key": (patched(24, "<Q", 1 << 60), "a text of"),
    "an alignment of 3": (
        gguf_file(TENSORS, {"general.alignment": struct.pack("<II", 4, 3)}),
        "an alignment of 3",
    ),
    "no alignment": (
        gguf_file(TENSORS, {"general.alignment": struct.pack("<II", 4, 0)}),
        "an alignment of 0",
    ),
    "a type of values": (gguf_file({}, {"a": struct.pack("<I", 99)}), "a value of type 99"),
    "lists in lists": (
        gguf_file({}, {"a": struct.pack("<I", 9) + 20 * struct.pack("<IQ", 9, 1)}),
        "a list of values of type 9",
    ),
    "a list of all lists": (gguf_file({}, {"a": struct.pack("<IIQ", 9, 9, 1 << 60)}), "entries in a file of"),
    "a list of all": (gguf_file({}, {"a": struct.pack("<IIQ", 9, 0, 1 << 60)}), "the header ends early"),
    "many axes": (gguf_file({"w": (0, (1,) * 5, bytes(4))}), "has 5 axes"),
    "vast": (one(shape=(1 << 62, 1 << 62)), "is not inside the file"),
    "half a block": (one(kind=8, shape=(33,)), "rows that are not whole blocks"),
    "twice": (
        GOOD.replace(gguf_text("toy.flag"), gguf_text("toy.rate")),
        "the key 'toy.rate' occurs twice",
    ),
    "no UTF-8": (GOOD.replace(b"toy.flag", b"toy.fla\xff"), "not UTF-8"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused(tmp_path: Path, kind: str) -> None:
    raw, said = BAD[kind]
    path = write(tmp_path / "m.gguf", raw)
    start = time.process_time()
    with pytest.raises(FormatError) as caught:
        open_reader(path)
    assert time.process_time() - start < 1
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


def test_an_unknown_type_is_left_out_by_name(tmp_path: Path) -> None:
    raw = gguf_file({"w": (0, (4,), bytes(16)), "odd": (77, (4,), bytes(16))})
    with open_reader(write(tmp_path / "m.gguf", raw)) as reader:
        assert reader.left_out == {"odd": "elements of type 77, which is not known here"}


def test_one_of_several_parts_says_so(tmp_path: Path) -> None:
    for count, notes in ((1, 0), (3, 1)):
        raw = gguf_file(TENSORS, {"split.count": struct.pack("<IH", 2, count)})
        with open_reader(write(tmp_path / "m-00001-of-00003.gguf", raw)) as reader:
            assert ["one of 3 parts" in note for note in reader.notes] == [True] * notes


def test_tensors_over_each_other_are_no_way_to_fill_a_disk(tmp_path: Path) -> None:
    size = 1 << 20
    infos = b"".join(
        gguf_text(f"t{number}") + struct.pack("<IQIQ", 1, size // 4, 0, 0) for number in range(200)
    )
    head = b"GGUF" + struct.pack("<IQQ", 3, 200, 0) + infos
    path = write(tmp_path / "m.gguf", head + bytes(-len(head) % 32) + bytes(size))
    with pytest.raises(FormatError, match=r"claim \d+ bytes or more, but share \d+ bytes"):
        open_reader(path)


def test_mutations(tmp_path: Path) -> None:
    opened = sum(survives(tmp_path / "m.gguf", bad, open_reader) for bad in mutations(GOOD, 300, seed=8))
    assert 0 < opened < 300
