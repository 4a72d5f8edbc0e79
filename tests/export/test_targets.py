"""The table of targets."""

from __future__ import annotations

import importlib

import pytest

from ckptkit.base.errors import UsageError
from ckptkit.export.targets import TARGETS, ExportRequest, get_target


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_has_a_module_with_both_functions(name):
    target = get_target(name)
    module = importlib.import_module(target.module)
    assert callable(getattr(module, f"require_{name.replace('-', '_')}"))
    assert callable(getattr(module, f"export_{name.replace('-', '_')}"))
    assert target.name == name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hf", ExportRequest(opset=18), "--opset does not apply to --to hf"),
        ("hf", ExportRequest(features=True), "--features does not apply to --to hf"),
        ("backbone", ExportRequest(features=True), "--features does not apply to --to backbone"),
        ("onnx", ExportRequest(dtype="float16"), "--dtype does not apply to --to onnx"),
        ("saved-model", ExportRequest(opset=18), "--opset does not apply to --to saved-model"),
        ("keras", ExportRequest(dtype="float16"), "--dtype does not apply to --to keras"),
    ],
)
def test_options_of_other_targets_are_refused(name, options, message):
    with pytest.raises(UsageError, match=message):
        get_target(name).require(options)


def test_a_target_that_does_not_exist():
    with pytest.raises(UsageError, match="unknown export target 'coreml'; choose from hf, "):
        get_target("coreml")


@pytest.mark.parametrize(
    ("to", "output", "name"),
    [
        (None, "m.onnx", "onnx"),
        (None, "new/M.ONNX", "onnx"),
        ("onnx", "m.onnx", "onnx"),
        ("onnx", "there/", "onnx"),
        ("onnx", None, "onnx"),
        ("HuggingFace", "moat.v2", "hf"),
        ("saved_model", "m", "saved-model"),
        ("backbone", "m/", "backbone"),
        (None, "M.keras", "keras"),
        ("keras", "m.keras", "keras"),
        ("keras", "folder", "keras"),
    ],
    ids=str,
)
def test_the_target_is_named_or_said_by_the_ending(to, output, name):
    assert get_target(to, output).name == name


@pytest.mark.parametrize(
    ("to", "output", "says"),
    [
        ("onnx", "sub/x.pth", "not the name of a file that --to onnx writes; give -o sub/x.onnx"),
        ("onnx", "x", "give -o x.onnx"),
        ("hf", "x.onnx", "--to hf writes a folder; give -o x, or --to onnx"),
        ("backbone", "x.pth", "--to backbone writes a folder; give -o x"),
        ("saved-model", "x.keras", "writes a folder; give -o x"),
        ("keras", "x.h5", "not the name of a file that --to keras writes; give -o x.keras"),
        ("keras", "-", "--to keras writes a file, which standard output cannot take; give -o FILE.keras"),
        (None, None, "no export target given; choose --to hf, onnx, saved-model, keras, backbone"),
        (None, "x.pb", "no export target given"),
    ],
    ids=str,
)
def test_names_that_say_something_else(to, output, says):
    with pytest.raises(UsageError, match=says):
        get_target(to, output)


@pytest.mark.parametrize(
    ("to", "output", "push", "folder"),
    [
        ("keras", "m.keras", None, False),
        (None, "m.KERAS", None, False),
        ("keras", "m", None, True),
        ("keras", "m/", None, True),
        ("keras", None, None, False),
        ("keras", None, "me/moat", True),
        ("hf", None, None, True),
        ("onnx", "m/", None, False),
    ],
    ids=str,
)
def test_what_is_a_folder(to, output, push, folder):
    assert ExportRequest(to=to, output=output, push=push).writes_folder is folder


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (ExportRequest(to="onnx", push="me/moat"), "--push requires --to hf or keras"),
        (ExportRequest(to="keras", output="m.keras", push="me/moat"), "m.keras is the name of a file"),
    ],
    ids=["onnx", "file"],
)
def test_what_cannot_be_pushed(request_, says):
    with pytest.raises(UsageError, match=says):
        request_.require(offline=False, synthetic=False)
