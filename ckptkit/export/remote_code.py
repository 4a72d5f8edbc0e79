"""The code in a folder for the hub, with which transformers loads it where ckptkit is not installed.

Three modules, made of the source of the family's PyTorch model and of the preprocessing. ckptkit writes them
and never runs them: `ckptkit.create_model` takes the folder's config and tensors alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

from ckptkit.base.text import json_text
from ckptkit.export.source_code import NotSelfContainedError, SelfContained
from ckptkit.families.base import Family
from ckptkit.families.model_config import PreprocessingConfig

PREPROCESSOR = "preprocessor_config.json"

_KINDS = ("configuration", "modeling", "image_processing")
_TEMPLATES = Path(__file__).parent / "templates"
_PICTURES = "ckptkit.models.images.preprocessing"


@dataclass(frozen=True)
class RemoteCode:
    """The modules of a family."""

    family: Family

    @property
    def module(self) -> str:
        """What the modules' names end with."""
        return re.sub(r"\W", "_", self.family.name)

    @property
    def prefix(self) -> str:
        """What the classes' names begin with."""
        return re.sub(r"\W", "", self.family.title)

    @property
    def architecture(self) -> str:
        """Name of the classifier's class."""
        return f"{self.prefix}ForImageClassification"

    def auto_map(self, *, head: bool) -> dict[str, str]:
        """Which class each of transformers' ``Auto`` classes takes."""
        modeling = f"modeling_{self.module}.{self.prefix}"
        classifier = {"AutoModelForImageClassification": f"{modeling}ForImageClassification"}
        return {
            "AutoConfig": f"configuration_{self.module}.{self.prefix}HubConfig",
            **(classifier if head else {}),
            "AutoModel": f"{modeling}Backbone",
            "AutoBackbone": f"{modeling}Backbone",
            "AutoImageProcessor": self._image_processor,
        }

    @property
    def _image_processor(self) -> str:
        return f"image_processing_{self.module}.{self.prefix}ImageProcessor"

    def preprocessor(self, preprocessing: PreprocessingConfig) -> str:
        """The content of ``preprocessor_config.json``."""
        height, width = preprocessing.size
        fields: dict[str, Any] = {
            "image_processor_type": f"{self.prefix}ImageProcessor",
            "auto_map": {"AutoImageProcessor": self._image_processor},
            "size": {"height": height, "width": width},
            "resize": preprocessing.resize,
            "interpolation": preprocessing.interpolation,
            "normalization": preprocessing.normalization,
            "image_mean": list(preprocessing.mean),
            "image_std": list(preprocessing.std),
        }
        return json_text(fields, indent=2) + "\n"

    @property
    def names(self) -> tuple[str, ...]:
        """File names of the modules."""
        return tuple(f"{kind}_{self.module}.py" for kind in _KINDS)

    def files(self) -> dict[str, str]:
        """The modules' source by file name.

        Raises
        ------
        NotSelfContainedError
            When the family has no PyTorch model, or it needs more than definitions of its package.
        """
        return dict(zip(self.names, _sources(self), strict=True))


@cache
def _sources(code: RemoteCode) -> tuple[str, ...]:
    family = code.family
    if "torch" not in family.models:
        raise NotSelfContainedError(f"family {family.name} has no PyTorch model")
    model = family.models["torch"]
    packages = ("ckptkit", model.partition(".")[0])
    head = [
        "^" + re.sub(r"\\\{\w+\\\}", r"\\d+", re.escape(one.name)) + "$"
        for one in family.definitions
        if one.part == "head"
    ]
    words = {
        "FAMILY": code.prefix,
        "MODULE": code.module,
        "MODEL_TYPE": family.name,
        "HEAD_TENSORS": repr(head),
    }
    roots = None, (model, "build"), (_PICTURES, "Preprocessing")
    return tuple(_filled(kind, words, packages, root) for kind, root in zip(_KINDS, roots, strict=True))


def _filled(
    template: str, words: dict[str, str], packages: tuple[str, ...] = (), root: tuple[str, str] | None = None
) -> str:
    """A template with a family's names, and with what ``root`` needs of the packages."""
    text = (_TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")
    if root is not None:
        code = SelfContained(packages)
        code.add(*root)
        bound = re.findall(r"^(?:class|def) ([\w${}]+)", text, re.MULTILINE)
        if clash := sorted(code.names.intersection(Template(name).substitute(words) for name in bound)):
            raise NotSelfContainedError(
                f"{root[0]} has names that transformers' side needs: {', '.join(clash)}"
            )
        there = set(text.splitlines())
        imports = [line for line in code.imports().splitlines() if line not in there]
        words = {**words, "IMPORTS": "\n".join(imports), "NETWORK": code.text()}
    return Template(text).substitute(words)
