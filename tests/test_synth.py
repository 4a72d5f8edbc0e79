"""Synthetic checkpoints: the recipe's exact numbers, the same bytes every time."""

from __future__ import annotations

import hashlib
import json
import tarfile

import numpy as np
import pytest

from ckptkit.errors import NotFoundError, UsageError
from ckptkit.formats.tf_bundle import TfBundleReader
from ckptkit.registry import load_registry
from ckptkit.synth import (
    Synthetic,
    synthetic_for,
    synthetic_stand_in,
    synthetic_tensor,
    write_archive,
    write_bundle,
)
from tests.conftest import REPOSITORY

CHECK = json.loads((REPOSITORY / "tests/golden/moat/det_weights_check.json").read_text())


@pytest.mark.parametrize("name", CHECK)
def test_every_tensor_of_the_recipe_is_exact(name):
    tensor = synthetic_tensor(name, tuple(CHECK[name]["shape"]))
    assert tensor.dtype == np.float32
    assert tensor.ravel()[:3].tolist() == CHECK[name]["first"]
    assert float(tensor.sum(dtype=np.float64)) == CHECK[name]["sum64"]


@pytest.mark.parametrize(
    ("file", "synthetic"),
    [
        ("tiny_moat0_pe", Synthetic("tiny-moat0")),
        ("tiny_moat0_nope_ema", Synthetic("tiny-moat0", pos_emb=False, twins=True)),
    ],
)
def test_files_written_by_the_published_code_hold_the_same_bytes(tmp_path, shared_folder, file, synthetic):
    write_bundle(synthetic, tmp_path / "m")
    with (
        TfBundleReader(shared_folder / "checkpoints" / f"{file}.tar.gz") as published,
        TfBundleReader(tmp_path / "m") as ours,
    ):
        extra = published.specs.keys() - ours.specs.keys()
        assert all("AdamWeightDecay" in name or name.startswith("beta") for name in extra)
        for name, spec in ours.specs.items():
            assert published.specs[name] == spec
            if name != "global_step":
                assert published.read(name).tobytes() == ours.read(name).tobytes(), name


def test_the_archive_is_the_same_every_time_and_shaped_as_published(tmp_path):
    paths = [tmp_path / folder / "tiny.tar.gz" for folder in ("a", "b")]
    for path in paths:
        write_archive(Synthetic("tiny-moat0", pos_emb=False), path)
    one, other = (hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    assert one == other
    with tarfile.open(paths[0]) as archive:
        assert archive.getnames() == [
            f"tiny/{name}" for name in ("model.ckpt.data-00000-of-00001", "model.ckpt.index", "checkpoint")
        ]


def test_without_statistics_there_are_none(tmp_path):
    write_bundle(Synthetic("tiny-moat0", bn_statistics=False), tmp_path / "m")
    with TfBundleReader(tmp_path / "m") as reader:
        assert not [name for name in reader.specs if "moving_" in name]
        assert "moat/stem/norm_0/gamma" in reader.specs


def test_an_entry_of_a_family_without_a_recipe_is_refused():
    registry = load_registry()
    assert synthetic_for(registry["tiny-moat0-256-noposemb"]) == Synthetic("tiny-moat0", pos_emb=False)
    with pytest.raises(UsageError, match="moganet-xt-224"):
        synthetic_for(registry["moganet-xt-224"])


def test_a_name_stands_for_a_variant_or_an_entry():
    registry = load_registry()
    assert synthetic_stand_in("tiny-moat1", registry) == (None, Synthetic("tiny-moat1"))
    entry, chosen = synthetic_stand_in("moat2-384-noposemb", registry)
    assert (entry.id, chosen) == ("moat2-384-noposemb", Synthetic("moat2", pos_emb=False))
    with pytest.raises(NotFoundError, match="moat2-384"):
        synthetic_stand_in("moat2-383", registry)
