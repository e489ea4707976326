// Which places of lanes the stars of a batch take.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "arguments.hpp"

namespace xpkern {

// A lane has STARS_SIDE_BY_SIDE places. Stars that stand side by side and follow one another in a batch, in ascending
// order, take their own places of one lane: its whiteners can then be read where they stand. Where that would more than
// double the lanes of a batch, and where whiteners stand in rows, stars take places as they come.
class Places {
  public:
    // batches: (steps, size) rows of stars.
    Places(const int64_t* batches, int64_t steps, int64_t size, bool side_by_side) {
        const int64_t least = (size + STARS_SIDE_BY_SIDE - 1) / STARS_SIDE_BY_SIDE;
        int64_t most = least;
        for (int64_t step = 0; step < steps && side_by_side; ++step) {
            const int64_t lanes = lanes_of_groups(batches + step * size, size);
            if (lanes <= 2 * least) most = std::max(most, lanes);
        }
        of_batch_ = most * STARS_SIDE_BY_SIDE;
        places_.assign(static_cast<size_t>(steps * of_batch_), NOBODY);
        for (int64_t step = 0; step < steps; ++step) {
            const int64_t* rows = batches + step * size;
            int64_t* places = places_.data() + step * of_batch_;
            const bool by_group = side_by_side && lanes_of_groups(rows, size) <= 2 * least;
            int64_t lane = -1;
            for (int64_t i = 0; i < size; ++i) {
                lane += begins_lane(rows, i);
                places[by_group ? lane * STARS_SIDE_BY_SIDE + rows[i] % STARS_SIDE_BY_SIDE : i] = rows[i];
            }
        }
    }

    // Of each batch: as many as the one with most lanes needs.
    int64_t of_batch() const { return of_batch_; }
    // Rows of stars, or NOBODY: (of_batch(),).
    const int64_t* batch(int64_t step) const { return places_.data() + step * of_batch_; }

  private:
    static bool begins_lane(const int64_t* rows, int64_t i) {
        return i == 0 || rows[i] <= rows[i - 1] || rows[i] / STARS_SIDE_BY_SIDE != rows[i - 1] / STARS_SIDE_BY_SIDE;
    }
    static int64_t lanes_of_groups(const int64_t* rows, int64_t size) {
        int64_t lanes = 0;
        for (int64_t i = 0; i < size; ++i) lanes += begins_lane(rows, i);
        return lanes;
    }

    int64_t of_batch_;
    std::vector<int64_t> places_;
};

}  // namespace xpkern
