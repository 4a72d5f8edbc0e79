"""Statistics recomputed from images, and the file they are written to."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import ckptkit
from ckptkit.analysis.evaluate.calibration import CalibrationOptions, Moments, even_groups, gathered_moments
from ckptkit.base.errors import ConversionError, FormatError, NotFoundError, UsageError
from tests.support.evaluation import class_tree, order_of_classes, pictures, pixels, png, shard, small_model


def test_moments_of_parts_are_those_of_the_whole():
    random = np.random.default_rng(1)
    values = random.normal(1000, [0.01, 1, 50], size=(997, 3))  # far from zero: mean of squares would cancel
    moments = Moments()
    for part in np.split(values, [1, 2, 100, 640]):
        moments.add(len(part), part.mean(axis=0), ((part - part.mean(axis=0)) ** 2).sum(axis=0))
    assert moments.values == 997
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, values.var(axis=0), rtol=1e-9)


@pytest.mark.parametrize(("images", "size"), [(1, 4), (4, 4), (5, 4), (9, 4), (2048, 32), (33, 32)])
def test_even_groups_take_every_image_once(images: int, size: int):
    groups = even_groups(images, size)
    assert [n for group in groups for n in group] == list(range(images))
    sizes = [len(group) for group in groups]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert len(groups) == -(-images // size)


def test_layers_see_what_the_batches_own_statistics_make():
    """Two layers in a row, by hand: the second one sees the first one's output normalized batch by batch."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(2, eps=1e-3), nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([2.0, 0.5]))
        model[0].bias.copy_(torch.tensor([0.1, -3.0]))
    batches = [torch.randn(n, 2, 4, 5) * 3 + n for n in (2, 3)]
    with gathered_moments(model) as found, torch.no_grad():
        for batch in batches:
            model(batch)
    assert list(found) == ["0", "2"]

    def channels(x) -> np.ndarray:
        return np.moveaxis(x.double().numpy(), 1, -1).reshape(-1, x.shape[1])

    first = np.concatenate([channels(batch) for batch in batches])
    np.testing.assert_allclose(found["0"].mean, first.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found["0"].variance, first.var(axis=0), rtol=1e-6)
    second = []
    for batch in batches:
        values = channels(batch)
        normal = (values - values.mean(axis=0)) / np.sqrt(values.var(axis=0) + 1e-3)
        normal = normal * [2.0, 0.5] + [0.1, -3.0]
        second.append(
            normal @ model[1].weight.double().detach().numpy()[:, :, 0, 0].T + model[1].bias.tolist()
        )
    seen = np.concatenate(second)
    np.testing.assert_allclose(found["2"].mean, seen.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["2"].variance, seen.var(axis=0), rtol=1e-5)


def test_the_hooks_are_gone_afterwards():
    torch = pytest.importorskip("torch")
    model = torch.nn.BatchNorm2d(1).eval()
    with gathered_moments(model) as found:
        pass
    model(torch.ones(1, 1, 1, 1))
    assert found[""].values == 0
    assert model.running_mean.item() == 0


FIRST = {"moganet-xt": "patch_embed1.projection.1", "tiny-moat0": "stem.norm_0"}
STATISTICS = ("running_mean", "running_var")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("calibration")
    (folder / "images").mkdir()
    for number, image in enumerate(pictures(12, seed=9)):
        (folder / "images" / f"{number:02d}.png").write_bytes(png(image))
    for variant in FIRST:
        small_model(folder / f"{variant}.safetensors", variant, resolution="64")
        lacking = folder / f"{variant}-lacking.safetensors"
        small_model(lacking, variant, without="running_mean running_var", resolution="64")
    return folder


@pytest.fixture(scope="module", params=FIRST)
def calibrated(request: pytest.FixtureRequest, folder: Path) -> tuple[str, Path]:
    """A file without statistics, calibrated on all images in one batch."""
    variant = request.param
    output = folder / f"{variant}-calibrated.safetensors"
    source = folder / f"{variant}-lacking.safetensors"
    assert ckptkit.calibrate(source, folder / "images", output, batch_size=12) == output
    return variant, output


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "np") as file:
        return file.metadata()


def batch() -> np.ndarray:
    return np.concatenate([pixels(image) for image in pictures(12, seed=9)])


def test_statistics_are_those_of_what_the_layers_see(calibrated: tuple[str, Path], folder: Path):
    """In one batch, PyTorch's own training mode sees the same; its momentum of 1 keeps just that batch."""
    import torch

    variant, path = calibrated
    settings = {"attn_force_fp32": True} if variant == "moganet-xt" else {}
    model = ckptkit.create_model(
        variant, checkpoint=folder / f"{variant}.safetensors", num_classes=10, **settings
    )
    model.train()
    inputs: dict[str, np.ndarray] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(
                lambda _m, x, _y, name=name: inputs.update({name: x[0].double().numpy()})
            )
    with torch.no_grad():
        model(torch.from_numpy(batch()))
    written = load_file(path)
    layers = list(inputs)
    assert layers[0] == FIRST[variant]
    for name in (layers[0], layers[len(layers) // 2], layers[-1]):
        seen = inputs[name]
        mean, variance = written[f"{name}.running_mean"], written[f"{name}.running_var"]
        assert mean.dtype == variance.dtype == np.float32
        np.testing.assert_allclose(mean, seen.mean(axis=(0, 2, 3)), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(variance, seen.var(axis=(0, 2, 3)), rtol=1e-3, atol=1e-6)
    assert {name.rpartition(".")[0] for name in written if name.endswith(STATISTICS)} == set(layers)


def test_the_first_layer_of_several_batches_has_the_moments_of_all_images(folder: Path, tmp_path: Path):
    output = ckptkit.calibrate(
        folder / "moganet-xt-lacking.safetensors", folder / "images", tmp_path / "o.safetensors", batch_size=5
    )
    import torch

    state = load_file(folder / "moganet-xt.safetensors")
    name = "patch_embed1.projection"
    weight, bias = (torch.from_numpy(state[f"{name}.0.{what}"]) for what in ("weight", "bias"))
    seen = torch.nn.functional.conv2d(torch.from_numpy(batch()), weight, bias, stride=2, padding=1)
    written = load_file(output)
    values = seen.double().numpy()
    np.testing.assert_allclose(
        written[f"{name}.1.running_mean"], values.mean(axis=(0, 2, 3)), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(written[f"{name}.1.running_var"], values.var(axis=(0, 2, 3)), rtol=1e-5)


def test_the_calibrated_model_normalizes_its_images(calibrated: tuple[str, Path]):
    import torch

    variant, path = calibrated
    model = ckptkit.create_model(variant, checkpoint=path, num_classes=10)
    normal: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def hook(name: str):
        def after(layer, _inputs, output) -> None:
            bare = (output - layer.bias[:, None, None]) / layer.weight[:, None, None]
            values = bare.double().numpy()
            normal[name] = values.mean(axis=(0, 2, 3)), values.var(axis=(0, 2, 3))

        return after

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(hook(name))
    with torch.no_grad():
        model(torch.from_numpy(batch()))
    assert normal
    for name, (mean, variance) in normal.items():
        np.testing.assert_allclose(mean, 0, atol=1e-3, err_msg=name)
        assert variance.max() < 1.001, name
        assert np.median(variance) > 0.98, name  # eps keeps channels of little variance below 1


def test_everything_else_is_as_it_was(calibrated: tuple[str, Path], folder: Path):
    variant, path = calibrated
    before, after = load_file(folder / f"{variant}.safetensors"), load_file(path)
    assert before.keys() == after.keys()
    for name, array in before.items():
        same = np.array_equal(array, after[name])
        assert same != name.endswith(STATISTICS), name


def test_metadata_say_what_was_done(calibrated: tuple[str, Path], folder: Path):
    variant, path = calibrated
    said = metadata_of(path)
    images = sorted((folder / "images").iterdir())
    listing = "".join(f"{image.name}\0{image.stat().st_size}\n" for image in images)
    source = folder / f"{variant}-lacking.safetensors"
    assert said["bn_statistics"] == "recalibrated"
    assert said["bn_images"] == "12"
    assert said["bn_images_sha256"] == hashlib.sha256(listing.encode()).hexdigest()
    assert said["bn_method"] == "Precise BN (arXiv:2105.07576)"
    assert said["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (said["variant"], said["layout"], said["num_classes"]) == (variant, "torch", "10")


def test_verify_convert_and_eval_take_it(calibrated: tuple[str, Path], folder: Path, tmp_path: Path):
    variant, path = calibrated
    with pytest.raises(ConversionError, match="calibrate"):
        ckptkit.create_model(variant, checkpoint=folder / f"{variant}-lacking.safetensors", num_classes=10)
    report = ckptkit.verify(path)
    assert report.ok
    (check,) = [check for check in report.checks if check.name == "BatchNorm statistics"]
    assert "recalibrated from 12 images" in check.detail
    converted = ckptkit.convert(path, to="torch", output=tmp_path / "m.pth")
    again = ckptkit.convert(converted, to="safetensors", output=tmp_path / "again.safetensors")
    assert load_file(again).keys() == load_file(path).keys()
    direct = ckptkit.convert(path, to="safetensors", output=tmp_path / "direct.safetensors")
    kept = {key: value for key, value in metadata_of(path).items() if key.startswith("bn_")}
    assert len(kept) == 5
    assert {key: value for key, value in metadata_of(direct).items() if key.startswith("bn_")} == kept
    model = ckptkit.create_model(variant, checkpoint=path, num_classes=10)
    images = pictures(8, seed=3)
    data = class_tree(tmp_path / "data", images, [order_of_classes(model, image)[0] for image in images])
    assert ckptkit.evaluate(path, data).top1.hits == 8


@pytest.mark.slow
def test_parity_takes_it(calibrated: tuple[str, Path]):
    pytest.importorskip("tensorflow")
    _, path = calibrated
    assert ckptkit.parity(path, resolution=64, batch=1).ok


def test_classes_and_containers_of_the_images_do_not_matter(folder: Path, tmp_path: Path):
    model = folder / "moganet-xt-lacking.safetensors"
    flat = load_file(ckptkit.calibrate(model, folder / "images", tmp_path / "1.safetensors", workers=0))
    images = sorted((folder / "images").iterdir())
    tar = shard(tmp_path / "a.tar", {image.name: image.read_bytes() for image in images})
    shards = load_file(ckptkit.calibrate(model, tar, tmp_path / "2.safetensors"))
    for name, array in flat.items():
        np.testing.assert_array_equal(array, shards[name])


def test_a_sample_is_taken_of_many_images(folder: Path, tmp_path: Path):
    model = folder / "moganet-xt-lacking.safetensors"
    one = ckptkit.calibrate(model, folder / "images", tmp_path / "1.safetensors", images=4)
    assert metadata_of(one)["bn_images"] == "4"
    two = ckptkit.calibrate(model, folder / "images", tmp_path / "2.safetensors", images=4)
    assert one.read_bytes() == two.read_bytes()


def test_half_precision_weights_keep_whole_statistics(folder: Path, tmp_path: Path):
    half = ckptkit.convert(
        folder / "moganet-xt.safetensors",
        to="safetensors",
        output=tmp_path / "h.safetensors",
        dtype="float16",
    )
    written = load_file(ckptkit.calibrate(half, folder / "images", tmp_path / "c.safetensors"))
    assert written["head.weight"].dtype == np.float16
    assert written["norm4.running_var"].dtype == np.float32
    assert ckptkit.verify(tmp_path / "c.safetensors").ok


def test_bad_images_are_left_out_and_not_counted(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for image in (folder / "images").iterdir():
        (tmp_path / image.name).write_bytes(image.read_bytes())
    (tmp_path / "bad.png").write_bytes(b"nothing")
    model = folder / "moganet-xt-lacking.safetensors"
    output = ckptkit.calibrate(model, tmp_path, tmp_path / "o.safetensors")
    assert metadata_of(output)["bn_images"] == "12"
    assert "bad.png cannot be decoded" in caplog.text


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"output": "o.pth"}, UsageError, "calibrate writes a safetensors file"),
        ({"output": "there.safetensors"}, UsageError, "exists already"),
        ({"data": "empty"}, NotFoundError, "no images"),
        ({"data": "bad"}, UsageError, "1 image that can be decoded"),
        ({"device": "cuda:77"}, UsageError, "cuda:77|no GPU 77"),
    ],
)
def test_what_is_refused_writes_nothing(folder: Path, tmp_path: Path, options, kind, said: str):
    (tmp_path / "there.safetensors").write_bytes(b"mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "0.png").write_bytes((folder / "images" / "00.png").read_bytes())
    (tmp_path / "bad" / "1.png").write_bytes(b"nothing")
    data = tmp_path / options["data"] if "data" in options else folder / "images"
    output = tmp_path / options.get("output", "o.safetensors")
    device = options.get("device", "auto")
    with pytest.raises(kind, match=said):
        ckptkit.calibrate(folder / "moganet-xt-lacking.safetensors", data, output, device=device)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "empty", "there.safetensors"]
    assert (tmp_path / "there.safetensors").read_bytes() == b"mine"


def test_the_source_is_never_its_own_result(folder: Path):
    model = folder / "moganet-xt-lacking.safetensors"
    with pytest.raises(UsageError, match="is the source itself"):
        ckptkit.calibrate(model, folder / "images", model, force=True)


def test_other_missing_tensors_are_no_matter_of_calibration(folder: Path, tmp_path: Path):
    broken = small_model(
        tmp_path / "m.safetensors", without="running_mean running_var norm2.bias", resolution="64"
    )
    with pytest.raises(ConversionError, match="missing"):
        ckptkit.calibrate(broken, folder / "images", tmp_path / "o.safetensors")


def test_a_damaged_source_writes_nothing(folder: Path, tmp_path: Path):
    damaged = tmp_path / "m.safetensors"
    damaged.write_bytes((folder / "moganet-xt-lacking.safetensors").read_bytes()[:-1000])
    with pytest.raises(FormatError):
        ckptkit.calibrate(damaged, folder / "images", tmp_path / "o.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize(("images", "batch_size"), [(1, 32), (100, 1)])
def test_one_image_has_no_spread(images: int, batch_size: int):
    with pytest.raises(UsageError, match="give at least 2"):
        CalibrationOptions(["x"], images, batch_size)
