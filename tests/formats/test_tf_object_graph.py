from __future__ import annotations

import struct

import pytest

from ckptkit.formats.protobuf_wire import WireError
from ckptkit.formats.tf_object_graph import decode_string_scalar, string_checksum, variable_names
from tests.support.tf_files import masked, message, varint

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def variable(key: str, full_name: str = "", attribute: str = "VARIABLE_VALUE") -> tuple[int, bytes]:
    return (1, message((2, message((1, attribute.encode()), (2, full_name.encode()), (3, key.encode())))))


def slots(*rows: tuple[int, str, int]) -> tuple[int, bytes]:
    return (
        1,
        message(*((3, message((1, owner), (2, name.encode()), (3, slot))) for owner, name, slot in rows)),
    )


def test_a_variable_is_called_what_the_graph_calls_it() -> None:
    names, notes = variable_names(["m/k" + VALUE], message((1, b""), variable("m/k" + VALUE, "moat/kernel")))
    assert names == {"m/k" + VALUE: "moat/kernel"}
    assert notes == []


def test_without_a_name_the_path_stands_in() -> None:
    keys = ["m/k" + VALUE, "unknown" + VALUE, "m/.ATTRIBUTES/OBJECT_CONFIG_JSON", "plain"]
    names, _ = variable_names(keys, message(variable("m/k" + VALUE)))
    assert list(names.values()) == ["m/k", "unknown", "m/.ATTRIBUTES/OBJECT_CONFIG_JSON", "plain"]


def test_slot_variables_are_called_after_their_variable() -> None:
    k, b, km, bm = (
        f"{path}{VALUE}" for path in ("m/k", "m/b", "m/k/.OPTIMIZER_SLOT/o/m", "m/b/.OPTIMIZER_SLOT/o/m")
    )
    graph = message(
        variable(k, "dense/kernel"),
        variable(b),
        variable(km, "Adam/dense/kernel/m"),
        variable(bm),
        slots((0, "m", 2), (1, "m", 3)),
    )
    names, _ = variable_names([k, b, km, bm], graph)
    assert names == {k: "dense/kernel", b: "m/b", km: "dense/kernel/m", bm: "m/b/m"}


def test_the_save_counter_keeps_its_path() -> None:
    key = "save_counter" + VALUE
    assert variable_names([key], message(variable(key, "Variable")))[0] == {key: "save_counter"}


def test_a_name_that_is_taken_gives_way_to_the_path() -> None:
    first, second, third = (f"{layer}/k{VALUE}" for layer in "abc")
    graph = message(variable(first, "kernel"), variable(second, "kernel"), variable(third, "kernel"))
    names, notes = variable_names([first, second, third], graph)
    assert names == {first: "kernel", second: "b/k", third: "c/k"}
    assert len(notes) == 1
    assert notes[0].startswith("2 variables")


def test_a_path_that_is_taken_too_gives_way_to_the_key() -> None:
    first, second, third = (f"{layer}/k{VALUE}" for layer in "abc")
    graph = message(variable(first, "x"), variable(second, "c/k"), variable(third, "x"))
    assert variable_names([first, second, third], graph)[0] == {first: "x", second: "c/k", third: third}


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (b"\x0a", "past the end"),
        (message((1, 5)), "where bytes belong"),
        (message((1, message((2, message((2, b"\xff")))))), "UTF-8"),
        (message(slots((0, "m", 7))), "slot variable"),
        (message(slots((-1, "m", 0))), "slot variable"),
    ],
)
def test_a_damaged_graph_is_refused(graph: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        variable_names(["k"], graph)


def stored(text: bytes) -> bytes:
    return varint(len(text)) + struct.pack("<I", masked(struct.pack("<I", len(text)))) + text


@pytest.mark.parametrize("text", [b"", b"graph", b"x" * 1000])
def test_strings_as_they_are_stored(text: bytes) -> None:
    data = stored(text)
    assert decode_string_scalar(data) == text
    fixed = struct.pack("<I", len(text))
    assert string_checksum(text) == masked(fixed + struct.pack("<I", masked(fixed)) + text)


@pytest.mark.parametrize(
    "data", [b"", b"\x05", stored(b"graph")[:-1], stored(b"graph") + b"x", b"\x05\0\0\0\0graph", b"\xff" * 30]
)
def test_damaged_strings_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        decode_string_scalar(data)
