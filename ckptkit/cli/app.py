"""The command line's root: global options, the commands, and the way from an error to an exit code."""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import importlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from ckptkit._version import __version__
from ckptkit.base.text import escaped
from ckptkit.cli.help import help_of, shown_by
from ckptkit.cli.options import State, usage_of, with_shared_options
from ckptkit.cli.output import ExitCode, Output, exit_code, prepare_streams

_GLOBAL_FLAGS = frozenset({"--quiet", "-q", "--verbose", "-v", "--offline"})
_GLOBAL_VALUES = frozenset({"--registry", "--mirror"})

_LineFault: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
"""What typer raises for a line that it cannot read; newer versions bring a click of their own."""


def _refused(error: Any, root: Any = None) -> BaseException:
    """Print what is wrong with the line like every other error."""
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
        return cast(BaseException, error)
    from ckptkit.base.errors import UsageError, command

    text, _, meant = error.format_message().replace(": Value error, ", ": ").partition(" Did you mean ")
    meant = meant.partition(" Did you mean ")[0]  # typer 0.20 to 0.25 says it once more than click 8.5 does
    if hasattr(error, "option_name") and hasattr(error, "possibilities"):  # NoSuchOption, not NoSuchCommand
        import difflib

        known = (*(error.possibilities or ()), *_GLOBAL_FLAGS, *_GLOBAL_VALUES)
        close = difflib.get_close_matches(error.option_name, known, 1)
        text = f"no such option: {error.option_name}"  # click's own words change from version to version
        meant = f"{close[0]}?" if close else ""
    context = error.ctx
    if type(error).__name__ == "MissingParameter" and context is not None:
        typer.echo(usage_of(context), err=True)
    names = [root.invoked_subcommand] if context is None and root and root.invoked_subcommand else []
    while context is not None and context.parent is not None:
        names.insert(0, context.info_name)
        context = context.parent
    hint = f"did you mean {meant}" if meant else command(*names, "--help")
    Output().error(str(UsageError(text[:1].lower() + text[1:].rstrip("."), hint=hint)))
    return typer.Exit(error.exit_code)


_ended_by: list[int] = []
"""The signal that ended the command."""


def _end_by_it() -> None:
    """Let whoever started the process see the signal, when all else is cleaned up."""
    if _ended_by:
        os.kill(os.getpid(), _ended_by[0])


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end the command as Ctrl+C does: its temporary files go."""
    process = os.getpid()

    def end(number: int, _frame: object) -> None:
        if os.getpid() != process:  # a child that was forked ends as it would
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        _ended_by.append(number)
        raise KeyboardInterrupt

    taken: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        wanted = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
        taken = [number for number in wanted if signal.getsignal(number) is signal.SIG_DFL]  # nohup ignores
    for number in taken:
        signal.signal(number, end)
    if taken:
        atexit.register(_end_by_it)  # the first to be registered runs last
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _meant(args: list[str]) -> list[str]:
    """Take ``help [COMMAND]`` and ``version`` for the options of that name."""
    place = next((place for place, word in enumerate(args) if word in ("help", "version")), None)
    if place is None or any(word in _MODULES for word in args[:place]):
        return args
    return [*args[:place], *args[place + 1 :], f"--{args[place]}"]


class Command(TyperCommand):
    """Takes ``~`` for the home folder where no shell looked: ``--output=~/m.pth``."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        from ckptkit.base.home import expanded

        ctx.params.update({name: expanded(value) for name, value in ctx.params.items()})
        return super().invoke(ctx)


class Root(TyperGroup):
    """Loads a command when it is asked for; turns every error into one line and the documented exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Name the commands in the order of the help."""
        return list(_MODULES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Load a command: to read the options of all of them takes longer than a short command's own work."""
        if cmd_name in _MODULES and cmd_name not in self.commands:
            self.commands.update(_commands_in(_MODULES[cmd_name]))
        return self.commands.get(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        shown_by(self, self._summaries)(ctx, formatter)

    def _summaries(self) -> dict[str, dict[str, str]]:
        return {
            heading: {name: self.get_command(None, name).short_help for name in modules}
            for heading, modules in _GROUPS.items()
        }

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command of a line; a word that is none is compared with all of them."""
        if args and args[0] not in _MODULES:
            for name in _MODULES:
                self.get_command(ctx, name)
        return super().resolve_command(ctx, args)

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Read a line; one that a shell completes has its global options anywhere, too."""
        args = _meant(args)
        if extra.get("resilient_parsing"):
            wants_value = bool(args) and args[-1] in _GLOBAL_VALUES
            args = [] if wants_value else hoist_global_options(args)
            return super().make_context(info_name, args, parent, **extra)
        try:
            return super().make_context(info_name, args, parent, **extra)
        except _LineFault as error:
            raise _refused(error) from error

    def invoke(self, ctx: Any) -> Any:
        """Run the command; see `ckptkit.cli.output.ExitCode` for what each error returns."""
        from ckptkit.base.errors import CkptkitError
        from ckptkit.base.home import expanded

        try:
            ctx.params["registry"] = expanded(ctx.params["registry"])
            return super().invoke(ctx)
        except _LineFault as error:
            raise _refused(error, ctx) from error
        except CkptkitError as error:
            _explain(error, error.lines(), ctx)
            raise typer.Exit(int(exit_code(error))) from error
        except KeyboardInterrupt as error:
            if not _ended_by:
                again = "; run it again to resume" if ctx.invoked_subcommand == "fetch" else ""
                typer.echo(f"interrupted{again}", err=True)
            raise typer.Exit(130) from error
        except OSError as error:
            raise typer.Exit(_system_refused(error, ctx)) from error


def _system_refused(error: OSError, context: Any = None) -> int:
    """Explain what the system refused; returns the exit status."""
    from ckptkit.base.files import storage_error

    _explain(error, storage_error(error, error.filename or "disk").lines(), context)
    return int(ExitCode.DAMAGED)


def _explain(error: BaseException, lines: Sequence[str], context: Any) -> None:
    state = context.obj if context else None
    if isinstance(state, State) and state.output.verbose:
        import traceback

        from ckptkit.base.urls import scrubbed

        for text in scrubbed("".join(traceback.format_exception(error))).rstrip("\n").split("\n"):
            typer.echo(state.output.line(text), err=True)
    (state.output if isinstance(state, State) else Output()).error(*lines)


def _explain_itself(command: Any) -> None:
    """Have a command, and the commands of a group, print our help."""
    below = getattr(command, "commands", None)
    for one in (below or {}).values():
        _explain_itself(one)
    summaries = {
        name: one.short_help or str(one.help).partition("\n")[0] for name, one in (below or {}).items()
    }
    command.format_help = shown_by(command, (lambda: {"Commands": summaries}) if below else None)


app = typer.Typer(
    cls=Root,
    name="ckptkit",
    help=help_of(
        "Fetch, verify, convert and prove the published checkpoints of MOAT and MogaNet.\n\n"
        "Examples: ckptkit convert model.pth --to safetensors --layout as-is · ckptkit demo"
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ckptkit {__version__}")
        raise typer.Exit


def _registries(
    given: Sequence[str], offline: bool, mirrors: Sequence[str], output: Output
) -> tuple[Path, ...]:
    """The registry files of the line; those at URLs are fetched, also those of the environment."""
    if "://" not in "".join([*given, os.environ.get("CKPTKIT_REGISTRY", "")]):
        return tuple(map(Path, given))
    from ckptkit.store.registries import local_registries

    return local_registries(
        given, offline=offline, mirrors=mirrors, notes=output.note, progress=output.progress
    )


@app.callback()
def root(
    context: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show tracebacks of errors, and whole lists.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
    registry: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Your own registry, on top of the built-in one, also URL#sha256=HEX; may be repeated.",
        ),
    ] = None,
    mirror: Annotated[
        list[str] | None,
        typer.Option(metavar="FROM=TO", help="Fetch URLs that begin with FROM from TO; may be repeated."),
    ] = None,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Fetch, verify, convert and prove the published checkpoints of MOAT and MogaNet."""
    output = Output(quiet=quiet, verbose=verbose)
    context.obj = State(
        output=output,
        offline=offline,
        registries=_registries(registry or (), offline, mirror or (), output),
        mirrors=tuple(mirror or ()),
    )
    context.call_on_close(context.obj.close)
    from ckptkit.base.errors import NAMED_REGISTRIES, WHOLE_LISTS
    from ckptkit.base.home import keep_home_clean

    keep_home_clean()
    WHOLE_LISTS.set(verbose)
    NAMED_REGISTRIES.set(tuple(map(str, registry or ())))
    context.call_on_close(lambda: NAMED_REGISTRIES.set(()))


_GROUPS = {
    "Find": dict.fromkeys(("list", "show"), "list_commands"),
    "Fetch": dict.fromkeys(("fetch", "import"), "store_commands"),
    "Convert": {
        **dict.fromkeys(("convert", "synth"), "convert_commands"),
        "export": "export_commands",
        "rules": "rules_commands",
    },
    "Prove": {
        "verify": "compare_commands",
        "diff": "compare_commands",
        **dict.fromkeys(("parity", "record"), "parity_commands"),
        "eval": "eval_commands",
        "calibrate": "eval_commands",
    },
    "Look": {
        "inspect": "compare_commands",
        "profile": "profile_commands",
        "predict": "predict_commands",
        "cam": "cam_commands",
        **dict.fromkeys(("plot", "logs"), "plot_commands"),
    },
    "Maintain": {
        "cache": "cache_commands",
        "registry": "registry_commands",
        **dict.fromkeys(("doctor", "demo"), "start_commands"),
    },
}
"""The commands in the order of the root's help, and the file of each."""
_MODULES = {name: module for modules in _GROUPS.values() for name, module in modules.items()}


@cache
def _commands_in(module: str) -> Mapping[str, Any]:
    """Commands that a module registers, made once however many command lines a process runs."""
    part = typer.Typer(rich_markup_mode=None)
    importlib.import_module(f"ckptkit.cli.{module}").register(part)
    groups = [group.typer_instance for group in part.registered_groups]
    of_groups = [command for group in groups if group for command in group.registered_commands]
    commands: list[Any] = [*part.registered_commands, *of_groups]
    for command in commands:
        command.cls = Command
        command.help = help_of(command.callback)
        command.callback = with_shared_options(command.callback)
    made = typer.main.get_group(part).commands
    for group in made.values():
        _explain_itself(group)
    return made


def load_commands() -> Root:
    """The command line with every command loaded."""
    line = cast(Root, typer.main.get_command(app))
    for name in _MODULES:
        line.get_command(None, name)
    return line


_COMPLETION = "_CKPTKIT_COMPLETE"
"""Set by a shell that wants to know how a line may go on."""


def hoist_global_options(arguments: Sequence[str]) -> list[str]:
    """Move global options to the front, so that they work before and after the command.

    Examples
    --------
    >>> hoist_global_options(["fetch", "moat0-224", "--offline", "--registry", "mine.yaml"])
    ['--offline', '--registry', 'mine.yaml', 'fetch', 'moat0-224']
    """
    front: list[str] = []
    rest: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--":
            rest += [argument, *remaining]
        elif argument in _GLOBAL_FLAGS or ("=" in argument and argument.partition("=")[0] in _GLOBAL_VALUES):
            front.append(argument)
        elif argument in _GLOBAL_VALUES:
            front += [argument, *(value for value in [next(remaining, None)] if value is not None)]
        else:
            rest.append(argument)
    return front + rest


def _warning(message: Warning | str, *_: Any, **__: Any) -> str:
    """A warning of Python's as one line."""
    return f"warning: {escaped(str(message))}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the ``ckptkit`` command."""
    prepare_streams()
    os.environ.setdefault(
        "PYDANTIC_DISABLE_PLUGINS", "__all__"
    )  # it would look through every installed package
    warnings.filterwarnings("ignore", module=r"PIL\.")  # remarks on pictures' metadata; faults are errors
    as_before, warnings.formatwarning = warnings.formatwarning, _warning
    hoisted = hoist_global_options(sys.argv[1:] if arguments is None else arguments)
    if os.environ.get(_COMPLETION):
        from ckptkit.cli.completion import answer

        answer(typer.main.get_command(app))
    try:
        try:
            with _ending_in_order():
                contextvars.copy_context().run(
                    app, hoisted, prog_name=app.info.name
                )  # what options set ends with the command
        finally:
            warnings.formatwarning = as_before
            sys.stdout.flush()
    except OSError as error:  # of what was printed last, or of the help
        sys.exit(_system_refused(error))


if __name__ == "__main__":
    main()
