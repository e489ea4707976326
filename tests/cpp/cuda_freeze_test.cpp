// The kernel of covariances under a learned noise on the processor, under the sanitizers: against C written out, for
// blocks that are not full, a missing sample, a star without any, a type that is no number.
#include "../cuda_shim/shim.hpp"

#include "cuda/freeze_warp.cuh"

#include "check.hpp"

namespace {

using kernels::FreezeTiles;
using kernels::row_start;

constexpr int M = FreezeTiles::samples, P = row_start(M), K = 5, INPUTS = 3, GROUPS = 3, MISSING = 40;
constexpr double FACTOR = 1.3;

struct Stars {
    Random random;
    int n;
    std::vector<double> centre, scale, groups, tiles, independent, common, params, predicted;  // groups: (g, m, m)
    std::vector<float> flux, whitener;

    explicit Stars(int count)
        : random(11 + count),
          n(count),
          centre(GROUPS * INPUTS),
          scale(INPUTS, 2.0),
          groups(GROUPS * M * M),
          tiles(size_t(row_start(FreezeTiles::count)) * GROUPS * FreezeTiles::elements),
          independent(M, 0.002),
          common(xpkern::COMMON_ERRORS * M, 0.001),
          params(count * K),
          predicted(count * M),
          flux(count * M),
          whitener(count * P) {
        for (double& x : centre) x = random.normal();
        for (int g = 0; g < GROUPS; ++g) {
            std::vector<double> root(M * M);
            for (double& x : root) x = 0.01 * random.normal();
            for (int i = 0; i < M; ++i)
                for (int j = 0; j < M; ++j)
                    for (int k = 0; k < M; ++k)
                        groups[(g * M + i) * M + j] +=
                            root[i * M + k] * root[j * M + k] / M + (k == i && k == j) * 1e-4;
        }
        for (int t = 0; t < FreezeTiles::count; ++t)
            for (int s = t; s < FreezeTiles::count; ++s)
                for (int g = 0; g < GROUPS; ++g)
                    for (int at = 0; at < FreezeTiles::elements; ++at) {
                        const int i = 8 * s + at / 8, j = 8 * t + at % 8;
                        const size_t tile = size_t(FreezeTiles::number(s, t)) * GROUPS + g;
                        if (i < M && j < M) tiles[tile * FreezeTiles::elements + at] = groups[(g * M + i) * M + j];
                    }
        for (double& x : params) x = random.normal();
        for (double& x : predicted) x = random.uniform(1, 2);
        for (float& x : flux) x = static_cast<float>(random.uniform(1, 2));
        for (int star = 0; star < n; ++star)
            for (int i = 0; i < M; ++i)
                for (int j = 0; j <= i; ++j)
                    whitener[star * P + row_start(i) + j] =
                        static_cast<float>(i == j ? random.uniform(10, 30) : 0.003 * random.normal());
        for (int i = 0; i < M && n > 0; ++i) {  // of the first star one sample is missing
            (i < MISSING ? whitener[row_start(MISSING) + i] : whitener[row_start(i) + MISSING]) = 0;
            if (n > 1) std::fill_n(whitener.begin() + P, P, 0.0f);
        }
        if (n > 2) params[2 * K] = std::nan("");
    }
    bool present(int star, int i) const { return whitener[star * P + row_start(i) + i] > 0; }
    double stored(int star, int i, int j) const {
        const double element = double(whitener[star * P + row_start(i) + j]);
        return i == j && element > 0 ? 1 / element : element;
    }
    // C of two samples that are there; j <= i.
    double covariance(int star, int i, int j) const {
        double square = 0, of_groups = 0, total = 0;
        for (int k = 0; k <= j; ++k) square += stored(star, i, k) * stored(star, j, k);
        const double observed = double(flux[star * M + i]) * double(flux[star * M + j]);
        square -= xpkern::COMMON_ERRORS * 1e-6 * observed + (i == j) * 4e-6 * observed;
        for (int g = 0; g < GROUPS; ++g) {
            double distance = 0;
            for (int t = 0; t < INPUTS; ++t)
                distance += std::pow((params[star * K + t] - centre[g * INPUTS + t]) * scale[t], 2);
            const double weight = std::exp(-distance / 2);
            total += weight;
            of_groups += weight * groups[(g * M + i) * M + j];
        }
        return FACTOR * square + predicted[star * M + i] * predicted[star * M + j] * of_groups / total;
    }
};

void test_freeze(int n) {
    const Stars stars(n);
    std::vector<float> frozen(n * P, -7.0f);
    std::vector<double> ln_det(n, -7.0);
    const xpkern::NoiseView noise{GROUPS, stars.centre.data(),      stars.scale.data(), stars.tiles.data(),
                                  FACTOR, stars.independent.data(), stars.common.data()};
    const xpkern::FreezeArguments a{noise,
                                    stars.flux.data(),
                                    stars.whitener.data(),
                                    stars.params.data(),
                                    stars.predicted.data(),
                                    {frozen.data(), ln_det.data()},
                                    n,
                                    K,
                                    INPUTS};
    shim::launch(freeze_noise, 2, 2 * kernels::LANES, a, true, 2 * sizeof(kernels::FreezeStar));
    for (int star = 0; star < n; ++star) {
        const float* packed = frozen.data() + star * P;
        if (star == 1 || star == 2) {
            CHECK(std::isnan(ln_det[star]));
            for (int at = 0; at < P; ++at) CHECK(packed[at] == 0);
            continue;
        }
        double expected_ln_det = 0;
        for (int i = 0; i < M; ++i) {
            const auto element = [&](int row, int k) {
                return row == k ? 1 / double(packed[row_start(row) + row]) : double(packed[row_start(row) + k]);
            };
            CHECK((packed[row_start(i) + i] > 0) == stars.present(star, i));
            if (!stars.present(star, i)) continue;
            expected_ln_det -= 2 * std::log(double(packed[row_start(i) + i]));
            for (int j = 0; j <= i; ++j) {
                double found = 0;
                if (stars.present(star, j)) {
                    for (int k = 0; k <= j; ++k)
                        if (stars.present(star, k)) found += element(i, k) * element(j, k);
                    const double size = std::sqrt(stars.covariance(star, i, i) * stars.covariance(star, j, j));
                    CHECK_CLOSE(found / size, stars.covariance(star, i, j) / size, 1e-5);
                } else {
                    CHECK(packed[row_start(i) + j] == 0);
                }
            }
        }
        CHECK_CLOSE(ln_det[star], expected_ln_det, 1e-4);
    }
}

}  // namespace

int main() {
    for (const int n : {0, 1, 3, 4, 6}) test_freeze(n);
    return failures();
}
