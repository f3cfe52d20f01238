"""What ``fastxent bench`` found, as tables and as JSON."""

import json
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

import fastxent as fx

from ._peers import PEERS, Mode, peer_version

LEGEND = """\
time      of a call, the median; ns/logit is its share for one logit
GB/s      logits and targets read and the gradient written, once each, over the time
x limit   time over the least that memory or arithmetic takes here, the greater one
x best    time over the best peer's of the same kind, with or without gradient
ulp       largest error of a sample's loss, in units in the last place of {precision}
"""


class Limits(NamedTuple):
    """Nanoseconds that one logit takes this machine at least."""

    read: float
    read_and_write: float
    compute: float
    compute_gradient: float

    def of(self, mode: Mode) -> float:
        """The limit of a mode: memory or arithmetic, whichever takes longer."""
        if mode.with_gradient:
            return max(self.read_and_write, self.compute_gradient)
        return max(self.read, self.compute)


class Result(NamedTuple):
    """One line of the table."""

    contender: str
    mode: Mode
    seconds: float  # of a call, the median
    fastest: float
    quartiles: tuple[float, float]
    ns_per_logit: float
    gigabytes_per_second: float
    over_limit: float
    over_best_peer: float | None
    error_ulp: float


class Report(NamedTuple):
    """All that was measured for one shape."""

    shape: tuple[int, ...]
    dtype: str
    threads: int
    limits: Limits
    results: list[Result]
    left_out: dict[str, str]  # contender -> reason


def title(what: object, dtype: str, threads: int) -> str:
    """In words what was measured, and how."""
    return f"{what}, {dtype}, {threads} thread{'s' * (threads > 1)}"


def three_digits(number: float | None) -> str:
    """Without an exponent; empty for None."""
    if number is None:
        return ""
    return f"{number:.0f}" if number >= 99.95 else f"{number:.3g}" if number >= 1e-3 else f"{number:.3f}"


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    units = {"s": 1.0, "ms": 1e3, "µs": 1e6}
    unit = next((unit for unit, scale in units.items() if seconds * scale >= 1), "µs")
    return f"{three_digits(seconds * units[unit])} {unit}"


def as_table(report: Report) -> Table:
    """A line for each contender and mode."""
    heading = title(report.shape, report.dtype, report.threads)
    table = Table(title=heading, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("", ""):
        table.add_column(name, no_wrap=True)
    for name in ("time", "ns/logit", "GB/s", "x limit", "x best", "ulp"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in report.results:
        contender, mode, seconds, _, _, *numbers = result
        style = "bold" if contender.startswith("fastxent") else ""
        table.add_row(contender, mode, duration(seconds), *map(three_digits, numbers), style=style)
    return table


def print_report(console: Console, report: Report) -> None:
    """The table, the limits, and who is left out."""
    console.print(as_table(report))
    read, read_and_write, compute, compute_gradient = map(three_digits, report.limits)
    console.print(f"At least, in ns/logit: {read} to read, {read_and_write} to read and write;")
    console.print(f"arithmetic {compute}, with gradient {compute_gradient}.")
    for name, reason in report.left_out.items():
        console.print(f"Left out: {name} ({reason}).")
    console.print()


def save_json(path: Path, reports: list[Report]) -> None:
    """All results, and what they were measured with."""
    names = {result.contender for report in reports for result in report.results}
    cases = [
        report._asdict()
        | {"limits": report.limits._asdict(), "results": [result._asdict() for result in report.results]}
        for report in reports
    ]
    document = {
        "configuration": fx.show_config("dicts"),
        "peers": {peer.name: peer_version(peer) for peer in PEERS if peer.name in names},
        "reports": cases,
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
