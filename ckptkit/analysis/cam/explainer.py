"""Heat maps of a checkpoint: its PyTorch model, the pictures it is shown, the classes it is asked about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit.analysis.cam.heatmap import Heatmap
from ckptkit.analysis.cam.layers import Pass, find_stage, run_once
from ckptkit.analysis.cam.methods import Question, find_method
from ckptkit.analysis.cam.targets import HeadClasses
from ckptkit.base.errors import FormatError, UsageError, command
from ckptkit.base.extras import require_installed
from ckptkit.base.tensors import Array

if TYPE_CHECKING:
    from PIL.Image import Image

    from ckptkit.analysis.model_source import ModelSource
    from ckptkit.workspace import Workspace

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
    from ckptkit.store.mirrors import parse_mirrors

    found = Gatherer(offline=workspace.offline, mirrors=parse_mirrors(workspace.mirrors)).gather([named])
    if found.faults:
        raise found.faults[0].error
    if not found.is_single:
        raise UsageError(f"{named} holds {len(found.pictures)} pictures", hint="name one of them")
    return found.pictures[0].read()


class Explainer:
    """A checkpoint's model, ready to be asked where it looks."""

    def __init__(self, source: ModelSource) -> None:
        require_packages()
        self.classes = head_classes(source)
        self.source = source
        self.model = source.model("torch")
        self.model.requires_grad_(False)  # only the maps' gradients are wanted

    def see(self, picture: Image) -> SeenPicture:
        """Show the model a picture, prepared as its checkpoint wants it."""
        import torch

        prepare = self.source.preprocessing
        cut = prepare.cut(picture)
        images = torch.from_numpy(prepare.normalized(cut)).permute(2, 0, 1)[None].contiguous()
        seen = run_once(self.model, images)
        if not seen.logits.isfinite().all():
            raise FormatError(
                self.source.located.path,
                "the model's answer to this picture holds NaN or infinite numbers",
                hint=command("verify", self.source.name),
            )
        return SeenPicture(self, cut, images, seen)


@dataclass(frozen=True, eq=False)
class SeenPicture:
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
        """Find where the evidence for a class lies."""
        asked = find_method(method)
        where = find_stage(stage, self.seen)
        index = self.predicted if target is None else self.explainer.classes.find(target)
        model, source = self.explainer.model, self.explainer.source
        after = model.forward_head if self.is_last(where) else None
        question = Question(model, self.seen.layers[where], self.images, index, after)
        heat, strength = _scaled(asked.signed_map(question), source)
        return Heatmap(
            source.name,
            self.picture,
            heat,
            strength,
            index,
            self.explainer.classes.named(index),
            float(self.seen.logits[0].double().softmax(dim=0)[index]),
            index == self.predicted,
            asked.name,
            where,
            source.synthetic,
            str(source.preprocessing),
        )


def _scaled(signed: Any, source: ModelSource) -> tuple[Array, float]:
    """Cut negative evidence off and scale the rest to 1; the heat, and its largest value before."""
    if not signed.isfinite().all():
        raise FormatError(
            source.located.path,
            "the evidence for this class holds NaN or infinite numbers",
            hint=command("verify", source.name),
        )
    positive = signed.relu()
    strength = float(positive.max())
    heat: Array = (positive / strength if strength > 0 else positive).float().numpy()
    heat.flags.writeable = False
    return heat, strength
