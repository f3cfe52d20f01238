"""``fastxent bench``: this machine, side by side with the peers that are installed and with its own limits."""

import importlib
import math
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress, TaskID

import fastxent as fx

from . import _backends, reference
from ._config import count_processors
from ._peers import PEERS, Array, Bind, Mode, Problem, bind_fastxent, cannot_run, peer_modules
from ._report import LEGEND, Limits, Report, Result, print_report, save_json, title

Shape = tuple[int, ...]

SHAPES: tuple[Shape, ...] = (
    (32, 10),
    (1024, 10),
    (262144, 3),
    (262144, 10),
    (65536, 100),
    (8192, 1000),
    (1024, 32000),
    (512, 50257),
    (128, 262144),
    (4, 21, 512, 512),
)
QUICK_SHAPES: tuple[Shape, ...] = ((32, 10), (1024, 10), (8192, 1000))

ROTATION = 64 << 20  # bytes of logits that a measurement goes through, so that caches seldom hold the next ones
MAX_PROBLEMS = 64
PAUSE = 0.005  # seconds
MAX_PAUSES = 60
BATCHES = 8  # of the calls of a round: enough for a median that one interruption does not move
BUSY = 0.5  # load average from which on other processes disturb


class Effort(NamedTuple):
    """How often a shape is measured: rounds within bounds, for about so many seconds."""

    seconds: float
    least: int
    most: int


FULL, QUICK = Effort(8, 7, 60), Effort(1.5, 3, 20)


class Plan(NamedTuple):
    """What is to be measured."""

    shapes: tuple[Shape, ...]
    dtype: str
    threads: tuple[int, ...]
    backends: tuple[str, ...]
    quick: bool


def make_plan(
    shapes: tuple[Shape, ...] | None,
    dtype: str,
    threads: tuple[int, ...] | None,
    backends: tuple[str, ...],
    quick: bool,
) -> Plan:
    """What the user left open is filled in."""
    most = count_processors()
    shapes = shapes or (QUICK_SHAPES if quick else SHAPES)
    threads = threads or ((most,) if quick else tuple(dict.fromkeys((1, most))))
    return Plan(shapes, dtype, threads, backends, quick)


Call = Callable[[], Any]


class Contender(NamedTuple):
    """Something to time: a call for each problem, and the configuration that it runs under."""

    name: str
    mode: Mode
    calls: list[Call]
    size: int  # logits in one call
    settings: Mapping[str, Any] = {}
    error_ulp: float = math.nan  # of the losses


# --- what is measured --------------------------------------------------------------------------------------------


def make_problems(shape: Shape, dtype: str) -> list[Problem]:
    """Several problems of one shape, as many as keep caches from holding them all."""
    float_type = np.dtype(importlib.import_module("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype)
    count = max(1, min(MAX_PROBLEMS, ROTATION // (math.prod(shape) * float_type.itemsize)))
    rng = np.random.default_rng(0)

    def problem() -> Problem:
        logits = rng.standard_normal(shape, np.float32).astype(float_type)
        return Problem(logits, rng.integers(shape[1], size=shape[:1] + shape[2:]))

    return [problem() for _ in range(count)]


def exact_losses(problem: Problem) -> Array:
    """The losses in float64, a few samples at a time."""
    logits, target = problem
    step = max(1, len(logits) * 2**20 // logits.size)
    parts = []
    for begin in range(0, len(logits), step):
        log_probs = reference.log_softmax(logits[begin : begin + step], axis=1)  # type: ignore[no-untyped-call]
        parts.append(-np.take_along_axis(log_probs, target[begin : begin + step, None], 1).squeeze(1))
    return np.concatenate(parts)


def largest_error(losses: Any, exact: Array, dtype: np.dtype[Any]) -> float:
    """In units in the last place of float64 for float64 logits, else of float32."""
    spacing = np.spacing(exact.astype(np.float64 if dtype == np.float64 else np.float32))
    return float(np.max(np.abs(np.asarray(losses, np.float64) - exact) / spacing))


def enter(name: str, bind: Bind, problems: list[Problem], exact: Array, settings: Mapping[str, Any]) -> list[Contender]:
    """One contender in its modes, each called once, so that whatever it compiles is compiled."""
    logits = problems[0].logits
    with fx.config_context(**settings):
        bound = [bind(problem) for problem in problems]
        error = largest_error(bound[0].pop(Mode.LOSSES)(), exact, logits.dtype)
        for call in bound[0].values():
            call()
    return [Contender(name, mode, [calls[mode] for calls in bound], logits.size, settings, error) for mode in bound[0]]


def enter_fastxent(
    problems: list[Problem], exact: Array, backends: tuple[str, ...], threads: int
) -> tuple[list[Contender], dict[str, str]]:
    """The backends that can run, and why the others cannot."""
    contenders: list[Contender] = []
    left_out = {}
    for backend in backends:
        name = "fastxent" if backend == "cython" else f"fastxent {backend}"
        try:
            _backends.load(backend)
        except RuntimeError as error:
            left_out[name] = str(error)
            continue
        settings = {"backend": backend, "num_threads": threads}
        contenders += enter(name, bind_fastxent, problems, exact, settings)
    return contenders, left_out


def enter_peers(
    problems: list[Problem], exact: Array, quick: bool, threads: int, show: Callable[[str], None]
) -> tuple[list[Contender], dict[str, str]]:
    """The peers that can run, and why the others cannot."""
    contenders: list[Contender] = []
    left_out = {}
    for peer in PEERS:
        try:
            reason = "slow to start" if quick and peer.slow_start else cannot_run(peer, problems[0].logits)
            if not reason:
                show(f"starting {peer.name}")
                contenders += enter(peer.name, peer.setup(*peer_modules(peer), threads), problems, exact, {})
        except Exception as error:  # what a peer stumbles over must not stop the others
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        if reason:
            left_out[peer.name] = reason
    return contenders, left_out


def enter_limits(problems: list[Problem], threads: int) -> list[Contender]:
    """What `work_out_limits` takes, in its order; at the best level here, whichever fastxent is told to use."""
    level = list(_backends.available_levels().values())[-1]
    limits = importlib.import_module(f"{__package__}.{level.replace('_kernels', '_limits')}")
    logits = [problem.logits for problem in problems]
    pairs = [(each, np.empty_like(each)) for each in logits]
    size, in_double = logits[0].size, logits[0].dtype == np.float64
    rows = math.ceil(size / limits.ROW_CLASSES)

    def compute(gradient: bool) -> list[Call]:
        return [partial(limits.softmax_rows, rows, gradient, in_double, threads)] * len(logits)

    runs: list[tuple[int, list[Call]]] = [
        (size, [partial(limits.stream, each, None, False, threads) for each in logits]),
        (size, [partial(limits.stream, *pair, False, threads) for pair in pairs]),
        (size, [partial(limits.stream, *pair, True, threads) for pair in pairs]),
        (rows * limits.ROW_CLASSES, compute(gradient=False)),
        (rows * limits.ROW_CLASSES, compute(gradient=True)),
    ]
    return [Contender("limit", Mode.LOSS, calls, work, {"num_threads": threads}) for work, calls in runs]


# --- timing ------------------------------------------------------------------------------------------------------


def time_calls(contender: Contender) -> list[float]:
    """Seconds of a call, for several batches of calls; the pass before wakes threads and fills caches."""
    batch = math.ceil(len(contender.calls) / BATCHES)
    samples = []
    with fx.config_context(**contender.settings):
        wait_for_quiet()
        for call in contender.calls:
            call()
        for calls in batched(contender.calls, batch):
            begin = time.perf_counter()
            for call in calls:
                call()
            samples.append((time.perf_counter() - begin) / len(calls))
    return samples


def wait_for_quiet() -> None:
    """Until the threads of the contender before have stopped spinning, which some do for a tenth of a second."""
    for _ in range(MAX_PAUSES):
        begin = time.process_time()
        time.sleep(PAUSE)
        if time.process_time() - begin <= PAUSE / 10:
            break


def batched(calls: list[Call], size: int) -> list[list[Call]]:
    """Split `calls`."""
    return [calls[begin : begin + size] for begin in range(0, len(calls), size)]


def measure(contenders: list[Contender], effort: Effort, show: Callable[[str], None]) -> list[list[float]]:
    """Times of every contender, in rounds of one each, so that whatever else the machine does hits all alike."""
    times: list[list[float]] = [[] for _ in contenders]
    end = time.perf_counter() + effort.seconds
    for number in range(effort.most):
        if number >= effort.least and time.perf_counter() > end:
            break
        show(f"round {number + 1}")
        for contender, samples in zip(contenders, times, strict=True):
            samples += time_calls(contender)
    return times


def work_out_limits(contenders: list[Contender], times: list[list[float]]) -> Limits:
    """From the times of `enter_limits`; a gradient is written through caches or past them, whichever is faster."""
    read, copy, past_caches, compute, compute_gradient = (
        median(samples) / contender.size * 1e9 for contender, samples in zip(contenders, times, strict=True)
    )
    return Limits(read, min(copy, past_caches), compute, compute_gradient)


def bytes_moved(problem: Problem, mode: Mode) -> int:
    """What a call must at least read and write: logits, targets, and the gradient."""
    return problem.target.nbytes + problem.logits.nbytes * (2 if mode.with_gradient else 1)


def best_peer(contenders: list[Contender], times: list[list[float]], with_gradient: bool) -> float:
    """The time of the fastest peer, with or without gradient; 0 if there is none."""
    names = {peer.name for peer in PEERS}
    rivals = [
        median(samples)
        for contender, samples in zip(contenders, times, strict=True)
        if contender.name in names and contender.mode.with_gradient == with_gradient
    ]
    return min(rivals, default=0)


def summarize(contender: Contender, samples: list[float], problem: Problem, limits: Limits, best: float) -> Result:
    """What is reported about a contender; `best` is the time of the best peer, 0 without one."""
    seconds = median(samples)
    lower, _, upper = quantiles(samples, method="inclusive")
    ns_per_logit = seconds / contender.size * 1e9
    return Result(
        contender=contender.name,
        mode=contender.mode,
        seconds=seconds,
        fastest=min(samples),
        quartiles=(lower, upper),
        ns_per_logit=ns_per_logit,
        gigabytes_per_second=bytes_moved(problem, contender.mode) / seconds / 1e9,
        over_limit=ns_per_logit / limits.of(contender.mode),
        over_best_peer=seconds / best if best else None,
        error_ulp=contender.error_ulp,
    )


def measure_shape(shape: Shape, threads: int, plan: Plan, show: Callable[[str], None]) -> Report:
    """Everything about one shape."""
    problems = make_problems(shape, plan.dtype)
    exact = exact_losses(problems[0])
    limits = enter_limits(problems, threads)
    ours, unavailable = enter_fastxent(problems, exact, plan.backends, threads)
    peers, left_out = enter_peers(problems, exact, plan.quick, threads, show)
    contenders = ours + peers
    times = measure(limits + contenders, QUICK if plan.quick else FULL, show)
    bounds = work_out_limits(limits, times[: len(limits)])
    del times[: len(limits)]
    best = {with_gradient: best_peer(contenders, times, with_gradient) for with_gradient in (False, True)}
    results = [
        summarize(contender, samples, problems[0], bounds, best[contender.mode.with_gradient])
        for contender, samples in zip(contenders, times, strict=True)
    ]
    results.sort(key=lambda result: result.mode.with_gradient)
    return Report(shape, plan.dtype, threads, bounds, results, unavailable | left_out)


# --- the whole ---------------------------------------------------------------------------------------------------


def run(plan: Plan, json_path: Path | None, plot_path: Path | None, asv_folder: Path | None) -> None:
    """Measure, print a table for each shape as it comes, and save."""
    # Before the work, as Matplotlib or asv may be missing.
    save_plot = importlib.import_module(f"{__package__}._plots").save_plot if plot_path else None
    save_asv = importlib.import_module(f"{__package__}._asv").save if asv_folder else None
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(LEGEND.format(precision="float64" if plan.dtype == "float64" else "float32"))
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > BUSY:
        console.print(f"The load average is {os.getloadavg()[0]:.1f}: other processes disturb what is measured.\n")
    reports = []
    cases = [(shape, threads) for threads in plan.threads for shape in plan.shapes]
    # Drawn between measurements alone: a thread that draws by itself would disturb them.
    with Progress(console=console, auto_refresh=False, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(cases))
        for shape, threads in cases:
            show = partial(show_progress, progress, task, title(shape, plan.dtype, threads))
            reports.append(measure_shape(shape, threads, plan, show))
            print_report(console, reports[-1])
            progress.advance(task)
    if json_path:
        save_json(json_path, reports)
    if save_plot:
        save_plot(plot_path, reports)
    if save_asv:
        save_asv(asv_folder, reports)


def show_progress(progress: Progress, task: TaskID, case: str, what: str) -> None:
    """Say what is going on."""
    progress.update(task, description=f"{case}: {what}", refresh=True)
