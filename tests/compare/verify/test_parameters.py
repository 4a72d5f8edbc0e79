"""Parameter counts against exact and published figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.compare.verify.parameters import check_parameters, rounds_to
from ckptkit.families.base import recognise
from ckptkit.families.binding import match
from ckptkit.registry import load_registry
from tests.support.entries import entry_of
from tests.support.moat_reference import parameter_count, variable_shapes


@pytest.mark.parametrize(
    ("count", "figure", "rounds"),
    [
        (27_846_892, "27.8M", True),
        (27_750_000, "27.8M", True),
        (27_749_999, "27.8M", False),
        (27_850_000, "27.8M", True),
        (27_850_001, "27.8M", False),
        (2_956_066, "2.97M", False),
        (2_956_066, "2.96M", True),
        (190_000_000, "190.0M", True),
        (190_060_000, "190.0M", False),
        (190_060_000, "190M", True),
        (1_234, "1.2K", True),
        (2_600_000_000, "2.6B", True),
        (2_600_000_000, "2.6G", True),
        (512, "512", True),
        (513, "512", False),
    ],
)
def test_rounding_at_the_figures_own_precision(count, figure, rounds):
    assert rounds_to(count, figure) is rounds


def test_every_moat_row_of_the_registry_rounds_to_its_published_figure():
    """Recomputed from the variables of the published code, not from the registry's own exact counts."""
    for entry in load_registry().find(family="moat"):
        assert rounds_to(parameter_count(entry.variant, bool(entry.pos_emb)), entry.published_params), (
            entry.id
        )


def specs_of(variant: str, pos_emb: bool = True, *, without: str | None = None) -> dict[str, TensorSpec]:
    shapes = variable_shapes(variant, pos_emb)
    return {
        name: TensorSpec(name, DTYPES["float32"], shape)
        for name, shape in shapes.items()
        if without is None or without not in name
    }


def counted(specs, **fields):
    found = match(specs, recognise(specs))
    return check_parameters(found, specs, entry_of("https://a.org/m.tar.gz", **fields) if fields else None)


KNOWN = [{"figure": "params", "published": "3.5M", "reason": "a slip"}]


@pytest.mark.parametrize("pos_emb", [True, False])
@pytest.mark.parametrize("variant", ["tiny-moat0", "tiny-moat3", "moat0", "moat4"])
def test_count_of_whole_variants(variant, pos_emb):
    exact = parameter_count(variant, pos_emb)
    check = counted(
        specs_of(variant, pos_emb), exact_parameters=exact, published_params=f"{exact / 1e6:.1f}M"
    )
    assert check.status == "ok"
    assert f"{exact:,} trainable parameters" in check.detail


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        (
            {"exact_parameters": 3_355_349},
            "failed",
            "3,355,348 parameters, but the published code has 3,355,349",
        ),
        ({"published_params": "3.5M"}, "failed", "3,355,348 parameters do not round to the published 3.5M"),
        ({"exact_parameters": 3_355_348, "published_params": "3.5M"}, "failed", "do not round"),
        (
            {"exact_parameters": 3_355_348, "published_params": "3.5M", "known_deviations": KNOWN},
            "ok",
            "published as 3.5M, which it does not round to (known deviation: a slip)",
        ),
        ({"published_params": "3.5M", "known_deviations": KNOWN}, "failed", "do not round"),
        (
            {"exact_parameters": 3_355_348, "published_params": "3.5M", "note": "a note excuses nothing"},
            "failed",
            "do not round",
        ),
        ({"published_params": "3.36M"}, "ok", "no exact count in the registry; published as 3.36M"),
        ({"exact_parameters": 3_355_348}, "ok", "as the published code has"),
    ],
)
def test_the_entry_is_the_measure(fields, status, says):
    check = counted(specs_of("tiny-moat0"), **fields)
    assert check.status == status
    assert says in check.detail


def test_without_an_entry_the_architecture_is_the_measure():
    specs = specs_of("tiny-moat0")
    assert counted(specs).status == "ok"
    kernel = "moat/block_01_00/expand_conv/kernel"
    specs[kernel] = replace(specs[kernel], shape=(1, 1, 32, 257))
    check = counted(specs)
    assert check.status == "failed"
    assert check.detail == "3,355,380 trainable parameters, but tiny-moat0 has 3,355,348"


def test_a_file_without_head_is_counted_with_the_head_it_lacks():
    """The head: a norm of 2 × 256 and 256 × 1000 weights with 1000 biases."""
    specs = {
        k: v for k, v in specs_of("tiny-moat0").items() if "final_layer_norm" not in k and "head" not in k
    }
    check = counted(specs, exact_parameters=3_355_348, published_params="3.4M")
    assert check.status == "ok"
    assert "3,097,836 trainable parameters and 257,512 of the head that this file lacks" in check.detail
