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

// Memory for choosing starts.
struct StartSpace {
    FloatLane *variance, *scores, *parallaxes;
    StartSpace(int m, int candidates, Arena& arena)
        : variance(arena.take<FloatLane>(m)),
          scores(arena.take<FloatLane>(candidates)),
          parallaxes(arena.take<FloatLane>(candidates)) {}
};

// Calls found(s, choice, params) for each star s of a lane and each of its starts, best first; params: (k,) linear, or
// null where the star has no such start.
template <class Found>
inline void choose_starts(const GridView& grid, const GatheredStars<FloatLane, WideLane>& stars,
                          const StartSpace& space, int m, int k, int starts, double gate, const Found& found) {
    sample_variance(stars.factor, m, space.variance);
    const BandFlux<FloatLane> bands = band_flux(grid, stars.flux, space.variance, m);
    score_candidates(grid, bands, convert<FloatLane>(stars.mean[k - 1]), convert<FloatLane>(stars.weight[k - 1]),
                     space.scores, space.parallaxes);
    FloatLane limit = infinity<FloatLane>();
    for (int choice = 0; choice < starts; ++choice) {
        const Candidate<FloatLane> candidate = take_candidate(grid, k - 2, space.scores, space.parallaxes);
        if (choice == 0) limit = candidate.score + lane<FloatLane>(gate);
        const Mask<FloatLane> taken = candidate.score <= limit;
        for (int s = 0; s < LaneTraits<FloatLane>::width; ++s) {
            double params[MAX_PARAMETERS];
            const double* of_candidate = grid.params + static_cast<int64_t>(get(candidate.index, s)) * k;
            for (int p = 0; p + 1 < k; ++p) params[p] = of_candidate[p];
            params[k - 1] = get(candidate.plx, s);
            // The best candidate is a start whatever its score: it may be infinite or NaN where float overflows.
            found(s, choice, choice == 0 || get(taken, s) ? params : nullptr);
        }
    }
}

// Where a search, of one star from one start, has got to.
struct SearchProgress {
    double u[MAX_PARAMETERS];
    double damping;
    double loss;
    int32_t spent;   // evaluations in the stage that it waits for; 0 where it has not begun
    int32_t before;  // evaluations in the stages before
    bool exists, converged;
};

// Searches that wait for a stage.
struct Queue {
    int64_t* searches;
    int64_t count;
    void add(int64_t search) { searches[count++] = search; }
};

// A search is numbered by its star and start: search / starts is the star's place in the block.
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
          starts_(what.starts),
          candidates_(what.grid ? what.grid->n_candidates : 0),
          begin_(begin),
          end_(end),
          arena_{scratch, 0},
          books_(end - begin, starts_, arena_) {}

    static int64_t scratch_bytes(const ModelView& model, const PriorView& prior, int64_t rows, int starts,
                                 int candidates) {
        const Shape shape(model);
        Arena mixed{nullptr, 0};
        Books(rows, starts, mixed);
        Arena wide = mixed;
        MixedSpace(shape, prior, candidates, mixed);
        WideSpace(AnyShape(model), prior, wide);
        return mixed.used > wide.used ? mixed.used : wide.used;
    }

    void run() {
        for (int64_t row = begin_; row < end_; ++row) {
            const int64_t first = (row - begin_) * starts_;
            for (int choice = 0; choice < starts_; ++choice) books_.progress[first + choice].exists = false;
            books_.written[row - begin_] = NOTHING;
            if (has_data(row))
                books_.queues[START].add(first);
            else
                write_missing(row);
        }
        const Arena mark = arena_;
        const MixedSpace space(shape_, fit_.prior, candidates_, arena_);
        for (int stage = START; stage <= FINE; ++stage)
            while (books_.queues[stage].count > 0) run_stage(static_cast<Stage>(stage), space);
        arena_ = mark;
        rescue();
        for (int64_t row = begin_; row < end_; ++row)
            if (books_.written[row - begin_] != NOTHING) compare_minima(row);
    }

  private:
    enum Stage { START, ROUGH, FINE, RESCUE, IN_HAND, QUEUES };
    static constexpr int64_t NOTHING = -1;

    struct Books {
        SearchProgress* progress;
        int64_t* written;  // (rows,) the search whose result stands in the output
        Queue queues[QUEUES];
        Books(int64_t rows, int starts, Arena& arena)
            : progress(arena.take<SearchProgress>(rows * starts)), written(arena.take<int64_t>(rows)) {
            for (Queue& queue : queues) queue = {arena.take<int64_t>(rows * starts), 0};
        }
    };
    // Memory of the float and mixed stages.
    struct MixedSpace {
        GatheredStars<FloatLane, WideLane> gathered;
        StartSpace start;
        Workspace<FloatLane, FloatLane> rough;
        Workspace<FloatLane, WideLane> fine;
        MixedSpace(const Shape& shape, const PriorView& prior, int candidates, Arena& arena)
            : gathered(shape.samples(), shape.parameters(), arena),
              start(shape.samples(), candidates, arena),
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

    // Searches in the stars of a lane, and the rows of their stars.
    template <class Lane>
    struct Crew {
        int64_t search[LaneTraits<Lane>::width];
        Members<Lane> members;
        Crew(const Queue& waiting, int64_t first, int64_t first_row, int starts) : members(first, waiting.count) {
            for (int s = 0; s < members.width; ++s) {
                search[s] = waiting.searches[members.row[s]];
                members.row[s] = first_row + search[s] / starts;
            }
        }
    };

    SearchProgress& progress_of(int64_t search) const { return books_.progress[search]; }

    bool has_data(int64_t row) const {
        const float* factor = stars_.whitener + row * row_start(m_);
        for (int i = 0; i < m_; ++i)
            if (factor[row_start(i) + i] > 0) return true;
        return false;
    }

    // All searches that wait for a stage; those that are left at work wait for it again.
    void run_stage(Stage stage, const MixedSpace& space) {
        Queue* queues = books_.queues;
        const Queue waiting = queues[stage];
        queues[stage] = {queues[IN_HAND].searches, 0};
        queues[IN_HAND] = {waiting.searches, 0};
        // Leaving a quarter of a lane's stars pays for gathering them again, as long as they find company.
        constexpr int width = LaneTraits<FloatLane>::width;
        const int leave_at = waiting.count > width ? width / 4 : 0;
        for (int64_t first = 0; first < waiting.count; first += width)
            run_lane(stage, Crew<FloatLane>(waiting, first, begin_, starts_), leave_at, space);
    }

    void run_lane(Stage stage, const Crew<FloatLane>& crew, int leave_at, const MixedSpace& space) {
        space.gathered.fill(crew.members, stars_, m_, k_);
        if (stage == START) find_starts(crew, space);
        const Mask<FloatLane> everyone = lane<FloatLane>(0) < lane<FloatLane>(1);
        const Mask<FloatLane> ready = stage == FINE ? everyone : run_rough(crew, leave_at, space);
        run_fine(crew, ready, leave_at, space);
    }

    // Float steps until the predicted drop is small. Returns the stars that are through with them.
    Mask<FloatLane> run_rough(const Crew<FloatLane>& crew, int leave_at, const MixedSpace& space) {
        const LaneBox<FloatLane> box(fit_, k_);
        FloatLane mean[MAX_PARAMETERS], weight[MAX_PARAMETERS];
        for (int p = 0; p < k_; ++p) {
            mean[p] = convert<FloatLane>(space.gathered.mean[p]);
            weight[p] = convert<FloatLane>(space.gathered.weight[p]);
        }
        const StarView<FloatLane, FloatLane> star{space.gathered.flux, space.gathered.factor, mean, weight};
        Progress<FloatLane, FloatLane> progress;
        take_up(crew, box, progress);
        optimise<false>(fit_.model, shape_, fit_.prior, fit_.terms, star, box.view(),
                        StopRule{fit_.max_iterations, ROUGH_DROP, ROUGH_DROP_PER_LOSS}, leave_at, space.rough,
                        progress);
        for (int s = 0; s < crew.members.count; ++s) {
            leave(progress, s, progress_of(crew.search[s]));
            if (get(progress.active, s))
                books_.queues[ROUGH].add(crew.search[s]);
            else
                enter_stage(0, progress_of(crew.search[s]));
        }
        return !progress.active;
    }

    // Newton steps with value and residual in double.
    void run_fine(const Crew<FloatLane>& crew, const Mask<FloatLane>& ready, int leave_at, const MixedSpace& space) {
        const LaneBox<WideLane> box(fit_, k_);
        Progress<FloatLane, WideLane> progress;
        take_up(crew, box, progress);
        progress.active = ready;
        optimise<true>(fit_.model, shape_, fit_.prior, fit_.terms, space.gathered.view(), box.view(),
                       StopRule{fit_.max_iterations, fit_.tolerance, DROP_PER_LOSS}, leave_at, space.fine, progress);
        predict_values(fit_.model, AnyShape(fit_.model), progress.state.u, space.fine);
        sample_variance(space.gathered.factor, m_, space.start.variance);
        for (int s = 0; s < crew.members.count; ++s) {
            if (!get(ready, s)) continue;
            SearchProgress& star = progress_of(crew.search[s]);
            leave(progress, s, star);
            if (get(progress.active, s)) {
                books_.queues[FINE].add(crew.search[s]);
            } else if (star.converged) {
                offer(crew, s, progress, space.fine, space.start.variance, 0);
            } else {
                enter_stage(RESCUE_DAMPING, star);
                books_.queues[RESCUE].add(crew.search[s]);
            }
        }
    }

    // Searches that mixed precision left unconverged, in double: a star's first one, and those that are lower than what
    // the others have found. They are few: code for the usual sizes alone is not worth having twice.
    void rescue() {
        Queue& waiting = books_.queues[RESCUE];
        const Queue all = waiting;
        waiting.count = 0;
        for (int64_t i = 0; i < all.count; ++i) {
            const int64_t search = all.searches[i], found = books_.written[search / starts_];
            if (search % starts_ == 0 || found == NOTHING || progress_of(search).loss < progress_of(found).loss)
                waiting.add(search);
        }
        const AnyShape any(fit_.model);
        const WideSpace space(any, fit_.prior, arena_);
        const LaneBox<DoubleLane> box(fit_, k_);
        for (int64_t first = 0; first < waiting.count; first += LaneTraits<DoubleLane>::width) {
            const Crew<DoubleLane> crew(waiting, first, begin_, starts_);
            space.gathered.fill(crew.members, stars_, m_, k_);
            Progress<DoubleLane, DoubleLane> progress;
            take_up(crew, box, progress);
            optimise<true>(fit_.model, any, fit_.prior, fit_.terms, space.gathered.view(), box.view(),
                           StopRule{4 * fit_.max_iterations, fit_.tolerance, DROP_PER_LOSS}, 0, space.workspace,
                           progress);
            predict_values(fit_.model, any, progress.state.u, space.workspace);
            sample_variance(space.gathered.factor, m_, space.variance);
            for (int s = 0; s < crew.members.count; ++s) {
                leave(progress, s, progress_of(crew.search[s]));
                offer(crew, s, progress, space.workspace, space.variance, RESCUED);
            }
        }
    }

    // Enters the searches of a lane's stars, each at its first one: from the grid, or from the start that was given.
    // The first goes on at once; the others wait for float steps.
    void find_starts(const Crew<FloatLane>& crew, const MixedSpace& space) {
        const auto enter = [&](int s, int choice, const double* params) {
            if (s >= crew.members.count || !params) return;
            SearchProgress& progress = progress_of(crew.search[s] + choice);
            for (int p = 0; p < k_; ++p) progress.u[p] = params[p];
            progress.u[k_ - 1] = log(params[k_ - 1]);
            progress.damping = START_DAMPING;
            progress.spent = progress.before = 0;
            progress.exists = true;
            if (choice > 0) books_.queues[ROUGH].add(crew.search[s] + choice);
        };
        if (fit_.grid) {
            choose_starts(*fit_.grid, space.gathered, space.start, m_, k_, starts_, fit_.gate, enter);
        } else {
            for (int s = 0; s < crew.members.count; ++s) enter(s, 0, fit_.start_params + crew.members.row[s] * k_);
        }
    }

    template <class Real, class Wide>
    void take_up(const Crew<Real>& crew, const LaneBox<Wide>& box, Progress<Real, Wide>& progress) const {
        for (int p = 0; p < k_; ++p)
            progress.state.u[p] = lane_of<Wide>([&](int s) { return progress_of(crew.search[s]).u[p]; });
        box.keep_inside(k_, progress.state.u);
        progress.damping = lane_of<Real>([&](int s) { return progress_of(crew.search[s]).damping; });
        // The evaluation that takes a search up again where it was left has been counted before.
        progress.spent = lane_of<Real>([&](int s) {
            const int32_t spent = progress_of(crew.search[s]).spent;
            return spent > 0 ? spent - 1 : 0;
        });
        progress.active = lane<Real>(0) < lane<Real>(1);
    }

    template <class Real, class Wide>
    void leave(const Progress<Real, Wide>& progress, int s, SearchProgress& search) const {
        for (int p = 0; p < k_; ++p) search.u[p] = get(progress.state.u[p], s);
        search.damping = get(progress.damping, s);
        const double loss = get(progress.state.loss, s);
        search.loss = loss == loss ? loss : infinity<double>();
        search.converged = get(progress.converged, s);
        search.spent = static_cast<int32_t>(get(progress.spent, s));
    }

    static void enter_stage(double damping, SearchProgress& search) {
        search.damping = damping;
        search.before += search.spent;
        search.spent = 0;
    }

    // Writes where a search has ended if that is the lowest loss of its star so far, the earlier start where two are
    // equal: the outcome does not depend on the order in which searches end.
    template <class Real, class Wide>
    void offer(const Crew<Real>& crew, int s, const Progress<Real, Wide>& progress, const Workspace<Real, Wide>& space,
               const Real* variance, uint32_t status) const {
        const int64_t search = crew.search[s];
        int64_t& written = books_.written[search / starts_];
        if (written != NOTHING) {
            const double loss = progress_of(search).loss, lowest = progress_of(written).loss;
            if (!(loss < lowest || (loss == lowest && search < written))) return;
        }
        written = search;
        write(crew.members.row[s], s, progress, space, variance, status);
    }

    // The minima that a star's searches have found: how many are distinct, and the second lowest.
    void compare_minima(int64_t row) const {
        const int64_t first = (row - begin_) * starts_, best = books_.written[row - begin_];
        const double nan = __builtin_nan("");
        int64_t second = NOTHING;
        int minima = 1, iterations = 0;
        for (int choice = 0; choice < starts_; ++choice) {
            const SearchProgress& search = progress_of(first + choice);
            if (!search.exists) continue;
            iterations += search.before + search.spent;
            if (!search.converged || first + choice == best || same_place(search, progress_of(best))) continue;
            bool known = false;
            for (int64_t other = first; other < first + choice; ++other)
                known = known || (other != best && progress_of(other).exists && progress_of(other).converged &&
                                  same_place(search, progress_of(other)));
            if (!known) ++minima;
            if (second == NOTHING || search.loss < progress_of(second).loss) second = first + choice;
        }
        out_.iterations[row] = iterations;
        out_.minima[row] = minima;
        out_.second_gap[row] = second == NOTHING ? nan : progress_of(second).loss - progress_of(best).loss;
        for (int p = 0; p < k_; ++p)
            out_.second_params[row * k_ + p] = second == NOTHING ? nan : progress_of(second).u[p];
        if (second != NOTHING) out_.second_params[row * k_ + k_ - 1] = exp(progress_of(second).u[k_ - 1]);
    }

    bool same_place(const SearchProgress& a, const SearchProgress& b) const {
        bool same = true;
        for (int p = 0; p < k_; ++p)
            same = same && abs(a.u[p] - b.u[p]) <= (p == k_ - 2 ? SAME_MINIMUM_EXT : SAME_MINIMUM);
        return same;
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
        for (int p = 0; p < k_; ++p) out_.second_params[row * k_ + p] = nan;
        out_.second_gap[row] = nan;
        out_.iterations[row] = out_.minima[row] = 0;
        out_.status[row] = NO_DATA;
    }

    // Damping with which each stage begins; float steps end where the predicted drop no longer needs their robustness.
    static constexpr double START_DAMPING = 1e-2, RESCUE_DAMPING = 1e-3;
    static constexpr double ROUGH_DROP = 0.1, ROUGH_DROP_PER_LOSS = 1e-3, DROP_PER_LOSS = 1e-2;

    const FitView& fit_;
    const StarArrays& stars_;
    const SolutionArrays& out_;
    const Shape shape_;
    const int k_, m_, starts_, candidates_;
    const int64_t begin_, end_;
    Arena arena_;
    mutable Books books_;
};

XPKERN_NAMESPACE_END
