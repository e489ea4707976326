// Training: a chunk's gradient of the model against differences of Eq. 12, the model's step, and a team of threads.
#include <algorithm>
#include <thread>
#include <vector>

#include "cpu/places.hpp"
#include "cpu/team.hpp"
#include "cpu/training_driver.hpp"
#include "toy.hpp"

namespace kernel = xpkern::XPKERN_ISA;

// All of a model's parameters as core/model_step.hpp orders them.
std::vector<double> parameters_of(const ToyModel& model) {
    std::vector<double> all;
    for (size_t l = 0; l < model.weights.size(); ++l) {
        all.insert(all.end(), model.weights[l].begin(), model.weights[l].end());
        all.insert(all.end(), model.biases[l].begin(), model.biases[l].end());
    }
    all.insert(all.end(), model.ext_curve.begin(), model.ext_curve.end());
    return all;
}

// The one of them at `index`, of a model.
double& parameter_of(ToyModel& model, size_t index) {
    for (size_t l = 0; l < model.weights.size(); ++l) {
        if (index < model.weights[l].size()) return model.weights[l][index];
        index -= model.weights[l].size();
        if (index < model.biases[l].size()) return model.biases[l][index];
        index -= model.biases[l].size();
    }
    return model.ext_curve[index];
}

// Eq. 12 of some stars, as it stands; u: (stars, k).
double plain_model_loss(const ToyModel& model, const ToyStars& stars, const std::vector<int64_t>& rows,
                        const std::vector<std::vector<double>>& u) {
    double chi2 = 0, squares = 0, count = 0;
    for (const int64_t row : rows) chi2 += stars.chi2(static_cast<int>(row), model.flux(u[row]));
    for (const auto& weight : model.weights)
        for (const double w : weight) squares += w * w, count += 1;
    return chi2 / static_cast<double>(rows.size()) + squares / count;
}

// Whiteners as a training set keeps them side by side, and how many bytes before a cache line they begin.
struct SideBySide {
    Buffer memory;
    float* at;
    SideBySide(const ToyStars& stars, int early)
        : memory(early + (stars.count + 15) / 16 * 16 * int64_t(sizeof(float)) * size_of(stars)),
          at(reinterpret_cast<float*>(memory.data() + early)) {
        for (int star = 0; star < stars.count; ++star)
            for (int k = 0; k < size_of(stars); ++k)
                at[(star / 16 * size_of(stars) + k) * 16 + star % 16] = stars.row(star)[k];
    }
    static int size_of(const ToyStars& stars) { return stars.samples * (stars.samples + 1) / 2; }
};

enum class Order { any, groups };

void test_gradient(const std::vector<int>& width, int count, Order order = Order::any) {
    Random random(11 + count);
    ToyModel model(width, random);
    const int n = 70, k = model.parameters();
    ToyStars stars(n, model, random);
    stars.remove_sample(3, 0);
    stars.remove_sample(5, model.samples() - 1);
    std::vector<std::vector<double>> u;
    std::vector<double> params;
    for (int star = 0; star < n; ++star) {
        std::vector<double> of_star(stars.truth.begin() + star * k, stars.truth.begin() + (star + 1) * k);
        for (auto& x : of_star) x += 0.05 * random.normal();
        u.push_back(of_star);
        of_star[k - 1] = std::exp(of_star[k - 1]);
        params.insert(params.end(), of_star.begin(), of_star.end());
    }
    std::vector<int64_t> rows(n);
    for (int i = 0; i < n; ++i) rows[i] = order == Order::any ? (i * 37 + 5) % n : (i * 5 / 4 + 16) % n;
    rows.resize(count);

    Buffer scratch(kernel::training_scratch_bytes(model.view));
    const int64_t size = kernel::chunk_gradient_size(model.view);
    std::vector<float> sums(size);
    const SideBySide aligned(stars, 0), shifted(stars, 4);
    const std::pair<const float*, bool> stores[] = {
        {stars.whitener.data(), false}, {aligned.at, true}, {shifted.at, true}};
    std::vector<double> parameters = parameters_of(model), gradient(parameters.size()), in_rows;
    double loss = 0;
    for (const auto& [whitener, side_by_side] : stores) {
        const xpkern::Places places(rows.data(), 1, count, side_by_side);
        const xpkern::TrainingStars arrays{{stars.flux.data(), whitener, stars.mean.data(), stars.sigma.data()},
                                           side_by_side};
        std::vector<double> chi2(kernel::CHUNK_PLACES), total(size, 0.0);
        loss = kernel::penalty_of_weights(model.view, parameters.data());
        int found = 0;
        for (int first = 0; first < places.of_batch(); first += kernel::CHUNK_PLACES) {
            const int64_t* at = places.batch(0) + first;
            const int left = std::min<int>(kernel::CHUNK_PLACES, static_cast<int>(places.of_batch()) - first);
            const bool last = first + left == places.of_batch();
            kernel::add_chunk_gradient(model.view, arrays, params.data(), {at, left, last ? nullptr : at + left},
                                       sums.data(), chi2.data(), scratch.data());
            kernel::total_of_chunks(model.view, sums.data(), 1, total.data());
            for (int place = 0; place < left; ++place) {
                if (at[place] == xpkern::NOBODY) {
                    CHECK(chi2[place] == 0);
                    continue;
                }
                CHECK(at[place] == rows[found++]);
                const double expected = stars.chi2(static_cast<int>(at[place]), model.flux(u[at[place]]));
                CHECK_CLOSE(chi2[place], expected, 1e-4 * expected + 1e-3);
                loss += chi2[place] / count;
            }
        }
        CHECK(found == count);
        const std::vector<int64_t> nobody(kernel::CHUNK_PLACES, xpkern::NOBODY);
        kernel::add_chunk_gradient(model.view, arrays, params.data(), {nobody.data(), kernel::CHUNK_PLACES, nullptr},
                                   sums.data(), chi2.data(), scratch.data());
        for (const float sum : sums) CHECK(sum == 0);
        kernel::gradient_of_total(model.view, parameters.data(), total.data(), count, gradient.data());
        if (in_rows.empty()) in_rows = gradient;
        double size_of_gradient = 0, difference = 0;
        for (size_t i = 0; i < gradient.size(); ++i) {
            size_of_gradient += in_rows[i] * in_rows[i];
            difference += (gradient[i] - in_rows[i]) * (gradient[i] - in_rows[i]);
        }
        CHECK(difference <= 1e-10 * size_of_gradient);  // sums in another order
    }
    CHECK_CLOSE(loss, plain_model_loss(model, stars, rows, u), 1e-4 * loss);
    double norm = 0;
    for (const double slope : gradient) norm += slope * slope;
    norm = std::sqrt(norm);
    const size_t curve = parameters.size() - static_cast<size_t>(model.samples());
    for (int trial = 0; trial < 12; ++trial) {
        const size_t index = trial < 2 ? parameters.size() - 1 - trial : random.bits() % parameters.size();
        const double before = parameters[index], step = 1e-5;  // errs by step^2 of the third derivative
        parameter_of(model, index) = before + step;
        const double above = plain_model_loss(model, stars, rows, u);
        parameter_of(model, index) = before - step;
        const double below = plain_model_loss(model, stars, rows, u);
        parameter_of(model, index) = before;
        const double slope = (above - below) / (2 * step) * (index < curve ? 1 : before);
        CHECK_CLOSE(gradient[index], slope, 1e-4 * norm);
    }
}

// Each star of each batch once, in order; in its own place of a group where that takes few lanes.
void test_places() {
    std::vector<int64_t> batches;
    for (int i = 0; i < 40; ++i) batches.push_back(48 + i);                    // two groups and a half
    for (int i = 0; i < 40; ++i) batches.push_back(i * 77 % 160);              // none together
    for (int i = 0; i < 40; ++i) batches.push_back(i < 20 ? 3 * i : 100 + i);  // every third, then all
    const xpkern::Places dense(batches.data(), 3, 40, false), groups(batches.data(), 3, 40, true);
    CHECK(dense.of_batch() == 48);
    CHECK(groups.of_batch() == 96);
    for (const auto* places : {&dense, &groups}) {
        for (int step = 0; step < 3; ++step) {
            int found = 0;
            for (int place = 0; place < places->of_batch(); ++place) {
                const int64_t row = places->batch(step)[place];
                if (row == xpkern::NOBODY) continue;
                CHECK(row == batches[step * 40 + found++]);
                if (places == &groups && step != 1) CHECK(row % 16 == place % 16);
            }
            CHECK(found == 40);
        }
    }
}

void test_model_step() {
    Random random(3);
    const ToyModel model({2, 3, 4}, random);
    std::vector<double> parameters = parameters_of(model);
    const size_t size = parameters.size(), curve = size - 4;
    std::vector<double> gradient(size), first(size), second(size), moved(size), new_first(size), new_second(size);
    for (size_t i = 0; i < size; ++i) gradient[i] = random.normal(), first[i] = 0.1 * random.normal();
    const auto step = [&](const xpkern::ModelStepView& how, double rate) {
        return kernel::move_model(model.view, how, rate, 1, gradient.data(),
                                  {parameters.data(), first.data(), second.data()},
                                  {moved.data(), new_first.data(), new_second.data()});
    };
    double norm = 0;
    for (const double slope : gradient) norm += slope * slope;
    norm = std::sqrt(norm);
    CHECK(step({false, 0.5, norm / 2}, 0.1));
    for (size_t i = 0; i < size; ++i) {
        const double velocity = 0.5 * first[i] - 0.1 * gradient[i] / 2;
        CHECK_CLOSE(new_first[i], velocity, 1e-14);
        CHECK_CLOSE(moved[i], i < curve ? parameters[i] + velocity : parameters[i] * std::exp(velocity), 1e-14);
    }
    std::fill(first.begin(), first.end(), 0.0);
    CHECK(step({true, 0, HUGE_VAL}, 0.01));  // Adam's first step is the rate itself, against the sign of the gradient
    for (size_t i = 0; i < curve; ++i)
        CHECK_CLOSE(moved[i] - parameters[i], gradient[i] > 0 ? -0.01 : 0.01,
                    1e-4 * (1 + 1e-4 / std::fabs(gradient[i])));
    CHECK(!step({false, 0, HUGE_VAL}, 1e300 * 1e8));
    gradient[1] = std::nan("");
    CHECK(!step({false, 0, HUGE_VAL}, 0.1));
}

// Every piece of every phase once, and none before the phase before is complete.
void test_team(int threads) {
    const int64_t phases = 300;
    const auto pieces = [](int64_t phase) { return phase % 7; };
    std::vector<std::vector<int>> done(phases, std::vector<int>(7, 0));
    std::atomic<int64_t> complete{0};
    std::atomic<bool> early{false};
    const auto work = [&](int64_t phase, int64_t piece, int) {
        if (complete.load() != phase) early = true;
        ++done[phase][piece];
    };
    xpkern::Team team(work, pieces);
    std::vector<std::thread> helpers;
    for (int worker = 1; worker < threads; ++worker) helpers.emplace_back([&, worker] { team.help(worker); });
    for (int64_t phase = 0; phase < phases; ++phase) {
        team.run_phase();
        ++complete;
    }
    team.dismiss();
    for (auto& helper : helpers) helper.join();
    CHECK(!early);
    for (int64_t phase = 0; phase < phases; ++phase)
        for (int piece = 0; piece < 7; ++piece) CHECK(done[phase][piece] == (piece < pieces(phase) ? 1 : 0));
}

int main() {
    for (const int count : {1, 7, 8, 9, 15, 16, 17, 63, 64}) {
        test_gradient({2, 5, 4, 7}, count);
        test_gradient({4, 33, 11}, count);
    }
    for (const int count : {1, 16, 17, 52}) test_gradient({2, 5, 4, 7}, count, Order::groups);
    test_gradient({3, 32, 32, 32, 66}, 17);
    test_gradient({3, 32, 32, 32, 66}, 40, Order::groups);
    test_places();
    test_gradient({6, 13}, 64);
    test_model_step();
    for (const int threads : {1, 2, 4}) test_team(threads);
    return failures();
}
