// What the kernels are made of: a vector of VLEN floats (the vector extensions of GCC and Clang), the functions they
// need of it, and how it comes from memory and goes back. Every kernel is written once over this; each instruction set
// compiles it with its own flags (see setup.py).
#pragma once
#include <cstdint>
#include <cstring>
#if VLEN > 4
#include <immintrin.h>
#endif

namespace {

typedef float vf __attribute__((vector_size(4 * VLEN), aligned(4), may_alias));

inline vf splat(float x) { return x - vf{}; }

template <int N> struct Lanes {
  typedef float type __attribute__((vector_size(4 * N)));
};
// By halves: a few steps in registers instead of one for each number.
template <int N> inline float sum(typename Lanes<N>::type v) {
  if constexpr (N == 2) return v[0] + v[1];
  else {
    typename Lanes<N / 2>::type low, high;
    std::memcpy(&low, &v, sizeof low);
    std::memcpy(&high, (const char*)&v + sizeof low, sizeof high);
    return sum<N / 2>(low + high);
  }
}
inline float sum(vf v) { return sum<VLEN>((typename Lanes<VLEN>::type)v); }

// ---- GELU ----
//
// The normal distribution function Phi and the slope of GELU as 1/2 + x P(x^2) / Q(x^2), up to a bound beyond which they are
// 0 or 1 in float. Rational minimax fits, relative error of the second term 2e-8; benchmarks/fit_gelu.py found them.

template <class... Others> inline vf polynomial(vf t, float highest, Others... others) {
  vf p = splat(highest);
  ((p = p * t + others), ...);
  return p;
}

// NaN stays NaN. One instruction for each bound, of which GCC makes comparisons and masks if left to itself.
inline vf bounded(vf x, float limit) {
  const vf most = splat(limit);
#if VLEN == 16
  return (vf)_mm512_max_ps((__m512)(-most), _mm512_min_ps((__m512)most, (__m512)x));
#elif VLEN == 8
  return (vf)_mm256_max_ps((__m256)(-most), _mm256_min_ps((__m256)most, (__m256)x));
#else
  x = most < x ? most : x;
  return -most > x ? -most : x;
#endif
}

inline vf normal_cdf(vf x) {
  const vf u = bounded(x, 5.6f), t = u * u;
  const vf p = polynomial(t, 2.230077252e-8f, 6.28867842e-6f, 1.688396667e-4f, 4.676796377e-3f, 3.392078164e-2f,
                          0.398942272f);
  const vf q = polynomial(t, 1.179674139e-6f, 7.33129903e-5f, 1.884984986e-3f, 2.867271272e-2f, 0.2516931224f, 1.0f);
  return x < -5.6f ? vf{} : 0.5f + u * (p / q);  // without what rounding leaves of 0, which GELU multiplies by x
}

inline vf gelu(vf x) { return x * normal_cdf(x); }

inline vf gelu_slope(vf x) {
  const vf u = bounded(x, 6.2f), t = u * u;
  const vf p = polynomial(t, 1.839620314e-8f, 1.099329211e-6f, 3.419242302e-5f, 2.686207469e-4f, 1.371868816e-2f,
                          -1.871247531e-2f, 0.797884551f);
  const vf q = polynomial(t, 1.356676344e-9f, 3.875136217e-7f, 1.120323547e-5f, 2.620026715e-4f, 4.161583725e-3f,
                          4.548836476e-2f, 0.3098804448f, 1.0f);
  return 0.5f + u * (p / q);
}

// ---- memory: float or bfloat16 there, float here; the last block of channels may be narrower ----

struct bfloat16 {
  uint16_t bits;
};
inline float widen(float x) { return x; }
inline float widen(bfloat16 x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
inline void narrow(float x, float* out) { *out = x; }
inline void narrow(float x, bfloat16* out) {  // to nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  out->bits = x != x ? (bits >> 16) | 0x40 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
typedef uint16_t vh __attribute__((vector_size(2 * VLEN), aligned(2), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * VLEN), aligned(4), may_alias));

typedef uint8_t vb __attribute__((vector_size(VLEN), aligned(1), may_alias));

inline vf load(const float* from) { return *(const vf*)from; }
inline vf load(const bfloat16* from) { return (vf)(__builtin_convertvector(*(const vh*)from, vu) << 16); }
inline void store(float* to, vf v) { *(vf*)to = v; }
#ifdef __AVX512BF16__
inline void store(bfloat16* to, vf v) { *(vh*)to = (vh)_mm512_cvtneps_pbh((__m512)v); }
#else
inline void store(bfloat16* to, vf v) {
  const vu bits = (vu)v, nan = (vu)(v != v);
  const vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, quiet = (bits >> 16) | 0x40;
  *(vh*)to = __builtin_convertvector((rounded & ~nan) | (quiet & nan), vh);
}
#endif
template <class T> inline vf load(const T* from, int lanes) {
  if (lanes == VLEN) return load(from);
  vf v = {};
  for (int i = 0; i < lanes; ++i) v[i] = widen(from[i]);
  return v;
}
template <class T> inline void store(T* to, vf v, int lanes) {
  if (lanes == VLEN) return store(to, v);
  for (int i = 0; i < lanes; ++i) narrow(v[i], to + i);
}

inline void store(uint8_t* to, vb v) { *(vb*)to = v; }
inline void store(uint8_t* to, vb v, int lanes) {
  if (lanes == VLEN) return store(to, v);
  for (int i = 0; i < lanes; ++i) to[i] = v[i];
}

}  // namespace
