// Asks for the memory of the stars that come next while those at hand are computed.
#pragma once

#include "star_lanes.hpp"

XPKERN_NAMESPACE_BEGIN

// Cache lines of a lane's whiteners, a few at every call: as many at once would fill the queue of loads and hold up
// everything behind them. Half of a group will do: the processor itself asks for what follows in order, and where a
// batch is in the cache each line that is asked for costs.
class LaneFetcher {
  public:
    static constexpr int width = LaneTraits<TrainingLane>::width;

    // places: of the lane, or null. calls: how often it will be called.
    LaneFetcher(const TrainingStars& stars, const double* params, int m, int k, const int64_t* places, int calls) {
        const int64_t bytes = row_start(m) * int64_t(sizeof(float));
        for (int s = 0; places && s < width; ++s) {
            const int64_t row = places[s];
            if (row == NOBODY) continue;
            // A group takes up the memory of its stars' rows: each star asks for the bytes of one row of it.
            const char* begin = reinterpret_cast<const char*>(stars.arrays.whitener) + row * bytes;
            if (count_ > 0 && begin == end_[count_ - 1])
                end_[count_ - 1] += bytes;
            else
                next_[count_] = begin, end_[count_++] = begin + bytes;
            __builtin_prefetch(params + row * k, 0, 3);
            for (int i = 0; i < m; i += LINE / 4) __builtin_prefetch(stars.arrays.flux + row * m + i, 0, 2);
        }
        const int64_t wanted = stars.side_by_side ? width * bytes / 2 : width * bytes;
        step_ = (wanted / calls + LINE) / LINE * LINE;
    }

    XPKERN_KERNEL void operator()() const {
        for (int64_t left = step_; left > 0 && begun_ < count_;) {
            const char* const stop = end_[begun_] - next_[begun_] < left ? end_[begun_] : next_[begun_] + left;
            left -= stop - next_[begun_];
            const char* at = next_[begun_];
            for (; at < stop; at += LINE) __builtin_prefetch(at, 0, 2);
            next_[begun_] = at;
            begun_ += at >= end_[begun_];
        }
    }

  private:
    static constexpr int LINE = 64;

    mutable const char* next_[width];  // of neighbouring stars as one
    const char* end_[width];
    int count_ = 0;
    mutable int begun_ = 0;
    int64_t step_;
};

XPKERN_NAMESPACE_END
