// Set-up of a calibration, once a call: which samples each side reaches, and its design matrix factored.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "../core/calibration_view.hpp"

namespace xpkern {

// The design matrix of one side, in the form of SideView.
class SidePlan {
  public:
    // design: (samples, coefficients), weight of the merge included; rows that are zero belong to the other side.
    SidePlan(const double* design, int samples, int coefficients) : coefficients_(coefficients) {
        int end = 0;
        for (int i = samples - 1; i >= 0; --i) {
            for (int j = 0; j < coefficients; ++j) {
                if (design[i * coefficients + j] == 0) continue;
                first_sample_ = i;
                end = std::max(end, i + 1);
            }
        }
        rows_ = end - first_sample_;
        inner_ = std::min(rows_, coefficients_);
        design += first_sample_ * coefficients;
        factor(design);
        design_.resize(coefficients * rows_);
        for (int i = 0; i < rows_; ++i) {
            for (int j = 0; j < coefficients; ++j) design_[j * rows_ + i] = design[i * coefficients + j];
        }
    }

    SideView view() const {
        return {first_sample_,    rows_,         coefficients_, inner_, design_.data(), lower_.data(),
                reversed_.data(), ratio_.data(), place_.data()};
    }

  private:
    // A = lower upper (1 | ratio) by elimination: the largest element that is left in a row is its pivot, so that no
    // element of `upper` exceeds 1. A row of which only rounding is left, or nothing, does no harm: its column of
    // `lower` is as small.
    void factor(const double* design) {
        const int n = coefficients_;
        std::vector<double> left(design, design + rows_ * n), upper(inner_ * n);
        std::vector<int> order(n);  // of the coefficients, as they become pivots
        std::iota(order.begin(), order.end(), 0);
        lower_.resize(inner_ * rows_);
        for (int step = 0; step < inner_; ++step) {
            const double* row = &left[step * n];
            int pivot = step;
            for (int j = step; j < n; ++j) {
                if (std::abs(row[order[j]]) > std::abs(row[order[pivot]])) pivot = j;
            }
            std::swap(order[step], order[pivot]);
            for (int k = 0; k < step; ++k) std::swap(upper[k * n + step], upper[k * n + pivot]);
            for (int i = step; i < rows_; ++i) lower_[step * rows_ + i] = left[i * n + order[step]];
            upper[step * n + step] = 1;
            if (row[order[step]] == 0) continue;
            for (int j = step + 1; j < n; ++j) upper[step * n + j] = row[order[j]] / row[order[step]];
            for (int i = step + 1; i < rows_; ++i) {
                for (int j = step + 1; j < n; ++j) {
                    left[i * n + order[j]] -= lower_[step * rows_ + i] * upper[step * n + j];
                }
            }
        }
        const int s = inner_;
        ratio_.resize((n - s) * s);
        reversed_.resize(s * s);
        for (int i = s - 1; i >= 0; --i) {
            for (int j = i; j < s; ++j) reversed_[(s - 1 - j) * s + s - 1 - i] = upper[i * n + j];
            for (int k = s; k < n; ++k) {  // upper ratio = what is to the right of upper
                double rest = upper[i * n + k];
                for (int j = i + 1; j < s; ++j) rest -= upper[i * n + j] * ratio_[(k - s) * s + s - 1 - j];
                ratio_[(k - s) * s + s - 1 - i] = rest;
            }
        }
        std::reverse(order.begin(), order.begin() + s);
        std::vector<int> new_index(n);
        for (int j = 0; j < n; ++j) new_index[order[j]] = j;
        for (int i = 0; i < n; ++i) {
            for (int j = 0; j <= i; ++j) {
                const int row = std::max(new_index[i], new_index[j]), column = std::min(new_index[i], new_index[j]);
                place_.push_back(row * (row + 1) / 2 + column);
            }
        }
    }

    int first_sample_ = 0, rows_ = 0, coefficients_, inner_ = 0;
    std::vector<double> design_, lower_, reversed_, ratio_;
    std::vector<int32_t> place_;
};

// The noise of Eq. 2; see Noise in xpkern/model/noise.py. independent: (m,), which must outlive the plan.
struct NoiseTerms {
    const double* independent;
    double common, bp, rp, floor;
    bool unit_variance;
};

// Everything that calibrate_rows() needs besides the rows.
class CalibrationPlan {
  public:
    // bp_design, rp_design: (xp_samples, n_bp), (xp_samples, n_rp).
    CalibrationPlan(const double* bp_design, int n_bp, const double* rp_design, int n_rp, int samples, int xp_samples,
                    const NoiseTerms& noise)
        : bp_(bp_design, xp_samples, n_bp), rp_(rp_design, xp_samples, n_rp) {
        view_.bp = bp_.view();
        view_.rp = rp_.view();
        view_.samples = samples;
        view_.xp_samples = xp_samples;
        view_.leading_end = view_.bp.first_sample + view_.bp.rows;
        view_.link = std::min(view_.rp.first_sample, view_.leading_end);
        view_.independent = noise.independent;
        view_.common = noise.common;
        view_.bp_error = noise.bp;
        view_.rp_error = noise.rp;
        view_.floor = noise.floor;
        view_.unit_variance = noise.unit_variance;
    }
    CalibrationPlan(const CalibrationPlan&) = delete;
    CalibrationPlan& operator=(const CalibrationPlan&) = delete;

    const CalibrationView& view() const { return view_; }

  private:
    SidePlan bp_, rp_;
    CalibrationView view_;
};

}  // namespace xpkern
