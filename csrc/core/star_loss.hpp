// The one star loss of training and inference (Eqs. 13-14, 19) with gradient, Gauss-Newton and exact Hessian.
//
//   loss = chi^2 + sum_k ((v_k - vhat_k) / sigma_k)^2 [- 2 ln p(Theta)] [- 2 ln plx] [- 2 ln E],
//   chi^2 = |G^-1 (f - f_obs)|^2,  f = exp(MLP(Theta) - E R + 2 ln plx).
// Coordinates here are u = (Theta, E, ln plx): E rather than ln E, which saves a seventh of the evaluations. Slopes
// d_i = d ln f_i / du are (network tangents, -R_i, 2), so df = f d and d2f = f (d d^T + network curvature). With
// Y = G^-1 df, y = G^-1 (f - f_obs), w = G^-T y:
//   gradient chi^2 = 2 Y^T y,   Gauss-Newton = 2 Y^T Y,   Hessian = 2 Y^T Y + 2 sum_i w_i d2f_i.
//
// Wide carries value and residual, Real (the same or narrower) the slopes: in float a loss of 100 at a signal-to-noise
// of 1000 is wrong by 1; with Wide = double and Real = float it is right to 1e-5 and costs a fifth more.
// Cost for 3-32-32-32-66: 17.7k (network) + 13.3k (six columns whitened) + 1.4k (normal matrix) fused multiply-adds a
// star; the exact Hessian adds 2.2k + 4.3k + 1k.
#pragma once

#include "block_factor.hpp"
#include "prior.hpp"

XPKERN_NAMESPACE_BEGIN

// One lane's stars: what is fixed during a fit.
template <class Real, class Wide, class Factor = const Real*>
struct StarView {
    const Real* flux;    // (m,)
    Factor factor;       // packed whitener, (m (m + 1) / 2,) or in blocks
    const Wide* mean;    // (k,) Gaussian constraints on the linear parameters
    const Wide* weight;  // (k,) 1 / sigma^2, 0 where there is none
};

// One lane's stars: what an evaluation leaves. Triangles are packed lower by rows over the k coordinates u.
template <class Real, class Wide>
struct LossState {
    Wide u[MAX_PARAMETERS];
    Wide loss, chi2, ln_prior;
    Real gradient[MAX_PARAMETERS];
    Real normal[MAX_TRIANGLE];        // Y^T Y
    Real gauss_newton[MAX_TRIANGLE];  // definite part of the Hessian
    Real hessian[MAX_TRIANGLE];       // exact where asked for, else the definite part
};

template <class Real, class Wide>
struct Workspace {
    NetworkTape<Real, Wide> tape;
    Wide* flux;       // (m,) predicted
    Wide* kept_flux;  // (m,) that of the best evaluation so far, where optimise() is asked to keep it
    Wide* residual;   // (m,)
    Real* column;     // (m, k + 1) slopes, whitened in place; the last is the residual in Real
    Real* back;       // (m,) w, then w f
    Wide* prior;      // prior_scratch()
};

// Hands out aligned pieces of one buffer; with base = nullptr it only counts.
struct Arena {
    char* base;
    int64_t used;
    template <class T>
    XPKERN_INLINE constexpr T* take(int64_t count) {
        T* piece = base ? reinterpret_cast<T*>(base + used) : nullptr;
        used += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
        return piece;
    }
};

template <class Real, class Wide, class Shape>
XPKERN_INLINE constexpr Workspace<Real, Wide> carve_workspace(const Shape& shape, const PriorView& prior,
                                                              Arena& arena) {
    Workspace<Real, Wide> space{};
    const int inputs = shape.inputs(), m = shape.samples(), widest = widest_hidden(shape), last = shape.layers() - 1;
    space.tape.value[0] = arena.take<Wide>(widest);
    space.tape.value[1] = arena.take<Wide>(widest);
    space.tape.output = arena.take<Wide>(m);
    for (int l = 0; l + 1 < shape.layers(); ++l) {
        space.tape.hidden[l] = arena.take<Real>(widest);
        space.tape.pre_tangent[l] = arena.take<Real>(inputs * widest);
    }
    // Of the two layers' tangents the last layer needs one; its own may take the other's place.
    space.tape.output_tangent = arena.take<Real>(inputs * (widest > m ? widest : m));
    space.tape.tangent[last % 2] = space.tape.output_tangent;
    space.tape.tangent[(last + 1) % 2] = arena.take<Real>(inputs * widest);
    space.tape.adjoint[0] = arena.take<Real>(widest);
    space.tape.adjoint[1] = arena.take<Real>(widest);
    space.flux = arena.take<Wide>(m);
    space.kept_flux = arena.take<Wide>(m);
    space.residual = arena.take<Wide>(m);
    space.column = arena.take<Real>((shape.parameters() + 1) * m);
    space.back = arena.take<Real>(m);
    space.prior = arena.take<Wide>(prior_scratch(prior, inputs));
    return space;
}

// Fluxes alone at u: space.flux.
template <class Real, class Wide, class Shape, class Meanwhile = Nothing>
XPKERN_KERNEL void predict_values(const ModelView& model, const Shape& shape, const Wide* u,
                                  const Workspace<Real, Wide>& space, const Meanwhile& meanwhile = {}) {
    const int inputs = shape.inputs(), m = shape.samples();
    const auto& wide = network_of<Wide>(model);
    network_forward<Order::value>(model, shape, u, space.tape, meanwhile);
    const Wide twice_ln_plx = u[inputs + 1] + u[inputs + 1];
    for (int i = 0; i < m; ++i)
        space.flux[i] = fma(-u[inputs], Wide(wide.ext_curve[i]), space.tape.output[i] + twice_ln_plx);
    exp_of_all(space.flux, m);
}

// Slopes of the flux by the inputs from s on, those of ln f kept where curvature is wanted.
template <Order ORDER, class Real, class Wide>
struct FluxSlopes {
    const Wide* flux;
    Real *output_tangent, *column;
    int inputs, columns, s;
    template <int STREAMS>
    XPKERN_INLINE void operator()(int i, const Real (&sum)[STREAMS]) const {
        const Real narrow = convert<Real>(flux[i]);
        XPKERN_UNROLL
        for (int t = 0; t < STREAMS; ++t) {
            if constexpr (ORDER == Order::curvature) output_tangent[i * inputs + s + t] = sum[t];
            column[i * columns + s + t] = narrow * sum[t];
        }
    }
};

// Fluxes and slopes at u: space.flux, space.column = df/du, and for Order::curvature tape.output_tangent =
// d ln f / dTheta.
template <Order ORDER, class Real, class Wide, class Shape, class Meanwhile>
XPKERN_INLINE void predict_flux(const ModelView& model, const Shape& shape, const Wide* u,
                                const Workspace<Real, Wide>& space, const Meanwhile& meanwhile) {
    const int inputs = shape.inputs(), columns = shape.parameters() + 1, m = shape.samples();
    const auto& wide = network_of<Wide>(model);
    const auto& real = network_of<Real>(model);
    network_forward<ORDER>(model, shape, u, space.tape, meanwhile);
    const Wide ext = u[inputs], twice_ln_plx = u[inputs + 1] + u[inputs + 1];
    for (int i = 0; i < m; ++i) space.flux[i] = fma(-ext, Wide(wide.ext_curve[i]), space.tape.output[i] + twice_ln_plx);
    exp_of_all(space.flux, m);
    const auto take = [&](int s) {
        return FluxSlopes<ORDER, Real, Wide>{space.flux, space.tape.output_tangent, space.column, inputs, columns, s};
    };
    output_tangents(model, shape, space.tape, take, meanwhile);
    for (int i = 0; i < m; ++i) {
        const Real narrow = convert<Real>(space.flux[i]);
        Real* slope = space.column + i * columns;
        slope[inputs] = narrow * Real(-real.ext_curve[i]);
        slope[inputs + 1] = narrow + narrow;
    }
}

// result[a][b] = sum_i left_ia right_ib for LEFT by RIGHT neighbours of the columns (m, stride).
template <int LEFT, int RIGHT, class Real>
XPKERN_INLINE void product_block(const Real* left, const Real* right, int m, int stride, Real* result) {
    Real sum[LEFT][RIGHT];
    XPKERN_UNROLL
    for (int a = 0; a < LEFT; ++a) {
        XPKERN_UNROLL
        for (int b = 0; b < RIGHT; ++b) sum[a][b] = lane<Real>(0);
    }
    for (int i = 0; i < m; ++i) {
        Real x[LEFT];
        XPKERN_UNROLL
        for (int a = 0; a < LEFT; ++a) x[a] = left[i * stride + a];
        XPKERN_UNROLL
        for (int b = 0; b < RIGHT; ++b) {
            const Real y = right[i * stride + b];
            XPKERN_UNROLL
            for (int a = 0; a < LEFT; ++a) sum[a][b] = fma(x[a], y, sum[a][b]);
        }
    }
    XPKERN_UNROLL
    for (int a = 0; a < LEFT; ++a) {
        XPKERN_UNROLL
        for (int b = 0; b < RIGHT; ++b) result[a * MAX_COLUMNS + b] = sum[a][b];
    }
}

// LEFT rows of Y^T (Y, y) share the loads of their columns.
template <int LEFT, class Real>
XPKERN_INLINE void product_rows(const Real* left, const Real* right, int m, int stride, int count, Real* result) {
    int b = 0;
    for (; b + 6 <= count; b += 6) product_block<LEFT, 6>(left, right + b, m, stride, result + b);
    if (b + 4 <= count) {
        product_block<LEFT, 4>(left, right + b, m, stride, result + b);
        b += 4;
    }
    for (; b + 2 <= count; b += 2) product_block<LEFT, 2>(left, right + b, m, stride, result + b);
    if (b < count) product_block<LEFT, 1>(left, right + b, m, stride, result + b);
}

// Rows a ... a + LEFT of normal_equations().
template <int LEFT, class Real>
XPKERN_INLINE void normal_rows(const Real* column, int m, int k, int a, Real* normal, Real* projected) {
    Real product[LEFT][MAX_COLUMNS];
    product_rows<LEFT>(column + a, column + a, m, k + 1, k + 1 - a, product[0]);
    for (int row = 0; row < LEFT; ++row) {
        for (int b = a + row; b < k; ++b) normal[row_start(b) + a + row] = product[row][b - a];
        projected[a + row] = product[row][k - a];
    }
}

// normal = Y^T Y and projected = Y^T y. column: (m, k + 1), k slopes and the residual. More rows at a time load less,
// but of the square on the diagonal they find both halves: ROWS of them while many columns are left.
template <int ROWS = 2, class Real>
XPKERN_INLINE void normal_equations(const Real* column, int m, int k, Real* normal, Real* projected) {
    int a = 0;
    if constexpr (ROWS > 2)
        for (; a + 2 * ROWS <= k; a += ROWS) normal_rows<ROWS>(column, m, k, a, normal, projected);
    for (; a + 2 <= k; a += 2) normal_rows<2>(column, m, k, a, normal, projected);
    if (a < k) normal_rows<1>(column, m, k, a, normal, projected);
}

// hessian += 2 sum_i weight_i d_i d_i^T of the slopes d_i = d ln f_i / du = (network tangents, -R_i, 2). weight: (m,),
// tangent: (m, INPUTS), ext_curve: (m,) R. The last slope is the same for all samples, so that sums serve for it.
template <int INPUTS, class Real>
XPKERN_INLINE void add_slope_products(const Real* weight, const Real* tangent, const Scalar<Real>* ext_curve, int m,
                                      Real* hessian) {
    constexpr int SLOPES = INPUTS + 1;
    Real product[SLOPES][SLOPES], sum[SLOPES], total = lane<Real>(0);
    XPKERN_UNROLL
    for (int a = 0; a < SLOPES; ++a) {
        sum[a] = lane<Real>(0);
        XPKERN_UNROLL
        for (int b = 0; b <= a; ++b) product[a][b] = lane<Real>(0);
    }
    for (int i = 0; i < m; ++i) {
        Real slope[SLOPES];
        XPKERN_UNROLL
        for (int t = 0; t < INPUTS; ++t) slope[t] = tangent[i * INPUTS + t];
        slope[INPUTS] = Real(-ext_curve[i]);
        total += weight[i];
        XPKERN_UNROLL
        for (int a = 0; a < SLOPES; ++a) {
            const Real weighted = weight[i] * slope[a];
            sum[a] += weighted;
            XPKERN_UNROLL
            for (int b = 0; b <= a; ++b) product[a][b] = fma(weighted, slope[b], product[a][b]);
        }
    }
    const Real two = lane<Real>(2), four = lane<Real>(4);
    Real* last = hessian + row_start(SLOPES);
    XPKERN_UNROLL
    for (int a = 0; a < SLOPES; ++a) {
        XPKERN_UNROLL
        for (int b = 0; b <= a; ++b) {
            Real& element = hessian[row_start(a) + b];
            element = fma(product[a][b], two, element);
        }
        last[a] = fma(sum[a], four, last[a]);
    }
    last[SLOPES] = fma(total + total, four, last[SLOPES]);
}

// 2 sum_i w_i d2 f_i / du du, added to hessian.
template <class Real, class Wide, class Factor, class Shape>
XPKERN_INLINE void add_flux_curvature(const ModelView& model, const Shape& shape, const Factor& factor,
                                      const Workspace<Real, Wide>& space, Real* hessian) {
    const int inputs = shape.inputs(), k = shape.parameters(), m = shape.samples();
    Real* weight = space.back;
    for (int i = 0; i < m; ++i) weight[i] = space.column[i * (k + 1) + k];
    unwhiten(factor, m, weight);
    for (int i = 0; i < m; ++i) weight[i] *= convert<Real>(space.flux[i]);

    Real curvature[MAX_INPUTS * (MAX_INPUTS + 1) / 2];
    for (int packed = 0; packed < row_start(inputs); ++packed) curvature[packed] = lane<Real>(0);
    network_curvature(model, shape, weight, space.tape, curvature);
    for (int packed = 0; packed < row_start(inputs); ++packed)
        hessian[packed] = fma(curvature[packed], lane<Real>(2), hessian[packed]);
    const Scalar<Real>* ext_curve = network_of<Real>(model).ext_curve;
    with_known<MAX_INPUTS>(inputs, [&](auto known) {
        add_slope_products<decltype(known)::value>(weight, space.tape.output_tangent, ext_curve, m, hessian);
    });
}

// A constraint on a parameter, weight (value - mean)^2, and halves of its derivatives by u. slope, bend: of the value
// by u, first and second.
template <class Wide>
struct Constraint {
    Wide difference, weighted, gradient, definite, exact;

    XPKERN_INLINE Constraint(const Wide& weight, const Wide& mean, const Wide& value, const Wide& slope,
                             const Wide& bend)
        : difference(value - mean),
          weighted(weight * difference),
          gradient(weighted * slope),
          definite(weight * slope * slope),
          exact(definite + weighted * bend) {}
    XPKERN_INLINE Wide added_to(const Wide& loss) const { return fma(weighted, difference, loss); }
};

// Everything but chi^2: constraints, prior, Jacobian terms.
template <class Real, class Wide, class Factor, class Shape>
XPKERN_INLINE void add_other_terms(const Shape& shape, const StarView<Real, Wide, Factor>& star, const LossView& terms,
                                   const PriorView& prior, const Workspace<Real, Wide>& space,
                                   LossState<Real, Wide>& state) {
    const int inputs = shape.inputs(), ext = inputs, plx = inputs + 1;
    const Wide parallax = exp(state.u[plx]);
    for (int k = 0; k <= plx; ++k) {
        if (all(star.weight[k] <= lane<Wide>(0))) continue;  // most have one of the parallax alone
        const Constraint<Wide> constraint(star.weight[k], star.mean[k], k == plx ? parallax : state.u[k],
                                          k == plx ? parallax : lane<Wide>(1), k == plx ? parallax : lane<Wide>(0));
        const int at = row_start(k) + k;
        state.loss = constraint.added_to(state.loss);
        state.gradient[k] += convert<Real>(constraint.gradient * lane<Wide>(2));
        state.gauss_newton[at] += convert<Real>(constraint.definite * lane<Wide>(2));
        state.hessian[at] += convert<Real>(constraint.exact * lane<Wide>(2));
    }
    const PriorValue<Wide> density = evaluate_prior(shape, prior, static_cast<const Wide*>(state.u), space.prior);
    state.ln_prior = density.ln_density;
    if (terms.prior) {
        state.loss = fma(density.ln_density, lane<Wide>(-2), state.loss);
        for (int i = 0; i < inputs; ++i) {
            state.gradient[i] -= convert<Real>(density.gradient[i] * lane<Wide>(2));
            for (int j = 0; j <= i; ++j) {
                const int at = row_start(i) + j;
                state.gauss_newton[at] += convert<Real>(density.definite[at] * lane<Wide>(2));
                state.hessian[at] += convert<Real>((density.definite[at] - density.remainder[at]) * lane<Wide>(2));
            }
        }
    }
    if (terms.jacobian_plx) {
        state.loss = fma(state.u[plx], lane<Wide>(-2), state.loss);
        state.gradient[plx] -= lane<Real>(2);
    }
    if (terms.jacobian_ext) {
        state.loss = fma(log(state.u[ext]), lane<Wide>(-2), state.loss);
        const Real inverse = convert<Real>(divide(lane<Wide>(1), state.u[ext]));
        const int at = row_start(ext) + ext;
        state.gradient[ext] -= inverse + inverse;
        state.gauss_newton[at] += lane<Real>(2) * inverse * inverse;
        state.hessian[at] += lane<Real>(2) * inverse * inverse;
    }
}

// Evaluates the loss at state.u. EXACT asks for the exact Hessian; without it state.hessian is the definite part.
template <bool EXACT, class Real, class Wide, class Factor, class Shape, class Meanwhile = Nothing>
XPKERN_KERNEL void evaluate_loss(const ModelView& model, const Shape& shape, const PriorView& prior,
                                 const LossView& terms, const StarView<Real, Wide, Factor>& star,
                                 const Workspace<Real, Wide>& space, LossState<Real, Wide>& state,
                                 const Meanwhile& meanwhile = {}) {
    const int k = shape.parameters(), m = shape.samples();
    predict_flux<EXACT ? Order::curvature : Order::slope>(model, shape, state.u, space, meanwhile);
    Real* whitened = space.column + k;  // of every k + 1
    Wide chi2 = lane<Wide>(0);
    if constexpr (SameType<Real, Wide>::value) {
        for (int i = 0; i < m; ++i) whitened[i * (k + 1)] = space.flux[i] - star.flux[i];
        whiten(star.factor, m, k + 1, k + 1, space.column, meanwhile);
        for (int i = 0; i < m; ++i) chi2 = fma(whitened[i * (k + 1)], whitened[i * (k + 1)], chi2);
    } else {
        for (int i = 0; i < m; ++i) space.residual[i] = space.flux[i] - convert<Wide>(star.flux[i]);
        whiten_with(star.factor, m, k, k + 1, space.column, space.residual, meanwhile);
        for (int i = 0; i < m; ++i) {
            chi2 = fma(space.residual[i], space.residual[i], chi2);
            whitened[i * (k + 1)] = convert<Real>(space.residual[i]);
        }
    }
    state.chi2 = state.loss = chi2;
    normal_equations(space.column, m, k, state.normal, state.gradient);
    for (int p = 0; p < k; ++p) state.gradient[p] += state.gradient[p];
    for (int packed = 0; packed < row_start(k); ++packed)
        state.gauss_newton[packed] = state.hessian[packed] = state.normal[packed] + state.normal[packed];
    if constexpr (EXACT) add_flux_curvature(model, shape, star.factor, space, state.hessian);
    add_other_terms(shape, star, terms, prior, space, state);
    if constexpr (!EXACT)
        for (int packed = 0; packed < row_start(k); ++packed) state.hessian[packed] = state.gauss_newton[packed];
}

// The loss at u and nothing else, in one precision: a fifth of the work of an evaluation.
template <class Real, class Factor, class Shape>
XPKERN_KERNEL Real loss_alone(const ModelView& model, const Shape& shape, const PriorView& prior, const LossView& terms,
                              const StarView<Real, Real, Factor>& star, const Workspace<Real, Real>& space,
                              const Real* u) {
    const int m = shape.samples();
    predict_values(model, shape, u, space);
    for (int i = 0; i < m; ++i) space.residual[i] = space.flux[i] - star.flux[i];
    whiten(star.factor, m, 1, 1, space.residual);
    LossState<Real, Real> state{};
    for (int p = 0; p < shape.parameters(); ++p) state.u[p] = u[p];
    for (int i = 0; i < m; ++i) state.loss = fma(space.residual[i], space.residual[i], state.loss);
    add_other_terms(shape, star, terms, prior, space, state);
    return state.loss;
}

XPKERN_NAMESPACE_END
