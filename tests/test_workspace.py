"""A name is an entry or a path; what is not here is fetched or named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from ckptkit.base.errors import ConversionError, FormatError, NetworkError, NotFoundError
from ckptkit.demo import demo_workspace, serve_synthetic
from ckptkit.models.synth import Synthetic, write_bundle
from ckptkit.models.synth import write_checkpoint as write_synthetic
from ckptkit.workspace import Workspace, fits
from tests.support.entries import ANY_MODEL, a_checkpoint, entry_of, random_bytes
from tests.support.moat_files import Tensors, flip_byte, write_tiny
from tests.support.registries import published
from tests.support.tf_files import write_checkpoint
from tests.support.torch_files import STORAGE, TENSOR, table, whole, write_zip


@pytest.fixture
def workspace():
    return Workspace(offline=True, note=lambda _: None, warn=lambda _: None)


@pytest.fixture
def served(tmp_path, workspace):
    """A workspace whose tiny-moat0-256-noposemb is really served, and its entry."""
    entry = workspace.registry["tiny-moat0-256-noposemb"]
    with serve_synthetic(entry, tmp_path / "served") as server:
        yield demo_workspace(tmp_path, server, workspace), entry


@pytest.mark.parametrize("what", ["missing/model.ckpt", "missing.safetensors", "missing.tar.gz"])
def test_a_path_that_is_not_there(workspace, what):
    with pytest.raises(NotFoundError, match="no such file"):
        workspace.locate(what)


def test_a_wrong_id_gets_the_nearest_ones(workspace):
    with pytest.raises(NotFoundError, match="moat2-384"):
        workspace.locate("moat2-348")


def test_a_prefix_a_folder_and_a_file_are_paths(workspace, tmp_path):
    write_bundle(Synthetic("tiny-moat0"), tmp_path / "model.ckpt")
    for path in (tmp_path / "model.ckpt", tmp_path / "model.ckpt.index", tmp_path):
        located = workspace.locate(str(path))
        assert (located.path, located.entry) == (path, None)


def test_an_id_wins_over_a_file_of_that_name_in_this_folder(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moat0-224").write_bytes(b"x")
    assert not workspace.is_path("moat0-224")
    assert workspace.is_path("./moat0-224")


def test_offline_an_entry_that_is_not_here_is_a_network_error(workspace):
    with pytest.raises(NetworkError, match="moat0-224"):
        workspace.locate("moat0-224")


def test_without_fetching_an_entry_that_is_not_here_says_how_to_get_it(workspace):
    with pytest.raises(NotFoundError, match="ckptkit fetch moat0-224"):
        workspace.locate("moat0-224", fetch=False)


def test_fetched_entries_are_found_by_id_and_by_their_path_in_the_cache(served):
    workspace, entry = served
    located = workspace.locate(entry.id)
    assert (located.entry, located.name) == (entry, entry.id)
    assert located.artefact.name == "tiny_moat0_imagenet_1k_256_wo_position_embedding.tar.gz"
    again = replace(workspace, offline=True)
    assert again.locate(entry.id).path == located.path
    assert again.locate(located.path).entry == entry
    assert again.locate(located.path).sha256 == located.sha256
    assert [found.name for found in again.fetched()] == [entry.id]


def test_nothing_fetched_is_an_empty_list(workspace):
    assert workspace.fetched() == []


def test_a_path_in_the_cache_is_used_when_it_is_worked_on_and_not_when_it_is_verified(served):
    workspace, entry = served
    path = workspace.locate(entry.id).path
    stamp = workspace.home.path / "used" / entry.id
    for fetch in (False, True):
        stamp.unlink(missing_ok=True)
        assert workspace.locate(path, fetch=fetch).entry == entry
        assert stamp.exists() is fetch


def without(*parts: str) -> Callable[[Tensors], None]:
    def plant(tensors: Tensors) -> None:
        names = [name for name in tensors if any(part in name for part in parts)]
        assert names
        for name in names:
            del tensors[name]

    return plant


def of_ten_classes(tensors: Tensors) -> None:
    changed = [name for name, array in tensors.items() if array.shape and array.shape[-1] == 1000]
    assert len(changed) == 2
    for name in changed:
        tensors[name] = tensors[name][..., :10]


def of_another_shape(tensors: Tensors) -> None:
    name = next(name for name, array in tensors.items() if "stem" in name and array.ndim == 1)
    tensors[name] = tensors[name][:-1]


def with_a_detector(tensors: Tensors) -> None:
    tensors["neck/kernel"] = tensors["rpn_head/kernel"] = np.ones((3, 3, 4, 4), np.float32)


FITTING: dict[str, tuple[Callable[[Tensors], object] | None, bool | str]] = {
    "sound": (None, True),
    "further tensors": (with_a_detector, True),
    "no statistics": (without("moving_mean", "moving_variance"), False),
    "no position embedding": (without("relative_position"), "tiny-moat0 without position embedding, unlike"),
    "ten classes": (of_ten_classes, "a head of 10 classes, but tiny-moat0-256 has a head of 1,000 classes"),
    "one tensor less": (
        without("block_01_01/expand_conv/kernel"),
        "a tensor missing or of another shape",
    ),
    "another shape": (of_another_shape, "a tensor missing or of another shape"),
    "nothing of it": (
        lambda t: [t.pop(n) for n in list(t)[1:]],
        "1 tensor .*, none of tiny-moat0",
    ),
}


@pytest.mark.parametrize("case", FITTING)
def test_a_file_fits_its_entry_or_is_refused(tmp_path, case):
    plant, expected = FITTING[case]
    prefix = write_tiny(tmp_path / "m.ckpt", plant)
    entry = published()["tiny-moat0-256"]
    if isinstance(expected, bool):
        assert fits(prefix, entry, deep=False) is expected
        return
    with pytest.raises(ConversionError, match=expected):
        fits(prefix, entry, deep=False)


def test_a_file_of_another_entry_is_refused(tmp_path):
    xt = write_synthetic(Synthetic("moganet-xt"), tmp_path / "xt.pth")
    assert fits(xt, published()["moganet-xt-256"]) is True
    for id, said in {
        "moganet-t-224": "a checkpoint of moganet-xt, not of moganet-t",
        "moganet-xt-224-timm": "names of the layout openmixup, not of torch",
        "tiny-moat0-256": "a checkpoint of the format torch, not of tf",
    }.items():
        with pytest.raises(ConversionError, match=said):
            fits(xt, published()[id])
    plain = entry_of("https://a.org/m", **{**ANY_MODEL, "format": "torch"})
    assert fits(xt, plain) is None  # no model code: its container opens
    with pytest.raises(ConversionError, match="format torch, not of safetensors"):
        fits(xt, entry_of("https://a.org/m", **ANY_MODEL))


def test_names_behind_wrappers_are_those_of_the_entry(tmp_path):
    torch = pytest.importorskip("torch")
    weights = torch.load(write_synthetic(Synthetic("moganet-xt"), tmp_path / "xt.pth"), weights_only=False)
    plain = weights["state_dict"]
    wrapped = {f"model._orig_mod.{name}": tensor for name, tensor in plain.items()}
    torch.save({"state_dict": wrapped}, tmp_path / "lightning.ckpt")
    assert fits(tmp_path / "lightning.ckpt", published()["moganet-xt-256"], deep=False) is True
    other = {name: tensor + 1 for name, tensor in plain.items()}
    torch.save({"student": plain, "teacher": other}, tmp_path / "two.pth")
    assert fits(tmp_path / "two.pth", published()["moganet-xt-256"]) is None  # which one, a person says


def test_damage_inside_is_found_by_the_checksums_of_the_container(tmp_path):
    prefix = tmp_path / "m.ckpt"
    write_checkpoint(prefix, {"w": np.arange(100, dtype=np.float32)})
    tf = entry_of("https://a.org/m", **{**ANY_MODEL, "format": "tf"})
    assert fits(prefix, tf) is None
    flip_byte(tmp_path / "m.ckpt.data-00000-of-00001", 200)
    assert fits(prefix, tf, deep=False) is None
    with pytest.raises(FormatError, match="crc32c"):
        fits(prefix, tf)
    path, torch = tmp_path / "m.pth", entry_of("https://a.org/m", **{**ANY_MODEL, "format": "torch"})
    beside = random_bytes(1000)
    write_zip(path, whole(table(w=TENSOR)), {"0": STORAGE, "optimizer": beside})
    assert fits(path, torch) is None
    for inside in (STORAGE, beside):  # of a tensor, and of what nobody reads
        at = path.read_bytes().index(inside)
        flip_byte(path, at)
        with pytest.raises(FormatError, match="CRC-32"):
            fits(path, torch)
        flip_byte(path, at)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"no such file", b"\xff\xd8\xff\xe0JFIF", bytes(5000), a_checkpoint(900)[:700]]
)
def test_what_is_no_checkpoint_is_refused(tmp_path, body):
    (tmp_path / "m").write_bytes(body)
    for format in ("safetensors", "torch", "tf"):
        with pytest.raises(FormatError):
            fits(tmp_path / "m", entry_of("https://a.org/m", **{**ANY_MODEL, "format": format}))
