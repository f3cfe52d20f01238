"""The command line: ``python -m fastxent``, or ``fastxent`` once installed."""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from . import __version__, show_config
from ._config import count_processors

DTYPES = ("float32", "float64", "bfloat16", "float16")
T = TypeVar("T")

# What the extras install: the module that is imported and the package that a user knows it by.
PACKAGES = {
    "asv": "asv",
    "matplotlib": "matplotlib",
    "ml_dtypes": "ml_dtypes",
    "rich": "rich",
    "sklearn": "scikit-learn",
}


class Command(NamedTuple):
    """A subcommand; the extra that it needs, if any, has its name."""

    summary: str
    run: Callable[[argparse.Namespace], None]
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None


def integer_from(lowest: int) -> Callable[[str], int]:
    """Type of an option: an integer not below `lowest`."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None
        if number < lowest:
            raise argparse.ArgumentTypeError(f"{number} is below {lowest}")
        return number

    return parse


def writable(suffix: str) -> Callable[[str], Path]:
    """Type of an option: a file, refused here rather than after the work if it cannot be written."""

    def parse(text: str) -> Path:
        path = Path(text)
        if path.suffix != suffix:
            raise argparse.ArgumentTypeError(f"{text!r} does not end in {suffix}")
        existed = path.exists()
        try:
            path.open("ab").close()  # os.access would not know: root may do all, and some file systems nothing
        except OSError as error:
            raise argparse.ArgumentTypeError(f"cannot write {text!r}: {error.strerror}") from None
        if not existed:
            path.unlink()
        return path

    return parse


def folder_in_git(text: str) -> Path:
    """Type of an option: a folder, the last commit of whose repository names what is put there."""
    found = shutil.which("git") and subprocess.run(["git", "-C", text, "rev-parse", "HEAD"], capture_output=True)
    if not found or found.returncode:
        raise argparse.ArgumentTypeError(f"no commit is found in {text!r}, which results could belong to")
    return Path(text)


def list_of(parse: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """Type of an option: several of one kind, separated by commas."""
    return lambda text: tuple(parse(word) for word in text.split(","))


def one_of(*names: str) -> Callable[[str], str]:
    """Type of an option: one of these."""

    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(names)}")
        return text

    return parse


def shape_of_logits(text: str) -> tuple[int, ...]:
    """Type of an option: a shape with a class axis, as 1024x10."""
    sizes = text.split("x")
    if len(sizes) < 2 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape such as 1024x10 (samples x classes)")
    return tuple(map(int, sizes))


def thread_count(text: str) -> int:
    """Type of an option: a number of threads that can run at once here, or 'all'."""
    most = count_processors()
    number = most if text == "all" else integer_from(1)(text)
    if number > most:
        raise argparse.ArgumentTypeError(f"{number} threads are more than the processors here, {most}")
    return number


def add_demo_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``fastxent demo``."""
    add = parser.add_argument
    add("--epochs", type=integer_from(1), default=30, metavar="N", help="passes over the images (default: %(default)s)")
    add("--seed", type=integer_from(0), default=0, metavar="N", help="of weights and batches (default: %(default)s)")
    add("--plot", type=writable(".png"), default="fastxent-demo.png", metavar="PATH", help="PNG (default: %(default)s)")


def demo(options: argparse.Namespace) -> None:
    """Run ``fastxent demo``."""
    from . import _demo  # here, because it needs more than NumPy

    _demo.run(options.epochs, options.seed, options.plot)


def add_bench_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``fastxent bench``."""
    add = parser.add_argument
    add("--quick", action="store_true", help="few shapes and rounds, all threads; done in half a minute")
    add("--shapes", type=list_of(shape_of_logits), metavar="SHAPES", help="of the logits, such as 32x10,4x21x512x512")
    add("--dtype", choices=DTYPES, default="float32", help="of the logits (default: %(default)s)")
    add("--threads", type=list_of(thread_count), metavar="N", help="numbers of threads (default: 1,all)")
    add("--backend", type=list_of(one_of("cython", "numba")), default="cython", help="such as cython,numba")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where the logits are (default: %(default)s)")
    add("--json", type=writable(".json"), metavar="PATH", help="save all results")
    add("--plot", type=writable(".png"), metavar="PATH", help="save a plot, as PNG")
    add("--asv", type=folder_in_git, metavar="FOLDER", help="add the times to a project's results of airspeed velocity")


def bench(options: argparse.Namespace) -> None:
    """Run ``fastxent bench``."""
    if options.device == "cuda":
        from . import _bench_gpu  # here, because it needs more than NumPy

        _bench_gpu.run(options.shapes or _bench_gpu.SHAPES, options.dtype, options.json)
        return
    from . import _bench

    plan = _bench.make_plan(options.shapes, options.dtype, options.threads, options.backend, options.quick)
    _bench.run(plan, options.json, options.plot, options.asv)


def info(options: argparse.Namespace) -> None:
    """Run ``fastxent info``."""
    show_config()


COMMANDS = {
    "bench": Command("time this machine beside its own limits and the peers installed", bench, add_bench_options),
    "demo": Command("train two classifiers on handwritten digits and plot how they do", demo, add_demo_options),
    "info": Command("print version, builds, backends, threads and dependencies", info),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand that `argv` names and return the exit status."""
    parser = argparse.ArgumentParser("fastxent", description="The cross-entropy family on NumPy arrays.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, command in COMMANDS.items():
        command.add_options(subparsers.add_parser(name, help=command.summary, description=command.summary))
    options = parser.parse_args(argv)
    try:
        COMMANDS[options.command].run(options)
    except ModuleNotFoundError as error:
        package = PACKAGES.get(str(error.name).partition(".")[0])
        if package is None:
            raise
        extra = f"fastxent[{options.command}]"
        print(f"fastxent {options.command} needs {package}: pip install '{extra}'", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
