// What the module hands to the kernels of one instruction set: plain structs only, shared by every build.
#pragma once

#include <stdint.h>

#include "../core/calibration_view.hpp"
#include "../core/confidence_view.hpp"
#include "../core/views.hpp"

namespace xpkern {

// Floats of the widest register: so many stars' whiteners a training set may keep side by side.
constexpr int STARS_SIDE_BY_SIDE = 16;

// Stars to train on. Their whiteners stand in rows, or side by side, (groups, p, STARS_SIDE_BY_SIDE).
struct TrainingStars {
    StarArrays arrays;
    bool side_by_side;
};

constexpr int64_t NOBODY = -1;  // at a place that no star takes

// Rows of the stars at a chunk's places, whole lanes of them, and at those that come next: null where there are none.
struct ChunkPlaces {
    const int64_t* places;
    int count;
    const int64_t* next;
};

// A model in training: all its parameters (core/model_step.hpp says in which order), and what its optimiser remembers.
struct TrainingState {
    double *parameters, *first, *second;
};

// Information matrices (n, k, k), their covariances, what these are the inverses of, and where the floor acted (n,).
struct InformationArrays {
    const double* information;
    double *covariance, *inverse;
    bool* floored;
};

// One instruction set's kernels. Each works on the stars [begin, end) with scratch of its own.
struct Kernels {
    const char* name;
    int64_t (*scratch_bytes)(const ModelView&, const PriorView&, int64_t rows, int starts, int types,
                             const SampleBlocks&);
    int64_t (*calibration_scratch_bytes)(const CalibrationView&);
    void (*calibrate)(const CalibrationView&, const CalibrationRows&, int64_t begin, int64_t end, char* scratch);
    void (*predict)(const ModelView&, const double* params, double* flux, int64_t begin, int64_t end, char* scratch);
    void (*evaluate)(const FitView&, const StarArrays&, const EvaluationArrays&, int64_t begin, int64_t end,
                     char* scratch);
    // params: (n, starts, k), NaN beyond the last start of a star.
    void (*start)(const GridView&, const ModelView& sizes, int starts, double gate, const StarArrays&, double* params,
                  int64_t begin, int64_t end, char* scratch);
    void (*fit)(const FitView&, const StarArrays&, const SampleBlocks&, const SolutionArrays&, int64_t begin,
                int64_t end, char* scratch);
    // params: (n, k) linear, of the candidate with the lowest score.
    int64_t (*search_scratch_bytes)(const CandidateView&);
    void (*search)(const CandidateView&, int parameters, const StarArrays&, double* params, int64_t begin, int64_t end,
                   char* scratch);
    // params: (n, k) linear, where the steps from start_params end.
    int64_t (*descent_scratch_bytes)(const ModelView&, const PriorView&);
    void (*descend)(const FitView&, const DescentView&, const StarArrays&, double* params, int64_t begin, int64_t end,
                    char* scratch);
    // Whiteners and ln det of covariances under a learned noise at params: (n, k) linear.
    int64_t (*freeze_scratch_bytes)(const ModelView&, int groups);
    void (*freeze)(const ModelView&, const NoiseView&, const float* flux, const float* whitener, const double* params,
                   const SampleBlocks&, const FrozenArrays&, int64_t begin, int64_t end, char* scratch);
    // Minus the Hessian of ln p: theta (n, d), curvature (n, d, d).
    int64_t (*prior_scratch_bytes)(const PriorView&);
    void (*curve_prior)(const PriorView&, const double* theta, double* curvature, int64_t begin, int64_t end,
                        char* scratch);
    void (*invert)(const InformationArrays&, int parameters, int64_t begin, int64_t end);
    // Confidence in parameters: features (n, f), confidence (n, classifiers).
    int64_t (*confidence_scratch_bytes)(const ConfidenceView&);
    void (*classify)(const ConfidenceView&, const float* features, float* confidence, int64_t begin, int64_t end,
                     char* scratch);
    // Training: sums of a chunk's stars and their total, (chunk_gradient_size,); the gradient of all the model's
    // parameters for a mean over stars; the penalty on weights; a step, and whether it leads to a finite model.
    int chunk_places;
    int64_t (*training_scratch_bytes)(const ModelView&);
    int64_t (*chunk_gradient_size)(const ModelView&);
    void (*add_chunk_gradient)(const ModelView&, const TrainingStars&, const double* params, const ChunkPlaces&,
                               float* gradient, double* chi2, char* scratch);
    void (*total_of_chunks)(const ModelView&, const float* chunks, int64_t n_chunks, double* total);
    void (*gradient_of_total)(const ModelView&, const double* parameters, const double* total, int64_t n_stars,
                              double* gradient);
    double (*weight_penalty)(const ModelView&, const double* parameters);
    bool (*move_model)(const ModelView&, const ModelStepView&, double rate, int64_t count, const double* gradient,
                       const TrainingState& from, const TrainingState& to);
    // A step of each star of a chunk: params and loss, of all stars, change at their rows.
    void (*step_stars)(const ModelView&, const LossView&, const TrainingStars&, const double* lower,
                       const double* upper, double rate, double clip, const ChunkPlaces&, double* params, double* loss,
                       char* scratch);
    // Runs that many fused multiply-adds of float32 on data in registers: the machine's limit, for the benchmarks.
    float (*multiply_add)(int64_t count);
};

}  // namespace xpkern
