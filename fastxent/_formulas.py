"""Maths on packs (see `_numba_trace`), for every kernel of the Numba backend.

Nothing here knows about arrays or threads.
"""

import math

from . import _numba_avx512 as avx512
from ._numba_trace import FLOAT32, FLOAT64, INT16, INT32, INT64, UINT16, UINT32, UINT64, halves, infinite, where

# --- exp and log -------------------------------------------------------------------------------------------------

# 2 to the power of each sixteenth
ROOTS = [
    1.0, 1.04427373, 1.09050775, 1.13878858, 1.18920708, 1.24185777, 1.29683959, 1.35425556, 1.41421354, 1.47682619,
    1.54221082, 1.61049032, 1.68179286, 1.75625217, 1.8340081, 1.91520655,
]  # fmt: skip


def polynomial(x, *coefficients):
    """The coefficient of the highest power comes first."""
    value = coefficients[0]
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


def exp_float32(x):
    """exp(x) for x < 88, within 1.1 ulp; 0 where the result would be subnormal."""
    return exp_by_table(x) if x.count and avx512.is_available() else exp_by_bits(x)


def exp_by_bits(x):
    """On any machine: 2**n by its bits."""
    # Cody-Waite reduction x = n ln2 + r, |r| <= ln2/2, then a minimax polynomial of relative error 3e-9.
    # Adding 1.5 * 2**23 + 127 rounds to the integer n and leaves the exponent of 2**n in the low bits.
    shifted = x * 1.4426950408889634 + 12583039.0
    n = shifted - 12583039.0
    r = (x - n * 0.693145751953125) - n * 1.428606765330187e-06
    p = polynomial(r, 0.0013814584, 0.008368724, 0.04166839, 0.16666521, 0.49999994, 1.0, 1.0)
    power = (shifted.view(UINT32) << 23).view(FLOAT32)
    return where(x < -87.33654, 0.0, p * power)  # nan fails the comparison and passes through p


def exp_by_table(x):
    """On packs of float32 with AVX-512: n in sixteenths, so that |r| <= ln2/32, and fewer coefficients."""
    shifted = x * 1.44269504 + 786432.0  # 1.5 * 2**19: n is rounded to sixteenths, whose number is in the low bits
    n = shifted - 786432.0
    r = (x - n * 0.693145751953125) - n * 1.42860677e-06
    root = avx512.looked_up(ROOTS, shifted.view(INT32))
    p = root + (r * root) * polynomial(r, 0.16667059, 0.5000162, 1.0)
    return avx512.scaled(p, n, (x < -87.33654) == 0)


def exp_float64(x):
    """The same in double: 1.5 * 2**52 + 1023, and degree 11 of relative error 4e-18."""
    shifted = x * 1.4426950408889634 + 6755399441056767.0
    n = shifted - 6755399441056767.0
    r = (x - n * 0.6931471803691238) - n * 1.9082149292705877e-10
    p = polynomial(
        r, 2.5000047713755167e-08, 2.7630262866967239e-07, 2.75575864909139513e-06, 2.4801493061544959719e-05,
        0.0001984126950636751829, 0.0013888888943662604304, 0.0083333333334945947276, 0.041666666666530050954,
        0.16666666666666412263, 0.50000000000000106375, 1.0, 1.0,
    )  # fmt: skip
    power = (shifted.view(UINT64) << 52).view(FLOAT64)
    return where(x < -708.3964185322641, 0.0, p * power)


def split_float32(u):
    """k, m in [0.75, 1.5) and 2**-k, with u = 2**k m, for normal u > 0."""
    shifted = u.view(UINT32) - 0x3F400000
    k, m = (shifted.view(INT32) >> 23).to(FLOAT32), ((shifted & 0x007FFFFF) + 0x3F400000).view(FLOAT32)
    return k, m, (0x3F800000 - (shifted & 0xFF800000)).view(FLOAT32)


def split_float64(u):
    """The same in double."""
    shifted = u.view(UINT64) - 0x3FE8000000000000
    k = (shifted.view(INT64) >> 52).to(INT32).to(FLOAT64)
    m = ((shifted & 0x000FFFFFFFFFFFFF) + 0x3FE8000000000000).view(FLOAT64)
    return k, m, (0x3FF0000000000000 - (shifted & 0xFFF0000000000000)).view(FLOAT64)


def log_series_float32(f, k):
    """k log(2) + log(1 + f) for f in [-0.25, 0.5]."""
    p = polynomial(
        f, -0.045074817, 0.104630224, -0.13161193, 0.14478394, -0.16647312, 0.19990861, -0.25000095, 0.3333345
    )  # fmt: skip
    tail = (f * f) * (f * p - 0.5) + k * 1.428606765330187e-06
    return k * 0.693145751953125 + (f + tail)


def log_series_float64(f, k):
    """The same, with the series of fdlibm in s = f / (2 + f)."""
    s = f / (f + 2.0)
    z = s * s
    p = z * polynomial(
        z, 0.13829725393241846, 0.13175728419613435, 0.15390972982730004, 0.18181670627345586, 0.22222224205763103,
        0.28571428556776897, 0.40000000000051784, 0.6666666666666661,
    )  # fmt: skip
    half = f * f * 0.5
    tail = s * (half + p) + k * 1.9082149292705877e-10
    return k * 0.6931471803691238 + (f - (half - tail))


def log_of(x):
    """log(x) within 1.5 ulp."""
    least, bits = (1.17549435e-38, 23) if x.kind == FLOAT32 else (2.2250738585072014e-308, 52)
    tiny = x < least  # and perhaps subnormal, which would have no exponent to split off
    k, m, _ = SPLIT[x.kind](where(tiny, x * 2.0**bits, x))
    result = LOG_SERIES[x.kind](m - 1.0, where(tiny, k - bits, k))
    result = where(x < math.inf, result, x)  # inf and nan
    result = where(x != 0.0, result, -math.inf)
    return where(x < 0.0, math.nan, result)


def log1p_above(x):
    """log(1 + x) for x > -1, within 1.5 ulp."""
    # 1 + x = 2**k m, then a series in f = m - 1. The latter comes from x, whose sum with 1 is rounded:
    # 2**-k x + (2**-k - 1) is exact, with these bounds of m.
    k, _, scale = SPLIT[x.kind](x + 1.0)
    return where(x == math.inf, x, LOG_SERIES[x.kind](x * scale + (scale - 1.0), k))


def log1p_unit(e):
    """log(1 + e) for 0 <= e <= 1, within 1 ulp: a minimax polynomial, so that nothing depends on the size of e."""
    return e + e * e * polynomial(e, *LOG1P_UNIT[e.kind])


def reciprocal(u):
    """1 / u for u in [1, 2]: what Chebyshev gives within 1 %, and Newton; a division takes three times as long."""
    r = polynomial(u, 0.3232323232323232, -1.4545454545454546, 2.1212121212121211)
    for _ in range(2 if u.kind == FLOAT32 else 3):
        r = r + r * (1.0 - u * r)
    return r


# --- storage types -----------------------------------------------------------------------------------------------


def half_to_float32(bits):
    """The value of a float16 from its bits."""
    # The multiplication by 2**112 rebiases the exponent exactly, subnormal numbers included; inf and nan keep theirs.
    bits = bits.view(UINT16).to(UINT32)
    magnitude = (bits & 0x7FFF) << 13
    value = (magnitude.view(FLOAT32) * 5.192296858534828e33).view(UINT32)
    value = where(magnitude >= 0x0F800000, magnitude | 0x7F800000, value)
    return (value | ((bits & 0x8000) << 16)).view(FLOAT32)


def half_from_float32(x):
    """The bits of the nearest float16, ties to even; beyond its range inf."""
    # In the integer domain for normal results; below 2**-14 by adding 0.5, whose last place is the spacing of
    # subnormal halves. An overflow carries into the exponent and becomes inf.
    bits = x.view(UINT32)
    magnitude = bits & 0x7FFFFFFF
    small = (magnitude.view(FLOAT32) + 0.5).view(UINT32) - 0x3F000000
    normal = (magnitude - 0x37FFF001 + ((magnitude >> 13) & 1)) >> 13
    half = where(magnitude < 0x38800000, small, normal)
    half = where(magnitude >= 0x47800000, 0x7C00, half)
    half = where(magnitude > 0x7F800000, 0x7E00, half)
    return (half | ((bits >> 16) & 0x8000)).to(INT16)


def bfloat16_to_float32(bits):
    """The value of a bfloat16 from its bits."""
    return (bits.to(UINT32) << 16).view(FLOAT32)


def bfloat16_from_float32(x):
    """The bits of the nearest bfloat16, ties to even; nan stays nan."""
    bits = x.view(UINT32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    rounded = where((bits & 0x7FFFFFFF) > 0x7F800000, bits | 0x400000, rounded)
    return (rounded >> 16).to(UINT16)


# --- one name for every type -------------------------------------------------------------------------------------

EXP = {FLOAT32: exp_float32, FLOAT64: exp_float64}
SPLIT = {FLOAT32: split_float32, FLOAT64: split_float64}
LOG_SERIES = {FLOAT32: log_series_float32, FLOAT64: log_series_float64}
LOG1P_UNIT = {
    FLOAT32: (
        -0.003318474015, 0.02020458927, -0.05766444755, 0.1068055529, -0.1535539578, 0.196954002, -0.2495858732,
        0.3333051131, -0.4999993276,
    ),
    FLOAT64: (
        -1.6598277914440267e-05, 0.00019944056320965052, -0.0011396118810021395, 0.0041397308609861004,
        -0.010807694136273416, 0.02180784442503687, -0.03587667690316385, 0.05039004550401851, -0.06310894739740852,
        0.07341389066784662, -0.08212629025468092, 0.09057469673792325, -0.09992645708362773, 0.11109849882529499,
        -0.12499835187408333, 0.1428569837158833, -0.1666666557830351, 0.1999999995041043, -0.24999999998630903,
        0.3333333333331393, -0.499999999999999,
    ),
}  # fmt: skip
WIDEN = {INT16: half_to_float32, UINT16: bfloat16_to_float32}
NARROW = {INT16: half_from_float32, UINT16: bfloat16_from_float32}


def exp_negative(x):
    """exp(x) for x <= 0 (any x below 87 in fact), within 1 ulp; 0 where the result would be subnormal."""
    return EXP[x.kind](x)


def exp_any(x):
    """exp(x), of log-probabilities or whatever else was passed for them; a square where exp_negative has no answer."""
    most = 80.0 if x.kind == FLOAT32 else 700.0
    root = exp_negative(where(x > most, where(x < 2 * most, x, 2 * most) * 0.5, x))
    return where(x > most, root * root, root)


def widen(x):
    """Stored numbers in the type that we compute in."""
    return WIDEN[x.kind](x) if x.kind in WIDEN else x


def narrow(x, pointer):
    """Numbers as they are stored at the pointer, rounded once."""
    storage = pointer.kind
    return NARROW[storage](x) if storage in NARROW else x


# --- one sample, or a pack of them -------------------------------------------------------------------------------


def add(total, lost, term):
    """Knuth's two-sum: total + lost stays the exact sum, nearly."""
    after = total + term
    shift = after - total
    return after, lost + ((total - (after - shift)) + (term - shift))


def settle(total, lost):
    """What `add` has added up; beside inf what was lost is nan."""
    return where(infinite(total), total, total + lost)


def settle_lanes(total, lost):
    """The sum of all lanes of what `add` has added up."""
    while total.count > 1:
        (a, b), (lost_a, lost_b) = halves(total), halves(lost)
        total, lost = add(a, lost_a + lost_b, b)
    return settle(total, lost).lane(0)


def finite(top):
    """What to subtract from logits; -inf - -inf would be nan."""
    return where(top == -math.inf, 0.0, top)


def raise_top(s, top):
    """Put the sums under a new maximum; until then `rest` had left out a term that is no longer the largest.

    This happens at most once for each block or tile of classes (Milakov, Gimelshein 2018).
    """
    rise = where(s.top == -math.inf, 0.0, top - s.top)  # nothing has been summed yet; else it may overflow to inf
    rest = (s.rest + s.lost + 1.0) * exp_negative(0.0 - rise)
    s.cross = where(s.mass != 0.0, s.cross - s.mass * rise, s.cross)
    s.rest, s.lost = where(rise > 0.0, rest, s.rest), where(rise > 0.0, 0.0, s.lost)


def settled(top, rest):
    """`rest` as it is to be used: nan where the largest logit is infinite."""
    return where(infinite(top), math.nan, rest)


def log_sum_exp(top, rest):
    """From the largest logit and `rest`, which is nan if and only if a logit is."""
    limit = infinite(top) & (rest == rest)  # all -inf, or some +inf, and no nan
    return where(limit, top, top + log1p_above(rest))


def sample_loss(top, log_total, mass, cross, hot, below, z_loss):
    """sum_j t_j (lse - x_j) + z_loss lse^2 with t = q + hot [j = label]; every term is >= 0, so nothing cancels.

    From the largest logit, log_total = lse - top, the sums of q and of q (x - top), and below = x_label - top.
    """
    lse = top + log_total
    return mass * log_total - cross + z_loss * lse * lse + hot * (log_total - below)


def likely_gradient(rest, mass, hot, q_k, e_k, z):
    """((sum(t) + z) p_k - t_k) (1 + rest), for the label or a likeliest class k, where e_k = exp(x_k - top).

    p_k - 1 is computed as minus the sum of the other probabilities, which keeps tiny gradients exact; `rest` is the sum
    of exp(x - top) over all classes but the likeliest.
    """
    return (mass - q_k + z) * e_k - (hot + q_k) * (rest + (1.0 - e_k))
