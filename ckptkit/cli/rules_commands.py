"""``rules``: a file of rules drafted from two models, and what such a file fits."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ckptkit.cli.completion import complete_fetched
from ckptkit.cli.options import StateDictOption, StripPrefixOption, state_of
from ckptkit.cli.output import ExitCode
from ckptkit.cli.remote_output import one_file

rules_app = typer.Typer(help="Draft and check files of rules for --rules.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(rules_app, name="rules", short_help="Draft and check files of rules for --rules.")


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
            help="What the result should have: a checkpoint, a JSON file as inspect --json writes it, or "
            "package.module:function, which builds a model. That runs your code.",
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

    Examples: ckptkit rules check my_rules.yaml net.ckpt
    · ckptkit rules check my_rules.yaml net.ckpt ported.pth --json
    """
    from ckptkit.compare.rules_check import check_files
    from ckptkit.rules.file import load_rules

    state = state_of(context)
    found = check_files(
        state.workspace(),
        load_rules(rules, reverse=reverse),
        source,
        target,
        state_dict=state_dict,
        strip_prefix=strip_prefix,
    )
    pieces = partial(found.pieces, everything=state.output.verbose)
    state.output.result(found.to_json(), lambda: state.output.show(pieces()))
    if not found.ok:
        raise typer.Exit(int(ExitCode.CHECK_FAILED))


@rules_app.command("suggest")
def suggest_command(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="Id of a fetched entry, a file, folder or prefix, or a JSON file of names and shapes.",
            autocompletion=complete_fetched,
        ),
    ],
    target: Annotated[
        str,
        typer.Argument(
            help="The same; or package.module:function, which builds a PyTorch module or a Keras model. "
            "That runs your code.",
            autocompletion=complete_fetched,
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where to write the rules. Default: standard output."
        ),
    ] = None,
    state_dict: StateDictOption = None,
    state_dict_target: Annotated[
        str | None, typer.Option("--state-dict-target", metavar="KEY[.KEY…]", help="The same for TARGET.")
    ] = None,
    strip_prefix: StripPrefixOption = None,
    strip_prefix_target: Annotated[
        list[str] | None,
        typer.Option("--strip-prefix-target", metavar="PREFIX", help="The same for TARGET."),
    ] = None,
    names_only: Annotated[
        bool,
        typer.Option("--names-only", help="Do not compare values, even if both files hold the same ones."),
    ] = False,
    prove: Annotated[
        Path | None,
        typer.Option(
            "--prove",
            metavar="CASE",
            help="Decide what is ambiguous by outputs: run this case file, as parity --case takes it, "
            "its right side filled from SOURCE by the rules. That runs your code.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
) -> None:
    """Draft a file of rules from SOURCE to TARGET, and say how sure each rule is.

    Rules are proven where both files hold the same values, else forced (shapes allow nothing else), guessed
    (by names) or ambiguous: then the file has the question that is left.

    Exits with 0 if every tensor of both has a rule that is not ambiguous, else with 1.

    Examples: ckptkit rules suggest net.ckpt ported.pth -o rules.yaml
    · ckptkit rules suggest net.ckpt my_nets:build -o rules.yaml
    """
    from ckptkit.base.files import refuse_existing
    from ckptkit.compare.suggesting import SuggestRequest, suggest_rules

    state = state_of(context)
    path = one_file(output)
    if path is not None:
        refuse_existing(path, force=force)
    request = SuggestRequest(
        state_dict, strip_prefix, state_dict_target, strip_prefix_target, values=not names_only
    )
    found = suggest_rules(state.workspace(), source, target, request, state.output.progress)
    if prove is not None:
        from ckptkit.parity.settle import settle

        found = settle(found, prove, request, lambda doing: state.output.note(f"{prove}: {doing} …"))
    written = found.write(path, force=force) if path is not None else None
    value = {**found.to_json(), "path": None if written is None else str(written)}
    if written is None:
        value["text"] = found.text
        state.output.result(value, lambda: state.output.document(found.text.rstrip("\n")))
        state.output.note(found.verdict)
    else:
        state.output.result(value, lambda: state.output.show(found.pieces(everything=state.output.verbose)))
        state.output.note(f"wrote {written}")
    if not found.ok:
        raise typer.Exit(int(ExitCode.CHECK_FAILED))
