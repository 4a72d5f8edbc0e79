"""``--to hf``: a folder for the Hugging Face hub with its model card.

Source of the card's form: https://github.com/huggingface/hub-docs/blob/main/modelcard.md. Every figure on a
card is the publisher's and is called so; nothing that was not published and nothing of synthetic weights is
claimed. `ckptkit.create_model` takes the folder too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit._version import DISTRIBUTION, REPOSITORY
from ckptkit.base.folders import StagedFolder, refuse_replacement
from ckptkit.base.text import arxiv_id, counted, escaped, json_text, web_address, yaml_text
from ckptkit.export.remote_code import PREPROCESSOR, RemoteCode
from ckptkit.export.source_code import NotSelfContainedError
from ckptkit.export.targets import Exported, ExportedFile, ExportRequest
from ckptkit.export.weights import PlannedWeights, config_of, planned_weights
from ckptkit.families.base import CANONICAL, Page, Paper, families, family_of_variant, get_family
from ckptkit.families.model_config import CONFIG, WEIGHTS, open_exported
from ckptkit.families.synthetic import NOTE
from ckptkit.formats.safetensors import file_bytes
from ckptkit.models.images.classes import imagenet_classes

if TYPE_CHECKING:
    from ckptkit.analysis.model_source import ModelSource
    from ckptkit.families.model_config import ModelConfig
    from ckptkit.registry.schema import Entry

_LICENSES = frozenset({"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0"})
"""Licences that the hub calls by their SPDX identifier in lower case."""

_DATASETS = {"ImageNet-1K": ("imagenet-1k",), "ImageNet-22K + 1K": ("imagenet-22k", "imagenet-1k")}
"""What the hub calls the training data of the published tables."""

SYNTHETIC = (
    "These weights are random numbers by a fixed recipe, made to test software. The model predicts nothing, "
    "and no published figure is true of it."
)


def model_card(
    source: ModelSource,
    config: ModelConfig,
    *,
    repository: str | None = None,
    front: Mapping[str, Any] | None = None,
    form: str = "safetensors under PyTorch names",
    use: str | None = None,
) -> str:
    """Write the card of an exported model; ``front``, ``form`` and ``use`` are another target's."""
    head = yaml_text(dict(front or front_matter(source, config)), sort_keys=False)
    parts = [
        f"# {escaped(title(source, config), 'markdown')}",
        _introduction(source, config, form),
        *([use] if use else [*_transformers_use(config, repository), _use(config, repository)]),
        _input(source, config),
        *_figures(source, config),
        _provenance(source, config),
        *_citation(source, config),
    ]
    return f"---\n{head}---\n\n" + "\n\n".join(parts) + "\n"


def title(source: ModelSource, config: ModelConfig) -> str:
    """What the card is about: the name in the published table and the id."""
    if config.synthetic:
        return f"Synthetic weights for {config.variant}"
    origin = source.origin
    return f"{origin.display_name} ({origin.id})" if origin is not None else config.variant


def front_matter(source: ModelSource, config: ModelConfig) -> dict[str, Any]:
    """Return the card's metadata."""
    origin = None if config.synthetic else source.origin
    task = "image-classification" if config.num_classes else "image-feature-extraction"
    card: dict[str, Any] = {}
    if origin is not None and origin.license is not None:
        card |= _license(origin.license)
    library, other = ("transformers", ["ckptkit"]) if config.auto_map else ("ckptkit", [])
    card |= {"library_name": library, "pipeline_tag": task, "tags": [task, config.model_type, *other]}
    if config.synthetic:
        card["tags"].append("synthetic-weights")
    if origin is not None and origin.pretrain_data in _DATASETS:
        card["datasets"] = list(_DATASETS[origin.pretrain_data])
    entry = entry_of_figures(source, config)
    if entry is not None and (metrics := _metrics(entry)):
        card["metrics"] = ["accuracy"]
        card["model-index"] = [{"name": entry.id, "results": [_result(entry, metrics)]}]
    return card


def entry_of_figures(source: ModelSource, config: ModelConfig) -> Entry | None:
    """Return the entry whose published figures are this model's; None where they are not, or it is not known.

    They are of the published file itself, with its head, of the copy of the weights that was evaluated, and
    at the resolution it was evaluated at.
    """
    entry = source.entry
    if entry is None or config.synthetic or entry.serves != "whole":
        return None
    if config.num_classes != (entry.num_classes or len(imagenet_classes())):
        return None
    copy = config.provenance.get("weights")
    if entry.weights is not None and copy is not None and copy != entry.weights:
        return None
    side = entry.test_resolution
    return entry if side is None or config.preprocessing.size == (side, side) else None


def _license(spdx: str) -> dict[str, str]:
    if spdx.lower() in _LICENSES:
        return {"license": spdx.lower()}
    return {"license": "other", "license_name": spdx.lower()}


def _metrics(entry: Entry) -> list[dict[str, Any]]:
    return [
        {"type": "accuracy", "value": value, "name": f"{name} accuracy in percent, as published"}
        for name, value in (("Top-1", entry.published_top1), ("Top-5", entry.published_top5))
        if value is not None
    ]


def _result(entry: Entry, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "task": {"type": "image-classification", "name": "Image Classification"},
        "dataset": {"type": "imagenet-1k", "name": "ImageNet-1K", "split": "validation"},
        "metrics": metrics,
    }
    page = _page(entry)
    if page is not None:
        result["source"] = {"name": page.name, "url": page.url}
    return result


def _page(entry: Entry) -> Page | None:
    """The page that has an entry's figures; None where it is not known."""
    pages = family_of_variant(entry.variant).pages.items()
    return next(
        (page for source in entry.sources for place, page in pages if source.url.startswith(place)), None
    )


def _introduction(source: ModelSource, config: ModelConfig, form: str) -> str:
    about = get_family(config.model_type).summary
    kind = (
        f"an image classifier of {counted(config.num_classes, 'class')}"
        if config.num_classes
        else "a backbone"
    )
    kind += f" from the family {config.model_type}" + (f": {about}" if about else "")
    if config.synthetic:
        return f"> **Synthetic weights.** {SYNTHETIC}\n\nThe architecture is {kind}."
    if source.entry is not None:
        origin = f"the published checkpoint {escaped(source.entry.id, 'code')}"
    elif source.origin is not None:
        origin = f"a conversion of the published checkpoint {escaped(source.origin.id, 'code')}"
    else:
        origin = "a checkpoint"
    made = f"The weights are those of {origin}, converted by ckptkit to {form}; "
    made += "no training took place."
    statistics = config.provenance.get("bn_statistics", "present")
    if statistics != "present":
        which = escaped(str(statistics), "markdown")
        made += f" Their BatchNorm statistics are {which}: not those that were published."
    if config.torch_dtype not in (None, "float32"):
        made += f" Their floating type is {config.torch_dtype}."
    return f"{config.variant} is {kind}.\n\n{made}"


def _transformers_use(config: ModelConfig, repository: str | None) -> list[str]:
    """How transformers loads the folder, and that it runs its code; empty for a folder without code."""
    if config.auto_map is None:
        return []
    name = json_text(repository or "ORG/NAME")
    classifier = (
        "from transformers import pipeline",
        "",
        f'classify = pipeline("image-classification", model={name}, trust_remote_code=True)',
    )
    backbone = (
        "from transformers import AutoModel",
        "",
        f"backbone = AutoModel.from_pretrained({name}, trust_remote_code=True)  # maps of the stages",
    )
    modules = ", ".join(f"`{name}`" for name in RemoteCode(get_family(config.model_type)).names)
    return [
        "\n".join(
            (
                "## Use with transformers",
                "",
                "```python",
                *(classifier if config.num_classes else backbone),
                "```",
                "",
                "`AutoModelForImageClassification` gives the classifier and `AutoModel` the stages' maps "
                "(`feature_maps`, chosen with `out_features=` or `out_indices=`), each with "
                "`trust_remote_code=True`. transformers, PyTorch and Pillow are needed, ckptkit is not. A "
                "folder's path will do too, but not for `AutoBackbone`, which asks the hub.",
                "",
                f"**This repository contains code**, which ckptkit wrote from its own source: {modules}. "
                "`trust_remote_code=True` runs it: read it first, and name the commit that you read with "
                "`revision=`. ckptkit itself never runs code from such a folder.",
            )
        )
    ]


def _use(config: ModelConfig, repository: str | None) -> str:
    lines = [
        "## Use with ckptkit" if config.auto_map else "## Use",
        "",
        "```python",
        "import ckptkit",
        "from huggingface_hub import snapshot_download",
        "",
        f"folder = snapshot_download({json_text(repository or 'ORG/NAME')})  # or the path of this folder",
        "model = ckptkit.create_model(folder)           # PyTorch: takes float32 images (N, 3, H, W)",
        'model = ckptkit.create_model(folder, "keras")  # Keras: takes (N, H, W, 3)',
        "```",
        "",
        f"`pip install '{DISTRIBUTION}[torch] @ git+{REPOSITORY}'` installs it with PyTorch, `[tf]` with "
        "TensorFlow. All settings come from `config.json`; `features_only=True` gives the stages' outputs, "
        "`num_classes=10` a new head.",
    ]
    return "\n".join(lines)


def _input(source: ModelSource, config: ModelConfig) -> str:
    pictures = config.preprocessing
    height, width = pictures.size
    published = source.origin is not None and source.origin.interpolation is not None
    chosen = "" if published else " (not published; what ckptkit does)"
    resized = f"{pictures.resize} pixels" if pictures.resize else f"as far as the input needs{chosen}"
    rows = [
        ("input", f"{height}×{width}, RGB"),
        ("shorter side before the centre crop", resized),
        ("interpolation", pictures.interpolation + chosen),
        ("mean", ", ".join(map(str, pictures.mean))),
        ("standard deviation", ", ".join(map(str, pictures.std))),
        *((escaped(key, "code"), str(value)) for key, value in config.settings.items()),
    ]
    behaviour = ", ".join(f"`{key}`" for key in get_family(config.model_type).settings)
    return (
        f"## Input and settings\n\n| | |\n|---|---|\n{_table(rows)}\n\n"
        f"Mean and standard deviation are of RGB in [0, 1]. The settings ({behaviour}) change what the model "
        "computes and no tensor's shape."
    )


def _measured(name: str, entry: Entry) -> str:
    return f"{name}, {entry.dataset}" if entry.dataset else name


def _figures(source: ModelSource, config: ModelConfig) -> list[str]:
    """Return the published figures; no section where there are none."""
    entry = entry_of_figures(source, config)
    if entry is None:
        return []
    rows = [
        ("ImageNet-1K top-1", _percent(entry.published_top1)),
        ("ImageNet-1K top-5", _percent(entry.published_top5)),
        *((_measured(name, entry), str(value)) for name, value in entry.metrics.items()),
        ("parameters", entry.published_params),
        ("multiply-adds", entry.published_flops),
        ("training data", entry.pretrain_data),
        ("training recipe", entry.setting),
        ("evaluated at", f"{entry.test_resolution} pixels" if entry.test_resolution else None),
    ]
    table = _table([(what, value) for what, value in rows if value is not None])
    page = _page(entry)
    where = f" ([{page.name}]({page.url}))" if page is not None else ""
    return [
        f"## Published figures\n\nAs the authors published them for this checkpoint{where}; ckptkit measured "
        f"none of them on this file.\n\n| figure | published |\n|---|---|\n{table}"
    ]


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value}%"


def _provenance(source: ModelSource, config: ModelConfig) -> str:
    file = "published file" if source.entry else "source file"
    if source.entry and source.entry.companions and source.entry.format != "tf":
        file = "published files, as sha256sum lists them"
    names = {
        "source_url": "published at",
        "source_sha256": f"sha256 of the {file}",
        "source_index_sha256": "sha256 of the source's index",
        "weights": "copy of the weights",
        "bn_statistics": "BatchNorm statistics",
        "stands_in_for": "synthetic stand-in for",
        "ckptkit_version": "ckptkit",
    }
    facts = config.provenance
    table = _table([(what, str(facts[key])) for key, what in names.items() if key in facts])
    return f"## Provenance\n\n| | |\n|---|---|\n{table}"


def _table(rows: Sequence[tuple[str, str]]) -> str:
    """Rows of Markdown and text; an address is a link."""
    cells = []
    for what, text in rows:
        address = web_address(text)
        cells.append((what, f"<{address}>" if address is not None else escaped(text, "markdown")))
    return "\n".join(f"| {what} | {cell} |" for what, cell in cells)


def _citation(source: ModelSource, config: ModelConfig) -> list[str]:
    """Return how to cite the architecture; no section where no entry of the family names a paper."""
    origin = source.origin
    papers = [
        entry.paper for entry in source.workspace.registry.values() if entry.family == config.model_type
    ]
    paper = origin.paper if origin is not None and origin.paper is not None else next(iter(papers), None)
    id = arxiv_id(paper)
    if id is None:
        return []
    return [
        f"## Citation\n\nThe architecture: [arXiv:{id}](https://arxiv.org/abs/{id}).\n\n"
        f"```bibtex\n{bibtex(id, config.model_type, get_family(config.model_type).papers.get(id))}\n```"
    ]


def bibtex(id: str, key: str, paper: Paper | None) -> str:
    """Return an entry for a bibliography; without title and authors for a paper not known here."""
    fields = {"eprint": id, "archivePrefix": "arXiv"}
    if paper is not None:
        known = {
            "title": f"{{{paper.title}}}",
            "author": " and ".join(paper.authors),
            "year": str(paper.year),
        }
        fields = known | fields
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
    return f"@misc{{{key},\n{lines}\n}}"


CARD = "README.md"


def _owned() -> frozenset[str]:
    """What such a folder may hold, of whatever family the model is."""
    modules = (RemoteCode(get_family(name)).names for name in families())
    return frozenset({CONFIG, WEIGHTS, CARD, PREPROCESSOR, *chain.from_iterable(modules)})


def require_hf(_request: ExportRequest) -> None:
    """Ask for nothing: no framework is needed to write the folder."""


def export_hf(source: ModelSource, output: Path, request: ExportRequest) -> Exported:
    """Write the folder."""
    code = RemoteCode(source.family)
    owned = _owned()
    refuse_replacement(output, force=request.force, owned=owned)
    with planned_weights(source, "safetensors", layout=CANONICAL, dtype=request.dtype) as weights:
        texts = _texts(weights, code, request.push)
        size = file_bytes(Path(WEIGHTS), weights.plan.specs, weights.metadata)
        files = (
            ExportedFile(WEIGHTS, size),
            *(ExportedFile(name, len(text.encode())) for name, text in texts.items()),
        )
        if request.dry_run:
            return Exported(output, files, counted(len(weights.plan.moves), "tensor"))
        for note in (*weights.plan.notes, *((NOTE,) if source.synthetic else ())):
            source.workspace.note(f"{source.name}: {note}")
        with StagedFolder(output, force=request.force, owned=owned) as folder:
            weights.write(folder.path / WEIGHTS)
            for name, text in texts.items():
                folder.write_text(name, text)
            open_exported(folder.path)
            folder.commit()
    return Exported(
        output,
        files,
        f"{counted(len(weights.plan.moves), 'tensor')}, read back and compared; {CONFIG} fits them",
    )


def _texts(weights: PlannedWeights, code: RemoteCode, repository: str | None) -> dict[str, str]:
    """Return the files beside the weights, by name."""
    source, config = weights.source, config_of(weights)
    modules: dict[str, str] = {}
    try:
        modules = {**code.files(), PREPROCESSOR: code.preprocessor(config.preprocessing)}
        config.auto_map = code.auto_map(head=config.num_classes is not None)
        config.architectures = [code.architecture] if config.num_classes else None
    except NotSelfContainedError as error:
        source.workspace.warn(f"{source.name}: without code for transformers: {error}")
    return {CONFIG: config.text(), **modules, CARD: model_card(source, config, repository=repository)}
