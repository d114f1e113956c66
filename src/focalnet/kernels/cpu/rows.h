// Arguments of the kernels in rows.cpp, filled in by Python (ctypes, see __init__.py). Plain C, no PyTorch.
#pragma once
#include <cstdint>

// Sums over rows are returned as partial sums over this many rows each, which the caller adds up. So the result does not
// depend on the number of threads, and rounding errors do not grow with the number of rows.
enum { FOCALNET_ROWS_OF_A_PART = 32 };

enum RowsKernel {
  COLUMN_SUM,
  GELU,
  GELU_BACKWARD,
  NORM_FORWARD,
  NORM_BACKWARD,
  // Inputs of int8 products: round(y / step) + zero_point, limited to 0 ... 255, of
  QUANTIZE,          // y = x
  QUANTIZE_GELU,     // y = gelu(x)
  QUANTIZE_NORM,     // y = the layer norm of x
  QUANTIZE_PRODUCT,  // y = x * factor
};

struct RowsJob {
  const void* x;        // (rows, C) dense: the input of the forward pass
  const void* grad;     // (rows, C) dense: gradient of its output; backward only
  const void* residual_grad;  // (rows, C) dense or null: gradient of x through the residual branch; NORM_BACKWARD adds it
  const void* factor;   // (rows, C) dense: QUANTIZE_PRODUCT
  void* out;            // (rows, C) dense: the output, or the gradient of x; GELU may overwrite x; QUANTIZE...: uint8
  void* gelu_out;       // (rows, C) dense or null: GELU_BACKWARD writes the recomputed output of GELU
  const float* weight;  // (C): norms
  const float* bias;    // (C): NORM_FORWARD
  float* moments;       // (rows, 2) or null: mean and 1 / standard deviation of each row, from NORM_FORWARD to NORM_BACKWARD
  float* sums;          // (parts, C): sums of x, of the gradient of x; NORM_BACKWARD (parts, 2, C): of weight and bias
  int64_t rows, C;
  int64_t x_stride;     // elements from a row of x to the next: QUANTIZE_PRODUCT; x is dense for the others
  float eps;
  float levels;         // 1 / step: QUANTIZE...
  int32_t zero_point;   // 0 ... 255: QUANTIZE...
  int32_t threads;
};

// 0, or 1 when there was not enough memory.
typedef int (*RowsRun)(const RowsJob*, int kernel, int bf16);
