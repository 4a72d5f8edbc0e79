"""The sink of all commands: any text into any encoding, streams that are closed, full, or read by nobody."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import rich.box
import rich.console
import rich.table
from safetensors.numpy import save_file

from ckptkit.base.shown import Column
from ckptkit.cli.output import Output, prepare_streams

SIGNS = "3 × 4 – … → · ─ ≤ ± é \udce9 \U0001f600 \u0416"
ENCODINGS = ["ascii", "latin-1", "cp437", "cp850", "cp932", "cp949", "cp1251", "cp1252", "gbk", "utf-8"]
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
CKPTKIT = f"{sys.executable} -m ckptkit.cli.app"


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash that says ``ckptkit``."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'ckptkit() {{ {CKPTKIT} "$@"; }}; {line}'],
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


def as_json(output: Output) -> Output:
    output.as_json = True
    return output


class TestEncodings:
    @pytest.fixture
    def encoded(self, monkeypatch):
        """Return a function that prints through the process' own output, as it is with an encoding."""

        def write(encoding, speak):
            buffer = io.BytesIO()
            monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding))
            prepare_streams()
            speak(Output())
            sys.stdout.flush()
            return buffer.getvalue().decode(encoding)

        return write

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_what_an_encoding_lacks_is_written_in_plain_letters_or_escaped(self, encoded, encoding):
        replaced = {"×": "x", "–": "-", "…": "...", "→": "->", "·": "-", "─": "-", "≤": "<=", "±": "+-"}
        expected = ""
        for sign in SIGNS:
            try:
                expected += sign.encode(encoding).decode(encoding)
            except UnicodeEncodeError:
                expected += replaced.get(sign) or ascii(sign)[1:-1]
        assert encoded(encoding, lambda output: output.text(SIGNS)) == f"{expected}\n"

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_json_stays_json(self, encoded, encoding):
        value = {SIGNS: [SIGNS, "\x1b[2J\x7f\u202e\u2028"]}
        text = encoded(encoding, lambda output: as_json(output).result(value))
        assert json.loads(text) == value
        assert all(line.isprintable() for line in text.splitlines())

    def test_json_that_can_be_shown_is_shown(self, encoded):
        assert encoded("utf-8", lambda output: as_json(output).result(["é–"])) == '[\n  "é–"\n]\n'

    @pytest.mark.parametrize("encoding", ["cp437", "cp1251", "ascii"])
    def test_a_process_in_a_code_page(self, tmp_path, encoding):
        path = tmp_path / "m.safetensors"
        save_file({"w×\U0001f600": numpy.zeros(1, numpy.float32)}, path)
        done = shell(
            f"ckptkit inspect {path} --json; ckptkit show moat0-224; ckptkit --help",
            PYTHONIOENCODING=encoding,
            PYTHONUTF8="0",
        )
        assert (done.returncode, done.stderr) == (0, b"")
        shown, _, rest = done.stdout.partition(b"\n}\n")
        assert json.loads(shown + b"}")["tensors"][0]["name"] == "w×\U0001f600"
        assert b"224x224" in rest.replace("×".encode(encoding, "replace"), b"x")

    def test_a_page_that_says_it_is_utf_8_is(self):
        done = shell("ckptkit list --format html", PYTHONIOENCODING="cp1252")
        assert (done.returncode, done.stderr) == (0, b"")
        assert "&#8211;" in done.stdout.decode("ascii")


class TestClosedStreams:
    @pytest.mark.parametrize("closed", ["1>&-", "2>&-", "<&- 1>&- 2>&-"])
    def test_nothing_to_write_to_is_no_error(self, closed, tmp_path):
        done = shell(f"ckptkit list -o {tmp_path}/a.csv {closed} && ckptkit --version {closed}")
        assert (done.returncode, done.stderr) == (0, b"93 entries\n" if closed == "1>&-" else b"")
        shell(f"ckptkit list -o {tmp_path}/b.csv")
        written = (tmp_path / "a.csv").read_bytes()
        assert written == (tmp_path / "b.csv").read_bytes()  # no file got the number of stdout

    @pytest.mark.parametrize("command", ["--help", "show moat0-224", "list --format html"])
    @pytest.mark.parametrize("unbuffered", ["", "1"])
    def test_a_reader_that_went_away_ends_it_as_the_signal_would(self, command, unbuffered):
        line = f"ckptkit {command} | (exec <&-; sleep 0.5); echo ${{PIPESTATUS[0]}}"
        done = shell(line, PYTHONUNBUFFERED=unbuffered)
        assert (done.stdout, done.stderr) == (b"141\n", b"")

    def test_remarks_that_nobody_reads_end_it_too(self):
        done = shell("ckptkit show nothing-of-this-name 2>&1 | (exec <&-; sleep 0.5); echo ${PIPESTATUS[0]}")
        assert (done.stdout, done.stderr) == (b"141\n", b"")

    @needs_full
    @pytest.mark.parametrize("command", ["--help", "show moat0-224", "list --format html"])
    def test_a_full_disk_under_standard_output_is_named(self, command):
        done = shell(f"ckptkit {command} > /dev/full")
        assert done.returncode == 5
        assert done.stderr.startswith(b"error: standard output: no space left on the disk")
        assert done.stderr.count(b"\n") == 1

    @needs_full
    def test_no_work_fails_for_a_remark_that_cannot_be_written(self, tmp_path):
        assert shell(f"ckptkit list -o {tmp_path}/a.csv 2> /dev/full").returncode == 0
        assert (tmp_path / "a.csv").stat().st_size > 1000

    @pytest.mark.skipif(sys.platform != "linux", reason="sets the size of a pipe")
    @pytest.mark.parametrize("unbuffered", ["", "1"])
    def test_a_pipe_that_does_not_block_gets_everything(self, unbuffered):
        import fcntl

        read, write = os.pipe()
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(write, False)
        with os.fdopen(read, "rb") as reader:
            process = subprocess.Popen(
                [sys.executable, "-m", "ckptkit.cli.app", "list", "--format", "html"],
                stdout=write,
                env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            )
            os.close(write)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1.5)  # more than the pipe holds: it waits
            text = reader.read()
        assert process.wait(30) == 0
        assert text.endswith(b"</html>\n")


class Terminal(io.StringIO):
    """A terminal that knows UTF-8."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


HEADINGS = [Column("id"), Column("params", numeric=True), Column("note")]
ROWS = [["moat0-224", "27.8M", "-"], ["tiny-moat0-256", "3.4M", "a [b] c"], ["x", "482.5M", ""]]


def test_a_table_is_drawn_with_a_rule_under_its_headings(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for column in HEADINGS:
        table.add_column(column.heading, justify="right" if column.numeric else "left")
    for row in ROWS:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    by_rich, ours = io.StringIO(), Terminal()
    rich.console.Console(file=by_rich, width=80).print(table)
    Output(stdout=ours).table(HEADINGS, ROWS)
    assert [line.rstrip() for line in ours.getvalue().splitlines()] == [
        line.rstrip() for line in by_rich.getvalue().splitlines()
    ]


@pytest.mark.parametrize("plain", [False, True])
def test_the_headings_are_bold_where_that_is_wanted(monkeypatch, plain):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1") if plain else monkeypatch.delenv("NO_COLOR", raising=False)
    output = Output(stdout=Terminal())
    output.table([Column("id")], [])
    assert ("\x1b[1m" in output.stdout.getvalue()) is not plain


@pytest.mark.parametrize(("variables", "coloured"), [({}, 0), ({"FORCE_COLOR": "1"}, 2)])
def test_colours_in_a_pipe_where_they_are_wanted(monkeypatch, variables, coloured):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    output = Output(stdout=io.StringIO())
    output.table([Column("id"), Column("verdict")], [["a", "differs"], ["b", "agrees"]], styles=["red", None])
    output.text("agree: a", marked="agree", fg="green")
    assert output.stdout.getvalue().count("\x1b[3") == coloured
    assert ("\x1b[31ma   differs\x1b[0m\n" in output.stdout.getvalue()) == bool(coloured)
    monkeypatch.setenv("NO_COLOR", "1")
    output.text("agree: a", marked="agree", fg="green")
    assert output.stdout.getvalue().endswith("\nagree: a\n")


def test_forced_colours_reach_a_pipe():
    environment = {**os.environ, "FORCE_COLOR": "1"}
    environment.pop("NO_COLOR", None)
    code = (
        "from ckptkit import doctor\ndoctor.questions = lambda: []\nfrom ckptkit.cli.app import main\nmain()"
    )
    line = [sys.executable, "-c", code, "doctor", "--offline"]
    printed = subprocess.run(line, capture_output=True, text=True, env=environment, check=False).stdout
    assert "\x1b[32mok" in printed and "in colour" in printed


@pytest.mark.parametrize("wide", [False, True])
def test_a_cell_that_is_too_wide_is_wrapped_and_nothing_of_it_is_lost(monkeypatch, wide):
    monkeypatch.setenv("COLUMNS", "80")
    output = Output(stdout=Terminal())
    output.table([Column("id"), Column("note")], [["a", "many words " * 20 if wide else "few"]])
    lines = [line for line in output.stdout.getvalue().splitlines() if line.strip()]
    assert (len(lines) > 3) == wide
    assert output.stdout.getvalue().split().count("words") == (20 if wide else 0)


def test_a_terminal_without_unicode_gets_signs_it_has():
    terminal = Terminal()
    terminal.encoding = "ascii"
    Output(stdout=terminal).table([Column("id")], [["a"]])
    terminal.getvalue().encode("ascii")


def test_with_json_nothing_but_the_result_is_printed():
    output = Output(as_json=True, stdout=io.StringIO(), stderr=io.StringIO())
    output.text("a line")
    output.table([Column("id")], [["a"]])
    output.document("a page")
    output.picture("a picture")
    with output.results() as show:
        show({"id": "a"}, "a line")
        show({"id": "b"}, lambda: output.text("another"))
    assert json.loads(output.stdout.getvalue()) == [{"id": "a"}, {"id": "b"}]


def test_people_see_each_result_when_it_comes():
    output = Output(stdout=io.StringIO())
    with output.results() as show:
        show({"id": "a"}, "first", lambda: output.text("second"))
        assert output.stdout.getvalue() == "first\nsecond\n"
    output.result({"id": "b"}, "third")
    assert output.stdout.getvalue() == "first\nsecond\nthird\n"


def test_nothing_in_a_name_is_taken_for_markup():
    name, terminal = "a[red][/b]:smile:\\[x]", Terminal()
    output = Output(stdout=terminal, stderr=terminal)
    output.table([Column("name[/x]")], [[name]], title=name, styles=["red"])
    with output.progress(name, 3) as advance:
        advance(3)
    assert terminal.getvalue().count(name) >= 3
    assert "name[/x]" in terminal.getvalue()


def test_a_table_on_a_narrow_terminal_cuts_nothing(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    output = Output(stdout=Terminal())
    digest = "0123456789abcdef" * 4
    output.table([Column("check"), Column("found")], [["checksum " * 4, digest]], styles=[None])
    lines = output.stdout.getvalue().splitlines()
    assert lines == ["checksum " * 3 + "checksum", f"  found  {digest}"]


def test_words_make_room_for_a_name_that_cannot_be_broken(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    output = Output(stdout=Terminal())
    name = "onnx/" + "0123456789abcdef" * 2
    output.table([Column("kept"), Column("used"), Column("state")], [[name, "2026-11-30 19:46", "as made"]])
    assert name in output.stdout.getvalue() and "19:46" in output.stdout.getvalue()


@pytest.mark.parametrize("service", ["GITHUB_ACTIONS", "TF_BUILD", ""])
def test_no_line_is_a_command_to_a_ci_service(monkeypatch, service):
    for name in ("GITHUB_ACTIONS", "TF_BUILD"):
        monkeypatch.delenv(name, raising=False)
    if service:
        monkeypatch.setenv(service, "true")
    names = ["::error::x", " ::stop-commands::x", "a ##[add-mask]b", "##vso[task.setvariable variable=a]b"]
    output = Output(stdout=io.StringIO(), stderr=io.StringIO())
    output.text(*names)
    output.note(names[0])
    output.table([Column("name")], [[name] for name in names])
    lines = (output.stdout.getvalue() + output.stderr.getvalue()).splitlines()
    obeyed = [line for line in lines if line.lstrip().startswith("::") or "##[" in line or "##vso[" in line]
    assert len(lines) == 10 and len(obeyed) == (0 if service else 9)
    as_json(output).result(names)
    assert json.loads(output.stdout.getvalue().split("b\n")[-1]) == names


def test_the_streams_of_others_are_left_alone(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    prepare_streams()
    assert sys.stdout is stream
