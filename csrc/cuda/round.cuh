// Warps of a block that begin the same code at the same time.
//
// A processor holds 32 kB of code, some 2,000 instructions; what is not there comes from a cache that the 16 or so
// processors of a cluster share, 128 bytes a cycle for all of them together. A warp that is somewhere else in a longer
// kernel than the others waits for its code more than for anything else; of warps that are at the same place one
// fetches it for all.
#pragma once

#include "warps.cuh"

XPKERN_NAMESPACE_BEGIN

// In shared memory. Warps come and go as they like: none waits for one that does not take part, so that none can wait
// for ever, and results do not depend on it.
struct Round {
    unsigned state;  // how many of its warps wait; from bit 8 on, how many take part; from bit 16 on, which round it is

    // By one thread, before a barrier.
    __device__ __forceinline__ void begin() { state = 0; }

    // By a warp: goes on when all warps that take part have come, and takes part from then on. takes_part: whether it
    // does; of its first lane alone, and false at first.
    __device__ __forceinline__ void join(bool& takes_part) {
        if (lane_in_warp() == 0) {
            const unsigned before = change((takes_part ? 0u : ONE_MORE) + 1u);
            takes_part = true;
            while (!is_next(before)) __nanosleep(100);
        }
        __syncwarp();
    }
    // By a warp that will be elsewhere for a while.
    __device__ __forceinline__ void leave(bool& takes_part) {
        if (lane_in_warp() == 0 && takes_part) {
            change(0u - ONE_MORE);
            takes_part = false;
        }
        __syncwarp();
    }

  private:
    static constexpr unsigned ONE_MORE = 1u << 8, ONE_ROUND = 1u << 16;

    // Adds to the state, and begins the next round where all that take part are waiting. Returns what it was.
    __device__ __forceinline__ unsigned change(unsigned by) {
        unsigned before = now(), found;
        do {
            found = before;
            unsigned after = before + by;
            const unsigned waiting = after % ONE_MORE;
            if (waiting > 0 && waiting == after / ONE_MORE % ONE_MORE) after += ONE_ROUND - waiting;
            before = atomicCAS(&state, found, after);
        } while (before != found);
        return before;
    }
    __device__ __forceinline__ unsigned now() const { return *static_cast<const volatile unsigned*>(&state); }
    __device__ __forceinline__ bool is_next(unsigned before) const { return now() / ONE_ROUND != before / ONE_ROUND; }
};

// The same where all warps have as much to do with each star: four neighbours, one of each scheduler, wait for one
// another. A block of another number of warps has none.
constexpr int NEIGHBOURS = 4;
__device__ __forceinline__ bool has_neighbours() {
    return int(blockDim.x) % (NEIGHBOURS * LANES) == 0;
}
__device__ __forceinline__ int place_among_neighbours() {
    return has_neighbours() ? int(threadIdx.x) / LANES % NEIGHBOURS : 0;
}
__device__ __forceinline__ void wait_for_neighbours() {
    if (has_neighbours()) __barrier_sync_count(1 + int(threadIdx.x) / (NEIGHBOURS * LANES), NEIGHBOURS * LANES);
}

XPKERN_NAMESPACE_END
