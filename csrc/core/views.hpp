// Plain views of the arrays that kernels read: no functions, so that every build may share these types.
#pragma once

#include "integers.hpp"

namespace xpkern {

constexpr int MAX_LAYERS = 8;      // weight matrices of the network
constexpr int MAX_INPUTS = 6;      // stellar types have 3 coordinates today; extinction-curve variation will add one
constexpr int MAX_PARAMETERS = 8;  // inputs, extinction, parallax
constexpr int START_COLUMNS = 14;  // of a start grid's basis: extinction, ln parallax, spectra
constexpr int MAX_COLUMNS = 15;    // of a least-squares problem, its right-hand side included
static_assert(MAX_COLUMNS > START_COLUMNS && MAX_COLUMNS > MAX_PARAMETERS, "one column more than unknowns");
constexpr int MAX_TRIANGLE = MAX_PARAMETERS * (MAX_PARAMETERS + 1) / 2;

// Numbers that the reference engine states too, with their reasons; a test holds the two together.
constexpr double SMALLEST_EXT = 1e-6;          // E stays positive: the lower edge of its box is never below this
constexpr double SAME_MINIMUM = 0.02;          // searches that end closer, in kK, dex and ln plx,
constexpr double SAME_MINIMUM_EXT = 0.01;      // and in E, have found one minimum
constexpr double EIGENVALUE_FLOOR = 1e-6;      // of an information matrix scaled to a unit diagonal
constexpr double START_SPECTRUM_ERROR = 0.8;   // fraction to which the grid's mean spectrum tells a sample's flux
constexpr double START_NEIGHBOUR_ERROR = 0.1;  // fraction to which the mean of its neighbours tells a sample's flux
constexpr double START_LEAST_FLUX = 0.1;       // of which a guess is never below that many sigma
constexpr double START_SMALLEST = 1e-12;       // divisor, and scale of the mean spectrum
constexpr double START_LARGEST_EXCESS = 30;    // relative to the guess
constexpr double START_RIDGE = 0.01;           // on the diagonal of the start's normal matrix,
constexpr double START_RELATIVE_RIDGE = 1e-6;  // and as a fraction of it
constexpr double START_LEAST_EXT = 1e-3;       // that a start proposes
constexpr double START_LEAST_LN_PLX = -9.210340371976182, START_LARGEST_LN_PLX = 6.907755278982137;
constexpr double ADAM_BETA1 = 0.9;     // Adam forgets gradients over this,
constexpr double ADAM_BETA2 = 0.999;   // and their squares over this;
constexpr double ADAM_EPSILON = 1e-7;  // where those are smaller, its steps shrink

// ln f = MLP((Theta - zero_point) / scale) - E R + 2 ln plx (Eq. 8), in one precision.
template <class Element>
struct NetworkView {
    const Element* weights[MAX_LAYERS];  // (width[l], width[l + 1]) row-major
    const Element* biases[MAX_LAYERS];   // (width[l + 1],)
    const Element* ext_curve;            // (m,) R
    Element zero_point[MAX_INPUTS];
    Element inverse_scale[MAX_INPUTS];
};

struct ModelView {
    int n_layers;               // weight matrices: hidden layers + 1
    int width[MAX_LAYERS + 1];  // inputs, hidden layers, samples m
    NetworkView<float> in_float;
    NetworkView<double> in_double;
};

// ln p(Theta) = ln sum_k exp(log_weight_k - |U_k (Theta - mean_k)|^2 / 2) (Eq. 18), in one precision.
template <class Element>
struct MixtureView {
    const Element* log_weight;  // (K,) ln of weight over the Gaussian's normalisation
    const Element* mean;        // (K, d)
    const Element* root;        // (K, d (d + 1) / 2) lower triangle L by rows
    const Element* precision;   // (K, d (d + 1) / 2) lower triangle of L L^T by rows
};

struct PriorView {
    int n_components;
    int n_dimensions;
    MixtureView<float> in_float;
    MixtureView<double> in_double;
};

// Which optional terms the star loss has.
struct LossView {
    bool prior;
    bool jacobian_ext;
    bool jacobian_plx;
};

// Stellar types that a fit may start from, and their spectra in a basis of ln flux.
struct GridView {
    int n_types;
    const float* rows;      // (t, start_row_size) what start_type() names
    const float* basis;     // (m, c)
    const float* inverse;   // (m, c) transposed
    const float* mean;      // (m,) of ln flux
    const float* typical;   // (m,) its exponential
    const int32_t* window;  // (m, 2) first sample, and one beyond the last, that a sample is compared with
    float reach[MAX_INPUTS], apart[MAX_INPUTS];
};

// Candidates for the start of a first-order descent: every type with every extinction.
struct CandidateView {
    int n_types, n_ext, n_samples;
    int n_stored;                     // extinctions in the table, a multiple of the widest lane: the last repeats
    const float* base_flux;           // (t, m) at E = 0, plx = 1
    const float* attenuation;         // (m, n_stored) exp(-E R)
    const float* minus_two_ln_prior;  // (t,), or zeros where the score has no prior
    const double* types;              // (t, inputs)
    const double* ext;                // (n_ext,)
    const int32_t* window;            // (n_window,) samples of the parallax guess, ascending
    int n_window;
    bool mean_of_ratios;  // parallax guess: mean of the positive ratios of fluxes, else ratio of their sums
    bool score_parallax;  // whether the score counts the measured parallax
    float plx_lower, plx_upper;
};

// A run of first-order steps: rate * decay^(step / decay_every), gradients clipped to a norm.
struct DescentView {
    bool adam;  // else plain gradient descent
    int steps;
    double rate, decay;
    int decay_every;
    double clip;
};

// How a model takes its steps: gradients clipped to a norm, then Adam, or gradient descent with momentum.
struct ModelStepView {
    bool adam;
    double momentum, clip;
};

constexpr int COMMON_ERRORS = 3;       // of Eq. 2: of all XP samples, of those of BP, of those of RP
constexpr int MAX_GROUPS = 32;         // of stellar types, of a learned noise;
constexpr double LEAST_WEIGHT = 1e-4;  // one with less than this of the nearest one's weight has no share
constexpr int ERROR_COLUMNS = 6;       // elements of a row that are blended together

// A learned noise, C = factor C_gaia + (f f^T) o S(Theta) with S blended from groups of stellar types, and the terms of
// Eq. 2 that the stored covariances have beyond C_gaia.
struct NoiseView {
    int n_groups;
    const double* centre;         // (g, inputs)
    const double* inverse_scale;  // (inputs,)
    const double* covariance;     // lower triangles by rows, in the order in which they are blended: of each row
                                  // ERROR_COLUMNS elements of one group after the other, zeros where the row ends
    double factor;
    const double* independent;  // (m,)
    const double* common;       // (COMMON_ERRORS, m)
};

struct FrozenArrays {
    float* whitener;  // (n, p)
    double* ln_det;   // (n,)
};

// Stars of a block, star-major. k: parameters, m: samples, p = m (m + 1) / 2.
struct StarArrays {
    const float* flux;      // (n, m)
    const float* whitener;  // (n, p)
    const double* mean;     // (n, k)
    const double* sigma;    // (n, k), inf where there is no constraint
};

// How samples may be related: those before `alone` to others before `leading` only, those from there up to `linked` to
// one another and to the ones between, those after that to none; and all before `linked` by one common error. All 0:
// nothing is known. It is a hint: core/block_factor.hpp says what follows from it.
struct SampleBlocks {
    int alone, leading, linked;
};

struct EvaluationArrays {
    double *loss, *chi2, *ln_prior;  // (n,)
    double* gradient;                // (n, k) in x
    double* hessian;                 // (n, k, k) in x
    double* fisher;                  // (n, k, k) in the linear parameters
};

struct SolutionArrays {
    EvaluationArrays at;
    double* params;         // (n, k) linear
    double* decrement;      // (n,)
    float* residual;        // (n, m)
    int32_t* iterations;    // (n,)
    uint32_t* status;       // (n,)
    int32_t* minima;        // (n,) distinct minima found
    double* second_params;  // (n, k) the second lowest of them, NaN where there is none
    double* second_gap;     // (n,) how much higher its loss is
};

struct FitView {
    ModelView model;
    PriorView prior;
    LossView terms;
    double lower[MAX_PARAMETERS], upper[MAX_PARAMETERS];  // box of the linear parameters
    int max_iterations;
    double tolerance;
    GridView grid;               // the start, or
    const double* start_params;  // (n, k) given starts, where the grid has no types
    int starts;                  // at most that many of the grid's, within
    double gate;                 // this of the best one's score
};

}  // namespace xpkern
