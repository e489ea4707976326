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
        design += first_sample_ * coefficients;
        factor(design);
        design_.resize(coefficients * rows_);
        for (int i = 0; i < rows_; ++i) {
            for (int j = 0; j < coefficients; ++j) design_[j * rows_ + i] = design[i * coefficients + j];
        }
    }

    SideView view() const {
        return {first_sample_,  rows_,         coefficients_, inner_,
                design_.data(), basis_.data(), ratio_.data(), place_.data()};
    }

  private:
    // A = basis (1 | ratio): Gauss-Jordan elimination with complete pivoting chooses as basis the most independent
    // columns of A, so that the elements of ratio are of order one and nothing is lost by going through them.
    void factor(const double* design) {
        std::vector<double> reduced(design, design + rows_ * coefficients_);
        std::vector<int> order(coefficients_);
        std::iota(order.begin(), order.end(), 0);
        const auto at = [&](int i, int j) -> double& { return reduced[i * coefficients_ + order[j]]; };
        std::vector<double> length(rows_);  // of the rows: merge weights near zero are no sign of dependence
        for (int i = 0; i < rows_; ++i) {
            for (int j = 0; j < coefficients_; ++j) length[i] = std::hypot(length[i], at(i, j));
            for (int j = 0; j < coefficients_ && length[i] > 0; ++j) at(i, j) /= length[i];
        }
        const double independent = 1e-8;  // smallest pivot taken as one
        bool full_rank = rows_ < coefficients_;
        for (int step = 0; step < rows_ && full_rank; ++step) {
            int pivot_row = step, pivot_column = step;
            for (int i = step; i < rows_; ++i) {
                for (int j = step; j < coefficients_; ++j) {
                    if (std::abs(at(i, j)) > std::abs(at(pivot_row, pivot_column))) pivot_row = i, pivot_column = j;
                }
            }
            for (int j = 0; j < coefficients_; ++j) std::swap(at(step, j), at(pivot_row, j));
            std::swap(order[step], order[pivot_column]);
            const double pivot = at(step, step);
            full_rank = std::abs(pivot) > independent;
            for (int j = step; j < coefficients_ && full_rank; ++j) at(step, j) /= pivot;
            for (int i = 0; i < rows_ && full_rank; ++i) {
                const double multiple = at(i, step);
                for (int j = step; j < coefficients_ && i != step; ++j) at(i, j) -= multiple * at(step, j);
            }
        }
        inner_ = full_rank ? rows_ : coefficients_;
        basis_.resize(inner_ * rows_);
        ratio_.resize((coefficients_ - inner_) * inner_);
        std::vector<int> new_index(coefficients_);
        for (int j = 0; j < coefficients_; ++j) {
            new_index[order[j]] = j;
            for (int i = 0; i < rows_ && j < inner_; ++i) basis_[j * rows_ + i] = design[i * coefficients_ + order[j]];
            for (int i = 0; i < inner_ && j >= inner_; ++i) ratio_[(j - inner_) * inner_ + i] = at(i, j);
        }
        for (int i = 0; i < coefficients_; ++i) {
            for (int j = 0; j <= i; ++j) {
                const int row = std::max(new_index[i], new_index[j]), column = std::min(new_index[i], new_index[j]);
                place_.push_back(row * (row + 1) / 2 + column);
            }
        }
    }

    int first_sample_ = 0, rows_ = 0, coefficients_, inner_ = 0;
    std::vector<double> design_, basis_, ratio_;
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
