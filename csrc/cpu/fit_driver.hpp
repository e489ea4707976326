// The fit of a block of stars in stages: Gauss-Newton steps and then Newton steps in float, Newton steps in mixed
// precision, float64 for what is left.
//
// Stars of a lane need different numbers of steps. When few of them are still at work the lane is left, and those few
// are packed together with their likes of other lanes to go on. A star's own path does not depend on that: it resumes
// with the state in which it was left.
#pragma once

#include "block_store.hpp"
#include "prefetch.hpp"
#include "searches.hpp"

XPKERN_NAMESPACE_BEGIN

// A search is numbered by its star and start: search / starts is the star's place in the block.
template <class Shape>
class FitDriver {
  public:
    // blocks: how a whitener may be split, whose stars then take half the work; others come after those.
    FitDriver(const FitView& what, const StarArrays& of, const SampleBlocks& blocks, const SolutionArrays& to,
              int64_t begin, int64_t end, char* scratch)
        : fit_(what),
          stars_(of),
          out_(to),
          shape_(what.model),
          form_(form_of(shape_.samples(), blocks)),
          k_(shape_.parameters()),
          m_(shape_.samples()),
          starts_(what.starts),
          types_(what.grid.n_types),
          begin_(begin),
          end_(end),
          arena_{scratch, 0},
          books_(end - begin, starts_, arena_),
          block_store_(form_, places_in_hand(end - begin), arena_) {}

    static int64_t scratch_bytes(const ModelView& model, const PriorView& prior, int64_t rows, int starts, int types,
                                 const SampleBlocks& blocks) {
        const Shape shape(model);
        Arena mixed{nullptr, 0};
        Books(rows, starts, mixed);
        BlockStore(form_of(shape.samples(), blocks), places_in_hand(rows), mixed);
        Arena wide = mixed;
        MixedSpace(shape, prior, types, mixed);
        WideSpace(AnyShape(model), prior, wide);
        return mixed.used > wide.used ? mixed.used : wide.used;
    }

    void run() {
        const Arena mark = arena_;
        const MixedSpace space(shape_, fit_.prior, types_, arena_);
        run_batches(end_ - begin_, [&](int64_t star) { enter(begin_ + star); }, space);
        const Queue& whole = books_.queues[WHOLE];
        form_ = BlockForm::whole(m_);
        run_batches(whole.count, [&](int64_t i) { books_.queues[START].add(whole.searches[i]); }, space);
        arena_ = mark;
        rescue();
        for (int64_t row = begin_; row < end_; ++row)
            if (const int64_t best = books_.written[row - begin_], first = (row - begin_) * starts_; best != NOTHING)
                compare_minima(k_, books_.begun[row - begin_], &progress_of(first), static_cast<int>(best - first), row,
                               out_);
    }

  private:
    enum Stage { START, SCOUT, ROUGH, SHARP, FINE, RESCUE, WHOLE, IN_HAND, QUEUES };
    static constexpr Stage STAGES[] = {START, ROUGH, SCOUT, ROUGH, SHARP, FINE};
    // Stars that go through the stages together: their whiteners stay in the third-level cache meanwhile. Searches that
    // do not fill a lane wait for the next batch.
    static constexpr int64_t BATCH_ROWS = 512;
    static constexpr int64_t NOTHING = -1;
    static constexpr int MAX_TRAILING = 128;  // rows of a trailing block
    using Search = SearchProgress<float>;     // none is taken up again in double
    // In hand are the stars of a batch, and those whose searches wait for company: less than a lane of them before each
    // stage, and the further searches of as many.
    static int64_t places_in_hand(int64_t rows) { return rows < 2 * BATCH_ROWS ? rows : 2 * BATCH_ROWS; }

    struct Books {
        Search* progress;
        int64_t* written;  // (rows,) the search whose result stands in the output
        int32_t* begun;    // (rows,) searches that have begun, the first of each star's
        int32_t* pending;  // (rows,) searches whose float steps have not ended, then those that have not ended at all
        int64_t* place;    // (rows,) of its factor in blocks
        Queue queues[QUEUES];
        Books(int64_t rows, int starts, Arena& arena)
            : progress(arena.take<Search>(rows * starts)),
              written(arena.take<int64_t>(rows)),
              begun(arena.take<int32_t>(rows)),
              pending(arena.take<int32_t>(rows)),
              place(arena.take<int64_t>(rows)) {
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
        // Those whom stays(s) tells stay, as many as there are places; the others' searches are added to a queue.
        template <class Stays>
        void keep(const Stays& stays, int64_t places, Queue& others) {
            int kept = 0;
            for (int s = 0; s < members.count; ++s) {
                if (kept == places || !stays(s)) {
                    others.add(search[s]);
                    continue;
                }
                search[kept] = search[s];
                members.row[kept++] = members.row[s];
            }
            members.count = kept;
            for (int s = kept; s < members.width && kept > 0; ++s) {
                search[s] = search[kept - 1];
                members.row[s] = members.row[kept - 1];
            }
        }
    };

    static BlockForm form_of(int samples, const SampleBlocks& blocks) {
        const BlockForm form = BlockForm::of(samples, blocks);
        return form.trailing() <= MAX_TRAILING ? form : BlockForm::whole(samples);
    }

    Search& progress_of(int64_t search) const { return books_.progress[search]; }

    // Takes up stars in batches; enter(i) puts the i-th of them into a queue.
    template <class Enter>
    void run_batches(int64_t count, const Enter& enter, const MixedSpace& space) {
        for (int64_t first = 0; first < count; first += BATCH_ROWS) {
            for (int64_t i = first; i < count && i < first + BATCH_ROWS; ++i) enter(i);
            for (const Stage stage : STAGES)
                while (books_.queues[stage].count >= LaneTraits<FloatLane>::width) run_stage(stage, false, space);
        }
        while (at_work_anywhere())
            for (const Stage stage : STAGES)
                while (books_.queues[stage].count > 0) run_stage(stage, true, space);
    }

    void enter(int64_t row) {
        books_.written[row - begin_] = NOTHING;
        books_.begun[row - begin_] = books_.pending[row - begin_] = 0;
        if (has_data(stars_.whitener + row * row_start(m_), m_))
            books_.queues[START].add((row - begin_) * starts_);
        else
            write_missing(m_, k_, row, out_);
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
            Crew<FloatLane> crew(waiting, first, begin_, starts_);
            if (!gather(stage, crew, space)) continue;
            StarFetcher next;
            if (stage >= SHARP) fetch_output(crew, next);
            fetch(waiting, first + width, stage, next);
            if (stage == START) find_starts(crew, space, next);
            if (stage == START || stage == ROUGH) run_float<ROUGH>(crew, leave_at, space, next);
            if (stage == SCOUT) run_float<SCOUT>(crew, 0, space, next);
            if (stage == SHARP) run_float<SHARP>(crew, 0, space, next);
            if (stage >= SHARP) run_fine(crew, leave_at, space, next);
        }
    }

    // Gathers the stars of a crew. Before their first stage it is seen whose whiteners are in blocks: others leave the
    // crew and wait. Returns whether any are left.
    bool gather(Stage stage, Crew<FloatLane>& crew, const MixedSpace& space) {
        const GatheredStars<FloatLane, WideLane>& stars = space.gathered;
        if (form_.has_trailing() && stage != START) {
            stars.fill_measured(crew.members, stars_, k_);
            block_store_.load(places_of(crew).of, stars.factor);
            return true;
        }
        if (!form_.has_trailing()) {
            stars.fill(crew.members, stars_, k_);
            return true;
        }
        crew.keep([&](int s) { return may_be_in_blocks(stars_.whitener + crew.members.row[s] * row_start(m_), form_); },
                  block_store_.free_places(), books_.queues[WHOLE]);
        if (crew.members.count == 0) return false;
        stars.fill(crew.members, stars_, k_);
        FloatLane common[MAX_TRAILING];
        const Mask<FloatLane> in_blocks = find_common_error(stars.factor, form_, stars.along, common);
        if (!all(in_blocks)) {
            crew.keep([&](int s) { return bool(get(in_blocks, s)); }, crew.members.count, books_.queues[WHOLE]);
            if (crew.members.count == 0) return false;
            stars.fill(crew.members, stars_, k_);
            find_common_error(stars.factor, form_, stars.along, common);
        }
        place_common_error(form_, common, stars.factor);
        for (int s = 0; s < crew.members.count; ++s)
            books_.place[crew.members.row[s] - begin_] = block_store_.take_place();
        block_store_.save(stars.factor, places_of(crew).of, crew.members.count);
        return true;
    }
    struct Places {
        int64_t of[LaneTraits<FloatLane>::width];
    };
    Places places_of(const Crew<FloatLane>& crew) const {
        Places places;
        for (int s = 0; s < crew.members.width; ++s) places.of[s] = books_.place[crew.members.row[s] - begin_];
        return places;
    }

    // One search less of a star whose float steps have ended.
    void end_search(int64_t search) {
        const int64_t star = search / starts_;
        if (--books_.pending[star] == 0 && form_.has_trailing()) block_store_.give_back(books_.place[star]);
    }

    // Has the memory fetched where the solutions of a crew are written.
    void fetch_output(const Crew<FloatLane>& crew, StarFetcher& ahead) const {
        for (int s = 0; s < crew.members.count; ++s) {
            const int64_t row = crew.members.row[s];
            ahead.add(out_.residual + row * m_, m_ * int64_t(sizeof(float)));
            ahead.add(out_.at.hessian + row * k_ * k_, k_ * k_ * int64_t(sizeof(double)));
            ahead.add(out_.at.fisher + row * k_ * k_, k_ * k_ * int64_t(sizeof(double)));
        }
    }

    // Has the whiteners and searches of the lane that comes next fetched. For its first stage whiteners are in memory,
    // which takes as long as that stage does; after it in the third-level cache, from where they come as fast as they
    // are asked for.
    void fetch(const Queue& waiting, int64_t first, Stage stage, StarFetcher& next) const {
        if (first >= waiting.count) return;
        const Crew<FloatLane> crew(waiting, first, begin_, starts_);
        const bool in_blocks = form_.has_trailing() && stage != START;
        for (int s = 0; s < crew.members.count; ++s) {
            const int64_t row = crew.members.row[s];
            next.add(&progress_of(crew.search[s]), sizeof(Search));
            if (in_blocks)
                next.add(block_store_.row(books_.place[row - begin_]), block_store_.row_bytes());
            else
                next.add(stars_.whitener + row * row_start(m_), row_start(m_) * int64_t(sizeof(float)));
        }
    }

    // Float steps. ROUGH: Gauss-Newton until the predicted drop is small. SCOUT: the first few of them, then a look
    // whether the search is in the valley of the star's first one. SHARP: a single Newton step.
    template <Stage STAGE>
    void run_float(const Crew<FloatLane>& crew, int leave_at, const MixedSpace& space, const StarFetcher& next) {
        const LaneBox<FloatLane> box(fit_, k_);
        FloatLane mean[MAX_PARAMETERS], weight[MAX_PARAMETERS];
        for (int p = 0; p < k_; ++p) {
            mean[p] = convert<FloatLane>(space.gathered.mean[p]);
            weight[p] = convert<FloatLane>(space.gathered.weight[p]);
        }
        const RoughStar star{space.gathered.flux, {space.gathered.factor, space.gathered.along, form_}, mean, weight};
        const bool only_scouts = STAGE == SCOUT && SCOUT_EVALUATIONS < fit_.max_iterations;
        const int evaluations = only_scouts ? SCOUT_EVALUATIONS : fit_.max_iterations;
        const StopRule rule = STAGE == SHARP ? sharp_rule() : rough_rule(evaluations);
        Progress<FloatLane, FloatLane> progress;
        crew_takes_up(crew, box, progress);
        optimise<STAGE == SHARP>(fit_.model, shape_, fit_.prior, fit_.terms, star, box.view(), rule, leave_at,
                                 space.rough, progress, next);
        Mask<FloatLane> known = lane<FloatLane>(1) < lane<FloatLane>(0);
        if (STAGE == SCOUT) known = in_valley_of_first(crew, star, progress, space.rough);
        for (int s = 0; s < crew.members.count; ++s) {
            Search& search = progress_of(crew.search[s]);
            const bool goes_on = only_scouts ? !get(progress.converged, s) : bool(get(progress.active, s));
            leave(k_, progress, s, starts_ > 1 && STAGE != SHARP, goes_on, search);
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
        const int64_t star = search / starts_, first = star * starts_, end = first + books_.begun[star];
        if (search == first)
            for (int64_t other = first + 1; other < end; ++other) books_.queues[SCOUT].add(other);
        if (--books_.pending[star] > 0) return;
        mark_copies(k_, books_.begun[star], &progress_of(first));
        for (int64_t one = first; one < end; ++one) {
            if (!at_work(progress_of(one))) continue;
            books_.queues[SHARP].add(one);
            ++books_.pending[star];
        }
    }

    using RoughStar = StarView<FloatLane, FloatLane, BlockFactor<FloatLane>>;
    Mask<FloatLane> in_valley_of_first(const Crew<FloatLane>& crew, const RoughStar& star,
                                       const Progress<FloatLane, FloatLane>& progress,
                                       const Workspace<FloatLane, FloatLane>& space) const {
        const auto first = [&](int s) -> const auto& {
            return progress_of(crew.search[s] - crew.search[s] % starts_).state;
        };
        FloatLane there[MAX_PARAMETERS];
        for (int p = 0; p < k_; ++p) there[p] = lane_of<FloatLane>([&](int s) { return first(s).u[p]; });
        const FloatLane lowest = lane_of<FloatLane>([&](int s) { return first(s).loss; });
        return in_valley(fit_.model, shape_, fit_.prior, fit_.terms, star, space, progress.state.u, progress.state.loss,
                         there, lowest);
    }

    // Newton steps with value and residual in double.
    void run_fine(const Crew<FloatLane>& crew, int leave_at, const MixedSpace& space, const StarFetcher& next) {
        const LaneBox<WideLane> box(fit_, k_);
        Progress<FloatLane, WideLane> progress;
        crew_takes_up(crew, box, progress);
        const auto star = space.gathered.view(form_);
        optimise<true>(fit_.model, shape_, fit_.prior, fit_.terms, star, box.view(),
                       fine_rule(fit_.max_iterations, fit_.tolerance), leave_at, space.fine, progress, next);
        Report<WideLane> report;
        describe(progress, star, space.fine, space.residual, report);
        for (int s = 0; s < crew.members.count; ++s) {
            Search& search = progress_of(crew.search[s]);
            leave(k_, progress, s, false, get(progress.active, s), search);
            if (get(progress.active, s)) {
                books_.queues[FINE].add(crew.search[s]);
                continue;
            }
            end_search(crew.search[s]);
            if (search.converged) {
                offer(crew, s, progress, report, space.residual);
            } else {
                enter_stage(RESCUE_DAMPING, search);
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
            if (worth_rescue(progress_of(search), found == NOTHING ? nullptr : &progress_of(found)))
                waiting.add(search);
        }
        const AnyShape any(fit_.model);
        const WideSpace space(any, fit_.prior, arena_);
        const LaneBox<DoubleLane> box(fit_, k_);
        for (int64_t first = 0; first < waiting.count; first += LaneTraits<DoubleLane>::width) {
            const Crew<DoubleLane> crew(waiting, first, begin_, starts_);
            space.gathered.fill(crew.members, stars_, k_);
            const auto star = space.gathered.view();
            Progress<DoubleLane, DoubleLane> progress;
            crew_takes_up(crew, box, progress);
            optimise<true>(fit_.model, any, fit_.prior, fit_.terms, star, box.view(),
                           fine_rule(RESCUE_PATIENCE * fit_.max_iterations, fit_.tolerance), 0, space.workspace,
                           progress);
            Report<DoubleLane> report;
            describe(progress, star, space.workspace, space.residual, report);
            for (int s = 0; s < crew.members.count; ++s) {
                Search& search = progress_of(crew.search[s]);
                leave(k_, progress, s, false, false, search);
                search.rescued = true;
                offer(crew, s, progress, report, space.residual);
            }
        }
    }

    // Enters the searches of a lane's stars, each at its first one: from the grid, or from the start that was given.
    void find_starts(const Crew<FloatLane>& crew, const MixedSpace& space, const StarFetcher& next) {
        const auto begin = [&](int s, int choice, const double* u) {
            if (s >= crew.members.count || !u) return;
            begin_search(k_, u, progress_of(crew.search[s] + choice));
            const int64_t star = crew.search[s] / starts_;
            books_.begun[star] = ++books_.pending[star];
        };
        if (types_ > 0) {
            choose_starts(fit_.grid, m_, k_, space.gathered.view(form_), space.variance, space.start, starts_,
                          fit_.gate, begin, next);
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
    void crew_takes_up(const Crew<Real>& crew, const LaneBox<Wide>& box, Progress<Real, Wide>& progress) const {
        const auto search_of = [&](int s) -> const Search& { return progress_of(crew.search[s]); };
        take_up(k_, crew.members.count, search_of, box.view(), progress);
    }

    template <class Real, class Wide>
    void describe(const Progress<Real, Wide>& progress, const StarView<Real, Wide, BlockFactor<Real>>& star,
                  const Workspace<Real, Wide>& space, Real* residual, Report<Wide>& report) const {
        describe_solution(progress.state, m_, k_, star.flux, star.factor, star.weight, space.kept_flux, residual,
                          report);
    }

    // Writes where a search has ended if that is the best of its star so far.
    template <class Real, class Wide>
    void offer(const Crew<Real>& crew, int s, const Progress<Real, Wide>& progress, const Report<Wide>& report,
               const Real* residual) const {
        Search& search = progress_of(crew.search[s]);
        int64_t& written = books_.written[crew.search[s] / starts_];
        search.offered = true;
        if (written != NOTHING && !is_better(search, progress_of(written))) return;
        written = crew.search[s];
        const int64_t row = crew.members.row[s];
        write_solution(fit_, k_, progress.state, report, s, search.converged, search.rescued, row, out_);
        write_residual(m_, residual, s, row, out_);
    }

    const FitView& fit_;
    const StarArrays& stars_;
    const SolutionArrays& out_;
    const Shape shape_;
    BlockForm form_;  // of the factors that lanes have now
    const int k_, m_, starts_, types_;
    const int64_t begin_, end_;
    Arena arena_;
    mutable Books books_;
    BlockStore block_store_;
};

XPKERN_NAMESPACE_END
