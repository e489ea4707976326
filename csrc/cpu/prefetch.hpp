// Asks for the memory of the stars that come next while those at hand are gathered and computed.
#pragma once

#include "star_lanes.hpp"

XPKERN_NAMESPACE_BEGIN

// Cache lines of some stars' whiteners, a few at every call: as many at once would fill the queue of loads and hold up
// everything behind them, and asked for while nothing waits for memory they cost nothing.
template <class Lane>
class RowFetcher {
  public:
    static constexpr int width = LaneTraits<Lane>::width;

    // The stars at the first `count` of rows. calls: how often it will be called.
    RowFetcher(const StarArrays& stars, const double* params, int m, int k, const int64_t* rows, int count, int calls)
        : whitener_(stars.whitener), size_(row_start(m)), count_(count < width ? count : width) {
        for (int star = 0; star < count_; ++star) {
            const int64_t row = rows[star];
            next_[star] = reinterpret_cast<const char*>(stars.whitener + row * size_);
            __builtin_prefetch(params + row * k, 0, 3);
            for (int i = 0; i < m; i += LINE / 4) __builtin_prefetch(stars.flux + row * m + i, 0, 2);
        }
        left_ = (size_ * 4 + LINE - 1) / LINE + 1;
        const int in_gather = left_ / 4;  // which takes a fourth of the time
        squares_a_line_ = in_gather > 0 ? size_ / width / in_gather + 1 : 1;
        lines_ = (left_ - in_gather + calls - 1) / calls;
    }

    void operator()() const { fetch(lines_); }

    // Whiteners of the stars at hand, (m (m + 1) / 2,).
    void gather(const Members<Lane>& members, Lane* factor) const {
        if constexpr (width == 1) {
            load_rows(whitener_, members.row, size_, factor);
        } else {
            const float* from[width];
            for (int star = 0; star < width; ++star) from[star] = whitener_ + members.row[star] * size_;
            int at = 0;
            for (int number = 0; at + width <= size_; at += width, ++number) {
                if (number % squares_a_line_ == 0) fetch(1);
                const float* here[width];
                for (int star = 0; star < width; ++star) here[star] = from[star] + at;
                Square<float, width> square;
                square.load_transposed(here);
                XPKERN_UNROLL
                for (int i = 0; i < width; ++i) factor[at + i].v[0] = square.row[i];
            }
            for (; at < size_; ++at) factor[at] = lane_of<Lane>([&](int star) { return from[star][at]; });
        }
    }

  private:
    static constexpr int LINE = 64;

    void fetch(int wanted) const {
        const int lines = wanted < left_ ? wanted : left_;
        left_ -= lines;
        for (int star = 0; star < count_; ++star) {
            for (int line = 0; line < lines; ++line) __builtin_prefetch(next_[star] + line * LINE, 0, 2);
            next_[star] += lines * LINE;
        }
    }

    const float* whitener_;
    const int size_, count_;
    mutable const char* next_[width];
    mutable int left_;
    int lines_, squares_a_line_;
};

XPKERN_NAMESPACE_END
