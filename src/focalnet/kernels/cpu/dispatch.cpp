// Picks the kernels for the processor this runs on, once.

#include "deformable.h"
#include "focal_context.h"
#include "rows.h"

enum { FOCALNET_ABI = 4 };

#define KERNELS_OF(VARIANT)                                      \
  int focal_context_##VARIANT(const FocalContextJob*, int, int); \
  int rows_##VARIANT(const RowsJob*, int, int);                  \
  int deformable_##VARIANT(const DeformableJob*, int, int);
#define CHOICE(VARIANT, LANES) {focal_context_##VARIANT, rows_##VARIANT, deformable_##VARIANT, #VARIANT, LANES}

#ifdef FOCALNET_ARM
KERNELS_OF(neon)
#else
KERNELS_OF(generic)
#endif
#ifdef FOCALNET_X86
KERNELS_OF(avx2)
KERNELS_OF(avx512)
KERNELS_OF(avx512bf16)
#endif

namespace {

struct Choice {
  FocalContextRun focal_context;
  RowsRun rows;
  DeformableRun deformable;
  const char* name;
  int lanes;
};

const Choice choices[] = {
#ifdef FOCALNET_X86
    CHOICE(avx512bf16, 16),
    CHOICE(avx512, 16),
    CHOICE(avx2, 8),
#endif
#ifdef FOCALNET_ARM
    CHOICE(neon, 4),
#else
    CHOICE(generic, 4),
#endif
};

bool supported(int i) {
#ifdef FOCALNET_X86
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (i == 0) return avx512 && __builtin_cpu_supports("avx512bf16");
  if (i == 1) return avx512;
  if (i == 2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return true;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// What Python must agree with before it fills in a job: the version of what a job means, and how large it is.
int focalnet_abi() { return FOCALNET_ABI; }
int64_t focalnet_focal_context_job_size() { return sizeof(FocalContextJob); }
int64_t focalnet_rows_job_size() { return sizeof(RowsJob); }
int64_t focalnet_deformable_job_size() { return sizeof(DeformableJob); }
// The number of variants compiled in, best first.
int focalnet_variants() { return sizeof choices / sizeof *choices; }
int focalnet_variant_supported(int i) { return supported(i); }
const char* focalnet_variant_name(int i) { return choices[i].name; }
// Channels a task takes at once: how many parts the gradient of the gates comes in depends on it.
int focalnet_variant_lanes(int i) { return choices[i].lanes; }
int focalnet_focal_context(int i, const FocalContextJob* job, int bf16, int backward) {
  return choices[i].focal_context(job, bf16, backward);
}
int focalnet_rows(int i, const RowsJob* job, int kernel, int bf16) { return choices[i].rows(job, kernel, bf16); }
int focalnet_deformable(int i, const DeformableJob* job, int bf16, int backward) {
  return choices[i].deformable(job, bf16, backward);
}

}
#pragma GCC visibility pop
