// The CUDA kernels' own text on the processor, under the sanitizers: blocks that are not full, grids that are too small
// and too large, sizes that the kernels were not made for. XPKERN_GENERAL chooses the general forms.
#include "../cuda_shim/shim.hpp"

#include "cuda/kernels.cu"

#include "cpu/calibration_plan.hpp"
#include "toy.hpp"

namespace {

#if defined(XPKERN_GENERAL)
#define XPKERN_FORM(name) name##_any
const std::vector<int> WIDTH = {2, 6, 9};
#else
#define XPKERN_FORM(name) name
const std::vector<int> WIDTH = {3, 32, 32, 32, 66};
#endif

constexpr int BLOCK = 32;

// Training's stars: a warp each in the usual form, with barriers.
#if defined(XPKERN_GENERAL)
template <class Kernel>
void launch_over_stars(Kernel kernel, int64_t blocks, const xpkern::TrainArguments& a) {
    shim::launch(kernel, blocks, BLOCK, a, false);
}
#else
template <class Kernel>
void launch_over_stars(Kernel kernel, int64_t blocks, const xpkern::TrainArguments& a) {
    shim::launch(kernel, blocks, kernels::STAR_THREADS, a, true, sizeof(kernels::SharedStars));
}
#endif

// Threads for some items: as many whole blocks, or a grid that takes them in turns.
int64_t blocks_for(int64_t items, bool in_turns) {
    return in_turns ? 1 : (items + BLOCK - 1) / BLOCK + 1;
}

// Memory of all threads of the largest grid.
struct Scratch {
    Buffer memory;
    xpkern::ThreadScratch view;
    Scratch(int64_t bytes_a_thread, int64_t items)
        : memory(bytes_a_thread * BLOCK * (items / BLOCK + 2)), view{memory.data(), bytes_a_thread} {}
};

template <class T>
std::vector<T> filled(int64_t count) {
    return std::vector<T>(count, T(-7));
}

xpkern::KernelScratch needed_by(const xpkern::ScratchArguments& sizes) {
    xpkern::KernelScratch bytes{};
    xpkern::ScratchArguments a = sizes;
    a.bytes = &bytes;
    shim::launch(scratch_bytes, 1, 1, a, false);
    return bytes;
}

struct Problem {
    Random random;
    ToyModel model;
    ToyPrior prior;
    ToyStars stars;
    std::vector<double> params;  // (n, k) linear
    int n, k, m;
    bool in_turns;
    xpkern::KernelScratch bytes;

    Problem(int count, bool turns)
        : random(3 + count),
          model(WIDTH, random),
          prior(3, model.inputs(), random),
          stars(count, model, random),
          n(count),
          k(model.parameters()),
          m(model.samples()),
          in_turns(turns) {
        for (int i = 0; i < n * k; ++i) {
            const double value = i % k == k - 1 ? std::exp(stars.truth[i]) : stars.truth[i];
            params.push_back(i % k < k - 2 ? value + 0.1 * random.normal() : value * random.uniform(0.7, 1.4));
        }
        xpkern::ScratchArguments sizes{};
        sizes.model = model.view;
        sizes.prior = prior.view;
        bytes = needed_by(sizes);
    }
    xpkern::StarArrays arrays() const {
        return {stars.flux.data(), stars.whitener.data(), stars.mean.data(), stars.sigma.data()};
    }
    std::vector<double> u_of(const std::vector<double>& linear, int star) const {
        std::vector<double> u(linear.begin() + star * k, linear.begin() + (star + 1) * k);
        u[k - 1] = std::log(u[k - 1]);
        return u;
    }
    int64_t blocks(int64_t items) const { return blocks_for(items, in_turns); }
    xpkern::FitView fit() const {
        xpkern::FitView fit{};
        fit.model = model.view;
        fit.prior = prior.view;
        fit.terms = {true, true, true};
        for (int p = 0; p < k; ++p) {
            fit.lower[p] = p < k - 2 ? model.zero_point[p] - 10 : (p == k - 2 ? 0 : 1e-4);
            fit.upper[p] = p < k - 2 ? model.zero_point[p] + 10 : (p == k - 2 ? 15 : 1e3);
        }
        fit.max_iterations = 40;
        fit.tolerance = 1e-5;
        fit.start_params = params.data();
        fit.starts = 1;
        return fit;
    }
};

template <class Block, class Star>
constexpr int64_t bytes_beside_stars() {
    return int64_t(sizeof(Block) - sizeof(Star));
}

#if !defined(XPKERN_GENERAL)
// Two blocks of two warps, each of which takes star after star.
template <class Arguments>
void launch_fits(void (*kernel)(Arguments), const Arguments& a) {
    using kernels::FitBlock, kernels::FitStar;
    shim::launch(kernel, 2, 2 * kernels::LANES, a, true,
                 bytes_beside_stars<FitBlock, FitStar>() + 2 * int64_t(sizeof(FitStar)));
}
#endif

void test_predict(const Problem& on) {
    std::vector<double> flux = filled<double>(on.n * on.m);
    const Scratch scratch(on.bytes.predict, on.n);
    const xpkern::PredictArguments a{on.model.view, on.params.data(), flux.data(), on.n, scratch.view};
#if defined(XPKERN_GENERAL)
    shim::launch(predict_any, on.blocks(on.n), BLOCK, a, false);
#else
    launch_fits(predict, a);
#endif
    for (int star = 0; star < on.n; ++star) {
        const std::vector<double> expected = on.model.flux(on.u_of(on.params, star));
        for (int i = 0; i < on.m; ++i) CHECK_CLOSE(flux[star * on.m + i], expected[i], 1e-11 * expected[i]);
    }
}

struct Evaluation {
    std::vector<double> loss, chi2, ln_prior, gradient, hessian, fisher;
    Evaluation(int n, int k)
        : loss(filled<double>(n)),
          chi2(loss),
          ln_prior(loss),
          gradient(filled<double>(n * k)),
          hessian(filled<double>(n * k * k)),
          fisher(hessian) {}
    xpkern::EvaluationArrays view() {
        return {loss.data(), chi2.data(), ln_prior.data(), gradient.data(), hessian.data(), fisher.data()};
    }
};

void test_evaluate(const Problem& on) {
    Evaluation out(on.n, on.k);
    const Scratch scratch(on.bytes.evaluate, on.n);
    const xpkern::LossView terms{true, true, true};
    const xpkern::EvaluateArguments a{on.model.view,    on.prior.view, terms, on.arrays(),
                                      on.params.data(), out.view(),    on.n,  scratch.view};
#if defined(XPKERN_GENERAL)
    shim::launch(evaluate_any, on.blocks(on.n), BLOCK, a, false);
#else
    launch_fits(evaluate, a);
#endif
    for (int star = 0; star < on.n; ++star) {
        const double loss = plain_loss(on.model, on.prior, terms, on.stars, star, on.u_of(on.params, star));
        CHECK_CLOSE(out.loss[star], loss, 1e-5 * std::abs(loss) + 1e-3);
        CHECK(out.fisher[star * on.k * on.k] > 0);
    }
}

// Starts against those that a thread finds for a star, which the tests of the CPU hold to be right.
void test_start(Problem& on, int types) {
    constexpr int starts = 3;
    constexpr double gate = 1e6;
    const ToyGrid grid(types, on.model, on.random);
    std::vector<double> params = filled<double>(on.n * starts * on.k);
    xpkern::ScratchArguments sizes{};
    sizes.n_types = types;
    sizes.samples = on.m;
    sizes.inputs = on.k - 2;
    const Scratch scratch(needed_by(sizes).start, on.n);
    const xpkern::StartArguments a{grid.view, on.m, on.k - 2,      on.arrays(), on.n,
                                   starts,    gate, params.data(), scratch.view};
#if defined(XPKERN_GENERAL)
    shim::launch(start_any, on.blocks(on.n), BLOCK, a, false);
#else
    using kernels::StartBlock, kernels::StartStar;
    shim::launch(start, 2, 2 * kernels::LANES, a, true,
                 bytes_beside_stars<StartBlock, StartStar>() + 2 * int64_t(sizeof(StartStar)));
#endif
    Buffer memory(kernels::StartMemory::bytes(on.m, on.k, types));
    for (int star = 0; star < on.n; ++star) {
        kernels::find_starts(grid.view, on.arrays(), star, on.m, on.k, starts, gate, {memory.data(), 0},
                             [&](int choice, const double* u) {
                                 const double* found = params.data() + (star * starts + choice) * on.k;
                                 for (int p = 0; p < on.k; ++p) {
                                     const double expected = u ? (p == on.k - 1 ? std::exp(u[p]) : u[p]) : 0;
                                     CHECK(std::isnan(found[p]) == !u);
                                     if (u) CHECK_CLOSE(found[p], expected, 1e-3 * (1 + std::abs(expected)));
                                 }
                             });
    }
}

void test_fit(const Problem& on) {
    Evaluation at(on.n, on.k);
    std::vector<double> params = filled<double>(on.n * on.k), decrement = filled<double>(on.n), second = params,
                        gap = decrement;
    std::vector<float> residual = filled<float>(on.n * on.m);
    std::vector<int32_t> iterations = filled<int32_t>(on.n), minima = iterations;
    std::vector<uint32_t> status = filled<uint32_t>(on.n);
    Buffer progress(on.n * sizeof(kernels::Search));
    std::vector<int64_t> queues[2] = {filled<int64_t>(on.n), filled<int64_t>(on.n)}, counts(20, 0);
    const Scratch scratch(std::max(on.bytes.fit, on.bytes.rescue), on.n);
    xpkern::FitArguments a{};
    a.fit = on.fit();
    a.stars = on.arrays();
    a.out = {at.view(),     params.data(), decrement.data(), residual.data(), iterations.data(),
             status.data(), minima.data(), second.data(),    gap.data()};
    a.n = on.n;
    a.progress = progress.data();
    a.scratch = scratch.view;
    int filling = 0;
    const auto stage = [&](auto kernel, int64_t evaluations) {
        a.left = {queues[filling % 2].data(), counts.data() + filling};
        if (filling > 0) a.taken = {queues[(filling - 1) % 2].data(), counts.data() + filling - 1};
        ++filling;
        a.evaluations = evaluations;
        shim::launch(kernel, on.blocks(on.n), BLOCK, a, false);
    };
#if defined(XPKERN_GENERAL)
    stage(fit_start_any, 0);
    for (const int evaluations : {4, 40}) stage(fit_rough_any, evaluations);
    stage(fit_compare, 0);
    stage(fit_sharp_any, 0);
    for (const int evaluations : {4, 40}) stage(fit_fine_any, evaluations);
#else
    // two blocks of as many warps as there are stars in the smallest problem but one, and more: warps take stars in
    // turns
    const auto by_warps = [&](auto kernel, int64_t common, int64_t of_star) {
        constexpr int warps = 3;
        a.begun = counts.data() + counts.size() - 1;
        shim::launch(kernel, on.in_turns ? 1 : 2, warps * kernels::LANES, a, true, common + warps * of_star);
    };
    using kernels::FinishBlock, kernels::FinishStar, kernels::StartBlock, kernels::StartStar;
    by_warps(fit_begin, bytes_beside_stars<StartBlock, StartStar>(), sizeof(StartStar));
    by_warps(fit_search, bytes_beside_stars<kernels::FitBlock, kernels::FitStar>(), sizeof(kernels::FitStar));
#endif
    stage(fit_select, 0);
    stage(XPKERN_FORM(fit_rescue), 0);
#if defined(XPKERN_GENERAL)
    stage(fit_finish_any, 0);
#else
    by_warps(fit_finish, bytes_beside_stars<FinishBlock, FinishStar>(), sizeof(FinishStar));
#endif
    for (int star = 0; star < on.n; ++star) {
        CHECK(!(status[star] & kernels::NO_DATA));
        const double here = plain_loss(on.model, on.prior, a.fit.terms, on.stars, star, on.u_of(params, star));
        CHECK_CLOSE(at.loss[star], here, 1e-5 * std::abs(here) + 1e-3);
        CHECK(here <= plain_loss(on.model, on.prior, a.fit.terms, on.stars, star, on.u_of(on.params, star)));
        CHECK(minima[star] == 1 && iterations[star] > 1);
    }
}

// Covariance times information is one, but for a star whose second parameter is all but the first one's double and for
// one that is no number.
void test_invert(int n, int k) {
    Random random(n + k);
    std::vector<double> information(size_t(n * k * k)), covariance = filled<double>(n * k * k), inverse = covariance;
    const std::unique_ptr<bool[]> floored(new bool[n + 1]);
    for (int star = 0; star < n; ++star) {
        std::vector<double> root(size_t(k * k));
        for (double& x : root) x = random.normal();
        for (int i = 0; i < k; ++i) root[i * k + i] += 4;
        if (star == 1)
            for (int j = 0; j < k; ++j) root[k + j] = 2 * root[j];
        double* here = information.data() + star * k * k;
        for (int i = 0; i < k; ++i)
            for (int j = 0; j < k; ++j)
                for (int l = 0; l < k; ++l) here[i * k + j] += root[i * k + l] * root[j * k + l];
        if (star == 2) here[k] = here[1] = std::nan("");
    }
    const xpkern::InvertArguments a{information.data(), covariance.data(), inverse.data(), floored.get(), n, k};
    shim::launch(invert_information, 1, BLOCK, a, false);
    for (int star = 0; star < n; ++star) {
        const double *found = covariance.data() + star * k * k, *given = inverse.data() + star * k * k;
        CHECK(floored[star] == (star == 1));
        for (int i = 0; i < k; ++i) {
            for (int j = 0; j < k; ++j) {
                double product = 0;
                for (int l = 0; l < k; ++l) product += found[i * k + l] * given[l * k + j];
                if (star == 2)
                    CHECK(std::isnan(found[i * k + j]));
                else
                    CHECK_CLOSE(product, i == j ? 1 : 0, 1e-6);
            }
        }
    }
}

void test_descend(const Problem& on) {
    std::vector<double> params = filled<double>(on.n * on.k);
    const Scratch scratch(on.bytes.descend, on.n);
    const xpkern::DescendArguments a{on.fit(),    {true, 20, 0.01, 0.5, 10, 100}, on.arrays(), on.n, params.data(),
                                     scratch.view};
#if defined(XPKERN_GENERAL)
    shim::launch(descend_any, on.blocks(on.n), BLOCK, a, false);
#else
    launch_fits(descend, a);
#endif
    int lower = 0;
    for (int star = 0; star < on.n; ++star)
        lower += plain_loss(on.model, on.prior, a.fit.terms, on.stars, star, on.u_of(params, star)) <
                 plain_loss(on.model, on.prior, a.fit.terms, on.stars, star, on.u_of(on.params, star));
    CHECK(lower >= on.n * 3 / 4);
}

// Batches of all stars: a gradient against differences of Eq. 12, steps of the model and of the stars.
void test_train(const Problem& on, bool inverted) {
    const kernels::ParameterLayout layout(on.model.view);
    const int64_t p = layout.size, stars_of_chunk = on.n > 40 ? 4 : 2,
                  chunks = (on.n + stars_of_chunk - 1) / stars_of_chunk, padded = kernels::padded(p);
    std::vector<double> parameters, params = on.params;
    for (size_t l = 0; l < on.model.weights.size(); ++l) {
        parameters.insert(parameters.end(), on.model.weights[l].begin(), on.model.weights[l].end());
        parameters.insert(parameters.end(), on.model.biases[l].begin(), on.model.biases[l].end());
    }
    parameters.insert(parameters.end(), on.model.ext_curve.begin(), on.model.ext_curve.end());
    std::vector<float> floats(parameters.begin(), parameters.end()), tape = filled<float>(on.bytes.tape * on.n),
                                                                     sums = filled<float>(chunks * padded);
    std::vector<double> first(p, 0.0), second(p, 0.0), parameters_before(p), first_before(p), second_before(p),
        gradient(p), tile_sums = filled<double>(kernels::TILE_SUMS * padded / kernels::TILE),
                     chi2 = filled<double>(on.n), loss(2), star_loss = filled<double>(on.n);
    const std::vector<double> before = parameters, rates = {1e-4, 1e-4};
    std::vector<int64_t> batches;
    for (int i = 0; i < 2 * on.n; ++i) batches.push_back(on.n - 1 - i % on.n);
    xpkern::TrainingState state{0, -1, 0, 0};
    const Scratch scratch(on.bytes.train, on.n);
    xpkern::TrainArguments a{};
    a.model = on.model.view;
    a.counts = {p, layout.curve, layout.n_weights};
    const float* at = floats.data();
    for (int l = 0; l < a.model.n_layers; ++l) {
        a.model.in_float.weights[l] = at;
        at += a.model.width[l] * a.model.width[l + 1];
        a.model.in_float.biases[l] = at;
        at += a.model.width[l + 1];
    }
    a.model.in_float.ext_curve = at;
    a.stars = on.arrays();
    std::vector<float> inverses = on.stars.whitener;
    if (inverted) {
        const xpkern::WhitenerArguments whiteners{inverses.data(), on.n};
        shim::launch(invert_whiteners, 2, BLOCK, whiteners, true);
        a.stars.whitener = inverses.data();
        a.inverted = 1;
    }
    a.params = params.data();
    a.batches = batches.data();
    std::vector<int64_t> next_rows(batches.begin(), batches.begin() + on.n);
    a.next_rows = next_rows.data();
    a.steps = 2;
    a.size = on.n;
    a.chunk_stars = stars_of_chunk;
    a.chunks = chunks;
    a.model_rates = a.star_rates = rates.data();
    a.how = {false, 0.5, 1};  // steps so short that the loss must fall
    a.star_clip = 1;
    a.terms = {false, true, true};
    const xpkern::FitView box = on.fit();
    for (int i = 0; i < on.k; ++i) a.lower[i] = box.lower[i], a.upper[i] = box.upper[i];
    a.parameters = parameters.data(), a.first = first.data(), a.second = second.data();
    a.parameters_before = parameters_before.data(), a.first_before = first_before.data();
    a.second_before = second_before.data(), a.tile_sums = tile_sums.data();
    a.floats = floats.data(), a.gradient = gradient.data(), a.tape = tape.data(), a.chunk_sums = sums.data();
    a.chi2 = chi2.data(), a.model_loss = loss.data(), a.star_loss = star_loss.data(), a.state = &state;
    a.scratch = scratch.view;
    for (int batch = 0; batch < 3; ++batch) {  // the third finds nothing to do
        launch_over_stars(XPKERN_FORM(train_stars), on.blocks(on.n), a);
#if defined(XPKERN_GENERAL)
        shim::launch(train_products, on.blocks(p * chunks), BLOCK, a, false);
#endif
        shim::launch(train_model, padded / kernels::TILE, kernels::TOTAL_THREADS, a, true);
        launch_over_stars(XPKERN_FORM(train_star_steps), on.blocks(on.n), a);
    }
    shim::launch(train_advance, 1, 1, a, false);  // finds nothing either
    CHECK(state.step == 2 && state.at == -1 && state.end == xpkern::TRAINING_GOES_ON);
    CHECK(on.n == 0 || parameters != before);
    CHECK(on.n < 30 || loss[1] < loss[0]);
    for (int star = 0; star < on.n; ++star) CHECK(star_loss[star] != -7);
    double chi2_sum = 0, squares = 0;
    for (int star = 0; star < on.n; ++star) chi2_sum += on.stars.chi2(star, on.model.flux(on.u_of(on.params, star)));
    for (const auto& weight : on.model.weights)
        for (const double w : weight) squares += w * w;
    const double expected = chi2_sum / std::max(on.n, 1) + squares / static_cast<double>(layout.n_weights);
    CHECK_CLOSE(loss[0], expected, 1e-4 * expected);
}

// One side of a spectrograph: samples first ... end of a design, and its rows for some stars.
struct Side {
    int n, first, end;
    std::vector<double> design, coefficients;  // (samples, n), (stars, n)
    std::vector<float> error, correlation, deviation;
    Side(int stars, int samples, int n, int first, int end, Random& random)
        : n(n),
          first(first),
          end(end),
          design(size_t(samples * n)),
          coefficients(size_t(stars * n)),
          error(size_t(stars * n)),
          correlation(size_t(stars * n * (n - 1) / 2)),
          deviation(size_t(stars), 2.0f) {
        for (int i = first * n; i < end * n; ++i) design[size_t(i)] = random.normal();
        for (double& x : coefficients) x = random.normal();
        for (float& x : error) x = static_cast<float>(random.uniform(0.05, 0.2));
        for (float& x : correlation) x = static_cast<float>(random.uniform(-0.5, 0.5) / n);
    }
    double flux(int star, int i) const {
        double sum = 0;
        for (int k = 0; k < n; ++k) sum += design[size_t(i * n + k)] * coefficients[size_t(star * n + k)];
        return sum;
    }
    // A Sigma A^T and the error common to the side, (samples, samples). Coefficients have half the errors given.
    std::vector<double> covariance(int star, int samples, double common) const {
        const float* rho = correlation.data() + star * n * (n - 1) / 2;
        std::vector<double> scaled(samples * n), product(samples * n), all(samples * samples);
        for (int i = first; i < end; ++i)
            for (int k = 0; k < n; ++k) scaled[i * n + k] = design[i * n + k] * double(error[star * n + k]) / 2;
        for (int i = first; i < end; ++i) {
            for (int k = 0; k < n; ++k) {
                product[i * n + k] = scaled[i * n + k];
                for (int l = 0; l < n; ++l) {
                    const int row = std::max(k, l), column = std::min(k, l);
                    if (l != k) product[i * n + k] += scaled[i * n + l] * double(rho[row * (row - 1) / 2 + column]);
                }
            }
        }
        for (int i = first; i < end; ++i) {
            for (int j = first; j < end; ++j) {
                double& element = all[i * samples + j] = common * common * flux(star, i) * flux(star, j);
                for (int k = 0; k < n; ++k) element += product[i * n + k] * scaled[j * n + k];
            }
        }
        return all;
    }
};

// G G^T is the covariance of Eq. 2; the second star has no RP, the third a coefficient of BP that is no number.
void test_calibrate(int n) {
#if defined(XPKERN_GENERAL)
    constexpr int x = 9, m = 11, n_bp = 4, n_rp = 5, bp_end = 6, rp_begin = 3;
#else
    constexpr int x = 61, m = 66, n_bp = 55, n_rp = 55, bp_end = 26, rp_begin = 25;
#endif
    using kernels::row_start;
    constexpr double independent = 0.01, common = 0.005, of_bp = 0.003, of_rp = 0.002;
    Random random(7 + n);
    Side bp(n, x, n_bp, 0, bp_end, random), rp(n, x, n_rp, rp_begin, x, random);
    const std::vector<double> of_each(m, independent);
    const xpkern::NoiseTerms noise = {of_each.data(), common, of_bp, of_rp, 1e-12, true};
    const xpkern::CalibrationPlan plan(bp.design.data(), n_bp, rp.design.data(), n_rp, m, x, noise);
    if (n > 2) bp.coefficients[2 * n_bp + 1] = std::nan("");
    const std::unique_ptr<bool[]> has_bp(new bool[n + 1]), has_rp(new bool[n + 1]), unfinished(new bool[n + 1]);
    for (int star = 0; star < n; ++star) has_bp[star] = true, has_rp[star] = star != 1;
    std::vector<double> band_flux(n * (m - x), 2.0), band_error(n * (m - x), 0.1);
    if (n > 0) band_error[1] = std::numeric_limits<double>::infinity();
    std::vector<float> flux = filled<float>(n * m), whitener = filled<float>(n * row_start(m));
    std::vector<uint32_t> status(n, 99);

    xpkern::ScratchArguments sizes{};
    sizes.calibration = plan.view();
    const xpkern::KernelScratch bytes = needed_by(sizes);
    const Scratch scratch(bytes.calibrate, n);
    const xpkern::CalibrateArguments a{
        plan.view(),
        {{bp.coefficients.data(), bp.error.data(), bp.correlation.data(), bp.deviation.data(), has_bp.get()},
         {rp.coefficients.data(), rp.error.data(), rp.correlation.data(), rp.deviation.data(), has_rp.get()},
         band_flux.data(),
         band_error.data(),
         flux.data(),
         whitener.data(),
         status.data()},
        n,
        unfinished.get(),
        scratch.view};
#if defined(XPKERN_GENERAL)
    CHECK(bytes.calibrate > 0);
    shim::launch(calibrate_any, 1, BLOCK, a, false);
#else
    CHECK(bytes.calibrate == 0);
    shim::launch(calibrate, 1, 2 * kernels::LANES, a, true, bytes.design + 2 * bytes.spectrum);
#endif
    for (int star = 0; star < n; ++star) {
        CHECK(!unfinished[star] && status[size_t(star)] == 0);
        const bool no_bp = star == 2, no_rp = star == 1;
        std::vector<double> expected(m, 2.0), factor(m * m);
        for (int i = 0; i < x; ++i) expected[i] = (no_bp ? 0 : bp.flux(star, i)) + (no_rp ? 0 : rp.flux(star, i));
        const std::vector<double> of_bp_alone = no_bp ? std::vector<double>(x * x) : bp.covariance(star, x, of_bp);
        const std::vector<double> of_rp_alone = no_rp ? std::vector<double>(x * x) : rp.covariance(star, x, of_rp);
        const auto missing = [&](int i) {
            if (i >= x) return star == 0 && i == x + 1;
            return (no_bp && i < bp_end) || (no_rp && i >= rp_begin);
        };
        for (int i = 0; i < m; ++i) {
            for (int j = 0; j <= i; ++j) factor[i * m + j] = double(whitener[star * row_start(m) + row_start(i) + j]);
            CHECK((factor[i * m + i] == 0) == missing(i));
            CHECK_CLOSE(double(flux[star * m + i]), missing(i) ? 0 : expected[i], 1e-6 * std::abs(expected[i]) + 1e-6);
            if (!missing(i)) factor[i * m + i] = 1 / factor[i * m + i];
        }
        for (int i = 0; i < m; ++i) {
            for (int j = 0; j <= i; ++j) {
                double found = 0, c = i == j ? std::pow(independent * expected[i], 2) : 0;
                for (int k = 0; k <= j; ++k) found += factor[i * m + k] * factor[j * m + k];
                if (missing(i) || missing(j)) {
                    CHECK(found == 0);
                    continue;
                }
                if (i >= x) c += i == j ? 0.1 * 0.1 : 0;
                if (i < x) {
                    c += common * common * expected[i] * expected[j];
                    c += of_bp_alone[i * x + j] + of_rp_alone[i * x + j];
                }
                CHECK_CLOSE(found, c, 1e-5);
            }
        }
    }
}

}  // namespace

int main() {
    for (const int n : {0, 3}) test_calibrate(n);
    for (const int n : {0, 1, 33}) test_invert(n, n == 1 ? 4 : 5);
    for (const int n : {0, 1, 31, 32, 33, 65}) {
        const Problem problem(n, n % 2 == 1 && n > 1);
        test_predict(problem);
        test_evaluate(problem);
        test_descend(problem);
    }
#if defined(XPKERN_GENERAL)
    const std::vector<int> of_fit = {0, 1, 31, 32, 33, 65}, of_training = of_fit;
    const std::vector<bool> whiteners_inverted = {false};
#else  // where a warp has a star a processor has much to do
    const std::vector<int> of_fit = {0, 1, 5, 7}, of_training = {0, 1, 33};
    const std::vector<bool> whiteners_inverted = {false, true};
#endif
    for (const int n : {0, 1, 5, 17}) {
        Problem problem(n, false);
        test_start(problem, n == 5 ? 64 : 12);
    }
    for (const int n : of_training) {
        for (const bool inverted : whiteners_inverted) test_train(Problem(n, n % 2 == 1 && n > 1), inverted);
    }
    for (const int n : of_fit) test_fit(Problem(n, n % 2 == 1 && n > 1 && n != 7));
    return failures();
}
