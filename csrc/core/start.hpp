// Where a fit starts: every stellar type of a grid, moved and reddened to suit the star, and the best of them.
//
// In x, the coordinates of ln flux in the grid's basis, with h a guess of the flux that noise cannot drive to zero,
//   y = ln h + (f - h) / h - mean,    chi^2 = |G^-1 diag(h) (y - basis x)|^2.
// Columns are ordered (ext, ln plx, rest). The normal matrix is L L^T with L = [[L1, 0], [L21, L2]]; z = L^-1 of the
// right-hand side. A type at u in the rest leaves q = L2^T u - z2, chi^2 = least + |q|^2, and
// (ext, ln plx) = L1^-T (z1 - L21^T u). Its displacement d is a Gauss-Newton step of |q + L2^T slope d|^2 with prior
// and parallax, no longer than the grid's reach; extinction then minimises ((E - E0) / sigma)^2 - 2 ln E.
// Cost for 66 samples, 14 columns and 64 types: 32.2k (whitening) + 7.9k (normal matrix) + 35k (types) fused
// multiply-adds a star.
#pragma once

#include "star_loss.hpp"

XPKERN_NAMESPACE_BEGIN

// One type of a grid.
struct StartType {
    const float* position;         // (c,)
    const float* slope;            // (inputs, c)
    const float* type;             // (inputs,)
    const float* prior_gradient;   // (inputs,)
    const float* prior_precision;  // packed (inputs, inputs)
    float twice_ln_prior;
};
XPKERN_INLINE constexpr int start_row_size(int inputs) {
    return (1 + inputs) * START_COLUMNS + 2 * inputs + row_start(inputs) + 1;
}
XPKERN_INLINE StartType start_type(const GridView& grid, int type, int inputs) {
    const float* position = grid.rows + type * start_row_size(inputs);
    const float* slope = position + START_COLUMNS;
    const float* coordinates = slope + inputs * START_COLUMNS;
    const float* gradient = coordinates + inputs;
    const float* precision = gradient + inputs;
    return {position, slope, coordinates, gradient, precision, precision[inputs * (inputs + 1) / 2]};
}

// Memory for choosing starts.
template <class Real>
struct StartSpace {
    Real* guess;   // (m,)
    Real* column;  // (m, c + 1) basis and what it leaves of ln flux, weighted and whitened in place
    Real* score;   // (t,)
    Real* params;  // (t, k) as u
    static XPKERN_INLINE constexpr StartSpace carve(int m, int k, int types, Arena& arena) {
        return {arena.take<Real>(m), arena.take<Real>((START_COLUMNS + 1) * m), arena.take<Real>(types),
                arena.take<Real>(types * k)};
    }
};

// Variance of samples i ... i + ROWS: sums of several rows at a time, as each is a chain of additions that wait for one
// another.
template <int ROWS, class Real>
XPKERN_INLINE void variance_of_rows(const Real* factor, int i, Real* variance) {
    Real sum[ROWS];
    const Real* row[ROWS];
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        row[r] = factor + row_start(i + r);
        sum[r] = lane<Real>(0);
    }
    for (int j = 0; j < i; ++j) {
        XPKERN_UNROLL
        for (int r = 0; r < ROWS; ++r) sum[r] = fma(row[r][j], row[r][j], sum[r]);
    }
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        for (int j = i; j < i + r; ++j) sum[r] = fma(row[r][j], row[r][j], sum[r]);
        const Real reciprocal = row[r][i + r];
        const Mask<Real> present = reciprocal > lane<Real>(0);
        const Real diagonal = lane<Real>(1) / select(present, reciprocal, lane<Real>(1));
        variance[i + r] = select(present, fma(diagonal, diagonal, sum[r]), lane<Real>(0));
    }
}

// Variance of each sample, (m,); 0 where it is missing.
template <class Real>
XPKERN_INLINE void sample_variance(const Real* factor, int m, Real* variance) {
    constexpr int ROWS = 8;
    int i = 0;
    for (; i < m % ROWS; ++i) variance_of_rows<1>(factor, i, variance);
    for (; i < m; i += ROWS) variance_of_rows<ROWS>(factor, i, variance);
}

// How the grid's mean spectrum is scaled to a star, from sums over its samples of weight * flux and weight * typical
// with weight = typical / variance.
template <class Real>
XPKERN_INLINE Real scale_of_spectrum(const Real& cross, const Real& square) {
    const Real smallest = lane<Real>(START_SMALLEST);
    return max(cross / max(square, smallest), smallest);
}

// Flux of sample i: the observed one where noise leaves it, else its neighbours' mean, else the grid's mean spectrum; 1
// where missing.
template <class Real>
XPKERN_INLINE Real guess_of_sample(const GridView& grid, const Real* flux, const Real* variance, const Real& scale,
                                   int i) {
    const Real zero = lane<Real>(0), one = lane<Real>(1);
    Real total = zero, total_variance = zero, present = zero;
    for (int j = grid.window[2 * i]; j < grid.window[2 * i + 1]; ++j) {
        const Mask<Real> seen = variance[j] > zero;
        total += select(seen, flux[j], zero);
        total_variance += variance[j];
        present += select(seen, one, zero);
    }
    const Mask<Real> seen = variance[i] > zero;
    const Real each = one / max(present, one), noise = total_variance * each * each;
    const Real expected = scale * Real(grid.typical[i]), loose = expected * lane<Real>(START_SPECTRUM_ERROR);
    const Real trusted = loose * loose / (loose * loose + select(seen, noise, one));
    const Real mean = max(fma(fma(total, each, -expected), trusted, expected), expected * lane<Real>(START_LEAST_FLUX));
    const Real error = mean * lane<Real>(START_NEIGHBOUR_ERROR), of_mean = fma(error, error, noise * trusted);
    const Real share = of_mean / select(seen, of_mean + variance[i], one);
    const Real least = sqrt(variance[i]) * lane<Real>(START_LEAST_FLUX);
    return select(seen, max(fma(flux[i] - mean, share, mean), least), one);
}

// The same of all samples, (m,).
template <class Real>
XPKERN_INLINE void guess_flux(const GridView& grid, const Real* flux, const Real* variance, int m, Real* guess) {
    const Real zero = lane<Real>(0), one = lane<Real>(1);
    Real cross = zero, square = zero;
    for (int i = 0; i < m; ++i) {
        const Mask<Real> seen = variance[i] > zero;
        const Real typical(grid.typical[i]);
        const Real weight = select(seen, typical / select(seen, variance[i], one), zero);
        cross = fma(weight, flux[i], cross);
        square = fma(weight, typical, square);
    }
    const Real scale = scale_of_spectrum(cross, square);
    for (int i = 0; i < m; ++i) guess[i] = guess_of_sample(grid, flux, variance, scale, i);
}

// ln flux of sample i to first order around a guess, less the grid's mean.
template <class Real>
XPKERN_INLINE Real ln_flux_about(const GridView& grid, const Real& guess, const Real& flux, int i) {
    const Real excess =
        clamp((flux - guess) / guess, lane<Real>(-START_LARGEST_EXCESS), lane<Real>(START_LARGEST_EXCESS));
    return log(guess) + excess - Real(grid.mean[i]);
}

// Normal matrix (packed) and right-hand side of x - origin, and the origin, (c,).
template <class Real>
struct StartSystem {
    static constexpr int c = START_COLUMNS;
    Real normal[c * (c + 1) / 2], right[c], origin[c];
};

template <class Real>
XPKERN_INLINE Real with_ridge(const Real& diagonal) {
    return fma(diagonal, lane<Real>(1 + START_RELATIVE_RIDGE), lane<Real>(START_RIDGE));
}

template <class Real>
XPKERN_KERNEL void assemble_start(const GridView& grid, const Real* flux, const Real* factor, const Real* variance,
                                  int m, const StartSpace<Real>& space, StartSystem<Real>& system) {
    constexpr int c = START_COLUMNS;
    const Real zero = lane<Real>(0), one = lane<Real>(1);
    guess_flux(grid, flux, variance, m, space.guess);
    Real level = zero, present = zero;
    for (int i = 0; i < m; ++i) {
        const Mask<Real> seen = variance[i] > zero;
        Real& ln_flux = space.column[i * (c + 1) + c];
        ln_flux = ln_flux_about(grid, space.guess[i], flux[i], i);
        level += select(seen, ln_flux, zero);
        present += select(seen, one, zero);
    }
    level = level / max(present, one);
    // Any origin serves; one close to the data keeps the numbers small.
    Real origin[c];
    XPKERN_UNROLL
    for (int a = 0; a < c; ++a) origin[a] = zero;
    for (int i = 0; i < m; ++i) {
        Real& ln_flux = space.column[i * (c + 1) + c];
        ln_flux = select(variance[i] > zero, ln_flux - level, zero);
        const Real left = ln_flux;
        XPKERN_UNROLL
        for (int a = 0; a < c; ++a) origin[a] = fma(Real(grid.inverse[i * c + a]), left, origin[a]);
    }
    for (int i = 0; i < m; ++i) {
        Real* column = space.column + i * (c + 1);
        const Real guess = space.guess[i];
        Real left = column[c];
        XPKERN_UNROLL
        for (int a = 0; a < c; ++a) {
            const Real along(grid.basis[i * c + a]);
            left = fma(-along, origin[a], left);
            column[a] = guess * along;
        }
        column[c] = guess * left;
    }
    for (int a = 0; a < c; ++a) system.origin[a] = origin[a];
    system.origin[1] = fma(level, lane<Real>(0.5), origin[1]);
    whiten(factor, m, c + 1, c + 1, space.column);
    normal_equations(space.column, m, c, system.normal, system.right);
    for (int a = 0; a < c; ++a) {
        Real& diagonal = system.normal[row_start(a) + a];
        diagonal = with_ridge(diagonal);
    }
}

template <class Real>
XPKERN_INLINE Real reciprocal_of_pivot(const Real& square) {
    return inverse_root(max(square, lane<Real>(START_RIDGE)));
}

// Cholesky factor in place, reciprocals on its diagonal; packed (n, n).
template <int n, class Real>
XPKERN_INLINE void factorise(Real* a) {
    for (int i = 0; i < n; ++i) {
        for (int j = 0; j <= i; ++j) {
            Real sum = a[row_start(i) + j];
            for (int k = 0; k < j; ++k) sum = fma(-a[row_start(i) + k], a[row_start(j) + k], sum);
            if (i == j)
                a[row_start(i) + i] = reciprocal_of_pivot(sum);
            else
                a[row_start(i) + j] = sum * a[row_start(j) + j];
        }
    }
}

// The parts of the system that every type shares.
template <class Real>
struct StartLine {
    static constexpr int rest = START_COLUMNS - 2;
    Real factor[rest * (rest + 1) / 2];  // L2, its diagonal as it is
    Real aim[rest];                      // z2
    Real origin[rest];
    Real follow[2][rest];            // (ext, ln plx) = constant + follow u
    Real constant[2];                // the origin's part included
    Real ext_ext, ext_plx, plx_plx;  // their covariance
};

// What row i of the rest contributes, once the system's normal matrix is factorised and its right-hand side solved.
template <class Real>
XPKERN_INLINE void describe_rest(const StartSystem<Real>& system, int i, StartLine<Real>& line) {
    const Real *root = system.normal, *row = root + row_start(i + 2);
    for (int j = 0; j < i; ++j) line.factor[row_start(i) + j] = row[2 + j];
    line.factor[row_start(i) + i] = lane<Real>(1) / row[2 + i];
    line.aim[i] = system.right[2 + i];
    line.origin[i] = system.origin[2 + i];
    line.follow[1][i] = -row[1] * root[2];
    line.follow[0][i] = -fma(root[1], line.follow[1][i], row[0]) * root[0];
}

// The same of (ext, ln plx).
template <class Real>
XPKERN_INLINE void describe_response(const StartSystem<Real>& system, StartLine<Real>& line) {
    const Real* root = system.normal;
    line.constant[1] = system.right[1] * root[2];
    line.constant[0] = fma(-root[1], line.constant[1], system.right[0]) * root[0];
    // (L1 L1^T)^-1 with L1 = [[1 / r0, 0], [b, 1 / r2]]
    line.plx_plx = root[2] * root[2];
    line.ext_plx = -root[1] * root[0] * line.plx_plx;
    line.ext_ext = fma(root[0], root[0], -root[1] * root[0] * line.ext_plx);
    line.constant[0] += system.origin[0];
    line.constant[1] += system.origin[1];
}

template <class Real>
XPKERN_KERNEL void reduce_start(StartSystem<Real>& system, StartLine<Real>& line) {
    constexpr int c = START_COLUMNS, rest = c - 2;
    const Real* root = system.normal;
    factorise<c>(system.normal);
    for (int i = 0; i < c; ++i) {
        Real sum = system.right[i];
        for (int j = 0; j < i; ++j) sum = fma(-root[row_start(i) + j], system.right[j], sum);
        system.right[i] = sum * root[row_start(i) + i];
    }
    for (int i = 0; i < rest; ++i) describe_rest(system, i, line);
    describe_response(system, line);
}

template <class Real>
XPKERN_INLINE Real start_parallax(const Real& ln_plx) {
    return exp(clamp(ln_plx, lane<Real>(START_LEAST_LN_PLX), lane<Real>(START_LARGEST_LN_PLX)));
}

// Types that are moved together: that is a chain of roots and divisions that wait for one another.
constexpr int START_GROUP = 4;

// Rows of L2^T that project_type() takes at a time, each with a sum for the offset and for every coordinate of the
// type.
constexpr int START_ROWS = ACCUMULATORS >= 16 ? 4 : 2;

// Where a type stands before it is moved: what its displacement, parallax and extinction are then found from, and the
// numbers of the type itself, each as an array over types: part[at * stride] of one type.
template <int INPUTS>
struct TypeParts {
    static constexpr int triangle = INPUTS * (INPUTS + 1) / 2;
    static constexpr int score = 0;
    static constexpr int slope = 1;                                  // (INPUTS,) half the gradient of chi^2
    static constexpr int curvature = slope + INPUTS;                 // packed, half its Hessian
    static constexpr int response = curvature + triangle;            // (2,) ext and ln plx
    static constexpr int per_step = response + 2;                    // (2, INPUTS) their derivatives
    static constexpr int type = per_step + 2 * INPUTS;               // (INPUTS,)
    static constexpr int prior_gradient = type + INPUTS;             // (INPUTS,)
    static constexpr int prior_precision = prior_gradient + INPUTS;  // packed
    static constexpr int twice_ln_prior = prior_precision + triangle;
    static constexpr int count = twice_ln_prior + 1;
};

template <int INPUTS, class Real>
XPKERN_INLINE void project_type(const GridView& grid, int type, const StartLine<Real>& line, int stride, Real* part) {
    using Parts = TypeParts<INPUTS>;
    constexpr int rest = START_COLUMNS - 2, inputs = INPUTS;
    const Real zero = lane<Real>(0);
    const StartType of = start_type(grid, type, inputs);
    Real offset[rest];
    XPKERN_UNROLL_ON_GPU
    for (int b = 0; b < rest; ++b) offset[b] = Real(of.position[2 + b]) - line.origin[b];

    Real score = zero, curvature[inputs * (inputs + 1) / 2], slope[inputs];
    XPKERN_UNROLL
    for (int i = 0; i < inputs; ++i) slope[i] = zero;
    XPKERN_UNROLL_ON_GPU
    for (int packed = 0; packed < row_start(inputs); ++packed) curvature[packed] = zero;
    // q and its slope for some rows of L2^T at a time: they share what a type contributes.
    constexpr int rows = rest % START_ROWS == 0 ? START_ROWS : 1;
    XPKERN_UNROLL_ON_GPU
    for (int a = 0; a < rest; a += rows) {
        Real q[rows], q_slope[rows][inputs];
        XPKERN_UNROLL
        for (int r = 0; r < rows; ++r) {
            q[r] = -line.aim[a + r];
            XPKERN_UNROLL
            for (int i = 0; i < inputs; ++i) q_slope[r][i] = zero;
        }
        const auto add = [&](int b, auto upto) {
            Real of_type[inputs];
            XPKERN_UNROLL
            for (int i = 0; i < inputs; ++i) of_type[i] = Real(of.slope[i * START_COLUMNS + 2 + b]);
            XPKERN_UNROLL
            for (int r = 0; r < decltype(upto)::value; ++r) {
                const Real root = held(line.factor[row_start(b) + a + r]);
                q[r] = fma(root, offset[b], q[r]);
                XPKERN_UNROLL
                for (int i = 0; i < inputs; ++i) q_slope[r][i] = fma(root, of_type[i], q_slope[r][i]);
            }
        };
        XPKERN_UNROLL_ON_GPU
        for (int b = a; b < a + rows; ++b) with_known<rows>(b - a + 1, [&](auto upto) { add(b, upto); });
        XPKERN_UNROLL_ON_GPU
        for (int b = a + rows; b < rest; ++b) add(b, Known<rows>{});
        XPKERN_UNROLL
        for (int r = 0; r < rows; ++r) {
            score = fma(q[r], q[r], score);
            XPKERN_UNROLL
            for (int i = 0; i < inputs; ++i) {
                slope[i] = fma(q_slope[r][i], q[r], slope[i]);
                XPKERN_UNROLL
                for (int j = 0; j <= i; ++j) {
                    const int at = row_start(i) + j;
                    curvature[at] = fma(q_slope[r][i], q_slope[r][j], curvature[at]);
                }
            }
        }
    }
    Real response[2], per_step[2][inputs];
    XPKERN_UNROLL_ON_GPU
    for (int e = 0; e < 2; ++e) {
        response[e] = line.constant[e] - Real(of.position[e]);
        XPKERN_UNROLL
        for (int i = 0; i < inputs; ++i) per_step[e][i] = -Real(of.slope[i * START_COLUMNS + e]);
        XPKERN_UNROLL_ON_GPU
        for (int b = 0; b < rest; ++b) {
            const Real follow = held(line.follow[e][b]);
            response[e] = fma(follow, offset[b], response[e]);
            XPKERN_UNROLL
            for (int i = 0; i < inputs; ++i)
                per_step[e][i] = fma(follow, Real(of.slope[i * START_COLUMNS + 2 + b]), per_step[e][i]);
        }
    }

    part[Parts::score * stride] = score;
    for (int e = 0; e < 2; ++e) part[(Parts::response + e) * stride] = response[e];
    for (int i = 0; i < inputs; ++i) {
        part[(Parts::slope + i) * stride] = slope[i];
        part[(Parts::type + i) * stride] = Real(of.type[i]);
        part[(Parts::prior_gradient + i) * stride] = Real(of.prior_gradient[i]);
        for (int e = 0; e < 2; ++e) part[(Parts::per_step + e * inputs + i) * stride] = per_step[e][i];
    }
    for (int at = 0; at < Parts::triangle; ++at) {
        part[(Parts::curvature + at) * stride] = curvature[at];
        part[(Parts::prior_precision + at) * stride] = Real(of.prior_precision[at]);
    }
    part[Parts::twice_ln_prior * stride] = Real(of.twice_ln_prior);
}

// The constraint that the observed parallax is, and the covariance of (ext, ln plx) without it.
template <class Real>
struct StartConstraint {
    Real mean, variance, ext_ext, ext_plx, plx_plx;
    Mask<Real> has_parallax;
};

// Score of a type, moved and reddened to suit the star, and its parameters as u, (k,). part: (TypeParts::count,).
template <int INPUTS, class Real>
XPKERN_INLINE Real move_type(const GridView& grid, const StartConstraint<Real>& star, const Real* part, Real* u) {
    using Parts = TypeParts<INPUTS>;
    constexpr int inputs = INPUTS;
    const Real one = lane<Real>(1), zero = lane<Real>(0);
    const Real *slope = part + Parts::slope, *curvature = part + Parts::curvature, *per_step = part + Parts::per_step;
    const Real *prior_gradient = part + Parts::prior_gradient, *prior_precision = part + Parts::prior_precision;
    Real score = part[Parts::score], response[2] = {part[Parts::response], part[Parts::response + 1]};

    // The displacement: chi^2, prior and parallax, each to second order.
    Real plx = start_parallax(response[1]);
    Real stiffness = select(star.has_parallax, plx * plx / fma(plx * plx, star.plx_plx, star.variance), zero);
    const Real tension = stiffness * (plx - star.mean) / plx;
    Real matrix[inputs * (inputs + 1) / 2], pull[inputs], moved[inputs];
    XPKERN_UNROLL
    for (int i = 0; i < inputs; ++i) {
        pull[i] = prior_gradient[i] - fma(tension, per_step[inputs + i], slope[i]);
        const Real stiff = stiffness * per_step[inputs + i];
        XPKERN_UNROLL
        for (int j = 0; j <= i; ++j) {
            const int at = row_start(i) + j;
            matrix[at] = fma(stiff, per_step[inputs + j], curvature[at] + prior_precision[at]);
        }
    }
    solve_damped(inputs, matrix, matrix, zero, pull, moved);
    Real excess = one;
    for (int i = 0; i < inputs; ++i) excess = max(excess, abs(moved[i]) * lane<Real>(1 / grid.reach[i]));
    const Real shorter = one / excess;
    Real twice_ln_prior = part[Parts::twice_ln_prior], prior_curved = zero;
    for (int i = 0; i < inputs; ++i) moved[i] *= shorter;
    for (int i = 0; i < inputs; ++i) {
        Real curved = zero, prior_curve = zero;
        for (int j = 0; j < inputs; ++j) {
            const int at = packed_index(i, j);
            curved = fma(curvature[at], moved[j], curved);
            prior_curve = fma(prior_precision[at], moved[j], prior_curve);
        }
        score = fma(moved[i], fma(slope[i], lane<Real>(2), curved), score);
        prior_curved = fma(moved[i], prior_curve, prior_curved);
        twice_ln_prior = fma(moved[i] * lane<Real>(2), prior_gradient[i], twice_ln_prior);
        u[i] = part[Parts::type + i] + moved[i];
        for (int e = 0; e < 2; ++e) response[e] = fma(per_step[e * inputs + i], moved[i], response[e]);
    }
    score += prior_curved - twice_ln_prior;

    // The observed parallax, then the extinction's own term, each a correction in one dimension.
    plx = start_parallax(response[1]);
    stiffness = select(star.has_parallax, plx * plx / fma(plx * plx, star.plx_plx, star.variance), zero);
    const Real off = (plx - star.mean) / plx;
    score = fma(stiffness * off, off, score);
    const Real correction = stiffness * off;
    const Real ext = fma(-star.ext_plx, correction, response[0]);
    const Real ext_ext = fma(-star.ext_plx * star.ext_plx, stiffness, star.ext_ext);
    const Real ext_plx = star.ext_plx * fma(-star.plx_plx, stiffness, one);
    const Real largest = sqrt(fma(ext, ext, ext_ext * lane<Real>(4)));
    Real at_mode =
        select(ext > zero, (ext + largest) * lane<Real>(0.5), lane<Real>(2) * ext_ext / (largest - min(ext, zero)));
    at_mode = max(at_mode, lane<Real>(START_LEAST_EXT));
    const Real shift = (at_mode - ext) / ext_ext;
    score = fma(shift, at_mode - ext, score);
    const Real ln_plx = fma(ext_plx, shift, fma(-star.plx_plx, correction, response[1]));
    u[inputs] = at_mode;
    u[inputs + 1] = clamp(ln_plx, lane<Real>(START_LEAST_LN_PLX), lane<Real>(START_LARGEST_LN_PLX));
    return fma(log(at_mode) + ln_plx, lane<Real>(-2), score);
}

// Score and parameters of every type: space.score, space.params. mean, weight: the observed parallax's constraint.
template <class Real>
XPKERN_KERNEL void rate_types(const GridView& grid, int inputs, const Real* flux, const Real* factor,
                              const Real* variance, int m, const Real& mean, const Real& weight,
                              const StartSpace<Real>& space) {
    StartSystem<Real> system;
    StartLine<Real> line;
    assemble_start(grid, flux, factor, variance, m, space, system);
    reduce_start(system, line);
    using Types = Several<Real, START_GROUP>;
    using Group = typename Types::Group;
    const Mask<Real> has_parallax = weight > lane<Real>(0);
    StartConstraint<Group> star;
    star.mean = Types::repeat(mean);
    star.variance = Types::repeat(lane<Real>(1) / select(has_parallax, weight, lane<Real>(1)));
    star.ext_ext = Types::repeat(line.ext_ext);
    star.ext_plx = Types::repeat(line.ext_plx);
    star.plx_plx = Types::repeat(line.plx_plx);
    star.has_parallax = Types::repeat(weight) > lane<Group>(0);
    with_known<MAX_INPUTS>(inputs, [&](auto known) {
        constexpr int INPUTS = decltype(known)::value, k = INPUTS + 2, count = TypeParts<INPUTS>::count;
        for (int first = 0; first < grid.n_types; first += Types::size) {
            Real of_type[count][Types::size], moved[k + 1][Types::size];
            for (int t = 0; t < Types::size; ++t)  // where fewer are left the last is repeated
                project_type<INPUTS>(grid, first + t < grid.n_types ? first + t : grid.n_types - 1, line, Types::size,
                                     of_type[0] + t);
            Group part[count], u[k];
            for (int at = 0; at < count; ++at) part[at] = load<Group>(reinterpret_cast<Scalar<Real>*>(of_type[at]));
            store(reinterpret_cast<Scalar<Real>*>(moved[k]), move_type<INPUTS>(grid, star, part, u));
            for (int p = 0; p < k; ++p) store(reinterpret_cast<Scalar<Real>*>(moved[p]), u[p]);
            for (int t = 0; t < Types::size && first + t < grid.n_types; ++t) {
                space.score[first + t] = moved[k][t];
                for (int p = 0; p < k; ++p) space.params[(first + t) * k + p] = moved[p][t];
            }
        }
    });
}

// The best type that is left, its parameters in u, and its score: infinite if none was left, and u then that of a
// grid's first type. It and all that have moved to similar types are struck from the list.
template <class Real>
XPKERN_INLINE Real take_start(const GridView& grid, int inputs, const StartSpace<Real>& space, Real* u) {
    const int k = inputs + 2;
    Real best = infinity<Real>();
    for (int i = 0; i < inputs; ++i) u[i] = Real(start_type(grid, 0, inputs).type[i]);
    u[inputs] = lane<Real>(0.1);
    u[inputs + 1] = lane<Real>(0);
    for (int t = 0; t < grid.n_types; ++t) {
        const Mask<Real> better = space.score[t] < best;
        best = select(better, space.score[t], best);
        for (int p = 0; p < k; ++p) u[p] = select(better, space.params[t * k + p], u[p]);
    }
    for (int t = 0; t < grid.n_types; ++t) {
        Mask<Real> similar = best == best;
        for (int i = 0; i < inputs; ++i)
            similar = similar & (abs(space.params[t * k + i] - u[i]) <= lane<Real>(grid.apart[i]));
        space.score[t] = select(similar, infinity<Real>(), space.score[t]);
    }
    return best;
}

XPKERN_NAMESPACE_END
