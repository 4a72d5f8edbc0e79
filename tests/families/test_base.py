"""A file is recognised by its names and shapes, whole or damaged."""

from __future__ import annotations

import pytest

from ckptkit.base.errors import ConversionError, NotFoundError
from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.families.base import Structure, family_of_variant, get_family
from ckptkit.families.recognition import recognise, require_recognition

MOAT = get_family("moat")


def specs_of(layout, variant, structure=Structure()):  # noqa: B008 - frozen
    table = MOAT.table(layout, variant, structure)
    return {b.external: TensorSpec(b.external, DTYPES["float32"], b.external_shape) for b in table.bindings}


@pytest.mark.parametrize(
    "structure", [Structure(), Structure(False), Structure(True, 10), Structure(False, None)], ids=str
)
@pytest.mark.parametrize("layout", MOAT.layouts)
@pytest.mark.parametrize("variant", MOAT.variants)
def test_every_variant_in_every_layout_is_told_apart(variant, layout, structure):
    found = recognise(specs_of(layout, variant, structure))
    assert (found.family, found.variant, found.layout, found.structure) == (MOAT, variant, layout, structure)


@pytest.mark.parametrize(
    "lost", ["moat/stem/conv_0/kernel", "moat/block_00_00/expand_conv/kernel", "moat/logits_head/kernel"]
)
def test_a_missing_tensor_does_not_hide_the_variant(lost):
    specs = specs_of("deeplab2", "moat1")
    del specs[lost]
    assert recognise(specs).variant == "moat1"


def test_tf2_stem_names_and_training_leftovers_are_no_hindrance():
    specs = {
        name.replace("moat/stem/", ""): spec for name, spec in specs_of("deeplab2", "tiny-moat2").items()
    }
    specs["global_step"] = TensorSpec("global_step", DTYPES["int64"], ())
    assert recognise(specs).variant == "tiny-moat2"


def test_a_stranger_is_not_recognised():
    strangers = {
        f"layer{n}.weight": TensorSpec(f"layer{n}.weight", DTYPES["float32"], (8, 8)) for n in range(50)
    }
    assert recognise(strangers) is None
    assert recognise({}) is None
    with pytest.raises(ConversionError, match=r"net\.pth: 50 tensors \(layer0\.weight"):
        require_recognition("net.pth", strangers)


def test_asking_for_a_variant_considers_no_other():
    specs = specs_of("deeplab2", "moat1")
    assert recognise(specs, variant="moat0").variant == "moat0"  # its tensors are all there
    with pytest.raises(ConversionError, match="unlike tiny-moat0"):
        require_recognition("x", specs, variant="tiny-moat0")
    with pytest.raises(NotFoundError, match="unknown variant 'moat9'"):
        require_recognition("x", specs, variant="moat9")


def test_unknown_names_list_what_there_is():
    with pytest.raises(NotFoundError, match="choose from moat"):
        get_family("resnet")
    with pytest.raises(NotFoundError, match="tiny-moat3"):
        family_of_variant("resnet50")
    with pytest.raises(NotFoundError, match="unknown moat layout 'onnx'"):
        MOAT.table("onnx", "moat0", Structure())
