"""Names and shapes against the architecture, from specs alone."""

from __future__ import annotations

import pytest

from ckptkit.base.errors import NotFoundError, UsageError
from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.compare.verify.architecture import check_batch_norm, fit
from ckptkit.compare.verify.values import ValueRange
from ckptkit.families.binding import FileFacts
from tests.support.entries import entry_of
from tests.support.moat_files import AVERAGE
from tests.support.moat_reference import variable_shapes

FLOAT = DTYPES["float32"]
EXPAND = "moat/block_01_00/expand_conv/kernel"


def specs_of(variant: str = "tiny-moat0", pos_emb: bool = True, twins: bool = False) -> dict[str, TensorSpec]:
    shapes = variable_shapes(variant, pos_emb)
    if twins:
        shapes |= {n + AVERAGE: s for n, s in shapes.items() if "/moving_" not in n}
    return {name: TensorSpec(name, FLOAT, shape) for name, shape in shapes.items()}


def without(specs, *parts: str):
    return {name: spec for name, spec in specs.items() if not any(part in name for part in parts)}


def extra(specs, name: str, shape=(4,), dtype: str = "float32"):
    return specs | {name: TensorSpec(name, DTYPES[dtype], shape)}


def entry(**fields):
    return entry_of("https://a.org/m.tar.gz", **fields)


@pytest.mark.parametrize(
    ("specs", "arguments", "detail"),
    [
        (specs_of(), {}, "all 361 tensors of tiny-moat0 with position embedding, layout deeplab2"),
        (specs_of(pos_emb=False), {}, "all 352 tensors of tiny-moat0 without position embedding"),
        (specs_of(pos_emb=False), {"entry": entry(pos_emb=False)}, "all 352 tensors"),
        (specs_of("moat0"), {"variant": "moat0", "entry": entry(variant="moat1")}, "of moat0"),
        (
            without(specs_of(), "final_layer_norm", "logits_head"),
            {},
            "without a head, good for features only",
        ),
        (
            extra(
                without(specs_of(), "final_layer_norm", "logits_head"), "PanopticDeepLab/semantic_head/kernel"
            ),
            {},
            ", the backbone of a segmentor, layout deeplab2; left out by rule: PanopticDeepLab 1",
        ),
        (without(specs_of(), "/moving_"), {}, "all 275 tensors of tiny-moat0 with position embedding"),
        (without(specs_of(), "/moving_"), {}, "(BatchNorm statistics apart)"),
        (extra(specs_of(), "global_step", (), "int64"), {}, "left out by rule: global_step 1"),
        (specs_of(twins=True), {}, "ema weights taken; left out by rule: raw weights 275"),
        (
            specs_of(twins=True),
            {"weights": "raw"},
            "raw weights taken; left out by rule: moving averages 275",
        ),
        (specs_of(twins=True), {"entry": entry(weights="raw")}, "raw weights taken"),
    ],
)
def test_what_fits(specs, arguments, detail):
    check = fit(specs, **arguments).check
    assert check.status == "ok", check
    assert detail in check.detail


@pytest.mark.parametrize(
    ("specs", "arguments", "items"),
    [
        (without(specs_of(), EXPAND), {}, {f"missing: {EXPAND}"}),
        (
            without(specs_of(), EXPAND),
            {"known": FileFacts(unread={EXPAND: "torn"})},
            {f"cannot be read: {EXPAND}: torn"},
        ),
        (extra(specs_of(), "moat/extra", (2, 3)), {}, {"unexpected: moat/extra [2, 3]"}),
        (
            specs_of() | {EXPAND: TensorSpec(EXPAND, FLOAT, (1, 1, 256, 32))},
            {},
            {f"wrong shape: {EXPAND} is [1, 1, 256, 32] instead of [1, 1, 32, 256]"},
        ),
        (
            specs_of() | {EXPAND: TensorSpec(EXPAND, DTYPES["int8"], (1, 1, 32, 256))},
            {},
            {f"wrong type: {EXPAND} is int8"},
        ),
        (
            specs_of(pos_emb=False),
            {"entry": entry(pos_emb=True)},
            {n for n in map("missing: {}".format, specs_of()) if n.endswith("relative_position_embedding")},
        ),
        (
            specs_of(),
            {"entry": entry(pos_emb=False)},
            {
                f"unexpected: {s.name} {list(s.shape)}"
                for s in specs_of().values()
                if s.name.endswith("relative_position_embedding")
            },
        ),
        (without(specs_of(), "logits_head/bias"), {}, {"missing: moat/logits_head/bias"}),
    ],
)
def test_every_offender_is_listed(specs, arguments, items):
    check = fit(specs, **arguments).check
    assert check.status == "failed"
    assert set(check.items) == items


def test_faults_of_all_kinds_are_listed_at_once():
    specs = extra(without(specs_of(), EXPAND, "logits_head/bias"), "moat/extra")
    check = fit(specs).check
    assert set(check.items) == {
        f"missing: {EXPAND}",
        "missing: moat/logits_head/bias",
        "unexpected: moat/extra [4]",
    }
    assert check.detail.startswith("2 missing, 1 unexpected, for tiny-moat0")


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (
            {"entry": entry(variant="moat1")},
            "failed",
            "unlike moat1; they look like tiny-moat0 (layout deeplab2)",
        ),
        ({"variant": "moat2"}, "failed", "unlike moat2; they look like tiny-moat0"),
        ({"entry": entry(family="moganet", variant="moganet-xt")}, "failed", "they look like tiny-moat0"),
    ],
)
def test_another_variants_file_is_recognised_as_what_it_is(arguments, status, says):
    found = fit(specs_of(), **arguments)
    assert (found.check.status, found.match) == (status, None)
    assert says in found.check.detail


def test_a_deeper_variant_of_the_same_width_is_told_apart():
    """moat0 is moat1 with fewer blocks: half of the tensors fit all the same."""
    check = fit(specs_of("moat1"), entry=entry(variant="moat0")).check
    assert check.status == "failed"
    assert "it looks like moat1" in check.detail
    assert all(item.startswith("unexpected: moat/block_") for item in check.items)


STRANGE = {"encoder.weight": TensorSpec("encoder.weight", FLOAT, (3, 3))}


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ({}, "skipped", "1 tensor (encoder.weight) of no architecture known here"),
        ({"entry": entry(family="spacenet", variant="x")}, "skipped", "no model code for family spacenet"),
        ({"entry": entry(variant="moat0")}, "failed", "unlike moat0"),
        ({"variant": "moat0"}, "failed", "unlike moat0"),
    ],
)
def test_an_unknown_architecture_is_never_called_ok(arguments, status, says):
    found = fit(STRANGE, **arguments)
    assert (found.check.status, found.match) == (status, None)
    assert says in found.check.detail


def test_averages_of_some_parameters_only_are_a_fault():
    specs = without(specs_of(twins=True), EXPAND + AVERAGE)
    found = fit(specs)
    assert found.check.status == "failed"
    assert "1 parameters have no moving average" in found.check.detail
    assert found.match.weights == "raw"


def test_usage_and_lookup_errors_stay_errors():
    with pytest.raises(UsageError, match="no moving averages"):
        fit(specs_of(), weights="ema")
    with pytest.raises(NotFoundError, match="no variant 'moat9'"):
        fit(specs_of(), variant="moat9")


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_roles_cover_both_copies_whichever_is_chosen(weights):
    specs = specs_of(twins=True)
    roles = fit(specs, weights=weights).roles(specs)
    assert set(roles) == set(specs)
    assert roles[EXPAND] is roles[EXPAND + AVERAGE]


FIRST = {"url": "https://a.org/with.tar.gz", "bn_statistics": False}
SECOND = {"url": "https://a.org/w.tar.gz", "bn_statistics": True}


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        ([FIRST, SECOND], "https://a.org/w.tar.gz has them: ckptkit fetch test-entry --force"),
        ([FIRST], "the registry knows no source that has them"),
        (None, "MOAT's first uploads (2022-10) lack them"),
    ],
)
def test_absent_statistics_say_where_they_are(sources, says):
    specs = without(specs_of(), "/moving_")
    check = check_batch_norm(fit(specs).match, {}, entry_of(*sources) if sources else None)
    assert check.status == "failed"
    assert check.detail.startswith("none of 86 in this file: predictions would be meaningless")
    assert says in check.detail
    assert len(check.items) == 86


def test_some_absent_statistics_are_listed():
    specs = without(specs_of(), "block_00_01/pre_norm/moving_")
    check = check_batch_norm(fit(specs).match, {}, None)
    assert check.status == "failed"
    assert check.items == (
        "missing: moat/block_00_01/pre_norm/moving_mean",
        "missing: moat/block_00_01/pre_norm/moving_variance",
    )


def initial(name: str) -> ValueRange:
    return ValueRange(1.0, 1.0) if name.endswith("variance") else ValueRange(0.0, 0.0, not_positive=1)


@pytest.mark.parametrize(
    ("moved", "status"),
    [(None, "failed"), ("moat/stem/norm_0/moving_mean", "ok"), ("moat/stem/norm_0/moving_variance", "ok")],
)
def test_statistics_that_never_moved_are_as_bad_as_none(moved, status):
    specs = specs_of()
    ranges = {name: initial(name) for name in specs if "/moving_" in name}
    if moved:
        ranges[moved] = ValueRange(0.5, 0.9)
    assert check_batch_norm(fit(specs).match, ranges, None).status == status


def test_statistics_of_an_unknown_architecture_are_not_judged():
    assert check_batch_norm(None, {}, None).status == "skipped"
