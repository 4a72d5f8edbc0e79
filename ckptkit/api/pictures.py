"""Models on pictures: predictions, heat maps, accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit.api.environment import logger, public, workspace_of_environment
from ckptkit.formats.names import is_folder

if TYPE_CHECKING:
    from PIL.Image import Image

    from ckptkit.analysis.cam.picture import Heatmap
    from ckptkit.analysis.evaluate.data import ClassOrder
    from ckptkit.analysis.evaluate.report import Evaluation
    from ckptkit.analysis.predict import Predictions
    from ckptkit.api.environment import CamMethod
    from ckptkit.families.binding import Weights
    from ckptkit.models import Framework
    from ckptkit.models.images.preprocessing import Transform
    from ckptkit.workspace import Named


@public
def predict(
    what: Named,
    images: str | Path | Image | Iterable[str | Path | Image],
    *,
    framework: Framework = "torch",
    top: int = 5,
    synthetic: bool = False,
    batch_size: int = 8,
    resolution: int | tuple[int, int] | None = None,
    weights: Weights = "auto",
    state_dict: str | None = None,
    strip_prefix: str | Sequence[str] | None = None,
    variant: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Predictions:
    """Name what images show, prepared as the published evaluation of the checkpoint does it.

    Parameters
    ----------
    what : str, Path or Entry
        Id or entry (fetched when it is not here) or path; with ``synthetic`` an id or a variant.
    images : str, Path, PIL.Image.Image, or an iterable of them
        Files, folders (their images, sorted by name), URLs, or images that are decoded already.
    framework : {"torch", "keras", "onnxruntime"}
        In which the model runs, on the CPU.
    top : int
        How many classes to name.
    synthetic : bool
        Use random weights by recipe: needs no download, and means nothing.
    batch_size : int
        Images that go through the model at once.
    resolution : int or (int, int), optional
        Input (height, width); default the entry's test resolution.
    weights : {"auto", "ema", "raw"}
        Which copy where the file holds both.
    state_dict, strip_prefix
        As for `ckptkit.load`.
    variant : str, optional
        Overrides what the file is recognised as.
    settings : mapping of str to Any, optional
        Behaviour settings where no entry says them: ``{"attn_force_fp32": True}``.

    Returns
    -------
    Predictions
        A list with one `Prediction` for each image in order: ``.image``, ``.top`` (each with ``index``,
        ``probability`` and, for ImageNet-1K, ``wnid`` and ``name``), ``.best``, ``.to_json()``. Printed, and
        in a notebook, it is a table.

    Raises
    ------
    MissingDependencyError
        When the framework or Pillow is not installed.
    UsageError
        When an argument makes no sense, or the weights have no head.
    NotFoundError, NetworkError, FormatError
        No such checkpoint or image; not to be had; damaged. The first such image ends it.
    """
    from ckptkit.analysis.model_source import SourceRequest
    from ckptkit.analysis.predict import predict_images

    source = SourceRequest(what, synthetic, resolution, weights, state_dict, strip_prefix, variant, settings)
    workspace = workspace_of_environment()
    return predict_images(source, images, workspace, framework=framework, top=top, batch_size=batch_size)


@public
def transform(
    what: Named, *, framework: Framework = "torch", resolution: int | tuple[int, int] | None = None
) -> Transform:
    """The published preprocessing of a checkpoint, as a function from pictures to the model's input.

    Parameters
    ----------
    what : str, Path or Entry
        Id or entry of a registry (nothing is fetched), a variant, or the path of a checkpoint.
    framework : {"torch", "keras", "onnxruntime"}
        Of the model that takes the result.
    resolution : int or (int, int), optional
        Input (height, width); default the entry's test resolution. The shorter side before the crop keeps its
        ratio to it.

    Returns
    -------
    Transform
        Called with one PIL image or uint8 array (H, W, 3), or a sequence of them, it gives float32 of
        (N, 3, height, width), for Keras (N, height, width, 3).

    Raises
    ------
    NotFoundError, FormatError, ConversionError
        No such entry or file; damaged; of no known model.
    MissingDependencyError
        When Pillow or the framework is not installed.

    Examples
    --------
    >>> import ckptkit, numpy
    >>> prepare = ckptkit.transform("moganet-xt-224")
    >>> print(prepare)
    shorter side to 248, bicubic, centre 224x224, normalization imagenet, for torch
    >>> prepare(numpy.zeros((480, 640, 3), "uint8")).shape
    torch.Size([1, 3, 224, 224])
    """
    from ckptkit.analysis.model_source import preprocessing_named
    from ckptkit.base.errors import require_installed
    from ckptkit.models import framework_named
    from ckptkit.models.images.preprocessing import Transform

    framework = framework_named(framework)
    require_installed(["pillow", *(["torch"] if framework == "torch" else [])], "the preprocessing")
    return Transform(preprocessing_named(what, workspace_of_environment(), resolution), framework)


@public
def cam(
    what: Named,
    image: str | Path | Image,
    *,
    method: CamMethod = "gradcam",
    stage: str | int | None = None,
    target: int | str | None = None,
    synthetic: bool = False,
    resolution: int | tuple[int, int] | None = None,
    weights: Weights = "auto",
    state_dict: str | None = None,
    strip_prefix: str | Sequence[str] | None = None,
    variant: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Heatmap:
    """Find where in a picture a model has its evidence for a class.

    Several maps of one model are quicker from one `ckptkit.analysis.cam.Explainer`.

    Parameters
    ----------
    image : str, Path or PIL.Image.Image
        File, URL or picture.
    method : {"gradcam", "hirescam", "gradcam++", "layercam", "eigencam", "ablationcam"}
    stage : str or int, optional
        ``stage1`` … or its number; default the last.
    target : int or str, optional
        Index, WordNet id or name of a class; default the predicted one.
    what, synthetic, resolution, weights, state_dict, strip_prefix, variant, settings
        As for `predict`.

    Returns
    -------
    Heatmap
        ``.heat`` (h, w) float32 from 0 to 1, ``.probability``, ``.peak``, ``.overlay()``, ``.save(path)``.

    Raises
    ------
    MissingDependencyError
        When torch, captum or Pillow is not installed.
    UsageError
        When there is no such method, stage or class, or the weights have no head.
    NotFoundError, NetworkError, FormatError
        No such checkpoint or picture; not to be had; damaged.
    """
    from ckptkit.analysis.cam.explain import Explainer, read_picture, require_packages
    from ckptkit.analysis.cam.methods import find_method
    from ckptkit.analysis.model_source import SourceRequest

    require_packages()
    find_method(method)
    workspace = workspace_of_environment()
    picture = read_picture(image, workspace)
    request = SourceRequest(what, synthetic, resolution, weights, state_dict, strip_prefix, variant, settings)
    with request.open(workspace) as source:
        return Explainer(source).forward(picture).heatmap(method, stage, target)


@public
def evaluate(
    what: Named,
    data: str | Path | Sequence[str | Path],
    *,
    labels: str | Path | None = None,
    class_order: ClassOrder | None = None,
    limit: int | None = None,
    framework: Framework = "torch",
    batch_size: int = 32,
    workers: int | None = None,
    amp: bool = False,
    device: str = "auto",
    both_gates: bool = False,
    state: str | Path | None = None,
    fresh: bool = False,
    synthetic: bool = False,
    resolution: int | tuple[int, int] | None = None,
    weights: Weights = "auto",
    state_dict: str | None = None,
    strip_prefix: str | Sequence[str] | None = None,
    variant: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Measure top-1 and top-5 accuracy on labelled images, beside the published figures.

    Interrupted, the same call goes on where it was. In a script that torchrun started, the processes share
    the images and each of them gets the whole result.

    Parameters
    ----------
    data : path, or sequence of path
        A folder with one subfolder per class, or WebDataset shards: tar files, a folder of them, a pattern
        such as ``val-{000..049}.tar``.
    labels : path, optional
        For a flat folder: lines of an image's name and its class.
    class_order : {"text", "number"}, optional
        Of class folders that are not called by WordNet ids: as text 10 comes before 2, as a number after it.
        Not given, it is that of the text, with a warning where the other one differs.
    limit : int, optional
        Take a sample of this many images, spread over the classes, the same ones each time.
    framework : {"torch", "keras", "onnxruntime"}
    batch_size : int
    workers : int, optional
        Threads that load images; default one for each core, eight at most.
    amp : bool
        Half precision where autocast thinks it safe; PyTorch only.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    both_gates : bool
        Evaluate all images with the other ``attn_force_fp32`` too (MogaNet). Without it a sample is tried
        when the result is below the published figure.
    state : path, optional
        Where to keep what is done over an interruption; default a file in the cache.
    fresh : bool
        Start over, whatever an earlier call left.
    what, synthetic, resolution, weights, state_dict, strip_prefix, variant, settings
        As for `predict`.

    Returns
    -------
    Evaluation
        ``.top1`` and ``.top5`` (each with ``percent``, ``interval``, ``published``, ``verdict``), ``.bad``
        (images that cannot be decoded: they count neither way), ``.ok``, ``.other_setting``, ``.to_json()``.

    Raises
    ------
    MissingDependencyError
        When the framework or Pillow is not installed.
    UsageError
        When checkpoint, images and arguments do not fit each other.
    NotFoundError, NetworkError, FormatError, ConversionError
        Nothing there; not to be had; damaged; BatchNorm statistics are missing (see `calibrate`).
    """
    from ckptkit.analysis.evaluate.loop import EvaluationOptions, run_evaluation
    from ckptkit.analysis.model_source import SourceRequest
    from ckptkit.models import framework_named

    source = SourceRequest(what, synthetic, resolution, weights, state_dict, strip_prefix, variant, settings)
    options = EvaluationOptions(
        [data] if isinstance(data, (str, Path)) else list(data),
        labels=Path(labels) if labels is not None else None,
        class_order=class_order,
        limit=limit,
        framework=framework_named(framework),
        batch_size=batch_size,
        workers=workers,
        amp=amp,
        device=device,
        state=Path(state) if state is not None else None,
        fresh=fresh,
        both_gates=both_gates,
    )
    report = run_evaluation(source, options, workspace_of_environment())
    for bad in report.bad:
        logger.warning("%s cannot be decoded: %s", bad.name, bad.reason)
    return report


@public
def calibrate(
    what: Named,
    data: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    images: int = 2048,
    batch_size: int = 32,
    workers: int | None = None,
    device: str = "auto",
    force: bool = False,
    synthetic: bool = False,
    resolution: int | tuple[int, int] | None = None,
    weights: Weights = "auto",
    state_dict: str | None = None,
    strip_prefix: str | Sequence[str] | None = None,
    variant: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Recompute BatchNorm's moving statistics from images (Precise BN), and write a new safetensors file.

    Parameters
    ----------
    what : str, Path or Entry
        Id or entry (fetched when it is not here) or path; statistics may be missing in it.
    data : path, or sequence of path
        A folder of images, with or without class folders, or WebDataset shards; classes do not matter.
    output : path
        The ``.safetensors`` file, or a folder for it.
    images : int
        How many are taken, the same ones each time; all where there are fewer.
    batch_size : int
        Most images that pass together; each layer is normalized by the batch's own statistics meanwhile.
    workers, device
        As for `evaluate`.
    force : bool
        Replace an existing output.
    synthetic, resolution, weights, state_dict, strip_prefix, variant, settings
        As for `predict`.

    Returns
    -------
    Path
        ``output``; its metadata say what was done and from which images.

    Raises
    ------
    MissingDependencyError
        When torch or Pillow is not installed.
    UsageError
        When the output exists and ``force`` is false, or there are fewer than two images.
    NotFoundError, FormatError, ConversionError, StorageError
        Nothing there; damaged; tensors other than the statistics are missing; the disk refuses.
    """
    from ckptkit.analysis.evaluate.calibration import CalibrationOptions, run_calibration
    from ckptkit.analysis.model_source import SourceRequest

    source = SourceRequest(what, synthetic, resolution, weights, state_dict, strip_prefix, variant, settings)
    paths = [data] if isinstance(data, (str, Path)) else list(data)
    options = CalibrationOptions(paths, images, batch_size, workers, device)
    workspace, folder = workspace_of_environment(), is_folder(output)
    done = run_calibration(source, options, Path(output), workspace, folder=folder, force=force)
    for bad in done.bad:
        logger.warning("%s cannot be decoded, and was left out: %s", bad.name, bad.reason)
    return done.path
