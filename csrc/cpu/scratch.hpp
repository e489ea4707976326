// Memory of one thread.
#pragma once

#include <cstdint>
#include <memory>

namespace xpkern {

// On the boundary of a cache line.
class Scratch {
  public:
    explicit Scratch(int64_t bytes) : memory_(new char[static_cast<size_t>(bytes) + 64]) {}
    char* data() {
        const auto address = reinterpret_cast<uintptr_t>(memory_.get());
        return memory_.get() + (64 - address % 64) % 64;
    }

  private:
    std::unique_ptr<char[]> memory_;
};

}  // namespace xpkern
