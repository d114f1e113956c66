// Row-wise operations: layer norm, GELU, gradients of biases, and inputs of int8 products. They are bound by memory bandwidth, so each tensor is
// read and written once, and gradients that are sums over rows are accumulated in the same pass. Norms process rows in
// groups, because each step of a row depends on a sum of the step before, but not on other rows.

#include "rows.h"
#include "scratch.h"
#include "vector.h"

#include <algorithm>
#include <cmath>

namespace {

// Levels of a quantized row. The sum with 1.5 * 2^23 rounds to the nearest integer, ties to even, and its last bits are
// that integer. NaN becomes the zero point.
struct Levels {
  const vf levels, lowest, highest;
  const vu zero_point;
  Levels(const RowsJob& job)
      : levels(splat(job.levels)), lowest(splat(-(float)job.zero_point)), highest(splat(255.0f - (float)job.zero_point)),
        zero_point((uint32_t)job.zero_point + vu{}) {}
  vb operator()(vf y) const {
    vf level = y * levels;
    level = level < lowest ? lowest : level;
    level = level > highest ? highest : level;
    return __builtin_convertvector((vu)(level + 12582912.0f) + zero_point, vb);
  }
};

// Rows in a group; fewer for long rows, since the values of a group must stay in the L1 cache.
const int GROUP = 4, GROUP_VECTORS = 48;

// Sum over n vectors in four independent accumulators.
template <class Term> inline vf total(int64_t n, Term term) {
  vf accumulators[4] = {};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (int s = 0; s < 4; ++s) accumulators[s] += term(i + s);
  for (; i < n; ++i) accumulators[0] += term(i);
  return (accumulators[0] + accumulators[1]) + (accumulators[2] + accumulators[3]);
}

// Kernels copy members to local variables where it matters for speed: the compiler must assume that a store to a tensor
// may change any member.
template <class T> struct Rows {
  const RowsJob& job;
  const int64_t C, n;  // vectors of a row
  const int last;      // lanes of the last one
  const float share;   // of each in a mean
  vf *const weight, *const bias, *const sum0, *const sum1, *const values, *const grads;

  static int64_t vectors(const RowsJob& job) { return (4 + 2 * GROUP) * ((job.C + VLEN - 1) / VLEN); }

  Rows(const RowsJob& job, Scratch& scratch)
      : job(job), C(job.C), n((C + VLEN - 1) / VLEN), last((int)(C - (n - 1) * VLEN)), share(1.0f / (float)C),
        weight(scratch.take(n)), bias(scratch.take(n)), sum0(scratch.take(n)), sum1(scratch.take(n)),
        values(scratch.take(GROUP * n)), grads(scratch.take(GROUP * n)) {
    if (job.weight) read(job.weight, weight);
    if (job.bias) read(job.bias, bias);
  }
  // Reads a row as vectors; the last one is padded with zeros.
  template <class S> void read(const S* from, vf* to) const {
    const int64_t n = this->n;
    for (int64_t i = 0; i + 1 < n; ++i) to[i] = load(from + i * VLEN);
    to[n - 1] = load(from + (n - 1) * VLEN, last);
  }
  template <class S, class Value> void write(S* to, Value value) const {
    const int64_t n = this->n;
    for (int64_t i = 0; i + 1 < n; ++i) store(to + i * VLEN, value(i));
    store(to + (n - 1) * VLEN, value(n - 1), last);
  }
  const T* at(const void* tensor, int64_t row) const { return (const T*)tensor + row * C; }
  T* at(void* tensor, int64_t row) const { return (T*)tensor + row * C; }

  // Calls step with the index and the number of lanes of each vector of a row.
  template <class Step> void each(Step step) const {
    const int64_t n = this->n;
    for (int64_t i = 0; i + 1 < n; ++i) step(i, VLEN);
    step(n - 1, last);
  }

  void column_sum(int64_t first, int count) {
    vf* const into = sum0;
    for (int64_t row = first; row < first + count; ++row) {
      const T* const x = at(job.x, row);
      each([=](int64_t i, int lanes) { into[i] += load(x + i * VLEN, lanes); });
    }
  }

  void gelu(int64_t first, int count) {
    for (int64_t row = first; row < first + count; ++row) {
      const T* const x = at(job.x, row);
      T* const out = at(job.out, row);
      each([=](int64_t i, int lanes) { store(out + i * VLEN, ::gelu(load(x + i * VLEN, lanes)), lanes); });
    }
  }

  void gelu_backward(int64_t first, int count) {
    vf* const into = sum0;
    for (int64_t row = first; row < first + count; ++row) {
      const T *const x = at(job.x, row), *const grad = at(job.grad, row);
      T *const out = at(job.out, row), *const gelu_out = job.gelu_out ? at(job.gelu_out, row) : nullptr;
      each([=](int64_t i, int lanes) {
        const vf value = load(x + i * VLEN, lanes);
        const vf dx = load(grad + i * VLEN, lanes) * gelu_slope(value);
        into[i] += dx;
        store(out + i * VLEN, dx, lanes);
        if (gelu_out) store(gelu_out + i * VLEN, ::gelu(value), lanes);
      });
    }
  }

  void quantize(int64_t first, int count) {
    const Levels levels(job);
    for (int64_t row = first; row < first + count; ++row) {
      const T* const x = at(job.x, row);
      uint8_t* const out = (uint8_t*)job.out + row * C;
      each([=](int64_t i, int lanes) { store(out + i * VLEN, levels(load(x + i * VLEN, lanes)), lanes); });
    }
  }

  void quantize_gelu(int64_t first, int count) {
    const Levels levels(job);
    for (int64_t row = first; row < first + count; ++row) {
      const T* const x = at(job.x, row);
      uint8_t* const out = (uint8_t*)job.out + row * C;
      each([=](int64_t i, int lanes) { store(out + i * VLEN, levels(::gelu(load(x + i * VLEN, lanes))), lanes); });
    }
  }

  void quantize_product(int64_t first, int count) {
    const Levels levels(job);
    for (int64_t row = first; row < first + count; ++row) {
      const T *const x = (const T*)job.x + row * job.x_stride, *const factor = at(job.factor, row);
      uint8_t* const out = (uint8_t*)job.out + row * C;
      each([=](int64_t i, int lanes) {
        store(out + i * VLEN, levels(load(x + i * VLEN, lanes) * load(factor + i * VLEN, lanes)), lanes);
      });
    }
  }

  void norm_forward(int64_t first, int count) {
    normalize(first, count, [this](int64_t row, auto value) { write(at(job.out, row), value); });
  }

  void quantize_norm(int64_t first, int count) {
    const Levels levels(job);
    normalize(first, count, [this, levels](int64_t row, auto value) {
      write((uint8_t*)job.out + row * C, [=](int64_t i) { return levels(value(i)); });
    });
  }

  // Calls output with the index of each row and a function that returns its normalized vectors.
  template <class Output> void normalize(int64_t first, int count, Output output) {
    const int64_t n = this->n;
    const vf *const weight = this->weight, *const bias = this->bias;
    float mean[GROUP], scale[GROUP];
    for (int r = 0; r < count; ++r) read(at(job.x, first + r), values + r * n);
    for (int r = 0; r < count; ++r) {
      vf* const value = values + r * n;
      mean[r] = sum(total(n, [=](int64_t i) { return value[i]; })) * share;
      for (int i = last; i < VLEN; ++i) value[n - 1][i] = mean[r];  // so that padding does not add to the variance
    }
    for (int r = 0; r < count; ++r) {
      const vf *const value = values + r * n, m = splat(mean[r]);
      scale[r] = sum(total(n, [=](int64_t i) {
        const vf d = value[i] - m;
        return d * d;
      })) * share;
    }
    for (int r = 0; r < count; ++r) scale[r] = 1.0f / std::sqrt(scale[r] + job.eps);
    for (int r = 0; r < count; ++r) {
      const vf *const value = values + r * n, m = splat(mean[r]), s = splat(scale[r]);
      output(first + r, [=](int64_t i) { return (value[i] - m) * s * weight[i] + bias[i]; });
    }
    for (int r = 0; job.moments && r < count; ++r) {
      job.moments[2 * (first + r)] = mean[r];
      job.moments[2 * (first + r) + 1] = scale[r];
    }
  }

  // x^ is the normalized row and g the gradient times the weight: dx = scale (g - mean(g) - x^ mean(g x^)).
  void norm_backward(int64_t first, int count) {
    const int64_t n = this->n;
    vf *const dw = sum0, *const db = sum1, *const residual = bias;
    const vf* const weight = this->weight;
    float mean_g[GROUP], mean_gx[GROUP];
    for (int r = 0; r < count; ++r) {
      read(at(job.x, first + r), values + r * n);
      read(at(job.grad, first + r), grads + r * n);
    }
    for (int r = 0; r < count; ++r) {
      vf *const value = values + r * n, *const grad = grads + r * n;
      const vf mean = splat(job.moments[2 * (first + r)]), scale = splat(job.moments[2 * (first + r) + 1]);
      mean_g[r] = sum(total(n, [=](int64_t i) {
        const vf normed = (value[i] - mean) * scale, g = grad[i];
        dw[i] += g * normed;
        db[i] += g;
        value[i] = normed;
        return grad[i] = g * weight[i];
      })) * share;
    }
    for (int r = 0; r < count; ++r) {
      const vf *const value = values + r * n, *const grad = grads + r * n;
      mean_gx[r] = sum(total(n, [=](int64_t i) { return grad[i] * value[i]; })) * share;
    }
    for (int r = 0; r < count; ++r) {
      const vf *const value = values + r * n, *const grad = grads + r * n;
      const vf one = splat(mean_g[r]), x = splat(mean_gx[r]), scale = splat(job.moments[2 * (first + r) + 1]);
      if (job.residual_grad) {
        read(at(job.residual_grad, first + r), residual);
        write(at(job.out, first + r), [=](int64_t i) { return (grad[i] - one - value[i] * x) * scale + residual[i]; });
      } else
        write(at(job.out, first + r), [=](int64_t i) { return (grad[i] - one - value[i] * x) * scale; });
    }
  }
};

// Returns 0, or 1 when there was not enough memory.
template <class T, void (Rows<T>::*kernel)(int64_t, int)> int by_parts(const RowsJob& job, int sums) {
  const int64_t part = FOCALNET_ROWS_OF_A_PART, parts = (job.rows + part - 1) / part;
  int failed = 0;
  const int threads = (int)std::max<int64_t>(1, std::min<int64_t>(job.threads, parts));
#pragma omp parallel for schedule(static) num_threads(threads) reduction(| : failed)
  for (int64_t p = 0; p < parts; ++p) {
    static thread_local Scratch scratch;
    if (!scratch.reset(Rows<T>::vectors(job))) {
      failed = 1;
      continue;
    }
    Rows<T> rows(job, scratch);
    for (vf* into : {rows.sum0, rows.sum1}) std::memset(into, 0, rows.n * sizeof(vf));
    const int64_t end = std::min((p + 1) * part, job.rows);
    const int64_t group = std::max<int64_t>(1, std::min<int64_t>(GROUP, GROUP_VECTORS / rows.n));
    for (int64_t row = p * part; row < end; row += group) (rows.*kernel)(row, (int)std::min(group, end - row));
    const vf* sums_of[] = {rows.sum0, rows.sum1};
    for (int i = 0; i < sums; ++i)
      rows.write(job.sums + (p * sums + i) * job.C, [=](int64_t at) { return sums_of[i][at]; });
  }
  return failed;
}

template <class T> int run(const RowsJob& job, int kernel) {
  switch (kernel) {
    case COLUMN_SUM: return by_parts<T, &Rows<T>::column_sum>(job, 1);
    case GELU: return by_parts<T, &Rows<T>::gelu>(job, 0);
    case GELU_BACKWARD: return by_parts<T, &Rows<T>::gelu_backward>(job, 1);
    case NORM_FORWARD: return by_parts<T, &Rows<T>::norm_forward>(job, 0);
    case NORM_BACKWARD: return by_parts<T, &Rows<T>::norm_backward>(job, 2);
    case QUANTIZE: return by_parts<T, &Rows<T>::quantize>(job, 0);
    case QUANTIZE_GELU: return by_parts<T, &Rows<T>::quantize_gelu>(job, 0);
    case QUANTIZE_NORM: return by_parts<T, &Rows<T>::quantize_norm>(job, 0);
    default: return by_parts<T, &Rows<T>::quantize_product>(job, 0);
  }
}

}  // namespace

int VARIANT(rows)(const RowsJob* job, int kernel, int bf16) {
  return bf16 ? run<bfloat16>(*job, kernel) : run<float>(*job, kernel);
}
