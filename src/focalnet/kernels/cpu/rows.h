// What Python fills in (ctypes, see __init__.py) and the kernels of rows.cpp read. Plain C, no PyTorch.
#pragma once
#include <cstdint>

// Sums over all rows come in parts, one for so many rows each; adding them is left to the caller. The result is thus
// the same for any number of threads, and rounding does not grow with the number of rows.
enum { FOCALNET_ROWS_OF_A_PART = 32 };

enum RowsKernel { COLUMN_SUM, GELU, GELU_BACKWARD, NORM_FORWARD, NORM_BACKWARD };

struct RowsJob {
  const void* x;        // (rows, C) dense: the input of the forward pass
  const void* grad;     // (rows, C) dense: gradient of its output; backward only
  const void* beside;   // (rows, C) dense or null: gradient that reaches x another way; NORM_BACKWARD adds it
  void* out;            // (rows, C) dense: the output, or the gradient of x; GELU may overwrite x
  void* again;          // (rows, C) dense or null: GELU_BACKWARD puts the output of GELU there
  const float* weight;  // (C): norms
  const float* bias;    // (C): NORM_FORWARD
  float* moments;       // (rows, 2) or null: mean and 1 / deviation of each row, from NORM_FORWARD to NORM_BACKWARD
  float* sums;          // (parts, C): sums of x, of the gradient of x; NORM_BACKWARD (parts, 2, C): of weight and bias
  int64_t rows, C;
  float eps;
  int32_t threads;
};

// 0, or 1 when there was not enough memory.
typedef int (*RowsRun)(const RowsJob*, int kernel, int bf16);
