// Asks for the memory of the stars that come next while those at hand are computed.
#pragma once

#include "star_lanes.hpp"

XPKERN_NAMESPACE_BEGIN

// Cache lines of some stars' rows, a few at every call: as many at once would fill the queue of loads and hold up
// everything behind them, and asked for while nothing waits for memory they cost nothing.
template <int WIDTH>
class RowFetcher {
  public:
    // calls: how often it will be called.
    RowFetcher(const StarArrays& stars, const double* params, int m, int k, const int64_t* rows, int count, int calls) {
        const int64_t size = row_start(m);
        count_ = count < WIDTH ? count : WIDTH;
        for (int star = 0; star < count_; ++star) {
            const int64_t row = rows[star];
            next_[star] = reinterpret_cast<const char*>(stars.whitener + row * size);
            __builtin_prefetch(params + row * k, 0, 3);
            for (int i = 0; i < m; i += LINE / 4) __builtin_prefetch(stars.flux + row * m + i, 0, 2);
        }
        left_ = static_cast<int>(size * 4 + LINE - 1) / LINE + 1;
        lines_ = (left_ + calls - 1) / calls;
    }
    void operator()() const {
        const int lines = lines_ < left_ ? lines_ : left_;
        left_ -= lines;
        for (int star = 0; star < count_; ++star) {
            for (int line = 0; line < lines; ++line) __builtin_prefetch(next_[star] + line * LINE, 0, 2);
            next_[star] += lines * LINE;
        }
    }

  private:
    static constexpr int LINE = 64;
    mutable const char* next_[WIDTH];
    mutable int left_;
    int count_, lines_;
};

XPKERN_NAMESPACE_END
