// What the classifiers of confidence are: no functions, so that every build may share this type.
#pragma once

#include "views.hpp"

namespace xpkern {

// A relu network for each of a few parameters, all of one architecture and fed by the same features.
struct ConfidenceView {
    int n_classifiers, n_layers;
    int width[MAX_LAYERS + 1];                   // features, hidden layers, 1
    float largest;                               // of a standardised feature
    const float *centre, *inverse_scale, *fill;  // (features,)
    const float* weights[MAX_LAYERS];            // (classifiers, width[l], width[l + 1]) row-major
    const float* biases[MAX_LAYERS];             // (classifiers, width[l + 1])
};

}  // namespace xpkern
