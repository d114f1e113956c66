// What Python fills in (ctypes, see __init__.py) and the kernels read. Plain C, no PyTorch.
#pragma once
#include <cstdint>

enum { FOCALNET_MAX_LEVELS = 16 };

struct FocalContextJob {
  const void* context;                       // (B, H, W, C), channels dense
  const void* gates;                         // (B, H, W, L + 1), gates dense
  const void* grad;                          // (B, H, W, C) dense: gradient of the output; backward only
  void* out;                                 // (B, H, W, C) dense: the output, or the gradient of context
  const float* weights[FOCALNET_MAX_LEVELS];  // per level (C, k, k) dense
  float* grad_weights[FOCALNET_MAX_LEVELS];   // per level (B, C, k, k) dense, one part per image; backward only
  float* grad_gates;                         // (blocks of C, B, H, W, L + 1) dense, one part per block; backward only
  int64_t context_stride[3];                 // of B, H, W, in elements
  int64_t gates_stride[3];
  int64_t B, H, W, C;
  int32_t kernels[FOCALNET_MAX_LEVELS];      // k of each level, odd, 1 to 15
  int32_t L;
  int32_t threads;
};

// 0, or 1 when there was not enough memory.
typedef int (*FocalContextRun)(const FocalContextJob*, int bf16, int backward);
