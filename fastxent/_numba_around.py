"""What surrounds every Numba kernel: what its copy on disk depends on."""

import inspect
import zlib
from pathlib import Path

HERE = Path(__file__).parent
WRITERS = sorted([*HERE.glob("_numba_*.py"), *HERE.glob("_formulas.py")])  # who has a part in what is compiled
SOURCES = zlib.crc32(b"".join(path.read_bytes() for path in WRITERS))  # another number after any edit of theirs


def function_that(like, write):
    """A function with the parameters of `like` that calls `write` with them.

    Numba compiles functions of Python's bytecode only, and looks for its disk cache beside their file. What is cached
    holds for a function's code and what it encloses: hence the number.
    """
    name, parameters = like.__name__, ", ".join(inspect.signature(like).parameters)
    space = {"write": write, "__name__": like.__module__}
    code = f"def enclose(sources):\n  def {name}({parameters}): sources; write({parameters})\n  return {name}"
    exec(compile(code, like.__code__.co_filename, "exec"), space)
    return space["enclose"](SOURCES)
