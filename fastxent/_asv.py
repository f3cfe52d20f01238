"""Results of ``fastxent bench`` among a project's own of airspeed velocity, which draws them commit by commit."""

import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from asv import util
from asv.benchmarks import Benchmarks
from asv.machine import Machine, MachineCollection
from asv.results import Results
from asv.runner import BenchmarkResult

from ._report import Report
from ._version import __version__

NAME = "fastxent.bench"
PARAMETERS = ("dtype", "shape", "threads", "contender", "mode")


def head_of(folder: Path) -> tuple[str, int]:
    """The last commit of the git repository that a folder is in, and its date in milliseconds."""
    command = ["git", "-C", str(folder), "log", "-1", "--format=%H %at"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    commit, seconds = done.stdout.split()
    return commit, 1000 * int(seconds)


def save(folder: Path, reports: list[Report]) -> None:
    """Put the reports' times into a folder of results, in place of those of the same commit and machine."""
    times = collect(reports)
    machine = this_machine()
    machine.save(folder)
    requirements = {"fastxent": __version__, "numpy": np.__version__}
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    params = machine.__dict__ | requirements | {"python": python}
    results = Results(params, requirements, *head_of(folder), python, f"fastxent-bench-py{python}", {})
    benchmark = describe(times)
    values = [times.get(case, math.nan) for case in itertools.product(*benchmark["params"])]
    nothing = [None] * len(values)
    results.add_result(benchmark, BenchmarkResult(values, nothing, nothing, 0, "", None))
    results.save(folder)
    register(folder, benchmark)


def collect(reports: list[Report]) -> dict[tuple[str, ...], float]:
    """Seconds of a call, by what asv calls parameters: Python's text for each."""

    def case(report: Report, contender: str, mode: str) -> tuple[str, ...]:
        shape = "x".join(map(str, report.shape))
        return tuple(map(repr, (report.dtype, shape, report.threads, contender, str(mode))))

    return {case(report, r.contender, r.mode): r.seconds for report in reports for r in report.results}


def describe(times: dict[tuple[str, ...], float]) -> dict[str, Any]:
    """The benchmark as asv knows it."""
    params = [list(dict.fromkeys(column)) for column in zip(*times, strict=True)]
    return {
        "name": NAME, "code": "fastxent bench", "type": "time", "unit": "seconds", "version": "1",
        "param_names": list(PARAMETERS), "params": params,
    }  # fmt: skip


def register(folder: Path, benchmark: dict[str, Any]) -> None:
    """Add the benchmark to those whose results are published, with the parameters that it has had before."""
    path = folder / "benchmarks.json"
    known = util.load_json(path, Benchmarks.api_version) if path.exists() else {}
    before = known.get(NAME, benchmark)["params"]
    params = [list(dict.fromkeys(old + new)) for old, new in zip(before, benchmark["params"], strict=True)]
    util.write_json(path, known | {NAME: benchmark | {"params": params}}, Benchmarks.api_version)


def this_machine() -> Any:
    """As asv knows it, or by its own name."""
    machine = Machine()
    try:
        machine.__dict__.update(MachineCollection.load(Machine.get_unique_machine_name()))
    except util.UserError:
        machine.__dict__.update(Machine.get_defaults())
    return machine
