"""Evaluating a checkpoint: the loop over the images, what an interruption leaves, and the report."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy

from ckptkit._version import __version__
from ckptkit.analysis.evaluate.data import (
    ClassOrder,
    ImageSet,
    load_batches,
    open_images,
    stamp_of,
    stratified,
)
from ckptkit.analysis.evaluate.distributed import Group, process_group
from ckptkit.analysis.evaluate.report import BadImage, Evaluation, Score, SettingComparison
from ckptkit.analysis.model_source import ModelSource, SourceRequest
from ckptkit.analysis.runner import Runner, open_runner, require_packages
from ckptkit.base.errors import CkptkitError, FormatError, StorageError, UsageError, command
from ckptkit.base.files import StagedFile, open_regular, read_regular, refuse_streams, storage_error
from ckptkit.base.tensors import Array
from ckptkit.base.text import counted
from ckptkit.models import Framework
from ckptkit.workspace import Workspace

GATE_SAMPLE = 1000
"""Images on which the other value of a missing setting is tried: enough to see 2% of accuracy."""

SAVE_EVERY_S = 5.0
_VALIDATION_IMAGES = 50_000
"""Images of ImageNet-1K's validation set, of which the published figures are."""

_FORMAT = 2
_MAX_BYTES = 64 << 20
_HEAD_BYTES = 4096
_PART = ".rank"


@dataclass(frozen=True)
class EvaluationOptions:
    """What is evaluated, and how."""

    data: Sequence[str | Path]  # A folder of images, or shards
    labels: Path | None = None  # file of classes, for a flat folder
    class_order: ClassOrder | None = None  # of class folders
    # Take a sample of this many images, spread over the classes, the same one each time
    limit: int | None = None
    framework: Framework = "torch"
    batch_size: int = 32
    workers: int | None = None  # threads that load images
    amp: bool = False  # compute in half precision where autocast thinks it safe
    device: str = "auto"  # ``auto``, ``cpu``, ``cuda`` or ``cuda:N``
    state: Path | None = None  # where to keep what is done over an interruption
    fresh: bool = False  # start over, whatever an earlier run left
    # Evaluate all images with the other value of a setting that no tensor tells, too (MogaNet's
    # attn_force_fp32)
    both_gates: bool = False
    check: bool = False  # refuse to start without a published figure to compare with

    def __post_init__(self) -> None:
        for what, value, least in (
            ("batch size", self.batch_size, 1),
            ("limit", self.limit, 1),
            ("number of workers", self.workers, 0),
        ):
            if value is not None and value < least:
                raise UsageError(f"invalid {what} {value}", hint=f"give at least {least}")
        if self.amp and self.framework != "torch":
            raise UsageError("--amp requires --framework torch", hint="leave it out")


_TO_DO, _MISSED, _TOP5, _TOP1 = range(4)
"""What came of an image: not evaluated, its class not among the best five, among them, the best one."""


@dataclass
class Progress:
    """Which images of a set are done, and which of them were hit."""

    outcomes: Array  # one uint8 for each image
    bad: dict[int, str] = field(default_factory=dict)  # images that cannot be decoded, and why

    @classmethod
    def of(cls, images: int) -> Progress:
        """Nothing done yet."""
        return cls(numpy.full(images, _TO_DO, numpy.uint8))

    @property
    def done(self) -> Array:
        """One bool for each image."""
        done: Array = self.outcomes > _TO_DO
        return done

    @property
    def top1(self) -> Array:
        """Whether the best guess was right."""
        hits: Array = self.outcomes == _TOP1
        return hits

    @property
    def top5(self) -> Array:
        """Whether one of the five best guesses was right."""
        hits: Array = self.outcomes >= _TOP5
        return hits

    @property
    def good(self) -> int:
        """Images done that could be decoded."""
        return int(self.done.sum()) - len(self.bad)

    def note(self, positions: list[int], ranks: Array, bad: Mapping[int, str]) -> None:
        """Take the result of a batch: ``ranks`` says how many classes came before each image's own."""
        self.outcomes[positions] = numpy.select([ranks < 1, ranks < 5], [_TOP1, _TOP5], _MISSED)
        self.outcomes[list(bad)] = _MISSED
        self.bad.update(bad)

    def merge(self, other: Progress) -> None:
        """Add what another process or run knows."""
        numpy.maximum(self.outcomes, other.outcomes, out=self.outcomes)
        self.bad.update(other.bad)

    def gathered(self, group: Group, known: Progress) -> Progress:
        """Add up what each process found beyond what all of them knew before."""
        if group.world == 1:
            return self
        own = (self.outcomes - known.outcomes).astype(int)
        bad = group.all_gather(json.dumps(self.bad))
        taken, outcomes = group.all_reduce(numpy.stack([own > 0, own]).astype(int))
        if taken.max(initial=0) > 1:
            raise AssertionError("an image was taken by two processes")
        reasons = {int(p): why for text in bad for p, why in json.loads(text).items()}
        return Progress(known.outcomes + outcomes.astype(numpy.uint8), reasons)

    def to_json(self) -> dict[str, Any]:
        """Plain values: a digit for each image."""
        digits = "".join(map(str, self.outcomes.tolist()))
        return {"outcomes": digits, "bad": {str(p): why for p, why in sorted(self.bad.items())}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], images: int) -> Progress | None:
        """Read what `to_json` gave; None where it is damaged, or for another number of images."""
        try:
            digits = values["outcomes"].encode("ascii")
            bad = {int(position): str(reason) for position, reason in values["bad"].items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        outcomes = numpy.frombuffer(digits, numpy.uint8) - ord("0")  # other signs give 10 and more
        sound = (
            len(outcomes) == images
            and outcomes.max(initial=0) <= _TOP1
            and all(0 <= position < images and outcomes[position] == _MISSED for position in bad)
        )
        return cls(outcomes, bad) if sound else None


class StateFile:
    """Where progress is kept between two runs. Where the disk refuses, it is not, and `refused` says why."""

    def __init__(self, path: Path, identity: Mapping[str, str], images: int, part: int | None = None) -> None:
        self.path = path
        self._identity = dict(identity)
        self._images = images
        self._own = path if part is None else path.with_name(f"{path.name}{_PART}{part}")
        self._saved = time.monotonic()
        self.refused: CkptkitError | None = None

    def refuse_other_file(self) -> None:
        """Refuse a path where another file is: it would be replaced, and removed in the end."""
        refuse_streams(self.path)
        try:
            with open_regular(self.path) as file:
                head = file.read(_HEAD_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise storage_error(error, self.path) from error
        if head and not (head.startswith(b'{"format": ') and b'"identity": ' in head):
            raise UsageError(
                f"{self.path} exists and is not a state file of an evaluation", hint="name another file"
            )

    def load(self) -> tuple[Progress | None, str]:
        """Read what earlier runs left."""
        found, why = self._read(self.path)
        for part in self._parts():
            other, _ = self._read(part)
            if other is not None and found is not None:
                found.merge(other)
            found = found or other
        return found, "" if found is not None else why

    def _parts(self) -> list[Path]:
        pattern = re.compile(re.escape(self.path.name + _PART) + r"\d+")
        try:
            return sorted(path for path in self.path.parent.iterdir() if pattern.fullmatch(path.name))
        except OSError:
            return []

    def _read(self, path: Path) -> tuple[Progress | None, str]:
        try:
            values = json.loads(read_regular(path, _MAX_BYTES))
        except (FileNotFoundError, NotADirectoryError):
            return None, ""
        except OSError as error:
            return None, f"the state file cannot be read ({storage_error(error, path).message})"
        except (ValueError, RecursionError):
            return None, "the state file is damaged"
        if not isinstance(values, dict) or not isinstance(values.get("identity"), dict):
            return None, "the file there is not a state file"
        if values.get("format") != _FORMAT:
            return None, "the state file is of another version"
        kept = values["identity"]
        changed = [key for key in self._identity if kept.get(key) != self._identity[key]]
        if changed:
            return None, " and ".join(changed) + (" has" if len(changed) == 1 else " have") + " changed"
        found = Progress.from_json(values.get("progress") or {}, self._images)
        return found, "" if found else "the state file is damaged"

    def save(self, progress: Progress, *, try_only: bool = False) -> None:
        """Write progress, whole or not at all; ``try_only`` finds out whether that would be possible."""
        values = {"format": _FORMAT, "identity": self._identity, "progress": progress.to_json()}
        try:
            with StagedFile(self._own, force=True, own=True) as file:
                file.append(json.dumps(values).encode())
                if not try_only:
                    file.commit()
            self.refused = None
        except (StorageError, UsageError) as error:
            self.refused = error
        self._saved = time.monotonic()

    def save_now_and_then(self, progress: Progress) -> None:
        """Write progress when the last time is some seconds ago."""
        if time.monotonic() - self._saved >= SAVE_EVERY_S:
            self.save(progress)

    def gather(self, progress: Progress) -> None:
        """Keep the gathered progress in one file and remove the parts."""
        parts = self._parts()
        if parts:
            self.save(progress)
            if self.refused is None:
                _unlink(parts)

    def remove(self) -> None:
        """Forget it all: the evaluation is finished."""
        _unlink({self.path, self._own, *self._parts()})


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):  # a state file that stays is found out of date by the next run
            if stat.S_ISREG(path.lstat().st_mode):
                path.unlink()


def default_state_path(folder: Path, name: str, choices: Mapping[str, str]) -> Path:
    """Where the state of an evaluation is kept by default: one file for each set of choices."""
    digest = hashlib.sha256(json.dumps(dict(choices), sort_keys=True).encode()).hexdigest()[:16]
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[-80:].strip("-.") or "evaluation"
    return folder / f"{stem}-{digest}.json"


def state_file(
    source: ModelSource,
    options: EvaluationOptions,
    images: ImageSet,
    settings: Mapping[str, Any],
    *,
    part: int | None,
) -> StateFile:
    """Where the progress of an evaluation is kept, and what it depends on."""
    choices = {
        "weights": source.weights,
        "state dict": str(source.located.state_dict),
        "prefixes": " ".join(source.located.strip_prefix),
        "settings": json.dumps(dict(settings), sort_keys=True),
        "preprocessing": str(source.preprocessing),
        "framework": options.framework,
        "precision": "amp" if options.amp else "float32",
        "limit": str(options.limit),
    }
    where = {
        "checkpoint": source.name if source.entry or source.made else str(source.located.path.absolute()),
        "data": "\n".join(os.path.abspath(one) for one in options.data),  # noqa: PTH100  # patterns too
        "labels": str(options.labels.absolute()) if options.labels else "",
    }
    path = options.state or default_state_path(
        source.workspace.home.writable("eval"), Path(source.name).name, {**choices, **where}
    )
    identity = {
        **{f"the {key}": value for key, value in choices.items()},
        "the checkpoint": checkpoint_stamp(source),
        "the data set": images.identity,
        "ckptkit": __version__,
    }
    if path.is_symlink():  # it stays a link to the written file
        path = Path(os.path.realpath(path))
    state = StateFile(path, identity, len(images), part)
    if options.state is not None:
        state.refuse_other_file()
    return state


def checkpoint_stamp(source: ModelSource) -> str:
    """What tells a checkpoint from another one without reading it."""
    located = source.located
    if source.made:
        return f"synthetic {source.name}"
    if located.identity:
        return located.identity
    path = located.path
    if path.is_dir():
        files = sorted(one for one in path.iterdir() if one.is_file())
    else:
        files = [path] if path.is_file() else sorted(path.parent.glob(f"{path.name}.*"))
    return "; ".join(stamp_of(file).replace("\0", " ") for file in files)


def run_evaluation(request: SourceRequest, options: EvaluationOptions, workspace: Workspace) -> Evaluation:
    """Measure the accuracy of a checkpoint, by all processes that torchrun started."""
    require_packages("eval", options.framework)
    with (
        process_group(options.device, options.framework) as group,
        request.open(workspace) as source,
    ):
        return evaluate_source(source, options, group)


def evaluate_source(
    source: ModelSource, options: EvaluationOptions, group: Group | None = None
) -> Evaluation:
    """Measure the accuracy of an open checkpoint; every process of a group gets the whole report."""
    if source.num_classes is None:
        raise UsageError(f"{source.name}: no classification head, so there is nothing to score")
    reason = not_comparable(source)
    if options.check and reason:
        raise UsageError(f"--check has nothing to compare {source.name} with: {reason}", hint="leave it out")
    return _Run(source, options, group or Group()).evaluate(reason)


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


@dataclass
class _Run:
    """One evaluation, under way."""

    source: ModelSource
    options: EvaluationOptions
    group: Group
    notes: list[str] = field(default_factory=list)

    @property
    def workspace(self) -> Workspace:
        """Where notes, warnings and progress go."""
        return self.source.workspace

    def evaluate(self, reason: str) -> Evaluation:
        """Find the images, take up what an earlier run did, run the rest, report."""
        source, options, group = self.source, self.options, self.group
        whole = open_images(
            options.data, source.num_classes, labels=options.labels, class_order=options.class_order
        )
        for remark in whole.remarks:
            self.workspace.warn(remark)
        images = whole.limited(options.limit)
        if len(set(group.all_gather(f"{images.identity} {options.limit}"))) > 1:
            raise _different_images()
        settings = self._settings()
        runner = self._runner(settings)
        part = group.rank if group.world > 1 else None
        state = state_file(source, options, images, settings, part=part)
        known = self._known(state, len(images))
        state.save(known, try_only=True)
        if state.refused is not None:
            self.workspace.warn(
                f"{state.refused.message}: progress cannot be saved, so an interrupted run starts over"
            )
        progress = Progress.of(len(images))
        progress.merge(known)
        begun = time.monotonic()
        try:
            self._score(images, range(len(images)), runner=runner, progress=progress, state=state)
        except BaseException:
            self._keep(state, progress)
            raise
        total = progress.gathered(group, known)
        seconds = time.monotonic() - begun
        state.save(progress)  # the other setting may be tried yet
        bad = tuple(BadImage(images.samples[p].name, why) for p, why in sorted(total.bad.items()))
        if not total.good:
            raise FormatError(images.what, f"no image can be decoded; {bad[0].name}: {bad[0].reason}")
        if not reason and len(whole) != _VALIDATION_IMAGES:
            self.notes.append(
                f"published figures are of ImageNet-1K's {_VALIDATION_IMAGES:,} validation images; here are "
                f"{len(whole):,}"
            )
        scores = self._scores(total, reason)
        below = scores[0].verdict == "measured below"
        other = self._other_setting(images, total, settings, below=below)
        state.remove()
        entry = source.origin
        return Evaluation(
            name=source.name,
            entry=entry.id if entry else None,
            variant=source.variant,
            settings=settings,
            preprocessing=str(source.preprocessing),
            framework=options.framework,
            versions=runner.versions,
            device=runner.device,
            precision=runner.precision,
            processes=group.world,
            data=whole.what,
            rule=whole.rule,
            in_set=len(whole),
            images=total.good,
            classes=images.classes,
            resumed=int(known.done.sum()),
            bad=bad,
            scores=scores,
            seconds=seconds,
            other_setting=other,
            notes=tuple(self.notes),
        )

    def _settings(self) -> dict[str, Any]:
        """Behaviour settings that are known; with ``both_gates`` a missing one is taken as true."""
        source = self.source
        known = source.known_settings()
        if self.options.both_gates:
            if self._open_setting is None:
                raise UsageError(
                    f"--both-gates: family {source.family.name} has no such setting", hint="leave it out"
                )
            for key in source.family.missing_settings(known):
                self.notes.append(f"{key} is not known: evaluated as true, then as false")
                known[key] = True
        return known

    @property
    def _open_setting(self) -> str | None:
        """The setting of which both values are in use; None where the family has none."""
        return next(iter(self.source.family.required_settings), None)

    def _runner(self, settings: Mapping[str, Any]) -> Runner:
        options = self.options
        return open_runner(self.source, options.framework, options.device, amp=options.amp, **settings)

    def _known(self, state: StateFile, images: int) -> Progress:
        """What earlier runs have done, the same in every process."""
        found = Progress.of(images)
        if self.group.rank == 0:
            loaded, why = (None, "") if self.options.fresh else state.load()
            if why:
                self.workspace.note(f"{why}: starting over ({state.path})")
            if self.options.fresh:
                state.remove()
            if loaded is not None:
                found = loaded
                state.gather(found)
        values = json.loads(self.group.broadcast(json.dumps(found.to_json())))
        known = Progress.from_json(values, images)
        if known is None:
            raise _different_images()
        if done := int(known.done.sum()):
            self.workspace.note(f"resuming after {done:,} of {counted(images, 'image')} ({state.path})")
        return known

    def _score(
        self,
        images: ImageSet,
        positions: Sequence[int],
        *,
        runner: Runner,
        progress: Progress,
        state: StateFile | None = None,
        doing: str = "evaluating",
    ) -> None:
        """Take this process' share of the images that are not done yet, and note the results."""
        rest = self.group.share([position for position in positions if not progress.done[position]])
        size = self.options.batch_size
        batches = load_batches(
            images,
            [rest[start : start + size] for start in range(0, len(rest), size)],
            self.source.preprocessing,
            workers=self.options.workers,
        )
        where = f" (process 1 of {self.group.world})" if self.group.world > 1 else ""
        title = f"{doing} {self.source.name}{where}"
        with (
            self.workspace.progress(title, len(rest), unit="images") as advance,
            closing(batches),
        ):
            for batch in batches:
                self.group.check()
                ranks = numpy.empty(0, int)
                if batch.positions:
                    logits = runner.run(batch.images)
                    samples = [images.samples[position] for position in batch.positions]
                    self._require_finite(logits, [sample.name for sample in samples])
                    ranks = ranks_of(logits, numpy.array([sample.label for sample in samples], dtype=int))
                progress.note(batch.positions, ranks, batch.bad)
                if state is not None:
                    state.save_now_and_then(progress)
                advance(len(batch.positions) + len(batch.bad))

    def _require_finite(self, logits: Array, names: Sequence[str]) -> None:
        finite = numpy.isfinite(logits).all(axis=1)
        if not finite.all():
            raise FormatError(
                self.source.located.path,
                f"its logits for {names[int(numpy.argmin(finite))]} are not all numbers",
                hint="leave --amp out" if self.options.amp else command("verify", self.source.name),
            )

    def _keep(self, state: StateFile, progress: Progress) -> None:
        """Save what is done, and say where it goes on."""
        done = int(progress.done.sum())
        if not done:
            return
        state.save(progress)
        if state.refused is not None:
            self.workspace.warn(f"{state.refused.message}: progress was not saved")
            return
        what = (
            f"{done:,} of {counted(len(progress.done), 'image')} are done"
            if self.group.world == 1
            else "kept what is done"
        )
        self.workspace.note(f"{what}; the same command resumes from there ({state.path})")

    def _scores(self, progress: Progress, reason: str) -> tuple[Score, ...]:
        entry, classes = self.source.origin, self.source.num_classes or 0
        return tuple(
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
            if best <= classes
        )

    def _other_setting(
        self, images: ImageSet, progress: Progress, settings: Mapping[str, Any], *, below: bool
    ) -> SettingComparison | None:
        """Try the other value of a setting that no tensor tells, where it could explain a poor result."""
        key = self._open_setting
        if key is None or not (below or self.options.both_gates):
            return None
        good = [p for p in range(len(images)) if p not in progress.bad]
        if not self.options.both_gates and len(good) > GATE_SAMPLE:
            good = [good[i] for i in stratified([images.samples[p] for p in good], GATE_SAMPLE)]
        value = bool(settings[key])
        other = Progress.of(len(images))
        runner = self._runner({**settings, key: not value})
        self._score(images, good, runner=runner, progress=other, doing=f"{key}={str(not value).lower()}:")
        other = other.gathered(self.group, Progress.of(len(images)))
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


def ranks_of(logits: Array, labels: Array) -> Array:
    """How many classes come before each image's own; among equal logits the lower index comes first.

    ``logits``: (N, classes). ``labels``: (N,) of int.

    >>> ranks_of(numpy.array([[1.0, 3.0, 2.0], [1.0, 1.0, 1.0]]), numpy.array([2, 1]))
    array([1, 1])
    """
    own = numpy.take_along_axis(logits, labels[:, None], axis=1)
    earlier = numpy.arange(logits.shape[1])[None, :] < labels[:, None]
    ranks: Array = ((logits > own) | ((logits == own) & earlier)).sum(axis=1)
    return ranks


def _different_images() -> UsageError:
    return UsageError("the processes see different images", hint="all need the same --data and --limit")
