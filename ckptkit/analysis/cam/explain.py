"""Heat maps of a checkpoint: where in a picture a model sees a class."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit.analysis.cam.methods import CamInputs, find_method
from ckptkit.analysis.cam.picture import Heatmap
from ckptkit.analysis.runner import hooked
from ckptkit.base.errors import FormatError, UsageError, command, require_installed
from ckptkit.base.tensors import Array
from ckptkit.base.text import counted
from ckptkit.models.images.classes import ImageClass, find_class, imagenet_classes

if TYPE_CHECKING:
    from PIL.Image import Image

    from ckptkit.analysis.model_source import ModelSource
    from ckptkit.workspace import Workspace


@dataclass(frozen=True)
class HeadClasses:
    """The classes that a head of some size tells apart."""

    count: int  # outputs of the head

    def find(self, target: int | str) -> int:
        """Place among the logits of a class given by index, WordNet id or name.

        >>> HeadClasses(1000).find("golden retriever"), HeadClasses(10).find(7)
        (207, 7)
        """
        text = str(target)
        if self._named:
            return find_class(text).index
        if not (text.isascii() and text.isdigit() and int(text) < self.count):
            raise UsageError(
                f"unknown class {text!r}",
                hint=f"this head has {counted(self.count, 'class')} without names: give 0 "
                f"to {self.count - 1}",
            )
        return int(text)

    def named(self, index: int) -> ImageClass | None:
        """Names of a class, where they are known."""
        return imagenet_classes()[index] if self._named else None

    @property
    def _named(self) -> bool:
        return self.count == len(imagenet_classes())


@dataclass(frozen=True)
class Pass:
    """What one forward pass showed."""

    logits: Any  # ``(N, classes)``
    layers: dict[str, Any]  # by stage (``stage1`` …), the module that gives the stage's output
    grids: dict[str, tuple[int, int]]  # rows and columns of each stage's map

    @property
    def last(self) -> str:
        """Name of the last stage."""
        return next(reversed(self.layers))


def run_once(model: Any, images: Any) -> Pass:
    """Run a family's PyTorch model and watch which module gives each of its stages' outputs.

    A module makes a stage's output when it returns that very tensor, so no name of any architecture has to be
    known here; where several return it, one inside the other, the outermost is taken.

    ``images``: ``(N, 3, H, W)``.
    """
    import torch

    returned: list[tuple[Any, weakref.ref[Any]]] = []

    def watch(module: Any, _inputs: Any, output: Any) -> None:
        returned.append((module, weakref.ref(output)))  # the map may be freed as in any other forward pass

    hooks = (module.register_forward_hook(watch) for module in model.modules())
    with hooked(hooks), torch.no_grad():
        outputs = dict(model.forward_stages(images))
    logits = outputs.pop("logits")
    layers = {
        stage: [module for module, output in returned if output() is value][-1]
        for stage, value in outputs.items()
    }
    grids = {stage: (value.shape[2], value.shape[3]) for stage, value in outputs.items()}
    return Pass(logits, layers, grids)


def find_stage(text: str | int | None, seen: Pass) -> str:
    """Read a stage given by number or name; None is the last.

    >>> seen = Pass(None, {"stage1": None, "stage2": None}, {})
    >>> find_stage(None, seen), find_stage("1", seen), find_stage("stage2", seen)
    ('stage2', 'stage1', 'stage2')
    """
    if text is None:
        return seen.last
    name = str(text).strip().lower()
    name = f"stage{name}" if name.isdigit() else name
    if name not in seen.layers:
        raise UsageError(f"unknown stage {text!r}", hint=f"this model has stage1 to {seen.last}")
    return name


_PACKAGES = ("torch", "captum", "pillow")


def require_packages() -> None:
    """Look for all that a heat map needs without importing it."""
    require_installed(_PACKAGES, "a heat map")


def head_classes(source: ModelSource) -> HeadClasses:
    """Return the classes of a checkpoint's head."""
    if not source.num_classes:
        raise UsageError(
            f"{source.name}: weights without a classification head",
            hint="a heat map shows the evidence for a class; take a file that has its head",
        )
    return HeadClasses(source.num_classes)


def read_picture(named: str | Path | Image, workspace: Workspace) -> Image:
    """Read one picture: a file, a URL, or a picture that was decoded already."""
    from ckptkit.models.images.gathering import Gatherer
    from ckptkit.store.sources import parse_mirrors

    found = Gatherer(offline=workspace.offline, mirrors=parse_mirrors(workspace.mirrors)).gather([named])
    if found.faults:
        raise found.faults[0].error
    if not found.is_single:
        raise UsageError(f"{named} holds {counted(len(found.pictures), 'picture')}", hint="name one of them")
    return found.pictures[0].read()


class Explainer:
    """A checkpoint's model, ready to show where it looks."""

    def __init__(self, source: ModelSource) -> None:
        require_packages()
        self.classes = head_classes(source)
        self.source = source
        self.model = source.model("torch")
        self.model.requires_grad_(False)  # only the maps' gradients are wanted

    def forward(self, picture: Image) -> Activations:
        """Show the model a picture, prepared as its checkpoint wants it."""
        import torch

        prepare = self.source.preprocessing
        cut = prepare.cut(picture)
        images = torch.from_numpy(prepare.normalized(cut)).permute(2, 0, 1)[None].contiguous()
        seen = run_once(self.model, images)
        if not seen.logits.isfinite().all():
            raise FormatError(
                self.source.located.path,
                "the model's answer to this picture contains NaN or infinite values",
                hint=command("verify", self.source.name),
            )
        return Activations(self, cut, images, seen)


@dataclass(frozen=True, eq=False)
class Activations:
    """A picture the model has seen."""

    explainer: Explainer
    picture: Image  # as the model saw it, before normalization
    images: Any  # the model's input, (1, 3, H, W)
    seen: Pass  # logits, stages and their modules

    @property
    def predicted(self) -> int:
        """Index of the most probable class."""
        return int(self.seen.logits[0].argmax())

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages, first to last."""
        return tuple(self.seen.layers)

    def is_last(self, stage: str | int | None) -> bool:
        """Whether this is the last stage, which only the head comes after; None is."""
        return find_stage(stage, self.seen) == self.seen.last

    def heatmap(
        self, method: str = "gradcam", stage: str | int | None = None, target: int | str | None = None
    ) -> Heatmap:
        """Locate the evidence for a class."""
        chosen = find_method(method)
        where = find_stage(stage, self.seen)
        index = self.predicted if target is None else self.explainer.classes.find(target)
        model, source = self.explainer.model, self.explainer.source
        after = model.forward_head if self.is_last(where) else None
        inputs = CamInputs(model, self.seen.layers[where], self.images, index, after)
        heat, strength = _scaled(chosen.signed_map(inputs), source)
        return Heatmap(
            source.name,
            self.picture,
            heat,
            strength,
            index,
            self.explainer.classes.named(index),
            float(self.seen.logits[0].double().softmax(dim=0)[index]),
            index == self.predicted,
            chosen.name,
            where,
            source.synthetic,
            str(source.preprocessing),
        )


def _scaled(signed: Any, source: ModelSource) -> tuple[Array, float]:
    """Cut negative evidence off and scale the rest to 1; the heat, and its largest value before."""
    if not signed.isfinite().all():
        raise FormatError(
            source.located.path,
            "the evidence for this class contains NaN or infinite values",
            hint=command("verify", source.name),
        )
    positive = signed.relu()
    strength = float(positive.max())
    heat: Array = (positive / strength if strength > 0 else positive).float().numpy()
    heat.flags.writeable = False
    return heat, strength
