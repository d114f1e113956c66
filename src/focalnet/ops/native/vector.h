// What the kernels are made of: a vector of VLEN floats (the vector extensions of GCC and Clang), the functions they
// need of it, and how it comes from memory and goes back. Every kernel is written once over this; each instruction set
// compiles it with its own flags (see setup.py).
#pragma once
#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace {

typedef float vf __attribute__((vector_size(4 * VLEN), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * VLEN), aligned(4), may_alias));

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

// The normal distribution function, Phi(x) = 1/2 + x P(x^2) / Q(x^2) for |x| <= 5.6, beyond which it is 0 or 1 in float.
// A rational minimax fit, relative error of the second term 2e-8; benchmarks/fit_cdf.py found the coefficients. NaN is
// on neither side of a bound and stays NaN.
inline vf normal_cdf(vf x) {
  const vf limit = splat(5.6f);
  x = limit < x ? limit : x;
  x = -limit > x ? -limit : x;
  const vf t = x * x;
  const vf p = ((((2.230077252e-8f * t + 6.28867842e-6f) * t + 1.688396667e-4f) * t + 4.676796377e-3f) * t +
                3.392078164e-2f) * t + 0.398942272f;
  const vf q = ((((1.179674139e-6f * t + 7.33129903e-5f) * t + 1.884984986e-3f) * t + 2.867271272e-2f) * t +
                0.2516931224f) * t + 1.0f;
  return 0.5f + x * (p / q);
}

// exp(x) for x <= 0: x = n ln 2 + r, and the Taylor series of exp(r) on |r| <= ln 2 / 2.
inline vf exp_negative(vf x) {
  const vf least = splat(-87.0f);
  x = least > x ? least : x;
  const vi n = __builtin_convertvector(x * 1.44269504f - 0.5f, vi);
  const vf whole = __builtin_convertvector(n, vf);
  const vf r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts
  vf p = splat(1.0f / 720);
  for (float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = p * r + c;
  return p * (vf)((n + 127) << 23);
}

inline vf gelu(vf x) { return x * normal_cdf(x); }
// The slope of GELU, from Phi(x) where that is known already.
inline vf gelu_slope(vf x, vf cdf) { return cdf + x * 0.39894228f * exp_negative(-0.5f * x * x); }

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

inline vf load(const float* from) { return *(const vf*)from; }
inline vf load(const bfloat16* from) { return (vf)(__builtin_convertvector(*(const vh*)from, vu) << 16); }
inline void store(float* to, vf v) { *(vf*)to = v; }
inline void store(bfloat16* to, vf v) {
  const vu bits = (vu)v, nan = (vu)(v != v);
  const vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, quiet = (bits >> 16) | 0x40;
  *(vh*)to = __builtin_convertvector((rounded & ~nan) | (quiet & nan), vh);
}
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

}  // namespace
