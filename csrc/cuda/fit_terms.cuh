// The loss of a star by a warp: its chi^2 (fit_warp.cuh), prior and constraints. What is a number of the star every
// lane has, of the derivatives one element.
#pragma once

#include "fit_warp.cuh"

XPKERN_NAMESPACE_BEGIN

// The Gaussian of the prior that a lane has, if there are as many; else another one.
struct FitGaussian {
    static constexpr int inputs = FitShape::n_inputs, packed = row_start(inputs);
    double log_weight, mean[inputs], root[packed], precision[packed];
    bool exists;

    __device__ __forceinline__ explicit FitGaussian(const PriorView& prior) {
        static_assert(2 * USUAL_COMPONENTS == LANES, "half of the lanes");
        const MixtureView<double>& mixture = prior.in_double;
        int k = lane_in_warp() % USUAL_COMPONENTS;
        exists = k < prior.n_components;
        if (!exists) k = 0;
        log_weight = mixture.log_weight[k];
        XPKERN_UNROLL
        for (int i = 0; i < inputs; ++i) mean[i] = mixture.mean[k * inputs + i];
        XPKERN_UNROLL
        for (int at = 0; at < packed; ++at)
            root[at] = mixture.root[k * packed + at], precision[at] = mixture.precision[k * packed + at];
    }
    __device__ __forceinline__ MixtureView<double> view() const { return {&log_weight, mean, root, precision}; }
};

// Sums over the prior's Gaussians, of which a lane has one: core/prior.hpp's MixtureSums, for all lanes to read.
struct FitMixture {
    static constexpr int inputs = FitShape::n_inputs, packed = row_start(inputs);
    const double *total, *gradient, *definite, *remainder;
    double largest;  // the exponent that is taken off all others, about the largest of them

    // The lanes that have no Gaussian of their own raise e to another power meanwhile: `power`, e^exponent.
    __device__ __forceinline__ FitMixture(const FitLane& here, const FitGaussian& gaussian, const double* theta,
                                          double exponent, FitStar& star, double& power) {
        constexpr int columns = 2 * FitTiles::rows;
        static_assert(2 * USUAL_COMPONENTS == LANES && USUAL_COMPONENTS % FitTiles::columns == 0, "half of the lanes");
        static_assert(1 + inputs + 2 * packed == columns, "two right tiles");
        constexpr int stride =
            columns + FitTiles::columns;  // so that half a warp's elements of a tile are in no bank twice
        const int mine = here.lane % USUAL_COMPONENTS;
        double slope[inputs];
        const double found = mixture_exponent<inputs>(gaussian.view(), 0, theta, slope);
        const double of_mine = gaussian.exists ? found : LEAST_EXPONENT;
        // what is about the largest serves, as it only keeps sums in range
        float about_largest = max(convert<float>(of_mine), float(LEAST_EXPONENT));
        XPKERN_UNROLL
        for (int half = USUAL_COMPONENTS / 2; half > 0; half /= 2)
            about_largest = max(about_largest, from_lane(about_largest, here.lane ^ half));
        largest = convert<double>(about_largest);
        const double raised = exp(here.lane < USUAL_COMPONENTS ? of_mine - largest : exponent);
        power = from_lane(raised, USUAL_COMPONENTS);
        MixtureSums<inputs, double> sums;
        sums.add(gaussian.view(), 0, gaussian.exists ? raised : 0.0, slope);

        double* const memory = star.columns.number;
        static_assert(USUAL_COMPONENTS * stride * sizeof(double) <= sizeof(FitColumns));
        double numbers[columns];
        numbers[0] = sums.total;
        XPKERN_UNROLL
        for (int i = 0; i < inputs; ++i) numbers[1 + i] = sums.gradient[i];
        XPKERN_UNROLL
        for (int at = 0; at < packed; ++at) {
            numbers[1 + inputs + at] = sums.definite[at];
            numbers[1 + inputs + packed + at] = sums.remainder[at];
        }
        __syncwarp();
        if (here.lane < USUAL_COMPONENTS) {
            XPKERN_UNROLL
            for (int i = 0; i < columns; i += 2)
                reinterpret_cast<Pair*>(memory + mine * stride)[i / 2] = {numbers[i], numbers[i + 1]};
        }
        __syncwarp();
        double found_sums[2][2] = {};
        XPKERN_UNROLL
        for (int j = 0; j < USUAL_COMPONENTS; j += FitTiles::columns) {
            XPKERN_UNROLL
            for (int h = 0; h < 2; ++h)
                multiply_tiles(1.0, memory[(j + here.column) * stride + h * FitTiles::rows + here.row], found_sums[h]);
        }
        __syncwarp();
        if (here.row < 2)
            reinterpret_cast<Pair*>(memory)[here.lane] = {here.row ? found_sums[1][0] : found_sums[0][0],
                                                          here.row ? found_sums[1][1] : found_sums[0][1]};
        __syncwarp();
        total = memory;
        gradient = total + 1;
        definite = gradient + inputs;
        remainder = definite + packed;
    }
};

// The core's function of that name for a warp, all of it in every lane.
__device__ __forceinline__ PriorValue<double> evaluate_prior(const FitShape&, const PriorView& prior,
                                                             const double* theta, double*) {
    double nothing;
    const FitMixture mixture(FitLane(), FitGaussian(prior), theta, 0.0, fit_star(), nothing);
    MixtureSums<FitMixture::inputs, double> sums;
    sums.total = *mixture.total;
    XPKERN_UNROLL
    for (int i = 0; i < FitMixture::inputs; ++i) sums.gradient[i] = mixture.gradient[i];
    XPKERN_UNROLL
    for (int at = 0; at < FitMixture::packed; ++at) {
        sums.definite[at] = mixture.definite[at];
        sums.remainder[at] = mixture.remainder[at];
    }
    return sums.value(mixture.largest);
}

// What an evaluation finds; of the derivatives the lane's element (FitElement).
struct FitEvaluation {
    double loss, chi2, ln_prior;
    float definite, hessian, normal;
};

// The core's function of that name for a warp, at star.trial; curvature: what the exact Hessian has of the fluxes.
__device__ __forceinline__ void add_other_terms(const FitLane& here, const FitElement& element,
                                                const FitGaussian& gaussian, const LossView& terms, FitStar& star,
                                                float curvature, FitEvaluation& found) {
    constexpr int k = FitElement::k, inputs = FitShape::n_inputs, ext = inputs, plx = inputs + 1;
    const int p = element.column;
    const double u = star.trial[p];
    double parallax;
    const FitMixture mixture(here, gaussian, star.trial, star.trial[plx], star, parallax);
    // lanes that are asked for -2 ln E have E where others have the sum over Gaussians
    const bool of_ext = terms.jacobian_ext && p == ext, of_plx = p == plx, of_types = element.row < inputs;
    const double argument = of_ext ? u : *mixture.total, logarithm = log(argument), inverse = quotient(1.0, argument);
    found.ln_prior = mixture.largest + from_lane(logarithm, 0);

    const double weight = star.weight[p], value = of_plx ? parallax : u;
    const Constraint<double> constraint(weight, weight > 0 ? star.mean[p] : value, value, of_plx ? parallax : 1.0,
                                        of_plx ? parallax : 0.0);
    const bool counts = terms.prior, drawn = of_plx && terms.jacobian_plx;
    const int at = of_types ? element.at : 0, row = of_types ? element.row : 0, column = p < inputs ? p : 0;
    const double slope = mixture.gradient[column] * inverse, other_slope = mixture.gradient[row] * inverse;
    const double share = mixture.definite[at] * inverse;
    const double remainder = fma(mixture.remainder[at], inverse, -(other_slope * slope));
    const double of_jacobian = of_ext ? inverse : drawn ? 1.0 : 0.0;
    // halves of the definite and of the exact second derivative, or of the first
    double definite = element.on_diagonal() ? constraint.definite : 0.0;
    double exact = element.on_diagonal() ? constraint.exact : 0.0;
    if (counts && of_types) definite += share, exact += share - remainder;
    if (element.on_diagonal() && of_ext) definite += inverse * inverse, exact += inverse * inverse;
    double loss = 0;
    if (element.of_gradient()) {
        definite = exact = constraint.gradient - (counts && p < inputs ? slope : 0.0) - of_jacobian;
        loss = constraint.added_to(of_ext ? -2 * logarithm : drawn ? -2 * u : 0.0);
    }
    const float twice = found.normal + found.normal;
    found.definite = twice + convert<float>(definite + definite);
    found.hessian = twice + curvature + convert<float>(exact + exact);
    found.loss = terms.prior ? fma(found.ln_prior, -2.0, found.chi2) : found.chi2;
    XPKERN_UNROLL
    for (int q = 0; q < k; ++q) found.loss += from_lane(loss, FitElement::squares + q);
}

// The loss at star.trial.
__device__ __forceinline__ FitEvaluation evaluate_by_warp(const ModelView& model, const FitShape& shape,
                                                          const FitGaussian& gaussian, const LossView& terms,
                                                          FitStar& star) {
    if (shape.in_rounds) fit_block().round.join(star.in_round);
    const FitLane here;
    const FitElement element(here);
    FitTape tape;
    predict_by_warp(here, model, star.trial, star, tape);
    Whitened y;
    whiten_by_warp(here, star, y);
    FitEvaluation found;
    found.chi2 = multiply_normal(here, star, y);
    found.normal = star.normal[element.row * FitColumns::width + element.column];
    const float curvature = shape.exact ? curvature_by_warp(here, element, star, tape) : 0.0f;
    add_other_terms(here, element, gaussian, terms, star, curvature, found);
    if (!shape.exact) found.hessian = found.definite;
    __syncwarp();  // no lane still reads star.trial
    return found;
}

// Leaves what is at star.trial in star.u and star.best.
__device__ __forceinline__ void accept(const FitEvaluation& found, FitStar& star) {
    const int lane = lane_in_warp();
    if (lane < FitElement::k) star.u[lane] = star.trial[lane];
    if (lane < FitElement::count) star.best.definite[lane] = found.definite;
    if (lane < FitElement::squares) star.best.hessian[lane] = found.hessian, star.best.normal[lane] = found.normal;
    __syncwarp();
}

XPKERN_NAMESPACE_END
