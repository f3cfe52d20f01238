"""The command line: ``python -m fastxent``, or ``fastxent`` once installed."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from . import __version__, show_config

# What the extras install: the module that is imported and the package that a user knows it by.
PACKAGES = {"matplotlib": "matplotlib", "rich": "rich", "sklearn": "scikit-learn"}


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


def writable_png(text: str) -> Path:
    """Type of an option: a PNG file, refused here rather than after the work if it cannot be written."""
    path = Path(text)
    if path.suffix != ".png":
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .png")
    existed = path.exists()
    try:
        path.open("ab").close()  # os.access would not know: root may do all, and some file systems nothing
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {error.strerror}") from None
    if not existed:
        path.unlink()
    return path


def add_demo_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``fastxent demo``."""
    add = parser.add_argument
    add("--epochs", type=integer_from(1), default=30, metavar="N", help="passes over the images (default: %(default)s)")
    add("--seed", type=integer_from(0), default=0, metavar="N", help="of weights and batches (default: %(default)s)")
    add("--plot", type=writable_png, default="fastxent-demo.png", metavar="PATH", help="PNG (default: %(default)s)")


def demo(options: argparse.Namespace) -> None:
    """Run ``fastxent demo``."""
    from . import _demo  # here, because it needs more than NumPy

    _demo.run(options.epochs, options.seed, options.plot)


def info(options: argparse.Namespace) -> None:
    """Run ``fastxent info``."""
    show_config()


COMMANDS = {
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
