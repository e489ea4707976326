// CUDA's words for a C++ compiler, so that the kernels' own text runs on a processor.
//
// A launch takes block after block. The threads of a block run one after the other, each to its end, unless the kernel
// has barriers: then they take turns, on stacks of their own, and each gives way where it waits for the others. Turns
// go upwards in some blocks, downwards in others, so that results which depend on who comes first differ from run to
// run.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include <ucontext.h>

#define __global__
#define __device__
#define __host__
#define __shared__ static thread_local  // launches may run side by side
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

namespace shim {

struct Index {
    unsigned x = 0, y = 0, z = 0;
};

inline thread_local Index thread_index, block_index, block_size, grid_size;

// Where a thread has stopped, to be gone on with from elsewhere. swapcontext() would ask the system each time.
class Place {
  public:
    // Stops here, and goes on once someone resumes it.
    template <class Elsewhere>
    __attribute__((noinline)) void leave_for(const Elsewhere& elsewhere) {
        if (__builtin_setjmp(registers_) == 0) elsewhere();
    }
    __attribute__((noinline, noreturn)) void resume() { __builtin_longjmp(registers_, 1); }

  private:
    void* registers_[5];
};

// Threads of a block that take turns.
class Team {
  public:
    static thread_local Team* current;

    // work() in each of them, thread_index saying in which.
    void run(unsigned threads, const std::function<void()>& work) {
        work_ = &work;
        turns_.resize(threads);
        random_ = random_ * 1664525 + 1013904223;
        upwards_ = random_ >> 31 != 0;
        current = this;
        for (Turn& turn : turns_) {
            if (!turn.stack) turn.stack.reset(new char[STACK]);
            turn.begun = turn.done = false;
        }
        for (unsigned left = threads; left > 0;) {  // a thread that has ended leads back here
            take_turn(next_alive(thread_index.x), home_);
            left -= turns_[thread_index.x].done ? 1 : 0;
        }
        current = nullptr;
    }

    // Lets the others go on.
    void give_way() {
        const unsigned mine = thread_index.x;
        const unsigned next = next_alive(mine);
        if (next != mine) take_turn(next, turns_[mine].stopped);
    }

  private:
    static constexpr size_t STACK = size_t(1) << 18;
    struct Turn {
        std::unique_ptr<char[]> stack;
        ucontext_t start;
        Place stopped;
        bool begun, done;
    };
    static void start() {
        (*current->work_)();
        current->turns_[thread_index.x].done = true;
        current->home_.resume();
    }
    unsigned next_alive(unsigned from) const {
        const auto threads = static_cast<unsigned>(turns_.size());
        for (unsigned step = 1; step <= threads; ++step) {
            const unsigned next = (from + (upwards_ ? step : threads - step)) % threads;
            if (!turns_[next].done) return next;
        }
        return from;
    }
    void take_turn(unsigned thread, Place& from) {
        thread_index = {thread, 0, 0};
        Turn& turn = turns_[thread];
        from.leave_for([&turn] {
            if (turn.begun) turn.stopped.resume();
            turn.begun = true;
            getcontext(&turn.start);
            turn.start.uc_stack.ss_sp = turn.stack.get();
            turn.start.uc_stack.ss_size = STACK;
            turn.start.uc_link = nullptr;
            makecontext(&turn.start, start, 0);
            setcontext(&turn.start);
        });
    }

    const std::function<void()>* work_ = nullptr;
    std::vector<Turn> turns_;
    Place home_;
    uint32_t random_ = 1;
    bool upwards_ = true;
};
inline thread_local Team* Team::current = nullptr;

// Where some threads wait for one another.
class Barrier {
  public:
    explicit Barrier(unsigned threads) : threads_(threads) {}
    void wait() {
        const int64_t round = round_;
        if (++waiting_ == threads_) {
            waiting_ = 0;
            ++round_;
        }
        while (round_ == round) Team::current->give_way();
    }
    // One that will not come any more.
    void leave() {
        if (--threads_ > 0 && waiting_ == threads_) {
            waiting_ = 0;
            ++round_;
        }
    }
    int64_t round() const { return round_; }

  private:
    unsigned threads_, waiting_ = 0;
    int64_t round_ = 0;
};

constexpr unsigned WARP = 32;

// A warp's barrier, and what its lanes show one another: before one barrier the one row, before the next the other.
struct Warp {
    Barrier barrier{WARP};
    double shown[2][2][WARP];
};

struct Meeting {
    Barrier block;
    std::vector<Warp> warps;
    std::map<unsigned, Barrier> numbered;
    explicit Meeting(unsigned threads) : block(threads), warps(threads / WARP) {}
};
inline thread_local Meeting* meeting = nullptr;

inline Meeting& meeting_here() {
    if (!meeting) {
        std::fprintf(stderr, "a barrier in a kernel that was launched as one without\n");
        std::abort();
    }
    return *meeting;
}

// Shared memory that a launch asks for, filled with what is no number before every block.
struct alignas(16) SharedBytes {
    char byte[16];
};
inline thread_local std::unique_ptr<SharedBytes[]> shared_memory;
inline char* dynamic_shared() {
    return shared_memory[0].byte;
}

// Runs a kernel. with_barriers: whether it has any; shared: bytes of shared memory that it asks for.
template <class Arguments>
void launch(void (*kernel)(Arguments), int64_t grid, int64_t block, const Arguments& arguments, bool with_barriers,
            int64_t shared = 0) {
    static thread_local Team team;
    const auto pieces = static_cast<size_t>(shared) / sizeof(SharedBytes);
    shared_memory.reset(new SharedBytes[pieces]);
    const auto threads = static_cast<unsigned>(block);
    block_size = {threads, 1, 1};
    grid_size = {static_cast<unsigned>(grid), 1, 1};
    for (unsigned b = 0; b < grid_size.x; ++b) {
        block_index = {b, 0, 0};
        std::memset(static_cast<void*>(shared_memory.get()), 0xFF, pieces * sizeof(SharedBytes));
        if (with_barriers) {
            Meeting of_block(threads);
            meeting = &of_block;
            team.run(threads, [&] {
                kernel(arguments);
                of_block.block.leave();
            });
            meeting = nullptr;
            continue;
        }
        for (unsigned t = 0; t < threads; ++t) {
            thread_index = {t, 0, 0};
            kernel(arguments);
        }
    }
}

// A kernel whose arguments are bytes, as the driver takes them.
template <class Arguments>
void launch_bytes(void (*kernel)(Arguments), int64_t grid, int64_t block, void** parameters, bool with_barriers,
                  int64_t shared) {
    Arguments arguments;
    std::memcpy(static_cast<void*>(&arguments), parameters[0], sizeof(Arguments));
    launch(kernel, grid, block, arguments, with_barriers, shared);
}

}  // namespace shim

#define threadIdx shim::thread_index
#define XPKERN_MULTIPLY_TILES multiply_shown_tiles
#define blockIdx shim::block_index
#define blockDim shim::block_size
#define gridDim shim::grid_size

inline void __syncthreads() {
    shim::meeting_here().block.wait();
}

inline void __syncwarp() {
    shim::meeting_here().warps[threadIdx.x / shim::WARP].barrier.wait();
}

// All lanes take part.
template <class Number>
Number __shfl_sync(unsigned, Number number, int lane) {
    shim::Warp& warp = shim::meeting_here().warps[threadIdx.x / shim::WARP];
    double* const shown = warp.shown[warp.barrier.round() % 2][0];
    shown[threadIdx.x % shim::WARP] = number;
    warp.barrier.wait();
    return static_cast<Number>(shown[lane]);
}

inline unsigned __ballot_sync(unsigned, bool yes) {
    shim::Warp& warp = shim::meeting_here().warps[threadIdx.x / shim::WARP];
    double* const shown = warp.shown[warp.barrier.round() % 2][0];
    shown[threadIdx.x % shim::WARP] = yes;
    warp.barrier.wait();
    unsigned lanes = 0;
    for (unsigned lane = 0; lane < shim::WARP; ++lane) lanes |= unsigned(shown[lane]) << lane;
    return lanes;
}

// The tensor cores' product of csrc/cuda/warps.cuh.
inline void multiply_shown_tiles(double left, double right, double (&sum)[2]) {
    shim::Warp& warp = shim::meeting_here().warps[threadIdx.x / shim::WARP];
    const unsigned lane = threadIdx.x % shim::WARP, row = lane / 4, column = lane % 4 * 2;
    auto& shown = warp.shown[warp.barrier.round() % 2];
    shown[0][lane] = left;
    shown[1][lane] = right;
    warp.barrier.wait();
    for (unsigned k = 0; k < 4; ++k)
        for (unsigned c = 0; c < 2; ++c)
            sum[c] = __builtin_fma(shown[0][row * 4 + k], shown[1][(column + c) * 4 + k], sum[c]);
}

inline double rsqrt(double number) {
    return 1 / __builtin_sqrt(number);
}

inline unsigned atomicCAS(unsigned* address, unsigned compared, unsigned value) {
    __atomic_compare_exchange_n(address, &compared, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return compared;
}
inline void __barrier_sync_count(unsigned number, unsigned threads) {
    shim::meeting_here().numbered.try_emplace(number, threads).first->second.wait();
}
// Who waits for a change lets the others make it.
inline void __nanosleep(unsigned) {
    shim::Team::current->give_way();
}
inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
