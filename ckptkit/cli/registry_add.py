"""``registry add``: a checkpoint of one's own, or another's, as an entry of one's own registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckptkit.base.files import resolved
from ckptkit.base.urls import scrubbed
from ckptkit.cli.completion import complete_families, complete_ids, complete_values, complete_variants
from ckptkit.cli.options import (
    SettingOptions,
    State,
    StateDictOption,
    StripPrefixOption,
    parse_settings,
    state_of,
)
from ckptkit.formats.names import FORMATS

if TYPE_CHECKING:
    from ckptkit.families.base import Recognition
    from ckptkit.formats.base import Reader
    from ckptkit.registry import Addition, Entry
    from ckptkit.registry.edit import Edit
    from ckptkit.workspace import Located


_COUNT = "exactly as published, such as"


def add_command(
    context: typer.Context,
    id: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="Id on the command line; an existing id is overridden.",
            autocompletion=complete_ids,
        ),
    ],
    urls: Annotated[
        list[str],
        typer.Argument(metavar="URL…", help="Where its file is, best first: https://, s3://, file:/// …"),
    ],
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", help="The registry to write; else the last --registry, else CKPTKIT_REGISTRY's last."
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint", metavar="FILE", help="The file itself: its tensors supply what is not given."
        ),
    ] = None,
    state_dict: StateDictOption = None,
    strip_prefix: StripPrefixOption = None,
    family: Annotated[
        str | None, typer.Option(help="Architecture family.", autocompletion=complete_families)
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(
            help="Architecture of the family, which follows from it.", autocompletion=complete_variants
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="Names and axis order: torch, deeplab2, openmixup, timm, keras.",
            autocompletion=complete_values("layout"),
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(help=f"Container: {', '.join(FORMATS)}.", autocompletion=complete_values("format")),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Copy the accuracy belongs to, where the file holds both: ema, raw.",
            autocompletion=complete_values("weights"),
        ),
    ] = None,
    display_name: Annotated[str | None, typer.Option(help="Display name; default: the id.")] = None,
    resolution: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Input side in training and testing.")
    ] = None,
    test_resolution: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Input side in testing, if different.")
    ] = None,
    params: Annotated[str | None, typer.Option(metavar="COUNT", help=f"Parameters {_COUNT} 27.8M.")] = None,
    flops: Annotated[str | None, typer.Option(metavar="COUNT", help=f"Multiply-adds {_COUNT} 5.7B.")] = None,
    top1: Annotated[float | None, typer.Option(metavar="PERCENT", help="Published top-1 accuracy.")] = None,
    top5: Annotated[float | None, typer.Option(metavar="PERCENT", help="Published top-5 accuracy.")] = None,
    license: Annotated[str | None, typer.Option(metavar="SPDX", help="Licence, such as Apache-2.0.")] = None,
    normalization: Annotated[
        str | None,
        typer.Option(
            help="Normalization of the input: imagenet or half.",
            autocompletion=complete_values("normalization"),
        ),
    ] = None,
    pos_emb: Annotated[
        bool | None, typer.Option("--pos-emb/--no-pos-emb", help="With or without position embedding.")
    ] = None,
    settings: SettingOptions = None,
    note: Annotated[str | None, typer.Option(help="A note about the entry.")] = None,
    pin: Annotated[
        bool,
        typer.Option(
            "--pin",
            help="Write sha256 and size of --checkpoint, which must be the file at URL, byte by byte.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the change as a diff, write nothing.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Update an entry already in the file; replace a different checksum."),
    ] = False,
) -> None:
    """Add an entry to a registry file of your own, created if missing.

    What the options leave open comes from the tensors of --checkpoint: family, variant, format, layout,
    position embedding, and settings that a converted file carries. Nothing else is filled in. Comments and
    order of the file are kept, and it is written only if it then loads. An id of a registry below is
    overridden in what is given here.

    Examples: ckptkit registry add my-moat https://example.org/my-moat.pth --file mine.yaml --checkpoint a.pth
    · ckptkit registry add my-xt https://example.org/my-xt.pth --file mine.yaml --variant moganet-xt
    --layout torch --format torch --set attn_force_fp32=false --dry-run
    """
    from ckptkit.families import registry_families
    from ckptkit.registry import preview_addition

    state = state_of(context)
    target, below = _own_registry(state, file)
    if pin and checkpoint is None:
        from ckptkit.base.errors import UsageError

        raise UsageError("--pin needs the file itself", hint="give it with --checkpoint FILE")
    options = parse_settings(settings)
    fields = {
        "family": family or _family_of(variant),
        "variant": variant,
        "display_name": display_name,
        "train_resolution": resolution,
        "test_resolution": resolution if test_resolution is None else test_resolution,
        "pos_emb": pos_emb,
        "published_params": params,
        "published_flops": flops,
        "published_top1": top1,
        "published_top5": top5,
        "license": license,
        "layout": layout,
        "format": format,
        "weights": weights,
        "normalization": normalization,
        "note": note,
    }
    given = {**{name: value for name, value in fields.items() if value is not None}, **options}
    facts = None
    if checkpoint is not None:
        from ckptkit.workspace import Located

        located = Located(checkpoint).chosen(state_dict, strip_prefix)
        facts = checkpoint_facts(located, variant=variant)
        given = _with_recognised(facts, given)
    addition = preview_addition(
        target, id, urls, given, below=below, families=registry_families(), force=force
    )
    _check_model(addition.entry, options)
    if pin and checkpoint is not None:
        given |= observed_fields(checkpoint, urls[0], state.output.progress)
        addition = preview_addition(
            target, id, urls, given, below=below, families=registry_families(), force=force
        )
    _tell(state, addition, given, facts)
    entry, edit = addition.entry, addition.edit
    if edit.changes and not dry_run:
        edit.write()
    line = f"{entry.id}  {entry.family}  {entry.variant}  {entry.format}  {entry.layout}"
    show_edit(state, target, edit, {"entry": entry.model_dump(mode="json")}, [line], dry_run=dry_run)


def target_registry(state: State, file: Path | None) -> tuple[Path, list[Path]]:
    """Return the registry to write and those below it; None takes the last registry in use."""
    from ckptkit.base.errors import UsageError
    from ckptkit.registry import built_in_path, in_source_tree, registry_files

    files = registry_files(state.registries)
    if file is None and len(files) == 1 and not in_source_tree():
        raise UsageError(
            "the registry inside the installed package cannot be edited",
            hint="name one of your own with --file FILE (made if need be), then use it with --registry",
        )
    target = file or files[-1]
    there = [resolved(path) for path in files]
    if resolved(target) in there:
        return target, files[: there.index(resolved(target))]
    return target, [built_in_path()]


def show_edit(
    state: State, target: Path, edit: Edit, result: dict[str, Any], lines: Sequence[str], *, dry_run: bool
) -> None:
    """Show a change of a registry file: what was written, or with --dry-run the diff."""
    from ckptkit.registry import registry_files

    diff = scrubbed(edit.diff()).rstrip("\n").split("\n") if edit.changes else []
    result |= {"file": str(target), "changed": bool(edit.changes), "dry_run": dry_run}
    if dry_run:
        state.output.result(result | {"diff": diff}, *diff)
        if not diff:
            state.output.note(f"{target}: would stay as it is")
        return
    state.output.result(result, *lines)
    if not edit.changes:
        state.output.note(f"{target}: already up to date")
        return
    in_use = resolved(target) in [resolved(path) for path in registry_files(state.registries)]
    state.output.note(f"{target}: written" + ("" if in_use else f"; use it with --registry {target}"))


def _own_registry(state: State, file: Path | None) -> tuple[Path, list[Path]]:
    """Return the registry to write and those below; the built-in one only in a source tree, and named."""
    from ckptkit.base.errors import UsageError
    from ckptkit.registry import built_in_path, in_source_tree, registry_files

    hint = "name one of your own with --file FILE (made if need be), then use it with --registry"
    if file is None and len(registry_files(state.registries)) == 1:
        raise UsageError("no registry file is named to hold the entry", hint=hint)
    target, below = target_registry(state, file)
    if resolved(target) == resolved(built_in_path()) and not in_source_tree():
        raise UsageError("the registry inside the installed package cannot be edited", hint=hint)
    return target, below


def _family_of(variant: str | None) -> str | None:
    """No two families have a variant of the same name, so it determines the family."""
    from ckptkit.families.base import family_of_variant

    return None if variant is None else family_of_variant(variant).name


def _with_recognised(facts: CheckpointFacts, given: Mapping[str, Any]) -> dict[str, Any]:
    """Add what a file shows to what was given, which must not contradict it."""
    from ckptkit.base.errors import UsageError

    for name, found in facts.recognised.items():
        if given.get(name, found) != found:
            raise UsageError(
                f"{facts.path}: its {name} is {_shown(found)}, not {_shown(given[name])}",
                hint=f"leave --{name.replace('_', '-')} out: --checkpoint shows it",
            )
    return {**facts.recognised, **facts.settings, **given}


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_model(entry: Entry, options: Mapping[str, Any]) -> None:
    """Refuse what the family does not have: the variant, its layout in this format, a setting."""
    from ckptkit.base.errors import NotFoundError, UsageError
    from ckptkit.families import registry_families
    from ckptkit.families.base import get_family
    from ckptkit.families.settings import known_settings
    from ckptkit.registry.loading import family_faults

    for name, what in family_faults(entry, registry_families()):
        raise (NotFoundError if name in ("family", "variant") else UsageError)(f"{entry.id}: {name}: {what}")
    known_settings(get_family(entry.family), given=options)


def _tell(state: State, addition: Addition, given: Mapping[str, Any], facts: CheckpointFacts | None) -> None:
    """Say what follows from the entry that the options do not show."""
    from ckptkit.families.base import get_family
    from ckptkit.families.settings import known_settings, missing_settings

    entry = addition.entry
    if addition.overrides and not addition.updates:
        state.output.note(
            f"{entry.id}: overrides the entry of {addition.overrides}; other fields keep their values"
        )
    if entry.sha256 and "sha256" not in given:
        state.output.note(f"{entry.id}: the checksum pinned before still holds; another file needs --pin")
    if facts and facts.copies and entry.weights is None:
        state.output.note(
            f"{facts.path} holds two copies of the weights, and no tensor shows which one the published "
            "accuracy belongs to: --weights ema or raw says it; ema is used until then"
        )
    family = get_family(entry.family)
    for key in missing_settings(family, known_settings(family, entry=entry)):
        state.output.note(
            f"{entry.id}: {key} is not given, so every command that runs the model will ask for it; "
            f"--set {key}=true or false"
        )


_REGISTRY_WORDS = {"keras-h5": "keras"}
"""Layouts that are one to the registry, where the format distinguishes them."""


@dataclass(frozen=True)
class CheckpointFacts:
    """What a file tells of itself."""

    path: Path
    recognised: Mapping[str, Any]
    settings: Mapping[str, Any]
    copies: bool


def checkpoint_facts(located: Located, *, variant: str | None = None) -> CheckpointFacts:
    """Recognise a file."""
    from ckptkit.families.base import require_recognition
    from ckptkit.families.settings import known_settings

    path = located.path
    with located.open(None) as reader:
        recognition = require_recognition(path, reader.specs, variant=variant)
        family = recognition.family
        recognised: dict[str, Any] = {
            "family": family.name,
            "variant": recognition.variant,
            "layout": _REGISTRY_WORDS.get(recognition.layout, recognition.layout),
            "format": reader.format,
        }
        if family.has_pos_emb:
            recognised["pos_emb"] = recognition.structure.pos_emb
        settings = known_settings(family, metadata=reader.metadata, path=path)
        return CheckpointFacts(path, recognised, settings, _has_two_copies(reader, recognition))


def _has_two_copies(reader: Reader, recognition: Recognition) -> bool:
    if reader.weights is not None:  # a PyTorch file with a state dict for each
        return True
    twin = recognition.table.layout.second_copy
    return twin is not None and any(twin.of(name) in reader.specs for name in recognition.table.by_external)


def observed_fields(
    path: Path, url: str, progress: Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
) -> dict[str, Any]:
    """Return sha256, size and their provenance of a local file that is to be the one at a URL."""
    from datetime import datetime, timezone

    from ckptkit.base.errors import UsageError
    from ckptkit.store.expected import hash_file

    if not path.is_file():
        raise UsageError(
            f"{path} is not one file, and only the file as published has a checksum to pin",
            hint="give the file at the URL, such as the .tar.gz, or leave --pin out",
        )
    with progress(f"hashing {path}", path.stat().st_size) as advance:
        digests = hash_file(path, ("sha256",), advance=advance)
    return {
        "sha256": digests.sha256,
        "size": digests.size,
        "hash_provenance": {
            "observed_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "url": url,
            "note": f"observed on a local file, {path.name}, which was not fetched from there",
        },
    }
