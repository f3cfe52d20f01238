# What every kernel is made of: exp and log, and numbers as arrays hold them.

from libc.float cimport DBL_MAX, FLT_MAX
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.math cimport INFINITY, NAN, isfinite, isinf, isnan, rint

cdef extern from "_team.h" nogil:
    ctypedef void (*Body "fx_body")(void* context, Py_ssize_t task, int thread) noexcept nogil
    void deal "fx_deal"(Body body, void* context, Py_ssize_t tasks, int threads)

cdef extern from "_simd.h" nogil:
    ctypedef struct half "fx_half":
        uint16_t bits
    ctypedef struct bfloat16 "fx_bfloat16":
        uint16_t bits
    uint32_t bits32 "fx_bits32"(float x)
    uint64_t bits64 "fx_bits64"(double x)
    float float_from "fx_float"(uint32_t bits)
    void prefetch "fx_prefetch"(const void* p)
    ctypedef struct Sink "fx_sink":
        char* next
        size_t held
    void send "fx_send"(Sink* sink, char* target, const char* source, size_t bytes)
    void flush "fx_flush"(Sink* sink)
    void stream_bytes "fx_stream"(char* target, const char* source, size_t bytes)
    void stream_inside "fx_stream_inside"(char* target, const char* source, size_t bytes)
    void follow "fx_follow"(Sink* sink, char* next)
    void stream_scaled_float "fx_stream_scaled_float"(float* target, const float* source, float scale)
    void stream_scaled_double "fx_stream_scaled_double"(double* target, const double* source, double scale)
    const bint FX_STREAM_NARROWED
    void stream_scaled_half "fx_stream_scaled_half"(half* target, const float* source, float scale)
    void stream_scaled_bfloat16 "fx_stream_scaled_bfloat16"(bfloat16* target, const float* source, float scale)
    double double_from "fx_double"(uint64_t bits)
    Py_ssize_t widen_halves "fx_widen_halves"(const half* x, Py_ssize_t count, float* y)
    Py_ssize_t narrow_to_halves "fx_narrow_to_halves"(const float* x, Py_ssize_t count, half* y)

ctypedef fused real:  # what we compute in
    float
    double

ctypedef fused storage:  # what arrays hold
    float
    double
    half
    bfloat16

cdef enum Storage:
    NO_ARRAY
    FLOAT32
    FLOAT64
    FLOAT16
    BFLOAT16


# --- exp and log -------------------------------------------------------------------------------------------------


cdef inline float exp_float(float x) noexcept nogil:
    # Cody-Waite reduction x = n ln2 + r, |r| <= ln2/2, then a minimax polynomial of relative error 3e-9.
    # Adding 1.5 * 2**23 + 127 rounds to the integer n and leaves it, biased, in the low bits: the exponent of 2**n.
    cdef float shifted = x * <float>1.4426950408889634 + <float>12583039.0
    cdef float n = shifted - <float>12583039.0
    cdef float r = (x - n * <float>0.693145751953125) - n * <float>1.428606765330187e-06
    cdef float p = <float>0.0013814584
    p = p * r + <float>0.008368724
    p = p * r + <float>0.04166839
    p = p * r + <float>0.16666521
    p = p * r + <float>0.49999994
    p = p * r + <float>1.0
    p = p * r + <float>1.0
    # Below log(smallest normal number) the result is 0; nan fails the comparison and passes through p.
    return <float>0.0 if x < <float>-87.33654 else p * float_from(bits32(shifted) << 23)


cdef inline double exp_double(double x) noexcept nogil:
    # The same in double: 1.5 * 2**52 + 1023, and degree 11 of relative error 4e-18.
    cdef double shifted = x * 1.4426950408889634 + 6755399441056767.0
    cdef double n = shifted - 6755399441056767.0
    cdef double r = (x - n * 0.6931471803691238) - n * 1.9082149292705877e-10
    cdef double p = 2.5000047713755167e-08
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
    return 0.0 if x < -708.3964185322641 else p * double_from(bits64(shifted) << 52)


cdef inline real exp_negative(real x) noexcept nogil:
    """exp(x) for x <= 0 (any x below 87 in fact), within 1 ulp; 0 where the result would be subnormal."""
    if real is float:
        return exp_float(x)
    else:
        return exp_double(x)


cdef inline real log1p_above(real x) noexcept nogil:
    """log(1 + x) for -1 < x < 2**60, within 1.5 ulp."""
    if real is float:
        return log1p_float(x)
    else:
        return log1p_double(x)


cdef inline real log_of(real x) noexcept nogil:
    """log(x) within 1.5 ulp."""
    if real is float:
        return log_float(x)
    else:
        return log_double(x)


cdef inline float log1p_float(float x) noexcept nogil:
    # 1 + x = 2**k m with m in [0.75, 1.5), then a series in f = m - 1. The latter comes from x, whose sum with 1 is
    # rounded: 2**-k x + (2**-k - 1) is exact, with these bounds of m.
    cdef float one = 1
    cdef uint32_t shifted = bits32(one + x) - <uint32_t>0x3F400000
    cdef float k = <float>(<int>shifted >> 23)
    cdef float scale = float_from(<uint32_t>0x3F800000 - (shifted & <uint32_t>0xFF800000))
    return log_series_float(x * scale + (scale - one), k)


cdef inline float log_float(float x) noexcept nogil:
    # x = 2**k m in the same way; subnormal numbers times 2**23 first.
    cdef float one = 1, zero = 0
    cdef float scaled = x * <float>8388608.0
    cdef bint tiny = x < <float>1.17549435e-38
    cdef uint32_t shifted = bits32(scaled if tiny else x) - <uint32_t>0x3F400000
    cdef float k = <float>(<int>shifted >> 23)
    cdef float m = float_from((shifted & <uint32_t>0x007FFFFF) + <uint32_t>0x3F400000)
    k = k - <float>23 if tiny else k
    cdef float result = log_series_float(<float>(m - one), k)
    result = result if x < INFINITY else x  # inf and nan
    result = result if x != zero else -INFINITY
    return <float>NAN if x < zero else result


cdef inline float log_series_float(float f, float k) noexcept nogil:
    """k log(2) + log(1 + f) for f in [-0.25, 0.5]."""
    cdef float p = <float>-0.045074817
    p = p * f + <float>0.104630224
    p = p * f - <float>0.13161193
    p = p * f + <float>0.14478394
    p = p * f - <float>0.16647312
    p = p * f + <float>0.19990861
    p = p * f - <float>0.25000095
    p = p * f + <float>0.3333345
    cdef float tail = f * f * (f * p - <float>0.5) + k * <float>1.428606765330187e-06
    return k * <float>0.693145751953125 + (f + tail)


cdef inline double log1p_double(double x) noexcept nogil:
    cdef uint64_t shifted = bits64(1 + x) - <uint64_t>0x3FE8000000000000
    cdef double k = <double>(<int64_t>shifted >> 52)
    cdef double scale = double_from(<uint64_t>0x3FF0000000000000 - (shifted & <uint64_t>0xFFF0000000000000))
    return log_series_double(x * scale + (scale - 1), k)


cdef inline double log_double(double x) noexcept nogil:
    cdef double scaled = x * 4503599627370496.0
    cdef bint tiny = x < 2.2250738585072014e-308
    cdef uint64_t shifted = bits64(scaled if tiny else x) - <uint64_t>0x3FE8000000000000
    cdef double k = <double>(<int64_t>shifted >> 52)
    cdef double m = double_from((shifted & <uint64_t>0x000FFFFFFFFFFFFF) + <uint64_t>0x3FE8000000000000)
    k = k - 52 if tiny else k
    cdef double result = log_series_double(m - 1, k)
    result = result if x < INFINITY else x
    result = result if x != 0 else -INFINITY
    return NAN if x < 0 else result


cdef inline double log_series_double(double f, double k) noexcept nogil:
    """The same, with the series of fdlibm in s = f / (2 + f)."""
    cdef double s = f / (2 + f)
    cdef double z = s * s
    cdef double w = z * z
    cdef double p = 0.18181670627345586 + w * 0.13175728419613435
    p = z * (0.6666666666666661 + w * (0.28571428556776897 + w * p))
    p = p + w * (0.40000000000051784 + w * (0.22222224205763103 + w * (0.15390972982730004 + w * 0.13829725393241846)))
    cdef double half_square = 0.5 * f * f
    cdef double tail = s * (half_square + p) + k * 1.9082149292705877e-10
    return k * 0.6931471803691238 + (f - (half_square - tail))


cdef inline real exp_any(real x) noexcept nogil:
    """exp(x), of log-probabilities or whatever else was passed for them; a square beyond the range of exp_negative."""
    cdef real most = 80 if real is float else 700
    cdef real half = <real>0.5 * (x if x < 2 * most else 2 * most)
    cdef real root = exp_negative(half if x > most else x)
    return root * root if x > most else root


# --- storage types -----------------------------------------------------------------------------------------------


cdef inline float half_to_float(uint16_t bits) noexcept nogil:
    # The multiplication rebiases the exponent exactly, subnormal numbers included; inf and nan keep theirs full.
    cdef uint32_t magnitude = <uint32_t>(bits & 0x7FFF) << 13
    cdef uint32_t scaled = bits32(float_from(magnitude) * <float>5.192296858534828e33)  # 2**112
    if magnitude >= <uint32_t>0x0F800000:
        scaled = magnitude | <uint32_t>0x7F800000
    return float_from(scaled | (<uint32_t>(bits & 0x8000) << 16))


cdef inline uint16_t half_from_float(float x) noexcept nogil:
    # Round to nearest even: in the integer domain for normal results, by adding 0.5 (whose last place is the
    # spacing of subnormal halves) below 2**-14. An overflow carries into the exponent and becomes inf.
    cdef uint32_t bits = bits32(x)
    cdef uint32_t magnitude = bits & <uint32_t>0x7FFFFFFF
    cdef uint32_t small = bits32(float_from(magnitude) + <float>0.5) - <uint32_t>0x3F000000
    cdef uint32_t normal = (magnitude - <uint32_t>0x38000000 + <uint32_t>0xFFF + ((magnitude >> 13) & 1)) >> 13
    cdef uint32_t result = small if magnitude < <uint32_t>0x38800000 else normal
    if magnitude >= <uint32_t>0x47800000:
        result = <uint32_t>0x7C00
    if magnitude > <uint32_t>0x7F800000:
        result = <uint32_t>0x7E00
    return <uint16_t>(result | ((bits >> 16) & 0x8000))


cdef inline uint16_t bfloat16_from_float(float x) noexcept nogil:
    cdef uint32_t bits = bits32(x)
    cdef uint32_t rounded = (bits + <uint32_t>0x7FFF + ((bits >> 16) & 1)) >> 16
    if (bits & <uint32_t>0x7FFFFFFF) > <uint32_t>0x7F800000:
        rounded = (bits >> 16) | 0x40
    return <uint16_t>rounded


cdef inline void load(const storage* source, Py_ssize_t step, Py_ssize_t count, real* block) noexcept nogil:
    """block[:count] = source[: count * step : step], widened."""
    cdef real value
    cdef Py_ssize_t j
    if step == 1:  # known to be contiguous, the loops vectorise
        if storage is half and real is float:
            for j in range(widen_halves(source, count, block), count):
                block[j] = widen(source + j, block)
        else:
            for j in range(count):
                block[j] = widen(source + j, block)
    elif step == 0:
        value = widen(source, block)
        for j in range(count):
            block[j] = value
    else:
        for j in range(count):
            block[j] = widen(source + j * step, block)


cdef inline real widen(const storage* source, const real* _like) noexcept nogil:
    if storage is half:
        return half_to_float(source.bits)
    elif storage is bfloat16:
        return float_from(<uint32_t>source.bits << 16)
    else:
        return <real>source[0]


cdef inline void store(const real* block, Py_ssize_t count, storage* target, Py_ssize_t step) noexcept nogil:
    """target[: count * step : step] = block[:count], rounded once."""
    cdef Py_ssize_t j
    if step == 1:
        if storage is half and real is float:
            for j in range(narrow_to_halves(block, count, target), count):
                narrow(block[j], target + j)
        else:
            for j in range(count):
                narrow(block[j], target + j)
    else:
        for j in range(count):
            narrow(block[j], target + j * step)


cdef inline void narrow(real value, storage* target) noexcept nogil:
    if storage is half:
        target.bits = half_from_float(<float>value)
    elif storage is bfloat16:
        target.bits = bfloat16_from_float(<float>value)
    else:
        target[0] = <storage>value
