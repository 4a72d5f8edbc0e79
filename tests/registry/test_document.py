"""YAML text, however damaged or hostile, becomes values with lines, or faults with lines."""

from __future__ import annotations

import random
import time

import pytest
import yaml

from ckptkit.registry import document
from ckptkit.registry.document import MAX_DEPTH, bounded_loader, parse
from tests.support.registries import SMALL

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.fixture(params=["libyaml", "python"], autouse=True)
def _both_loaders(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = getattr(yaml, "CSafeLoader", None) if request.param == "libyaml" else yaml.SafeLoader
    if loader is None:
        pytest.skip("this PyYAML comes without libyaml")
    monkeypatch.setattr(document, "_LOADER", bounded_loader(loader))


def test_values_are_those_of_yaml_and_lines_are_where_they_stand() -> None:
    parsed = parse(SMALL)
    assert parsed.faults == []
    assert parsed.value == yaml.safe_load(SMALL)
    lines = SMALL.splitlines()
    for location, found in [
        (("families", "moat", "format"), "format: tf"),
        (("entries", 0, "id"), "- id: one"),
        (("entries", 1), "- id: two"),
        (("entries", 1, "sources", 1, "url"), "- url: https://b.org"),
        (("entries", 0, "published_top1"), "published_top1"),
    ]:
        assert found in lines[parsed.line(*location) - 1]
    # A place that is not there has the line of what surrounds it.
    assert parsed.line("entries", 1, "colour") == parsed.line("entries", 1)


def test_anchors_aliases_and_merge_keys() -> None:
    text = (
        "base: &base {a: 1, b: 2}\nother: &other {b: 3, c: 4}\n"
        "x: {<<: *base, b: 5}\ny: {<<: [*base, *other]}\nz: *base\n"
    )
    assert parse(text).value == yaml.safe_load(text)
    assert parse("x: {<<: 3}").faults == [(1, "<< takes a mapping or a list of mappings")]


def test_times_stay_text() -> None:
    assert parse("at: 2026-01-02T03:04:05Z\nday: 2026-01-02").value == {
        "at": "2026-01-02T03:04:05Z",
        "day": "2026-01-02",
    }


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("a: 1\nb: 2\na: 3\n", [(3, "key 'a' is given twice (first on line 1)")]),
        ("? [x]\n: 1\n", [(1, "a key must be text")]),
        (
            "a: 1\nb: !!python/object:os.system x\n",
            [(2, "the tag !!python/object:os.system has no place here")],
        ),
        ("a: !mine x\n", [(1, "the tag !mine has no place here")]),
        ("a: !!binary aGk=\n", [(1, "the tag !!binary has no place here")]),
        ("a: !!int x\n", [(1, "'x' cannot be read as int")]),
        ("a: &a [*a]\n", [(1, "an alias to something that contains it")]),
        ("a: &a\n  b:\n    <<: *a\n", [(1, "an alias to something that contains it")]),
        (
            "a: 1\na: 2\nb: 1\nb: 2\n",
            [
                (2, "key 'a' is given twice (first on line 1)"),
                (4, "key 'b' is given twice (first on line 3)"),
            ],
        ),
    ],
)
def test_faults_of_the_tree(text: str, faults: list[tuple[int, str]]) -> None:
    assert parse(text).faults == faults


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1\nb: 2\n", 2),
        ("a: 1\n\tb: 2\n", 2),
        ("a: 'x\n", 2),
        ("a: 1\n---\nb: 2\n", 2),
        ("a: *nowhere\n", 1),
        ("a: 1\nb: c: d\n", 2),
        ("a: \x00\n", 1),
        ("%YAML 9.0\n---\na: 1\n", 1),
    ],
)
def test_what_is_no_yaml(text: str, line: int) -> None:
    ((found, what),) = parse(text).faults
    assert what.startswith("not YAML: ")
    # The two scanners notice an unclosed bracket or quote on neighbouring lines.
    assert abs(found - line) <= 1
    assert "\n" not in what


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_nothing(text: str) -> None:
    assert (parse(text).value, parse(text).faults) == (None, [])


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" * 100_000 + "]" * 100_000,
        "{a: " * 50_000,
        "- " * 100_000 + "x",
        "".join(" " * depth + "a:\n" for depth in range(2000)),
    ],
)
def test_deep_nesting_is_refused_before_it_hurts(text: str) -> None:
    ((_, what),) = parse(text).faults
    assert what == f"nested more than {MAX_DEPTH} levels deep" or what.startswith("not YAML: ")


def test_a_bomb_of_aliases_is_refused() -> None:
    assert len(BOMB) < 500
    ((_, what),) = parse(BOMB).faults
    assert what == "more than 50,000 values once aliases are followed"


def test_too_many_values_are_refused() -> None:
    ((_, what),) = parse("[" + "1," * 100_010 + "]").faults
    assert what == "more than 50,000 values"


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        ("010", "an octal number"),
        ("-0o7", None),  # text in YAML 1.1
        ("00", "an octal number"),
        ("0x1F", "a hexadecimal number"),
        ("-0x_f", "a hexadecimal number"),
        ("0b11", "a binary number"),
        ("1:30", "a number in base 60"),
        ("-1:30:59.5", "a number in base 60"),
        ("1_000", "a number with underscores"),
        ("1_0.5", "a number with underscores"),
        ("!!int 0x10", "a hexadecimal number"),
        ("!!float '1:30.0'", "a number in base 60"),
        ("0x" + "f" * 5000, "a hexadecimal number"),
        ("1" + ":00" * 100_000, "a number in base 60"),
        ("1" + ":00" * 200 + ".5", "a number in base 60"),
        *((number, None) for number in ("0", "-7", "+7", "10", "0.5", "-.5", "010.5", "1.", "1.5e+3")),
        ("'010'", None),
    ],
)
def test_numbers_are_decimal(number: str, kind: str | None) -> None:
    parsed = parse(f"a:\n  - {number}\n")
    if kind is None:
        assert (parsed.faults, parsed.value) == ([], yaml.safe_load(f"a: [{number}]"))
        return
    ((line, what),) = parsed.faults
    assert line == 2 and len(what) < 130
    assert what.endswith(f" is {kind} in YAML; write it in decimal, or in quotes where it is text")


def test_a_huge_number_is_a_fault() -> None:
    assert parse("a: " + "9" * 10_000).faults[0][1].endswith("cannot be read as int")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("!!int ''", "'' cannot be read as int"),
        ("!!float ''", "'' cannot be read as float"),
        ("!!int '+'", "'+' cannot be read as int"),
        ("!!int '١٢'", "'١٢' cannot be read as int"),
        ("!!int 1.5", "'1.5' cannot be read as int"),
        ("!!float 1e5e5", "'1e5e5' cannot be read as float"),
        ("!!bool maybe", "'maybe' cannot be read as bool"),
        ("!!float " + "9" * 5000 + ".5", "cannot be read as float"),
        ("9" * 401, "cannot be read as int"),
        ("!!timestamp x", None),
        ("!!null x", None),
        ("!" + "t" * 5000 + " x", "has no place here"),
        ("!!set {a, b}", "has no place here"),
        ("!!omap [a: 1]", "has no place here"),
        ("!!pairs [a: 1]", "has no place here"),
        ("!!str [a]", "has no place here"),
        ("!!int {a: 1}", "has no place here"),
        ("*" + "n" * 5000, "not YAML: "),
    ],
)
def test_tags_and_numbers_in_one_short_line(text: str, what: str | None) -> None:
    faults = parse(f"a: {text}").faults
    if what is None:
        assert faults == []
        return
    assert what in faults[0][1] and len(faults[0][1]) <= 500


@pytest.mark.parametrize(
    ("text", "what"),
    [
        # Each merge would copy the long mapping again.
        (
            "a: &a {" + ", ".join(f"k{n}: 1" for n in range(3_000)) + "}\nb: &b {}\n"
            "c: {<<: [" + "*b, " * 3_000 + "*a]}\n",
            None,
        ),
        ("a: &a " + "x" * 10_000 + "\nb: [" + "*a, " * 1_000 + "]", "bytes of names in a file of"),
        ("a: [" + "1" + ":00" * 50_000 + "]", "a number in base 60"),
        ("? " + "k" * 50_000 + "\n: 1\n", None),
        ("a: '" + "\\n" * 50_000 + "'", None),
        ("a: " + "- " * 10_000, "not YAML"),
        ("#" * 100_000, None),
        ("&" + "a" * 50_000 + " b", None),
    ],
)
def test_time_grows_with_the_length_only(text: str, what: str | None) -> None:
    started = time.process_time()
    faults = parse(text).faults
    assert time.process_time() - started < 4
    assert not faults if what is None else what in faults[0][1]


def test_damaged_text_never_escapes_as_another_exception() -> None:
    chance = random.Random(20260101)
    signs = "[]{}:,-&*!|>'\"%@`#?\n\t \x00\u2028\ufeff<ab0"
    for _ in range(300):
        text = list(SMALL)
        for _ in range(chance.randint(1, 6)):
            place = chance.randrange(len(text))
            text[place : place + chance.randint(0, 3)] = chance.choices(signs, k=chance.randint(0, 3))
        parsed = parse("".join(text))
        assert parsed.faults or isinstance(parsed.value, (dict, list, str))
