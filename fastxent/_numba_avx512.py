"""Instructions of AVX-512 that LLVM has no name for that holds on any machine; what they do to packs of float32."""

from functools import cache

from llvmlite import ir
from numba.core import cgutils
from numba.core.registry import cpu_target

from ._numba_trace import FLOAT32, Value

REGISTER = 16
NUMBERS = ir.VectorType(ir.FloatType(), REGISTER)


@cache
def is_available() -> bool:
    """Whether code is compiled for a processor that has them."""
    *_, features = cpu_target.target_context.codegen().magic_tuple()
    return "+avx512f" in features.split(",")


def _registers(pack):
    """A pack as the registers that it takes."""
    for start in range(0, pack.count, REGISTER):
        yield pack.shuffle(range(start, start + REGISTER))


def _joined(parts):
    """The pack that registers are parts of."""
    while len(parts) > 1:
        places = range(2 * parts[0].count)
        parts = [one.shuffle(places, other) for one, other in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _made(builder, name, *codes):
    """What an instruction makes of registers, masks and options."""
    function = ir.FunctionType(NUMBERS, [code.type for code in codes])
    function = cgutils.get_or_insert_function(builder.module, function, f"llvm.x86.avx512.{name}")
    return Value(builder, builder.call(function, codes), FLOAT32, REGISTER)


def looked_up(table, places):
    """The numbers of a table of 16, each at the place that the lowest four bits of a lane are."""
    numbers = ir.Constant(NUMBERS, table)
    return _joined([_made(places.builder, "permvar.sf.512", numbers, part.code) for part in _registers(places)])


def scaled(x, n, mask):
    """x times 2 to the power of n rounded down, or 0 where the mask is not set."""
    builder, nothing, rounding = x.builder, ir.Constant(NUMBERS, [0.0] * REGISTER), ir.Constant(ir.IntType(32), 4)
    parts = []
    for part, power, kept in zip(*map(_registers, (x, n, mask)), strict=True):
        bits = builder.bitcast(kept.code, ir.IntType(REGISTER))
        parts.append(_made(builder, "mask.scalef.ps.512", part.code, power.code, nothing, bits, rounding))
    return _joined(parts)
