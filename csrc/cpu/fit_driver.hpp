// The fit of a block of stars: float steps, mixed-precision Newton steps, float64 for what is left.
//
// Stars of a lane need different numbers of steps. When few of them are still at work the lane is left, and those few
// are packed together with their likes of other lanes to go on. A star's own path does not depend on that: it resumes
// from the parameters and damping at which it was left, and evaluating there again gives the same bits.
#pragma once

#include "../core/evaluation.hpp"
#include "../core/optimise.hpp"
#include "../core/start.hpp"
#include "../core/status.hpp"
#include "star_lanes.hpp"

XPKERN_NAMESPACE_BEGIN

// E must stay positive: the lower edge of its box is never below this.
constexpr double SMALLEST_EXT = 1e-6;

// Box in u, the same for every star.
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

// Where a star that waits has got to.
struct StarProgress {
    double u[MAX_PARAMETERS];
    double damping;
    int32_t spent;   // evaluations in the stage that it waits for; 0 where it has not begun
    int32_t before;  // evaluations in the stages before
};

// Rows that wait for a stage.
struct Queue {
    int64_t* rows;
    int64_t count;
    void add(int64_t row) { rows[count++] = row; }
};

template <class Shape>
class FitDriver {
  public:
    FitDriver(const FitView& what, const StarArrays& of, const SolutionArrays& to, int64_t begin, int64_t end,
              char* scratch)
        : fit_(what),
          stars_(of),
          out_(to),
          shape_(what.model),
          k_(shape_.parameters()),
          m_(shape_.samples()),
          begin_(begin),
          end_(end),
          arena_{scratch, 0} {
        take_bookkeeping(arena_, end - begin, progress_, queues_);
    }

    static int64_t scratch_bytes(const ModelView& model, const PriorView& prior, int64_t rows) {
        const Shape shape(model);
        Arena mixed{nullptr, 0};
        StarProgress* progress;
        Queue queues[QUEUES];
        take_bookkeeping(mixed, rows, progress, queues);
        Arena wide = mixed;
        MixedSpace(shape, prior, mixed);
        WideSpace(AnyShape(model), prior, wide);
        return mixed.used > wide.used ? mixed.used : wide.used;
    }

    void run() {
        for (int64_t row = begin_; row < end_; ++row) {
            if (has_data(row))
                queues_[START].add(row);
            else
                write_missing(row);
        }
        const Arena mark = arena_;
        const MixedSpace space(shape_, fit_.prior, arena_);
        for (int stage = START; stage <= FINE; ++stage)
            while (queues_[stage].count > 0) run_stage(static_cast<Stage>(stage), space);
        arena_ = mark;
        rescue();
    }

  private:
    enum Stage { START, ROUGH, FINE, RESCUE, IN_HAND, QUEUES };

    // Memory of the float and mixed stages.
    struct MixedSpace {
        GatheredStars<FloatLane, WideLane> gathered;
        FloatLane* variance;
        Workspace<FloatLane, FloatLane> rough;
        Workspace<FloatLane, WideLane> fine;
        MixedSpace(const Shape& shape, const PriorView& prior, Arena& arena)
            : gathered(shape.samples(), shape.parameters(), arena),
              variance(arena.take<FloatLane>(shape.samples())),
              rough(carve_workspace<FloatLane, FloatLane>(shape, prior, arena)),
              fine(carve_workspace<FloatLane, WideLane>(shape, prior, arena)) {}
    };
    // Memory of the rescue.
    struct WideSpace {
        GatheredStars<DoubleLane, DoubleLane> gathered;
        DoubleLane* variance;
        Workspace<DoubleLane, DoubleLane> workspace;
        WideSpace(const AnyShape& shape, const PriorView& prior, Arena& arena)
            : gathered(shape.samples(), shape.parameters(), arena),
              variance(arena.take<DoubleLane>(shape.samples())),
              workspace(carve_workspace<DoubleLane, DoubleLane>(shape, prior, arena)) {}
    };

    static void take_bookkeeping(Arena& arena, int64_t rows, StarProgress*& progress, Queue* queues) {
        progress = arena.take<StarProgress>(rows);
        for (int queue = 0; queue < QUEUES; ++queue) queues[queue] = {arena.take<int64_t>(rows), 0};
    }

    StarProgress& progress_of(int64_t row) const { return progress_[row - begin_]; }

    bool has_data(int64_t row) const {
        const float* factor = stars_.whitener + row * row_start(m_);
        for (int i = 0; i < m_; ++i)
            if (factor[row_start(i) + i] > 0) return true;
        return false;
    }

    // All stars that wait for a stage; those that are left at work wait for it again.
    void run_stage(Stage stage, const MixedSpace& space) {
        const Queue waiting = queues_[stage];
        queues_[stage] = {queues_[IN_HAND].rows, 0};
        queues_[IN_HAND] = {waiting.rows, 0};
        // Leaving a quarter of a lane's stars pays for gathering them again, as long as they find company.
        constexpr int width = LaneTraits<FloatLane>::width;
        const int leave_at = waiting.count > width ? width / 4 : 0;
        for (int64_t first = 0; first < waiting.count; first += width)
            run_lane(stage, Members<FloatLane>(waiting.rows, first, waiting.count), leave_at, space);
    }

    void run_lane(Stage stage, const Members<FloatLane>& members, int leave_at, const MixedSpace& space) {
        space.gathered.fill(members, stars_, m_, k_);
        if (stage == START) find_start(members, space);
        const Mask<FloatLane> everyone = lane<FloatLane>(0) < lane<FloatLane>(1);
        const Mask<FloatLane> ready = stage == FINE ? everyone : run_rough(members, leave_at, space);
        run_fine(members, ready, leave_at, space);
    }

    // Float steps until the predicted drop is small. Returns the stars that are through with them.
    Mask<FloatLane> run_rough(const Members<FloatLane>& members, int leave_at, const MixedSpace& space) {
        const LaneBox<FloatLane> box(fit_, k_);
        FloatLane mean[MAX_PARAMETERS], weight[MAX_PARAMETERS];
        for (int p = 0; p < k_; ++p) {
            mean[p] = convert<FloatLane>(space.gathered.mean[p]);
            weight[p] = convert<FloatLane>(space.gathered.weight[p]);
        }
        const StarView<FloatLane, FloatLane> star{space.gathered.flux, space.gathered.factor, mean, weight};
        Progress<FloatLane, FloatLane> progress;
        take_up(members, box, progress);
        optimise<false>(fit_.model, shape_, fit_.prior, fit_.terms, star, box.view(),
                        StopRule{fit_.max_iterations, ROUGH_DROP, ROUGH_DROP_PER_LOSS}, leave_at, space.rough,
                        progress);
        for (int s = 0; s < members.count; ++s) {
            leave(progress, s, progress_of(members.row[s]));
            if (get(progress.active, s))
                queues_[ROUGH].add(members.row[s]);
            else
                enter_stage(0, progress_of(members.row[s]));
        }
        return !progress.active;
    }

    // Newton steps with value and residual in double.
    void run_fine(const Members<FloatLane>& members, const Mask<FloatLane>& ready, int leave_at,
                  const MixedSpace& space) {
        const LaneBox<WideLane> box(fit_, k_);
        Progress<FloatLane, WideLane> progress;
        take_up(members, box, progress);
        progress.active = ready;
        optimise<true>(fit_.model, shape_, fit_.prior, fit_.terms, space.gathered.view(), box.view(),
                       StopRule{fit_.max_iterations, fit_.tolerance, DROP_PER_LOSS}, leave_at, space.fine, progress);
        predict_values(fit_.model, AnyShape(fit_.model), progress.state.u, space.fine);
        sample_variance(space.gathered.factor, m_, space.variance);
        for (int s = 0; s < members.count; ++s) {
            if (!get(ready, s)) continue;
            const int64_t row = members.row[s];
            leave(progress, s, progress_of(row));
            if (get(progress.active, s)) {
                queues_[FINE].add(row);
                continue;
            }
            write(row, s, progress, space.fine, space.variance, 0);
            if (get(progress.converged, s)) continue;
            enter_stage(RESCUE_DAMPING, progress_of(row));
            queues_[RESCUE].add(row);
        }
    }

    // Stars that mixed precision left unconverged, in double. They are few: code for the usual sizes alone is not worth
    // having twice.
    void rescue() {
        const AnyShape any(fit_.model);
        const WideSpace space(any, fit_.prior, arena_);
        const LaneBox<DoubleLane> box(fit_, k_);
        const Queue& waiting = queues_[RESCUE];
        for (int64_t first = 0; first < waiting.count; first += Members<DoubleLane>::width) {
            const Members<DoubleLane> members(waiting.rows, first, waiting.count);
            space.gathered.fill(members, stars_, m_, k_);
            Progress<DoubleLane, DoubleLane> progress;
            take_up(members, box, progress);
            optimise<true>(fit_.model, any, fit_.prior, fit_.terms, space.gathered.view(), box.view(),
                           StopRule{4 * fit_.max_iterations, fit_.tolerance, DROP_PER_LOSS}, 0, space.workspace,
                           progress);
            predict_values(fit_.model, any, progress.state.u, space.workspace);
            sample_variance(space.gathered.factor, m_, space.variance);
            for (int s = 0; s < members.count; ++s) {
                leave(progress, s, progress_of(members.row[s]));
                write(members.row[s], s, progress, space.workspace, space.variance, RESCUED);
            }
        }
    }

    // The best candidate of the grid, or the start that was given.
    void find_start(const Members<FloatLane>& members, const MixedSpace& space) {
        FloatLane index, plx;
        if (fit_.grid) {
            sample_variance(space.gathered.factor, m_, space.variance);
            const BandFlux<FloatLane> bands = band_flux(*fit_.grid, space.gathered.flux, space.variance, m_);
            best_candidate(*fit_.grid, bands, convert<FloatLane>(space.gathered.mean[k_ - 1]),
                           convert<FloatLane>(space.gathered.weight[k_ - 1]), index, plx);
        }
        for (int s = 0; s < members.count; ++s) {
            StarProgress& progress = progress_of(members.row[s]);
            const double* params = fit_.grid ? fit_.grid->params + static_cast<int64_t>(get(index, s)) * k_
                                             : fit_.start_params + members.row[s] * k_;
            for (int p = 0; p < k_; ++p) progress.u[p] = params[p];
            progress.u[k_ - 1] = log(fit_.grid ? static_cast<double>(get(plx, s)) : params[k_ - 1]);
            progress.damping = START_DAMPING;
            progress.spent = progress.before = 0;
        }
    }

    template <class Real, class Wide>
    void take_up(const Members<Real>& members, const LaneBox<Wide>& box, Progress<Real, Wide>& progress) const {
        for (int p = 0; p < k_; ++p)
            progress.state.u[p] = lane_of<Wide>([&](int s) { return progress_of(members.row[s]).u[p]; });
        box.keep_inside(k_, progress.state.u);
        progress.damping = lane_of<Real>([&](int s) { return progress_of(members.row[s]).damping; });
        // The evaluation that takes a star up again where it was left has been counted before.
        progress.spent = lane_of<Real>([&](int s) {
            const int32_t spent = progress_of(members.row[s]).spent;
            return spent > 0 ? spent - 1 : 0;
        });
        progress.active = lane<Real>(0) < lane<Real>(1);
    }

    template <class Real, class Wide>
    void leave(const Progress<Real, Wide>& progress, int s, StarProgress& star) const {
        for (int p = 0; p < k_; ++p) star.u[p] = get(progress.state.u[p], s);
        star.damping = get(progress.damping, s);
        star.spent = static_cast<int32_t>(get(progress.spent, s));
    }

    static void enter_stage(double damping, StarProgress& star) {
        star.damping = damping;
        star.before += star.spent;
        star.spent = 0;
    }

    // One star's solution. variance: of each sample, sigma^2 = sum_j G_ij^2.
    template <class Real, class Wide>
    void write(int64_t row, int s, const Progress<Real, Wide>& progress, const Workspace<Real, Wide>& space,
               const Real* variance, uint32_t status) const {
        const bool positive =
            write_evaluation(progress.state, s, k_, stars_.sigma + row * k_, row, out_.at, out_.decrement + row);
        if (!get(progress.converged, s)) status |= NOT_CONVERGED;
        if (!positive) status |= HESSIAN_NOT_POSITIVE;
        for (int p = 0; p < k_; ++p) {
            double value = get(progress.state.u[p], s);
            if (p == k_ - 1) value = exp(value);
            const double low = p == k_ - 2 ? max(fit_.lower[p], SMALLEST_EXT) : fit_.lower[p];
            const double slack = 1e-12 * abs(value);
            if (value <= low + slack || value >= fit_.upper[p] - slack) status |= ON_BOX_EDGE;
            out_.params[row * k_ + p] = value;
        }
        out_.iterations[row] = progress_of(row).before + progress_of(row).spent;
        out_.status[row] = status;
        for (int i = 0; i < m_; ++i) {
            const double spread = get(variance[i], s);
            const double difference = get(space.flux[i], s) - stars_.flux[row * m_ + i];
            out_.residual[row * m_ + i] = spread > 0 ? static_cast<float>(difference / sqrt(spread)) : 0.0f;
        }
    }

    void write_missing(int64_t row) const {
        const double nan = __builtin_nan("");
        out_.at.loss[row] = out_.at.chi2[row] = out_.at.ln_prior[row] = out_.decrement[row] = nan;
        for (int p = 0; p < k_; ++p) out_.params[row * k_ + p] = out_.at.gradient[row * k_ + p] = nan;
        for (int p = 0; p < k_ * k_; ++p) out_.at.hessian[row * k_ * k_ + p] = out_.at.fisher[row * k_ * k_ + p] = nan;
        for (int i = 0; i < m_; ++i) out_.residual[row * m_ + i] = 0.0f;
        out_.iterations[row] = 0;
        out_.status[row] = NO_DATA;
    }

    // Damping with which each stage begins; float steps end where the predicted drop no longer needs their robustness.
    static constexpr double START_DAMPING = 1e-2, RESCUE_DAMPING = 1e-3;
    static constexpr double ROUGH_DROP = 0.1, ROUGH_DROP_PER_LOSS = 1e-3, DROP_PER_LOSS = 1e-2;

    const FitView& fit_;
    const StarArrays& stars_;
    const SolutionArrays& out_;
    const Shape shape_;
    const int k_, m_;
    const int64_t begin_, end_;
    Arena arena_;
    StarProgress* progress_;
    Queue queues_[QUEUES];
};

XPKERN_NAMESPACE_END
