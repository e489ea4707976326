// A run of training steps over batches of stars, and the threads that share its chunks.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "arguments.hpp"
#include "places.hpp"
#include "scratch.hpp"
#include "team.hpp"
#include "thread_pool.hpp"

namespace xpkern {

// One side's steps: none where rates is null.
struct ModelSteps {
    const double* rates;
    ModelStepView how;
};
struct StarSteps {
    const double* rates;
    double clip;
    LossView terms;
    const double *lower, *upper;  // (k,)
};

// All of a model's parameters, in the order of core/model_step.hpp, and their moments.
struct TrainingArrays {
    std::vector<double> parameters, first, second;
    TrainingState view() { return {parameters.data(), first.data(), second.data()}; }
};

// What is summed over the chunks of a batch is summed in their order: the result is that of one thread.
class TrainingRun {
  public:
    enum class End { last_step, loss_not_finite, model_not_finite };

    // of: where the model stands; its numbers are copied. batches: (steps, size) rows. params, (n, k), are changed by
    // the stars' steps, and star_loss, (n,), is set then.
    TrainingRun(const Kernels& with, const ModelView& of, const TrainingStars& data, double* star_params,
                double* loss_of_stars, const int64_t* batches, int64_t steps, int64_t size, int n_threads)
        : kernels_(with),
          model_(of),
          stars_(data),
          params_(star_params),
          star_loss_(loss_of_stars),
          places_(batches, steps, size, data.side_by_side),
          n_steps_(steps),
          size_(size),
          n_chunks_((places_.of_batch() + with.chunk_places - 1) / with.chunk_places),
          groups_((n_chunks_ + GROUP - 1) / GROUP),
          chunk_size_(with.chunk_gradient_size(of)),
          threads_(static_cast<int>(n_chunks_ < n_threads ? (n_chunks_ < 1 ? 1 : n_chunks_)
                                                          : (n_threads < 1 ? 1 : n_threads))),
          chunk_sums_(static_cast<size_t>((n_chunks_ < GROUP ? n_chunks_ : GROUP) * chunk_size_)),
          total_(static_cast<size_t>(chunk_size_)),
          chi2_(static_cast<size_t>(places_.of_batch())) {
        for (int l = 0; l < of.n_layers; ++l) {
            append(of.in_double.weights[l], int64_t(of.width[l]) * of.width[l + 1]);
            append(of.in_double.biases[l], of.width[l + 1]);
        }
        append(of.in_double.ext_curve, of.width[of.n_layers]);
        gradient_.resize(now_.parameters.size());
        floats_.resize(now_.parameters.size());
        narrow();
        for (int thread = 0; thread < threads_; ++thread) scratch_.emplace_back(with.training_scratch_bytes(of));
    }
    TrainingRun(const TrainingRun&) = delete;
    TrainingRun& operator=(const TrainingRun&) = delete;

    // All steps, or those before the batch that reached() names. first, second: moments; count: steps taken before.
    // model_loss: (steps,), set where the model takes steps.
    End run(const ModelSteps& model_steps, const StarSteps& star_steps, const double* first, const double* second,
            int64_t count, double* model_loss) {
        model_steps_ = model_steps;
        star_steps_ = star_steps;
        now_.first.assign(first, first + now_.parameters.size());
        now_.second.assign(second, second + now_.parameters.size());
        next_ = now_;
        count_ = count;
        End end = End::last_step;
        with_team([&](auto& team) { end = all_steps(team, model_loss); });
        return end;
    }

    // Eq. 12 of the one batch; gradient() is its gradient.
    double evaluate() {
        const double any_rate = 0;
        model_steps_ = {&any_rate, {}};
        star_steps_ = {};
        double loss = 0;
        with_team([&](auto& team) { loss = evaluate_batch(team); });
        return loss;
    }

    int64_t reached() const { return reached_; }
    int64_t count() const { return count_; }
    const TrainingArrays& arrays() const { return now_; }
    const std::vector<double>& gradient() const { return gradient_; }
    // Rows of the batch at hand whose chi^2 is not finite.
    std::vector<int64_t> rows_not_finite() const {
        std::vector<int64_t> rows;
        for (int64_t i = 0; i < places_.of_batch(); ++i)
            if (!std::isfinite(chi2_[i])) rows.push_back(places_.batch(reached_)[i]);
        return rows;
    }

  private:
    // Chunks of a batch whose sums are kept at a time: 5 MB of them.
    static constexpr int64_t GROUP = 256;

    // A batch has a phase for every group of its chunks, first for the model, then for the stars.
    int64_t phases_of_model() const { return model_steps_.rates ? groups_ : 0; }
    int64_t phases_of_batch() const { return phases_of_model() + (star_steps_.rates ? groups_ : 0); }
    int64_t chunks_in(int64_t phase) const {
        const int64_t left = n_chunks_ - phase % groups_ * GROUP;
        return left < GROUP ? left : GROUP;
    }

    // Places of a chunk of a phase; none where there is no such thing.
    std::pair<const int64_t*, int> places_of(int64_t phase, int64_t chunk) const {
        const int64_t step = phase / phases_of_batch();
        if (step >= n_steps_ || chunk >= chunks_in(phase)) return {nullptr, 0};
        const int64_t first = (phase % groups_ * GROUP + chunk) * kernels_.chunk_places;
        const int64_t left = places_.of_batch() - first;
        return {places_.batch(step) + first,
                static_cast<int>(left < kernels_.chunk_places ? left : kernels_.chunk_places)};
    }

    void do_chunk(int64_t phase, int64_t chunk, int worker) {
        const int64_t here = chunks_in(phase), ahead = chunk + threads_;
        const auto [places, count] = places_of(phase, chunk);
        const auto next = ahead < here ? places_of(phase, ahead) : places_of(phase + 1, ahead - here);
        const ChunkPlaces of_chunk{places, count, next.first};
        char* scratch = scratch_[static_cast<size_t>(worker)].data();
        const int64_t step = phase / phases_of_batch(), part = phase % phases_of_batch();
        if (part < phases_of_model()) {
            double* chi2 = chi2_.data() + (part * GROUP + chunk) * kernels_.chunk_places;
            kernels_.add_chunk_gradient(model_, stars_, params_, of_chunk, chunk_sums_.data() + chunk * chunk_size_,
                                        chi2, scratch);
        } else {
            kernels_.step_stars(model_, star_steps_.terms, stars_, star_steps_.lower, star_steps_.upper,
                                star_steps_.rates[step], star_steps_.clip, of_chunk, params_, star_loss_, scratch);
        }
    }

    // Calls lead(team) while the other threads help.
    template <class Lead>
    void with_team(const Lead& lead) {
        const auto work = [this](int64_t phase, int64_t chunk, int worker) { do_chunk(phase, chunk, worker); };
        const auto pieces = [this](int64_t phase) { return n_chunks_ > 0 ? chunks_in(phase) : 0; };
        Team team(work, pieces);
        ThreadPool::instance().run(threads_, threads_, [&](int64_t task, int) {
            if (task > 0) return team.help(static_cast<int>(task));
            lead(team);
            team.dismiss();
        });
    }

    template <class SomeTeam>
    double evaluate_batch(SomeTeam& team) {
        std::fill(total_.begin(), total_.end(), 0.0);
        for (int64_t group = 0; group < groups_; ++group) {
            team.run_phase();
            kernels_.total_of_chunks(model_, chunk_sums_.data(), chunks_in(group), total_.data());
        }
        kernels_.gradient_of_total(model_, now_.parameters.data(), total_.data(), size_, gradient_.data());
        double chi2 = 0;
        for (const double of_star : chi2_) chi2 += of_star;
        return chi2 / static_cast<double>(size_ < 1 ? 1 : size_) +
               kernels_.weight_penalty(model_, now_.parameters.data());
    }

    template <class SomeTeam>
    End all_steps(SomeTeam& team, double* model_loss) {
        for (reached_ = 0; reached_ < n_steps_; ++reached_) {
            if (model_steps_.rates) {
                const double loss = evaluate_batch(team);
                if (!std::isfinite(loss)) return End::loss_not_finite;
                if (!kernels_.move_model(model_, model_steps_.how, model_steps_.rates[reached_], count_ + 1,
                                         gradient_.data(), now_.view(), next_.view()))
                    return End::model_not_finite;
                std::swap(now_, next_);
                ++count_;
                narrow();
                model_loss[reached_] = loss;
            }
            if (star_steps_.rates)
                for (int64_t group = 0; group < groups_; ++group) team.run_phase();
        }
        return End::last_step;
    }

    void append(const double* values, int64_t count) {
        now_.parameters.insert(now_.parameters.end(), values, values + count);
    }

    // The numbers that the kernels read: those of the model as it is now.
    void narrow() {
        for (size_t i = 0; i < floats_.size(); ++i) floats_[i] = static_cast<float>(now_.parameters[i]);
        const float* at = floats_.data();
        for (int l = 0; l < model_.n_layers; ++l) {
            model_.in_float.weights[l] = at;
            at += int64_t(model_.width[l]) * model_.width[l + 1];
            model_.in_float.biases[l] = at;
            at += model_.width[l + 1];
        }
        model_.in_float.ext_curve = at;
    }

    const Kernels& kernels_;
    ModelView model_;
    const TrainingStars stars_;
    double *const params_, *const star_loss_;
    const Places places_;
    const int64_t n_steps_, size_, n_chunks_, groups_, chunk_size_;
    const int threads_;
    ModelSteps model_steps_{};
    StarSteps star_steps_{};
    TrainingArrays now_, next_;
    int64_t count_ = 0, reached_ = 0;
    std::vector<float> floats_, chunk_sums_;
    std::vector<double> total_, gradient_, chi2_;
    std::vector<Scratch> scratch_;
};

}  // namespace xpkern
