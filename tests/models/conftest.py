"""Checkpoints with synthetic weights, made once."""

from __future__ import annotations

import pytest

from ckptkit.models.synth import Synthetic, write_bundle, write_file


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    prefix = tmp_path_factory.mktemp("m") / "model.ckpt"
    write_bundle(Synthetic("tiny-moat0"), prefix)
    return prefix


@pytest.fixture(scope="module")
def moganet_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moganet")
    return {
        "openmixup": write_file(Synthetic("moganet-xt"), folder / "o.pth"),
        "timm": write_file(Synthetic("moganet-xt", layout="torch", twins=True), folder / "t.pth.tar"),
    }
