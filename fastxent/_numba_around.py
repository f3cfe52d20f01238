"""What makes a Numba kernel: how the processor computes meanwhile, what its copy on disk depends on, its answer."""

import inspect
import platform
import zlib
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._numba_trace import Array, Value

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


def _value(context, builder, code, kind):
    if isinstance(kind, types.NoneType):
        return None
    return Array(context, builder, code, kind) if isinstance(kind, types.Array) else Value(builder, code, kind)


def kernel(*returns):
    """Make of a function one for Numba to compile, which does what it writes when called with such arguments.

    It gives back a tuple of numbers of these types.
    """
    result = types.Tuple(returns)

    def decorate(function):
        def typed(_context, *kinds):
            def generate(context, builder, signature, codes):
                with plain_arithmetic(builder), visible_results(builder):
                    found = function(*map(partial(_value, context, builder), codes, signature.args))
                return context.make_tuple(builder, result, [value.code for value in found or ()])

            return result(*kinds), generate

        kind, names = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.signature(function).parameters
        typed.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in ("_context", *names)])
        return function_that(function, intrinsic(typed))

    return decorate
