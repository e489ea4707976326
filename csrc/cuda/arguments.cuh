// What the kernels are given: one plain struct each, by value. Pointers are addresses on the device; the views are
// those of csrc/core. No functions but on constants: the host fills the same types.
#pragma once

#include "core/calibration_view.hpp"
#include "core/views.hpp"

namespace xpkern {

// Memory of kernels whose name ends in _any (those of XPKERN_GENERAL): so many bytes for each thread of the grid.
// scratch_bytes() says how many.
struct ThreadScratch {
    char* memory;
    int64_t bytes_a_thread;
};

struct CalibrateArguments {
    CalibrationView view;
    CalibrationRows rows;
    int64_t n;
    bool* unfinished;  // (n,) out: stars whose eigenvalues may lie below the floor, left to the host
    ThreadScratch scratch;
};

struct PredictArguments {
    ModelView model;
    const double* params;  // (n, k) linear
    double* flux;          // (n, m)
    int64_t n;
    ThreadScratch scratch;
};

struct FreezeArguments {
    NoiseView noise;               // covariance: in the order of FreezeTiles (freeze_warp.cuh)
    const float *flux, *whitener;  // (n, m), (n, p)
    const double* params;          // (n, k) linear
    const double* predicted;       // (n, m) f there
    FrozenArrays out;
    int64_t n, parameters, inputs;
};

struct CurvatureArguments {
    PriorView prior;
    const double* theta;  // (n, d)
    double* curvature;    // (n, d, d) out: minus the Hessian of ln p
    int64_t n;
    ThreadScratch scratch;
};

struct EvaluateArguments {
    ModelView model;
    PriorView prior;
    LossView terms;
    StarArrays stars;
    const double* params;  // (n, k) linear
    EvaluationArrays out;
    int64_t n;
    ThreadScratch scratch;
};

struct StartArguments {
    GridView grid;
    int64_t samples, inputs;
    StarArrays stars;
    int64_t n, starts;
    double gate;
    double* params;  // (n, starts, k) linear, NaN beyond the last start of a star
    ThreadScratch scratch;
};

// Searches that wait for a stage: their numbers, in any order, and how many they are.
struct SearchQueue {
    int64_t* searches;
    int64_t* count;
};

// One stage of a fit. Search s is of star s / fit.starts.
struct FitArguments {
    FitView fit;
    StarArrays stars;
    SolutionArrays out;  // of the usual form residual has the samples' variances until residuals are there
    int64_t n;
    char* progress;           // (n * starts,) Search
    SearchQueue taken, left;  // searches that the stage takes up, and those that it leaves for the next
    int64_t* begun;           // items that warps have taken up, where they take them up one by one
    int64_t evaluations;      // of a search in this stage, those of launches before included; then it is left
    ThreadScratch scratch;
};

struct InvertArguments {
    const double* information;     // (n, k, k)
    double *covariance, *inverse;  // (n, k, k) out
    bool* floored;                 // (n,) out: where an eigenvalue was raised
    int64_t n, parameters;
};

struct SearchArguments {
    CandidateView grid;
    StarArrays stars;
    int64_t n, parameters;
    int64_t slices;  // threads of a star, each with a share of the types
    char* best;      // (n, slices) BestCandidate
    double* params;  // (n, k) linear
    ThreadScratch scratch;
};

struct DescendArguments {
    FitView fit;  // start_params: (n, k) linear
    DescentView how;
    StarArrays stars;
    int64_t n;
    double* params;  // (n, k) linear
    ThreadScratch scratch;
};

// How a run of training ended, or that it goes on.
enum TrainingEnd : int64_t { TRAINING_GOES_ON = 0, LOSS_NOT_FINITE = 1, MODEL_NOT_FINITE = 2 };

// Where a run of training stands, on the device. No kernel reads what it writes itself, but for who has arrived.
struct TrainingState {
    int64_t step;                // the batch to come: those before it are done
    int64_t at;                  // the batch at hand; -1 where there is none, and kernels do nothing
    int64_t end;                 // TrainingEnd; from another one than TRAINING_GOES_ON on there are no more batches
    unsigned long long arrived;  // blocks of a kernel whose last one ends the batch
};

// How many parameters a model has, where R begins among them, and how many are weights.
struct ParameterCounts {
    int64_t size, curve, n_weights;
};

// Whiteners that become their inverses, packed as they are.
struct WhitenerArguments {
    float* whitener;  // (n, p)
    int64_t n;
};

// One batch: state->at says which. model.in_float points into `floats`, whose order is that of core/model_step.hpp.
struct TrainArguments {
    ModelView model;
    ParameterCounts counts;
    StarArrays stars;
    int64_t inverted;           // whether stars.whitener has inverses, which the usual form alone takes
    double* params;             // (n, k) linear, changed by the stars' steps
    const int64_t* batches;     // (steps, size) rows
    int64_t* next_rows;         // (size,) those of the batch to come: the first one's when kernels begin
    int64_t steps, size;        // size: stars of a batch
    int64_t chunk_stars;        // stars whose sums are added up in single precision, a multiple of STAR_WARPS
    int64_t chunks;             // of a batch
    const double* model_rates;  // (steps,), null where the model takes no steps, but has a gradient at most
    ModelStepView how;
    int64_t count;             // steps of the model in runs before
    const double* star_rates;  // (steps,), null where stars take none
    double star_clip;
    LossView terms;
    double lower[MAX_PARAMETERS], upper[MAX_PARAMETERS];
    double *parameters, *first, *second;                       // (p,) the model and its optimiser's moments
    double *parameters_before, *first_before, *second_before;  // (p,) these before the last step
    float* floats;                                             // (p,) the parameters in single precision
    double* gradient;                                          // (p,) out
    float* tape;         // (size, elements) scratch of the general form: what the products are made of
    float* chunk_sums;   // (chunks, p rounded up to whole tiles) scratch
    double* tile_sums;   // (4, tiles) scratch
    double* chi2;        // (size,) of the batch at hand, out
    double* model_loss;  // (steps,) out: Eq. 12 before each step
    double* star_loss;   // (n,) out: the star's loss before its last step
    TrainingState* state;
    ThreadScratch scratch;
};

// Bytes that a thread of a kernel's _any form needs. 0 where the usual form serves: it needs none, and is faster.
struct KernelScratch {
    int64_t calibrate, predict, curvature, evaluate, start, fit, search, descend, train;
    int64_t rescue;            // that of a fit, which takes more than its other stages
    int64_t tape;              // elements of TrainArguments::tape
    int64_t design, spectrum;  // bytes of shared memory that the usual form of calibrate takes: a block, and each warp
};
struct ScratchArguments {
    ModelView model;                        // sizes alone are read; n_layers = 0 where there is none
    PriorView prior;                        // as above, n_components = 0
    CalibrationView calibration;            // as above, samples = 0
    int64_t n_types, samples, inputs;       // of a start grid, 0 where there is none
    int64_t search_samples, search_window;  // of a grid of candidates, 0 where there is none
    KernelScratch* bytes;                   // out
};

// Bytes of the structs that a host fills or allocates: a host that has types of its own checks them.
struct ArgumentSizes {
    int64_t calibrate, predict, freeze, curvature, evaluate, start, fit, invert, search, descend, whitener, train;
    int64_t scratch;
    int64_t search_progress, best_candidate, training_state, kernel_scratch;
    // Of freeze_noise, fit_search, the starts and fit_finish: most warps of a block, its shared memory without stars,
    // and that of a star.
    int64_t freeze_warps, freeze_common, freeze_star;
    int64_t search_warps, search_common, search_star;
    int64_t start_warps, start_common, start_star, finish_warps, finish_common, finish_star;
    int64_t train_warps, train_shared;  // of a block of training's kernels over stars
};
struct SizesArguments {
    ArgumentSizes* sizes;  // out
};

}  // namespace xpkern
