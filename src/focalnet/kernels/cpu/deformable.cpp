// Multi-scale deformable attention, forward and backward: every query and head sums values that are sampled
// bilinearly at a few points of every level.
//
// The channels of a head lie side by side, so that each of the four corners of a point is one or two vectors. Nothing
// is kept between the passes but the inputs: the samples of all points would take 20 times the memory of the output.
// Forward, a task is a few queries of an image. Backward, a task is one image and head: it alone adds to the gradient
// of that head's values, query by query, so that every sum has a fixed order whatever the number of threads.

#include "deformable.h"
#include "scratch.h"
#include "vector.h"

#include <algorithm>
#include <cstring>

namespace {

const int64_t QUERIES_OF_A_TASK = 16;
const int WIDEST = 8;  // vectors of channels that are taken at once; more channels are taken block by block

struct Level {
  int64_t height, width, first;  // first: its first cell among those of all levels
  Level(const DeformableJob& job, int l, int64_t first) : height(job.heights[l]), width(job.widths[l]), first(first) {}
  int64_t end() const { return first + height * width; }
};

// Along one axis: the cell at or before a place, and the share of the cell after it.
struct Axis {
  int64_t cell;
  float share;
  // In cells, 0 at the center of the first. Beyond both ends there is nothing, and at no place (NaN) nothing but NaN.
  Axis(float place, int64_t size) {
    if (place >= -1.0f && place < (float)size) {
      cell = (int64_t)place;
      cell -= place < (float)cell;
      share = place - (float)cell;
    } else {
      cell = -2;
      share = place != place ? place : 0.0f;
    }
  }
  bool inside(int64_t i, int64_t size) const { return (uint64_t)(cell + i) < (uint64_t)size; }
};

// Left and right above, left and right below.
struct Corners {
  Axis x, y;
  int64_t cell[4];  // among those of all levels; -1 outside
  float share[4];
  Corners(const float* location, const Level& level)
      : x(location[0] * (float)level.width - 0.5f, level.width), y(location[1] * (float)level.height - 0.5f, level.height) {
    const bool columns[] = {x.inside(0, level.width), x.inside(1, level.width)};
    const bool rows[] = {y.inside(0, level.height), y.inside(1, level.height)};
    const int64_t start = level.first + y.cell * level.width + x.cell;
    const float across[] = {1 - x.share, x.share}, down[] = {1 - y.share, y.share};
    for (int c = 0; c < 4; ++c) {
      cell[c] = rows[c / 2] && columns[c % 2] ? start + c / 2 * level.width + c % 2 : -1;
      share[c] = down[c / 2] * across[c % 2];
    }
  }
};

// What stands for the values of cells outside, of either type.
const vf nothing[WIDEST] = {};

// N vectors of channels from ``first`` on, of ``lanes`` numbers if they are a last one that is not whole.
template <class T, int N, bool WHOLE> struct Block {
  const DeformableJob& job;
  const int64_t first;
  const int lanes;

  Block(const DeformableJob& job, int64_t first) : job(job), first(first), lanes(WHOLE ? VLEN : (int)(job.D - first)) {}

  template <class S> void read(const S* from, vf* to) const {
    for (int i = 0; i < N; ++i) to[i] = WHOLE ? load(from + i * VLEN) : load(from + i * VLEN, lanes);
  }
  template <class S> void write(S* to, const vf* from) const {
    for (int i = 0; i < N; ++i) WHOLE ? store(to + i * VLEN, from[i]) : store(to + i * VLEN, from[i], lanes);
  }
  // Of a head, at the first channel of the block.
  const T* values(int64_t b, int64_t h) const {
    return (const T*)job.values + b * job.values_stride[0] + h * job.values_stride[2] + first;
  }
  int64_t row(int64_t b, int64_t q, int64_t h) const { return (b * job.Q + q) * job.H + h; }

  void forward(int64_t b, int64_t from, int64_t to) const {
    const int64_t step = job.values_stride[1], L = job.L, P = job.P;
    for (int64_t q = from; q < to; ++q)
      for (int64_t h = 0; h < job.H; ++h) {
        const T* const head = values(b, h);
        const float* location = job.locations + row(b, q, h) * L * P * 2;
        const float* weight = job.weights + row(b, q, h) * L * P;
        vf total[N] = {};
        int64_t first_cell = 0;
        for (int l = 0; l < L; ++l) {
          const Level level(job, l, first_cell);
          first_cell = level.end();
          for (int64_t p = 0; p < P; ++p, location += 2, ++weight) {
            const Corners corners(location, level);
            vf sample[N] = {};
            for (int c = 0; c < 4; ++c) {
              vf value[N];
              read(corners.cell[c] < 0 ? (const T*)nothing : head + corners.cell[c] * step, value);
              for (int i = 0; i < N; ++i) sample[i] += value[i] * corners.share[c];
            }
            for (int i = 0; i < N; ++i) total[i] += sample[i] * *weight;
          }
        }
        write(job.out + row(b, q, h) * job.D + first, total);
      }
  }

  // ``sums`` is the gradient of the values of this head, N vectors a cell.
  void backward(int64_t b, int64_t h, vf* sums) const {
    const int64_t step = job.values_stride[1], L = job.L, P = job.P;
    const T* const head = values(b, h);
    std::memset(sums, 0, job.S * N * sizeof(vf));
    for (int64_t q = 0; q < job.Q; ++q) {
      const int64_t point = row(b, q, h) * L * P;
      const float *location = job.locations + point * 2, *weight = job.weights + point;
      float *grad_location = job.grad_locations + point * 2, *grad_weight = job.grad_weights + point;
      vf grad[N];
      read(job.grad + row(b, q, h) * job.D + first, grad);
      int64_t first_cell = 0;
      for (int l = 0; l < L; ++l) {
        const Level level(job, l, first_cell);
        first_cell = level.end();
        for (int64_t p = 0; p < P; ++p, location += 2, ++weight, grad_location += 2, ++grad_weight) {
          const Corners corners(location, level);
          const float w = *weight;
          float along[4];  // the gradient times the value of each corner
          for (int c = 0; c < 4; ++c) {
            const int64_t cell = corners.cell[c];
            vf value[N], product = {};
            read(cell < 0 ? (const T*)nothing : head + cell * step, value);
            for (int i = 0; i < N; ++i) product += grad[i] * value[i];
            along[c] = sum(product);
          }
          for (int c = 0; c < 4; ++c) {
            if (corners.cell[c] < 0) continue;
            vf* const into = sums + corners.cell[c] * N;
            const float share = corners.share[c] * w;
            for (int i = 0; i < N; ++i) into[i] += grad[i] * share;
          }
          const float right = corners.x.share, below = corners.y.share;
          const float dx = (1 - below) * (along[1] - along[0]) + below * (along[3] - along[2]);
          const float dy = (1 - right) * (along[2] - along[0]) + right * (along[3] - along[1]);
          float dw = 0;
          for (int c = 0; c < 4; ++c) dw += corners.share[c] * along[c];
          const bool more = first > 0;  // a further block of channels
          grad_location[0] = (more ? grad_location[0] : 0) + dx * w * (float)level.width;
          grad_location[1] = (more ? grad_location[1] : 0) + dy * w * (float)level.height;
          *grad_weight = (more ? *grad_weight : 0) + dw;
        }
      }
    }
    T* to = (T*)job.grad_values + (b * job.S * job.H + h) * job.D + first;
    for (int64_t cell = 0; cell < job.S; ++cell) write(to + cell * job.H * job.D, sums + cell * N);
  }
};

// Calls with each block of channels: as many whole vectors at once as there are, then what does not fill one.
template <class T, class Step> void each_block(const DeformableJob& job, Step step) {
  int64_t first = 0;
  for (; job.D - first >= 8 * VLEN; first += 8 * VLEN) step(Block<T, 8, true>(job, first));
  for (; job.D - first >= 4 * VLEN; first += 4 * VLEN) step(Block<T, 4, true>(job, first));
  for (; job.D - first >= 2 * VLEN; first += 2 * VLEN) step(Block<T, 2, true>(job, first));
  for (; job.D - first >= VLEN; first += VLEN) step(Block<T, 1, true>(job, first));
  if (first < job.D) step(Block<T, 1, false>(job, first));
}

template <class T> int forward(const DeformableJob& job) {
  const int64_t parts = (job.Q + QUERIES_OF_A_TASK - 1) / QUERIES_OF_A_TASK, tasks = job.B * parts;
  const int threads = (int)std::max<int64_t>(1, std::min<int64_t>(job.threads, tasks));
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t from = task % parts * QUERIES_OF_A_TASK, to = std::min(from + QUERIES_OF_A_TASK, job.Q);
    each_block<T>(job, [&](const auto& block) { block.forward(task / parts, from, to); });
  }
  return 0;
}

template <class T> int backward(const DeformableJob& job) {
  const int64_t tasks = job.B * job.H, widest = std::min<int64_t>(WIDEST, (job.D + VLEN - 1) / VLEN);
  const int threads = (int)std::max<int64_t>(1, std::min<int64_t>(job.threads, tasks));
  int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
  {
    Scratch scratch;  // as large as the values of a head: not kept after the call
    failed = !scratch.reset(job.S * widest);
    vf* const sums = failed ? nullptr : scratch.take(job.S * widest);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < tasks; ++task)
      if (sums) each_block<T>(job, [&](const auto& block) { block.backward(task / job.H, task % job.H, sums); });
  }
  return failed;
}

template <class T> int run(const DeformableJob& job, bool backwards) {
  return backwards ? backward<T>(job) : forward<T>(job);
}

}  // namespace

int VARIANT(deformable)(const DeformableJob* job, int bf16, int backward) {
  return bf16 ? run<bfloat16>(*job, backward) : run<float>(*job, backward);
}
