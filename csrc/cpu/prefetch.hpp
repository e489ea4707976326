// Asks for the memory of the stars that come next while those at hand are computed.
#pragma once

#include "star_lanes.hpp"

XPKERN_NAMESPACE_BEGIN

// Cache lines of a lane's whiteners, one at a time and evenly over all that is computed: several at once would fill the
// queue of loads and hold up everything behind them.
class LaneFetcher {
  public:
    static constexpr int width = LaneTraits<TrainingLane>::width;

    // places: of the lane, or null. calls: how often it will be called.
    LaneFetcher(const TrainingStars& stars, const double* params, int m, int k, const int64_t* places, int calls) {
        const int64_t bytes = row_start(m) * int64_t(sizeof(float));
        int64_t wanted = 0;
        for (int s = 0; places && s < width; ++s) {
            const int64_t row = places[s];
            if (row == NOBODY) continue;
            // A group takes up the memory of its stars' rows: each star asks for the bytes of one row of it.
            const char* begin = reinterpret_cast<const char*>(stars.arrays.whitener) + row * bytes;
            if (count_ > 0 && begin == end_[count_ - 1])
                end_[count_ - 1] += bytes;
            else
                begin_[count_] = begin, end_[count_++] = begin + bytes;
            wanted += bytes;
            __builtin_prefetch(params + row * k, 0, 3);
            for (int i = 0; i < m; i += LINE / 4) __builtin_prefetch(stars.arrays.flux + row * m + i, 0, 2);
        }
        const int64_t evenly = wanted / (calls < 1 ? 1 : calls) + 1;
        // A line is asked for again until the next one's turn comes. Rows have none to spare: they end between blocks.
        step_ = count_ == 1 && evenly < LINE ? evenly : LINE;
        if (count_ == 0) begin_[0] = end_[0] = reinterpret_cast<const char*>(this);  // in the nearest cache anyway
        at_ = begin_[0];
        stop_ = end_[0];
    }

    XPKERN_INLINE void operator()() const {
        __builtin_prefetch(at_, 0, 2);
        const char* to = at_ + step_;
        at_ = to < stop_ ? to : stop_;
    }

    // Goes on to the next star's row. Not in every step: a jump there costs 2 % of a star's time.
    XPKERN_INLINE void between_blocks() const {
        if (at_ < stop_ || begun_ >= count_) return;
        at_ = begin_[begun_];
        stop_ = end_[begun_++];
    }

  private:
    static constexpr int LINE = 64;

    const char *begin_[width], *end_[width];  // of neighbouring stars as one
    int count_ = 0;
    mutable int begun_ = 1;
    mutable const char *at_, *stop_;
    int64_t step_;
};

XPKERN_NAMESPACE_END
