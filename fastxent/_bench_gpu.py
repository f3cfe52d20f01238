"""``fastxent bench --device cuda``: how fast bytes move that must, beside a copy and the peers that are installed."""

import json
import math
import platform
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

import fastxent as fx

from . import _backends

Shape = tuple[int, ...]
Call = Callable[[], Any]

# As many logits in each: more than caches hold, and enough samples for every multiprocessor.
CLASSES = (256, 1024, 4096, 16384, 32768, 65536, 131072, 262144)
SHAPES: tuple[Shape, ...] = tuple((2**29 // classes, classes) for classes in CLASSES)
WARM_UP, CALLS = 3, 20


class Line(NamedTuple):
    """A contender in one mode."""

    contender: str
    mode: str
    milliseconds: float
    gigabytes_per_second: float
    of_copy: float


def time_call(torch: Any, call: Call) -> float:
    """Milliseconds of a call on the device, the median; the first ones compile."""
    for _ in range(WARM_UP):
        call()
    times = []
    for _ in range(CALLS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return float(median(times))


# --- contenders --------------------------------------------------------------------------------------------------
# Each takes torch, logits, a target and room for a gradient, and returns what to call for the loss and the gradient.


def fastxent_calls(torch: Any, x: Any, y: Any, out: Any) -> dict[str, Call]:
    """Unchecked, as the others trust their labels too; fastxent's default waits for the check."""

    def unchecked(function: Callable[..., Any], **options: Any) -> Any:
        with fx.config_context(check_targets=False):
            return function(x, y, **options)

    return {
        "loss": lambda: unchecked(fx.cross_entropy),
        "gradient": lambda: unchecked(fx.cross_entropy_with_grad, out=out),
        "gradient, checked": lambda: fx.cross_entropy_with_grad(x, y, out=out),
    }


def through_autograd(torch: Any, function: Callable[..., Any], x: Any, y: Any) -> dict[str, Call]:
    """The loss, and it with its gradient."""
    leaf = x.detach().requires_grad_()

    def gradient() -> Any:
        return torch.autograd.grad(function(leaf, y), leaf)

    return {"loss": lambda: function(x, y), "gradient": gradient}


def torch_calls(torch: Any, x: Any, y: Any, out: Any) -> dict[str, Call]:
    """PyTorch as it comes."""
    return through_autograd(torch, torch.nn.functional.cross_entropy, x, y)


def compiled_calls(torch: Any, x: Any, y: Any, out: Any) -> dict[str, Call]:
    """PyTorch's compiler."""
    return through_autograd(torch, torch.compile(torch.nn.functional.cross_entropy), x, y)


def liger_calls(torch: Any, x: Any, y: Any, out: Any) -> dict[str, Call]:
    """Liger, which writes the gradient over the logits: here, as in their own benchmark, of a fresh leaf each time."""
    loss = import_module("liger_kernel.transformers").LigerCrossEntropyLoss()
    return {"gradient": through_autograd(torch, loss, x.clone(), y)["gradient"]}


def quack_calls(torch: Any, x: Any, y: Any, out: Any) -> dict[str, Call]:
    """QuACK."""
    return through_autograd(torch, import_module("quack.cross_entropy").cross_entropy, x, y)


CONTENDERS = {
    "fastxent": (fastxent_calls, "numba-cuda"),
    "torch": (torch_calls, "torch"),
    "torch.compile": (compiled_calls, "torch"),
    "Liger": (liger_calls, "liger-kernel"),
    "QuACK": (quack_calls, "quack-kernels"),
}


# --- the whole ---------------------------------------------------------------------------------------------------


def measure(torch: Any, shape: Shape, dtype: str) -> tuple[list[Line], dict[str, str]]:
    """Every contender at one shape, and why some are left out."""
    x = torch.randn(shape, device="cuda", dtype=getattr(torch, dtype))
    y = torch.randint(shape[1], shape[:1] + shape[2:], device="cuda")
    out = torch.empty_like(x)
    size = math.prod(shape) * x.element_size()
    copy = 2 * size / time_call(torch, lambda: out.copy_(x)) / 1e6
    lines, left_out = [Line("copy", "", 2 * size / copy / 1e6, copy, 1.0)], {}
    for name, (setup, _) in CONTENDERS.items():
        try:
            for mode, call in setup(torch, x, y, out).items():
                milliseconds = time_call(torch, call)
                moved = (size if mode == "loss" else 2 * size) + y.numel() * y.element_size()
                rate = moved / milliseconds / 1e6
                lines.append(Line(name, mode, milliseconds, rate, rate / copy))
        except Exception as error:  # what a peer stumbles over must not stop the others
            left_out[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
            torch.cuda.empty_cache()
    return lines, left_out


def as_table(title: str, lines: list[Line]) -> Table:
    """A line for each contender and mode."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("", ""):
        table.add_column(name, no_wrap=True)
    for name in ("ms", "GB/s", "of copy"):
        table.add_column(name, justify="right", no_wrap=True)
    for contender, mode, milliseconds, rate, of_copy in lines:
        style = "bold" if contender == "fastxent" else ""
        table.add_row(contender, mode, f"{milliseconds:.3f}", f"{rate:.0f}", f"{of_copy:.2f}", style=style)
    return table


def versions() -> dict[str, str]:
    """Of whatever is measured."""
    found = {"python": platform.python_version(), "fastxent": fx.__version__}
    for _, package in CONTENDERS.values():
        try:
            found[package] = version(package)
        except ImportError:
            continue
    return found


def run(shapes: tuple[Shape, ...], dtype: str, json_path: Path | None) -> None:
    """Measure, print a table for each shape as it comes, and save."""
    try:
        _backends.load("cuda")
        torch = import_module("torch")
    except RuntimeError as error:
        raise SystemExit(f"fastxent bench: {error}") from None
    except ModuleNotFoundError:
        raise SystemExit("fastxent bench: --device cuda needs PyTorch, for arrays, a clock and the peers") from None
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print("GB/s are logits and targets read and the gradient written, once each, over the time.\n")
    reports = []
    for shape in shapes:
        lines, left_out = measure(torch, shape, dtype)
        console.print(as_table(f"{shape}, {dtype}, {torch.cuda.get_device_name()}", lines))
        for name, reason in left_out.items():
            console.print(f"Left out: {name} ({reason}).")
        console.print()
        reports.append(
            {"shape": shape, "dtype": dtype, "lines": [line._asdict() for line in lines], "left out": left_out}
        )
        torch.cuda.empty_cache()
    if json_path:
        document = {"device": torch.cuda.get_device_name(), "versions": versions(), "reports": reports}
        json_path.write_text(json.dumps(document, indent=1) + "\n")
