// The whole fit of a block of stars through the driver of the CPU engine: memory, partial lanes, splits, missing data.
#include "cpu/star_kernels.hpp"

#include <cstring>

#include "toy.hpp"

namespace kernel = xpkern::XPKERN_ISA;

struct Solution {
    int n, k, m;
    std::vector<double> loss, chi2, ln_prior, gradient, hessian, fisher, params, decrement;
    std::vector<float> residual;
    std::vector<int32_t> iterations;
    std::vector<uint32_t> status;
    std::vector<int32_t> minima;
    std::vector<double> second_params, second_gap;

    Solution(int stars, int parameters, int samples)
        : n(stars),
          k(parameters),
          m(samples),
          loss(n),
          chi2(n),
          ln_prior(n),
          gradient(n * k),
          hessian(n * k * k),
          fisher(n * k * k),
          params(n * k),
          decrement(n),
          residual(n * m),
          iterations(n),
          status(n),
          minima(n),
          second_params(n * k),
          second_gap(n) {}
    xpkern::SolutionArrays view() {
        return {{loss.data(), chi2.data(), ln_prior.data(), gradient.data(), hessian.data(), fisher.data()},
                params.data(),
                decrement.data(),
                residual.data(),
                iterations.data(),
                status.data(),
                minima.data(),
                second_params.data(),
                second_gap.data()};
    }
};

template <class Element>
bool same_bytes(const std::vector<Element>& a, const std::vector<Element>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(Element)) == 0;
}

struct Problem {
    Random random{17};
    ToyModel model;
    ToyPrior prior;
    ToyStars stars;
    std::vector<double> starts;
    xpkern::FitView fit{};
    xpkern::SampleBlocks blocks{};

    Problem(const std::vector<int>& width, int n)
        : model(width, random), prior(3, model.inputs(), random), stars(n, model, random) {
        const int k = model.parameters();
        for (int i = 0; i < n * k; ++i) {
            const int p = i % k;
            double value = stars.truth[i];
            if (p == k - 1) value = std::exp(value);
            starts.push_back(p < k - 2 ? value + 0.1 * random.normal() : value * random.uniform(0.7, 1.4));
            fit.lower[p] = p < k - 2 ? model.zero_point[p] - 10 : (p == k - 2 ? 0 : 1e-4);
            fit.upper[p] = p < k - 2 ? model.zero_point[p] + 10 : (p == k - 2 ? 15 : 1e3);
        }
        fit.model = model.view;
        fit.prior = prior.view;
        fit.terms = {true, true, true};
        fit.max_iterations = 40;
        fit.tolerance = 1e-5;
        fit.start_params = starts.data();
        fit.starts = 1;
    }

    // Fits the stars in blocks that end at the numbers given.
    Solution solve(const std::vector<int>& ends) const {
        Solution solution(stars.count, model.parameters(), model.samples());
        const xpkern::StarArrays arrays{stars.flux.data(), stars.whitener.data(), stars.mean.data(),
                                        stars.sigma.data()};
        const int types = fit.grid.n_types;
        Buffer scratch(kernel::star_scratch_bytes(fit.model, fit.prior, stars.count, fit.starts, types, blocks));
        int begin = 0;
        for (const int end : ends) {
            kernel::fit_stars(fit, arrays, blocks, solution.view(), begin, end, scratch.data());
            begin = end;
        }
        return solution;
    }
};

void test_fit(const std::vector<int>& width) {
    const int n = 21;
    Problem problem(width, n);
    const int k = problem.model.parameters(), m = problem.model.samples(), lost = 4;
    for (int i = 0; i < m; ++i) problem.stars.remove_sample(lost, i);
    problem.stars.remove_sample(7, 0);
    problem.stars.remove_sample(7, m - 1);
    const Solution solution = problem.solve({n});

    int converged = 0;
    for (int star = 0; star < n; ++star) {
        if (star == lost) {
            CHECK(solution.status[star] & kernel::NO_DATA);
            CHECK(std::isnan(solution.loss[star]));
            CHECK(std::isnan(solution.params[star * k]));
            continue;
        }
        CHECK(solution.residual[star * m + 1] != 0);
        if (solution.status[star] & kernel::NOT_CONVERGED) continue;
        ++converged;
        std::vector<double> u(solution.params.begin() + star * k, solution.params.begin() + (star + 1) * k);
        u[k - 1] = std::log(u[k - 1]);
        const double here = plain_loss(problem.model, problem.prior, problem.fit.terms, problem.stars, star, u);
        CHECK_CLOSE(solution.loss[star], here, 1e-5 * here + 1e-4);
        // No neighbour is lower: a step of a tenth of an error in any direction goes uphill, to what convergence
        // allows.
        for (int p = 0; p < k; ++p) {
            const double error = 1 / std::sqrt(solution.fisher[(star * k + p) * k + p]);
            const double step = 0.1 * (p == k - 1 ? error / std::exp(u[p]) : error);
            for (const double sign : {-1.0, 1.0}) {
                std::vector<double> beside = u;
                beside[p] += sign * step;
                if (p == k - 2 && beside[p] <= 0) continue;
                CHECK(plain_loss(problem.model, problem.prior, problem.fit.terms, problem.stars, star, beside) >
                      here - 2e-3);
            }
        }
    }
    CHECK(converged >= n - 3);
    CHECK(solution.residual[7 * m] == 0);

    // The same bytes however the block is cut: lanes are filled differently, results are not.
    const Solution split = problem.solve({1, 6, 18, n});
    CHECK(same_bytes(solution.params, split.params));
    CHECK(same_bytes(solution.loss, split.loss));
    CHECK(same_bytes(solution.hessian, split.hessian));
    CHECK(same_bytes(solution.residual, split.residual));
    CHECK(same_bytes(solution.iterations, split.iterations));
    CHECK(same_bytes(solution.status, split.status));
}

// Several searches of each star from a grid: never worse than one, and the same bytes however the block is cut.
void test_starts(const std::vector<int>& width) {
    const int n = 21;
    Problem problem(width, n);
    const int k = problem.model.parameters();
    const ToyGrid grid(12, problem.model, problem.random);
    problem.fit.grid = grid.view;
    problem.fit.gate = 1e6;
    const Solution one = problem.solve({n});
    problem.fit.starts = 4;
    const Solution four = problem.solve({n}), split = problem.solve({1, 6, 18, n});
    int searched_more = 0;
    for (int star = 0; star < n; ++star) {
        // Of two searches that meet one goes on, to the same minimum by a path of its own.
        CHECK(four.loss[star] <= one.loss[star] + 1e-4);
        searched_more += four.iterations[star] > one.iterations[star];
        CHECK(four.minima[star] >= 1 && four.minima[star] <= 4);
        CHECK((four.minima[star] > 1) == (four.second_gap[star] >= 0));
        CHECK((four.minima[star] > 1) == std::isfinite(four.second_params[star * k]));
    }
    CHECK(searched_more > n / 2);
    CHECK(same_bytes(four.params, split.params));
    CHECK(same_bytes(four.iterations, split.iterations));
    CHECK(same_bytes(four.minima, split.minima));
    CHECK(same_bytes(four.second_params, split.second_params));
}

// Stars whose factors are of blocks take half the work and end where they end without; those whose are not come after
// them. The same bytes however the block is cut.
void test_blocks(bool from_grid) {
    const int n = 37;
    Problem problem({3, 32, 32, 32, 66}, n);
    const xpkern::SampleBlocks blocks{25, 26, 61};
    const int k = problem.model.parameters();
    const ToyGrid grid(12, problem.model, problem.random);
    if (from_grid) {
        problem.fit.grid = grid.view;
        problem.fit.starts = 2;
        problem.fit.gate = 1e6;
    }
    for (int star = 0; star < n; ++star)
        if (star % 5 != 2) problem.stars.relate_samples(star, blocks, problem.random);
    for (int i = 0; i < 66; ++i) problem.stars.remove_sample(9, i);
    for (int i = 0; i < 26; ++i) problem.stars.remove_sample(11, i);
    problem.stars.remove_sample(14, 40);
    const Solution whole = problem.solve({n});
    problem.blocks = blocks;
    const Solution split = problem.solve({n}), cut = problem.solve({6, 18, n});
    CHECK(same_bytes(split.params, cut.params));
    CHECK(same_bytes(split.loss, cut.loss));
    CHECK(same_bytes(split.hessian, cut.hessian));
    CHECK(same_bytes(split.residual, cut.residual));
    CHECK(same_bytes(split.iterations, cut.iterations));
    CHECK(same_bytes(split.second_gap, cut.second_gap));
    int same = 0, differ = 0;
    for (int star = 0; star < n; ++star) {
        CHECK(split.status[star] == whole.status[star]);
        if (star == 9) continue;
        if (star % 5 == 2) CHECK(split.loss[star] == whole.loss[star]);
        differ += split.loss[star] != whole.loss[star];
        if (std::fabs(split.loss[star] - whole.loss[star]) > 1e-4 * (1 + std::fabs(whole.loss[star]))) continue;
        ++same;
        for (int p = 0; p < k; ++p) {
            const double fisher = whole.fisher[(star * k + p) * k + p];
            CHECK_CLOSE(split.fisher[(star * k + p) * k + p], fisher, 1e-2 * fisher);
            CHECK_CLOSE(split.params[star * k + p], whole.params[star * k + p], 0.02 / std::sqrt(fisher));
        }
        for (int i = 0; i < 66; ++i)
            CHECK_CLOSE(split.residual[star * 66 + i], whole.residual[star * 66 + i],
                        0.02 + 1e-4 * std::fabs(whole.residual[star * 66 + i]));
    }
    CHECK(differ > n / 2);  // most were split
    CHECK(same >= n - 4);   // of several minima another may be found
}

void test_no_stars() {
    Problem problem({2, 4, 5}, 0);
    const Solution solution = problem.solve({0});
    CHECK(solution.loss.empty());
}

int main() {
    test_no_stars();
    test_starts({2, 6, 9});
    test_starts({3, 32, 32, 32, 66});
    test_fit({2, 6, 9});
    test_fit({3, 32, 32, 32, 66});
    test_blocks(false);
    test_blocks(true);
    return failures();
}
