"""The long run, and the way to see one case again."""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.campaign import DAMAGED, Plan, Tally, again, run, save, scratch_folder
from tests.fuzz.seeds import BY_HAND, FORMATS

VALID = "tests.fuzz.differential"


def main() -> int:
    """Read the command line; the exit code is 1 where there is a fault."""
    chosen = _parser().parse_args()
    module = importlib.import_module(VALID if chosen.differential else DAMAGED)
    known = module.FORMATS if chosen.differential else FORMATS
    formats = tuple(chosen.format or known)
    if unknown := {*formats}.difference(known, BY_HAND):
        print(f"unknown format {', '.join(unknown)}; choose from {', '.join(known)}", file=sys.stderr)
        return 2
    count = chosen.count if chosen.minutes is None else sys.maxsize
    plan = Plan(formats, count, chosen.seed, chosen.first, module.__name__)
    if chosen.case is not None:
        return _again(plan, chosen.case)
    start = time.monotonic()
    tally = run(
        plan,
        jobs=chosen.jobs,
        seconds=math.inf if chosen.minutes is None else 60 * chosen.minutes,
        tell=lambda tally: print(
            f"{tally.count} cases, {len(tally.faults)} faults", file=sys.stderr, flush=True
        ),
    )
    _print(tally, time.monotonic() - start)
    for fault in tally.faults[:50]:
        print(f"{fault.outcome.kind}: {save(fault, plan, chosen.save)}\n  {again(fault, plan)}")
    return 1 if tally.faults else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--differential", action="store_true", help="valid files, against the real libraries")
    parser.add_argument("--count", type=int, default=100_000, help="how many files, over all formats")
    parser.add_argument("--minutes", type=float, help="run for so long instead")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--format", action="append", help="only this one (again for more)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--save", type=Path, default=Path("fuzz-faults"), help="folder for faults found")
    parser.add_argument("--case", type=int, help="see this one case of --format again")
    return parser


def _print(tally: Tally, seconds: float) -> None:
    for format, counter in sorted(tally.kinds.items()):
        print(f"{format} ({sum(counter.values())}):")
        for kind, count in counter.most_common():
            print(f"  {count:7d}  {kind}")
    print(f"{tally.count} files in {seconds:.0f} s, {len(tally.faults)} faults")
    print(
        f"slowest: {tally.slowest[0] * 1000:.0f} ms of processor time ({tally.slowest[1]} {tally.slowest[2]})"
    )
    more = tally.biggest[0] / 2**20
    print(f"biggest: {more:.1f} MiB more than before ({tally.biggest[1]} {tally.biggest[2]})")


def _again(plan: Plan, number: int) -> int:
    """Examine one case in this process and say everything."""
    if len(plan.formats) != 1:
        print("--case needs one --format", file=sys.stderr)
        return 2
    (format,) = plan.formats
    name, files, opened, how = plan.cases.case(format, plan.seed, number)
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as folder:
        outcome = plan.cases.examine(format, files, opened, Path(folder) / "case", how)
    print(f"{format}/{name}, opened as {opened!r} ({how}): {outcome.kind}")
    print(f"{outcome.seconds * 1000:.0f} ms, {outcome.nbytes / 2**20:.1f} MiB")
    print(outcome.trace)
    return int(outcome.is_fault)


if __name__ == "__main__":
    sys.exit(main())
