"""What a command works on: everything that the user named, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import typer

from ckptkit.base.errors import CkptkitError, NotFoundError, UsageError, listed
from ckptkit.base.parse import parse_turn
from ckptkit.cli.options import usage_of
from ckptkit.cli.output import Output, Results, exit_code
from ckptkit.workspace import Workspace


def targets(
    context: typer.Context,
    workspace: Workspace,
    what: Sequence[str] | None,
    verb: str,
    *,
    among: Callable[[], Iterable[str]] | None = None,
    every: Iterable[str] | None = None,
    files: bool = True,
    shard: str | None = None,
) -> list[str]:
    """The ids and files that were named; ``every`` are those of ``--all``, where it was given.

    Of these ``--shard K/N`` takes every N-th, which may be none.
    ``among`` gives the ids that a glob may stand for, by default all of the registry.
    """
    if not what and every is None:
        typer.echo(usage_of(context), err=True)
        raise UsageError(f"nothing to {verb}", hint=f"name ids{' or files' * files}, or give --all")
    if what and every is not None:
        raise UsageError(f"give names{' or files' * files}, or --all, not both")
    names = workspace.expand(what or (), among, files=files) if every is None else list(every)
    if not names:
        raise NotFoundError(
            "nothing has been fetched yet", hint="ckptkit fetch ID; 'ckptkit list' shows the ids"
        )
    return names if shard is None else list(parse_turn(shard).of(names))


def with_models(workspace: Workspace, *, synthetic: bool, serving: Collection[str] = ("whole",)) -> list[str]:
    """What ``--all`` means where models run: every fetched entry of a family that has some, or all."""
    from ckptkit.families.base import families

    there = workspace.registry if synthetic else workspace.home.fetched_ids()
    return [
        id
        for id, one in workspace.registry.items()
        if one.family in families() and one.serves in serving and id in there
    ]


def is_bare(context: Any) -> bool:
    """Whether a line has neither names nor options but ``--json``."""
    sources = (context.get_parameter_source(name) for name in context.params if name != "as_json")
    return all(source is None or source.name != "COMMANDLINE" for source in sources)


@dataclass
class Batch:
    """Several targets, of which one that fails does not hide the others."""

    output: Output
    show: Results
    names: Sequence[str]
    tried: str
    fault: Callable[[str, CkptkitError], Any]
    failures: dict[str, int] = field(default_factory=dict)  # exit status by name
    alone: CkptkitError | None = None  # of the only one

    @contextmanager
    def one(self, name: str) -> Iterator[None]:
        """Work on one target."""
        try:
            yield
        except CkptkitError as error:
            self.failed(name, exit_code(error))
            self.show(self.fault(name, error))
            if len(self.names) > 1:
                verdict, *details = error.lines()
                reason = verdict.removeprefix(f"{name}: ")
                self.output.warn(f"{name} could not be {self.tried}: {reason}", *details)
            else:
                self.alone = error

    def failed(self, name: str, code: int) -> None:
        """A target failed, with this exit status."""
        self.failures.setdefault(name, int(code))

    def finish(self, done: str) -> None:
        """Count them; end with the exit status of the first failure."""
        failed = [name for name in self.names if name in self.failures]
        good = len(self.names) - len(failed)
        if len(self.names) > 1 and failed:
            self.output.warn(f"{good} {done or self.tried}, {len(failed)} failed: {listed(failed)}")
        elif len(self.names) > 1 and done:
            self.output.note(f"{good} of {good} {done}")
        if self.alone is not None:
            raise self.alone
        if failed:
            raise typer.Exit(self.failures[failed[0]])


@contextmanager
def several(
    output: Output,
    names: Sequence[str],
    tried: str,
    *,
    done: str | None = None,
    key: str = "name",
    fault: Callable[[str, CkptkitError], Any] | None = None,
) -> Iterator[Batch]:
    """Work on all of these; ``tried`` is as in "could not be converted", ``done`` what the others are.

    They are not counted where ``done`` is empty.

    ``fault`` makes the JSON of one that fails: by default its name (as ``key``), the error, its exit status.
    """

    def described(name: str, error: CkptkitError) -> dict[str, Any]:
        return {key: name, "ok": False, "error": str(error), "exit_code": int(exit_code(error))}

    with output.results() as show:
        work = Batch(output, show, names, tried, fault or described)
        yield work
    work.finish(tried if done is None else done)
