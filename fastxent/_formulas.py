"""Scalar maths as jitted functions, for every kernel that Numba compiles.

Nothing here knows about arrays or threads. `contract` is the only liberty given to the compiler (a fused multiply-add
rounds once less): with `reassoc` it would fold away the rounding constants of exp and the two-sum.
Numba's disk cache of the kernels does not notice an edit of this file: touch theirs too.
"""

import math
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic, overload

COMMON: Any = {"nogil": True, "error_model": "numpy"}  # NumPy's division: the check for zero would not vectorise
SCALAR: Any = COMMON | {"fastmath": {"contract"}}
scalar = loop = njit(**SCALAR)
summing_loop = njit(**COMMON, fastmath={"reassoc", "nsz", "contract", "arcp"})  # may add up in many lanes
exactly = njit(**COMMON)
inlined = njit(**COMMON, inline="always")  # saves 60 ms of compilation a function


def kernel(function: Any) -> Any:
    """Compile on first use for the types at hand, and keep the result on disk where a directory is writable."""
    try:
        return njit(**SCALAR, cache=True)(function)
    except RuntimeError:  # "no locator available"
        return loop(function)


@intrinsic
def view(_context, x, like):
    """The bits of x as another type of the same size."""
    result = like.dtype

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(result))

    return result(x, like), generate


# --- tasks -------------------------------------------------------------------------------------------------------


@intrinsic
def take(_context, counter):
    """Atomically add 1 to counter[0], and return what was there."""

    def generate(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.atomic_rmw("add", array.data, context.get_constant(types.int64, 1), "monotonic")

    return types.int64(counter), generate


# --- exp and log -------------------------------------------------------------------------------------------------


def exp_float32(x):
    """exp(x) for x < 88, within 1 ulp; 0 where the result would be subnormal."""
    # Cody-Waite reduction x = n ln2 + r, |r| <= ln2/2, then a minimax polynomial of relative error 3e-9.
    # Adding 1.5 * 2**23 rounds to the integer n and leaves it in the low bits, ready to become the exponent.
    shifted = np.float32(x * np.float32(1.4426950408889634) + np.float32(12582912.0))
    n = shifted - np.float32(12582912.0)
    r = (x - n * np.float32(0.693145751953125)) - n * np.float32(1.428606765330187e-06)
    p = np.float32(0.0013814584)
    p = p * r + np.float32(0.008368724)
    p = p * r + np.float32(0.04166839)
    p = p * r + np.float32(0.16666521)
    p = p * r + np.float32(0.49999994)
    p = p * r + np.float32(1.0)
    p = p * r + np.float32(1.0)
    power = np.uint32((view(shifted, np.uint32) << np.uint32(23)) + np.uint32(0x3F800000))
    # nan fails the comparison and passes through p.
    return np.float32(0.0) if x < np.float32(-87.33654) else p * view(power, np.float32)


def exp_float64(x):
    """The same in double: 1.5 * 2**52, and degree 11 of relative error 4e-18."""
    shifted = np.float64(x * 1.4426950408889634 + 6755399441055744.0)
    n = shifted - 6755399441055744.0
    r = (x - n * 0.6931471803691238) - n * 1.9082149292705877e-10
    p = 2.5000047713755167e-08
    p = p * r + 2.7630262866967239e-07
    p = p * r + 2.75575864909139513e-06
    p = p * r + 2.4801493061544959719e-05
    p = p * r + 0.0001984126950636751829
    p = p * r + 0.0013888888943662604304
    p = p * r + 0.0083333333334945947276
    p = p * r + 0.041666666666530050954
    p = p * r + 0.16666666666666412263
    p = p * r + 0.50000000000000106375
    p = p * r + 1.0
    p = p * r + 1.0
    power = np.uint64((view(shifted, np.uint64) << np.uint64(52)) + np.uint64(0x3FF0000000000000))
    return 0.0 if x < -708.3964185322641 else p * view(power, np.float64)


@scalar
def log1p_positive(x):
    """log(1 + x) for x >= 0 in double, within 1 ulp; free of branches, so that it vectorises.

    As in fdlibm: 1 + x = 2**k m with m in [sqrt(1/2), sqrt(2)), and a series in s = (m - 1) / (m + 1).
    """
    total = np.float64(1.0 + x)
    one = total - x
    lost = ((1.0 - one) + (x - (total - one))) / total  # what rounding 1 + x lost, relative to it
    bits = view(total, np.int64)
    k = np.int64((bits - np.int64(0x3FE6A09E667F3BCD)) >> np.int64(52))
    n = view(k + np.int64(0x4338000000000000), np.float64) - 6755399441055744.0  # k, without a slow cast
    f = view(bits - (k << np.int64(52)), np.float64) - 1.0
    s = f / (2.0 + f)
    z = s * s
    series = 0.1531383769920937332 + z * 0.1479819860511658591
    series = 0.2222219843214978396 + z * (0.1818357216161805012 + z * series)
    series = z * (0.6666666666666735130 + z * (0.3999999999940941908 + z * (0.2857142874366239149 + z * series)))
    half = 0.5 * f * f
    low = s * (half + series) + (lost + n * 1.90821492927058770002e-10)
    return n * 6.93147180369123816490e-01 + (f - (half - low))


# --- storage types -----------------------------------------------------------------------------------------------


def half_to_float32(x):
    """The value of a float16 from its bits."""
    # The multiplication by 2**112 rebiases the exponent exactly, subnormal numbers included; inf and nan keep theirs.
    bits = np.uint32(x)
    magnitude = np.uint32((bits & np.uint32(0x7FFF)) << np.uint32(13))
    value = view(view(magnitude, np.float32) * np.float32(5.192296858534828e33), np.uint32)
    value = np.uint32(magnitude | np.uint32(0x7F800000)) if magnitude >= np.uint32(0x0F800000) else value
    return view(np.uint32(value | ((bits & np.uint32(0x8000)) << np.uint32(16))), np.float32)


def half_from_float32(x, storage):
    """The bits of the nearest float16, ties to even; beyond its range inf."""
    # In the integer domain for normal results; below 2**-14 by adding 0.5, whose last place is the spacing of
    # subnormal halves. An overflow carries into the exponent and becomes inf.
    bits = view(np.float32(x), np.uint32)
    magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
    small = view(view(magnitude, np.float32) + np.float32(0.5), np.uint32) - np.uint32(0x3F000000)
    odd = (magnitude >> np.uint32(13)) & np.uint32(1)
    normal = np.uint32(magnitude - np.uint32(0x38000000) + np.uint32(0xFFF) + odd) >> np.uint32(13)
    half = np.uint32(small) if magnitude < np.uint32(0x38800000) else np.uint32(normal)
    half = np.uint32(0x7C00) if magnitude >= np.uint32(0x47800000) else half
    half = np.uint32(0x7E00) if magnitude > np.uint32(0x7F800000) else half
    return np.int16(half | ((bits >> np.uint32(16)) & np.uint32(0x8000)))


def bfloat16_to_float32(x):
    """The value of a bfloat16 from its bits."""
    return view(np.uint32(np.uint32(x) << np.uint32(16)), np.float32)


def bfloat16_from_float32(x, storage):
    """The bits of the nearest bfloat16, ties to even; nan stays nan."""
    bits = view(np.float32(x), np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = np.uint32(bits + np.uint32(0x7FFF) + odd)
    is_nan = np.uint32(bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.uint16((np.uint32(bits | np.uint32(0x400000)) if is_nan else rounded) >> np.uint32(16))


# --- integers in the order of floats -----------------------------------------------------------------------------


def rank_float32(x):
    """An integer that sorts as x does (nan at the ends): LLVM vectorises integer maxima, but Numba's float ones not."""
    bits = view(np.float32(x), np.int32)
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


def unrank_float32(x):
    """The number of this rank."""
    return view(np.int32(x ^ ((x >> np.int32(31)) & np.int32(0x7FFFFFFF))), np.float32)


def rank_float64(x):
    """The same for double."""
    bits = view(np.float64(x), np.int64)
    return bits ^ ((bits >> np.int64(63)) & np.int64(0x7FFFFFFFFFFFFFFF))


def unrank_float64(x):
    """The number of this rank."""
    return view(x ^ ((x >> np.int64(63)) & np.int64(0x7FFFFFFFFFFFFFFF)), np.float64)


# --- one name for every type -------------------------------------------------------------------------------------


def unchanged(x):
    """For what is stored as it is computed."""
    return x


def stored_unchanged(x, storage):
    """For what is stored as it is computed."""
    return x


def exp_negative(x):
    """exp(x) for x <= 0, within 1 ulp; 0 where the result would be subnormal."""
    raise NotImplementedError("for compiled code")


def widen(x):
    """A stored number in the type that we compute in."""
    raise NotImplementedError("for compiled code")


def narrow(x, storage):
    """A number as it is stored, rounded once."""
    raise NotImplementedError("for compiled code")


def rank(x):
    """An integer that sorts as x does."""
    raise NotImplementedError("for compiled code")


def unrank(x):
    """The number of this rank."""
    raise NotImplementedError("for compiled code")


# name -> implementation for the type of its argument (for `narrow`, of its result)
VARIANTS = {
    exp_negative: {types.float32: exp_float32, types.float64: exp_float64},
    widen: {
        types.float32: unchanged, types.float64: unchanged,
        types.int16: half_to_float32, types.uint16: bfloat16_to_float32,
    },
    narrow: {
        types.float32: stored_unchanged, types.float64: stored_unchanged,
        types.int16: half_from_float32, types.uint16: bfloat16_from_float32,
    },
    rank: {types.float32: rank_float32, types.float64: rank_float64},
    unrank: {types.int32: unrank_float32, types.int64: unrank_float64},
}  # fmt: skip


def _choose(function, variants):
    overloads = overload(function, jit_options=SCALAR)
    overloads((lambda x, storage: variants[storage.dtype]) if function is narrow else (lambda x: variants[x]))


for _function, _variants in VARIANTS.items():
    _choose(_function, _variants)


# --- sums --------------------------------------------------------------------------------------------------------


@exactly
def add(total, error, term):
    """Knuth's two-sum: total + error stays the exact sum."""
    after = total + term
    shift = after - total
    return after, error + ((total - (after - shift)) + (term - shift))


@scalar
def settle(total, error):
    """What `add` has added up; beside inf the error is nan."""
    return total if math.isinf(total) else total + error


# --- one sample --------------------------------------------------------------------------------------------------


@inlined
def constant(values, i):
    """values[i], where length 1 stands for a constant."""
    return values[i if values.size > 1 else 0]


@inlined
def counts(label, classes, ignore_index):
    """Whether the label is a class that is not ignored."""
    return label != ignore_index and 0 <= label < classes


@inlined
def without_label(label, ignore_index):
    """Loss and gradient of a sample that does not count: 0 if ignored, nan if the label has become invalid."""
    return 0.0 if label == ignore_index else np.nan


@scalar
def sample_loss(top, log_total, mass, cross, hot, below, z_loss):
    """sum_j t_j (lse - x_j) + z_loss lse^2 with t = q + hot [j = label]; every term is >= 0, so nothing cancels.

    From the largest logit, log_total = lse - top, the sums of q and of q (x - top), and below = x_label - top.
    """
    lse = top + log_total
    return mass * log_total - cross + hot * (log_total - below) + z_loss * lse * lse


@scalar
def likely_gradient(rest, mass, hot, q_k, below, z):
    """(sum(t) + z) p_k - t_k, for the label or likeliest class k, where x_k = top + below.

    p_k - 1 is computed as minus the sum of the other probabilities, which keeps tiny gradients exact; `rest` is the sum
    of exp(x - top) over all classes but the likeliest.
    """
    e_k = exp_negative(below)
    return ((mass - q_k + z) * e_k - (hot + q_k) * (rest + (1.0 - e_k))) / (1.0 + rest)
