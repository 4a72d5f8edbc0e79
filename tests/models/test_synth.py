"""Synthetic checkpoints: the recipe's exact numbers, the same bytes every time."""

from __future__ import annotations

import hashlib
import json
import pickle
import tarfile

import numpy as np
import pytest

from ckptkit.base.errors import NotFoundError
from ckptkit.families.base import PublishedFile, get_family
from ckptkit.families.moat.published import synthetic_tensor
from ckptkit.formats.detect import open_reader
from ckptkit.formats.tf_bundle import TfBundleReader
from ckptkit.models.synth import (
    Synthetic,
    published_ending,
    synthetic_for,
    synthetic_stand_in,
    write_archive,
    write_bundle,
    write_checkpoint,
    write_file,
)
from ckptkit.registry.loading import load_registry
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


MOGANET_FILES = [
    ("moga_xtiny_openmixup.pth", Synthetic("moganet-xt"), ("state_dict",)),
    ("moga_xtiny_openmixup_ema.pth", Synthetic("moganet-xt", twins=True), ("state_dict",)),
    (
        "moganet_xtiny_timm.pth.tar",
        Synthetic("moganet-xt", twins=True, layout="torch"),
        ("state_dict", "state_dict_ema"),
    ),
]


@pytest.mark.parametrize(
    ("file", "synthetic", "state_dicts"), MOGANET_FILES, ids=[f for f, *_ in MOGANET_FILES]
)
def test_moganet_files_hold_the_bytes_of_those_the_published_code_wrote(
    tmp_path, shared_folder, file, synthetic, state_dicts
):
    write_file(synthetic, tmp_path / file)
    for state_dict in state_dicts:
        with (
            open_reader(shared_folder / "checkpoints" / file, state_dict=state_dict) as published,
            open_reader(tmp_path / file, state_dict=state_dict) as ours,
        ):
            assert dict(published.specs) == dict(ours.specs)
            for name in ours.specs:
                assert published.read(name).tobytes() == ours.read(name).tobytes(), name


def test_moganet_files_open_with_torch_as_their_kind_does(tmp_path):
    torch = pytest.importorskip("torch")
    write_file(Synthetic("moganet-xt"), tmp_path / "o.pth")
    opened = torch.load(tmp_path / "o.pth", weights_only=True, mmap=True)
    assert set(opened) == {"meta", "state_dict"}
    assert opened["state_dict"]["backbone.norm1.num_batches_tracked"].item() == 1000
    write_file(Synthetic("moganet-xt", layout="torch"), tmp_path / "t.pth.tar")
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(tmp_path / "t.pth.tar", weights_only=True)
    opened = torch.load(tmp_path / "t.pth.tar", weights_only=False)
    assert opened["args"].model == opened["arch"] == "moganet_xt"


def test_an_entry_gets_the_layout_it_is_published_in():
    registry = load_registry()
    chosen = {
        "tiny-moat0-256-noposemb": ("deeplab2", ".tar.gz"),
        "moganet-xt-224": ("openmixup", ".pth"),
        "moganet-s-224-timm": ("torch", ".pth.tar"),
    }
    for id, (layout, ending) in chosen.items():
        synthetic = synthetic_for(registry[id])
        assert (synthetic.table.layout.name, published_ending(synthetic)) == (layout, ending)
        assert registry[id].file_name.endswith(ending)


def test_a_name_stands_for_a_variant_or_an_entry():
    registry = load_registry()
    assert synthetic_stand_in("tiny-moat1", registry) == (None, Synthetic("tiny-moat1"))
    entry, chosen = synthetic_stand_in("moat2-384-noposemb", registry)
    assert (entry.id, chosen) == (
        "moat2-384-noposemb",
        Synthetic("moat2", pos_emb=False, layout="deeplab2"),
    )
    with pytest.raises(NotFoundError, match="moat2-384"):
        synthetic_stand_in("moat2-383", registry)


def test_a_layout_may_be_published_in_any_format_of_one_file(tmp_path, monkeypatch):
    monkeypatch.setitem(
        get_family("moganet").published_files, "torch", PublishedFile("safetensors", ".safetensors")
    )
    synthetic = Synthetic("moganet-xt", layout="torch")
    path = write_checkpoint(synthetic, tmp_path / f"m{published_ending(synthetic)}")
    with open_reader(path) as reader:
        assert reader.format == "safetensors"
        for tensor in synthetic.tensors():
            np.testing.assert_array_equal(reader.read(tensor.spec.name), tensor.make())
