// What Python fills in (ctypes, see __init__.py) and the kernels of deformable.cpp read. Plain C, no PyTorch.
#pragma once
#include <cstdint>

enum { FOCALNET_MAX_SCALES = 16 };

struct DeformableJob {
  const void* values;       // (B, S, H, D), channels dense: the cells of all levels, one level after the other
  const float* locations;   // (B, Q, H, L, P, 2) dense: x and y, 0 to 1 across a level
  const float* weights;     // (B, Q, H, L, P) dense
  const float* grad;        // (B, Q, H, D) dense: gradient of the output; backward only
  float* out;               // (B, Q, H, D) dense: the output; forward only
  void* grad_values;        // (B, S, H, D) dense, of the type of values; backward only
  float* grad_locations;    // as locations; backward only
  float* grad_weights;      // as weights; backward only
  int64_t values_stride[3];  // of B, S, H, in elements
  int64_t B, S, Q, H, D, P;
  int64_t heights[FOCALNET_MAX_SCALES];  // of the levels; S is the sum of their cells
  int64_t widths[FOCALNET_MAX_SCALES];
  int32_t L;
  int32_t threads;
};

// 0, or 1 when there was not enough memory.
typedef int (*DeformableRun)(const DeformableJob*, int bf16, int backward);
