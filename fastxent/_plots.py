"""The plot of ``fastxent bench``."""

from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

import fastxent as fx

from ._peers import Mode
from ._report import Report, title

# Contender -> colour and marker; most colours are Okabe and Ito's, which the colour-blind can tell apart too.
STYLES = {
    "fastxent": ("#0072b2", "o"),
    "fastxent numba": ("#56b4e9", "o"),
    "torch": ("#d55e00", "s"),
    "torch.compile": ("#7f2f00", "D"),
    "JAX jit": ("#009e73", "^"),
    "SciPy": ("#cc79a7", "v"),
    "scikit-learn": ("#e69f00", "P"),
    "onnxruntime": ("#666666", "X"),
}
PANELS = {
    "Loss": (Mode.LOSS,),
    "Loss and gradient": (Mode.FRESH, Mode.REUSED),  # in place would hide behind reused
}
TIMES = "\N{MULTIPLICATION SIGN}"


def draw_row(axes: Axes, row: int, report: Report, modes: tuple[Mode, ...]) -> None:
    """The limit and the results of one shape."""
    limit = report.limits.of(modes[0])
    axes.plot([limit], [row], "|k", markersize=19, markeredgewidth=2.5, label="limit of the machine")
    for result in report.results:
        if result.mode not in modes:
            continue
        color, marker = STYLES[result.contender]
        ours = result.contender.startswith("fastxent")
        hollow = ours and result.mode is Mode.FRESH
        axes.plot(
            [result.ns_per_logit],
            [row],
            marker,
            color=color,
            markerfacecolor="white" if hollow else color,
            markersize=10 if ours else 7,
            zorder=4 if ours else 3,
            label=f"{result.contender}, fresh gradient" if hollow else result.contender,
        )


def verdict(report: Report, modes: tuple[Mode, ...]) -> str:
    """How the fastest of ours compares with the fastest peer."""
    results = sorted((result for result in report.results if result.mode in modes), key=lambda result: result.seconds)
    ours = [result for result in results if result.contender.startswith("fastxent")]
    peers = [result for result in results if result not in ours]
    if not ours or not peers:
        return ""
    return f"{peers[0].seconds / ours[0].seconds:.1f}{TIMES} {peers[0].contender}"


def draw_panel(axes: Axes, reports: list[Report], modes: tuple[Mode, ...]) -> None:
    """A row for each shape, from top to bottom."""
    rows = range(len(reports))
    for row, report in enumerate(reports):
        draw_row(axes, row, report, modes)
        axes.text(1.01, row, verdict(report, modes), transform=axes.get_yaxis_transform(), va="center")
    axes.text(1.01, -0.75, "times as fast as", transform=axes.get_yaxis_transform(), va="center", color="0.4")
    axes.set(xscale="log", xlabel="ns per logit", ylim=(len(reports) - 0.5, -0.5))
    axes.set_yticks(rows, [f" {TIMES} ".join(map(str, report.shape)) for report in reports])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(axis="x", which="both", alpha=0.25)
    axes.hlines(rows, 0, 1, transform=axes.get_yaxis_transform(), color="0.9", zorder=0)
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)


def save_plot(path: Path, reports: list[Report]) -> None:
    """A row of panels for each number of threads, a panel for the loss and one for the gradient."""
    by_threads = [list(group) for _, group in groupby(reports, lambda report: report.threads)]
    height = sum(0.45 * len(group) + 1.1 for group in by_threads) + 0.8
    figure = Figure(figsize=(13, height), dpi=130, layout="constrained")
    ratios = [len(group) + 1 for group in by_threads]
    panels = figure.subplots(len(by_threads), len(PANELS), squeeze=False, sharex="col", height_ratios=ratios)
    for row, group in zip(panels, by_threads, strict=True):
        for axes, (name, modes) in zip(row, PANELS.items(), strict=True):
            draw_panel(axes, group, modes)
            axes.set_title(title(name, group[0].dtype, group[0].threads), loc="left")
    handles = {
        label: line for axes in panels.flat for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(f"fastxent {fx.__version__}: time per logit, less is better")
    figure.savefig(path)
