"""``registry validate``, ``schema``, ``pin`` and ``add``: for those who write registry files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from ckptkit.base.errors import IntegrityError, NetworkError, NotFoundError, UsageError, command
from ckptkit.base.files import resolved
from ckptkit.base.text import counted
from ckptkit.base.urls import at_revision, hub_place, is_commit, scrubbed
from ckptkit.cli.completion import (
    complete_families,
    complete_fetched,
    complete_ids,
    complete_tasks,
    complete_values,
    complete_variants,
)
from ckptkit.cli.options import (
    PosEmbOption,
    SettingOptions,
    State,
    StateDictOption,
    StripPrefixOption,
    file_to_write,
    parse_settings,
    state_of,
    usage_of,
)
from ckptkit.cli.output import ExitCode
from ckptkit.formats.names import FORMATS

if TYPE_CHECKING:
    from ckptkit.families.recognition import Recognition
    from ckptkit.formats.base import Reader
    from ckptkit.registry.edit import Addition, Edit, Pin
    from ckptkit.registry.schema import Entry
    from ckptkit.store.cache import Home, Record
    from ckptkit.store.lockfile import LockEntry, LockFile
    from ckptkit.workspace import Located

FileOption = Annotated[
    Path | None,
    file_to_write(
        "--file", help="The registry to write; else the last --registry, else CKPTKIT_REGISTRY's last."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the change as a diff, write nothing.")]

registry_app = typer.Typer(help="Check, describe, pin and add to registry files.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(registry_app, name="registry", short_help="Check, describe, pin and add to registry files.")


@registry_app.command("validate")
def validate_command(
    context: typer.Context,
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FILE…", help="Registries, each on top of the built-in one; default: those in use."
        ),
    ] = None,
) -> None:
    """Check registry files: every fault with its line. Exit 1 when there are any.

    Examples: ckptkit registry validate · ckptkit registry validate mine.yaml --json
    """
    from ckptkit.registry.loading import registry_files

    state = state_of(context)
    checks = [_check(file) for file in files] if files else _check_chain(registry_files(state.registries))
    state.output.result(checks, *(line for check in checks for line in _checked(check)))
    if any(check["faults"] for check in checks):
        raise typer.Exit(int(ExitCode.CHECK_FAILED))


def _checked(check: dict[str, Any]) -> Iterator[str]:
    faults = check["faults"]
    found = counted(len(faults), "fault")
    if not faults:
        found = f"{counted(check['entries'], 'entry')}, no fault"
    return (f"{check['file']}: {one}" for one in (*faults, found))


def _check(file: Path) -> dict[str, Any]:
    from ckptkit.registry.loading import built_in_path

    built_in = built_in_path()
    alone = resolved(file) == resolved(built_in)
    return _check_chain([file] if alone else [built_in, file])[-1]


def _check_chain(files: list[Path]) -> list[dict[str, Any]]:
    """Load files on top of each other: how many entries each has, or the faults of the first that has any."""
    from ckptkit.base.errors import RegistryError
    from ckptkit.families.base import registry_families
    from ckptkit.registry.loading import load_texts, read_text

    try:
        registry = load_texts([(file, read_text(file)) for file in files], registry_families())
    except RegistryError as error:
        return [{"file": str(error.path), "entries": None, "faults": error.faults}]
    counts = zip(files, registry.counts, strict=True)
    return [{"file": str(file), "entries": count, "faults": []} for file, count in counts]


@registry_app.command("schema")
def schema_command(context: typer.Context) -> None:
    """Print the JSON Schema of a registry file, for editors.

    Examples: ckptkit registry schema · ckptkit registry schema > registry.schema.json
    """
    from ckptkit.families.base import registry_families
    from ckptkit.registry.schema import json_schema

    state_of(context).output.result(json_schema(registry_families()), json=True)


@registry_app.command("pin")
def pin_command(
    context: typer.Context,
    ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ID…", help="Fetched entries, or globs on ids.", autocompletion=complete_fetched
        ),
    ] = None,
    all_entries: Annotated[
        bool, typer.Option("--all", help="Pin every fetched entry; skip the others.")
    ] = False,
    file: FileOption = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Replace a different checksum, or pin the upload without BatchNorm statistics."
        ),
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Write the observed sha256, size and time of fetched files into a registry file.

    What was observed is in the cache and in the lock file. Comments and order are kept. The checksum is
    that of the file you fetched, not the publisher's word: the entry says when and from where it was
    observed, and which of the server's checksums held.

    Examples: ckptkit registry pin tiny-moat0-256 --file mine.yaml · ckptkit registry pin --all --dry-run
    """
    from ckptkit.families.base import registry_families
    from ckptkit.registry.edit import preview_pins

    state = state_of(context)
    if not ids and not all_entries:
        typer.echo(usage_of(context), err=True)
    pins = _observed_checksums(state, ids or [], all_entries=all_entries, force=force)
    target, below = _target(state, file)
    edit = preview_pins(target, pins, below=below, families=registry_families())
    lines = [
        f"{pin.id}  sha256 {one['sha256']}  {one['size']} bytes  {pin.observed_at}"
        for pin in pins
        for one in (vars(pin), *pin.companions)
    ]
    shown = [
        {
            **{name: getattr(pin, name) for name in ("id", "sha256", "size", "observed_at")},
            "companions": pin.companions,
        }
        for pin in pins
    ]
    _finish(state, target, edit, {"pins": shown}, lines, dry_run=dry_run)


def _observed_checksums(state: State, ids: Sequence[str], *, all_entries: bool, force: bool) -> list[Pin]:
    """Pins of some entries, or of all that were ever fetched here."""
    from ckptkit.store.cache import Home
    from ckptkit.store.lockfile import LockFile

    if bool(ids) == all_entries:
        both = ", not both" if ids else ""
        raise UsageError(f"give ids or globs, or --all{both}", hint="see 'ckptkit list --cached'")
    registry, home, trust = state.registry(), Home.default(), LockFile.default()

    def seen(entry: Entry) -> Record | None:
        return home.record(entry.id) or _remembered(entry, trust.files(entry.id))

    def fetched() -> list[str]:
        return [entry.id for entry in registry.values() if seen(entry)]

    pins, stated = [], 0
    names = list(registry) if all_entries else state.workspace().expand(ids, fetched, files=False)
    for entry in map(registry.__getitem__, names):
        record = seen(entry)
        if all_entries and record is None:
            continue
        if all_entries and record and _lacks_bn_statistics(entry, record) and not force:
            state.output.warn(f"{entry.id}: skipped, only the upload without BatchNorm statistics is here")
            continue
        pin = _pin_of(entry, record, home, trust, force=force)
        if _is_stated(entry, pin):
            state.output.note(f"{entry.id}: its sha256 is stated by the publisher; left as it is")
            stated += 1
            continue
        pins.append(pin)
    if not pins and not stated:
        raise NotFoundError("nothing to pin has been fetched here", hint="run 'ckptkit fetch ID' first")
    if all_entries and len(pins) + stated < len(registry):
        state.output.note(
            f"{len(pins) + stated} of {counted(len(registry), 'entry')} were fetched; "
            "the others stay as they are"
        )
    return pins


def _remembered(entry: Entry, known: dict[str, LockEntry]) -> Record | None:
    """Make a record of what the lock file knows; of several uploads the one that is tried first."""
    from ckptkit.store.cache import FOUND, IMPORTED, Record
    from ckptkit.store.sources import plan_sources

    planned = plan_sources(entry)
    known = {name: seen for name, seen in known.items() if entry.of_companion(name) is None}
    file = next((name for name in [*(source.file for source in planned), *known] if name in known), None)
    if file is None:
        return None
    seen = known[file]
    return Record(
        id=entry.id,
        url=seen.url,
        file=file,
        size=seen.size,
        sha256=seen.sha256,
        fetched_at=seen.first_seen,
        used_url=seen.used_url,
        server_hashes=seen.server_hashes,
        note={"import": IMPORTED, "cache": FOUND}.get(seen.how, ""),
        bn_statistics=next((source.bn_statistics for source in planned if source.file == file), None),
    )


def _pin_of(entry: Entry, record: Record | None, home: Home, trust: LockFile, *, force: bool) -> Pin:
    """Make a pin of a record; refuse what contradicts an earlier one, or would refuse the better upload."""
    from ckptkit.registry.edit import Pin

    if record is None:
        raise NotFoundError(
            f"{entry.id} has not been fetched here, so its checksum is not known",
            hint=command("fetch", entry.id),
        )
    trusted = trust.expected(entry.id, record.file)
    if trusted is not None and trusted.value != record.sha256 and not force:
        raise IntegrityError(
            f"{entry.id}: the cached file has sha256 {record.sha256}, but {trusted.origin} says "
            f"{trusted.value}",
            hint="--force pins the cached one, if that is the right one",
        )
    if entry.sha256 is not None and entry.sha256 != record.sha256 and not force:
        raise IntegrityError(
            f"{entry.id}: the fetched file has sha256 {record.sha256}, but {entry.sha256} is pinned",
            hint="--force pins the fetched one, if that is the right one",
        )
    if _lacks_bn_statistics(entry, record) and not force:
        raise UsageError(
            f"{entry.id}: the cached file is the upload without BatchNorm statistics ({record.url}), "
            "and a checksum pinned from it would refuse the one with them",
            hint="--force pins it all the same. "
            + command("fetch", entry.id, "--force").replace("Run", "To have the better one first", 1),
        )
    came_from = record.used_url or record.url
    note = _provenance_note(record)
    beside = _pinned_companions(entry, record, home, trust, force=force)
    return Pin(entry.id, record.sha256, record.size, record.fetched_at, came_from, note, beside)


def _is_stated(entry: Entry, pin: Pin) -> bool:
    """Whether the publisher's checksums are those that would be pinned."""
    stated = [entry.sha256, *(one.sha256 for one in entry.companions)]
    return entry.is_published_checksum and stated == [pin.sha256, *(one["sha256"] for one in pin.companions)]


def _pinned_companions(
    entry: Entry, record: Record, home: Home, trust: LockFile, *, force: bool
) -> tuple[Mapping[str, Any], ...]:
    """The companions of an entry with the checksums that were observed of them."""
    found = []
    for companion, alone in zip(entry.companions, entry.files[1:], strict=True):
        known = {name: seen for name, seen in trust.files(entry.id).items() if name == companion.name}
        seen = home.beside(record).get(companion.name) or _remembered(alone, known)
        pin = _pin_of(alone, seen, home, trust, force=force)
        stated = companion.model_dump(exclude_none=True)
        found.append({**stated, "sha256": pin.sha256, "size": pin.size})
    return tuple(found)


def _lacks_bn_statistics(entry: Entry, record: Record) -> bool:
    """Whether it is the upload without statistics where the entry means the one with them."""
    return record.bn_statistics is False and any(source.bn_statistics for source in entry.sources)


def _provenance_note(record: Record) -> str | None:
    """Say how the bytes came and what they were compared with, where that is more than the URL says."""
    hashes = " and ".join(sorted(record.server_hashes))
    elsewhere = record.used_url not in ("", record.url)
    parts = [
        record.note,
        f"published at {record.url}" if elsewhere else "",
        f"the server's {hashes} held" if hashes else "",
    ]
    return "; ".join(text for text in parts if text) or None


_COUNT = "exactly as published, such as"


@dataclass(frozen=True)
class EntryFields:
    """What the options of ``add`` say of an entry, under the registry's names."""

    family: Annotated[
        str | None, typer.Option(help="Architecture family.", autocompletion=complete_families)
    ] = None
    variant: Annotated[
        str | None,
        typer.Option(
            help="Architecture of the family, which follows from it.", autocompletion=complete_variants
        ),
    ] = None
    layout: Annotated[
        str | None,
        typer.Option(
            help="Names and axis order, such as torch, deeplab2, openmixup or kecam.",
            autocompletion=complete_values("layout"),
        ),
    ] = None
    format: Annotated[
        str | None,
        typer.Option(help=f"Container: {', '.join(FORMATS)}.", autocompletion=complete_values("format")),
    ] = None
    weights: Annotated[
        str | None,
        typer.Option(
            help="Copy the accuracy belongs to, where the file holds both: ema, raw.",
            autocompletion=complete_values("weights"),
        ),
    ] = None
    display_name: Annotated[str | None, typer.Option(help="Display name; default: the id.")] = None
    task: Annotated[
        str | None,
        typer.Option(
            help="What the model is for; default: image-classification.", autocompletion=complete_tasks
        ),
    ] = None
    serves: Annotated[
        str | None,
        typer.Option(
            help="What is known of the file: whole (default), backbone, container.",
            autocompletion=complete_values("serves"),
        ),
    ] = None
    method: Annotated[
        str | None, typer.Option(help="Detector or head around the backbone: 'Mask R-CNN'.")
    ] = None
    setting: Annotated[str | None, typer.Option(help="Training recipe or schedule.")] = None
    dataset: Annotated[str | None, typer.Option(help="Evaluation data of the metrics.")] = None
    num_classes: Annotated[
        int | None, typer.Option("--classes", metavar="COUNT", help="Classes that the model tells apart.")
    ] = None
    train_resolution: Annotated[
        int | None, typer.Option("--resolution", metavar="PIXELS", help="Input side in training and testing.")
    ] = None
    test_resolution: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Input side in testing, if different.")
    ] = None
    published_params: Annotated[
        str | None, typer.Option("--params", metavar="COUNT", help=f"Parameters {_COUNT} 27.8M.")
    ] = None
    published_flops: Annotated[
        str | None, typer.Option("--flops", metavar="COUNT", help=f"Multiply-adds {_COUNT} 5.7B.")
    ] = None
    published_top1: Annotated[
        float | None, typer.Option("--top1", metavar="PERCENT", help="Published top-1 accuracy.")
    ] = None
    published_top5: Annotated[
        float | None, typer.Option("--top5", metavar="PERCENT", help="Published top-5 accuracy.")
    ] = None
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metric", metavar="NAME=VALUE", help="A further published metric; repeat for several."
        ),
    ] = None
    sha256: Annotated[
        str | None, typer.Option(metavar="HEX", help="sha256 that the publisher states on --checksum-page.")
    ] = None
    md5: Annotated[
        str | None, typer.Option(metavar="HEX", help="MD5 that the publisher states on --checksum-page.")
    ] = None
    checksum_page: Annotated[
        str | None, typer.Option(metavar="URL", help="The publisher's page with the checksum.")
    ] = None
    companions: Annotated[
        list[str] | None,
        typer.Option(
            "--companion",
            metavar="PATH",
            help="A further file, as seen from URL: a shard, the data of an index; repeat for several.",
        ),
    ] = None
    license: Annotated[str | None, typer.Option(metavar="SPDX", help="Licence, such as Apache-2.0.")] = None
    normalization: Annotated[
        str | None,
        typer.Option(
            help="Normalization of the input: imagenet or half.",
            autocompletion=complete_values("normalization"),
        ),
    ] = None
    pos_emb: PosEmbOption = None
    note: Annotated[str | None, typer.Option(help="A note about the entry.")] = None

    def given(self) -> dict[str, Any]:
        """The fields that are given, and those that follow: the test resolution, a variant's family."""
        from ckptkit.families.base import family_of_variant

        given = {name: value for name, value in vars(self).items() if value is not None}
        if self.metrics is not None:
            given["metrics"] = dict(map(_metric, self.metrics))
        if self.companions is not None:
            given["companions"] = [{"path": path} for path in dict.fromkeys(self.companions)]
        if self.train_resolution is not None:
            given.setdefault("test_resolution", self.train_resolution)
        if self.variant is not None and self.family is None:
            given["family"] = family_of_variant(self.variant).name
        return given


def _at_revision(url: str, revision: str, state: State) -> str:
    """A URL on the Hugging Face hub at a commit; a branch or a tag is what the hub says it is now."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", revision) is None:
        raise UsageError(f"--revision {revision}: not a name of a commit, tag or branch")
    place = hub_place(url)
    if place is None:
        raise UsageError(
            f"--revision: {scrubbed(url)} is not a file on the Hugging Face hub",
            hint="leave --revision out, or write the URL like hf://org/name/model.safetensors",
        )
    repository, commit = place[0], revision
    if not is_commit(revision):
        workspace = state.workspace()
        if workspace.offline:
            raise NetworkError(
                f"--revision {revision}: --offline forbids asking the hub for its commit",
                hint="give the whole commit, of 40 digits",
            )
        commit = workspace.ranged.repository(f"{repository}@{quote(revision, safe='')}")[0].rpartition("@")[2]
        state.output.note(f"{repository}: {revision} is {commit}")
    pinned = at_revision(url, commit)
    assert pinned is not None
    return pinned


def _metric(text: str) -> tuple[str, float]:
    """Read NAME=VALUE."""
    name, equals, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        what = f"{value!r} is not a number" if equals else "no value is given"
        raise UsageError(f"--metric {text}: {what}", hint="write it like --metric box_mAP=39.7") from None


@registry_app.command("add")
def add_command(
    context: typer.Context,
    id: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="Id of the new entry; an existing one is overridden.",
            autocompletion=complete_ids,
        ),
    ],
    urls: Annotated[
        list[str],
        typer.Argument(metavar="URL…", help="URLs of its file, best first: https://, s3://, file:/// …"),
    ],
    file: FileOption = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="FILE",
            help="The file itself: its tensors supply what the options do not.",
        ),
    ] = None,
    state_dict: StateDictOption = None,
    strip_prefix: StripPrefixOption = None,
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="REV",
            help="Commit, tag or branch of URLs on the Hugging Face hub: hf://… or https://… "
            "The commit is written.",
        ),
    ] = None,
    fields: EntryFields = EntryFields(),
    settings: SettingOptions = None,
    pin: Annotated[
        bool,
        typer.Option(
            "--pin",
            help="Write sha256 and size of --checkpoint, which must be identical to the file at URL.",
        ),
    ] = False,
    dry_run: DryRun = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Update an entry already in the file; replace a different checksum."),
    ] = False,
) -> None:
    """Add an entry to a registry file of your own, created if missing.

    Fields without an option are read from --checkpoint: family, variant, format, layout, position embedding,
    and the settings of a converted file. Nothing else is filled in. The file keeps its comments and order,
    and is written only if it then loads. An entry of another registry with this id is overridden in the
    fields given here.

    Examples: ckptkit registry add my-moat https://example.org/my-moat.pth --file mine.yaml --checkpoint a.pth
    · ckptkit registry add my-xt https://example.org/my-xt.pth --file mine.yaml --variant moganet-xt
    --layout torch --format torch --set attn_force_fp32=false --dry-run
    """
    from ckptkit.families.base import registry_families
    from ckptkit.registry.edit import preview_addition
    from ckptkit.workspace import Located

    state = state_of(context)
    target, below = _target(state, file, for_entry=True)
    if pin and checkpoint is None:
        raise UsageError("--pin needs the file itself", hint="give it with --checkpoint FILE")
    options = parse_settings(settings)
    given, two_copies = {**fields.given(), **options}, False
    urls = urls if revision is None else [_at_revision(url, revision, state) for url in urls]
    if checkpoint is not None:
        located = Located(checkpoint).chosen(state_dict, strip_prefix)
        given, two_copies = _with_recognised(located, given)

    def preview() -> Addition:
        return preview_addition(
            target, id, urls, given, below=below, families=registry_families(), force=force
        )

    addition = preview()
    _check_model(addition.entry, options)
    if pin and checkpoint is not None:
        given |= _observed_fields(checkpoint, urls[0], state, fields.sha256)
        if addition.entry.companions:
            given["companions"] = _observed_companions(checkpoint, addition.entry, state)
        addition = preview()
    entry = addition.entry
    for note in _remarks(addition, given, checkpoint if two_copies else None):
        state.output.note(f"{entry.id}: {note}")
    line = f"{entry.id}  {entry.family}  {entry.variant}  {entry.format}  {entry.layout}"
    _finish(state, target, addition.edit, {"entry": entry.model_dump(mode="json")}, [line], dry_run=dry_run)


def _target(state: State, file: Path | None, *, for_entry: bool = False) -> tuple[Path, list[Path]]:
    """The registry to write, and those below it; an entry goes into the built-in one only by name."""
    from ckptkit.registry.loading import built_in_path, in_source_tree, is_cached_registry, registry_files

    hint = "name one of your own with --file FILE (made if need be), then use it with --registry"
    files = registry_files(state.registries)
    if file is None and for_entry and len(files) == 1:
        raise UsageError("no registry file is named to hold the entry", hint=hint)
    target = file or files[-1]
    if resolved(target) == resolved(built_in_path()) and not in_source_tree():
        raise UsageError("the registry inside the installed package cannot be edited", hint=hint)
    if is_cached_registry(target):
        raise UsageError("a registry at a URL cannot be edited", hint=hint)
    in_use = [resolved(path) for path in files]
    below = files[: in_use.index(resolved(target))] if resolved(target) in in_use else [built_in_path()]
    return target, below


def _finish(
    state: State,
    target: Path,
    edit: Edit,
    result: dict[str, Any],
    lines: Sequence[str],
    *,
    dry_run: bool,
) -> None:
    """Write a registry file and print what is in it now; with --dry-run only print the diff."""
    from ckptkit.registry.loading import registry_files

    diff = scrubbed(edit.diff()).rstrip("\n").split("\n") if edit.changes else []
    result |= {"file": str(target), "changed": edit.changes, "dry_run": dry_run}
    if dry_run:
        state.output.result(result | {"diff": diff}, *diff)
    else:
        edit.write()
        state.output.result(result, *lines)
    if not edit.changes:
        outcome = "would stay as it is" if dry_run else "already up to date"
    elif resolved(target) in [resolved(path) for path in registry_files(state.registries)]:
        outcome = "written"
    else:
        outcome = f"written; use it with --registry {target}"
    if not (dry_run and diff):
        state.output.note(f"{target}: {outcome}")


def _with_recognised(located: Located, given: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Add what a file shows to what was given, which must agree; and whether it has two copies of them."""
    from ckptkit.families.recognition import require_recognition

    path = located.path
    with located.open(None) as reader:
        recognition = require_recognition(path, reader.specs, variant=given.get("variant"))
        family = recognition.family
        found: dict[str, Any] = {
            "family": family.name,
            "variant": recognition.variant,
            "layout": _REGISTRY_WORDS.get(recognition.layout, recognition.layout),
            "format": reader.format,
        }
        if family.has_pos_emb:
            found["pos_emb"] = recognition.structure.pos_emb
        settings = family.known_settings(metadata=reader.metadata, path=path, layout=recognition.layout)
        two_copies = _has_two_copies(reader, recognition)
    for name, value in found.items():
        if given.get(name, value) != value:
            raise UsageError(
                f"{path}: its {name} is {_shown(value)}, not {_shown(given[name])}",
                hint=f"leave --{name.replace('_', '-')} out: --checkpoint shows it",
            )
    return {**found, **settings, **given}, two_copies


_REGISTRY_WORDS = {"keras-h5": "keras"}
"""Layouts that are one to the registry, where the format distinguishes them."""


def _has_two_copies(reader: Reader, recognition: Recognition) -> bool:
    if reader.weights is not None:  # a PyTorch file with a state dict for each
        return True
    twin = recognition.table.layout.second_copy
    return twin is not None and any(twin.of(name) in reader.specs for name in recognition.table.by_external)


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_model(entry: Entry, options: Mapping[str, Any]) -> None:
    """Refuse what the family does not have: the variant, its layout in this format, a setting."""
    from ckptkit.families.base import get_family, registry_families
    from ckptkit.registry.loading import family_faults

    for name, what in family_faults(entry, registry_families()):
        raise (NotFoundError if name in ("family", "variant") else UsageError)(f"{entry.id}: {name}: {what}")
    get_family(entry.family).known_settings(given=options)


def _remarks(addition: Addition, given: Mapping[str, Any], two_copies: Path | None) -> Iterator[str]:
    """What follows from the entry that the options do not show."""
    from ckptkit.families.base import get_family

    entry = addition.entry
    if addition.overrides and not addition.updates:
        yield f"overrides the entry of {addition.overrides}; other fields keep their values"
    if entry.sha256 and "sha256" not in given:
        yield "the checksum pinned before still holds; another file needs --pin"
    if two_copies and entry.weights is None:
        yield (
            f"{two_copies} holds two copies of the weights, and no tensor shows which one the published "
            "accuracy belongs to: --weights ema or raw says it; ema is used until then"
        )
    family = get_family(entry.family)
    for key in family.missing_settings(family.known_settings(entry=entry)):
        yield (
            f"{key} is not given, so every command that runs the model will ask for it; "
            f"--set {key}=true or false"
        )


def _observed_fields(path: Path, url: str, state: State, stated: str | None) -> dict[str, Any]:
    """sha256, size and their provenance of a local file that is to be the one at a URL."""
    from datetime import datetime, timezone

    from ckptkit.base.checksums import hash_file

    if not path.is_file():
        raise UsageError(
            f"{path} is not one file, and only the file as published has a checksum to pin",
            hint="give the file at the URL, such as the .tar.gz, or leave --pin out",
        )
    with state.output.progress(f"hashing {path}", path.stat().st_size) as advance:
        digests = hash_file(path, ("sha256",), advance=advance)
    if stated is not None and stated != digests.sha256:
        raise IntegrityError(f"{path}: sha256 is {digests.sha256}, but --sha256 says {stated}")
    if stated is not None:
        return {"size": digests.size}
    return {
        "sha256": digests.sha256,
        "size": digests.size,
        "hash_provenance": {
            "observed_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "url": url,
            "note": f"observed on a local file, {path.name}, which was not fetched from there",
        },
    }


def _observed_companions(path: Path, entry: Entry, state: State) -> list[dict[str, Any]]:
    """The companions of an entry with the checksums of the files beside a local one."""
    from ckptkit.store.openers import file_path
    from ckptkit.store.sources import source_of_file

    found = []
    for stated, one in zip(entry.companions, source_of_file(entry, path.absolute()).beside, strict=True):
        seen = _observed_fields(file_path(one.used_url), "", state, stated.sha256)
        found.append(
            {"sha256": seen.get("sha256"), "size": seen["size"], **stated.model_dump(exclude_none=True)}
        )
    return found
