// Factors in blocks (core/block_factor.hpp) of the stars in hand, each in a row of its own without what is not read:
// half as long as the stored whitener, so that stars that are packed anew bring half as much from a distant cache.
#pragma once

#include "star_lanes.hpp"

XPKERN_NAMESPACE_BEGIN

class BlockStore {
  public:
    static constexpr int width = LaneTraits<FloatLane>::width, SIDE = STARS_SIDE_BY_SIDE;

    // Room for so many factors; none of a form without a trailing block.
    BlockStore(const BlockForm& form, int64_t places, Arena& arena) {
        const int packed = row_start(form.samples);
        size_ = row_start(form.leading) + form.alone + form.samples - form.linked;
        for (int i = form.leading; i < form.linked; ++i) size_ += i + 1 - form.stand_in();
        size_ = (size_ + SIDE - 1) / SIDE * SIDE;
        if (!form.has_trailing()) size_ = 0;
        n_free_ = size_ > 0 ? places : 0;
        lane_ = arena.take<int32_t>(size_);
        rows_ = arena.take<float>(n_free_ * size_);
        free_ = arena.take<int64_t>(n_free_);
        if (!arena.base || size_ == 0) return;
        for (int64_t i = 0; i < n_free_; ++i) free_[i] = i;
        int32_t* next = lane_;
        const auto add = [&](int first, int end) {
            for (int at = first; at < end; ++at) *next++ = at;
        };
        add(0, row_start(form.leading));
        for (int i = form.leading; i < form.linked; ++i) add(row_start(i) + form.stand_in(), row_start(i) + i + 1);
        for (int i = form.linked; i < form.samples; ++i) add(row_start(i) + i, row_start(i) + i + 1);
        add(packed, packed + form.alone);
        while (next < lane_ + size_) *next++ = packed + form.samples;  // of no use
    }

    int64_t free_places() const { return n_free_; }
    int64_t take_place() { return free_[--n_free_]; }
    void give_back(int64_t place) { free_[n_free_++] = place; }
    const float* row(int64_t place) const { return rows_ + place * size_; }
    int64_t row_bytes() const { return size_ * int64_t(sizeof(float)); }

    // The factors of a lane's stars: factor as GatheredStars has it. place: (width,).
    void save(const FloatLane* factor, const int64_t* place, int stars) const {
        store_chosen(factor, lane_, size_, place, stars, rows_);
    }
    void load(const int64_t* place, FloatLane* factor) const {
        for_each_column<FloatLane, Next::any>(rows_, place, size_,
                                              [&](int k, const FloatLane& values) { factor[lane_[k]] = values; });
    }

  private:
    int size_;       // numbers of a factor, in whole cache lines
    int32_t* lane_;  // (size,) where each of them belongs
    float* rows_;    // (places, size)
    int64_t* free_;  // (places,) places that nobody has, the first n_free of them
    int64_t n_free_;
};

XPKERN_NAMESPACE_END
