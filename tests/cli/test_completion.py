"""Shell completion, asked as the shells ask: by the protocol, in a real bash, and at a real prompt."""

from __future__ import annotations

import functools
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptkit.cli.app import load_commands
from ckptkit.families.base import registry_families
from ckptkit.registry.loading import load_registry
from tests.support.commands import cache
from tests.support.preloaded import write_command
from tests.support.running import registry_file

PROGRAM = Path(sys.executable).with_name("ckptkit")
BASH = shutil.which("bash")

pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="ckptkit is not installed as a command")

IDS = list(load_registry())
XT = [id for id in IDS if id.startswith("moganet-xt-2")]


@functools.cache
def quick_program() -> Path:
    """The command with its modules imported: the files here ask it a hundred times."""
    return (
        write_command("ckptkit.cli.completion", "tests.support.preloaded:make_ready")
        if hasattr(os, "fork")
        else PROGRAM
    )


def ask(shell: str, line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Ask as a shell does, with the cursor at the end of the line."""
    variables = {**os.environ, "_CKPTKIT_COMPLETE": f"complete_{shell}", **environment}
    if shell == "bash":
        words = line.split(" ")
        variables |= {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    else:
        variables["_TYPER_COMPLETE_ARGS"] = line
        variables["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    return subprocess.run(
        [quick_program()], env=variables, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory):
    """Return a function that completes lines in one bash after another, and gives what bash would offer."""
    if BASH is None:
        pytest.skip("needs bash")
    folder = tmp_path_factory.mktemp("here")
    for name in ("moganet-own.pth", "other.safetensors", "two words.csv"):
        (folder / name).touch()
    (folder / "moganet-xt-folder").mkdir()

    def complete(*lines: str, **environment: str) -> list[list[str]]:
        script = [
            "source <(_CKPTKIT_COMPLETE=source_bash ckptkit)",
            'ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _ckptkit_completion ckptkit;',
            '  (IFS="|"; echo "[${COMPREPLY[*]}]"); }',
            *(f"ask {line}" for line in lines),
        ]
        path = os.pathsep.join([str(quick_program().parent), os.environ["PATH"]])
        done = subprocess.run(
            [BASH, "--norc", "-c", "\n".join(script)],
            cwd=folder,
            env={**os.environ, **environment, "PATH": path},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.stderr == ""
        answers = re.findall(r"\[(.*)\]", done.stdout)
        assert len(answers) == len(lines), done.stdout
        return [answer.split("|") if answer else [] for answer in answers]

    return complete


def test_commands_options_and_choices(bash):
    assert bash(
        "ckptkit conv",
        "ckptkit registry p",
        "ckptkit cache p",
        "ckptkit convert moat0-224 --allow",
        "ckptkit list --format m",
        "ckptkit list --format = m",  # bash makes three words of --format=m
        "ckptkit --off",
    ) == [
        ["convert"],
        ["pin"],
        ["prune", "path"],
        ["--allow-missing-bn"],
        ["markdown"],
        ["markdown"],
        ["--offline"],
    ]


def test_ids_variants_families_and_columns(bash):
    assert bash(
        "ckptkit show moganet-xt-2",
        "ckptkit fetch moganet-xt-224 moganet-xt-22",
        "ckptkit synth tiny-moat0",
        "ckptkit profile moganet-xt-16",
        "ckptkit list --family m",
        "ckptkit list --variant tiny-",
        "ckptkit list --columns id,to",
        "ckptkit list --sort top",
        "ckptkit show nothing-like-it",
    ) == [
        XT,
        [id for id in XT if id.startswith("moganet-xt-22") and id != "moganet-xt-224"],
        [*(id for id in IDS if id.startswith("tiny-moat0")), "tiny-moat0"],
        ["moganet-xt-160-rsba3"],
        ["moat", "moganet"],
        ["tiny-moat0", "tiny-moat1", "tiny-moat2", "tiny-moat3"],
        ["id,top1", "id,top5"],
        ["top1", "top5"],
        [],
    ]


def test_files_where_files_are_meant(bash):
    """An empty answer makes bash offer files; ckptkit itself offers none."""
    assert bash(
        "ckptkit convert moganet-xt-",
        "ckptkit convert moganet-o",
        "ckptkit convert other",
        "ckptkit convert ./mo",
        "ckptkit import moat0-224 ''",
        "ckptkit show --registry ''",
        "ckptkit --registry ''",
    ) == [
        [id for id in IDS if id.startswith("moganet-xt-")],
        *[[] for _ in range(6)],
    ]


def test_only_what_is_cached_where_only_that_will_do(bash):
    cache("moat1-224")
    assert bash(
        "ckptkit cache rm m",
        "ckptkit verify ''",
        "ckptkit diff moat1",
        "ckptkit registry pin m",
        "ckptkit cache rm t",
    ) == [["moat1-224"], ["moat1-224"], ["moat1-224"], ["moat1-224"], []]


def test_logs_are_offered_where_there_are_some(bash):
    ((*offered,), nothing) = bash("ckptkit logs moganet-l", "ckptkit logs moat")
    assert offered == [
        id
        for id, e in load_registry(families=registry_families).items()
        if e.log_url and id.startswith("moganet-l")
    ]
    assert nothing == []


def test_registries_of_ones_own(bash, tmp_path: Path):
    overlay = registry_file(tmp_path, {"id": "my-own", "sources": [{"url": "https://a.org/m"}]})
    assert bash(
        f"ckptkit --registry {overlay} show my",
        f"ckptkit show --registry {overlay} my",
        f"ckptkit show --registry = {overlay} my",
        f"ckptkit show --offline --registry {overlay} -q my",
        "ckptkit show my",
    ) == [["my-own"], ["my-own"], ["my-own"], ["my-own"], []]
    assert bash("ckptkit show my", CKPTKIT_REGISTRY=str(overlay)) == [["my-own"]]


def test_whatever_is_wrong_is_not_said(bash, tmp_path: Path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("entries: [")
    (tmp_path / "file").touch()
    answers = bash(
        f"ckptkit show --registry {broken} moganet-xt-22",
        "ckptkit show --registry missing.yaml moganet-xt-22",
        "ckptkit nosuch m",
    )
    assert answers == [[id for id in XT if id.startswith("moganet-xt-22")]] * 2 + [[]]
    assert bash("ckptkit show moganet-xt-22", CKPTKIT_REGISTRY=str(broken)) == [[]]
    assert bash("ckptkit cache rm m", CKPTKIT_HOME=str(tmp_path / "file" / "home")) == [[]]


@pytest.mark.parametrize(
    ("shell", "line", "wanted"),
    [
        (
            "zsh",
            "ckptkit show moganet-xt-22",
            "('moganet-xt-224' 'moganet-xt-224-timm' 'moganet-xt-224-kecam')",
        ),
        ("zsh", "ckptkit list --format=ma", "markdown"),
        ("zsh", "ckptkit ", "convert"),
        ("zsh", "ckptkit fetch nothing-like-it", "_files"),
        ("zsh", 'ckptkit show "mog', "'moganet-xt-224'"),
        ("fish", "ckptkit show moganet-xt-22", "moganet-xt-224\n"),
        ("fish", "ckptkit list --columns id,to", "id,top1\n"),
        ("fish", "ckptkit conv", "convert\tConvert"),
        ("powershell", "ckptkit show moganet-xt-224", "moganet-xt-224-timm::: "),
        ("pwsh", "ckptkit conv", "convert:::Convert"),
    ],
)
def test_the_protocols_of_other_shells(shell: str, line: str, wanted: str):
    done = ask(shell, line, _TYPER_COMPLETE_WORD_TO_COMPLETE=line.rsplit(" ", maxsplit=1)[-1])
    assert (done.returncode, done.stderr) == (0, "")
    assert wanted in done.stdout


@pytest.mark.parametrize(
    ("environment", "code"),
    [
        ({"_CKPTKIT_COMPLETE": "complete_nosuchshell"}, 1),
        ({"_CKPTKIT_COMPLETE": "nonsense"}, 1),
        ({"COMP_WORDS": "ckptkit\nshow", "COMP_CWORD": "many"}, 1),
        ({"COMP_WORDS": "ckptkit\nshow", "COMP_CWORD": "99"}, 0),
        ({"COMP_WORDS": "", "COMP_CWORD": "0"}, 0),
    ],
)
def test_questions_that_make_no_sense(environment: dict[str, str], code: int):
    question = {"_CKPTKIT_COMPLETE": "complete_bash", "COMP_WORDS": "ckptkit\nshow\nx", "COMP_CWORD": "2"}
    variables = {**os.environ, **question, **environment}
    done = subprocess.run([PROGRAM], env=variables, capture_output=True, text=True, check=False)
    assert done.stderr == "" and done.returncode == code


def test_fish_is_told_whether_to_offer_files():
    action = {"_TYPER_COMPLETE_FISH_ACTION": "is-args"}
    variables = {**os.environ, **action, "_CKPTKIT_COMPLETE": "complete_fish"}
    for line, code in (("ckptkit show moganet-xt", 0), ("ckptkit show nothing", 1)):
        asked = {**variables, "_TYPER_COMPLETE_ARGS": line}
        assert subprocess.run([PROGRAM], env=asked, capture_output=True, check=False).returncode == code


def test_ids_need_nothing_heavy():
    """The answer comes while somebody waits at the prompt."""
    code = (
        "import sys\n"
        "sys.argv = ['ckptkit']\n"
        "from ckptkit.cli.app import main\n"
        "try: main()\n"
        "finally: print(sorted({'numpy', 'requests', 'rich'} & set(sys.modules)))"
    )
    variables = {
        **os.environ,
        "_CKPTKIT_COMPLETE": "complete_bash",
        "COMP_WORDS": "ckptkit\nshow\nmoganet-xt-22",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False
    )
    assert "moganet-xt-224\n" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]", done.stdout


EVIL = [
    *("$(touch PWNED)", "\\\\$(touch PWNED)", "`touch PWNED`", "'; touch PWNED; '", '"; touch PWNED; "'),
    *(
        "a b",
        "a\\ttouch",
        "x\\ntouch PWNED",
        "*",
        "[a-z]",
        "~",
        "a:b",
        "{a,b}",
        "a;touch",
        "a|b",
        "\x1b[2J",
        "é",
    ),
    *("!!", "a#", "<(touch PWNED)", "$HOME", "(evil)", "a&", "%USERPROFILE%x^y", ""),
]
"""What an id of somebody's registry, or a file, may be called."""

OFFER_EVIL = f"""
import sys, typer
from ckptkit.cli import completion
app = typer.Typer()
def evil(incomplete: str) -> list[tuple[str, str]]:
    return [(name, f"help {{name}}") for name in ["x-good.id_1", *{EVIL!r}]]
@app.command()
def show(id: str = typer.Argument(autocompletion=evil)) -> None: ...
@app.command()
def other() -> None: ...
sys.argv = ["ckptkit"]
completion.answer(typer.main.get_command(app))
"""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_only_what_no_shell_reads_otherwise_is_offered(shell: str, tmp_path: Path):
    variables = {
        **os.environ,
        "_CKPTKIT_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "ckptkit\nshow\n",
        "COMP_CWORD": "2",
        "_TYPER_COMPLETE_ARGS": "ckptkit show ",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = subprocess.run(
        [sys.executable, "-c", OFFER_EVIL], env=variables, capture_output=True, text=True, check=True
    )
    answer = done.stdout.removesuffix("\n")
    if shell == "zsh":  # is evaluated; its arrays are written as bash's are
        code = (
            f'f() {{ {answer}; }}; compset() {{ :; }}; _describe() {{ printf "%s\\n" "${{offers[@]}}"; }}; f'
        )
        for program in filter(None, (BASH, shutil.which("zsh"))):
            said = subprocess.run(
                [program, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
            ).stdout
            assert said == "x-good.id_1:help x-good.id_1\n"
        assert not list(tmp_path.iterdir())
        return
    between = {"bash": None, "fish": "\t", "powershell": ":::"}[shell]
    assert answer == "x-good.id_1" + (f"{between}help x-good.id_1" if between else "")


def test_a_description_is_one_line_that_zsh_does_not_evaluate(tmp_path: Path):
    if BASH is None:
        pytest.skip("needs bash")
    from ckptkit.cli.completion import _described, _for_zsh

    text = "It's `touch PWNED` $(touch PWNED)\\n\t\x1b]0;x\x07\u202e \\\\[torch] a:b " + "long " * 100
    answer = _for_zsh({"x": _described(text.replace("\\n", "\n"))})
    assert "\n" not in answer and "\x1b" not in answer
    code = f'f() {{ {answer}; }}; compset() {{ :; }}; _describe() {{ printf "%s" "${{offers[0]}}"; }}; f'
    said = subprocess.run([BASH, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said.startswith(r"x:It's `touch PWNED` $(touch PWNED) ]0;x \[torch] a:b long")
    assert not list(tmp_path.iterdir())


NAMES = [f"moat{name}" for name in EVIL if "/" not in name] + ["moat.pth", "-moat", "moat\\"]


@pytest.mark.parametrize(
    ("shell", "name"), [("zsh", "moat"), ("zsh", "qq"), ("fish", "moat"), ("powershell", "qq")]
)
def test_a_name_of_a_file_is_in_no_answer(shell: str, name: str, tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    for file in NAMES:
        (tmp_path / file.replace("moat", name)).touch()
    done = ask(shell, f"ckptkit convert {name}", _TYPER_COMPLETE_WORD_TO_COMPLETE=name)
    offered = re.findall(rf"{name}[^\s':]*", done.stdout)
    assert set(offered) == {id for id in IDS if id.startswith(name)}
    assert name != "qq" or done.stdout == ("_files\n" if shell == "zsh" else "\n")


def test_odd_file_names_at_a_real_prompt(tmp_path: Path, monkeypatch: Any):
    """Each is completed by bash alone, which quotes it: the program gets its name, and nothing runs."""
    if BASH is None:
        pytest.skip("needs bash")
    monkeypatch.chdir(tmp_path)
    rc = tmp_path / "rc"
    rc.write_text(
        f"PATH={PROGRAM.parent}:$PATH\nPS1='ready> '\nbind 'set enable-bracketed-paste off'\n"
        "source <(_CKPTKIT_COMPLETE=source_bash ckptkit)\n"
        "ckptkit() { if [ $# = 0 ]; then command ckptkit; else printf '%s' \"$2\" > got; echo done.; fi; }\n"
    )
    names = [
        r"qa\$(touch PWNED)",
        "qb`touch PWNED`",
        "qc'; touch PWNED; '",
        'qd"; touch PWNED; "',
        "qe f g",
        "qf$HOME",
    ]
    for name in names:
        (tmp_path / name).touch()
    child, terminal = pty.fork()
    if child == 0:  # pragma: no cover (another process)
        os.environ["TERM"] = "dumb"
        os.execv(BASH, [BASH, "--noprofile", "--rcfile", str(rc), "-i"])
    try:
        _read_until(terminal, b"ready> ")
        for name in names:
            os.write(terminal, f"ckptkit convert {name[:2]}\t".encode())
            _read_until(terminal, name[-1].encode())
            os.write(terminal, b"\n")
            _read_until(terminal, b"done.\r\nready> ")
            assert (tmp_path / "got").read_text() == name
        os.write(terminal, b"exit\n")
    finally:
        os.close(terminal)
        os.waitpid(child, 0)
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize(
    ("shell", "words"),
    [
        *(("zsh", words) for words in ("'", '"moat', "\\", "-- moat", "--registry", "a" * 50_000)),
        *(("fish", "$("), ("powershell", "'"), ("powershell", "=")),
    ],
    ids=lambda text: text[:6],
)
def test_odd_lines_end_without_a_word(shell: str, words: str):
    done = ask(shell, f"ckptkit convert {words}", _TYPER_COMPLETE_WORD_TO_COMPLETE=words)
    assert done.stderr == "" and done.returncode in (0, 1)


def test_at_a_real_prompt(tmp_path: Path):
    """The tab key in an interactive bash."""
    if BASH is None:
        pytest.skip("needs bash")
    rc = tmp_path / "rc"
    rc.write_text(
        f"PATH={PROGRAM.parent}:$PATH\nPS1='ready> '\nbind 'set enable-bracketed-paste off'\n"
        "source <(_CKPTKIT_COMPLETE=source_bash ckptkit)\n"
    )
    child, terminal = pty.fork()
    if child == 0:  # pragma: no cover (another process)
        os.environ["TERM"] = "dumb"
        os.execv(BASH, [BASH, "--noprofile", "--rcfile", str(rc), "-i"])
    try:
        _read_until(terminal, b"ready> ")
        os.write(terminal, b"echo ckptkit; ckptkit conv\t")
        assert b"ckptkit convert " in _read_until(terminal, b"convert ")
        os.write(terminal, b"moat0-224-n\t")
        assert b"moat0-224-noposemb " in _read_until(terminal, b"noposemb ")
        os.write(terminal, b"\x15exit\n")
    finally:
        os.close(terminal)
        os.waitpid(child, 0)


def _read_until(terminal: int, wanted: bytes) -> bytes:
    seen, end = b"", time.monotonic() + 30
    while wanted not in seen:
        ready, _, _ = select.select([terminal], [], [], max(end - time.monotonic(), 0))
        assert ready, f"only {seen!r} came"
        seen += os.read(terminal, 4096)
    return seen


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_scripts_of_other_shells_are_sound(shell: str):
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"needs {shell}")
    script = subprocess.run(
        [PROGRAM],
        env={**os.environ, "_CKPTKIT_COMPLETE": f"source_{shell}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "ckptkit" in script
    done = subprocess.run([program, "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_says_how_to_install_it():
    done = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, check=True)
    assert "--install-completion" in done.stdout and "--show-completion" in done.stdout


def test_installing_it(tmp_path: Path):
    if BASH is None:
        pytest.skip("needs bash")
    variables = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        [BASH, "--norc", "-c", f"{PROGRAM} --install-completion; true"],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "bash completion installed in" in done.stdout, done.stderr
    assert "_CKPTKIT_COMPLETE=complete_bash" in (tmp_path / ".bash_completions" / "ckptkit.sh").read_text()
    assert "ckptkit.sh" in (tmp_path / ".bashrc").read_text()


def test_every_argument_that_takes_an_id_is_completed():
    incomplete = [
        f"{name} {parameter.metavar}"
        for name, command in _leaves(load_commands())
        for parameter in command.params
        if parameter.param_type_name == "argument"
        and re.search(r"\bID|WHAT|PATTERN…|\b[AB]\b", parameter.metavar or "")
        and parameter._custom_shell_complete is None
    ]
    assert incomplete == []


def test_every_command_that_reads_a_checkpoint_lets_one_say_what_of_it_is_meant():
    options = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in _leaves(load_commands())
    }
    assert {name for name, given in options.items() if {"--state-dict", "--strip-prefix"} <= given} == {
        *("convert", "verify", "inspect", "diff", "parity", "export", "predict", "cam", "eval", "calibrate"),
        *("registry add", "rules check", "rules suggest"),
    }


def _leaves(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    below = getattr(command, "commands", None)
    if below is None:
        yield name, command
    else:
        for word, child in below.items():
            yield from _leaves(child, f"{name} {word}".strip())
