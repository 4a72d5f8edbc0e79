"""``--to keras``: a whole model of Keras 3, for ``keras.saving.load_model`` after ``import ckptkit.keras``.

A ``.keras`` file is a zip archive of the three files that a folder (``hf://ORG/NAME``) holds side by side.
ckptkit writes them itself: the weights as ``convert --to keras`` does, with the metadata that `create_model`
reads, and nothing that depends on the day. Source: keras/src/saving/saving_lib.py, Keras 3.15.
"""

from __future__ import annotations

import importlib
import shutil
import time
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit._version import DISTRIBUTION, REPOSITORY
from ckptkit.base.errors import FormatError, UsageError, require_installed
from ckptkit.base.files import move, refuse_existing, refuse_streams, sync_file, sync_folder, translated
from ckptkit.base.folders import StagedFolder, refuse_replacement
from ckptkit.base.progress import Say, say_nothing
from ckptkit.base.text import json_text
from ckptkit.export.graphs import check_graph, reference_of
from ckptkit.export.hub import CARD, front_matter, model_card
from ckptkit.export.targets import Exported, ExportedFile, ExportRequest
from ckptkit.export.weights import config_of, planned_weights
from ckptkit.families.model_config import CONFIG, KERAS_METADATA
from ckptkit.families.synthetic import NOTE
from ckptkit.formats.keras import KERAS_MEMBER
from ckptkit.models.graphs.onnx_graph import LOGITS, first_line
from ckptkit.parity.backends import GraphBackend, Pass, Ran
from ckptkit.parity.run import FRAMEWORKS

if TYPE_CHECKING:
    from ckptkit.analysis.model_source import ModelSource
    from ckptkit.base.tensors import Array
    from ckptkit.families.base import Family
    from ckptkit.families.model_config import ModelConfig

OWNED = frozenset({CONFIG, KERAS_METADATA, KERAS_MEMBER, CARD})
"""What such a folder holds."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The first day of zip archives."""


def require_keras(_request: ExportRequest) -> None:
    """Ask for both frameworks: PyTorch's model is what Keras' is compared with."""
    require_installed(FRAMEWORKS, "export --to keras, which is checked against PyTorch,")


def export_keras(source: ModelSource, output: Path, request: ExportRequest) -> Exported:
    """Write the model, load it by Keras alone, and compare it with the PyTorch model."""
    _require_layout(source.family)
    if request.writes_folder:
        refuse_replacement(output, force=request.force, owned=OWNED)
    else:
        refuse_existing(output, force=request.force)
        refuse_streams(output)
    names = [KERAS_MEMBER, CONFIG, KERAS_METADATA, CARD] if request.writes_folder else [output.name]
    if request.dry_run:
        return Exported(output, tuple(ExportedFile(name, None) for name in names), "not written, not checked")
    note = source.workspace.note
    if source.synthetic:
        note(f"{source.name}: {NOTE}")
    note(f"{source.name}: running PyTorch's model …")
    reference = reference_of(source, source.model("torch"))
    note(f"{source.name}: writing the Keras model …")
    with ExitStack() as stack:
        folder = stack.enter_context(
            StagedFolder(output, force=request.force, owned=OWNED)
            if request.writes_folder
            else StagedFolder(output.with_name(f"{output.name}.parts"), owned=())
        )
        weights = stack.enter_context(planned_weights(source, "keras"))
        about = config_of(weights)
        facts = about.model_dump(mode="json", exclude={"id2label", "label2id"})
        config, version = _described(source, features=request.features)
        folder.write_text(
            KERAS_METADATA, json_text({"keras_version": version, "ckptkit": facts}, indent=2) + "\n"
        )
        folder.write_text(CONFIG, json_text(config, indent=2) + "\n")
        weights.write(folder.path / KERAS_MEMBER)
        written = folder.path
        if request.writes_folder:
            folder.write_text(CARD, _card(source, about, request))
        else:
            written = folder.path / output.name
            _pack(folder.path, written)
        note(f"{source.name}: loading it by Keras …")
        checked = check_graph(reference, _KerasModel(written), features=request.features)
        details = {
            "resolution": list(source.preprocessing.size),
            "registered_name": config["registered_name"],
            "metadata": facts,
            "check": checked.to_json(),
        }
        if not checked.ok:
            return Exported(output, (), checked.verdict, ok=False, details=details)
        files = [folder.path / name for name in names]
        sizes = tuple(ExportedFile(path.name, path.stat().st_size) for path in files)
        if request.writes_folder:
            folder.commit()
        else:
            with translated(output):
                move(written, output)
                sync_folder(output.parent)
    return Exported(output, sizes, checked.verdict, details=details)


def _require_layout(family: Family) -> None:
    """Refuse a family that does not say how its weights are called in Keras' files."""
    if (layout := family.layout_for("keras")) not in family.layouts:
        raise UsageError(
            f"family {family.name} has no layout {layout}, which says where Keras saves its weights",
            hint="docs/extending.md says what a family's Keras model needs",
        )


def _described(source: ModelSource, *, features: bool) -> tuple[Mapping[str, Any], str]:
    """The configuration from which Keras builds the model, and Keras' version."""
    model = source.model("keras", features_only=features)
    from ckptkit.families.keras_backend import keras

    kind = type(model)
    if ">" not in keras.saving.get_registered_name(kind):
        raise UsageError(
            f"the Keras model of family {source.family.name} ({kind.__name__}) is not registered with Keras",
            hint="docs/extending.md says what a family's Keras model needs",
        )
    try:
        config: Mapping[str, Any] = keras.saving.serialize_keras_object(model)
    except NotImplementedError as error:
        raise UsageError(
            f"the Keras model of family {source.family.name} ({kind.__name__}) has no get_config",
            hint="docs/extending.md says what a family's Keras model needs",
        ) from error
    return config, str(keras.__version__)


def _card(source: ModelSource, config: ModelConfig, request: ExportRequest) -> str:
    """The model card of a folder."""
    height, width = config.preprocessing.size
    gives = "the maps of the stages" if request.features or not config.num_classes else "logits"
    place = json_text(f"hf://{request.push or 'ORG/NAME'}")
    use = (
        "## Use\n\n```python\n"
        "import ckptkit.keras  # registers the model's layers\n"
        "import keras\n\n"
        f"model = keras.saving.load_model({place})  # or the path of this folder\n"
        f"model(images)  # float32 (N, {height}, {width}, 3), normalized as below, to {gives}\n"
        "```\n\n"
        f"`pip install '{DISTRIBUTION}[tf] @ git+{REPOSITORY}' huggingface_hub` installs what it needs; "
        "Keras runs it on its TensorFlow backend."
    )
    front = front_matter(source, config)
    front |= {"library_name": "keras", "tags": [*front["tags"], "ckptkit"]}
    form = "a Keras 3 model"
    return model_card(source, config, front=front, form=form, use=use)


def _pack(folder: Path, archive: Path) -> None:
    """Put the three files into an archive, as they are."""
    with translated(archive), archive.open("xb") as file:
        with zipfile.ZipFile(file, "w") as packed:
            for name in (KERAS_METADATA, CONFIG, KERAS_MEMBER):
                member = zipfile.ZipInfo(name, _EPOCH)
                member.external_attr = 0o644 << 16
                member.file_size = (folder / name).stat().st_size
                with (folder / name).open("rb") as part, packed.open(member, "w") as place:
                    shutil.copyfileobj(part, place, 1 << 20)
        file.flush()
        sync_file(file.fileno())


@dataclass
class _KerasModel(GraphBackend):
    """A whole model as Keras loads it. It can be a program: one that others made is not for this."""

    framework = "keras"

    @cached_property
    def _model(self) -> Any:
        importlib.import_module("ckptkit.keras")
        from ckptkit.families.keras_backend import keras, stderr_aside, tf

        try:
            with stderr_aside(), tf.device("CPU:0"):
                return keras.saving.load_model(str(self.path))
        except (OSError, ValueError, TypeError, KeyError, tf.errors.OpError) as error:
            raise FormatError(self.path, f"Keras cannot load it: {first_line(error)}") from error

    def run(self, images: Array, say: Say = say_nothing, reference: Ran | None = None) -> Ran:
        """Load it once, and call it as anybody would: logits, or the list of the stages' maps."""
        from ckptkit.families.keras_backend import keras, tf

        started = time.perf_counter()
        with tf.device("CPU:0"):
            called = self._model(images)
            if isinstance(called, list):
                outputs = dict(zip(self._model.forward_stages(images, head=False), called, strict=True))
            else:
                outputs = {LOGITS: called}
        passes = {"": Pass({name: output.numpy() for name, output in outputs.items()})}
        facts = {"versions": f"keras {keras.__version__}", "format": "keras", "layout": "keras-h5"}
        return Ran(passes, self._side(started, reference, **facts))
