// What an evaluation reports: derivatives in x = (Theta, ln E, ln plx), the Fisher matrix in the linear parameters.
#pragma once

#include "star_loss.hpp"

XPKERN_NAMESPACE_BEGIN

// Writes one star: from u and derivatives in u to linear parameters, derivatives in x, Fisher matrix.
// Returns whether the Hessian in x is positive definite; decrement is the predicted drop then, else infinite.
template <class Real, class Wide>
XPKERN_KERNEL bool write_evaluation(const LossState<Real, Wide>& state, int s, int k, const double* sigma, int64_t row,
                                    const EvaluationArrays& out, double* decrement) {
    const int ext = k - 2, plx = k - 1;
    const double extinction = get(state.u[ext], s);
    const double parallax = exp(static_cast<double>(get(state.u[plx], s)));
    out.loss[row] = get(state.loss, s);
    out.chi2[row] = get(state.chi2, s);
    out.ln_prior[row] = get(state.ln_prior, s);
    double gradient[MAX_PARAMETERS], hessian[MAX_TRIANGLE], scale[MAX_TRIANGLE], newton[MAX_PARAMETERS];
    for (int p = 0; p < k; ++p) {
        gradient[p] = get(state.gradient[p], s) * (p == ext ? extinction : 1.0);
        out.gradient[row * k + p] = gradient[p];
        for (int q = 0; q <= p; ++q) {
            const int at = row_start(p) + q;
            double curved = get(state.hessian[at], s);
            if (p == ext) curved *= extinction;
            if (q == ext) curved *= extinction;
            if (p == ext && q == ext) curved += gradient[ext];
            hessian[at] = curved;
            scale[at] = curved;
            double information = get(state.normal[at], s);
            if (p == plx) information /= parallax;
            if (q == plx) information /= parallax;
            if (p == q) information += 1.0 / (sigma[p] * sigma[p]);
            out.hessian[(row * k + p) * k + q] = out.hessian[(row * k + q) * k + p] = curved;
            out.fisher[(row * k + p) * k + q] = out.fisher[(row * k + q) * k + p] = information;
        }
    }
    bool positive = true;
    for (int p = 0; p < k; ++p) positive = positive && hessian[row_start(p) + p] > 0;
    positive = positive && solve_damped<double>(k, hessian, scale, 0.0, gradient, newton);
    *decrement = infinity<double>();
    if (positive) {
        *decrement = 0;
        for (int p = 0; p < k; ++p) *decrement += 0.5 * gradient[p] * newton[p];
    }
    return positive;
}

XPKERN_NAMESPACE_END
