// Drives the core over a block of stars: gathers stars into lanes, runs the kernels, scatters the results.
#pragma once

#include "../core/evaluation.hpp"
#include "../core/optimise.hpp"
#include "../core/start.hpp"
#include "../core/status.hpp"
#include "arguments.hpp"
#include "pack.hpp"

XPKERN_NAMESPACE_BEGIN

// The lanes of this build. The scalar build runs the code that a GPU thread runs.
#if defined(XPKERN_SCALAR_LANES)
using FloatLane = float;
using WideLane = double;
using DoubleLane = double;
#else
using FloatLane = Pack<float, FLOAT_WIDTH>;
using WideLane = Pack<double, FLOAT_WIDTH>;
using DoubleLane = Pack<double, DOUBLE_WIDTH>;
#endif

// Stars of one lane: rows of the block, the last one repeated where the lane is not full.
template <class Lane>
struct Members {
    static constexpr int width = LaneTraits<Lane>::width;
    int64_t row[width];
    int count;
    // rows: those to take, or null for begin, begin + 1, ...
    Members(const int64_t* rows, int64_t begin, int64_t end) {
        count = static_cast<int>(end - begin < width ? end - begin : width);
        for (int s = 0; s < width; ++s) {
            const int64_t at = begin + (s < count ? s : count - 1);
            row[s] = rows ? rows[at] : at;
        }
    }
};

// out[i] holds sample i of every member. from: (n, length) row-major.
template <class Lane, class Element>
inline void gather(const Members<Lane>& members, const Element* from, int length, Lane* out) {
    constexpr int width = LaneTraits<Lane>::width;
    Scalar<Lane>* to = reinterpret_cast<Scalar<Lane>*>(out);
    int i = 0;
    if constexpr (width % 4 == 0 && SameType<Element, float>::value && SameType<Scalar<Lane>, float>::value) {
        typedef float Four __attribute__((vector_size(16)));
        for (; i + 4 <= length; i += 4) {
            for (int s = 0; s < width; s += 4) {  // a 4 x 4 transpose
                Four a, b, c, d;
                __builtin_memcpy(&a, from + members.row[s] * length + i, 16);
                __builtin_memcpy(&b, from + members.row[s + 1] * length + i, 16);
                __builtin_memcpy(&c, from + members.row[s + 2] * length + i, 16);
                __builtin_memcpy(&d, from + members.row[s + 3] * length + i, 16);
                const Four ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
                const Four ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
                const Four cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
                const Four cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
                const Four rows[4] = {__builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5),
                                      __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
                                      __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5),
                                      __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
                for (int r = 0; r < 4; ++r) __builtin_memcpy(to + (i + r) * width + s, &rows[r], 16);
            }
        }
    }
    for (; i < length; ++i)
        for (int s = 0; s < width; ++s)
            to[i * width + s] = static_cast<Scalar<Lane>>(from[members.row[s] * length + i]);
}

// One lane's stars in memory of their own.
template <class Real, class Wide>
struct GatheredStars {
    Real *flux, *factor;
    Wide *mean, *weight;

    GatheredStars(int m, int k, Arena& arena) {
        flux = arena.take<Real>(m);
        factor = arena.take<Real>(row_start(m));
        mean = arena.take<Wide>(k);
        weight = arena.take<Wide>(k);
    }
    void fill(const Members<Real>& members, const StarArrays& stars, int m, int k) {
        gather(members, stars.flux, m, flux);
        gather(members, stars.whitener, row_start(m), factor);
        fill_constraints(members, stars, k);
    }
    void fill_constraints(const Members<Real>& members, const StarArrays& stars, int k) {
        constexpr int width = LaneTraits<Wide>::width;
        double* means = reinterpret_cast<double*>(mean);
        double* weights = reinterpret_cast<double*>(weight);
        static_assert(sizeof(Scalar<Wide>) == 8, "constraints are kept in double");
        for (int p = 0; p < k; ++p)
            for (int s = 0; s < width; ++s) {
                const int64_t at = members.row[s] * k + p;
                means[p * width + s] = stars.mean[at];
                weights[p * width + s] = 1.0 / (stars.sigma[at] * stars.sigma[at]);
            }
    }
    StarView<Real, Wide> view() const { return {flux, factor, mean, weight}; }
};

// Linear parameters (n, k) of a lane's stars, as u.
template <class Narrow, class Lane>
inline void load_params(const Members<Narrow>& members, const double* params, int k, Lane* u) {
    constexpr int width = LaneTraits<Lane>::width;
    alignas(64) double values[width];
    for (int p = 0; p < k; ++p) {
        for (int s = 0; s < width; ++s) values[s] = params[members.row[s] * k + p];
        u[p] = load<Lane>(values);
        if (p == k - 1) u[p] = log(u[p]);
    }
}

inline void write_missing(int k, int m, int64_t row, const SolutionArrays& out) {
    const double nan = __builtin_nan("");
    out.at.loss[row] = out.at.chi2[row] = out.at.ln_prior[row] = out.decrement[row] = nan;
    for (int p = 0; p < k; ++p) out.params[row * k + p] = out.at.gradient[row * k + p] = nan;
    for (int p = 0; p < k * k; ++p) out.at.hessian[row * k * k + p] = out.at.fisher[row * k * k + p] = nan;
    for (int i = 0; i < m; ++i) out.residual[row * m + i] = 0.0f;
    out.iterations[row] = 0;
    out.status[row] = NO_DATA;
}

inline bool has_data(const float* whitener, int m) {
    for (int i = 0; i < m; ++i)
        if (whitener[row_start(i) + i] > 0) return true;
    return false;
}

// Box in u, the same for every star. E must stay positive: its lower edge is never below SMALLEST_EXT.
constexpr double SMALLEST_EXT = 1e-6;

template <class Lane>
struct LaneBox {
    Lane lower[MAX_PARAMETERS], upper[MAX_PARAMETERS];
    LaneBox(const FitView& fit, int k) {
        for (int p = 0; p < k; ++p) {
            double low = fit.lower[p], high = fit.upper[p];
            if (p == k - 2) low = max(low, SMALLEST_EXT);
            if (p == k - 1) low = log(low), high = log(high);
            lower[p] = lane<Lane>(low);
            upper[p] = lane<Lane>(high);
        }
    }
    BoxView<Lane> view() const { return {lower, upper}; }
    void keep_inside(int k, Lane* u) const {
        for (int p = 0; p < k; ++p) u[p] = clamp(u[p], lower[p], upper[p]);
    }
};

template <class Shape>
struct FitDriver {
    const FitView& fit;
    const StarArrays& stars;
    const SolutionArrays& out;
    const Shape shape;
    const int k, m;

    FitDriver(const FitView& what, const StarArrays& of, const SolutionArrays& to)
        : fit(what), stars(of), out(to), shape(what.model), k(shape.parameters()), m(shape.samples()) {}

    // (predicted - observed) / sigma of one star; sigma^2 = sum_j G_ij^2.
    template <class Real, class Wide>
    void write_residual(const Workspace<Real, Wide>& space, const Real* variance, int s, int64_t row) const {
        for (int i = 0; i < m; ++i) {
            const double spread = get(variance[i], s);
            const double difference = get(space.flux[i], s) - stars.flux[row * m + i];
            out.residual[row * m + i] = spread > 0 ? static_cast<float>(difference / sqrt(spread)) : 0.0f;
        }
    }

    template <class Real, class Wide>
    void write(const Members<Real>& members, const Progress<Real, Wide>& progress, const Workspace<Real, Wide>& space,
               const Real* factor, Real* variance, bool rescued) const {
        predict_values(fit.model, AnyShape(fit.model), progress.state.u, space);
        sample_variance(factor, m, variance);
        for (int s = 0; s < members.count; ++s) {
            const int64_t row = members.row[s];
            const bool positive =
                write_evaluation(progress.state, s, k, stars.sigma + row * k, row, out.at, out.decrement + row);
            uint32_t status = 0;
            if (!get(progress.converged, s)) status |= NOT_CONVERGED;
            if (!positive) status |= HESSIAN_NOT_POSITIVE;
            if (rescued) status |= RESCUED;
            for (int p = 0; p < k; ++p) {
                double value = get(progress.state.u[p], s);
                if (p == k - 1) value = exp(value);
                const double low = p == k - 2 ? max(fit.lower[p], SMALLEST_EXT) : fit.lower[p];
                const double slack = 1e-12 * abs(value);
                if (value <= low + slack || value >= fit.upper[p] - slack) status |= ON_BOX_EDGE;
                out.params[row * k + p] = value;
            }
            out.iterations[row] =
                (rescued ? out.iterations[row] : 0) + static_cast<int32_t>(get(progress.evaluations, s));
            out.status[row] = status;
            write_residual(space, variance, s, row);
        }
    }

    void find_start(const Members<FloatLane>& members, const GatheredStars<FloatLane, WideLane>& gathered,
                    FloatLane* variance, WideLane* u) const {
        if (!fit.grid) {
            load_params(members, fit.start_params, k, u);
            return;
        }
        sample_variance(gathered.factor, m, variance);
        const BandFlux<FloatLane> bands = band_flux(*fit.grid, gathered.flux, variance, m);
        FloatLane index, plx;
        best_candidate(*fit.grid, bands, convert<FloatLane>(gathered.mean[k - 1]),
                       convert<FloatLane>(gathered.weight[k - 1]), index, plx);
        constexpr int width = LaneTraits<WideLane>::width;
        alignas(64) double values[width];
        for (int p = 0; p + 1 < k; ++p) {
            for (int s = 0; s < width; ++s) values[s] = fit.grid->params[static_cast<int64_t>(get(index, s)) * k + p];
            u[p] = load<WideLane>(values);
        }
        u[k - 1] = log(convert<WideLane>(plx));
    }

    // Float steps until the predicted drop is small, then Newton steps with a double value and residual.
    // Stars that do not converge are left in survivors.
    void run(int64_t begin, int64_t end, char* scratch) const {
        Arena arena{scratch, 0};
        int64_t* survivors = arena.take<int64_t>(end - begin);
        int64_t n_survivors = 0;
        const int64_t mark = arena.used;
        GatheredStars<FloatLane, WideLane> gathered(m, k, arena);
        FloatLane* variance = arena.take<FloatLane>(m);
        const Workspace<FloatLane, FloatLane> rough = carve_workspace<FloatLane, FloatLane>(shape, fit.prior, arena);
        const Workspace<FloatLane, WideLane> fine = carve_workspace<FloatLane, WideLane>(shape, fit.prior, arena);
        const LaneBox<FloatLane> rough_box(fit, k);
        const LaneBox<WideLane> box(fit, k);
        const StopRule rough_rule{fit.max_iterations, 0.1, 0.001};
        const StopRule fine_rule{fit.max_iterations, fit.tolerance, 0.01};

        for (int64_t first = begin; first < end; first += Members<FloatLane>::width) {
            const Members<FloatLane> members(nullptr, first, end);
            gathered.fill(members, stars, m, k);
            Progress<FloatLane, WideLane> progress;
            find_start(members, gathered, variance, progress.state.u);
            box.keep_inside(k, progress.state.u);

            Progress<FloatLane, FloatLane> roughly;
            FloatLane mean[MAX_PARAMETERS], weight[MAX_PARAMETERS];
            for (int p = 0; p < k; ++p) {
                roughly.state.u[p] = convert<FloatLane>(progress.state.u[p]);
                mean[p] = convert<FloatLane>(gathered.mean[p]);
                weight[p] = convert<FloatLane>(gathered.weight[p]);
            }
            rough_box.keep_inside(k, roughly.state.u);
            roughly.damping = lane<FloatLane>(1e-2);
            roughly.evaluations = lane<FloatLane>(0);
            const StarView<FloatLane, FloatLane> rough_star{gathered.flux, gathered.factor, mean, weight};
            optimise<false>(fit.model, shape, fit.prior, fit.terms, rough_star, rough_box.view(), rough_rule, rough,
                            roughly);

            for (int p = 0; p < k; ++p) progress.state.u[p] = convert<WideLane>(roughly.state.u[p]);
            box.keep_inside(k, progress.state.u);
            progress.damping = lane<FloatLane>(0);
            progress.evaluations = convert<WideLane>(roughly.evaluations);
            optimise<true>(fit.model, shape, fit.prior, fit.terms, gathered.view(), box.view(), fine_rule, fine,
                           progress);
            write(members, progress, fine, gathered.factor, variance, false);
            for (int s = 0; s < members.count; ++s) {
                const int64_t row = members.row[s];
                if (!has_data(stars.whitener + row * row_start(m), m))
                    write_missing(k, m, row, out);
                else if (!get(progress.converged, s))
                    survivors[n_survivors++] = row;
            }
        }
        arena.used = mark;
        rescue(survivors, n_survivors, arena);
    }

    // Stars that float steps left unconverged, packed together and taken on in double from where they stopped. They are
    // few: code for the usual sizes alone is not worth having twice.
    void rescue(const int64_t* survivors, int64_t count, Arena& arena) const {
        const AnyShape any(fit.model);
        GatheredStars<DoubleLane, DoubleLane> gathered(m, k, arena);
        DoubleLane* variance = arena.take<DoubleLane>(m);
        const Workspace<DoubleLane, DoubleLane> space = carve_workspace<DoubleLane, DoubleLane>(any, fit.prior, arena);
        const LaneBox<DoubleLane> box(fit, k);
        const StopRule rule{4 * fit.max_iterations, fit.tolerance, 0.01};
        for (int64_t first = 0; first < count; first += Members<DoubleLane>::width) {
            const Members<DoubleLane> members(survivors, first, count);
            gathered.fill(members, stars, m, k);
            Progress<DoubleLane, DoubleLane> progress;
            load_params(members, out.params, k, progress.state.u);
            box.keep_inside(k, progress.state.u);
            progress.damping = lane<DoubleLane>(1e-3);
            progress.evaluations = lane<DoubleLane>(0);
            optimise<true>(fit.model, any, fit.prior, fit.terms, gathered.view(), box.view(), rule, space, progress);
            write(members, progress, space, gathered.factor, variance, true);
        }
    }

    static int64_t scratch_bytes(const ModelView& model, const PriorView& prior, int64_t rows) {
        const Shape shape(model);
        const int k = shape.parameters(), m = shape.samples();
        Arena mixed{nullptr, 0}, wide{nullptr, 0};
        mixed.take<int64_t>(rows);
        wide.take<int64_t>(rows);
        GatheredStars<FloatLane, WideLane>(m, k, mixed);
        mixed.take<FloatLane>(m);
        carve_workspace<FloatLane, FloatLane>(shape, prior, mixed);
        carve_workspace<FloatLane, WideLane>(shape, prior, mixed);
        GatheredStars<DoubleLane, DoubleLane>(m, k, wide);
        wide.take<DoubleLane>(m);
        carve_workspace<DoubleLane, DoubleLane>(shape, prior, wide);
        return mixed.used > wide.used ? mixed.used : wide.used;
    }

    void evaluate(int64_t begin, int64_t end, char* scratch) const {
        Arena arena{scratch, 0};
        GatheredStars<FloatLane, WideLane> gathered(m, k, arena);
        const Workspace<FloatLane, WideLane> space = carve_workspace<FloatLane, WideLane>(shape, fit.prior, arena);
        for (int64_t first = begin; first < end; first += Members<FloatLane>::width) {
            const Members<FloatLane> members(nullptr, first, end);
            gathered.fill(members, stars, m, k);
            LossState<FloatLane, WideLane> state;
            load_params(members, fit.start_params, k, state.u);
            evaluate_loss<true>(fit.model, shape, fit.prior, fit.terms, gathered.view(), space, state);
            for (int s = 0; s < members.count; ++s) {
                double decrement;
                const int64_t row = members.row[s];
                write_evaluation(state, s, k, stars.sigma + row * k, row, out.at, &decrement);
            }
        }
    }
};

// Calls work with a driver whose shape the compiler knows where the model has the usual sizes.
template <class Work>
inline void with_driver(const FitView& fit, const StarArrays& stars, const SolutionArrays& out, const Work& work) {
#if !defined(XPKERN_SCALAR_LANES)
    if (UsualShape::matches(fit.model)) return work(FitDriver<UsualShape>(fit, stars, out));
#endif
    work(FitDriver<AnyShape>(fit, stars, out));
}

inline void fit_stars(const FitView& fit, const StarArrays& stars, const SolutionArrays& out, int64_t begin,
                      int64_t end, char* scratch) {
    with_driver(fit, stars, out, [&](const auto& driver) { driver.run(begin, end, scratch); });
}

inline void evaluate_stars(const FitView& fit, const StarArrays& stars, const EvaluationArrays& out, int64_t begin,
                           int64_t end, char* scratch) {
    const SolutionArrays all{out, nullptr, nullptr, nullptr, nullptr, nullptr};
    with_driver(fit, stars, all, [&](const auto& driver) { driver.evaluate(begin, end, scratch); });
}

inline int64_t star_scratch_bytes(const ModelView& model, const PriorView& prior, int64_t rows) {
    return FitDriver<AnyShape>::scratch_bytes(model, prior, rows);
}

inline void predict_stars(const ModelView& model, const double* params, double* flux, int64_t begin, int64_t end,
                          char* scratch) {
    const AnyShape shape(model);
    const int k = shape.parameters(), m = shape.samples();
    PriorView none{};
    Arena arena{scratch, 0};
    const Workspace<DoubleLane, DoubleLane> space = carve_workspace<DoubleLane, DoubleLane>(shape, none, arena);
    for (int64_t first = begin; first < end; first += Members<DoubleLane>::width) {
        const Members<DoubleLane> members(nullptr, first, end);
        DoubleLane u[MAX_PARAMETERS];
        load_params(members, params, k, u);
        predict_values(model, shape, u, space);
        for (int s = 0; s < members.count; ++s)
            for (int i = 0; i < m; ++i) flux[members.row[s] * m + i] = get(space.flux[i], s);
    }
}

inline void start_stars(const GridView& grid, int m, int k, const StarArrays& stars, double* params, int64_t begin,
                        int64_t end, char* scratch) {
    Arena arena{scratch, 0};
    GatheredStars<FloatLane, WideLane> gathered(m, k, arena);
    FloatLane* variance = arena.take<FloatLane>(m);
    for (int64_t first = begin; first < end; first += Members<FloatLane>::width) {
        const Members<FloatLane> members(nullptr, first, end);
        gathered.fill(members, stars, m, k);
        sample_variance(gathered.factor, m, variance);
        const BandFlux<FloatLane> bands = band_flux(grid, gathered.flux, variance, m);
        FloatLane index, plx;
        best_candidate(grid, bands, convert<FloatLane>(gathered.mean[k - 1]),
                       convert<FloatLane>(gathered.weight[k - 1]), index, plx);
        for (int s = 0; s < members.count; ++s) {
            for (int p = 0; p + 1 < k; ++p)
                params[members.row[s] * k + p] = grid.params[static_cast<int64_t>(get(index, s)) * k + p];
            params[members.row[s] * k + k - 1] = get(plx, s);
        }
    }
}

// Twelve independent chains, enough to hide the latency of any multiply-add unit.
inline float multiply_add_peak(int64_t count) {
    constexpr int chains = 12;
    FloatLane sum[chains];
    FloatLane factor = lane<FloatLane>(0.999f), term = lane<FloatLane>(1e-3f);
    for (int c = 0; c < chains; ++c) sum[c] = lane<FloatLane>(c);
    for (int64_t i = 0; i < count; i += chains * LaneTraits<FloatLane>::width) {
        XPKERN_UNROLL
        for (int c = 0; c < chains; ++c) sum[c] = fma(sum[c], factor, term);
    }
    float total = 0;
    for (int c = 0; c < chains; ++c)
        for (int s = 0; s < LaneTraits<FloatLane>::width; ++s) total += get(sum[c], s);
    return total;
}

XPKERN_NAMESPACE_END
