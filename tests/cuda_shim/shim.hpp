// CUDA's words for a C++ compiler, so that the kernels' own text runs on a processor.
//
// A launch takes block after block. The threads of a block run one after the other, each to its end, unless the kernel
// has barriers: then every thread of a block is a thread of the system, and they meet at each barrier. That is slow,
// but sanitizers understand it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))

namespace shim {

struct Index {
    unsigned x = 0, y = 0, z = 0;
};

// Where the threads of a block wait for one another.
class Barrier {
  public:
    explicit Barrier(int threads) : threads_(threads) {}
    void wait() {
        std::unique_lock<std::mutex> lock(mutex_);
        const int64_t round = round_;
        if (++waiting_ == threads_) {
            waiting_ = 0;
            ++round_;
            all_here_.notify_all();
        } else {
            all_here_.wait(lock, [&] { return round_ != round; });
        }
    }

  private:
    const int threads_;
    int waiting_ = 0;
    int64_t round_ = 0;
    std::mutex mutex_;
    std::condition_variable all_here_;
};

inline thread_local Index thread_index, block_index, block_size, grid_size;
inline thread_local Barrier* barrier = nullptr;

template <class Arguments>
void run_thread(void (*kernel)(Arguments), const Arguments& arguments, Index block, unsigned blocks, unsigned thread,
                unsigned threads, Barrier* meeting) {
    thread_index = {thread, 0, 0};
    block_index = block;
    block_size = {threads, 1, 1};
    grid_size = {blocks, 1, 1};
    barrier = meeting;
    kernel(arguments);
}

// Runs a kernel. with_barriers: whether it has any.
template <class Arguments>
void launch(void (*kernel)(Arguments), int64_t grid, int64_t block, const Arguments& arguments, bool with_barriers) {
    const auto blocks = static_cast<unsigned>(grid), threads = static_cast<unsigned>(block);
    for (unsigned b = 0; b < blocks; ++b) {
        if (!with_barriers) {
            for (unsigned t = 0; t < threads; ++t)
                run_thread(kernel, arguments, {b, 0, 0}, blocks, t, threads, nullptr);
            continue;
        }
        Barrier meeting(static_cast<int>(threads));
        std::vector<std::thread> team;
        for (unsigned t = 0; t < threads; ++t)
            team.emplace_back([&, t] { run_thread(kernel, arguments, {b, 0, 0}, blocks, t, threads, &meeting); });
        for (std::thread& member : team) member.join();
    }
}

// A kernel whose arguments are bytes, as the driver takes them.
template <class Arguments>
void launch_bytes(void (*kernel)(Arguments), int64_t grid, int64_t block, void** parameters, bool with_barriers) {
    Arguments arguments;
    std::memcpy(static_cast<void*>(&arguments), parameters[0], sizeof(Arguments));
    launch(kernel, grid, block, arguments, with_barriers);
}

}  // namespace shim

#define threadIdx shim::thread_index
#define blockIdx shim::block_index
#define blockDim shim::block_size
#define gridDim shim::grid_size

inline void __syncthreads() {
    if (!shim::barrier) {
        std::fprintf(stderr, "a barrier in a kernel that was launched as one without\n");
        std::abort();
    }
    shim::barrier->wait();
}

inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
