"""``rules``: what a file of rules fits."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ckptkit.cli.completion import complete_fetched
from ckptkit.cli.options import StateDictOption, StripPrefixOption, state_of
from ckptkit.cli.output import ExitCode

rules_app = typer.Typer(help="Check files of rules for --rules.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(rules_app, name="rules", short_help="Check files of rules for --rules.")


@rules_app.command("check")
def check_command(
    context: typer.Context,
    rules: Annotated[Path, typer.Argument(metavar="RULES", help="A YAML file, as convert --rules takes it.")],
    source: Annotated[
        str,
        typer.Argument(
            help="Id of a fetched entry, a file, folder or prefix, or a JSON file of names and shapes.",
            autocompletion=complete_fetched,
        ),
    ],
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[TARGET]",
            help="What the result should have: a checkpoint, or a JSON file as inspect --json writes it.",
        ),
    ] = None,
    reverse: Annotated[
        bool, typer.Option("--reverse", help="Read RULES from the target to the source.")
    ] = False,
    state_dict: StateDictOption = None,
    strip_prefix: StripPrefixOption = None,
) -> None:
    """Check what a file of rules fits and what not, without converting.

    Exits with 1 if something does not fit: a tensor without a rule, a rule without a tensor, a missing part,
    or, with TARGET, a tensor that the result lacks, has too much or in another shape.

    Examples: ckptkit rules check rules.yaml model.ckpt · ckptkit rules check rules.yaml a.npz b.pth --json
    """
    from ckptkit.compare.outlines import outline_of
    from ckptkit.compare.rules_check import check_rules
    from ckptkit.rules.file import load_rules

    state = state_of(context)
    workspace = state.workspace()
    read = load_rules(rules, reverse=reverse)
    have = outline_of(workspace, source, state_dict=state_dict, strip_prefix=strip_prefix)
    wanted = outline_of(workspace, target) if target is not None else None
    found = check_rules(read, have, wanted)
    pieces = partial(found.pieces, everything=state.output.verbose)
    state.output.result(found.to_json(), lambda: state.output.show(pieces()))
    if not found.ok:
        raise typer.Exit(int(ExitCode.CHECK_FAILED))
