"""The table of targets."""

from __future__ import annotations

import importlib

import pytest

from ckptkit.errors import UsageError
from ckptkit.export.targets import TARGETS, ExportOptions, get_target


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_has_a_module_with_both_functions(name):
    target = get_target(name)
    module = importlib.import_module(target.module)
    assert callable(module.require)
    assert callable(module.export)
    assert target.name == name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hf", ExportOptions(opset=18), "--opset means nothing to --to hf"),
        ("hf", ExportOptions(features=True), "--features means nothing to --to hf"),
        ("backbone", ExportOptions(features=True), "--features means nothing to --to backbone"),
        ("onnx", ExportOptions(dtype="float16"), "--dtype means nothing to --to onnx"),
        ("saved-model", ExportOptions(opset=18), "--opset means nothing to --to saved-model"),
    ],
)
def test_options_of_other_targets_are_refused(name, options, message):
    with pytest.raises(UsageError, match=message):
        get_target(name).require(options)


def test_a_target_that_does_not_exist():
    with pytest.raises(UsageError, match="no export to 'coreml'; one of hf, "):
        get_target("coreml")
