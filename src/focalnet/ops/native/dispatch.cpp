// Picks the kernels for the processor this runs on, once.

#include "focal_context.h"

int focal_context_generic(const FocalContextJob*, int, int);
#ifdef FOCALNET_X86
int focal_context_avx2(const FocalContextJob*, int, int);
int focal_context_avx512(const FocalContextJob*, int, int);
#endif

namespace {

struct Choice {
  FocalContextRun run;
  const char* name;
  int lanes;
};

const Choice choices[] = {
#ifdef FOCALNET_X86
    {focal_context_avx512, "avx512", 16},
    {focal_context_avx2, "avx2", 8},
#endif
    {focal_context_generic, "generic", 4},
};

bool supported(int i) {
#ifdef FOCALNET_X86
  __builtin_cpu_init();
  if (i == 0) return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (i == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return true;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// The number of variants compiled in, best first.
int focalnet_variants() { return sizeof choices / sizeof *choices; }
int focalnet_variant_supported(int i) { return supported(i); }
const char* focalnet_variant_name(int i) { return choices[i].name; }
// Channels a task takes at once: how many parts the gradient of the gates comes in depends on it.
int focalnet_variant_lanes(int i) { return choices[i].lanes; }
int focalnet_run(int i, const FocalContextJob* job, int bf16, int backward) {
  return choices[i].run(job, bf16, backward);
}

}
#pragma GCC visibility pop
