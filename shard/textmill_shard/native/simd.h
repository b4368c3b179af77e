// Vectors of sixteen 32-bit lanes through compiler extensions: one source for AVX-512, AVX2 and plain CPUs.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

typedef float v16f __attribute__((vector_size(64)));
typedef int32_t v16i __attribute__((vector_size(64)));
typedef uint32_t v16u __attribute__((vector_size(64)));
typedef uint16_t v16h __attribute__((vector_size(32)));
typedef float v16f_any __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t v16u_any __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t v16h_any __attribute__((vector_size(32), aligned(2), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE v16f load_f(const float *from) { return (v16f) * (const v16f_any *)from; }
INLINE void store_f(float *to, v16f x) { *(v16f_any *)to = (v16f_any)x; }
INLINE v16u load_u(const uint32_t *from) { return (v16u) * (const v16u_any *)from; }
INLINE void store_u(uint32_t *to, v16u x) { *(v16u_any *)to = (v16u_any)x; }
INLINE v16f splat(float x) { return (v16f){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
INLINE v16f pick(v16i is_first, v16f first, v16f second) {
  return (v16f)(((v16i)first & is_first) | ((v16i)second & ~is_first));
}
INLINE v16f larger(v16f a, v16f b) {
#if defined(__AVX512F__)
  return (v16f)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return pick(a > b, a, b);
#endif
}

// Fixed order, so that a row gives the same sum in any batch.
INLINE float sum_lanes(v16f x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  float lane[16];
  store_f(lane, x);
  for (int width = 8; width; width >>= 1)
    for (int i = 0; i < width; i++) lane[i] += lane[i + width];
  return lane[0];
#endif
}
// The sums of the lanes of eight vectors.
INLINE void sum_lanes_of_8(const v16f x[8], float to[8]) {
#if defined(__AVX512F__)
  __m512 fours[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {  // lanes of 128 bits: what is left of four vectors
    const __m512 a = (__m512)x[4 * i], b = (__m512)x[4 * i + 1], c = (__m512)x[4 * i + 2], d = (__m512)x[4 * i + 3];
    const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    const __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    fours[i] = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  }
  __m512 pairs = _mm512_add_ps(_mm512_unpacklo_ps(fours[0], fours[1]), _mm512_unpackhi_ps(fours[0], fours[1]));
  pairs = _mm512_add_ps(pairs, _mm512_permute_ps(pairs, 0x4e));  // each lane of 128 bits: vector i and vector i + 4
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0);
  _mm256_storeu_ps(to, _mm512_castps512_ps256(_mm512_permutexvar_ps(order, pairs)));
#else
  for (int i = 0; i < 8; i++) to[i] = sum_lanes(x[i]);
#endif
}
INLINE float max_lanes(v16f x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)x);
#else
  float lane[16];
  store_f(lane, x);
  for (int i = 1; i < 16; i++) lane[0] = lane[i] > lane[0] ? lane[i] : lane[0];
  return lane[0];
#endif
}

// e^x within 2 units in the last place; 0 below -87, the largest finite power above 88.
INLINE v16f exp_v(v16f x) {
  const v16f low = splat(-87.0f), high = splat(88.0f), shift = splat(12582912.0f);
#if defined(__AVX512F__)
  const __mmask16 not_zero = _mm512_cmp_ps_mask((__m512)x, (__m512)low, _CMP_NLT_UQ);
  x = (v16f)_mm512_min_ps((__m512)high, (__m512)x);  // in this order a NaN stays one
#else
  const v16i is_zero = x < low;
  x = pick(x > high, high, pick(is_zero, low, x));
#endif
  const v16f shifted = x * splat(1.44269504f) + shift;  // the rounded exponent stands in the low bits
  const v16f exponent = shifted - shift;
  v16f r = x - exponent * splat(0.693359375f);
  r = r - exponent * splat(-2.12194440e-4f);
  v16f p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  p = p * r * r + r + splat(1.0f);
#if defined(__AVX512F__)
  return (v16f)_mm512_maskz_scalef_ps(not_zero, (__m512)p, (__m512)exponent);
#else
  const v16i scaled = (v16i)p + (((v16i)shifted - (v16i)shift) << 23);
  return pick(is_zero, splat(0.0f), (v16f)scaled);
#endif
}
INLINE v16f tanh_v(v16f x) {  // through e^2|x|; near 0 the odd series keeps the relative error small
  const v16i is_negative = x < splat(0.0f);
  const v16f size = pick(is_negative, -x, x);
  const v16f grown = exp_v(size + size);
  const v16f far = splat(1.0f) - splat(2.0f) / (grown + splat(1.0f));
  const v16f square = size * size;
  const v16f near = size * (splat(1.0f) + square * (splat(-1.0f / 3) + square * splat(2.0f / 15)));
  const v16f result = pick(size < splat(0.06f), near, far);
  return pick(is_negative, -result, result);
}

// bfloat16 is the upper half of a float; rounded to nearest even.
INLINE v16f widen_bf16(const uint16_t *from) {
  const v16h half = (v16h) * (const v16h_any *)from;
  return (v16f)(__builtin_convertvector(half, v16u) << 16);
}
INLINE void narrow_bf16(uint16_t *to, v16f x) {
#if defined(__AVX512BF16__)
  *(v16h_any *)to = (v16h_any)_mm512_cvtneps_pbh((__m512)x);
#else
  const v16u bits = (v16u)x;
  const v16u rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const v16u nan = (bits >> 16) | 0x40;
  const v16i is_nan = x != x;
  *(v16h_any *)to = (v16h_any)__builtin_convertvector((rounded & (v16u)~is_nan) | (nan & (v16u)is_nan), v16h);
#endif
}
// acc + w.low * x.low + w.high * x.high, lane by lane
INLINE v16f dot_bf16(v16f acc, v16u w, uint32_t x) {
#if defined(__AVX512BF16__)
  return (v16f)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)_mm512_set1_epi32((int)x));
#else
  union { uint32_t bits; float value; } low = {x << 16}, high = {x & 0xffff0000u};
  acc += (v16f)(w << 16) * splat(low.value);
  return acc + (v16f)(w & 0xffff0000u) * splat(high.value);
#endif
}
// acc + w * x, word by word of both
INLINE v16f dot_words_bf16(v16f acc, v16u w, v16u x) {
#if defined(__AVX512BF16__)
  return (v16f)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)x);
#else
  acc += (v16f)(w << 16) * (v16f)(x << 16);
  return acc + (v16f)(w & 0xffff0000u) * (v16f)(x & 0xffff0000u);
#endif
}
INLINE v16f dot_words_f32(v16f acc, v16u w, v16u x) { return acc + (v16f)w * (v16f)x; }
INLINE v16f dot_f32(v16f acc, v16u w, uint32_t x) {
  union { uint32_t bits; float value; } scalar = {x};
  return acc + (v16f)w * splat(scalar.value);
}
