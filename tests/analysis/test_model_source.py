"""A checkpoint opened for use: what it is, how it wants its pictures, and the model it gives."""

from __future__ import annotations

import json

import pytest

from ckptkit.analysis.model_source import SourceRequest, open_source, preprocessing_of
from ckptkit.base.errors import FormatError, UnknownModelError, UsageError
from ckptkit.convert.execution import Target, execute
from ckptkit.convert.pipeline import Options, plan
from ckptkit.families.base import get_family, registry_families
from ckptkit.formats.detect import open_reader
from ckptkit.registry.loading import load_registry
from ckptkit.workspace import Workspace
from tests.support.moat_files import write_tiny
from tests.support.parity_cases import overwrite_metadata


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """tiny-moat0 in the published format."""
    return write_tiny(tmp_path_factory.mktemp("source") / "model.ckpt")


def converted(source, folder, entry=None, **options):
    with open_reader(source) as reader:
        conversion = plan(reader, Options("safetensors", layout="torch", **options), entry=entry)
        return execute(
            conversion, reader, Target("safetensors", options.get("dtype")), folder / "model.safetensors"
        ).path


def opened(path, **options):
    workspace = Workspace()
    return open_source(workspace.locate(path), workspace, SourceRequest(path, **options))


class TestPreprocessing:
    @pytest.mark.parametrize(
        ("id", "size", "resize", "normalization"),
        [
            ("moat0-224", 224, None, "imagenet"),
            ("tiny-moat3-256-noposemb", 256, None, "imagenet"),
            # Fine-tuned from ImageNet-22K: mean and deviation 0.5.
            ("moat2-384", 384, None, "half"),
            ("moat4-512-noposemb", 512, None, "half"),
            ("moganet-xt-224", 224, 248, "imagenet"),
            ("moganet-xt-256", 256, 284, "imagenet"),
            # Trained at 160, tested at 224.
            ("moganet-b-160-rsba3", 224, 236, "imagenet"),
        ],
    )
    def test_as_the_published_evaluation_has_it(self, id, size, resize, normalization):
        entry = load_registry(families=registry_families)[id]
        found = preprocessing_of(get_family(entry.family), entry.variant, entry, {})
        assert (found.size, found.resize, found.normalization) == ((size, size), resize, normalization)
        assert found.interpolation == "bicubic"

    @pytest.mark.parametrize(("asked", "resize"), [(64, 71), ((64, 96), 71), (224, 248), (448, 496)])
    def test_at_another_resolution_the_margin_keeps_its_ratio(self, asked, resize):
        entry = load_registry(families=registry_families)["moganet-xt-224"]
        found = preprocessing_of(get_family("moganet"), "moganet-xt", entry, {}, asked)
        assert found.size == (asked if isinstance(asked, tuple) else (asked, asked))
        assert found.resize == resize, "248/224 of the shorter side"

    def test_a_file_of_ones_own_says_it_itself_else_its_variant_does(self):
        family = get_family("moat")
        alone = preprocessing_of(family, "moat2", None, {})
        assert (alone.size, alone.normalization, alone.resize) == ((384, 384), "half", None)
        said = preprocessing_of(family, "moat2", None, {"resolution": "192x256", "normalization": "imagenet"})
        assert (said.size, said.normalization) == ((192, 256), "imagenet")

    def test_what_makes_no_sense_is_refused(self, tmp_path):
        family = get_family("moat")
        with pytest.raises(FormatError, match=r"its metadata says resolution is '-3'"):
            preprocessing_of(family, "moat2", None, {"resolution": "-3"}, path=tmp_path)
        with pytest.raises(
            FormatError, match="its metadata says normalization is 'loud', which is not known"
        ):
            preprocessing_of(family, "moat2", None, {"normalization": "loud"})
        with pytest.raises(UsageError, match="resolution is 0"):
            preprocessing_of(family, "moat2", None, {}, 0)


class TestOpening:
    def test_a_file_is_recognised(self, tiny):
        source = opened(tiny)
        assert (source.name, source.family.name, source.variant) == (str(tiny), "moat", "tiny-moat0")
        assert (source.num_classes, source.entry, source.origin) == (1000, None, None)
        assert (source.synthetic, source.made, source.preprocessing.size) == (True, False, (256, 256))

    def test_a_conversion_remembers_its_entry(self, tiny, tmp_path):
        entry = load_registry(families=registry_families)["tiny-moat0-256"]
        source = opened(converted(tiny, tmp_path, entry))
        assert source.entry is None
        assert source.origin == entry
        assert json.loads(source.metadata["pool_size"]) == 2

    def test_an_entry_of_another_variant_is_not_believed(self, tiny, tmp_path):
        path = converted(tiny, tmp_path, load_registry(families=registry_families)["tiny-moat0-256"])
        overwrite_metadata(path, entry="moat2-384")
        assert opened(path).origin is None
        overwrite_metadata(path, entry="no-such-entry")
        assert opened(path).origin is None

    def test_a_headless_file_has_no_classes(self, tiny, tmp_path):
        assert opened(converted(tiny, tmp_path, head=False)).num_classes is None

    def test_a_file_of_no_family_is_refused(self, tmp_path):
        import numpy
        from safetensors.numpy import save_file

        save_file({"weight": numpy.zeros(3, numpy.float32)}, str(tmp_path / "other.safetensors"))
        with pytest.raises(UnknownModelError, match=r"other\.safetensors"):
            opened(tmp_path / "other.safetensors")

    def test_synthetic_weights_are_there_while_the_block_lasts(self):
        with SourceRequest("moganet-xt-224", synthetic=True, resolution=64).open(
            Workspace(offline=True)
        ) as source:
            assert source.located.path.exists()
            assert (source.name, source.synthetic, source.num_classes) == ("moganet-xt-224", True, 1000)
            assert source.entry == load_registry(families=registry_families)["moganet-xt-224"]
            assert (source.preprocessing.size, source.preprocessing.resize) == ((64, 64), 71)
        assert not source.located.path.exists()


class TestModels:
    def test_the_settings_are_the_entrys_or_those_told(self):
        torch = pytest.importorskip("torch")
        images = torch.from_numpy(
            __import__("numpy").random.default_rng(3).normal(size=(1, 3, 64, 64)).astype("float32")
        )
        answers = {}
        with torch.inference_mode():
            for name, settings in (("entry", None), ("true", True), ("false", False)):
                told = {} if settings is None else {"attn_force_fp32": settings}
                request = SourceRequest("moganet-xt-224", synthetic=True, settings=told)
                with request.open(Workspace()) as source:
                    answers[name] = source.model()(images)
        said = load_registry(families=registry_families)["moganet-xt-224"].attn_force_fp32
        assert said is not None
        assert torch.equal(answers["entry"], answers[str(said).lower()])
        assert not torch.allclose(answers["true"], answers["false"])

    def test_a_setting_that_nobody_tells_is_asked_for(self):
        pytest.importorskip("torch")
        with (
            SourceRequest("moganet-xt", synthetic=True).open(Workspace()) as source,
            pytest.raises(UsageError, match="attn_force_fp32"),
        ):
            source.model()

    def test_more_arguments_reach_the_builder(self):
        pytest.importorskip("torch")
        with SourceRequest("tiny-moat0", synthetic=True, resolution=64).open(Workspace()) as source:
            model = source.model(features_only=True)
            import torch

            assert len(model(torch.zeros(1, 3, 64, 64))) == 5
