// Asks for the memory of the stars that come next while those at hand are computed.
#pragma once

#include "star_lanes.hpp"

XPKERN_NAMESPACE_BEGIN

// Rows of an array whose cache lines are asked for, one row after the other.
class RowsAhead {
  public:
    static constexpr int LINE = 64, MOST_ROWS = 96;

    RowsAhead() {}
    RowsAhead(const RowsAhead&) = delete;
    RowsAhead& operator=(const RowsAhead&) = delete;

    // One row more.
    void add(const void* row, int64_t bytes) {
        const char* begin = static_cast<const char*>(row);
        if (count_ > 0 && begin == end_[count_ - 1])
            end_[count_ - 1] += bytes;  // neighbours are one
        else
            begin_[count_] = begin, end_[count_++] = begin + bytes;
        wanted_ += bytes;
    }

  protected:
    // Goes on to the next row; at the last one, whose end has come, nothing happens.
    void take_row(const char*& at, const char*& stop) const {
        if (begun_ >= count_) return;
        at = begin_[begun_];
        stop = end_[begun_++];
    }
    int count() const { return count_; }
    int64_t wanted() const { return wanted_; }

  private:
    const char *begin_[MOST_ROWS], *end_[MOST_ROWS];
    int count_ = 0;
    mutable int begun_ = 0;
    int64_t wanted_ = 0;
};

// That of fits asks for a burst of lines after each block of sums, as many as the queue of loads has room for without
// holding up what is behind them. In the loops of the blocks themselves it would cost whitening a third of its time:
// there are registers for the addresses of its rows, and none for another one.
class StarFetcher : public RowsAhead {
  public:
    static constexpr int BURST = 12;

    XPKERN_INLINE void operator()() const {}
    void between_blocks() const {
        if (at_ >= stop_) take_row(at_, stop_);
        if (at_ >= stop_) return;
        for (int line = 0; line < BURST; ++line) __builtin_prefetch(at_ + line * LINE, 0, 2);
        at_ += BURST * LINE;
    }

  private:
    mutable const char *at_ = nullptr, *stop_ = nullptr;
};

// Whiteners, fluxes and parameters of a lane of training stars, a line at a time and evenly over all that is computed.
// A line is asked for again until the next one's turn comes. Rows have none to spare: they end between blocks.
class LaneFetcher : public RowsAhead {
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
        if (count() == 0) return;
        const int64_t evenly = wanted() / (calls < 1 ? 1 : calls) + 1;
        step_ = count() == 1 && evenly < LINE ? evenly : LINE;
        take_row(at_, stop_);
    }

    XPKERN_INLINE void operator()() const {
        __builtin_prefetch(at_, 0, 2);
        const char* to = at_ + step_;
        at_ = to < stop_ ? to : stop_;
    }
    // Goes on to the next row. Not in every step: a jump there costs 2 % of a star's time.
    XPKERN_INLINE void between_blocks() const {
        if (at_ >= stop_) take_row(at_, stop_);
    }

  private:
    mutable const char *at_ = reinterpret_cast<const char*>(this), *stop_ = at_;  // in the nearest cache
    int64_t step_ = 0;
};

XPKERN_NAMESPACE_END
