// Asks for the memory of the stars that come next while those at hand are computed.
#pragma once

#include "star_lanes.hpp"

XPKERN_NAMESPACE_BEGIN

// Cache lines of some rows of an array, up to LINES at a time and evenly over all that is computed: many at once would
// fill the queue of loads and hold up everything behind them.
template <int LINES>
class RowFetcher {
  public:
    static constexpr int LINE = 64, MOST_ROWS = 32;

    // None yet: what is asked for is in the nearest cache anyway.
    RowFetcher() : at_(reinterpret_cast<const char*>(this)), stop_(at_) {}
    RowFetcher(const RowFetcher&) = delete;
    RowFetcher& operator=(const RowFetcher&) = delete;

    // One row more, before begin().
    void add(const void* row, int64_t bytes) {
        const char* begin = static_cast<const char*>(row);
        if (count_ > 0 && begin == end_[count_ - 1])
            end_[count_ - 1] += bytes;  // neighbours are one
        else
            begin_[count_] = begin, end_[count_++] = begin + bytes;
        wanted_ += bytes;
    }

    // calls: how often it will be called. A line is asked for again until the next one's turn comes. Rows have none to
    // spare: they end between blocks.
    void begin(int calls) {
        if (count_ == 0) return;
        const int64_t evenly = wanted_ / (calls < 1 ? 1 : calls) + 1;
        step_ = count_ == 1 && evenly < LINES * LINE ? evenly : LINES * LINE;
        at_ = begin_[0];
        stop_ = end_[0];
    }

    XPKERN_INLINE void operator()() const {
        XPKERN_UNROLL
        for (int line = 0; line < LINES; ++line) __builtin_prefetch(at_ + line * LINE, 0, 2);
        const char* to = at_ + step_;
        at_ = to < stop_ ? to : stop_;
    }

    // Goes on to the next row. Not in every step: a jump there costs 2 % of a star's time.
    XPKERN_INLINE void between_blocks() const {
        if (at_ < stop_ || begun_ >= count_) return;
        at_ = begin_[begun_];
        stop_ = end_[begun_++];
    }

  private:
    const char *begin_[MOST_ROWS], *end_[MOST_ROWS];
    int count_ = 0;
    mutable int begun_ = 1;
    mutable const char *at_, *stop_;
    int64_t wanted_ = 0, step_ = 0;
};

// That of fits. Evaluations and starts by themselves are given one without rows: they share the fits' code, which is
// long.
using StarFetcher = RowFetcher<2>;

// Whiteners, fluxes and parameters of a lane of training stars.
class LaneFetcher : public RowFetcher<1> {
  public:
    static constexpr int width = LaneTraits<TrainingLane>::width;
    static_assert(width <= MOST_ROWS, "a lane has no more stars");

    // places: of the lane, or null. calls: how often it will be called. A group takes up the memory of its stars' rows:
    // each star asks for the bytes of one row of it.
    LaneFetcher(const TrainingStars& stars, const double* params, int m, int k, const int64_t* places, int calls) {
        for (int s = 0; places && s < width; ++s) {
            const int64_t row = places[s];
            if (row == NOBODY) continue;
            add(stars.arrays.whitener + row * row_start(m), row_start(m) * int64_t(sizeof(float)));
            __builtin_prefetch(params + row * k, 0, 3);
            for (int i = 0; i < m; i += LINE / 4) __builtin_prefetch(stars.arrays.flux + row * m + i, 0, 2);
        }
        begin(calls);
    }
};

XPKERN_NAMESPACE_END
