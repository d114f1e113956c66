// Memory of one thread, kept from call to call.
#pragma once
#include <cstdlib>

#include "vector.h"

namespace {

// Taken piece by piece within a task.
struct Scratch {
  void* memory = nullptr;
  int64_t size = 0, used = 0;  // in vectors
  ~Scratch() { std::free(memory); }
  bool reset(int64_t vectors) {
    used = 0;
    if (size >= vectors) return true;
    std::free(memory);
    memory = std::aligned_alloc(64, (vectors * sizeof(vf) + 63) / 64 * 64);
    size = memory ? vectors : 0;
    return memory != nullptr;
  }
  vf* take(int64_t vectors) {
    vf* piece = (vf*)memory + used;
    used += vectors;
    return piece;
  }
};

}  // namespace
