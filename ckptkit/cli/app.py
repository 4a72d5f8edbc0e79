"""The command line's root: global options, the commands, and the way from an error to an exit code."""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import difflib
import gc
import importlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from ckptkit._version import __version__
from ckptkit.base.text import escaped
from ckptkit.cli.examples import help_of
from ckptkit.cli.output import Output, prepare_streams
from ckptkit.cli.state import State

_GLOBAL_FLAGS = frozenset({"--quiet", "-q", "--verbose", "-v", "--offline"})
_GLOBAL_VALUES = frozenset({"--registry", "--mirror"})
EPILOG = "Before or after the command: --quiet --verbose --offline --registry FILE --mirror FROM=TO"


_LineFault: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
"""What typer raises for a line that it cannot read; newer versions bring a click of their own."""


def _refused(error: Any, root: Any = None) -> BaseException:
    """Say what is wrong with the line as every other error is said."""
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
        return cast(BaseException, error)
    from ckptkit.base.errors import UsageError, command

    text, _, meant = error.format_message().partition(" Did you mean ")
    if hasattr(error, "possibilities"):
        known = (*(error.possibilities or ()), *_GLOBAL_FLAGS, *_GLOBAL_VALUES)
        close = difflib.get_close_matches(error.option_name, known, 1)
        text, meant = error.message, f"{close[0]}?" if close else ""
    context = error.ctx
    names = [root.invoked_subcommand] if context is None and root and root.invoked_subcommand else []
    while context is not None and context.parent is not None:
        names.insert(0, context.info_name)
        context = context.parent
    hint = f"did you mean {meant}" if meant else command(*names, "--help")
    typer.echo(f"error: {UsageError(text[:1].lower() + text[1:].rstrip('.'), hint=hint)}", err=True)
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


class Command(TyperCommand):
    """Takes ``~`` for the home folder also where no shell looked: ``--output=~/m.pth``."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        from ckptkit.base.home import expanded

        ctx.params.update({name: expanded(value) for name, value in ctx.params.items()})
        return super().invoke(ctx)


class Root(TyperGroup):
    """Turns every error into one line and the documented exit code."""

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Read a line; one that a shell completes has its global options anywhere, too."""
        if extra.get("resilient_parsing"):
            wants_value = bool(args) and args[-1] in _GLOBAL_VALUES
            args = [] if wants_value else hoist_global_options(args)
            return super().make_context(info_name, args, parent, **extra)
        try:
            return super().make_context(info_name, args, parent, **extra)
        except _LineFault as error:
            raise _refused(error) from error

    def invoke(self, ctx: Any) -> Any:
        """Run the command; see `ckptkit.cli.exit_codes` for what each error returns."""
        from ckptkit.base.errors import CkptkitError
        from ckptkit.base.home import expanded

        try:
            ctx.params["registry"] = expanded(ctx.params["registry"])
            return super().invoke(ctx)
        except _LineFault as error:
            raise _refused(error, ctx) from error
        except CkptkitError as error:
            from ckptkit.cli.exit_codes import exit_code

            _explain(error, str(error), ctx)
            raise typer.Exit(int(exit_code(error))) from error
        except KeyboardInterrupt as error:
            if not _ended_by:
                typer.echo("interrupted", err=True)
            raise typer.Exit(130) from error
        except OSError as error:
            raise typer.Exit(_system_refused(error, ctx)) from error


def _system_refused(error: OSError, context: Any = None) -> int:
    """Explain what the system refused; returns the exit status."""
    from ckptkit.base.errors import storage_error
    from ckptkit.cli.exit_codes import ExitCode

    _explain(error, str(storage_error(error, error.filename or "disk")), context)
    return int(ExitCode.DAMAGED)


def _explain(error: BaseException, line: str, context: Any) -> None:
    state = context.obj if context else None
    if isinstance(state, State) and state.output.verbose:
        import traceback

        from ckptkit.base.urls import scrubbed

        for text in scrubbed("".join(traceback.format_exception(error))).rstrip("\n").split("\n"):
            typer.echo(state.output.line(text), err=True)
    typer.echo(f"error: {state.output.line(line) if isinstance(state, State) else escaped(line)}", err=True)


_RICH = sys.stdout is not None and sys.stdout.isatty()  # no boxes in a pipe

app = typer.Typer(
    cls=Root,
    name="ckptkit",
    help="Fetch, verify, convert and prove the published checkpoints of MOAT and MogaNet.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if _RICH else None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ckptkit {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show tracebacks of errors, and whole lists.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
    registry: Annotated[
        list[Path] | None,
        typer.Option(help="A registry of your own on top of the built-in one; may be repeated."),
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
    context.obj = State(
        output=Output(quiet=quiet, verbose=verbose),
        offline=offline,
        registries=tuple(registry or ()),
        mirrors=tuple(mirror or ()),
    )
    context.call_on_close(context.obj.close)
    from ckptkit.base.errors import NAMED_REGISTRIES, WHOLE_LISTS

    WHOLE_LISTS.set(verbose)
    NAMED_REGISTRIES.set(tuple(map(str, registry or ())))
    context.call_on_close(lambda: NAMED_REGISTRIES.set(()))


_MODULES = {
    "registry_commands": {
        "list": "List the published checkpoints.",
        "show": "Show everything known of an entry.",
    },
    "registry_admin": {"registry": "Check, describe, pin and add to registry files."},
    "store_commands": {
        "fetch": "Download, verify and unpack published files.",
        "import": "Take a file downloaded by hand into the cache.",
    },
    "verify_commands": {
        "verify": "Check a checkpoint: checksum, container, shapes, values.",
        "inspect": "Show the tensors in any checkpoint file.",
    },
    "diff_commands": {"diff": "Say what differs between two checkpoints."},
    "convert_commands": {
        "convert": "Convert between TensorFlow, PyTorch, safetensors …",
        "synth": "Write a synthetic checkpoint in the published format.",
    },
    "parity_commands": {"parity": "Run both frameworks and compare stage by stage."},
    "profile_commands": {"profile": "Count parameters and multiply-adds."},
    "predict_commands": {"predict": "Name what images show."},
    "cam_commands": {"cam": "Show where in a picture a model looks."},
    "eval_commands": {
        "eval": "Measure accuracy beside the published figures.",
        "calibrate": "Recompute BatchNorm statistics from images.",
    },
    "plot_commands": {"plot": "Draw accuracy against parameters or FLOPs."},
    "logs_commands": {"logs": "Show how a checkpoint was trained."},
    "export_commands": {"export": "Hand a checkpoint over to other tools."},
    "cache_commands": {"cache": "See, check and clear the cache folder."},
    "demo_commands": {"demo": "Do the main job on a built-in synthetic example."},
    "doctor_commands": {"doctor": "Look at what this machine has and lacks."},
}
"""Where each command lives and what the root's help says of it, in that help's order."""


_registered: set[str] = set()
"""Modules whose commands the root has already: a process may run several commands, as tests do."""


def register_commands(wanted: str | None = None) -> None:
    """Add the commands to the root: all, or those that live with the one that is about to run.

    Reading the options of a dozen commands that will not run would take a fifth of a short command's time.
    """
    app.registered_commands[:] = [c for c in app.registered_commands if c.callback is not _no_command]
    for module, names in _MODULES.items():
        if module in _registered or (wanted not in names and wanted in _ALL_COMMANDS):
            continue
        importlib.import_module(f"ckptkit.cli.{module}").register(app)
        _registered.add(module)
    groups = [group.typer_instance for group in app.registered_groups]
    for command in (*app.registered_commands, *(c for g in groups if g for c in g.registered_commands)):
        command.cls = Command
        command.epilog = EPILOG
        command.help = command.help or help_of(command.callback, rich=_RICH)


def list_commands() -> None:
    """Add every command by name and summary alone: all that the root's own help and messages need."""
    for names in _MODULES.values():
        for name, summary in names.items():
            app.command(name, help=summary)(_no_command)


def _no_command() -> None:
    """Stand where a command stands whose module is not loaded."""


_ALL_COMMANDS = frozenset(name for names in _MODULES.values() for name in names)

_COMPLETION = "_CKPTKIT_COMPLETE"
"""Set by a shell that wants to know how a line may go on."""

_WITHOUT_ALGEBRA = frozenset({"convert", "verify", "inspect", "diff"})
"""Commands that move and compare bytes: the threads that numpy's OpenBLAS starts when imported would spin for
a tenth of a second of processor time, with nothing to do."""


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


def _line_of(command: str | None) -> Any:
    """The command line's root, with the command that is on the line (None where there is none yet)."""
    if command is None:
        list_commands()
    else:
        register_commands(command)
    return typer.main.get_command(app)


def _warning(message: Warning | str, *_: Any, **__: Any) -> str:
    """A warning of Python's as one line."""
    return f"warning: {escaped(str(message))}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the ``ckptkit`` command."""
    prepare_streams()
    if os.path.expanduser("~") == "~":  # noqa: PTH111 (no home: Keras would make a folder of that name here)
        os.environ.setdefault("KERAS_HOME", str(Path(os.devnull, "keras")))  # nothing can be made there
    warnings.filterwarnings("ignore", module=r"PIL\.")  # remarks on pictures' metadata; faults are errors
    as_before, warnings.formatwarning = warnings.formatwarning, _warning
    gc.set_threshold(100_000)  # a command lives for seconds and makes few cycles: searching for them costs 5%
    hoisted = hoist_global_options(sys.argv[1:] if arguments is None else arguments)
    command = next((word for word in hoisted if word in _ALL_COMMANDS), None)
    if command in _WITHOUT_ALGEBRA:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if os.environ.get(_COMPLETION):
        from ckptkit.cli.completion import answer

        answer(_line_of, _ALL_COMMANDS)
    if command is None:
        list_commands()
    else:
        register_commands(command)
    try:
        try:
            with _ending_in_order():
                contextvars.copy_context().run(app, hoisted)  # what options set ends with the command
        finally:
            warnings.formatwarning = as_before
            gc.freeze()  # searching for cycles once more at the end takes a tenth of a short command's time
            sys.stdout.flush()
    except OSError as error:  # of what was printed last, or of the help
        sys.exit(_system_refused(error))


if __name__ == "__main__":
    main()
