"""The families' layouts are tables of the language that users write: as files of rules they do the same."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.base.axes import IDENTITY, Op, parse_axes
from ckptkit.convert.by_rules import plan_by_rules
from ckptkit.convert.planning import plan_by_layout
from ckptkit.families.base import Structure, get_family
from ckptkit.families.recognition import require_recognition
from ckptkit.formats.detect import open_reader, writer_for
from ckptkit.rules.file import rules_in
from ckptkit.rules.language import Binding, Table
from tests.support.tensors import specs_of, write_all

SMALLEST = {"moat": "tiny-moat0", "moganet": "moganet-xt"}
OF_OTHERS = {"kecam", "birder", "wd-tagger"}
PAIRS = [
    (family, one, other)
    for family in SMALLEST
    for one, other in itertools.permutations(get_family(family).layouts, 2)
    if not OF_OTHERS & {one, other}
]
STRUCTURES = {"moat": Structure(pos_emb=True), "moganet": Structure()}


@cache
def table(family: str, layout: str) -> Table:
    return get_family(family).table(layout, SMALLEST[family], STRUCTURES[family])


def in_between(one: Binding, other: Binding) -> Op:
    """The op from a tensor's axes in one layout to those in another."""
    if one.op == other.op:
        return IDENTITY
    assert one.op.is_identity or other.op.is_identity
    return one.op if other.op.is_identity else other.op.inverse


def sizes(pattern: str, shape: tuple[int, ...]) -> dict[str, int]:
    """Lengths of the axes that are not merged there."""
    groups = parse_axes(pattern)
    return {group[0]: size for group, size in zip(groups, shape, strict=True) if len(group) == 1}


def rules(one: Table, other: Table) -> Iterator[dict[str, Any]]:
    """A rule for each tensor that both have, by the names themselves."""
    for source in one.bindings:
        target = other.by_canonical.get(source.canonical)
        if target is None:
            continue
        rule: dict[str, Any] = {"source": source.external, "target": target.external}
        op = in_between(source, target)
        if not op.is_identity:
            known = sizes(op.external, source.external_shape) | sizes(op.canonical, target.external_shape)
            rule |= {"axes": f"{op.external} -> {op.canonical}", "sizes": known}
        yield rule


def templates(one: Table, other: Table) -> Iterator[dict[str, Any]]:
    """The layouts' own rules, with their own templates of names, as they are in the source code."""
    for rule in one.layout.rules:
        to = other.layout.by_canonical[rule.canonical]
        found: dict[str, Any] = {"source": rule.external, "target": to.external, "optional": True}
        source = next((row for row in one.bindings if _is_of(row.canonical, rule.canonical)), None)
        if source is None:
            continue
        op = in_between(source, other.by_canonical[source.canonical])
        if not op.is_identity:
            found["axes"] = f"{op.external} -> {op.canonical}"
            if "(h d)" in found["axes"]:
                found["sizes"] = {"d": 32}
        yield found


def _is_of(name: str, template: str) -> bool:
    return re.fullmatch(re.sub(r"\\{\w+\\}", r"\\d+", re.escape(template)), name) is not None


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """One file in each layout."""
    folder, made = tmp_path_factory.mktemp("layouts"), {}
    random = np.random.default_rng(7)
    for family in SMALLEST:
        for layout in get_family(family).layouts:
            arrays = {
                row.external: np.zeros((), np.int64)
                if row.part == "counter"
                else random.standard_normal(row.external_shape, dtype=np.float32)
                for row in table(family, layout).bindings
            }
            path = folder / f"{family}-{layout}.safetensors"
            write_all(writer_for("safetensors")(path, specs_of(arrays), {}), arrays)
            made[family, layout] = path
    return made


@pytest.mark.parametrize(
    ("written", "family", "one", "other"),
    [
        *((rules, *pair) for pair in PAIRS),
        (rules, "moganet", "kecam", "torch"),
        # Names in Keras' own files come from replacements, which a template does not say.
        *((templates, *pair) for pair in PAIRS if "keras-h5" not in pair),
    ],
)
def test_rules_written_from_two_layouts_do_what_the_layouts_do(files, written, family, one, other):
    text = json.dumps({"version": 2, "rules": list(written(table(family, one), table(family, other)))})
    with open_reader(files[family, one]) as reader:
        recognition = require_recognition(reader.path, reader.specs)
        assert recognition.layout == one
        by_layout = plan_by_layout(reader, recognition, other, allow_missing_bn=True)
        left_out = [name for name in reader.specs if name in by_layout.left_out]
        if left_out:
            ignored = [{"name": "x", "pattern": r".+num_batches_tracked", "reason": "Keras counts none"}]
            text = json.dumps({**json.loads(text), "ignore": ignored})
        by_rules = plan_by_rules(reader, rules_in(text, Path("rules.yaml")))
        assert {spec.name: spec for spec in by_rules.specs} == {spec.name: spec for spec in by_layout.specs}
        assert list(by_rules.left_out) == left_out
        wanted = {move.target.name: move for move in by_layout.moves}
        for move in by_rules.moves:
            ours, theirs = (one.array(reader.read) for one in (move, wanted[move.target.name]))
            assert np.array_equal(ours, theirs), move.target.name
    # And the way back is the other conversion's.
    with open_reader(files[family, other]) as reader:
        recognition = require_recognition(reader.path, reader.specs)
        if any(row.canonical not in table(family, one).by_canonical for row in recognition.table.bindings):
            return
        back = plan_by_rules(reader, rules_in(text, Path("rules.yaml"), reverse=True))
        wanted = {m.target.name: m for m in plan_by_layout(reader, recognition, one).moves}
        for move in back.moves:
            assert np.array_equal(move.array(reader.read), wanted[move.target.name].array(reader.read))
        assert {move.target.name for move in back.moves} == set(wanted)
