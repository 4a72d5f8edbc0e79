from __future__ import annotations

import struct

import pytest

from ckptkit.formats.protobuf_wire import WireError
from ckptkit.formats.tf_object_graph import Names, decode_string_scalar, string_checksum, variable_names
from tests.support.tf_files import masked, message, plenty, varint

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def variable(key: str, full_name: str = "", attribute: str = "VARIABLE_VALUE") -> tuple[int, bytes]:
    return (1, message((2, message((1, attribute.encode()), (2, full_name.encode()), (3, key.encode())))))


def slots(*rows: tuple[int, str, int]) -> tuple[int, bytes]:
    return (
        1,
        message(*((3, message((1, owner), (2, name.encode()), (3, slot))) for owner, name, slot in rows)),
    )


def node(*children: tuple[str, int]) -> tuple[int, bytes]:
    """An object that leads to others."""
    return (1, message(*((1, message((1, number), (2, name.encode()))) for name, number in children)))


def test_a_variable_is_called_what_the_graph_calls_it() -> None:
    found = variable_names(
        ["m/k" + VALUE], message((1, b""), variable("m/k" + VALUE, "moat/kernel")), plenty()
    )
    assert found == Names({"m/k" + VALUE: "moat/kernel"})
    assert found.notes() == []


def test_without_a_name_the_path_stands_in() -> None:
    keys = ["m/k" + VALUE, "unknown" + VALUE, "m/.ATTRIBUTES/OBJECT_CONFIG_JSON", "plain"]
    names = variable_names(keys, message(variable("m/k" + VALUE)), plenty()).by_key
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
    names = variable_names([k, b, km, bm], graph, plenty()).by_key
    assert names == {k: "dense/kernel", b: "m/b", km: "dense/kernel/m", bm: "m/b/m"}


def test_the_save_counter_keeps_its_path() -> None:
    key = "save_counter" + VALUE
    assert variable_names([key], message(variable(key, "Variable")), plenty()).by_key == {key: "save_counter"}


def test_a_name_that_is_taken_gives_way_to_the_path() -> None:
    first, second, third = (f"{layer}/k{VALUE}" for layer in "abc")
    graph = message(variable(first, "kernel"), variable(second, "kernel"), variable(third, "kernel"))
    found = variable_names([first, second, third], graph, plenty())
    assert found.by_key == {first: "kernel", second: "b/k", third: "c/k"}
    assert found.namesakes == {"b/k": "kernel", "c/k": "kernel"}
    (note,) = found.notes()
    assert note.startswith("2 variables are listed by object path")


def test_a_path_that_is_taken_too_gives_way_to_the_key() -> None:
    first, second, third = (f"{layer}/k{VALUE}" for layer in "abc")
    graph = message(variable(first, "x"), variable(second, "c/k"), variable(third, "x"))
    found = variable_names([first, second, third], graph, plenty())
    assert found.by_key == {first: "x", second: "c/k", third: third}
    assert found.namesakes == {third: "x"}


def named(path: str) -> str:
    return path + VALUE


def test_what_only_an_optimizer_leads_to_is_its_own() -> None:
    """Keras 3 lists the variables that are trained with the optimizer too, even under its path."""
    step, average, scale, inner, kernel, loose = map(
        named,
        (
            "o/_iterations",
            "o/_variables/1",
            "o/dynamic_scale",
            "o/in/_iterations",
            "o/_trainable_variables/0",
            "z",
        ),
    )
    graph = message(
        node(("o", 1), ("net", 4), ("z", 10)),
        node(("_iterations", 5), ("_variables", 2), ("_trainable_variables", 3), ("scale", 7), ("in", 11)),
        node(("0", 5), ("1", 6)),
        node(("0", 9)),
        node(("kernel", 9), ("optimizer", 1)),
        variable(step, "adam/iteration"),
        variable(average, "kernel"),  # as Adafactor calls what it keeps
        variable(scale, "scaled/dynamic_scale"),
        node(),
        variable(kernel, "kernel"),
        variable(loose, "z"),
        node(("_iterations", 12), ("_variables", 8)),
        variable(inner, "adam/iteration"),
    )
    found = variable_names([kernel, average, inner, step, scale, loose], graph, plenty())
    assert found.by_key[kernel] == "kernel"
    assert found.optimizer == {"o/_variables/1", "adam/iteration", "o/_iterations", "scaled/dynamic_scale"}


@pytest.mark.parametrize("name", ["_iterations", "iterations", "iter"])
def test_an_object_that_counts_something_is_no_optimizer(name: str) -> None:
    step, kernel = named(name), named("net/kernel")
    graph = message(
        node((name, 1), ("net", 2)), variable(step, "step"), node(("kernel", 3)), variable(kernel, "k")
    )
    assert variable_names([step, kernel], graph, plenty()).optimizer == frozenset()


def test_an_optimizer_of_slots_has_scalars() -> None:
    power, kernel, slot = named("o/beta1_power"), named("m/k"), named("m/k/.OPTIMIZER_SLOT/o/m")
    graph = message(
        node(("o", 1), ("m", 3)),
        (1, message((1, message((1, 2), (2, b"beta1_power"))), (3, message((1, 4), (2, b"m"), (3, 5))))),
        variable(power, "beta1_power"),
        node(("k", 4)),
        variable(kernel, "kernel"),
        variable(slot, "kernel/Adam"),
    )
    found = variable_names([kernel, slot, power], graph, plenty())
    assert list(found.by_key.values()) == ["kernel", "kernel/m", "beta1_power"]
    assert found.optimizer == {"beta1_power"}


def exported(*names: tuple[str, str]) -> bytes:
    """What ``model.export`` writes: (name of the model's variable, name of the copy)."""
    count = len(names)
    own = [variable(named(f"variables/{n}"), name) for n, (name, _) in enumerate(names)]
    copies = [variable(named(f"_all_variables/{n}"), name) for n, (_, name) in enumerate(names)]
    return message(
        node(("variables", 1), ("_all_variables", 2), ("serve", 0)),
        node(*((str(n), 3 + n) for n in range(count))),
        node(*((str(n), 3 + count + n) for n in range(count))),
        *own,
        *copies,
    )


OWN, COPIES = ([named(f"{where}/{n}") for n in range(3)] for where in ("variables", "_all_variables"))


def test_copies_with_the_same_bytes_are_one_variable() -> None:
    """Also where two variables of the model have one name, and the same bytes."""
    graph = exported(("kernel", "kernel"), ("bias", "bias"), ("bias", "bias"))
    prints = dict(zip([*OWN, *COPIES], "kbbkbb", strict=True))
    found = variable_names([*COPIES, *OWN], graph, plenty(), prints.get)
    assert found.by_key == dict(zip(OWN, ["kernel", "bias", "variables/2"], strict=True))
    assert found.twins == set(COPIES)
    assert "3 variables are in the file twice with the same bytes" in found.notes()[0]


@pytest.mark.parametrize("prints", ["kb-KBC", "kb-kb", "kbgkbg", "------"])
def test_copies_with_other_bytes_or_names_stay(prints: str) -> None:
    graph = exported(("kernel", "kernel"), ("bias", "bias"), ("gamma", "beta"))
    known = {key: sign for key, sign in zip([*OWN, *COPIES], prints, strict=False) if sign != "-"}
    found = variable_names([*OWN, *COPIES], graph, plenty(), known.get)
    merged = sum(sign in "kb" for sign in prints[3:])
    assert len(found.twins) == merged
    assert len(found.by_key) == 6 - merged
    assert found.by_key[OWN[0]] == "kernel"
    if prints == "kb-KBC":
        assert found.namesakes == {"_all_variables/0": "kernel", "_all_variables/1": "bias"}


def test_variables_of_one_name_elsewhere_stay_two() -> None:
    first, second = named("a/k"), named("b/k")
    graph = message(node(("a", 1), ("b", 2)), variable(first, "kernel"), variable(second, "kernel"))
    assert variable_names([first, second], graph, plenty(), lambda key: "same").twins == frozenset()


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (b"\x0a", "past the end"),
        (message((1, 5)), "holds a number, not bytes"),
        (message((1, message((2, message((2, b"\xff")))))), "UTF-8"),
        (message(slots((0, "m", 7))), "slot variable"),
        (message(slots((-1, "m", 0))), "slot variable"),
        (message(node(("a", 2))), "object 2 of 1"),
    ],
)
def test_a_damaged_graph_is_refused(graph: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        variable_names(["k"], graph, plenty())


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
