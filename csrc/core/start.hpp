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

#include "start_system.hpp"

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
XPKERN_STEP void project_type(const GridView& grid, int type, const StartLine<Real>& line, int stride, Real* part) {
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

// Lanes that lie side by side as numbers, read where they are used.
template <class Real>
struct PartView {
    const Scalar<Real>* numbers;
    XPKERN_INLINE Real operator[](int at) const { return load<Real>(numbers + at * LaneTraits<Real>::width); }
    XPKERN_INLINE PartView from(int at) const { return {numbers + at * LaneTraits<Real>::width}; }
};

// Score of a type, moved and reddened to suit the star, and its parameters as u, (k,). part: (TypeParts::count,).
template <int INPUTS, class Real>
XPKERN_STEP Real move_type(const GridView& grid, const StartConstraint<Real>& star, const PartView<Real>& part,
                           Real* u) {
    using Parts = TypeParts<INPUTS>;
    constexpr int inputs = INPUTS;
    const Real one = lane<Real>(1), zero = lane<Real>(0);
    const PartView<Real> slope = part.from(Parts::slope), curvature = part.from(Parts::curvature);
    const PartView<Real> per_step = part.from(Parts::per_step), prior_gradient = part.from(Parts::prior_gradient);
    const PartView<Real> prior_precision = part.from(Parts::prior_precision);
    Real score = part[Parts::score], response[2] = {part[Parts::response], part[Parts::response + 1]};

    // The displacement: chi^2, prior and parallax, each to second order.
    Real plx = start_parallax(response[1]);
    Real stiffness = select(star.has_parallax, quotient(plx * plx, fma(plx * plx, star.plx_plx, star.variance)), zero);
    const Real tension = stiffness * quotient(plx - star.mean, plx);
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
    const Real shorter = quotient(one, excess);
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
    stiffness = select(star.has_parallax, quotient(plx * plx, fma(plx * plx, star.plx_plx, star.variance)), zero);
    const Real off = quotient(plx - star.mean, plx);
    score = fma(stiffness * off, off, score);
    const Real correction = stiffness * off;
    const Real ext = fma(-star.ext_plx, correction, response[0]);
    const Real ext_ext = fma(-star.ext_plx * star.ext_plx, stiffness, star.ext_ext);
    const Real ext_plx = star.ext_plx * fma(-star.plx_plx, stiffness, one);
    const Real largest = sqrt(fma(ext, ext, ext_ext * lane<Real>(4)));
    Real at_mode = select(ext > zero, (ext + largest) * lane<Real>(0.5),
                          quotient(lane<Real>(2) * ext_ext, largest - min(ext, zero)));
    at_mode = max(at_mode, lane<Real>(START_LEAST_EXT));
    const Real shift = quotient(at_mode - ext, ext_ext);
    score = fma(shift, at_mode - ext, score);
    const Real ln_plx = fma(ext_plx, shift, fma(-star.plx_plx, correction, response[1]));
    u[inputs] = at_mode;
    u[inputs + 1] = clamp(ln_plx, lane<Real>(START_LEAST_LN_PLX), lane<Real>(START_LARGEST_LN_PLX));
    return fma(log(at_mode) + ln_plx, lane<Real>(-2), score);
}

// Score and parameters of every type: space.score, space.params. mean, weight: the observed parallax's constraint.
template <class Real, class Factor, class Meanwhile>
XPKERN_KERNEL void rate_types(const GridView& grid, int inputs, const Real* flux, const Factor& factor,
                              const Real* variance, int m, const Real& mean, const Real& weight,
                              const StartSpace<Real>& space, const Meanwhile& meanwhile) {
    StartSystem<Real> system;
    StartLine<Real> line;
    assemble_start(grid, flux, factor, variance, m, space, meanwhile, system);
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
            for (int t = 0; t < Types::size; ++t) {  // where fewer are left the last is repeated
                project_type<INPUTS>(grid, first + t < grid.n_types ? first + t : grid.n_types - 1, line, Types::size,
                                     of_type[0] + t);
                meanwhile.between_blocks();
            }
            Group u[k];
            const PartView<Group> part{reinterpret_cast<const Scalar<Real>*>(of_type)};
            store(reinterpret_cast<Scalar<Real>*>(moved[k]), move_type<INPUTS>(grid, star, part, u));
            for (int p = 0; p < k; ++p) store(reinterpret_cast<Scalar<Real>*>(moved[p]), u[p]);
            for (int t = 0; t < Types::size && first + t < grid.n_types; ++t) {
                space.score[first + t] = moved[k][t];
                for (int p = 0; p < k; ++p) space.params[(first + t) * k + p] = moved[p][t];
            }
        }
    });
}

// The best type that is left, by its number, and its score: -1 and infinite if none is left. struck: inputs of a type
// that was chosen before, or null; it and all that have moved to similar ones are struck from the list first.
template <class Real>
XPKERN_INLINE Real best_type(const GridView& grid, int inputs, const StartSpace<Real>& space, const Real* struck,
                             Real& type) {
    const int k = inputs + 2;
    Real best = infinity<Real>();
    type = lane<Real>(-1);
    for (int t = 0; t < grid.n_types; ++t) {
        Real score = space.score[t];
        if (struck) {
            Mask<Real> similar = score == score;
            for (int i = 0; i < inputs; ++i)
                similar = similar & (abs(space.params[t * k + i] - struck[i]) <= lane<Real>(grid.apart[i]));
            score = select(similar, infinity<Real>(), score);
            space.score[t] = score;
        }
        const Mask<Real> better = score < best;
        best = select(better, score, best);
        type = select(better, lane<Real>(t), type);
    }
    return best;
}

// Parameters of star s of a lane, (k,), where its type has moved to; without a type the grid's first one as it is.
template <class Real>
XPKERN_INLINE void params_of_type(const GridView& grid, int inputs, const StartSpace<Real>& space, int type, int s,
                                  double* u) {
    const int k = inputs + 2;
    for (int p = 0; type >= 0 && p < k; ++p) u[p] = get(space.params[type * k + p], s);
    if (type >= 0) return;
    for (int i = 0; i < inputs; ++i) u[i] = start_type(grid, 0, inputs).type[i];
    u[inputs] = 0.1f;
    u[inputs + 1] = 0;
}

XPKERN_NAMESPACE_END
