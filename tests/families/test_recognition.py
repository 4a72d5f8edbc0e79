"""What a model is called in files: recognised by names and shapes, without what wrappers put into names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.base.errors import ConversionError, NotFoundError
from ckptkit.base.tensors import DTYPES, TensorSpec
from ckptkit.families.base import Structure, family_of_variant, get_family
from ckptkit.families.binding import match
from ckptkit.families.recognition import open_checkpoint, recognise, require_recognition
from ckptkit.formats.detect import writer_for
from tests.support.tensors import specs_of, write_all

TABLES = {
    "torch": get_family("moganet").table("torch", "moganet-xt", Structure(pos_emb=False)),
    "openmixup": get_family("moganet").table("openmixup", "moganet-xt", Structure(pos_emb=False)),
    "moat": get_family("moat").table("torch", "tiny-moat0", Structure()),
}


def hollow(path: Path, specs: Mapping[str, TensorSpec]) -> Path:
    """A safetensors file of the right size without bytes on the disk: only names and shapes count."""
    header, end = {}, 0
    for name, spec in specs.items():
        header[name] = {
            "dtype": spec.dtype.safetensors,
            "shape": spec.shape,
            "data_offsets": [end, end + spec.nbytes],
        }
        end += spec.nbytes
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)
    return path


def specs(table: str, prefix: str = "", **others: tuple[int, ...]) -> dict[str, TensorSpec]:
    named = {prefix + row.external: row.external_shape for row in TABLES[table].bindings}
    return {name: TensorSpec(name, DTYPES["float32"], shape) for name, shape in (named | others).items()}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "model.",
        "net.",
        "network.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model._orig_mod.",
        "model.module.",
        "classifier.net._orig_mod.module.",
        "_forward_module.model.",
        "anything.at.all.",
    ],
)
def test_prefixes_before_a_known_model_are_taken_off(tmp_path: Path, table: str, prefix: str) -> None:
    path = hollow(tmp_path / "m.safetensors", specs(table, prefix))
    with open_checkpoint(path) as reader:
        assert list(reader.specs) == list(specs(table))
        assert all(reader.specs[name].name == name for name in reader.specs)
        (note,) = reader.notes
        assert all(f"'{part}.'" in note for part in prefix.split(".")[:-1])
    with open_checkpoint(path, unwrap=False) as reader:
        assert list(reader.specs) == list(specs(table, prefix))


@pytest.mark.parametrize(
    "part", ["_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"]
)
def test_wrappers_around_a_part_of_a_known_model(tmp_path: Path, part: str) -> None:
    """torch.compile of one block, activation checkpointing, FSDP: the wrapper stands in the middle."""
    wanted = specs("torch")
    wrapped = {name.replace("blocks1.0.", f"blocks1.0.{part}."): spec for name, spec in wanted.items()}
    with open_checkpoint(hollow(tmp_path / "m.safetensors", wrapped)) as reader:
        assert list(reader.specs) == list(wanted)


@pytest.mark.parametrize("counter", ["n_averaged", "steps"])
@pytest.mark.parametrize("prefix", ["module.", "module.model.", "_orig_mod.module."])
def test_averaged_models_have_a_counter_beside(tmp_path: Path, counter: str, prefix: str) -> None:
    path = hollow(tmp_path / "m.safetensors", specs("torch", prefix, **{counter: ()}))
    with open_checkpoint(path) as reader:
        assert set(reader.specs) == {*specs("torch"), counter}


def test_what_stands_beside_a_wrapped_model_keeps_its_name(tmp_path: Path) -> None:
    path = hollow(tmp_path / "m.safetensors", specs("torch", "model.", **{"criterion.weight": (3,)}))
    with open_checkpoint(path) as reader:
        assert set(reader.specs) == {*specs("torch"), "criterion.weight"}
        assert "'model.', but for 1 without such a prefix" in reader.notes[0]


LEFT_ALONE: dict[str, dict[str, TensorSpec]] = {
    "a known model": specs("torch"),
    "its prefix is the layout's": {
        name: spec for name, spec in specs("openmixup").items() if name.startswith("backbone.")
    },
    "an unknown model": {f"model.{n}.weight": TensorSpec("", DTYPES["float32"], (2,)) for n in "abc"},
    "two copies that would meet": specs("torch") | specs("torch", "module."),
    "a student and a teacher": specs("torch", "student.") | specs("torch", "teacher."),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_names_that_are_left_alone(tmp_path: Path, case: str) -> None:
    held = LEFT_ALONE[case]
    with open_checkpoint(hollow(tmp_path / "m.safetensors", held)) as reader:
        assert (list(reader.specs), list(reader.notes)) == (list(held), [])


# -- by hand -------------------------------------------------------------------------------------------------
FORMATS = ("safetensors", "torch", "npz", "tf")
ARRAYS = {"a.b.weight": np.arange(6, dtype="float32").reshape(2, 3), "a.c.bias": np.ones(2, "int64")}


def written(folder: Path, format: str, held: Mapping[str, Any]) -> Path:
    path = folder / "m"
    write_all(writer_for(format)(path, specs_of(held), {}), held)
    return path


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("prefixes", "names"),
    [
        (["a."], ["b.weight", "c.bias"]),
        (["a"], ["b.weight", "c.bias"]),
        ([""], ["a.b.weight", "a.c.bias"]),
        ([], ["a.b.weight", "a.c.bias"]),
    ],
)
def test_a_prefix_is_taken_off_any_model_in_any_format(
    tmp_path: Path, format: str, prefixes: list[str], names: list[str]
) -> None:
    path = written(tmp_path, format, ARRAYS)
    with open_checkpoint(path, strip_prefix=prefixes) as reader:
        assert set(reader.specs) == set(names)
        for name, array in zip(names, ARRAYS.values(), strict=True):
            assert reader.read(name).tobytes() == array.tobytes()
            raw = reader.raw(name)
            assert raw is None or bytes(raw.data) == array.tobytes()
            del raw
            reader.check(name)
            reader.release(name)
        with pytest.raises(NotFoundError, match="no tensor 'x'"):
            reader.read("x")


def test_prefixes_go_one_after_the_other(tmp_path: Path) -> None:
    path = written(tmp_path, "safetensors", {"x.y.w": np.ones(1), "x.y.z.w": np.zeros(1)})
    with open_checkpoint(path, strip_prefix=["x.", "y."]) as reader:
        assert {name: reader.read(name)[0] for name in reader.specs} == {"w": 1, "z.w": 0}


@pytest.mark.parametrize("prefixes", [["module."], ["module.net."], ["net."], ["module.", "net."], ["net"]])
def test_module_is_taken_off_pytorch_files_with_or_without_being_said(
    tmp_path: Path, prefixes: list[str]
) -> None:
    """``inspect`` does not show ``module.``, so what is read there must work when typed."""
    path = written(tmp_path, "torch", {"module.net.a": np.ones(1), "module.net.b": np.ones(1)})
    with open_checkpoint(path, strip_prefix=prefixes) as reader:
        assert list(reader.specs) == (["net.a", "net.b"] if prefixes == ["module."] else ["a", "b"])


def test_names_without_the_prefix_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, "safetensors", {f"{'a' if n else 'b'}.w{n}": np.ones(1) for n in range(6)})
    with pytest.raises(ConversionError) as caught:
        open_checkpoint(path, strip_prefix=["a."])
    assert caught.value.message == f"{path}: 1 name does not begin with 'a.', of 6 (b.w0)"
    with open_checkpoint(path, strip_prefix=["a."], where_it_fits=True) as reader:
        assert len(reader.specs) == 6


def test_counters_of_averaging_need_no_prefix(tmp_path: Path) -> None:
    held = {"n_averaged": np.array(3), "module.w": np.ones(2)}
    with open_checkpoint(written(tmp_path, "torch", held), strip_prefix=["module."]) as reader:
        assert list(reader.specs) == ["n_averaged", "w"]


def test_shared_tensors_are_told_by_their_new_names(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    weight = torch.arange(4.0)
    torch.save({"a.x": weight, "a.y": weight, "a.z": weight[1:]}, tmp_path / "m.pth")
    with open_checkpoint(tmp_path / "m.pth", strip_prefix=["a."]) as reader:
        assert dict(reader.same) == {"y": "x"}
        assert sorted(reader.overlapping) == ["y", "z"]


def test_a_state_dict_that_is_not_there(tmp_path: Path) -> None:
    path = written(tmp_path, "safetensors", ARRAYS)
    with pytest.raises(
        NotFoundError, match=r"no state dict 'ema': a safetensors file holds one, without a name"
    ):
        open_checkpoint(path, state_dict="ema")
    with open_checkpoint(path, state_dict="ema", where_it_fits=True) as reader:
        assert set(reader.specs) == set(ARRAYS)


def test_recognition_is_what_it_would_be_without_wrappers(tmp_path: Path) -> None:
    with open_checkpoint(hollow(tmp_path / "m.safetensors", specs("moat", "model.net."))) as reader:
        found = recognise(reader.specs)
    assert found is not None
    assert (found.variant, found.layout) == ("tiny-moat0", "torch")


@pytest.mark.parametrize("prefix", ["backbone.", "model.backbone.", "module.backbone."])
def test_the_backbone_of_a_detector_of_any_family(tmp_path: Path, prefix: str) -> None:
    """MOAT has no layout of such names: the prefix is taken off, and the parts around it keep theirs."""
    outer = prefix.removesuffix("backbone.")
    named = {name: spec for name, spec in specs("moat").items() if name.split(".")[0] not in ("head", "norm")}
    whole = {prefix + name: replace(spec, name=prefix + name) for name, spec in named.items()}
    for part in ("neck.convs.0.weight", "decode_head.conv_seg.bias"):
        whole[outer + part] = TensorSpec(outer + part, DTYPES["float32"], (3,))
    with open_checkpoint(hollow(tmp_path / "seg.safetensors", whole)) as reader:
        recognition = recognise(reader.specs)
        assert (recognition.variant, recognition.layout) == ("tiny-moat0", "torch")
        found = match(reader.specs, recognition)
    assert (found.unexpected, found.missing, found.around) == ((), (), ("neck", "decode_head"))


MOAT = get_family("moat")


def moat_specs(layout, variant, structure=Structure()):  # noqa: B008 - frozen
    table = MOAT.table(layout, variant, structure)
    return {b.external: TensorSpec(b.external, DTYPES["float32"], b.external_shape) for b in table.bindings}


@pytest.mark.parametrize(
    "structure", [Structure(), Structure(False), Structure(True, 10), Structure(False, None)], ids=str
)
@pytest.mark.parametrize("layout", MOAT.layouts)
@pytest.mark.parametrize("variant", MOAT.variants)
def test_every_variant_in_every_layout_is_told_apart(variant, layout, structure):
    if "position" in {**MOAT.layouts[layout].lacks, **MOAT.layouts[layout].zeros}:
        structure = replace(structure, pos_emb=False)
    found = recognise(moat_specs(layout, variant, structure))
    assert (found.family, found.variant, found.layout, found.structure) == (MOAT, variant, layout, structure)


@pytest.mark.parametrize(
    "lost", ["moat/stem/conv_0/kernel", "moat/block_00_00/expand_conv/kernel", "moat/logits_head/kernel"]
)
def test_a_missing_tensor_does_not_hide_the_variant(lost):
    specs = moat_specs("deeplab2", "moat1")
    del specs[lost]
    assert recognise(specs).variant == "moat1"


def test_tf2_stem_names_and_training_leftovers_are_no_hindrance():
    specs = {
        name.replace("moat/stem/", ""): spec for name, spec in moat_specs("deeplab2", "tiny-moat2").items()
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
    specs = moat_specs("deeplab2", "moat1")
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
