# What every kernel is made of: exp and log, storage types, and loops over one block of classes in L1.
#
# A block is a scratch array of BLOCK numbers in the computing type, filled to a multiple of LANES. Each loop below
# runs over LANES independent lanes, so that compilers turn it into SIMD code of any width without being allowed to
# reorder floating-point sums, and so that the order of a sum is the same on every machine and for every thread count.

from libc.float cimport DBL_MAX, FLT_MAX
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.math cimport INFINITY, NAN, isinf, isnan, rint

cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <string.h>
    typedef struct { uint16_t bits; } fx_half;
    typedef struct { uint16_t bits; } fx_bfloat16;
    static inline uint32_t fx_bits32(float x) { uint32_t b; memcpy(&b, &x, sizeof b); return b; }
    static inline uint64_t fx_bits64(double x) { uint64_t b; memcpy(&b, &x, sizeof b); return b; }
    static inline float fx_float(uint32_t b) { float x; memcpy(&x, &b, sizeof x); return x; }
    #if defined(__GNUC__)
    #define fx_prefetch(p) __builtin_prefetch(p, 0, 2)
    #else
    #define fx_prefetch(p) ((void)(p))
    #endif
    /* Stores past the cache: of whole lines, as many bytes at once as the level's registers hold. */
    #if defined(__AVX512F__)
    #include <immintrin.h>
    #define FX_STREAM(p, q) _mm512_stream_si512((void*)(p), _mm512_loadu_si512(q))
    #define FX_STREAMED 64
    #elif defined(__AVX2__)
    #include <immintrin.h>
    #define FX_STREAM(p, q) _mm256_stream_si256((__m256i*)(p), _mm256_loadu_si256((const __m256i*)(q)))
    #define FX_STREAMED 32
    #elif defined(__SSE2__)
    #include <emmintrin.h>
    #define FX_STREAM(p, q) _mm_stream_si128((__m128i*)(p), _mm_loadu_si128((const __m128i*)(q)))
    #define FX_STREAMED 16
    #endif
    static inline void fx_stream(char* target, const char* source, size_t bytes) {
    #ifdef FX_STREAMED
        for (size_t i = 0; i < bytes; i += FX_STREAMED) FX_STREAM(target + i, source + i);
    #else
        memcpy(target, source, bytes);
    #endif
    }
    /* Pieces that follow on one another are stored past the cache line by line, with nothing done to a line twice. */
    typedef struct {
        char* next;
        size_t held; /* bytes of the line that `next` is in which are not stored yet */
        char line[64];
    } fx_sink;
    static inline void fx_flush(fx_sink* sink) {
        if (sink->held) memcpy(sink->next - sink->held, sink->line, sink->held);
        sink->held = 0;
    #ifdef FX_STREAMED
        _mm_sfence();
    #endif
    }
    static inline void fx_send(fx_sink* sink, char* target, const char* source, size_t bytes) {
        if (target != sink->next) {
            fx_flush(sink);
            sink->next = target;
        }
        const size_t begun = (size_t)target % 64;
        if (begun) {
            const size_t part = bytes < 64 - begun ? bytes : 64 - begun;
            if (sink->held) {
                memcpy(sink->line + begun, source, part);
                sink->held += part;
                if (begun + part == 64) fx_stream(target - begun, sink->line, 64), sink->held = 0;
            } else {
                memcpy(target, source, part);
            }
            target += part, source += part, bytes -= part;
        }
        const size_t whole = bytes / 64 * 64;
        fx_stream(target, source, whole);
        sink->held += bytes - whole;
        memcpy(sink->line, source + whole, bytes - whole);
        sink->next = target + bytes;
    }
    /* Compilers take the last steps of this number by number, at three instructions for each. */
    static inline float fx_largest16(const float* p) {
    #ifdef __SSE2__
        __m128 v = _mm_max_ps(_mm_max_ps(_mm_loadu_ps(p), _mm_loadu_ps(p + 4)),
                              _mm_max_ps(_mm_loadu_ps(p + 8), _mm_loadu_ps(p + 12)));
        v = _mm_max_ps(v, _mm_movehl_ps(v, v));
        return _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps(v, v, 1)));
    #else
        float largest = p[0];
        for (int i = 1; i < 16; i++) largest = p[i] > largest ? p[i] : largest;
        return largest;
    #endif
    }
    /* float16 by the processor's own conversion, where the level has it; returns how many it has done. */
    static inline ptrdiff_t fx_widen_halves(const fx_half* x, ptrdiff_t count, float* y) {
        ptrdiff_t i = 0;
    #if defined(__AVX512F__)
        for (; i + 16 <= count; i += 16)
            _mm512_storeu_ps(y + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(x + i))));
    #endif
    #if defined(__F16C__)
        for (; i + 8 <= count; i += 8)
            _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(x + i))));
    #endif
        return i;
    }
    static inline ptrdiff_t fx_narrow_to_halves(const float* x, ptrdiff_t count, fx_half* y) {
        ptrdiff_t i = 0;
    #if defined(__AVX512F__)
        for (; i + 16 <= count; i += 16)
            _mm256_storeu_si256((__m256i*)(y + i), _mm512_cvtps_ph(_mm512_loadu_ps(x + i), 8));
    #endif
    #if defined(__F16C__)
        for (; i + 8 <= count; i += 8)
            _mm_storeu_si128((__m128i*)(y + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), 8));
    #endif
        return i;
    }
    static inline double fx_double(uint64_t b) { double x; memcpy(&x, &b, sizeof x); return x; }
    """
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
    double double_from "fx_double"(uint64_t bits)
    float largest16 "fx_largest16"(const float* p)
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

cdef enum:
    LANES = 64  # four AVX-512 or eight AVX2 registers of float32: enough to hide the latency of an addition
    AHEAD = 16384  # bytes from what is computed with to what is fetched into the cache
    BLOCK = 4096  # 16 KiB of float32: half of a 32 KiB L1, and short enough that lane sums stay accurate


# --- exp ---------------------------------------------------------------------------------------------------------


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
    # 1 + x = 2**k m with m in [0.71, 1.41], then a series in f = m - 1; f is x itself when k is 0.
    cdef float one = 1
    cdef float u = one + x
    cdef uint32_t shifted = bits32(u) - <uint32_t>0x3F3504F3
    cdef float k = <float>(<int>shifted >> 23)
    cdef float m = float_from((shifted & <uint32_t>0x007FFFFF) + <uint32_t>0x3F3504F3)
    cdef float f = x if k == <float>0 else m - one
    # What rounding to u has lost, relative to it; a few bits of 1 / u = 2**-k / m will do.
    cdef float lost = x - (u - one) if x < one else one - (u - x)
    lost *= (one - f + f * f) * float_from(<uint32_t>0x3F800000 - (shifted & <uint32_t>0xFF800000))
    return log_series_float(f, k, lost if k != <float>0 else <float>0)


cdef inline float log_float(float x) noexcept nogil:
    # x = 2**k m in the same way; subnormal numbers times 2**23 first.
    cdef float one = 1, zero = 0
    cdef float scaled = x * <float>8388608.0
    cdef bint tiny = x < <float>1.17549435e-38
    cdef uint32_t shifted = bits32(scaled if tiny else x) - <uint32_t>0x3F3504F3
    cdef float k = <float>(<int>shifted >> 23)
    cdef float m = float_from((shifted & <uint32_t>0x007FFFFF) + <uint32_t>0x3F3504F3)
    k = k - <float>23 if tiny else k
    cdef float result = log_series_float(<float>(m - one), k, zero)
    result = result if x < INFINITY else x  # inf and nan
    result = result if x != zero else -INFINITY
    return <float>NAN if x < zero else result


cdef inline float log_series_float(float f, float k, float lost) noexcept nogil:
    """k log(2) + log(1 + f) + lost for f in [-0.29, 0.41]."""
    cdef float p = <float>0.070376836292
    p = p * f - <float>0.1151461031
    p = p * f + <float>0.11676998740
    p = p * f - <float>0.12420140846
    p = p * f + <float>0.14249322787
    p = p * f - <float>0.16668057665
    p = p * f + <float>0.20000714765
    p = p * f - <float>0.24999993993
    p = p * f + <float>0.33333331174
    cdef float tail = f * f * (f * p - <float>0.5) + (k * <float>1.428606765330187e-06 + lost)
    return k * <float>0.693145751953125 + (f + tail)


cdef inline double log1p_double(double x) noexcept nogil:
    cdef double u = 1 + x
    cdef uint64_t shifted = bits64(u) - <uint64_t>0x3FE6A09E667F3BCD
    cdef double k = <double>(<int64_t>shifted >> 52)
    cdef double m = double_from((shifted & <uint64_t>0x000FFFFFFFFFFFFF) + <uint64_t>0x3FE6A09E667F3BCD)
    cdef double lost = (x - (u - 1) if x < 1 else 1 - (u - x)) / u
    return log_series_double(x if k == 0 else m - 1, k, lost if k != 0 else 0)


cdef inline double log_double(double x) noexcept nogil:
    cdef double scaled = x * 4503599627370496.0
    cdef bint tiny = x < 2.2250738585072014e-308
    cdef uint64_t shifted = bits64(scaled if tiny else x) - <uint64_t>0x3FE6A09E667F3BCD
    cdef double k = <double>(<int64_t>shifted >> 52)
    cdef double m = double_from((shifted & <uint64_t>0x000FFFFFFFFFFFFF) + <uint64_t>0x3FE6A09E667F3BCD)
    k = k - 52 if tiny else k
    cdef double result = log_series_double(m - 1, k, 0)
    result = result if x < INFINITY else x
    result = result if x != 0 else -INFINITY
    return NAN if x < 0 else result


cdef inline double log_series_double(double f, double k, double lost) noexcept nogil:
    """The same, with the polynomial of fdlibm in s = f / (2 + f)."""
    cdef double s = f / (2 + f)
    cdef double z = s * s
    cdef double w = z * z
    cdef double p = 0.1818357216161805 + w * 0.14798198605116586
    p = z * (0.6666666666666735 + w * (0.2857142874366239 + w * p))
    p = p + w * (0.3999999999940942 + w * (0.22222198432149784 + w * 0.15313837699209373))
    cdef double half_square = 0.5 * f * f
    cdef double tail = s * (half_square + p) + (k * 1.9082149292705877e-10 + lost)
    return k * 0.6931471803691238 + (f - (half_square - tail))


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


# --- loops over one block ----------------------------------------------------------------------------------------


cdef inline Py_ssize_t fill_up(real* block, Py_ssize_t count, real value) noexcept nogil:
    """Fill the block up to a multiple of LANES and return that multiple."""
    cdef Py_ssize_t j, full = (count + LANES - 1) // LANES * LANES
    for j in range(count, full):
        block[j] = value
    return full


cdef inline double lanes_sum(const real* lanes) noexcept nogil:
    """Sum in double, in several sums: one after the other, the additions would wait for each other."""
    cdef double quarter[16]
    cdef double few[4]
    cdef Py_ssize_t i
    for i in range(16):
        quarter[i] = (<double>lanes[i] + <double>lanes[i + 16]) + (<double>lanes[i + 32] + <double>lanes[i + 48])
    for i in range(4):
        few[i] = (quarter[i] + quarter[i + 4]) + (quarter[i + 8] + quarter[i + 12])
    return (few[0] + few[1]) + (few[2] + few[3])


cdef inline real larger(real a, real b) noexcept nogil:
    return a if a > b else b


cdef inline real lanes_max(const real* lanes) noexcept nogil:
    """The largest; no lane is nan."""
    cdef real quarter[16]
    cdef real largest
    cdef Py_ssize_t i
    for i in range(16):
        quarter[i] = larger(larger(lanes[i], lanes[i + 16]), larger(lanes[i + 32], lanes[i + 48]))
    if real is float:
        return largest16(quarter)
    else:
        largest = quarter[0]
        for i in range(1, 16):
            largest = larger(largest, quarter[i])
        return largest


cdef inline real block_max(const real* block, Py_ssize_t count) noexcept nogil:
    """The largest number, nan passed over; -inf for nan alone."""
    cdef real lanes[LANES]
    cdef Py_ssize_t lane, start = 0
    for lane in range(LANES):
        lanes[lane] = -INFINITY
    if count < LANES:
        for lane in range(count):
            lanes[0] = larger(block[lane], lanes[0])
        return lanes[0]
    while True:
        for lane in range(LANES):
            lanes[lane] = larger(block[start + lane], lanes[lane])
        if start + LANES >= count:
            return lanes_max(lanes)
        start = min(start + LANES, count - LANES)  # the last lanes overlap, which does a maximum no harm


cdef inline Py_ssize_t block_find(const real* block, Py_ssize_t count, real value) noexcept nogil:
    """The first position of `value`, or `count`."""
    cdef int at = <int>count, j
    for j in range(<int>count):
        at = min(at, j if block[j] == value else <int>count)
    return at


cdef inline void add_exp(
    const real* x, Py_ssize_t groups, real top, bint apart, real* e, real* total, real* rest, const char* ahead,
    Py_ssize_t lines,
) noexcept nogil:
    """e = exp(x - top) (NULL: nowhere), added to the lanes of `total`, and if `apart` where x != top also to `rest`.

    Meanwhile what is needed soon is fetched: so many cache lines for each group, from `ahead` on.
    """
    cdef real totals[LANES]  # what nothing else can point to stays in registers
    cdef real rests[LANES]
    cdef real values[LANES]
    cdef real zero = 0
    cdef bint below
    cdef Py_ssize_t j, lane, line
    for lane in range(LANES):
        totals[lane], rests[lane] = total[lane], rest[lane]
    for j in range(groups):
        for line in range(lines):
            prefetch(ahead + (j * lines + line) * 64)
        for lane in range(LANES):
            values[lane] = x[j * LANES + lane] - top
        for lane in range(LANES):
            below = values[lane] != 0
            values[lane] = exp_negative(values[lane])
            totals[lane] += values[lane]
            if apart:
                rests[lane] += values[lane] if below else zero
        if e != NULL:
            for lane in range(LANES):
                e[j * LANES + lane] = values[lane]
    for lane in range(LANES):
        total[lane], rest[lane] = totals[lane], rests[lane]


cdef inline double block_exp_sum(
    const real* x, Py_ssize_t count, real top, bint apart, real* e, const char* ahead, Py_ssize_t lines
) noexcept nogil:
    """e = exp(x - top), which may replace x or be NULL, and its sum, if `apart` without one class where x = top."""
    cdef real total[LANES]
    cdef real rest[LANES]
    cdef real edge[LANES]
    cdef double sum_, others
    cdef Py_ssize_t lane, groups = count // LANES, tail = count // LANES * LANES
    for lane in range(LANES):
        total[lane] = rest[lane] = 0
        edge[lane] = -INFINITY
    if apart:
        add_exp(x, groups, top, True, e, total, rest, ahead, lines)
    else:
        add_exp(x, groups, top, False, e, total, rest, ahead, lines)
    if tail < count:
        for lane in range(count - tail):
            edge[lane] = x[tail + lane]
        add_exp(edge, 1, top, apart, edge, total, rest, ahead, 0)
        for lane in range(count - tail if e != NULL else 0):
            e[tail + lane] = edge[lane]
    sum_ = lanes_sum(total)
    if not apart:
        return sum_
    others = lanes_sum(rest)
    return others + (rint(sum_ - others) - 1)  # as many ones as there are classes with x = top


cdef inline double block_sum(const real* block, Py_ssize_t count) noexcept nogil:
    cdef real lanes[LANES]
    cdef Py_ssize_t j, lane
    for lane in range(LANES):
        lanes[lane] = 0
    for j in range(count // LANES):
        for lane in range(LANES):
            lanes[lane] += block[j * LANES + lane]
    for j in range(count // LANES * LANES, count):
        lanes[j % LANES] += block[j]
    return lanes_sum(lanes)


cdef inline double block_dot(const real* weights, const real* block, Py_ssize_t count, real top) noexcept nogil:
    """sum of weights * (block - top), where a weight of 0 counts 0 even against inf."""
    cdef real lanes[LANES]
    cdef real term, zero = 0
    cdef Py_ssize_t j, lane
    for lane in range(LANES):
        lanes[lane] = 0
    for j in range(count // LANES):
        for lane in range(LANES):
            term = weights[j * LANES + lane] * (block[j * LANES + lane] - top)
            lanes[lane] += term if weights[j * LANES + lane] != zero else zero
    for j in range(count // LANES * LANES, count):
        term = weights[j] * (block[j] - top)
        lanes[j % LANES] += term if weights[j] != zero else zero
    return lanes_sum(lanes)


cdef inline real exp_any(real x) noexcept nogil:
    """exp(x), of log-probabilities or whatever else was passed for them; a square beyond the range of exp_negative."""
    cdef real most = 80 if real is float else 700
    cdef real half = <real>0.5 * (x if x < 2 * most else 2 * most)
    cdef real root = exp_negative(half if x > most else x)
    return root * root if x > most else root
