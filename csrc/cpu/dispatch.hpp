// Which instruction sets this build has, and which of them this machine can run.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "processor.hpp"

namespace xpkern {

namespace scalar {
const Kernels& kernels();
}
#if defined(__x86_64__) || defined(_M_X64)
namespace avx2 {
const Kernels& kernels();
}
namespace avx512 {
const Kernels& kernels();
}
#elif defined(__aarch64__)
namespace neon {
const Kernels& kernels();
}
#endif

// Instruction sets that this build has and this machine can run, best first.
inline std::vector<const Kernels*> usable_kernels() {
    std::vector<const Kernels*> usable;
#if defined(__x86_64__) || defined(_M_X64)
    if (has_avx512()) usable.push_back(&avx512::kernels());
    if (has_avx2()) usable.push_back(&avx2::kernels());
#elif defined(__aarch64__)
    usable.push_back(&neon::kernels());
#endif
    usable.push_back(&scalar::kernels());
    return usable;
}

inline const Kernels& kernels_named(const std::string& name) {
    std::string known;
    for (const Kernels* kernels : usable_kernels()) {
        if (name.empty() || name == kernels->name) return *kernels;
        known += std::string(known.empty() ? "" : ", ") + kernels->name;
    }
    throw std::invalid_argument("instruction set " + name + " is not available here: this machine can run " + known);
}

}  // namespace xpkern
