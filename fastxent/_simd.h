/* What compilers do not make of plain loops: stores past the cache, 16-bit floats, exponentials, transpositions. */

#ifndef FX_SIMD_H
#define FX_SIMD_H

#include <math.h>
#include <stddef.h>
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
/* Whole lines past the cache, what lies in others the ordinary way. */
static inline void fx_stream_inside(char* target, const char* source, size_t bytes) {
    const size_t before = -(size_t)target % 64;
    if (bytes < before + 64) {
        memcpy(target, source, bytes);
        return;
    }
    const size_t whole = (bytes - before) / 64 * 64;
    memcpy(target, source, before);
    fx_stream(target + before, source + before, whole);
    memcpy(target + before + whole, source + before + whole, bytes - before - whole);
}
/* 64 numbers, scaled, to the beginning of a line. */
#ifdef FX_STREAMED
#if FX_STREAMED == 64
#define FX(name) _mm512_##name
#elif FX_STREAMED == 32
#define FX(name) _mm256_##name
#else
#define FX(name) _mm_##name
#endif
#define FX_STREAM_SCALED(name, T, s)                                                                   \
static inline void name(T* target, const T* source, T scale) {                                         \
    for (size_t i = 0; i < 64; i += FX_STREAMED / sizeof(T))                                           \
        FX(stream_##s)(target + i, FX(mul_##s)(FX(set1_##s)(scale), FX(loadu_##s)(source + i)));       \
}
#else
#define FX_STREAM_SCALED(name, T, s)                                                                   \
static inline void name(T* target, const T* source, T scale) {                                         \
    for (int i = 0; i < 64; i++) target[i] = scale * source[i];                                        \
}
#endif
FX_STREAM_SCALED(fx_stream_scaled_float, float, ps)
FX_STREAM_SCALED(fx_stream_scaled_double, double, pd)
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
/* Others have stored what lies before the line that begins with `next`. */
static inline void fx_follow(fx_sink* sink, char* next) { sink->next = next; }
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
/* 64 numbers, scaled and rounded to 16 bits, to the beginning of a line; a `scale` of nan may lose its payload. */
#if defined(__AVX512BW__)
#define FX_STREAM_NARROWED 1
static inline void fx_stream_scaled_half(fx_half* target, const float* source, float scale) {
    for (int i = 0; i < 64; i += 32) {
        const __m256i low = _mm512_cvtps_ph(_mm512_mul_ps(_mm512_set1_ps(scale), _mm512_loadu_ps(source + i)), 8);
        const __m256i high = _mm512_cvtps_ph(_mm512_mul_ps(_mm512_set1_ps(scale), _mm512_loadu_ps(source + i + 16)), 8);
        _mm512_stream_si512((void*)(target + i), _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
    }
}
static inline __m512i fx_rounded(__m512 x) { /* its upper halves are rounded to nearest even */
    const __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
}
static inline void fx_stream_scaled_bfloat16(fx_bfloat16* target, const float* source, float scale) {
    const __m512i upper = _mm512_setr_epi32( /* the second 16 bits of each number */
        0x30001, 0x70005, 0xB0009, 0xF000D, 0x130011, 0x170015, 0x1B0019, 0x1F001D,
        0x230021, 0x270025, 0x2B0029, 0x2F002D, 0x330031, 0x370035, 0x3B0039, 0x3F003D);
    for (int i = 0; i < 64; i += 32) {
        const __m512i low = fx_rounded(_mm512_mul_ps(_mm512_set1_ps(scale), _mm512_loadu_ps(source + i)));
        const __m512i high = fx_rounded(_mm512_mul_ps(_mm512_set1_ps(scale), _mm512_loadu_ps(source + i + 16)));
        _mm512_stream_si512((void*)(target + i), _mm512_permutex2var_epi16(low, upper, high));
    }
}
#else
#define FX_STREAM_NARROWED 0
static inline void fx_stream_scaled_half(fx_half* t, const float* s, float scale) { (void)t, (void)s, (void)scale; }
static inline void fx_stream_scaled_bfloat16(fx_bfloat16* t, const float* s, float scale) { (void)t, (void)s, (void)scale; }
#endif
static inline double fx_double(uint64_t b) { double x; memcpy(&x, &b, sizeof x); return x; }

/* exp(x - top) of 64 or 16 floats, where the level can look 16 numbers up in a register and scale by a power of two: 13
   instructions for each 16, not 15. exp(d) = 2**floor(n) * 2**(i / 16) * exp(r), n = floor(n) + i / 16, |r| <= ln2 / 32;
   within 1.1 ulp. Results below the smallest normal number are 0, as in `exp_float`. */
#ifdef __AVX512F__
#define FX_EXP_LANES 1
static inline __m512 fx_exp(__m512 d) {
    const __m512 roots = _mm512_setr_ps(
        1.0f, 1.04427373f, 1.09050775f, 1.13878858f, 1.18920708f, 1.24185777f, 1.29683959f, 1.35425556f,
        1.41421354f, 1.47682619f, 1.54221082f, 1.61049032f, 1.68179286f, 1.75625217f, 1.8340081f, 1.91520655f);
    const __m512 one = _mm512_set1_ps(1.0f), rounder = _mm512_set1_ps(786432.0f); /* 1.5 * 2**19 */
    const __m512 shifted = _mm512_fmadd_ps(d, _mm512_set1_ps(1.44269504f), rounder);
    const __m512 n = _mm512_sub_ps(shifted, rounder);
    const __m512 high = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145751953125f), d);
    const __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-06f), high);
    const __m512 root = _mm512_permutexvar_ps(_mm512_castps_si512(shifted), roots);
    const __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0.16667059f), r, _mm512_set1_ps(0.5000162f));
    const __m512 m = _mm512_fmadd_ps(_mm512_fmadd_ps(p, r, one), _mm512_mul_ps(r, root), root);
    const __mmask16 normal = _mm512_cmp_ps_mask(d, _mm512_set1_ps(-87.33654f), _CMP_NLT_UQ);
    return _mm512_maskz_scalef_ps(normal, m, n);
}
static inline void fx_exp_lanes(const float* x, const float* top, float* e) {
    for (int i = 0; i < 64; i += 16)
        _mm512_storeu_ps(e + i, fx_exp(_mm512_sub_ps(_mm512_loadu_ps(x + i), _mm512_loadu_ps(top + i))));
}
/* Rows, 16 numbers at a time, the last few by a mask. */
static inline __mmask16 fx_rest(ptrdiff_t classes) { return (__mmask16)((1u << classes % 16) - 1); }
static inline void fx_row_maxima(const float* x, ptrdiff_t classes, float* part) {
    const ptrdiff_t whole = classes / 16 * 16;
    __m512 top = _mm512_set1_ps(-INFINITY);
    for (ptrdiff_t j = 0; j < whole; j += 16) top = _mm512_max_ps(_mm512_loadu_ps(x + j), top);
    _mm512_storeu_ps(part, _mm512_mask_max_ps(top, fx_rest(classes), _mm512_maskz_loadu_ps(fx_rest(classes), x + whole), top));
}
static inline int fx_row_exponentials(
    const float* x, ptrdiff_t classes, float top, float* e, float* part, const char* ahead) {
    const __m512 one = _mm512_set1_ps(1.0f), tops = _mm512_set1_ps(top);
    const ptrdiff_t whole = classes / 16 * 16;
    __m512 sum = _mm512_setzero_ps();
    int ones = 0;
    for (ptrdiff_t j = 0; j < whole; j += 16) {
        const __m512 y = fx_exp(_mm512_sub_ps(_mm512_loadu_ps(x + j), tops));
        const __mmask16 others = _mm512_cmp_ps_mask(y, one, _CMP_NEQ_UQ); /* nan too */
        fx_prefetch(ahead + 4 * j);
        sum = _mm512_mask_add_ps(sum, others, sum, y);
        ones += __builtin_popcount(others);
        _mm512_storeu_ps(e + j, y);
    }
    const __mmask16 rest = fx_rest(classes);
    if (rest) {
        const __m512 y = fx_exp(_mm512_sub_ps(_mm512_maskz_loadu_ps(rest, x + whole), tops));
        const __mmask16 others = _mm512_mask_cmp_ps_mask(rest, y, one, _CMP_NEQ_UQ);
        sum = _mm512_mask_add_ps(sum, others, sum, y);
        ones += __builtin_popcount(others);
        _mm512_mask_storeu_ps(e + whole, rest, y);
    }
    _mm512_storeu_ps(part, sum);
    return (int)classes - ones;
}
static inline void fx_scale_row(const float* e, ptrdiff_t classes, float factor, float* result) {
    const __m512 factors = _mm512_set1_ps(factor);
    const ptrdiff_t whole = classes / 16 * 16;
    for (ptrdiff_t j = 0; j < whole; j += 16) _mm512_storeu_ps(result + j, _mm512_mul_ps(_mm512_loadu_ps(e + j), factors));
    const __m512 last = _mm512_mul_ps(_mm512_maskz_loadu_ps(fx_rest(classes), e + whole), factors);
    _mm512_mask_storeu_ps(result + whole, fx_rest(classes), last);
}
#else
#define FX_EXP_LANES 0
static inline void fx_exp_lanes(const float* x, const float* top, float* e) { (void)x, (void)top, (void)e; }
static inline void fx_row_maxima(const float* x, ptrdiff_t classes, float* part) { (void)x, (void)classes, (void)part; }
static inline int fx_row_exponentials(
    const float* x, ptrdiff_t classes, float top, float* e, float* part, const char* ahead) {
    (void)x, (void)classes, (void)top, (void)e, (void)part, (void)ahead;
    return 0;
}
static inline void fx_scale_row(const float* e, ptrdiff_t classes, float factor, float* result) {
    (void)e, (void)classes, (void)factor, (void)result;
}
#endif

/* The 4 x 4 transposition is the one thing that compilers do not make SIMD code of by themselves. */
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define FX_SHUFFLES 1
#endif
#endif
#ifdef FX_SHUFFLES
#define FX_TRANSPOSE4(name, T)                                                                         \
typedef T name##_vector __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T)), may_alias));    \
static inline void name(const T* source, ptrdiff_t from, T* target, ptrdiff_t to) {                    \
    const name##_vector a = *(const name##_vector*)source;                                             \
    const name##_vector b = *(const name##_vector*)(source + from);                                    \
    const name##_vector c = *(const name##_vector*)(source + 2 * from);                                \
    const name##_vector d = *(const name##_vector*)(source + 3 * from);                                \
    const name##_vector ab = __builtin_shufflevector(a, b, 0, 4, 1, 5);                                \
    const name##_vector AB = __builtin_shufflevector(a, b, 2, 6, 3, 7);                                \
    const name##_vector cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);                                \
    const name##_vector CD = __builtin_shufflevector(c, d, 2, 6, 3, 7);                                \
    *(name##_vector*)target = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);                             \
    *(name##_vector*)(target + to) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);                      \
    *(name##_vector*)(target + 2 * to) = __builtin_shufflevector(AB, CD, 0, 1, 4, 5);                  \
    *(name##_vector*)(target + 3 * to) = __builtin_shufflevector(AB, CD, 2, 3, 6, 7);                  \
}
#else
#define FX_TRANSPOSE4(name, T)                                                                         \
static inline void name(const T* source, ptrdiff_t from, T* target, ptrdiff_t to) {                    \
    for (int i = 0; i < 4; i++)                                                                        \
        for (int j = 0; j < 4; j++) target[j * to + i] = source[i * from + j];                         \
}
#endif
FX_TRANSPOSE4(fx_transpose4_float, float)
FX_TRANSPOSE4(fx_transpose4_double, double)

/* Of 4-byte numbers, as many rows at once as fill the level's registers: each 128-bit part is 4 x 4 of them. */
#if defined(__AVX512F__)
#define FX_ROWS 16
typedef __m512 fx_wide;
static inline fx_wide fx_load_rows(const float* p, ptrdiff_t rows4) {
    /* A masked broadcast is a load and a blend, an insertion would need the port of the shuffles. */
    fx_wide v = _mm512_castps128_ps512(_mm_loadu_ps(p));
    v = _mm512_mask_broadcast_f32x4(v, 0x00F0, _mm_loadu_ps(p + rows4));
    v = _mm512_mask_broadcast_f32x4(v, 0x0F00, _mm_loadu_ps(p + 2 * rows4));
    return _mm512_mask_broadcast_f32x4(v, 0xF000, _mm_loadu_ps(p + 3 * rows4));
}
#define FX_PART(v, i) ((i) == 0 ? _mm512_castps512_ps128(v) : _mm512_extractf32x4_ps(v, i))
#elif defined(__AVX2__)
#define FX_ROWS 8
typedef __m256 fx_wide;
static inline fx_wide fx_load_rows(const float* p, ptrdiff_t rows4) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + rows4), 1);
}
#define FX_PART(v, i) ((i) == 0 ? _mm256_castps256_ps128(v) : _mm256_extractf128_ps(v, 1))
#elif defined(__SSE2__)
#define FX_ROWS 4
typedef __m128 fx_wide;
static inline fx_wide fx_load_rows(const float* p, ptrdiff_t rows4) { return _mm_loadu_ps(p); }
#define FX_PART(v, i) (v)
#else
#define FX_ROWS 4
#endif
#ifdef FX
#define FX_LOW(a, b) FX(unpacklo_ps)(a, b)
#define FX_HIGH(a, b) FX(unpackhi_ps)(a, b)
#define FX_LOW2(a, b) FX(castpd_ps)(FX(unpacklo_pd)(FX(castps_pd)(a), FX(castps_pd)(b)))
#define FX_HIGH2(a, b) FX(castpd_ps)(FX(unpackhi_pd)(FX(castps_pd)(a), FX(castps_pd)(b)))
#define FX_TRANSPOSE_PARTS(a, b, c, d)                                                                 \
    const fx_wide ab = FX_LOW(a, b), AB = FX_HIGH(a, b), cd = FX_LOW(c, d), CD = FX_HIGH(c, d);        \
    a = FX_LOW2(ab, cd), b = FX_HIGH2(ab, cd), c = FX_LOW2(AB, CD), d = FX_HIGH2(AB, CD);
static inline void fx_rows_to_lanes(const float* rows, ptrdiff_t stride, float* lanes, ptrdiff_t step) {
    fx_wide a = fx_load_rows(rows, 4 * stride), b = fx_load_rows(rows + stride, 4 * stride);
    fx_wide c = fx_load_rows(rows + 2 * stride, 4 * stride), d = fx_load_rows(rows + 3 * stride, 4 * stride);
    FX_TRANSPOSE_PARTS(a, b, c, d)
    FX(storeu_ps)(lanes, a), FX(storeu_ps)(lanes + step, b);
    FX(storeu_ps)(lanes + 2 * step, c), FX(storeu_ps)(lanes + 3 * step, d);
}
static inline void fx_lanes_to_rows(const float* lanes, ptrdiff_t step, float* rows, ptrdiff_t stride) {
    fx_wide a = FX(loadu_ps)(lanes), b = FX(loadu_ps)(lanes + step);
    fx_wide c = FX(loadu_ps)(lanes + 2 * step), d = FX(loadu_ps)(lanes + 3 * step);
    FX_TRANSPOSE_PARTS(a, b, c, d)
#define FX_STORE_PARTS(i)                                                                              \
    _mm_storeu_ps(rows + 4 * (i) * stride, FX_PART(a, i));                                             \
    _mm_storeu_ps(rows + (4 * (i) + 1) * stride, FX_PART(b, i));                                       \
    _mm_storeu_ps(rows + (4 * (i) + 2) * stride, FX_PART(c, i));                                       \
    _mm_storeu_ps(rows + (4 * (i) + 3) * stride, FX_PART(d, i));
    FX_STORE_PARTS(0)
#if FX_ROWS > 4
    FX_STORE_PARTS(1)
#endif
#if FX_ROWS > 8
    FX_STORE_PARTS(2)
    FX_STORE_PARTS(3)
#endif
}
#else
#define fx_rows_to_lanes fx_transpose4_float
#define fx_lanes_to_rows fx_transpose4_float
#endif

#endif
