// The star loss: value against a plain formula, derivatives against finite differences, for every lane and shape.
#include "core/star_loss.hpp"

#include "cpu/pack.hpp"
#include "toy.hpp"

namespace kernel = xpkern::XPKERN_ISA;

// One star in every place of a lane.
template <class Real, class Wide>
struct OneStar {
    std::vector<char> memory;
    kernel::StarView<Real, Wide> view;

    OneStar(const ToyStars& stars, int star) {
        const int m = stars.samples, k = stars.parameters, packed = m * (m + 1) / 2;
        buffer = Buffer((m + packed) * sizeof(Real) + 2 * k * sizeof(Wide) + 256);
        kernel::Arena arena{buffer.data(), 0};
        Real* flux = arena.take<Real>(m);
        Real* factor = arena.take<Real>(packed);
        Wide* mean = arena.take<Wide>(k);
        Wide* weight = arena.take<Wide>(k);
        for (int i = 0; i < m; ++i) flux[i] = kernel::lane<Real>(stars.flux[star * m + i]);
        for (int i = 0; i < packed; ++i) factor[i] = kernel::lane<Real>(stars.row(star)[i]);
        for (int p = 0; p < k; ++p) {
            const double sigma = stars.sigma[star * k + p];
            mean[p] = kernel::lane<Wide>(stars.mean[star * k + p]);
            weight[p] = kernel::lane<Wide>(1 / (sigma * sigma));
        }
        view = {flux, factor, mean, weight};
    }

  private:
    Buffer buffer{0};
};

struct Result {
    double loss, chi2, ln_prior;
    std::vector<double> gradient, hessian, definite;  // (k,), (k, k), (k, k) in u
};

template <bool EXACT, class Real, class Wide, class Shape>
Result evaluate(const ToyModel& model, const ToyPrior& prior, const xpkern::LossView& terms, const ToyStars& stars,
                int star, const std::vector<double>& u) {
    const Shape shape(model.view);
    kernel::Arena counting{nullptr, 0};
    kernel::carve_workspace<Real, Wide>(shape, prior.view, counting);
    Buffer buffer(counting.used);
    kernel::Arena arena{buffer.data(), 0};
    const auto space = kernel::carve_workspace<Real, Wide>(shape, prior.view, arena);
    const OneStar<Real, Wide> data(stars, star);
    const int k = model.parameters();
    alignas(64) kernel::LossState<Real, Wide> state;
    for (int p = 0; p < k; ++p) state.u[p] = kernel::lane<Wide>(u[p]);
    kernel::evaluate_loss<EXACT>(model.view, shape, prior.view, terms, data.view, space, state);

    const int place = kernel::LaneTraits<Wide>::width - 1;
    Result result{kernel::get(state.loss, place), kernel::get(state.chi2, place), kernel::get(state.ln_prior, place),
                  std::vector<double>(k),         std::vector<double>(k * k),     std::vector<double>(k * k)};
    for (int p = 0; p < k; ++p) {
        result.gradient[p] = kernel::get(state.gradient[p], place);
        for (int q = 0; q < k; ++q) {
            result.hessian[p * k + q] = kernel::get(state.hessian[kernel::packed_index(p, q)], place);
            result.definite[p * k + q] = kernel::get(state.gauss_newton[kernel::packed_index(p, q)], place);
        }
    }
    return result;
}

std::vector<double> near_truth(const ToyStars& stars, int star, Random& random) {
    const int k = stars.parameters;
    std::vector<double> u(stars.truth.begin() + star * k, stars.truth.begin() + (star + 1) * k);
    for (auto& x : u) x += 0.05 * random.normal();
    u[k - 2] = std::fabs(u[k - 2]) + 0.02;
    return u;
}

// Double lanes: the value is right to rounding, the derivatives to what differences can tell.
template <class Shape>
void test_derivatives(const std::vector<int>& width, const xpkern::LossView& terms) {
    Random random(5);
    const ToyModel model(width, random);
    const ToyPrior prior(4, model.inputs(), random);
    ToyStars stars(3, model, random);
    stars.remove_sample(1, 2);
    stars.remove_sample(1, model.samples() - 1);
    const int k = model.parameters();
    const auto at = [&](int star, const std::vector<double>& u) {
        return evaluate<true, double, double, Shape>(model, prior, terms, stars, star, u);
    };
    for (int star = 0; star < stars.count; ++star) {
        const std::vector<double> u = near_truth(stars, star, random);
        const Result result = at(star, u);
        const double expected = plain_loss(model, prior, terms, stars, star, u);
        CHECK_CLOSE(result.loss, expected, 1e-11 * std::fabs(expected) + 1e-10);
        CHECK_CLOSE(result.chi2, stars.chi2(star, model.flux(u)), 1e-11 * result.chi2 + 1e-10);
        CHECK_CLOSE(result.ln_prior, prior.ln_density(u), 1e-12);
        for (int p = 0; p < k; ++p) {
            // A central difference errs by step^2 of the third derivative: the tolerance is relative to the curvature.
            const double step = 1e-5, curvature = std::fabs(result.hessian[p * k + p]) + 1;
            std::vector<double> up = u, down = u;
            up[p] += step;
            down[p] -= step;
            const double slope = (plain_loss(model, prior, terms, stars, star, up) -
                                  plain_loss(model, prior, terms, stars, star, down)) /
                                 (2 * step);
            CHECK_CLOSE(result.gradient[p], slope, 1e-6 * (curvature + std::fabs(slope)));
            const Result above = at(star, up), below = at(star, down);
            for (int q = 0; q < k; ++q) {
                const double difference = (above.gradient[q] - below.gradient[q]) / (2 * step);
                const double scale = std::sqrt(curvature * (std::fabs(result.hessian[q * k + q]) + 1));
                CHECK_CLOSE(result.hessian[p * k + q], difference, 1e-6 * scale);
            }
        }
        const Result rough = evaluate<false, double, double, Shape>(model, prior, terms, stars, star, u);
        CHECK(rough.loss == result.loss);
        for (int p = 0; p < k * k; ++p) CHECK(rough.hessian[p] == result.definite[p]);
    }
}

// Other lanes against the double one: as exact as their precision.
template <class Real, class Wide, class Shape>
void test_precision(const std::vector<int>& width, double loss_tolerance, double slope_tolerance) {
    Random random(6);
    const ToyModel model(width, random);
    const ToyPrior prior(4, model.inputs(), random);
    const ToyStars stars(4, model, random, 0.01);
    const xpkern::LossView terms{true, true, true};
    const int k = model.parameters();
    for (int star = 0; star < stars.count; ++star) {
        const std::vector<double> u = near_truth(stars, star, random);
        const Result exact = evaluate<true, double, double, kernel::AnyShape>(model, prior, terms, stars, star, u);
        const Result other = evaluate<true, Real, Wide, Shape>(model, prior, terms, stars, star, u);
        CHECK_CLOSE(other.loss, exact.loss, loss_tolerance * exact.loss);
        for (int p = 0; p < k; ++p) {
            const double scale = std::sqrt(exact.definite[p * k + p]);
            CHECK_CLOSE(other.gradient[p], exact.gradient[p], slope_tolerance * scale * std::sqrt(exact.loss));
            for (int q = 0; q < k; ++q) {
                const double size = scale * std::sqrt(exact.definite[q * k + q]);
                CHECK_CLOSE(other.hessian[p * k + q], exact.hessian[p * k + q], slope_tolerance * size);
            }
        }
    }
}

int main() {
#if defined(XPKERN_SCALAR_LANES)  // what a GPU thread runs
    for (const bool on : {false, true}) {
        test_derivatives<kernel::AnyShape>({2, 5, 4, 7}, {on, on, on});
        test_derivatives<kernel::AnyShape>({4, 9, 11}, {true, on, !on});
        test_derivatives<kernel::AnyShape>({3, 32, 32, 32, 66}, {on, true, true});
    }
    test_precision<float, double, kernel::AnyShape>({3, 32, 32, 32, 66}, 1e-5, 1e-3);
#else
    using Float = kernel::Pack<float, kernel::FLOAT_WIDTH>;
    using Double = kernel::Pack<double, kernel::FLOAT_WIDTH>;
    test_precision<Float, Double, kernel::UsualShape>({3, 32, 32, 32, 66}, 1e-5, 1e-3);
    test_precision<Float, Double, kernel::AnyShape>({1, 6, 11}, 1e-5, 1e-3);
    test_precision<Float, Double, kernel::AnyShape>({2, 9, 5, 23}, 1e-5, 1e-3);
    test_precision<Float, Double, kernel::AnyShape>({6, 12, 30}, 1e-5, 1e-3);
#endif
    return failures();
}
