// Confidence in the parameters of a star (ZGR23 section 4.4):
//
//     z = clamp((feature - centre) / scale, -largest, largest), feature = fill where it is not finite
//     h = max(W^T h + b, 0) layer by layer, and of the last one confidence = 1 / (1 + exp(-(W^T h + b)))
//
// 86-64-64-64-1 is 13.8k fused multiply-adds. Each sum is taken in one order: a star's confidence does not depend on
// its company.
#pragma once

#include "confidence_view.hpp"
#include "network.hpp"

XPKERN_NAMESPACE_BEGIN

// Lanes that go through a network side by side, so that a weight that was loaded serves them all.
constexpr int CONFIDENCE_STREAMS = 2;

XPKERN_INLINE int widest_layer(const ConfidenceView& view) {
    int widest = 1;
    for (int l = 0; l <= view.n_layers; ++l) widest = view.width[l] > widest ? view.width[l] : widest;
    return widest;
}

template <class Lane>
XPKERN_INLINE Lane standardised(const ConfidenceView& view, int i, const Lane& feature) {
    const Lane known = select(abs(feature) <= lane<Lane>(3.4028234e38), feature, Lane(view.fill[i]));
    const Lane limit = Lane(view.largest);
    return clamp((known - Lane(view.centre[i])) * Lane(view.inverse_scale[i]), -limit, limit);
}

// features: (f, STREAMS) standardised; space: 2 of (widest, STREAMS); result: (classifiers, STREAMS).
template <class Lane>
XPKERN_KERNEL void classify(const ConfidenceView& view, const Lane* features, Lane* space, Lane* result) {
    constexpr int STREAMS = CONFIDENCE_STREAMS;
    Lane* buffer[2] = {space, space + widest_layer(view) * STREAMS};
    for (int c = 0; c < view.n_classifiers; ++c) {
        const Lane* below = features;
        for (int l = 0; l < view.n_layers; ++l) {
            const int n_in = view.width[l], n_out = view.width[l + 1];
            Lane* out = buffer[l % 2];
            multiply_streams<STREAMS>(view.weights[l] + int64_t(c) * n_in * n_out, view.biases[l] + c * n_out, n_in,
                                      n_out, STREAMS, below, out);
            if (l + 1 < view.n_layers)
                for (int j = 0; j < n_out * STREAMS; ++j) out[j] = max(out[j], lane<Lane>(0));
            below = out;
        }
        for (int s = 0; s < STREAMS; ++s) result[c * STREAMS + s] = lane<Lane>(1) / (lane<Lane>(1) + exp(-below[s]));
    }
}

XPKERN_NAMESPACE_END
