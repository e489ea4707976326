// What an evaluation reports: derivatives in x = (Theta, ln E, ln plx), the Fisher matrix in the linear parameters.
#pragma once

#include "star_loss.hpp"

XPKERN_NAMESPACE_BEGIN

// Of a lane's stars. Triangles are packed lower by rows.
template <class Wide>
struct Report {
    Wide gradient[MAX_PARAMETERS];  // in x
    Wide hessian[MAX_TRIANGLE];     // in x
    Wide fisher[MAX_TRIANGLE];      // in the linear parameters
    Wide decrement;                 // predicted drop of a Newton step in x; infinite where the Hessian is not
    Mask<Wide> positive;            // positive definite
};

// From u to x and to the linear parameters. weight: (k,) 1 / sigma^2 of the constraints.
template <class Real, class Wide>
XPKERN_KERNEL void report_evaluation(const LossState<Real, Wide>& state, int k, const Wide* weight,
                                     Report<Wide>& report) {
    const int ext = k - 2, plx = k - 1;
    const Wide one = lane<Wide>(1), extinction = state.u[ext], inverse_parallax = one / exp(state.u[plx]);
    Wide newton[MAX_PARAMETERS];
    report.positive = one > lane<Wide>(0);
    XPKERN_UNROLL_ON_GPU
    for (int p = 0; p < k; ++p) {
        report.gradient[p] = convert<Wide>(state.gradient[p]) * (p == ext ? extinction : one);
        XPKERN_UNROLL_ON_GPU
        for (int q = 0; q <= p; ++q) {
            const int at = row_start(p) + q;
            Wide curved = convert<Wide>(state.hessian[at]), information = convert<Wide>(state.normal[at]);
            if (p == ext) curved *= extinction;
            if (q == ext) curved *= extinction;
            if (p == ext && q == ext) curved += report.gradient[ext];
            if (p == plx) information *= inverse_parallax;
            if (q == plx) information *= inverse_parallax;
            if (p == q) information += weight[p];
            report.hessian[at] = curved;
            report.fisher[at] = information;
        }
        report.positive = report.positive & (report.hessian[row_start(p) + p] > lane<Wide>(0));
    }
    report.positive =
        report.positive & solve_damped(k, report.hessian, report.hessian, lane<Wide>(0), report.gradient, newton);
    report.decrement = lane<Wide>(0);
    XPKERN_UNROLL_ON_GPU
    for (int p = 0; p < k; ++p)
        report.decrement = fma(report.gradient[p] * lane<Wide>(0.5), newton[p], report.decrement);
    report.decrement = select(report.positive, report.decrement, infinity<Wide>());
}

// Writes one star.
template <class Real, class Wide>
XPKERN_INLINE void write_evaluation(const LossState<Real, Wide>& state, const Report<Wide>& report, int s, int k,
                                    int64_t row, const EvaluationArrays& out) {
    out.loss[row] = get(state.loss, s);
    out.chi2[row] = get(state.chi2, s);
    out.ln_prior[row] = get(state.ln_prior, s);
    XPKERN_UNROLL_ON_GPU
    for (int p = 0; p < k; ++p) {
        out.gradient[row * k + p] = get(report.gradient[p], s);
        XPKERN_UNROLL_ON_GPU
        for (int q = 0; q <= p; ++q) {
            const int at = row_start(p) + q;
            out.hessian[(row * k + p) * k + q] = out.hessian[(row * k + q) * k + p] = get(report.hessian[at], s);
            out.fisher[(row * k + p) * k + q] = out.fisher[(row * k + q) * k + p] = get(report.fisher[at], s);
        }
    }
}

XPKERN_NAMESPACE_END
