"""``--to saved-model``: a TensorFlow SavedModel, with batches of any number and a fixed resolution."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ckptkit.base.extras import require_installed
from ckptkit.base.files import refuse_not_utf8
from ckptkit.export.description import describe
from ckptkit.export.folder import StagedFolder, refuse_replacement
from ckptkit.export.graph_check import check_graph, reference_of
from ckptkit.export.targets import Exported, ExportedFile, ExportOptions
from ckptkit.export.weights import planned_weights
from ckptkit.families.base import CANONICAL
from ckptkit.models.graphs.saved_model import CONTENTS, FACTS, SIGNATURE, load_saved_model, write_saved_model
from ckptkit.models.synth import NOTE
from ckptkit.parity.packages import FRAMEWORKS

if TYPE_CHECKING:
    from ckptkit.analysis.model_source import ModelSource

_FILES = (
    FACTS,
    "fingerprint.pb",
    "saved_model.pb",
    "variables/variables.data-00000-of-00001",
    "variables/variables.index",
)


def require(_options: ExportOptions) -> None:
    """Ask for both frameworks: PyTorch's model is what the SavedModel is compared with."""
    require_installed(FRAMEWORKS, "export --to saved-model, which is checked against PyTorch,")


def export(source: ModelSource, output: Path, options: ExportOptions) -> Exported:
    """Write the Keras model, load it again by TensorFlow alone, and compare it with the PyTorch model."""
    refuse_not_utf8(output, "TensorFlow")
    refuse_replacement(output, force=options.force, owned=CONTENTS)
    with planned_weights(source, "safetensors", layout=CANONICAL) as weights:
        facts = describe(weights).model_dump(mode="json", exclude={"id2label", "label2id"})
    if options.dry_run:
        files = tuple(ExportedFile(name, None) for name in _FILES)
        return Exported(output, files, "not written, not checked")
    if source.synthetic:
        options.note(f"{source.name}: {NOTE}")
    options.note(f"{source.name}: running PyTorch's model …")
    reference = reference_of(source, source.model("torch"))
    height, width = source.preprocessing.size
    options.note(f"{source.name}: writing Keras' model as a graph for {height}x{width} …")
    with StagedFolder(output, force=options.force, owned=CONTENTS) as folder:
        model = source.model("keras")
        variables = source.family.keras_module().variables_by_name(model)
        outputs = write_saved_model(
            model, variables, folder.path, size=(height, width), features=options.features, facts=facts
        )
        del model, variables
        options.note(f"{source.name}: running it by TensorFlow alone …")
        checked = check_graph(
            reference,
            load_saved_model(folder.path),
            features=options.features,
            backend=_tensorflow(),
        )
        details = {
            "signature": SIGNATURE,
            "resolution": [height, width],
            "outputs": list(outputs),
            "check": checked.to_json(),
        }
        if not checked.ok:
            return Exported(output, (), checked.verdict, ok=False, details=details)
        written = tuple(
            ExportedFile(path.relative_to(folder.path).as_posix(), path.stat().st_size)
            for path in sorted(folder.path.rglob("*"))
            if path.is_file()
        )
        folder.commit()
    return Exported(output, written, checked.verdict, details=details)


def _tensorflow() -> str:
    from ckptkit.families.keras_backend import tf

    return f"tensorflow {tf.__version__}"
