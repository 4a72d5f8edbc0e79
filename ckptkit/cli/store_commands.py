"""``fetch`` and ``import``: getting published files into the cache."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ckptkit.base.errors import CkptkitError
from ckptkit.base.shown import Column
from ckptkit.base.text import counted, human_bytes
from ckptkit.cli.completion import complete_ids
from ckptkit.cli.options import State, state_of

if TYPE_CHECKING:
    from ckptkit.cli.output import Output
    from ckptkit.registry.schema import Entry
    from ckptkit.store.cache import Home
    from ckptkit.store.fetch import Fetched
    from ckptkit.store.sources import Mirror

Result = TypeVar("Result")

_SHUTDOWN_SECONDS = 2.0
"""How long threads get to put away what they have when they are stopped."""
_POLL_SECONDS = 0.2
_ASKED_AT_ONCE = 8
"""Servers asked for the size of their file at a time."""

Force = Annotated[bool, typer.Option("--force", help="Replace what is cached.")]
Overrule = Annotated[
    bool,
    typer.Option("--force", help="Replace what is cached, and accept a file that does not match the entry."),
]
AcceptNew = Annotated[
    bool,
    typer.Option(
        "--accept-new",
        help="Accept a file that differs from the earlier one, which stays in the lock file's history.",
    ),
]
RequireChecksum = Annotated[
    bool,
    typer.Option(
        "--require-checksum",
        help="Accept only checksums from the registry or the lock file, for CI.",
    ),
]
Connections = Annotated[
    int,
    typer.Option(
        "--connections",
        min=1,
        max=8,
        help="Connections per file, if it is over 64 MB and its server supports ranges.",
    ),
]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, max=16, help="Entries to fetch at once.")]
LimitRate = Annotated[
    str | None,
    typer.Option("--limit-rate", metavar="RATE", help="Total bytes per second, such as 10MB."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done; do nothing.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("fetch", short_help="Download, verify and unpack published files.")(fetch_command)
    app.command("import", short_help="Add a file downloaded by hand to the cache.")(import_command)


def fetch_command(
    context: typer.Context,
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID…", help="Ids or globs such as 'moat*-384'.", autocompletion=complete_ids),
    ] = None,
    all_entries: Annotated[bool, typer.Option("--all", help="Fetch every entry.")] = False,
    force: Force = False,
    accept_new: AcceptNew = False,
    require_checksum: RequireChecksum = False,
    connections: Connections = 1,
    jobs: Jobs = 1,
    limit_rate: LimitRate = None,
    dry_run: DryRun = False,
) -> None:
    """Download published files into the cache, verify them, unpack archives; prints where they are.

    Interrupted downloads continue where they stopped. What is cached already is not downloaded again. A lock
    file (CKPTKIT_TRUST says which) remembers what was fetched, and a file that differs later is refused. A
    file whose checksum is not known must open as a checkpoint, and fit its entry.

    Examples: ckptkit fetch tiny-moat0-256 · ckptkit fetch 'moganet-xt-*-timm' -j 2 --limit-rate 50MB
    · ckptkit fetch tiny-moat0-256 --require-checksum · ckptkit fetch moganet-xt-224 --force --accept-new
    """
    from ckptkit.base.net import Policy, Throttle
    from ckptkit.base.parse import parse_rate
    from ckptkit.cli.targets import several, targets
    from ckptkit.store.cache import Home
    from ckptkit.store.fetch import Job, fetch, refuse_contradiction
    from ckptkit.store.sources import parse_mirrors
    from ckptkit.workspace import fits

    state = state_of(context)
    throttle = Throttle(parse_rate(limit_rate)) if limit_rate is not None else None
    refuse_contradiction(accept_new=accept_new, require_checksum=require_checksum)
    mirrors = parse_mirrors(state.mirrors)
    workspace = state.workspace()
    registry = workspace.registry
    names = targets(context, workspace, ids, "fetch", every=registry if all_entries else None, files=False)
    home = Home.default()
    if dry_run:
        entries = [registry[name] for name in names]
        _print_plan(state, entries, home, mirrors, force=force, require_checksum=require_checksum)
        return
    wanted = [registry[name] for name in names if name in registry]
    missing = [one.size for entry in wanted if force or not home.is_cached(entry.id) for one in entry.files]
    if len(names) > 1 and missing:
        state.output.note(f"fetching {_in_all(missing)}")
    stop = threading.Event()
    policy = Policy(connections=connections, throttle=throttle)
    if jobs > 1:
        policy = replace(policy, sleep=stop.wait, stopped=stop.is_set)
    output = state.output
    job = partial(
        Job,
        home=home,
        fits=fits,
        offline=state.offline,
        mirrors=mirrors,
        force=force,
        accept_new=accept_new,
        require_checksum=require_checksum,
        policy=policy,
        progress=output.progress,
        notes=output.note,
        warn=output.warn,
    )
    calls = [partial(_fetch_one, lambda id: fetch(job(registry[id])), name, output) for name in names]
    outcomes = map(_attempt, calls) if jobs == 1 else run_parallel(calls, jobs, stop)
    with several(output, names, "fetched", key="id") as work:
        for name, fetched in zip(names, outcomes, strict=True):
            with work.one(name):
                if isinstance(fetched, CkptkitError):
                    raise fetched
                work.show(_as_json(fetched), str(fetched.path))


def import_command(
    context: typer.Context,
    id: Annotated[
        str,
        typer.Argument(metavar="ID", help="The entry the file belongs to.", autocompletion=complete_ids),
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file as published.")],
    force: Overrule = False,
    accept_new: AcceptNew = False,
    dry_run: DryRun = False,
) -> None:
    """Add a file downloaded by hand to the cache: it is copied, hashed and checked like a download.

    Where no checksum is known, it must open as a checkpoint and fit the entry. --accept-new replaces what
    came before, --force takes any file.

    Examples: ckptkit import moganet-xt-256 downloaded.pth --dry-run
    · ckptkit import moganet-xt-256 downloaded.pth
    """
    from ckptkit.store.cache import Home
    from ckptkit.store.fetch import Job, import_file
    from ckptkit.store.sources import source_of_file
    from ckptkit.workspace import fits

    state = state_of(context)
    entry = state.registry()[id]
    home = Home.default()
    if dry_run:
        target = home.artefact_folder(id) / source_of_file(entry, file.absolute()).file
        plan = {"id": id, "file": str(file), "artefact": str(target), "dry_run": True}
        state.output.result(plan, f"{file} -> {target}")
        return
    output = state.output
    job = Job(
        entry,
        home,
        fits,
        force=force,
        accept_new=accept_new,
        progress=output.progress,
        notes=output.note,
        warn=output.warn,
    )
    fetched = import_file(job, file)
    how = "was there already" if fetched.from_cache else "imported"
    output.note(f"{id}: {how}, {human_bytes(fetched.size)}, {_digests(fetched)}")
    output.result(_as_json(fetched), str(fetched.path))


def run_parallel(
    calls: Sequence[Callable[[], Result]], jobs: int, stop: threading.Event
) -> list[Result | CkptkitError]:
    """Make every call, several at once; results and ckptkit's own errors are in the order of the calls.

    Any other error ends all of it, and so does Ctrl+C: `stop` is set, which calls look at themselves, and the
    threads are waited for a short time only. They are daemons: one that hears nothing from its server does
    not hold the process.

    Examples
    --------
    >>> run_parallel([lambda: 1, lambda: 2], 2, threading.Event())
    [1, 2]
    """
    waiting = deque(enumerate(calls))
    outcomes: dict[int, Result | CkptkitError] = {}
    faults: list[BaseException] = []

    def work() -> None:
        while not stop.is_set():
            try:
                index, call = waiting.popleft()
            except IndexError:
                return
            try:
                outcomes[index] = _attempt(call)
            except BaseException as error:  # raised again in the main thread
                faults.append(error)
                return

    threads = [
        threading.Thread(target=work, name=f"ckptkit-job-{number}", daemon=True)
        for number in range(min(jobs, len(calls)))
    ]
    _run(threads, faults, stop)
    return [outcomes[index] for index in sorted(outcomes)]


def _run(threads: Sequence[threading.Thread], faults: Sequence[BaseException], stop: threading.Event) -> None:
    """Run threads until they end, or one has a fault, or Ctrl+C."""
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) and not faults:
            for thread in threads:
                thread.join(_POLL_SECONDS / len(threads))
        if faults:
            raise faults[0]
    except BaseException:  # Ctrl+C too: raised again once what has arrived is put away
        stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join(_SHUTDOWN_SECONDS / len(threads))
        raise


def _attempt(call: Callable[[], Result]) -> Result | CkptkitError:
    """Make a call; an error of ckptkit's is its outcome, and the others go on."""
    try:
        return call()
    except CkptkitError as error:
        return error


def _fetch_one(fetch: Callable[[str], Fetched], id: str, output: Output) -> Fetched:
    began = time.monotonic()
    fetched = fetch(id)
    size = fetched.size
    if fetched.from_cache:
        output.note(f"{id}: in the cache already ({human_bytes(size)})")
    else:
        seconds = max(time.monotonic() - began, 0.001)
        speed = f"{human_bytes(size)} in {seconds:.1f} s ({human_bytes(size / seconds)}/s)"
        output.note(f"{id}: {speed}, {_checked_by(fetched)}")
    return fetched


def _checked_by(fetched: Fetched) -> str:
    """Say what the bytes were compared with: a person must know when it was nothing."""
    by_origin: dict[str, list[str]] = {}
    for promise in fetched.held:
        server = not promise.origin.startswith(("the ", "GitHub"))
        by_origin.setdefault("the server" if server else promise.origin, []).append(promise.algorithm)
    held = [f"{' and '.join(sorted(set(kinds)))} as {who} says" for who, kinds in by_origin.items()]
    return "; ".join([*(held or ["no published checksum to compare with"]), _digests(fetched)])


def _digests(fetched: Fetched) -> str:
    """The sha256 of a file; of several, the main one's."""
    others = len(fetched.companions)
    of = f" of {fetched.record.file}, and {counted(others, 'file')} beside it" if others else ""
    return f"sha256 {fetched.record.sha256}{of}"


_SHOWN = ("url", "used_url", "size", "sha256", "server_hashes", "etag", "generation", "fetched_at",
          "bn_statistics", "note")  # fmt: skip
"""What ``--json`` has of the record of a file."""


def _as_json(fetched: Fetched) -> dict[str, Any]:
    return {
        "id": fetched.record.id,
        "path": fetched.path,
        "artefact": fetched.artefact,
        "from_cache": fetched.from_cache,
        "companions": [
            {"file": one.file, "url": one.url, "size": one.size, "sha256": one.sha256}
            for one in fetched.companions
        ],
        **{name: getattr(fetched.record, name) for name in _SHOWN},
        "compared_with": [
            {"algorithm": promise.algorithm, "says": promise.origin} for promise in fetched.held
        ],
    }


def _print_plan(
    state: State,
    entries: Sequence[Entry],
    home: Home,
    mirrors: Sequence[Mirror],
    *,
    force: bool,
    require_checksum: bool,
) -> None:
    """Say what would be fetched, from where, to where."""
    from ckptkit.base.urls import public_url
    from ckptkit.store.lockfile import LockFile
    from ckptkit.store.sources import plan_sources

    trust = LockFile.default()
    sizes = _sizes(entries, mirrors, offline=state.offline)
    plans = []
    for entry, each in zip(entries, sizes, strict=True):
        sources = plan_sources(entry, mirrors)
        cached = home.is_cached(entry.id) and not force
        folder = home.artefact_folder(entry.id)
        action = "nothing, cached" if cached else "fetch" if sources else "by hand"
        if require_checksum and not entry.is_pinned and not trust.files(entry.id):
            action = "refuse, no checksum known"
        plan: dict[str, Any] = {
            "id": entry.id,
            "action": action,
            "size": None if None in each else sum(filter(None, each)),
            "files": len(each),
            "from": [public_url(source.used_url) for source in sources]
            or [source.url for source in entry.sources],
            "to": str(folder / sources[0].file if sources else folder),
        }
        plans.append(plan)
    columns = [Column("id"), Column("action"), Column("size", numeric=True), Column("from"), Column("to")]
    rows = [[plan["id"], plan["action"], _size_in_words(plan), plan["from"][0], plan["to"]] for plan in plans]
    state.output.result(plans, lambda: state.output.table(columns, rows))
    chosen = [each for plan, each in zip(plans, sizes, strict=True) if plan["action"] == "fetch"]
    if wanted := [size for each in chosen for size in each]:
        state.output.note(f"would fetch {_in_all(wanted)}")


def _sizes(entries: Sequence[Entry], mirrors: Sequence[Mirror], *, offline: bool) -> list[list[int | None]]:
    """Sizes of the files of each entry, as the registry or else their servers state them."""
    from ckptkit.base.net import Policy
    from ckptkit.store.sources import plan_sources
    from ckptkit.store.transfer import stated_size

    stop = threading.Event()
    policy = Policy(connect_timeout=5, read_timeout=5, head_seconds=5, sleep=stop.wait, stopped=stop.is_set)

    def asked(entry: Entry) -> int | None:
        urls = [source.used_url for source in plan_sources(entry, mirrors)]
        if entry.size is not None or not urls or (offline and not urls[0].startswith("file:")):
            return entry.size
        return stated_size(urls[0], policy)

    files = [entry.files for entry in entries]
    found = run_parallel([partial(asked, one) for each in files for one in each], _ASKED_AT_ONCE, stop)
    sizes = iter([None if isinstance(size, CkptkitError) else size for size in found])
    return [[next(sizes) for _ in each] for each in files]


def _size_in_words(plan: dict[str, Any]) -> str:
    size, several = plan["size"], f" in {plan['files']} files" if plan["files"] > 1 else ""
    return ("unknown" if size is None else human_bytes(size)) + several


def _in_all(sizes: Sequence[int | None]) -> str:
    """How many files, and how large together as far as their sizes are known."""
    known = [size for size in sizes if size is not None]
    unknown = len(sizes) - len(known)
    files = counted(len(sizes), "file")
    if not known:
        return f"{files}, size unknown"
    return f"{files}, {human_bytes(sum(known))}" + (f" and {unknown} of unknown size" if unknown else "")
