// The kernels of the CUDA engine: launch geometry, loads and stores. The mathematics is csrc/core, compiled here with a
// lane of one thread: a star a thread, value and residual in double, slopes in float, as on the CPU.
//
// The same text is compiled by nvcc into a fat binary and by NVRTC at run time. Scratch memory, as much a thread as the
// kernel scratch_bytes says, is given by the caller; arrays are those of csrc/core/views.hpp.
#include "core/calibrate.hpp"
#include "core/evaluation.hpp"
#include "core/optimise.hpp"
#include "core/start.hpp"

namespace kernels = xpkern::XPKERN_ISA;

// Bytes of scratch that one thread of predict() or evaluate() needs, written to *bytes.
extern "C" __global__ void scratch_bytes(xpkern::ModelView model, xpkern::PriorView prior, long long* bytes) {
    kernels::Arena arena{nullptr, 0};
    const kernels::AnyShape shape(model);
    kernels::carve_workspace<float, double>(shape, prior, arena);
    *bytes = arena.used;
}

// flux (n, m) of linear parameters (n, k), Eq. 8.
extern "C" __global__ void predict(xpkern::ModelView model, const double* params, double* flux, long long n,
                                   char* scratch, long long bytes_a_thread) {
    const long long thread = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
    const kernels::AnyShape shape(model);
    const int k = shape.parameters(), m = shape.samples();
    kernels::Arena arena{scratch + thread * bytes_a_thread, 0};
    const auto space = kernels::carve_workspace<float, double>(shape, xpkern::PriorView{}, arena);
    for (long long star = thread; star < n; star += gridDim.x * static_cast<long long>(blockDim.x)) {
        double u[xpkern::MAX_PARAMETERS];
        for (int p = 0; p < k; ++p) u[p] = params[star * k + p];
        u[k - 1] = kernels::log(u[k - 1]);
        kernels::predict_values(model, shape, u, space);
        for (int i = 0; i < m; ++i) flux[star * m + i] = space.flux[i];
    }
}

// Loss, its derivatives in x and the Fisher matrix at linear parameters (n, k).
extern "C" __global__ void evaluate(xpkern::ModelView model, xpkern::PriorView prior, xpkern::LossView terms,
                                    xpkern::StarArrays stars, const double* params, xpkern::EvaluationArrays out,
                                    long long n, char* scratch, long long bytes_a_thread) {
    const long long thread = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
    const kernels::AnyShape shape(model);
    const int k = shape.parameters(), m = shape.samples();
    kernels::Arena arena{scratch + thread * bytes_a_thread, 0};
    const auto space = kernels::carve_workspace<float, double>(shape, prior, arena);
    for (long long star = thread; star < n; star += gridDim.x * static_cast<long long>(blockDim.x)) {
        double weight[xpkern::MAX_PARAMETERS];
        kernels::LossState<float, double> state;
        for (int p = 0; p < k; ++p) {
            const double sigma = stars.sigma[star * k + p];
            weight[p] = 1.0 / (sigma * sigma);
            state.u[p] = params[star * k + p];
        }
        state.u[k - 1] = kernels::log(state.u[k - 1]);
        const kernels::StarView<float, double> view{
            stars.flux + star * m, stars.whitener + star * kernels::row_start(m), stars.mean + star * k, weight};
        kernels::evaluate_loss<true>(model, shape, prior, terms, view, space, state);
        kernels::Report<double> report;
        kernels::report_evaluation(state, k, weight, report);
        kernels::write_evaluation(state, report, 0, k, star, out);
    }
}
