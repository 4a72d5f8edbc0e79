"""list and show, as a user runs them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ckptkit.families.base import registry_families
from ckptkit.registry.loading import load_registry
from ckptkit.store.cache import Home
from tests.support.browser import Browser, browser
from tests.support.commands import SHA, WHEN, Run, Runner, cache, runner
from tests.support.pages import HOSTILE, Page, check_page
from tests.support.registries import published, write
from tests.support.running import forked


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    return runner(capsys)


def ids(result: Run) -> list[str]:
    return [row["id"] for row in json.loads(result.out)]


def test_list_in_a_pipe_is_plain_aligned_text(run: Runner) -> None:
    cache("moat1-224")
    result = run("list", "moat[01]-224", "moganet-xt-160-rsba3")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        "family   id                    resolution  pos-emb  pretrain     setting"
        "  params  FLOPs  top-1  cached",
        "moat     moat0-224                    224  yes      ImageNet-1K  -         27.8M   5.7B   83.3  no",
        "moat     moat1-224                    224  yes      ImageNet-1K  -         41.6M   9.1B   84.2  yes",
        "moganet  moganet-xt-160-rsba3     160/224  -        ImageNet-1K  RSB A3    2.97M  0.80G   72.8  no",
    ]


def test_list_has_every_entry_in_the_order_of_the_registry(run: Runner) -> None:
    lines = run("list").out.splitlines()
    classifiers, others = (
        lines[2 : lines.index("")],
        [line.split()[0] for line in lines[lines.index("") :] if "-" in line and ": " not in line],
    )
    assert [*(line.split()[1] for line in classifiers), *others] == sorted(
        load_registry(), key=lambda id: load_registry()[id].task != "image-classification"
    )


def test_each_task_has_a_table_with_its_metrics(run: Runner) -> None:
    lines = run("list", "moganet-s*").out.splitlines()
    headings = [
        place for place, line in enumerate(lines) if re.fullmatch("[a-z ]+: [0-9]+ (entry|entries)", line)
    ]
    assert [lines[place] for place in headings] == [
        "image classification: 8 entries",
        "object detection: 1 entry",
        "instance segmentation: 4 entries",
        "semantic segmentation: 2 entries",
        "pose estimation: 2 entries",
    ]
    assert lines[headings[1] + 1 : headings[2] - 1] == [
        "id                           method     setting  pretrain     params   FLOPs  box_mAP  cached",
        "moganet-s-coco-retinanet-1x  RetinaNet  1x       ImageNet-1K   35.1M  253.0G     45.8  no",
    ]
    assert lines[headings[3] + 1].split()[-4:] == ["FLOPs", "mIoU", "mAcc", "cached"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--task", "object-detection", "--variant", "moganet-[bl]"],
         ["moganet-b-coco-retinanet-1x", "moganet-l-coco-retinanet-1x"]),
        (["--metric", "mask-map", "--setting", "1x", "--sort", "-box_mAP", "--max-params", "50M"],
         ["moganet-s-coco-maskrcnn-1x", "moganet-t-coco-maskrcnn-1x", "moganet-xt-coco-maskrcnn-1x"]),
        (["--metric", "AP", "--metric", "ARL", "--variant", "moganet-b"],
         ["moganet-b-coco-pose-256x192", "moganet-b-coco-pose-384x288"]),
        (["--metric", "top5", "--task", "*-detection"], []),
    ],
)  # fmt: skip
def test_filters_of_tasks_and_metrics(run: Runner, arguments: list[str], expected: list[str]) -> None:
    assert ids(run("list", *arguments, "--json")) == expected


def test_a_metric_is_a_column(run: Runner) -> None:
    one = run(
        "list", "moganet-b-coco-pose-384x288", "moganet-b-224", "--columns", "id,ar,top1"
    ).out.splitlines()
    assert one == [
        "id                             AR  top-1",
        "moganet-b-224                   -   84.3",
        "moganet-b-coco-pose-384x288  82.2      -",
    ]
    only = run("list", "moganet-b-coco-pose*", "--metric", "AP50").out.splitlines()[0]
    assert "AP50" in only and "AP75" not in only
    wrong = run("list", "--metric", "mAP")
    assert wrong.code == 3 and "no entry has a metric 'mAP'" in wrong.err and "box_mAP" in wrong.err
    row = next(csv.DictReader(io.StringIO(run("list", "moganet-b-coco-pose-384x288", "--format", "csv").out)))
    assert (row["AP"], row["ARL"], row["task"]) == ("77.3", "88.5", "pose-estimation")


def test_no_id_is_cut_at_80_columns() -> None:
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in on_a_terminal(80, "list")]
    assert max(map(len, lines)) <= 80
    assert {line.split()[0] for line in lines if "-" in line and line.startswith(" m")} == set(
        load_registry().find(family="moganet") and [id for id in load_registry() if id.startswith("m")]
    )


S_224 = ["moganet-s-224", "moganet-s-224-timm"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--family", "moat", "--max-params", "5M"], ["tiny-moat0-256", "tiny-moat0-256-noposemb"]),
        (["--min-top1", "88.9"], ["moat4-512", "moat4-512-noposemb"]),
        (["--min-top1", "89.1%", "--resolution", "512×512"], ["moat4-512"]),  # as show prints them
        (["--max-top1", "75"], ["moganet-xt-160-rsba3"]),
        (["--resolution", "384", "--no-pos-emb"], ["moat2-384-noposemb"]),
        (["--resolution", "384", "--pos-emb"], ["moat2-384"]),
        (["--setting", "DeiT III"], ["moganet-xt-256-deit3", "moganet-t-256-deit3"]),
        (["--pretrain", "*22K*", "--min-flops", "600B"], ["moat4-512", "moat4-512-noposemb"]),
        (["--variant", "moganet-xl"], ["moganet-xl-224", "moganet-xl-224-timm", "moganet-xl-mmpretrain"]),
        (["--variant", "moat0", "--variant", "moat1", "--pos-emb"], ["moat0-224", "moat1-224"]),
        (["moat3-*", "--reverse"], ["moat3-512-noposemb", "moat3-512"]),
        (["moat?-224", "--sort", "top1"], ["moat0-224", "moat1-224"]),
        (["moat?-224", "--sort", "-top1"], ["moat1-224", "moat0-224"]),
        (["moat?-224", "--sort", "Top-1", "--reverse"], ["moat1-224", "moat0-224"]),
        # 82.5M comes before 180.8M: by number, not by letter.
        (["moganet-[sx]*-timm", "moganet-l-224", "--sort", "params", "--min-params", "25M"],
         ["moganet-s-224-timm", "moganet-l-224", "moganet-xl-224-timm"]),
        # What is not known comes last in both directions.
        (["moganet-s-224*", "--sort", "top1"], [*S_224, "moganet-s-224-kecam", "moganet-s-224-nofp32gate"]),
        (["moganet-s-224*", "--sort", "-top1"], [*S_224, "moganet-s-224-kecam", "moganet-s-224-nofp32gate"]),
    ],
)  # fmt: skip
def test_filters_and_order(run: Runner, arguments: list[str], expected: list[str]) -> None:
    assert ids(run("list", *arguments, "--json")) == expected


def test_cached_or_not(run: Runner) -> None:
    cache("moat1-224")
    assert ids(run("list", "--cached", "--json")) == ["moat1-224"]
    left = ids(run("list", "--not-cached", "--json"))
    assert len(left) == len(load_registry()) - 1 and "moat1-224" not in left
    (
        Home.default().artefact_folder("moat1-224")
        / Path(load_registry(families=registry_families)["moat1-224"].file_name)
    ).unlink()
    assert ids(run("list", "--cached", "--json")) == []


def test_json_has_every_field_as_the_registry_has_it(run: Runner) -> None:
    listed = json.loads(run("list", "--json").out)
    for row, entry in zip(listed, load_registry(families=registry_families).values(), strict=True):
        derived = {"params": entry.params, "flops": entry.flops, "cached": False}
        assert row == {**json.loads(entry.model_dump_json()), **derived}


def test_columns(run: Runner) -> None:
    plain = run("list", "moat0-224", "--columns", "params, ID,published_top5,layout")
    assert plain.out.splitlines() == [
        "params  id         top-5  layout",
        " 27.8M  moat0-224      -  deeplab2",
    ]
    data = json.loads(run("list", "moat0-224", "--columns", "id,params,pos-emb,top5", "--json").out)
    assert data == [{"id": "moat0-224", "params": 27.8e6, "pos-emb": True, "top5": None}]


def test_tsv_has_the_same_cells(run: Runner) -> None:
    printed = run("list", "--format", "tsv").out
    rows = csv.reader(io.StringIO(run("list", "--format", "csv").out))
    assert [line.split("\t") for line in printed.splitlines()] == list(rows)


def test_csv_is_read_back(run: Runner) -> None:
    rows = list(csv.DictReader(io.StringIO(run("list", "--format", "csv").out)))
    for row, entry in zip(rows, load_registry(families=registry_families).values(), strict=True):
        assert (row["id"], row["published-params"], row["url"]) == (
            entry.id,
            entry.published_params or "",
            entry.sources[0].url,
        )
        assert (float(row["params"]) if row["params"] else None) == entry.params
        assert row["top1"] == ("" if entry.published_top1 is None else str(entry.published_top1))
        assert row["sha256"] == (entry.sha256 or "")


def tables(text: str) -> dict[str, list[list[str]]]:
    """Cells of each Markdown table, by its heading."""
    found: dict[str, list[list[str]]] = {}
    for block in text.strip().split("\n\n### "):
        heading, _, table = block.removeprefix("### ").partition("\n\n")
        found[heading] = [line.strip("| ").split(" | ") for line in table.splitlines()]
    return found


def test_markdown_is_one_table_for_each_published_one(run: Runner) -> None:
    found = tables(run("list", "--format", "markdown").out)
    assert {heading: len(table) - 2 for heading, table in found.items()} == {
        "MOAT, strong, with position embedding (deeplab2 layout)": 5,
        "MOAT, strong, without position embedding (deeplab2 layout)": 5,
        "MOAT, tiny, with position embedding (deeplab2 layout)": 4,
        "MOAT, tiny, without position embedding (deeplab2 layout)": 4,
        "MogaNet (openmixup layout)": 16,
        "MogaNet (torch layout)": 8,
        "MogaNet, mmpretrain (openmixup layout)": 6,
        "MogaNet, kecam (kecam layout)": 6,
        "MogaNet, birder (birder layout)": 3,
        "moat, wd-tagger, multi-label tagging, without position embedding (wd-tagger layout)": 1,
        "MogaNet, object detection, RetinaNet (openmixup layout)": 5,
        "MogaNet, instance segmentation, Mask R-CNN (openmixup layout)": 9,
        "MogaNet, instance segmentation, Cascade Mask R-CNN (openmixup layout)": 3,
        "MogaNet, semantic segmentation, Semantic FPN (openmixup layout)": 5,
        "MogaNet, semantic segmentation, UperNet (openmixup layout)": 5,
        "MogaNet, pose estimation, Top-Down heatmap (openmixup layout)": 8,
    }
    masks = found["MogaNet, instance segmentation, Mask R-CNN (openmixup layout)"]
    assert masks[0] == [
        "Model",
        "id",
        "Setting",
        "Pretrain",
        "Params",
        "FLOPs",
        "box_mAP",
        "mask_mAP",
        "Files",
    ]
    table = found["MOAT, tiny, without position embedding (deeplab2 layout)"]
    assert table[0] == ["Model", "id", "Pretrain", "Resolution", "Params", "FLOPs", "Top-1", "Files"]
    assert table[1] == ["---", "---", "---", "---:", "---:", "---:", "---:", "---"]
    url = load_registry(families=registry_families)["tiny-moat0-256-noposemb"].sources[0].url
    assert table[2] == [
        *("tiny-MOAT-0", "`tiny-moat0-256-noposemb`", "ImageNet-1K", "256", "3.3M", "1.1B", "76.0"),
        f"[download]({url})",
    ]
    assert {len(row) for row in found["MogaNet (openmixup layout)"]} == {10}


def test_markdown_keeps_a_cell_one_cell(run: Runner, tmp_path: Path) -> None:
    overlay = write(
        tmp_path, "entries: [{id: moat0-224, display_name: 'a|b*<i>', setting: \"x\\ny\", group: '[z]'}]"
    )
    result = run("list", "moat0-224", "--format", "markdown", "--registry", overlay)
    assert "| a\\|b\\*\\<i> | `moat0-224` | x y |" in result.out
    assert "### moat, \\[z], with position embedding" in result.out


def test_nothing_found_is_an_empty_table_and_a_note(run: Runner) -> None:
    result = run("list", "--family", "resnet")
    assert result.code == 0
    assert len(result.out.splitlines()) == 1
    assert result.err == "no entry matches all filters (of 93 in the registry)\n"
    assert run("list", "--family", "resnet", "--quiet").err == ""
    assert json.loads(run("list", "--min-top1", "99", "--json").out) == []
    assert len(run("list", "moat*", "--min-top1", "99", "--format", "csv").out.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["list", "moat0-225"], 3, "no entry 'moat0-225' in the registry; did you mean moat0-224"),
        (["show", "moat0-225"], 3, "did you mean moat0-224"),
        (["show", "x*"], 3, "no id matches 'x*'"),
        (["list", "x*"], 3, "no id matches 'x*'"),
        (["show", "moat2"], 3, "did you mean moat2-384, moat2-384-noposemb or moat2-448-wd-tagger-v2?"),
        (["show", "mogatnet-xt"], 3, "did you mean moganet-xt-224,"),
        (["list", "moat9-*"], 3, "did you mean moat0-224,"),
        (["list", "--columns", "id,colour"], 2, "unknown column 'colour'; choose from family, id,"),
        (["list", "--columns", ", "], 2, "--columns is empty"),
        (["list", "--sort", "colour"], 2, "unknown column 'colour'"),
        (["list", "--max-params", "30X"], 2, "'30X' is not a number; write it like 30M"),
        (["list", "--registry", "nowhere.yaml"], 3, "nowhere.yaml: no such registry file"),
        (["registry", "validate", "nowhere.yaml"], 3, "nowhere.yaml: no such registry file"),
        (["registry", "pin", "moat0-224"], 3, "moat0-224 has not been fetched here"),
        (["registry", "pin", "moat0-22"], 3, "did you mean moat0-224"),
    ],
)
def test_one_line_says_what_is_wrong(run: Runner, arguments: list[str], code: int, message: str) -> None:
    result = run(*arguments)
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("error: ") and result.err.count("\n") == 1
    assert message in result.err


def test_a_damaged_overlay_is_refused_by_every_command(run: Runner, tmp_path: Path) -> None:
    overlay = write(tmp_path, "entries: [{id: moat0-224, colour: red}]")
    for command in (["list"], ["show", "moat0-224"], ["registry", "pin", "moat0-224"]):
        result = run(*command, "--registry", overlay)
        assert (result.code, result.out) == (5, "")
        assert "line 1: entry 'moat0-224': unknown key 'colour'" in result.err


def test_show_tells_everything(run: Runner) -> None:
    entry = load_registry(families=registry_families)["moganet-s-160-rsba3"]
    result = run("show", entry.id)
    assert result.code == 0
    for value in (
        *("moganet-s-160-rsba3: MogaNet-S", "25.3M as published, 25,335,675 exactly", "4.97G as published"),
        *("top-1 81.1%", "160×160", "224×224, resize 236, bicubic, imagenet normalization", "RSB A3"),
        *("attn_force_fp32 yes", "Apache-2.0, arXiv:2211.03295", "format torch, layout openmixup"),
        *("not pinned: no checksum of this file is published", entry.config_url, entry.log_url),
        *(source.url for source in entry.sources),
        *(source.note for source in entry.sources),
        "ckptkit fetch moganet-s-160-rsba3",
    ):
        assert value in result.out, value
    moat = run("show", "tiny-moat3-256").out
    for value in ("position embedding  yes", "pool_size 2", "lacks BatchNorm statistics; the first upload"):
        assert value in moat, value
    assert "a later edition of the published table says 83.3" in moat


def test_show_of_a_fetched_entry_leads_on(run: Runner) -> None:
    record = cache("moat0-224")
    text = run("show", "moat0-224").out
    assert f"observed here       sha256 {SHA}, 5 bytes, {WHEN}" in text
    after = text.partition("\nNext\n")[2].split("\n")
    assert [line.strip() for line in after if line] == [
        "ckptkit verify moat0-224 --deep",
        "ckptkit convert moat0-224 --to safetensors",
        "ckptkit parity moat0-224",
        "ckptkit registry pin moat0-224",
    ]
    (data,) = json.loads(run("show", "moat0-224", "--json").out)
    assert data["observed"] == {"sha256": SHA, "size": 5, "fetched_at": WHEN, "url": record.url}
    assert (data["cached"], data["params"], data["is_archive"]) == (True, 27.8e6, True)


def test_show_of_an_entry_that_only_a_person_can_fetch(run: Runner, tmp_path: Path) -> None:
    overlay = write(
        tmp_path, "entries: [{id: moganet-s-224, sources: [{url: 'https://pan.org/x', manual: true}]}]"
    )
    text = run("show", "moganet-s-224", "--registry", overlay).out
    assert "ckptkit import moganet-s-224 FILE" in text
    assert "ckptkit fetch" not in text


LEAVES_OUT = (
    "numpy",
    "requests",
    "rich",
    "torch",
    "tensorflow",
    "keras",
    "h5py",
    "matplotlib",
)


def test_list_loads_nothing_heavy() -> None:
    code = (
        "import sys; from ckptkit.cli.app import main\n"
        "try: main(['list'])\n"
        f"finally: print(sorted(set({LEAVES_OUT}) & set(sys.modules)), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2))
    assert second.stderr == "[]\n"
    assert first.stdout == second.stdout
    tasks = {entry.task for entry in load_registry().values()}
    assert len(second.stdout.splitlines()) == len(load_registry()) + 2 * len(tasks) + len(tasks) - 1
    assert not {"torch", "tensorflow", "keras", "requests", "numpy"} & set(eval(first.stderr))


def on_a_terminal(width: int, *arguments: str) -> list[str]:
    """What a terminal of this width gets to see."""
    ours, theirs = pytest.importorskip("pty").openpty()
    environment = {**os.environ, "COLUMNS": str(width), "LINES": "50", "TERM": "xterm", "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "ckptkit", *arguments]
    process = forked(command, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    try:
        while piece := os.read(ours, 65536):
            seen += piece
    except OSError:  # Linux says so when the other end is closed
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0
    return seen.decode().replace("\r\n", "\n").split("\n")


@pytest.mark.parametrize(
    ("width", "hidden"),
    [(160, []), (125, []), (100, ["pretrain"]), (80, ["family", "pretrain", "setting"])],
)
def test_the_table_fits_the_terminal(width: int, hidden: list[str]) -> None:
    lines = on_a_terminal(width, "list", "--task", "image-classification")
    heading = re.sub(r"\x1b\[\d*m", "", next(line for line in lines if "params" in line)).rstrip()
    assert max(len(line) for line in lines if "moat" in line) <= width
    assert len(heading) <= width
    full = {"family", "pretrain", "setting", "params", "FLOPs", "top-1", "cached", "id"}
    assert full - set(heading.split()) == set(hidden)
    assert len([line for line in lines if "noposemb" in line]) == 9  # none is wrapped
    note = [line for line in lines if "too wide for this terminal" in line]
    assert note == (
        [f"too wide for this terminal: {', '.join(hidden)}; choose with --columns"] if hidden else []
    )


@pytest.mark.parametrize(
    ("arguments", "headings", "hidden"),
    [
        (
            ["--task", "instance-segmentation"],
            ["id", "params", "box_mAP", "mask_mAP", "cached"],
            "method, setting, pretrain, FLOPs",
        ),
        (
            ["--task", "object-detection"],
            ["id", "method", "params", "FLOPs", "box_mAP", "cached"],
            "setting, pretrain",
        ),
        (
            ["moganet-xt-2*"],
            ["id", "res", "setting", "params", "FLOPs", "top-1", "cached"],
            "family, pretrain",
        ),
    ],
)
def test_of_the_columns_only_those_that_do_not_fit_are_left_out(
    arguments: list[str], headings: list[str], hidden: str
) -> None:
    """At 80 columns; one that is unknown of every entry is neither shown nor called too wide."""
    text = "\n".join(on_a_terminal(80, "list", *arguments))
    lines = re.sub(r"\x1b\[\d*m", "", text).splitlines()
    assert next(line for line in lines if "params" in line).split() == headings
    assert f"too wide for this terminal: {hidden}; choose with --columns" in " ".join(text.split())


# -- the page: its source, and how it behaves in a real browser


ALL = published()


def listed(run: Runner, *arguments: str | Path) -> Page:
    result = run("list", "--format", "html", *arguments)
    assert result.code == 0
    return check_page(result.out)


def hostile_registry(folder: Path) -> Path:
    entry = {
        "id": "evil",
        "family": "moat",
        "variant": "moat0",
        "layout": "deeplab2",
        "format": "tf",
        "sources": [{"url": "https://a.org/\"'><script>x</script>.tar"}, {"url": "s3://bucket/x.tar"}],
        **HOSTILE,
    }
    path = folder / "evil.yaml"
    path.write_text(yaml.safe_dump({"entries": [entry]}), encoding="utf-8")
    return path


# The source


def test_without_scripts_it_is_a_plain_table(run: Runner) -> None:
    page = listed(run)
    assert [row[0] for row in page.rows] == list(ALL)
    assert page.rows[0][:9] == [
        *("moat0-224", "image classification", "224", "yes", "ImageNet-1K", "–", "27.8M", "5.7B", "83.3"),
    ]
    assert page.texts["h1"] == ["Published checkpoints of MOAT and MogaNet"]
    assert page.of("form")[0]["hidden"] is None, "controls show themselves by script"
    assert "hidden" in page.of("form")[0]


def test_every_source_is_linked(run: Runner) -> None:
    found = set(listed(run).links())
    for entry in ALL.values():
        urls = [source.url for source in entry.sources] + [entry.config_url, entry.log_url]
        assert {url for url in urls if url} <= found


def test_columns_sort_and_filters_are_those_of_the_other_forms(run: Runner) -> None:
    arguments = ("tiny-*", "--no-pos-emb", "--sort", "-params", "--columns", "id,params,url,cached")
    rows = listed(run, *arguments).rows
    expected = run("list", "--format", "csv", *arguments).out.splitlines()[1:]
    assert [row[0] for row in rows] == [line.split(",")[0] for line in expected]
    assert rows[0][:4] == [
        "tiny-moat3-256-noposemb",
        "19.5M",
        ALL["tiny-moat3-256-noposemb"].sources[0].url,
        "no",
    ]
    assert len(rows[0]) == 5, "the columns, and the button"


def test_yes_or_no_filters_for_columns_that_say_both(run: Runner) -> None:
    def flags(page: Page) -> list[str | None]:
        return [select["data-flag"] for select in page.of("select") if "data-flag" in select]

    assert flags(listed(run)) == ["task", "pos-emb"]
    assert flags(listed(run, "--family", "moat")) == ["task", "pos-emb"]
    assert flags(listed(run, "--family", "moganet")) == ["task"]
    assert flags(listed(run, "--columns", "id,cached,required")) == ["required"]
    cache("moat1-224")
    assert flags(listed(run, "--columns", "id,cached,required")) == ["cached", "required"]


def test_of_nothing_there_is_an_empty_table(run: Runner) -> None:
    page = listed(run, "moat*", "--min-top1", "99")
    assert page.rows == []
    assert page.texts["h1"] == ["Published checkpoints"]


def test_hostile_texts_stay_texts(run: Runner, tmp_path: Path) -> None:
    page = listed(
        run, "evil", "--registry", hostile_registry(tmp_path), "--columns", "id,name,setting,note,group,url"
    )
    assert page.rows[0][:5] == [
        "evil",
        HOSTILE["display_name"],
        HOSTILE["setting"],
        HOSTILE["note"],
        HOSTILE["group"],
    ]
    assert page.links() == ["https://a.org/\"'><script>x</script>.tar"]


def test_to_a_file(run: Runner, tmp_path: Path) -> None:
    path = tmp_path / "list.html"
    result = run("list", "tiny-*", "-o", path)
    assert (result.code, result.out, result.err) == (0, f"{path}\n", "8 entries\n")
    assert path.read_text(encoding="utf-8") == run("list", "tiny-*", "--format", "html").out
    assert run("list", "-o", path).code == 2
    assert len(Page(path.read_text()).rows) == 8
    assert run("list", "-o", path, "--force").code == 0
    assert len(Page(path.read_text()).rows) == len(ALL)
    assert [found.name for found in tmp_path.iterdir()] == ["list.html"]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.csv", "csv"),
        ("a.tsv", "tsv"),
        ("a.json", "json"),
        ("a.md", "markdown"),
        ("a.HTM", "html"),
        ("a.txt", "table"),
        ("a", "table"),
    ],
)
def test_the_ending_of_a_file_says_the_form(run: Runner, tmp_path: Path, name: str, form: str) -> None:
    assert run("list", "moat0-224", "-o", tmp_path / name).code == 0
    written = (tmp_path / name).read_text(encoding="utf-8")
    assert written == run("list", "moat0-224", "--format", form).out


def test_the_form_that_is_asked_for_wins(run: Runner, tmp_path: Path) -> None:
    assert run("list", "moat0-224", "-o", tmp_path / "a.html", "--json").code == 0
    assert (tmp_path / "a.html").read_text().startswith("[")


def test_a_dry_run_writes_nothing(run: Runner, tmp_path: Path) -> None:
    result = run("list", "tiny-*", "-o", tmp_path / "a.html", "--dry-run")
    assert (result.code, result.out) == (0, "")
    assert "would write 8 entries" in result.err
    assert list(tmp_path.iterdir()) == []


# The browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture
def path(run: Runner, tmp_path: Path) -> Path:
    path = tmp_path / "list.html"
    assert run("list", "-o", path).code == 0
    return path


@pytest.fixture
def opened(chromium: Browser, path: Path) -> Iterator[Browser]:
    """The page, freshly opened; afterwards it must have been quiet and have asked for nothing."""
    chromium.size(1280, 900)
    chromium.open(path)
    yield chromium
    assert chromium.messages() == []
    assert {url.partition("#")[0] for url in chromium.requests()} == {path.as_uri()}


def shown(page: Browser) -> list[str]:
    return list(
        page.run(
            "return [...document.querySelectorAll('tbody tr:not([hidden]) td.id')].map(c => c.textContent)"
        )
    )


def by_top5(direction: int) -> list[str]:
    """Known figures by value, unknown last, ties in the order of the registry."""
    known = [id for id, entry in ALL.items() if entry.published_top5 is not None]
    unknown = [id for id, entry in ALL.items() if entry.published_top5 is None]
    return [*sorted(known, key=lambda id: direction * float(ALL[id].published_top5 or 0)), *unknown]


def test_a_click_on_a_heading_sorts(opened: Browser) -> None:
    heading = 'th[data-key="top5"]'
    opened.click(f"{heading} button")
    assert shown(opened) == by_top5(1)
    assert opened.run(f"return document.querySelector('{heading}').ariaSort") == "ascending"
    opened.click(f"{heading} button")
    assert shown(opened) == by_top5(-1)
    opened.click(f"{heading} button")
    assert shown(opened) == list(ALL)
    assert opened.run(f"return document.querySelector('{heading}').ariaSort") is None


def test_counts_are_sorted_by_value_and_not_by_letters(opened: Browser) -> None:
    opened.click('th[data-key="flops"] button')
    assert shown(opened) == sorted(ALL, key=lambda id: (ALL[id].flops is None, ALL[id].flops or 0))


def test_typing_filters(opened: Browser) -> None:
    opened.type("#q", "MOAT 512")
    assert shown(opened) == [id for id in ALL if "moat" in id and "512" in id]
    assert opened.text("#count") == f"4 of {len(ALL)} entries"
    opened.click("#reset")
    opened.run("return new Promise(done => setTimeout(done))")
    assert shown(opened) == list(ALL)


def test_family_and_yes_or_no(opened: Browser) -> None:
    choose = "const [id, value] = arguments; const s = document.querySelector(id); s.value = value;"
    choose += "s.dispatchEvent(new Event('input', {bubbles: true}))"
    opened.run(choose, "#family", "moat")
    opened.run(choose, "select[data-flag='pos-emb']", "no")
    assert shown(opened) == [id for id, entry in ALL.items() if entry.pos_emb is False]


def test_the_address_holds_the_choice(opened: Browser, path: Path) -> None:
    opened.type("#q", "deit iii")
    opened.click('th[data-key="params"] button')
    opened.click('th[data-key="params"] button')
    address = str(opened.run("return location.hash"))
    assert address == "#q=deit+iii&sort=-params"
    rows = shown(opened)
    opened.open(path, address)
    assert shown(opened) == rows == ["moganet-t-256-deit3", "moganet-xt-256-deit3"]
    opened.open(path, "#family=nobody&sort=nothing&q=%00")
    assert opened.text("#count") == f"0 of {len(ALL)} entries"
    assert opened.run("return document.getElementById('family').value") == ""


def test_the_button_copies_the_command(opened: Browser) -> None:
    opened.type("#q", "moat2-384-noposemb")
    opened.click("tr:not([hidden]) button.copy")
    assert opened.text("tr:not([hidden]) button.copy") == "copied"
    assert opened.clipboard() == "ckptkit fetch moat2-384-noposemb"


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_no_wider_than_the_window(opened: Browser, width: int) -> None:
    opened.size(width, 844)
    wide, table = opened.run(
        "return [document.documentElement.scrollWidth, document.querySelector('.scroll').scrollWidth]"
    )
    assert wide <= width
    if width == 1280:
        assert table <= width, "no scrolling sideways on a desktop"


def test_without_scripts_links_remain(chromium: Browser, path: Path) -> None:
    chromium.without_scripts()
    try:
        chromium.open(path)
        assert chromium.text("tbody tr:last-child td.id") == list(ALL)[-1]
        assert chromium.text("tbody tr td.links a") == "file"
        assert chromium.messages() == []
    finally:
        chromium.without_scripts(False)


def test_hostile_texts_do_nothing(chromium: Browser, run: Runner, tmp_path: Path) -> None:
    path = tmp_path / "evil.html"
    columns = "id,name,setting,note,group"
    result = run("list", "evil", "--registry", hostile_registry(tmp_path), "--columns", columns, "-o", path)
    assert result.code == 0
    chromium.open(path)
    assert (
        chromium.run("return document.querySelectorAll('tbody td')[1].textContent") == HOSTILE["display_name"]
    )
    assert chromium.run("return window.hurt === undefined")
    assert chromium.messages() == []
