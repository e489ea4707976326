// Confidence in the parameters of a block of stars: core/confidence.hpp, a few lanes of stars at a time.
#pragma once

#include "../core/confidence.hpp"
#include "star_lanes.hpp"

XPKERN_NAMESPACE_BEGIN

// Memory of one group of lanes.
struct ConfidenceMemory {
    FloatLane *gathered, *features, *space, *result;
    ConfidenceMemory(const ConfidenceView& view, Arena& arena) {
        gathered = arena.take<FloatLane>(view.width[0]);
        features = arena.take<FloatLane>(view.width[0] * CONFIDENCE_STREAMS);
        space = arena.take<FloatLane>(2 * widest_layer(view) * CONFIDENCE_STREAMS);
        result = arena.take<FloatLane>(view.n_classifiers * CONFIDENCE_STREAMS);
    }
};

inline int64_t confidence_scratch_bytes(const ConfidenceView& view) {
    Arena arena{nullptr, 0};
    ConfidenceMemory(view, arena);
    return arena.used;
}

inline void classify_stars(const ConfidenceView& view, const float* features, float* confidence, int64_t begin,
                           int64_t end, char* scratch) {
    constexpr int STREAMS = CONFIDENCE_STREAMS, width = Members<FloatLane>::width;
    const int n_features = view.width[0], classifiers = view.n_classifiers;
    Arena arena{scratch, 0};
    const ConfidenceMemory memory(view, arena);
    for (int64_t first = begin; first < end; first += STREAMS * width) {
        for (int s = 0; s < STREAMS; ++s) {
            const int64_t start = first + s * width;
            const Members<FloatLane> members(start < end ? start : end - 1, end);
            load_rows(features, members.row, n_features, memory.gathered);
            for (int i = 0; i < n_features; ++i)
                memory.features[i * STREAMS + s] = standardised(view, i, memory.gathered[i]);
        }
        classify(view, memory.features, memory.space, memory.result);
        for (int64_t star = first; star < end && star < first + STREAMS * width; ++star) {
            const int place = static_cast<int>(star - first);
            for (int c = 0; c < classifiers; ++c)
                confidence[star * classifiers + c] = get(memory.result[c * STREAMS + place / width], place % width);
        }
    }
}

XPKERN_NAMESPACE_END
