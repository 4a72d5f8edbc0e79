"""Evaluating a checkpoint: from the model and the images to the report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckptkit.analysis.evaluate.distributed import Group
from ckptkit.analysis.evaluate.identity import state_file
from ckptkit.analysis.evaluate.interval import Score
from ckptkit.analysis.evaluate.opening import open_images
from ckptkit.analysis.evaluate.options import EvaluationOptions
from ckptkit.analysis.evaluate.progress import Progress, StateFile
from ckptkit.analysis.evaluate.report import BadImage, Evaluation, SettingComparison
from ckptkit.analysis.evaluate.running import Predictor, keras_predictor, torch_device, torch_predictor
from ckptkit.analysis.evaluate.samples import ImageSet, stratified
from ckptkit.analysis.evaluate.scoring import ProgressBar, no_bar, score
from ckptkit.analysis.model_source import ModelSource
from ckptkit.base.errors import FormatError, UsageError
from ckptkit.families.base import MUST_BE_TOLD
from ckptkit.families.behaviour import known_settings, missing_settings

GATE_SAMPLE = 1000
"""Images on which the other value of an untold setting is tried: enough to see 2% of accuracy."""

_VALIDATION_IMAGES = 50_000
"""Images of ImageNet-1K's validation set, of which the published figures are."""


@dataclass
class _Run:
    """One evaluation, under way."""

    source: ModelSource
    options: EvaluationOptions
    group: Group
    note: Callable[[str], None]
    warn: Callable[[str], None]
    bar: ProgressBar
    notes: list[str] = field(default_factory=list)


def evaluate_source(
    source: ModelSource,
    options: EvaluationOptions,
    *,
    group: Group | None = None,
    note: Callable[[str], None] = lambda _sentence: None,
    warn: Callable[[str], None] = lambda _sentence: None,
    bar: ProgressBar = no_bar,
) -> Evaluation:
    """Measure the accuracy of a checkpoint."""
    run = _Run(source, options, group or Group(), note, warn, bar)
    if source.num_classes is None:
        raise UsageError(f"{source.name}: no classification head, so there is nothing to score")
    reason = not_comparable(source)
    if options.check and reason:
        raise UsageError(f"--check has nothing to hold {source.name} against: {reason}", hint="leave it out")
    whole = open_images(
        options.data, source.num_classes, labels=options.labels, class_order=options.class_order
    )
    for remark in whole.remarks:
        run.warn(remark)
    images = whole.limited(options.limit)
    if len(set(run.group.told(f"{images.identity} {options.limit}"))) > 1:
        raise UsageError("the processes see different images", hint="all need the same --data and --limit")
    settings = _settings(run)
    predictor = _predictor(run, settings)
    done = _evaluated(run, images, predictor, settings)
    report = _report(run, whole, done, reason)
    done.state.remove()
    return report


def not_comparable(source: ModelSource) -> str:
    """Why the published figures say nothing of this model; empty where they do."""
    entry = source.origin
    if source.synthetic:
        return "the weights are synthetic"
    if entry is None:
        return "no entry of the registry is named"
    if entry.published_top1 is None and entry.published_top5 is None:
        return "none is published"
    resolution = entry.test_resolution
    if resolution is not None and source.preprocessing.size != (resolution, resolution):
        return f"published at {resolution}×{resolution}"
    if source.weights != "auto" and entry.weights is not None and source.weights != entry.weights:
        return f"published for the {entry.weights} weights"
    return ""


def _settings(run: _Run) -> dict[str, Any]:
    """Behaviour settings as they are said; with both values asked for, the untold one is taken as true."""
    source = run.source
    said = known_settings(
        source.family,
        told=source.settings,
        entry=source.entry,
        metadata=source.metadata,
        path=source.located.path,
    )
    if run.options.both_gates:
        if _untold(source) is None:
            raise UsageError(
                f"--both-gates: family {source.family.name} has no such setting", hint="leave it out"
            )
        for key in missing_settings(source.family, said):
            run.notes.append(f"{key} is not known: evaluated as true, then as false")
            said[key] = True
    return said


def _untold(source: ModelSource) -> str | None:
    """The setting of which both values are in use; None where the family has none."""
    return next((key for key, value in source.family.behaviour.items() if value is MUST_BE_TOLD), None)


def _predictor(run: _Run, settings: Mapping[str, Any]) -> Predictor:
    if run.options.framework == "keras":
        return keras_predictor(run.source, run.options.device, **settings)
    device = torch_device(run.options.device)
    return torch_predictor(run.source, device, amp=run.options.amp, **settings)


def _evaluated(run: _Run, images: ImageSet, predictor: Predictor, settings: Mapping[str, Any]) -> _Done:
    """Evaluate what earlier runs have not done."""
    part = run.group.rank if run.group.world > 1 else None
    state = state_file(run.source, run.options, images, settings, part=part)
    known = _known(run, state, len(images))
    resumed = int(known.done.sum())
    state.save(known, try_only=True)
    if state.refused is not None:
        run.warn(f"{state.refused.message}: what is done cannot be kept, so an interrupted run begins anew")
    progress = Progress.of(len(images))
    progress.merge(known)
    begun = time.monotonic()
    try:
        score(
            run.source,
            run.options,
            images,
            range(len(images)),
            predictor=predictor,
            progress=progress,
            group=run.group,
            bar=run.bar,
            state=state,
        )
    except BaseException:
        _keep(run, state, progress)
        raise
    total = run.group.added(progress, known)
    seconds = time.monotonic() - begun
    state.save(progress)  # another setting may be tried yet
    return _Done(images, settings, predictor, state, total, resumed, seconds)


def _keep(run: _Run, state: StateFile, progress: Progress) -> None:
    """Save what is done, and say where it goes on."""
    done = int(progress.done.sum())
    if not done:
        return
    state.save(progress)
    if state.refused is not None:
        run.warn(f"{state.refused.message}: what is done was not kept")
    else:
        what = (
            f"{done:,} of {len(progress.done):,} images are done"
            if run.group.world == 1
            else "kept what is done"
        )
        run.note(f"{what}; the same command goes on from there ({state.path})")


def _known(run: _Run, state: StateFile, images: int) -> Progress:
    """What earlier runs have done, the same in every process."""
    found = Progress.of(images)
    if run.group.rank == 0:
        loaded, why = (None, "") if run.options.fresh else state.load()
        if why:
            run.note(f"{why}: beginning anew ({state.path})")
        if run.options.fresh:
            state.remove()
        if loaded is not None:
            found = loaded
            state.gather(found)
    told = json.loads(run.group.told_by_first(json.dumps(found.to_json())))
    known = Progress.from_json(told, images)
    if known is None:
        raise UsageError("the processes see different images", hint="all need the same --data and --limit")
    done = int(known.done.sum())
    if done:
        run.note(f"going on after {done:,} of {images:,} images ({state.path})")
    return known


@dataclass(frozen=True)
class _Done:
    """What an evaluation gave."""

    images: ImageSet
    settings: Mapping[str, Any]
    predictor: Predictor
    state: StateFile
    progress: Progress
    resumed: int
    seconds: float


def _report(run: _Run, whole: ImageSet, done: _Done, reason: str) -> Evaluation:
    source, entry = run.source, run.source.origin
    images, progress, predictor = done.images, done.progress, done.predictor
    bad = tuple(BadImage(images.samples[p].name, why) for p, why in sorted(progress.bad.items()))
    if not progress.good:
        raise FormatError(images.what, f"no image can be decoded; {bad[0].name}: {bad[0].reason}")
    scores = [
        Score(
            best,
            int(hits.sum()),
            progress.good,
            published,
            reason or ("" if published is not None else "none is published"),
        )
        for best, hits, published in (
            (1, progress.top1, entry.published_top1 if entry else None),
            (5, progress.top5, entry.published_top5 if entry else None),
        )
        if best <= (source.num_classes or 0)
    ]
    if not reason and len(whole) != _VALIDATION_IMAGES:
        run.notes.append(
            f"published figures are of ImageNet-1K's {_VALIDATION_IMAGES:,} validation images; here are "
            f"{len(whole):,}"
        )
    return Evaluation(
        name=source.name,
        entry=entry.id if entry else None,
        variant=source.variant,
        settings=done.settings,
        preprocessing=str(source.preprocessing),
        framework=run.options.framework,
        versions=predictor.versions,
        device=predictor.device,
        precision=predictor.precision,
        processes=run.group.world,
        data=whole.what,
        rule=whole.rule,
        in_set=len(whole),
        images=progress.good,
        classes=images.classes,
        resumed=done.resumed,
        bad=bad,
        scores=tuple(scores),
        seconds=done.seconds,
        other_setting=_other_setting(run, done, below=scores[0].verdict == "measured below"),
        notes=tuple(run.notes),
    )


def _other_setting(run: _Run, done: _Done, *, below: bool) -> SettingComparison | None:
    """Try the other value of a setting that no tensor tells, where it could explain a poor result."""
    images, progress, settings = done.images, done.progress, done.settings
    key = _untold(run.source)
    if key is None or not (below or run.options.both_gates):
        return None
    good = [p for p in range(len(images)) if p not in progress.bad]
    if not run.options.both_gates and len(good) > GATE_SAMPLE:
        good = [good[i] for i in stratified([images.samples[p] for p in good], GATE_SAMPLE)]
    value = bool(settings[key])
    predictor = _predictor(run, {**settings, key: not value})
    nothing = Progress.of(len(images))
    other = Progress.of(len(images))
    score(
        run.source,
        run.options,
        images,
        good,
        predictor=predictor,
        progress=other,
        group=run.group,
        bar=run.bar,
        doing=f"{key}={str(not value).lower()}:",
    )
    other = run.group.added(other, nothing)
    mine, theirs = progress.top1[good], other.top1[good]
    return SettingComparison(
        key,
        value,
        images=len(good),
        hits=int(mine.sum()),
        other_hits=int(theirs.sum()),
        only_this=int((mine & ~theirs).sum()),
        only_other=int((theirs & ~mine).sum()),
    )
