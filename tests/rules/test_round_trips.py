"""Random rules over random checkpoints: numpy makes the same forwards, and the way back is bit for bit."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptkit.convert.execution import execute
from ckptkit.convert.pipeline import Options, plan
from ckptkit.formats.detect import open_reader, writer_for
from ckptkit.rules.file import rules_in
from tests.support.tensors import same_bits, specs_of, write_all

TYPES = ("float32", "float16", "float64", "int64", "int32", "uint8", "bool")
FORMATS = ("safetensors", "npz", "torch", "tf")

Made = dict[str, Any]


def carry(source: Path, format: str, rules: Any, folder: Path) -> Made:
    """Convert by rules; what is in the result."""
    ending = {"torch": "pth", "tf": "ckpt"}.get(format, format)
    target = folder / f"{source.stem}-{rules.direction}.{ending}"
    with open_reader(source) as reader:
        options = Options(format, rules=rules)
        done = execute(plan(reader, options), reader, options.target, target)
    with open_reader(done.path) as reader:
        return {name: np.array(reader.read(name)) for name in reader.specs}


def assert_same(found: Made, wanted: Made) -> None:
    assert set(found) == set(wanted)
    assert [name for name in wanted if not same_bits(found[name], wanted[name])] == []


@st.composite
def tensors(draw: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """Any bits."""
    kind = np.dtype(dtype)
    count = int(np.prod(shape))
    raw = np.frombuffer(draw(st.randoms(use_true_random=False)).randbytes(count * kind.itemsize), np.uint8)
    return (raw % 2 if kind.kind == "b" else raw).view(kind).reshape(shape)


SHAPES = st.lists(st.integers(1, 4), max_size=3).map(tuple)


@st.composite
def names(draw: Any, start: str, *, version: int) -> tuple[str, str, list[tuple[str, str]]]:
    """Patterns of both sides, and the names that they make."""
    ways = ["plain", "digits"] + (["shifted", "padded", "anything"] if version == 2 else [])
    way = draw(st.sampled_from(ways))
    if way == "plain":
        return f"{start}/w", f"{start}.w", [(f"{start}/w", f"{start}.w")]
    if way == "digits":
        numbers = draw(st.lists(st.sampled_from(["0", "1", "07", "10", "123"]), min_size=1, unique=True))
        made = [(f"{start}/b{n}/w", f"{start}.{n}.w") for n in numbers]
        return f"{start}/b{{i}}/w", f"{start}.{{i}}.w", made
    counts = draw(st.lists(st.integers(0, 120), min_size=1, max_size=4, unique=True))
    if way == "shifted":
        by = draw(st.integers(1, 12))
        made = [(f"{start}/b{n + by}/w", f"{start}.{n}.w") for n in counts]
        return f"{start}/b{{i+{by}}}/w", f"{start}.{{i}}.w", made
    if way == "padded":
        made = [(f"{start}/b{n:02}/w", f"{start}.{n + 1}.w") for n in counts]
        return f"{start}/b{{i:02}}/w", f"{start}.{{i+1}}.w", made
    words = draw(st.lists(st.text("ab1/._", min_size=1, max_size=8), min_size=1, max_size=3, unique=True))
    words = [f"x{word}x".replace("//", "/-/").replace("//", "/-/") for word in words]
    made = [(f"{start}/{word}/w", f"{start}.{word}") for word in dict.fromkeys(words)]
    return f"{start}/{{rest...}}/w", f"{start}.{{rest...}}", made


def turned(draw: Any, shape: tuple[int, ...]) -> tuple[dict[str, Any], Any, tuple[int, ...]]:
    """Keys of a rule that turn axes of a shape, what they do to an array, and the shape that it gets."""
    how = draw(st.sampled_from(["none", "permuted", "merged"]))
    letters = "abc"[: len(shape)]
    order = draw(st.permutations(range(len(shape))))
    if how == "none" or not shape:
        return {}, lambda array: array, shape
    written = [letters[axis] for axis in order]
    new = tuple(shape[axis] for axis in order)
    if how == "merged" and len(shape) > 1:
        sizes = dict(zip(letters, shape, strict=True))
        axes = f"{' '.join(letters)} -> ({written[0]} {written[1]}) {' '.join(written[2:])}".rstrip()
        merged = (new[0] * new[1], *new[2:])
        return {"axes": axes, "sizes": sizes}, lambda x: x.transpose(order).reshape(merged), merged
    return {"axes": f"{' '.join(letters)} -> {' '.join(written)}"}, lambda x: x.transpose(order), new


def a_move(draw: Any, start: str, version: int) -> tuple[dict[str, Any], Made, Made]:
    source, target, made = draw(names(start, version=version))
    shape, dtype = draw(SHAPES), draw(st.sampled_from(TYPES))
    keys, turn, _ = turned(draw, shape)
    if version == 1 and not keys:
        keys = {"op": "identity"}
    before = {name: draw(tensors(shape, dtype)) for name, _ in made}
    after = {new: np.array(turn(before[name]), order="C") for name, new in made}
    return {"source": source, "target": target, **keys}, before, after


def a_concat(draw: Any, start: str) -> tuple[dict[str, Any], Made, Made]:
    """Parts of one tensor along an axis, of one length or of several."""
    _, pattern, made = draw(names(start, version=2))
    shape, dtype = draw(SHAPES.filter(bool)), draw(st.sampled_from(TYPES))
    keys, turn, new = turned(draw, shape)
    axis = draw(st.integers(-len(new), len(new) - 1))
    count = draw(st.integers(1, 4))
    fields = pattern[len(start) :]
    sources = [f"{start}/part_{n}x{fields}" for n in range(count)]
    before: Made = {}
    after: Made = {}
    for _, name in made:
        parts = [draw(tensors(shape, dtype)) for _ in range(count)]
        before |= {f"{start}/part_{n}x{name[len(start) :]}": part for n, part in enumerate(parts)}
        after[name] = np.concatenate([turn(part) for part in parts], axis)
    rule = {"source": sources, "target": pattern, "op": "concat", "axis": axis, **keys}
    if draw(st.booleans()):
        rule["parts"] = [new[axis]] * count
    return rule, before, after


def a_stack(draw: Any, start: str) -> tuple[dict[str, Any], Made, Made]:
    """Numbered parts, as indices of an axis of their own."""
    _, pattern, made = draw(names(start, version=2))
    shape, dtype = draw(SHAPES), draw(st.sampled_from(TYPES))
    letters = list("abc"[: len(shape)])
    order = draw(st.permutations(range(len(shape))))
    place = draw(st.integers(0, len(shape)))
    named, by = draw(st.booleans()), draw(st.integers(0, 2))
    count = draw(st.integers(1, 12))
    if not named:
        order, place = list(range(len(shape))), 0
    fields = pattern[len(start) :]
    before: Made = {}
    after: Made = {}
    for _, name in made:
        parts = [draw(tensors(shape, dtype)) for _ in range(count)]
        before |= {f"{start}/e_{n + by}x{name[len(start) :]}": part for n, part in enumerate(parts)}
        after[name] = np.array(np.stack([part.transpose(order) for part in parts], place), order="C")
    rule = {
        "source": f"{start}/e_{{e{f'+{by}' if by else ''}}}x{fields}",
        "target": pattern,
        "op": "stack",
        "over": "e",
    }
    if named:
        written = [letters[axis] for axis in order]
        written.insert(place, "e")
        rule["axes"] = f"{' '.join(letters)} -> {' '.join(written)}"
    return rule, before, after


def a_fused(draw: Any, start: str) -> tuple[dict[str, Any], Made, Made]:
    """Parts that are interleaved with the heads of one tensor: ``(h three d) i``."""
    heads, width, columns = (draw(st.integers(1, 3)) for _ in range(3))
    parts = draw(st.integers(1, 3))
    shape = (heads * width, columns)
    order = draw(st.permutations(["h", "three", "d"]))
    before = {f"{start}/p{n}": draw(tensors(shape, "float32")) for n in range(parts)}
    apart = np.stack([before[f"{start}/p{n}"].reshape(heads, width, columns) for n in range(parts)])
    axes = [["three", "h", "d"].index(name) for name in order]
    fused = apart.transpose([*axes, 3]).reshape(parts * heads * width, columns)
    rule = {
        "source": list(before),
        "target": start,
        "op": "concat",
        "over": "three",
        "axes": f"(h d) i -> ({' '.join(order)}) i",
        "sizes": {"h": heads, "d": width},
    }
    return rule, before, {start: np.array(fused, order="C")}


def a_stack_of_joined(draw: Any, start: str) -> tuple[dict[str, Any], Made, Made]:
    """Numbered parts of which those of one number follow each other along an axis."""
    _, pattern, made = draw(names(start, version=2))
    shape, dtype = draw(SHAPES.filter(bool)), draw(st.sampled_from(TYPES))
    letters = list("abc"[: len(shape)])
    order = draw(st.permutations(range(len(shape))))
    place = draw(st.integers(0, len(shape)))
    named, by, count = draw(st.booleans()), draw(st.integers(0, 2)), draw(st.integers(1, 5))
    if not named:
        order, place = list(range(len(shape))), 0
    joined = draw(st.integers(0, len(shape) - 1))  # in what is stacked
    lengths = draw(st.lists(st.integers(1, 4), min_size=2, max_size=3))
    fields = pattern[len(start) :]
    before: Made = {}
    after: Made = {}
    for _, name in made:
        rows = []
        for n in range(count):
            row = []
            for k, length in enumerate(lengths):
                own = list(shape)
                own[order[joined]] = length
                part = draw(tensors(tuple(own), dtype))
                before[f"{start}/e_{n + by}x_{'uvw'[k]}{name[len(start) :]}"] = part
                row.append(part.transpose(order))
            rows.append(np.concatenate(row, joined))
        after[name] = np.array(np.stack(rows, place), order="C")
    axis = joined + (place <= joined)
    rule = {
        "source": [
            f"{start}/e_{{e{f'+{by}' if by else ''}}}x_{'uvw'[k]}{fields}" for k in range(len(lengths))
        ],
        "target": pattern,
        "op": "stack",
        "over": "e",
        "axis": axis if draw(st.booleans()) else axis - len(shape) - 1,
    }
    if len(set(lengths)) > 1 or draw(st.booleans()):
        rule["parts"] = lengths
    if named:
        written = [letters[axis] for axis in order]
        if place < len(written) and place != joined and draw(st.booleans()):  # merged with the next axis
            written[place] = f"(e {written[place]})"
            after = {
                name: array.reshape(*array.shape[:place], -1, *array.shape[place + 2 :])
                for name, array in after.items()
            }
            rule["sizes"] = {letters[order[place]]: shape[order[place]]}
            axis -= place < axis
            rule["axis"] = axis
        else:
            written.insert(place, "e")
        rule["axes"] = f"{' '.join(letters)} -> {' '.join(written)}"
    return rule, before, after


KINDS = (a_concat, a_stack, a_stack_of_joined, a_fused)


@st.composite
def files_of_rules(draw: Any, version: int) -> tuple[str, Made, Made]:
    """A file of rules, a checkpoint that fits it, and what it makes of it."""
    rules, before, after = [], {}, {}
    for n in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(KINDS)) if version == 2 and draw(st.booleans()) else None
        start = f"{'pqrs'[n]}"
        rule, source, target = kind(draw, start) if kind else a_move(draw, start, version)
        if kind in (a_concat, a_fused) and draw(st.booleans()):  # the inverse, written down
            inverse = {"concat": "split"}[rule["op"]]
            rule = {**rule, "source": rule["target"], "target": rule["source"], "op": inverse}
            if "axes" in rule:
                rule["axes"] = " -> ".join(reversed(rule["axes"].split(" -> ")))
            source, target = target, source
        elif kind in (a_stack, a_stack_of_joined) and draw(st.booleans()):
            rule = {**rule, "source": rule["target"], "target": rule["source"], "op": "unstack"}
            if "axes" in rule:
                rule["axes"] = " -> ".join(reversed(rule["axes"].split(" -> ")))
            source, target = target, source
        rules.append(rule)
        before |= source
        after |= target
    text = json.dumps({"version": version, "rules": rules} if version == 2 else {"rules": rules}, indent=1)
    return text, before, after


def there_and_back(drawn: tuple[str, Made, Made], format: str) -> None:
    text, before, after = drawn
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source.safetensors")
        write_all(writer_for("safetensors")(source, specs_of(before), {}), before)
        assert_same(carry(source, format, rules_in(text, Path("rules.yaml")), Path(folder)), after)
        made = Path(folder, "made.safetensors")
        write_all(writer_for("safetensors")(made, specs_of(after), {}), after)
        back = carry(made, format, rules_in(text, Path("rules.yaml"), reverse=True), Path(folder))
        assert_same(back, before)


SOME = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@SOME
@given(files_of_rules(version=2), st.sampled_from(FORMATS))
def test_version_2(drawn: tuple[str, Made, Made], format: str) -> None:
    there_and_back(drawn, format)


@settings(SOME, max_examples=20)
@given(files_of_rules(version=1), st.sampled_from(FORMATS))
def test_version_1(drawn: tuple[str, Made, Made], format: str) -> None:
    there_and_back(drawn, format)
