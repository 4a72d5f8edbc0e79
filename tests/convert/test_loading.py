"""What of a file goes into a model, decided from names and shapes alone."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from ckptkit.base.errors import ConversionError, UsageError
from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.convert.loading import plan_load, require_complete
from ckptkit.families.base import Structure, get_family
from ckptkit.families.recognition import require_recognition
from ckptkit.formats.detect import open_reader

XT = get_family("moganet").table("torch", "moganet-xt", Structure(False, 1000))


def shapes(**changes):
    """Canonical shapes of MogaNet-XT, changed: None takes a tensor out."""
    own = {b.canonical: b.canonical_shape for b in XT.bindings if b.part != "counter"}
    own.update({name.replace("__", "."): shape for name, shape in changes.items()})
    return {name: shape for name, shape in own.items() if shape is not None}


@contextmanager
def opened(tmp_path, own):
    arrays = {name: np.full(shape, number, np.float32) for number, (name, shape) in enumerate(own.items())}
    save_file(arrays, tmp_path / "x.safetensors")
    with open_reader(tmp_path / "x.safetensors") as reader:
        yield reader, require_recognition(reader.path, reader.specs)


def test_a_whole_file_fills_a_model(tmp_path):
    own = shapes()
    with opened(tmp_path, own) as (reader, found):
        planned = plan_load(reader, found, "torch", found.structure)
        require_complete(reader, found, planned)
        state = planned.read(reader)
    assert (planned.initialised, planned.misfits, planned.has_new_head) == ((), (), False)
    assert {name: array.shape for name, array in state.items()} == own
    assert [array.flat[0] for array in state.values()] == [float(list(own).index(name)) for name in state]


def test_names_are_those_of_the_models_layout(tmp_path):
    with opened(tmp_path, shapes(norm4__bias=None)) as (reader, found):
        planned = plan_load(reader, found, "keras", found.structure)
    assert len(planned.initialised) == 1
    (expected,) = [
        b.external
        for b in get_family("moganet").table("keras", "moganet-xt", Structure(False, 1000)).bindings
        if b.canonical == "norm4.bias"
    ]
    assert planned.initialised == (expected,)
    assert [misfit.name for misfit in planned.misfits] == ["norm4.bias"]  # as the file would call it


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"norm4__bias": None}, "1 missing (norm4.bias [192])"),
        ({"extra": (2, 3)}, "1 unexpected (extra [2, 3])"),
        ({"norm4__bias": (191,)}, "1 misshaped (norm4.bias [191] instead of [192])"),
        (
            {f"blocks3.0.attn.{name}.bias": None for name in ("gate", "proj_1", "proj_2", "value.PW_conv")},
            "4 missing (blocks3.0.attn.proj_1.bias [96], blocks3.0.attn.gate.bias [96], "
            "blocks3.0.attn.value.PW_conv.bias [96], blocks3.0.attn.proj_2.bias [96])",
        ),
        ({"norm4__bias": None, "extra": (1,)}, "1 missing (norm4.bias [192]), 1 unexpected (extra [1])"),
        ({"norm4__running_var": None}, "1 missing (norm4.running_var [192])"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_every_misfit_is_named(tmp_path, changes, said):
    with opened(tmp_path, shapes(**changes)) as (reader, found):
        planned = plan_load(reader, found, "torch", found.structure)
        with pytest.raises(ConversionError) as raised:
            require_complete(reader, found, planned)
        assert len(planned.read(reader)) == len(shapes()) - len(planned.initialised)
    assert f"x.safetensors: its tensors do not fit moganet-xt: {said}; " in str(raised.value)


def test_a_file_without_statistics(tmp_path):
    own = {name: shape for name, shape in shapes(norm4__bias=None).items() if "running_" not in name}
    with opened(tmp_path, own) as (reader, found):
        planned = plan_load(reader, found, "torch", found.structure)
        assert planned.lacks_bn_statistics
        with pytest.raises(ConversionError, match="no BatchNorm moving statistics"):
            require_complete(reader, found, planned)
        with pytest.raises(ConversionError, match=r"moganet-xt: 1 missing \(norm4.bias \[192\]\);"):
            require_complete(reader, found, planned, allow_missing_bn=True)


@pytest.mark.parametrize(
    ("in_file", "in_model", "is_new", "loaded"),
    [
        (1000, 1000, False, 2),
        (1000, 10, True, 0),
        (None, 10, True, 0),
        (10, None, False, 0),
        (10, 10, False, 2),
    ],
)
def test_heads(tmp_path, in_file, in_model, is_new, loaded):
    head = {
        "head.weight": (in_file, 192) if in_file else None,
        "head.bias": (in_file,) if in_file else None,
    }
    with opened(tmp_path, shapes(**head)) as (reader, found):
        planned = plan_load(reader, found, "torch", Structure(False, in_model))
        state = planned.read(reader)
        if in_file is None:
            with pytest.raises(ConversionError, match="no classification head in this file"):
                require_complete(reader, found, planned)
        else:
            require_complete(reader, found, planned)
    assert planned.has_new_head == is_new
    assert planned.initialised == (("head.weight", "head.bias") if is_new else ())
    assert sum(name.startswith("head.") for name in state) == loaded


def test_a_variant_of_the_same_widths_is_named():
    """MOAT-0 and MOAT-1 differ in depth only, so a file of one is much like the other."""
    table = get_family("moat").table("torch", "moat1", Structure())
    specs = {
        b.canonical: TensorSpec(b.canonical, DTYPES["float32"], b.canonical_shape) for b in table.bindings
    }
    reader = SimpleNamespace(path=Path("moat1.pth"), specs=specs)
    found = require_recognition(reader.path, specs, variant="moat0")
    planned = plan_load(reader, found, "torch", found.structure)
    assert len(planned.moves) == len(get_family("moat").table("torch", "moat0", Structure()).bindings)
    with pytest.raises(
        ConversionError, match=r"moat1\.pth: unlike moat0, this is a checkpoint of moat1; give"
    ):
        require_complete(reader, found, planned)


def test_a_copy_that_is_not_there_is_refused(tmp_path):
    with opened(tmp_path, shapes()) as (reader, found), pytest.raises(UsageError, match="no moving averages"):
        plan_load(reader, found, "torch", found.structure, weights="ema")
