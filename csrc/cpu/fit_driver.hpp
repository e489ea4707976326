// The fit of a block of stars in stages: Gauss-Newton steps and then Newton steps in float, Newton steps in mixed
// precision, float64 for what is left.
//
// Stars of a lane need different numbers of steps. When few of them are still at work the lane is left, and those few
// are packed together with their likes of other lanes to go on. A star's own path does not depend on that: it resumes
// with the state in which it was left.
#pragma once

#include "../core/evaluation.hpp"
#include "../core/status.hpp"
#include "searches.hpp"

XPKERN_NAMESPACE_BEGIN

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
          types_(what.grid ? what.grid->n_types : 0),
          begin_(begin),
          end_(end),
          arena_{scratch, 0},
          books_(end - begin, starts_, arena_) {}

    static int64_t scratch_bytes(const ModelView& model, const PriorView& prior, int64_t rows, int starts, int types) {
        const Shape shape(model);
        Arena mixed{nullptr, 0};
        Books(rows, starts, mixed);
        Arena wide = mixed;
        MixedSpace(shape, prior, types, mixed);
        WideSpace(AnyShape(model), prior, wide);
        return mixed.used > wide.used ? mixed.used : wide.used;
    }

    void run() {
        const Arena mark = arena_;
        const MixedSpace space(shape_, fit_.prior, types_, arena_);
        for (int64_t first = begin_; first < end_; first += BATCH_ROWS) {
            for (int64_t row = first; row < end_ && row < first + BATCH_ROWS; ++row) enter(row);
            for (const Stage stage : STAGES)
                while (books_.queues[stage].count >= LaneTraits<FloatLane>::width) run_stage(stage, false, space);
        }
        while (at_work_anywhere())
            for (const Stage stage : STAGES)
                while (books_.queues[stage].count > 0) run_stage(stage, true, space);
        arena_ = mark;
        rescue();
        for (int64_t row = begin_; row < end_; ++row)
            if (books_.written[row - begin_] != NOTHING) compare_minima(row);
    }

  private:
    enum Stage { START, SCOUT, ROUGH, SHARP, FINE, RESCUE, IN_HAND, QUEUES };
    static constexpr Stage STAGES[] = {START, ROUGH, SCOUT, ROUGH, SHARP, FINE};
    // Stars that go through the stages together: their whiteners stay in the third-level cache meanwhile. Searches that
    // do not fill a lane wait for the next batch.
    static constexpr int64_t BATCH_ROWS = 512;
    static constexpr int64_t NOTHING = -1;

    struct Books {
        SearchProgress* progress;
        int64_t* written;  // (rows,) the search whose result stands in the output
        int32_t* pending;  // (rows,) searches whose float steps have not ended
        Queue queues[QUEUES];
        Books(int64_t rows, int starts, Arena& arena)
            : progress(arena.take<SearchProgress>(rows * starts)),
              written(arena.take<int64_t>(rows)),
              pending(arena.take<int32_t>(rows)) {
            for (Queue& queue : queues) queue = {arena.take<int64_t>(rows * starts), 0};
        }
    };
    // Memory of the float and mixed stages.
    struct MixedSpace {
        GatheredStars<FloatLane, WideLane> gathered;
        FloatLane *variance, *residual;
        StartSpace<FloatLane> start;
        Workspace<FloatLane, FloatLane> rough;
        Workspace<FloatLane, WideLane> fine;
        MixedSpace(const Shape& shape, const PriorView& prior, int types, Arena& arena)
            : gathered(shape.samples(), shape.parameters(), arena),
              variance(arena.take<FloatLane>(shape.samples())),
              residual(arena.take<FloatLane>(shape.samples())),
              start(StartSpace<FloatLane>::carve(shape.samples(), shape.parameters(), types, arena)),
              rough(carve_workspace<FloatLane, FloatLane>(shape, prior, arena)),
              fine(carve_workspace<FloatLane, WideLane>(shape, prior, arena)) {}
    };
    // Memory of the rescue.
    struct WideSpace {
        GatheredStars<DoubleLane, DoubleLane> gathered;
        DoubleLane* residual;
        Workspace<DoubleLane, DoubleLane> workspace;
        WideSpace(const AnyShape& shape, const PriorView& prior, Arena& arena)
            : gathered(shape.samples(), shape.parameters(), arena),
              residual(arena.take<DoubleLane>(shape.samples())),
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

    void enter(int64_t row) {
        const int64_t first = (row - begin_) * starts_;
        for (int choice = 0; choice < starts_; ++choice) books_.progress[first + choice].exists = false;
        books_.written[row - begin_] = NOTHING;
        books_.pending[row - begin_] = 0;
        if (has_data(row))
            books_.queues[START].add(first);
        else
            write_missing(row);
    }

    bool at_work_anywhere() const {
        int64_t waiting = 0;
        for (const Stage stage : STAGES) waiting += books_.queues[stage].count;
        return waiting > 0;
    }

    // The searches that wait for a stage, as many as fill lanes unless all are wanted; those that are left at work wait
    // for it again.
    void run_stage(Stage stage, bool all, const MixedSpace& space) {
        constexpr int width = LaneTraits<FloatLane>::width;
        Queue* queues = books_.queues;
        Queue waiting = queues[stage];
        queues[stage] = {queues[IN_HAND].searches, 0};
        queues[IN_HAND] = {waiting.searches, 0};
        if (!all)
            for (; waiting.count % width > 0; --waiting.count) queues[stage].add(waiting.searches[waiting.count - 1]);
        // Leaving some of a lane's stars pays for gathering them again, as long as they find company.
        const int leave_at = all && waiting.count <= width ? 0 : width / 2;
        for (int64_t first = 0; first < waiting.count; first += width) {
            const Crew<FloatLane> crew(waiting, first, begin_, starts_);
            if (stage == START) {
                space.gathered.template fill<Next::following>(crew.members, stars_, m_, k_);
                find_starts(crew, space);
            } else {
                space.gathered.fill(crew.members, stars_, m_, k_);
            }
            if (stage == START || stage == ROUGH) run_float<ROUGH>(crew, leave_at, space);
            if (stage == SCOUT) run_float<SCOUT>(crew, 0, space);
            if (stage == SHARP) run_float<SHARP>(crew, 0, space);
            if (stage >= SHARP) run_fine(crew, leave_at, space);
        }
    }

    // Float steps. ROUGH: Gauss-Newton until the predicted drop is small. SCOUT: the first few of them, then a look
    // whether the search is in the valley of the star's first one. SHARP: a single Newton step; nearly all stars need
    // no second one, and those that do need not be waited for: the next stage does as well.
    template <Stage STAGE>
    void run_float(const Crew<FloatLane>& crew, int leave_at, const MixedSpace& space) {
        const LaneBox<FloatLane> box(fit_, k_);
        FloatLane mean[MAX_PARAMETERS], weight[MAX_PARAMETERS];
        for (int p = 0; p < k_; ++p) {
            mean[p] = convert<FloatLane>(space.gathered.mean[p]);
            weight[p] = convert<FloatLane>(space.gathered.weight[p]);
        }
        const StarView<FloatLane, FloatLane> star{space.gathered.flux, space.gathered.factor, mean, weight};
        const bool only_scouts = STAGE == SCOUT && SCOUT_EVALUATIONS < fit_.max_iterations;
        const int evaluations = only_scouts ? SCOUT_EVALUATIONS : fit_.max_iterations;
        const StopRule rule = STAGE == SHARP ? StopRule{1, SHARP_DROP, SHARP_DROP_PER_LOSS, true}
                                             : StopRule{evaluations, ROUGH_DROP, ROUGH_DROP_PER_LOSS, true};
        Progress<FloatLane, FloatLane> progress;
        take_up(crew, box, progress);
        optimise<STAGE == SHARP>(fit_.model, shape_, fit_.prior, fit_.terms, star, box.view(), rule, leave_at,
                                 space.rough, progress);
        Mask<FloatLane> known = lane<FloatLane>(1) < lane<FloatLane>(0);
        if (STAGE == SCOUT) known = in_valley_of_first(crew, star, progress, space.rough);
        for (int s = 0; s < crew.members.count; ++s) {
            SearchProgress& search = progress_of(crew.search[s]);
            const bool goes_on = only_scouts ? !get(progress.converged, s) : bool(get(progress.active, s));
            leave(progress, s, goes_on, search);
            if (STAGE == SCOUT) search.copy = get(known, s);
            if (goes_on && !search.copy) {
                books_.queues[ROUGH].add(crew.search[s]);
            } else {
                enter_stage(0, search);
                if (STAGE != SHARP) end_float_steps(crew.search[s]);
            }
        }
    }

    // When a star's first search has ended its float steps, the others begin; when all have, those that are worth it go
    // on.
    void end_float_steps(int64_t search) {
        const int64_t star = search / starts_, first = star * starts_;
        if (search == first)
            for (int64_t other = first + 1; other < first + starts_; ++other)
                if (progress_of(other).exists) books_.queues[SCOUT].add(other);
        if (--books_.pending[star] > 0) return;
        for (int64_t one = first; one < first + starts_; ++one)
            for (int64_t other = first; other < first + starts_; ++other)
                if (at_work(one) && at_work(other) && is_copy(progress_of(one), progress_of(other)))
                    progress_of(one).copy = true;
        for (int64_t one = first; one < first + starts_; ++one)
            if (at_work(one)) books_.queues[SHARP].add(one);
    }

    // Searches from which it goes down all the way to where their star's first one has got to, as far as the middle of
    // the straight line between the two can tell.
    Mask<FloatLane> in_valley_of_first(const Crew<FloatLane>& crew, const StarView<FloatLane, FloatLane>& star,
                                       const Progress<FloatLane, FloatLane>& progress,
                                       const Workspace<FloatLane, FloatLane>& space) const {
        const auto first = [&](int s) -> const LossState<double, double>& {
            return progress_of(crew.search[s] - crew.search[s] % starts_).state;
        };
        FloatLane middle[MAX_PARAMETERS];
        for (int p = 0; p < k_; ++p) {
            const FloatLane there = lane_of<FloatLane>([&](int s) { return first(s).u[p]; });
            middle[p] = (progress.state.u[p] + there) * lane<FloatLane>(0.5);
        }
        const FloatLane lowest = lane_of<FloatLane>([&](int s) { return first(s).loss; });
        const FloatLane between = loss_alone(fit_.model, shape_, fit_.prior, fit_.terms, star, space, middle);
        return (lowest < between) & (between < progress.state.loss);
    }

    // Newton steps with value and residual in double.
    void run_fine(const Crew<FloatLane>& crew, int leave_at, const MixedSpace& space) {
        const LaneBox<WideLane> box(fit_, k_);
        Progress<FloatLane, WideLane> progress;
        take_up(crew, box, progress);
        optimise<true>(fit_.model, shape_, fit_.prior, fit_.terms, space.gathered.view(), box.view(),
                       StopRule{fit_.max_iterations, fit_.tolerance, DROP_PER_LOSS, false}, leave_at, space.fine,
                       progress);
        Report<WideLane> report;
        describe(progress, space.gathered, space.fine, space.residual, report);
        for (int s = 0; s < crew.members.count; ++s) {
            SearchProgress& search = progress_of(crew.search[s]);
            leave(progress, s, get(progress.active, s), search);
            if (get(progress.active, s)) {
                books_.queues[FINE].add(crew.search[s]);
            } else if (search.converged) {
                offer(crew, s, progress, report, space.residual, 0);
            } else {
                enter_stage(RESCUE_DAMPING, search);
                books_.queues[RESCUE].add(crew.search[s]);
            }
        }
    }

    bool at_work(int64_t search) const { return progress_of(search).exists && !progress_of(search).copy; }

    // Whether a search is in the basin of another that is lower: the other's quadratic form of the loss, at the
    // distance between them, is no more than what float steps leave of it.
    bool is_copy(const SearchProgress& search, const SearchProgress& other) const {
        const LossState<double, double>&a = search.state, &b = other.state;
        if (!(b.loss < a.loss || (b.loss == a.loss && &other < &search))) return false;
        double rise = 0;
        for (int p = 0; p < k_; ++p)
            for (int q = 0; q < k_; ++q)
                rise += 0.5 * (a.u[p] - b.u[p]) * b.gauss_newton[packed_index(p, q)] * (a.u[q] - b.u[q]);
        return rise <= COPY_RISE;
    }

    // Searches that mixed precision left unconverged, in double: a star's first one, and those that are lower than what
    // the others have found. They are few: code for the usual sizes alone is not worth having twice.
    void rescue() {
        Queue& waiting = books_.queues[RESCUE];
        const Queue all = waiting;
        waiting.count = 0;
        for (int64_t i = 0; i < all.count; ++i) {
            const int64_t search = all.searches[i], found = books_.written[search / starts_];
            if (found == NOTHING || progress_of(search).state.loss < progress_of(found).state.loss) waiting.add(search);
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
                           StopRule{4 * fit_.max_iterations, fit_.tolerance, DROP_PER_LOSS, false}, 0, space.workspace,
                           progress);
            Report<DoubleLane> report;
            describe(progress, space.gathered, space.workspace, space.residual, report);
            for (int s = 0; s < crew.members.count; ++s) {
                leave(progress, s, false, progress_of(crew.search[s]));
                offer(crew, s, progress, report, space.residual, RESCUED);
            }
        }
    }

    // Enters the searches of a lane's stars, each at its first one: from the grid, or from the start that was given.
    void find_starts(const Crew<FloatLane>& crew, const MixedSpace& space) {
        const auto begin = [&](int s, int choice, const double* u) {
            if (s >= crew.members.count || !u) return;
            SearchProgress& progress = progress_of(crew.search[s] + choice);
            for (int p = 0; p < k_; ++p) progress.state.u[p] = u[p];
            progress.damping = START_DAMPING;
            progress.spent = progress.before = 0;
            progress.exists = true;
            progress.copy = progress.converged = false;
            ++books_.pending[crew.search[s] / starts_];
        };
        if (fit_.grid) {
            choose_starts(shape_, *fit_.grid, space.gathered, space.variance, space.start, starts_, fit_.gate, begin);
        } else {
            for (int s = 0; s < crew.members.count; ++s) {
                double u[MAX_PARAMETERS];
                for (int p = 0; p < k_; ++p) u[p] = fit_.start_params[crew.members.row[s] * k_ + p];
                u[k_ - 1] = log(u[k_ - 1]);
                begin(s, 0, u);
            }
        }
    }

    template <class Real, class Wide>
    void take_up(const Crew<Real>& crew, const LaneBox<Wide>& box, Progress<Real, Wide>& progress) const {
        LossState<Real, Wide>& state = progress.state;
        const auto state_of = [&](int s) -> const LossState<double, double>& {
            return progress_of(crew.search[s]).state;
        };
        for (int p = 0; p < k_; ++p) state.u[p] = lane_of<Wide>([&](int s) { return state_of(s).u[p]; });
        progress.damping = lane_of<Real>([&](int s) { return progress_of(crew.search[s]).damping; });
        progress.active = lane<Real>(0) < lane<Real>(1);
        progress.converged = !progress.active;
        progress.evaluated = true;
        for (int s = 0; s < crew.members.count; ++s)
            progress.evaluated = progress.evaluated && progress_of(crew.search[s]).spent > 0;
        // Where all are evaluated once more for the sake of some, that is not counted for those that have a state.
        progress.spent = lane_of<Real>([&](int s) {
            const int32_t spent = progress_of(crew.search[s]).spent;
            return spent > 0 && !progress.evaluated ? spent - 1 : spent;
        });
        if (!progress.evaluated) return box.keep_inside(k_, state.u);
        state.loss = lane_of<Wide>([&](int s) { return state_of(s).loss; });
        state.chi2 = lane_of<Wide>([&](int s) { return state_of(s).chi2; });
        state.ln_prior = lane_of<Wide>([&](int s) { return state_of(s).ln_prior; });
        for (int p = 0; p < k_; ++p) state.gradient[p] = lane_of<Real>([&](int s) { return state_of(s).gradient[p]; });
        for (int at = 0; at < row_start(k_); ++at) {
            state.normal[at] = lane_of<Real>([&](int s) { return state_of(s).normal[at]; });
            state.gauss_newton[at] = lane_of<Real>([&](int s) { return state_of(s).gauss_newton[at]; });
            state.hessian[at] = lane_of<Real>([&](int s) { return state_of(s).hessian[at]; });
        }
    }

    // Notes where a search has got to: all of it where the search is taken up again, or compared with others.
    template <class Real, class Wide>
    void leave(const Progress<Real, Wide>& progress, int s, bool resumes, SearchProgress& search) const {
        const LossState<Real, Wide>& state = progress.state;
        const double loss = get(state.loss, s);
        search.state.loss = loss == loss ? loss : infinity<double>();
        for (int p = 0; p < k_; ++p) search.state.u[p] = get(state.u[p], s);
        search.damping = get(progress.damping, s);
        search.converged = get(progress.converged, s);
        search.spent = static_cast<int32_t>(get(progress.spent, s));
        if (starts_ > 1 || resumes)
            for (int at = 0; at < row_start(k_); ++at) search.state.gauss_newton[at] = get(state.gauss_newton[at], s);
        if (!resumes) return;
        search.state.chi2 = get(state.chi2, s);
        search.state.ln_prior = get(state.ln_prior, s);
        for (int p = 0; p < k_; ++p) search.state.gradient[p] = get(state.gradient[p], s);
        for (int at = 0; at < row_start(k_); ++at) {
            search.state.normal[at] = get(state.normal[at], s);
            search.state.hessian[at] = get(state.hessian[at], s);
        }
    }

    static void enter_stage(double damping, SearchProgress& search) {
        search.damping = damping;
        search.before += search.spent;
        search.spent = 0;
    }

    // What is written of a lane's stars: derivatives, and residuals (m,) in units of sigma, 0 where missing.
    template <class Real, class Wide>
    void describe(const Progress<Real, Wide>& progress, const GatheredStars<Real, Wide>& stars,
                  const Workspace<Real, Wide>& space, Real* residual, Report<Wide>& report) const {
        report_evaluation(progress.state, k_, stars.weight, report);
        sample_variance(stars.factor, m_, residual);
        for (int i = 0; i < m_; ++i) {
            const Mask<Real> present = residual[i] > lane<Real>(0);
            const Real sigma = sqrt(select(present, residual[i], lane<Real>(1)));
            const Real difference = convert<Real>(space.kept_flux[i] - convert<Wide>(stars.flux[i]));
            residual[i] = select(present, difference / sigma, lane<Real>(0));
        }
    }

    // Writes where a search has ended if that is the lowest loss of its star so far, the earlier start where two are
    // equal: the outcome does not depend on the order in which searches end.
    template <class Real, class Wide>
    void offer(const Crew<Real>& crew, int s, const Progress<Real, Wide>& progress, const Report<Wide>& report,
               const Real* residual, uint32_t status) const {
        const int64_t search = crew.search[s];
        int64_t& written = books_.written[search / starts_];
        if (written != NOTHING) {
            const double loss = progress_of(search).state.loss, lowest = progress_of(written).state.loss;
            if (!(loss < lowest || (loss == lowest && search < written))) return;
        }
        written = search;
        write(crew.members.row[s], s, progress, report, residual, status);
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
            if (!search.converged || search.copy || first + choice == best || same_place(search, progress_of(best)))
                continue;
            bool known = false;
            for (int64_t other = first; other < first + choice; ++other)
                known = known || (other != best && at_work(other) && progress_of(other).converged &&
                                  same_place(search, progress_of(other)));
            if (!known) ++minima;
            if (second == NOTHING || search.state.loss < progress_of(second).state.loss) second = first + choice;
        }
        out_.iterations[row] = iterations;
        out_.minima[row] = minima;
        out_.second_gap[row] = second == NOTHING ? nan : progress_of(second).state.loss - progress_of(best).state.loss;
        for (int p = 0; p < k_; ++p)
            out_.second_params[row * k_ + p] = second == NOTHING ? nan : progress_of(second).state.u[p];
        if (second != NOTHING) out_.second_params[row * k_ + k_ - 1] = exp(progress_of(second).state.u[k_ - 1]);
    }

    bool same_place(const SearchProgress& a, const SearchProgress& b) const {
        bool same = true;
        for (int p = 0; p < k_; ++p)
            same = same && abs(a.state.u[p] - b.state.u[p]) <= (p == k_ - 2 ? SAME_MINIMUM_EXT : SAME_MINIMUM);
        return same;
    }

    // One star's solution.
    template <class Real, class Wide>
    void write(int64_t row, int s, const Progress<Real, Wide>& progress, const Report<Wide>& report,
               const Real* residual, uint32_t status) const {
        write_evaluation(progress.state, report, s, k_, row, out_.at);
        out_.decrement[row] = get(report.decrement, s);
        if (!get(progress.converged, s)) status |= NOT_CONVERGED;
        if (!get(report.positive, s)) status |= HESSIAN_NOT_POSITIVE;
        for (int p = 0; p < k_; ++p) {
            double value = get(progress.state.u[p], s);
            if (p == k_ - 1) value = exp(value);
            const double low = p == k_ - 2 ? max(fit_.lower[p], SMALLEST_EXT) : fit_.lower[p];
            const double slack = 1e-12 * abs(value);
            if (value <= low + slack || value >= fit_.upper[p] - slack) status |= ON_BOX_EDGE;
            out_.params[row * k_ + p] = value;
        }
        out_.status[row] = status;
        for (int i = 0; i < m_; ++i) out_.residual[row * m_ + i] = static_cast<float>(get(residual[i], s));
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

    // Damping with which the first and the last stage begin; those between take Newton steps from the start. A start is
    // a Gauss-Newton step itself, so that little of it serves.
    static constexpr double START_DAMPING = 1e-4, RESCUE_DAMPING = 1e-3;
    // Gauss-Newton steps end where Newton steps converge; a Newton step in float is taken where that is still so.
    static constexpr double ROUGH_DROP = 0.1, ROUGH_DROP_PER_LOSS = 1e-3;
    static constexpr double SHARP_DROP = 0.1, SHARP_DROP_PER_LOSS = 1e-2;
    static constexpr double DROP_PER_LOSS = 1e-2;
    static constexpr double COPY_RISE = 0.02;
    // Float evaluations of a further search before it is asked whether it is in the valley of the first one. Earlier, a
    // search that would find a lower minimum may still be on its way down into it.
    static constexpr int SCOUT_EVALUATIONS = 3;

    const FitView& fit_;
    const StarArrays& stars_;
    const SolutionArrays& out_;
    const Shape shape_;
    const int k_, m_, starts_, types_;
    const int64_t begin_, end_;
    Arena arena_;
    mutable Books books_;
};

XPKERN_NAMESPACE_END
