"""What surrounds every Numba kernel: how the processor computes meanwhile, and what its copy on disk depends on."""

import inspect
import platform
import zlib
from contextlib import contextmanager
from pathlib import Path

from llvmlite import ir
from numba.core import cgutils

HERE = Path(__file__).parent
WRITERS = sorted([*HERE.glob("_numba_*.py"), *HERE.glob("_formulas.py")])  # who has a part in what is compiled
SOURCES = zlib.crc32(b"".join(path.read_bytes() for path in WRITERS))  # another number after any edit of theirs
PLAIN = 0x1F80  # of x86's control register: no exception, rounding to nearest, subnormal numbers


@contextmanager
def plain_arithmetic(builder):
    """Code that rounds to nearest and keeps subnormal numbers, whatever some library has told its thread to do."""
    if platform.machine() not in ("x86_64", "AMD64"):
        yield
        return
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    load, store = (
        cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), [byte]), f"llvm.x86.sse.{name}")
        for name in ("ldmxcsr", "stmxcsr")
    )
    before, plain = (cgutils.alloca_once(builder, number) for _ in range(2))
    builder.call(store, [builder.bitcast(before, byte)])
    builder.store(ir.Constant(number, PLAIN), plain)
    builder.call(load, [builder.bitcast(plain, byte)])
    yield
    builder.call(load, [builder.bitcast(before, byte)])


@contextmanager
def visible_results(builder):
    """Code whose results are there for whoever goes on, those that it has streamed past the cache too."""
    yield
    builder.fence("seq_cst")


def function_that(like, write):
    """A function with the parameters of `like` that calls `write` with them.

    Numba compiles functions of Python's bytecode only, and looks for its disk cache beside their file. What is cached
    holds for a function's code and what it encloses: hence the number.
    """
    name, parameters = like.__name__, ", ".join(inspect.signature(like).parameters)
    space = {"write": write, "__name__": like.__module__}
    code = f"def enclose(sources):\n  def {name}({parameters}): sources; return write({parameters})\n  return {name}"
    exec(compile(code, like.__code__.co_filename, "exec"), space)
    return space["enclose"](SOURCES)
