// The fused focal context, forward and backward.
//
// A task is one image and one block of VLEN channels. What lies between its input and its output stays in the
// caches of one core: memory sees these two only, no task waits for another, and every sum has a fixed order.
// Most time goes into moving numbers, not into arithmetic; hence rings of rows, as few planes as can be, and
// outputs that are asked for ahead of their time. The backward pass keeps nothing from the forward pass but its
// inputs and computes the rest again.

#include "focal_context.h"
#include "scratch.h"
#include "vector.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace {

// ---- planes of vectors, with room for the zeros around them that a convolution needs ----

struct Plane {
  vf* data;
  int64_t width;  // of a row, padding included
  int64_t pad;
  int64_t mask = -1;  // a ring keeps the last mask + 1 rows, a power of two; -1 keeps all
  vf* row(int64_t y) const { return data + ((y + pad) & mask) * width + pad; }
};

int64_t plane_size(int64_t H, int64_t W, int64_t pad) { return (H + 2 * pad) * (W + 2 * pad); }
int64_t ring_rows(int64_t pad) {
  int64_t rows = 1;
  while (rows < 2 * pad + 1) rows *= 2;
  return rows;
}
int64_t ring_size(int64_t W, int64_t pad) { return ring_rows(pad) * (W + 2 * pad); }

void zero(vf* from, vf* to) {
  if (from < to) std::memset(from, 0, (to - from) * sizeof(vf));
}

struct Planes : Scratch {
  Plane plane(int64_t H, int64_t W, int64_t pad) {
    const int64_t size = plane_size(H, W, pad);
    Plane plane{take(size), W + 2 * pad, pad};
    zero(plane.data, plane.row(0));
    for (int64_t y = 0; y < H; ++y) zero(plane.row(y) + W, plane.row(y + 1));  // right of this row, left of the next
    zero(plane.row(H), plane.data + size);
    return plane;
  }
  Plane ring(int64_t W, int64_t pad) {
    const int64_t size = ring_size(W, pad);
    Plane ring{take(size), W + 2 * pad, pad, ring_rows(pad) - 1};
    zero(ring.data, ring.data + size);
    return ring;
  }
};

// ---- depthwise convolution, stride 1, of a padded plane ----

// N neighbouring outputs: each input of a row is loaded once and used by every output it reaches.
template <int K, int N> inline void convolve_run(const Plane& in, const vf* w, int64_t y, int64_t x, vf* out) {
  vf acc[N];
#pragma GCC unroll 16  // or GCC takes them for memory to be filled, for more time than the smallest kernels take
  for (int i = 0; i < N; ++i) acc[i] = vf{};
  for (int ky = 0; ky < K; ++ky) {
    const vf* row = in.row(y + ky - K / 2) + x - K / 2;
    vf wk[K];
    for (int kx = 0; kx < K; ++kx) wk[kx] = w[ky * K + kx];
#pragma GCC unroll 32
    for (int j = 0; j < N + K - 1; ++j)
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i)
        if (j - i >= 0 && j - i < K) acc[i] += row[j] * wk[j - i];
  }
  for (int i = 0; i < N; ++i) out[i] = acc[i];
}

// A row in runs of N outputs; the last one reaches back over outputs that are there already instead of being shorter,
// which would be slower than computing them twice.
template <int K, int N> void convolve_runs(const Plane& in, const vf* w, int64_t y, int64_t W, vf* out) {
  for (int64_t next = 0; next < W; next += N) {
    const int64_t x = std::min(next, W - N);
    convolve_run<K, N>(in, w, y, x, out + x);
  }
}

template <int K> void convolve_row(const Plane& in, const vf* w, int64_t y, int64_t W, vf* out) {
  const auto runs = W >= 8 ? convolve_runs<K, 8> : W >= 4 ? convolve_runs<K, 4> : convolve_runs<K, 1>;
  runs(in, w, y, W, out);
}

// dw[ky][kx] += sum over x of da[x] in(y + ky - K / 2, x + kx - K / 2); row by row, so that rounding stays small.
template <int K> void kernel_gradient_row(const Plane& in, const vf* da, int64_t y, int64_t W, vf* dw) {
  for (int ky = 0; ky < K; ++ky) {
    const vf* row = in.row(y + ky - K / 2) - K / 2;
    vf acc[K] = {};
    for (int64_t x = 0; x < W; ++x)
#pragma GCC unroll 16
      for (int kx = 0; kx < K; ++kx) acc[kx] += da[x] * row[x + kx];
    for (int kx = 0; kx < K; ++kx) dw[ky * K + kx] += acc[kx];
  }
}

typedef void (*Convolve)(const Plane&, const vf*, int64_t, int64_t, vf*);
typedef void (*KernelGradient)(const Plane&, const vf*, int64_t, int64_t, vf*);
#define BY_SIZE(FUNCTION) \
  {FUNCTION<1>, FUNCTION<3>, FUNCTION<5>, FUNCTION<7>, FUNCTION<9>, FUNCTION<11>, FUNCTION<13>, FUNCTION<15>}
const Convolve convolve[] = BY_SIZE(convolve_row);
const KernelGradient kernel_gradient[] = BY_SIZE(kernel_gradient_row);

// ---- the tasks ----

template <class T> struct Task {
  const FocalContextJob& job;
  Planes& scratch;
  const int64_t b, block, H, W, C;
  const int64_t step;  // from the gates of a pixel to those of the next
  const int L, lanes;

  Task(const FocalContextJob& job, Planes& scratch, int64_t b, int64_t block)
      : job(job), scratch(scratch), b(b), block(block), H(job.H), W(job.W), C(job.C), step(job.gates_stride[2]),
        L(job.L), lanes((int)std::min<int64_t>(VLEN, job.C - block * VLEN)) {}

  int64_t pad(int level) const { return level < L ? job.kernels[level] / 2 : 0; }  // of the input of a level
  const T* gates_row(int64_t y, int level) const {
    return (const T*)job.gates + b * job.gates_stride[0] + y * job.gates_stride[1] + level;
  }
  T* out_row(int64_t y) const { return (T*)job.out + (b * H + y) * W * C + block * VLEN; }

  void read_context_row(int64_t y, vf* row) const {
    const int64_t* s = job.context_stride;
    const T* from = (const T*)job.context + b * s[0] + y * s[1] + block * VLEN;
    for (int64_t x = 0; x < W; ++x) {  // the next row is asked for ahead of its time: a vector may lie in two lines
      __builtin_prefetch(from + x * s[2] + s[1]);
      __builtin_prefetch(from + x * s[2] + s[1] + VLEN - 1);
      row[x] = load(from + x * s[2], lanes);
    }
  }
  Plane read_context() {
    const Plane plane = scratch.plane(H, W, pad(0));
    for (int64_t y = 0; y < H; ++y) read_context_row(y, plane.row(y));
    return plane;
  }
  // The level's kernel as vectors; turned by half a turn for the transposed convolution.
  vf* read_kernel(int level, bool turned) {
    const int64_t k2 = (int64_t)job.kernels[level] * job.kernels[level];
    vf* kernel = scratch.take(k2);
    zero(kernel, kernel + k2);
    for (int lane = 0; lane < lanes; ++lane) {
      const float* from = job.weights[level] + (block * VLEN + lane) * k2;
      for (int64_t i = 0; i < k2; ++i) ((float*)kernel)[(turned ? k2 - 1 - i : i) * VLEN + lane] = from[i];
    }
    return kernel;
  }
  vf sum_of(const vf* row) const {
    vf in_row = {};
    for (int64_t x = 0; x < W; ++x) in_row += row[x];
    return in_row;
  }

  static int64_t forward_vectors(const FocalContextJob& job) {
    int64_t vectors = plane_size(job.H, job.W, 0) + job.W;
    for (int l = 0; l < job.L; ++l)
      vectors += ring_size(job.W, job.kernels[l] / 2) + (int64_t)job.kernels[l] * job.kernels[l];
    return vectors;
  }

  // All levels advance together, row by row: a row of a level is computed as soon as the rows that its kernel reaches
  // are there. Only the gated sum is kept whole, until the mean is known; what lies between stays in the nearest cache.
  void forward() {
    const Plane total = scratch.plane(H, W, 0);
    vf* row = scratch.take(W);     // the output of the last level
    Plane z[FOCALNET_MAX_LEVELS];  // the input of each
    const vf* kernel[FOCALNET_MAX_LEVELS];
    int64_t behind = 0;  // rows that the last level is behind the input
    for (int l = 0; l < L; ++l) {
      z[l] = scratch.ring(W, pad(l));
      kernel[l] = read_kernel(l, false);
      behind += pad(l);
    }
    vf everything = {};
    for (int64_t newest = 0; newest < H + behind; ++newest) {
      int64_t y = newest;
      vf* next = L ? z[0].row(y) : row;
      y < H ? read_context_row(y, next) : zero(next, next + W);
      if (!L) {
        zero(total.row(y), total.row(y + 1));
        everything += sum_of(next);
      }
      for (int l = 0; l < L && (y -= pad(l)) >= 0; ++l) {
        next = l + 1 < L ? z[l + 1].row(y) : row;
        if (y >= H) {
          zero(next, next + W);
          continue;
        }
        convolve[job.kernels[l] / 2](z[l], kernel[l], y, W, next);
        const vf in_row = gather(l, y, next, total.row(y));
        if (l + 1 == L) everything += in_row;
      }
    }
    const vf everywhere = gelu(everything / (float)(H * W));
    for (int64_t y = 0; y < H; ++y) {
      const vf* levels = total.row(y);
      const T* gates = gates_row(y, L);
      T* out = out_row(y);
      for (int64_t x = 0; x < W; ++x) store(out + x * C, levels[x] + everywhere * widen(gates[x * step]), lanes);
    }
  }

  // GELU of a level's row, in place, and its gated sum; returns what the row adds up to.
  vf gather(int l, int64_t y, vf* row, vf* total) const {
    const T* gates = gates_row(y, l);
    T* out = out_row(y);
    const bool last = l + 1 == L;
    vf in_row = {};
    for (int64_t x = 0; x < W; ++x) {
      const vf value = gelu(row[x]);
      row[x] = value;
      total[x] = (l ? total[x] : vf{}) + value * widen(gates[x * step]);
      in_row += value;
      if (last) __builtin_prefetch(out + x * C, 1);
    }
    return in_row;
  }

  static int64_t backward_vectors(const FocalContextJob& job) {
    int64_t vectors = (job.L ? 2 : 3) * plane_size(job.H, job.W, 0);
    for (int l = 0; l < job.L; ++l) {
      const int64_t k = job.kernels[l];
      vectors += 2 * plane_size(job.H, job.W, k / 2) + 3 * k * k;
    }
    return vectors;
  }

  void backward() {
    Plane z[FOCALNET_MAX_LEVELS];      // the input of each level
    Plane slope[FOCALNET_MAX_LEVELS];  // of GELU
    const Plane grad = read_grad(), dz = scratch.plane(H, W, 0);
    z[0] = read_context();
    vf everything = {};
    for (int l = 0; l < L; ++l) {
      const vf* kernel = read_kernel(l, false);
      const bool last = l + 1 == L;
      slope[l] = scratch.plane(H, W, pad(l));
      if (!last) z[l + 1] = scratch.plane(H, W, pad(l + 1));
      for (int64_t y = 0; y < H; ++y) {
        convolve[job.kernels[l] / 2](z[l], kernel, y, W, slope[l].row(y));
        // Nobody asks for the output of the last level again, but for its mean.
        vf* value = last ? dz.row(y) : z[l + 1].row(y);
        activate(l, y, slope[l].row(y), value, grad.row(y));
        if (last) everything += sum_of(value);
      }
    }
    for (int64_t y = 0; !L && y < H; ++y) everything += sum_of(z[0].row(y));
    backward_global(grad, dz, everything / (float)(H * W));
    for (int l = L - 1; l >= 0; --l) backward_level(l, z[l], slope[l], grad, dz);
    for (int64_t y = 0; y < H; ++y) {
      T* out = out_row(y);
      for (int64_t x = 0; x < W; ++x) store(out + x * C, dz.row(y)[x], lanes);
    }
  }

  Plane read_grad() {
    const Plane plane = scratch.plane(H, W, 0);
    for (int64_t y = 0; y < H; ++y) {
      const T* from = (const T*)job.grad + (b * H + y) * W * C + block * VLEN;
      for (int64_t x = 0; x < W; ++x) plane.row(y)[x] = load(from + x * C, lanes);
    }
    return plane;
  }

  // A level's row goes through GELU into ``value``, leaves the slope behind, and what the gates' gradient needs of it.
  void activate(int l, int64_t y, vf* row, vf* value, const vf* grad) const {
    for (int64_t x = 0; x < W; ++x) {
      value[x] = gelu(row[x]);
      row[x] = gelu_slope(row[x]);
      grad_gates(y, x)[l] = sum(grad[x] * value[x]);
    }
  }

  float* grad_gates(int64_t y, int64_t x) const {
    return job.grad_gates + (((block * job.B + b) * H + y) * W + x) * (L + 1);
  }

  // Starts dz with what the mean sends back to every position.
  void backward_global(const Plane& grad, const Plane& dz, vf mean) const {
    const vf everywhere = gelu(mean);
    vf total = {};
    for (int64_t y = 0; y < H; ++y) {
      const T* gates = gates_row(y, L);
      vf in_row = {};
      for (int64_t x = 0; x < W; ++x) {
        const vf g = grad.row(y)[x];
        grad_gates(y, x)[L] = sum(g * everywhere);
        in_row += g * widen(gates[x * step]);
      }
      total += in_row;
    }
    const vf to_each = total * gelu_slope(mean) / (float)(H * W);
    for (int64_t i = 0; i < H * W; ++i) dz.data[i] = to_each;
  }

  // In: dz of the level's output that comes from later levels. Out: dz of its input. The gradient before GELU takes the
  // place of the slope.
  void backward_level(int l, const Plane& in, const Plane& slope, const Plane& grad, const Plane& dz) {
    const int k = job.kernels[l];
    vf* dw = scratch.take((int64_t)k * k);
    zero(dw, dw + k * k);
    for (int64_t y = 0; y < H; ++y) {
      vf* da = slope.row(y);
      const vf *g = grad.row(y), *after = dz.row(y);
      const T* gates = gates_row(y, l);
      T* out = out_row(y);
      for (int64_t x = 0; x < W; ++x) {
        da[x] *= g[x] * widen(gates[x * step]) + after[x];
        if (!l) __builtin_prefetch(out + x * C, 1);
      }
      kernel_gradient[k / 2](in, da, y, W, dw);
    }
    for (int lane = 0; lane < lanes; ++lane)
      for (int64_t i = 0; i < (int64_t)k * k; ++i)
        job.grad_weights[l][((b * job.C + block * VLEN + lane) * k * k) + i] = dw[i][lane];
    const vf* kernel = read_kernel(l, true);
    for (int64_t y = 0; y < H; ++y) convolve[k / 2](slope, kernel, y, W, dz.row(y));
  }
};

// Returns 0, or 1 when there was not enough memory.
template <class T> int run(const FocalContextJob& job, bool backward) {
  const int64_t blocks = (job.C + VLEN - 1) / VLEN, tasks = job.B * blocks;
  const int64_t vectors = backward ? Task<T>::backward_vectors(job) : Task<T>::forward_vectors(job);
  int failed = 0;
  const int threads = (int)std::max<int64_t>(1, std::min<int64_t>(job.threads, tasks));
  // Each thread takes neighbours: blocks of an image, which share cache lines of input and output.
#pragma omp parallel for schedule(static) num_threads(threads) reduction(| : failed)
  for (int64_t i = 0; i < tasks; ++i) {
    static thread_local Planes scratch;
    if (!scratch.reset(vectors)) {
      failed = 1;
      continue;
    }
    Task<T> task(job, scratch, i / blocks, i % blocks);
    backward ? task.backward() : task.forward();
  }
  return failed;
}

}  // namespace

int VARIANT(focal_context)(const FocalContextJob* job, int bf16, int backward) {
  return bf16 ? run<bfloat16>(*job, backward) : run<float>(*job, backward);
}
