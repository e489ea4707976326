// The largest number of fused multiply-adds that this core does in a second, in float: the roof of every kernel.
//
// Twelve independent chains hide the latency of an FMA (4 cycles, 2 a cycle: 8 are enough). Prints the instruction set
// and the rate in GFLOP/s (a multiply-add counts as two) of the best of many short runs, one line for each.
#include <chrono>
#include <cstdio>

constexpr int CHAINS = 12;
constexpr int STEPS = 200000;
constexpr int RUNS = 25;

template <int bytes>
struct Vector {
    typedef float Type __attribute__((vector_size(bytes)));
};

// always_inline: the body takes the instruction set of the function that it lands in.
template <int bytes>
inline __attribute__((always_inline)) double best_rate(float* sink) {
    typedef typename Vector<bytes>::Type Lanes;
    double best = 0;
    for (int run = 0; run < RUNS; ++run) {
        Lanes chain[CHAINS];
        const Lanes factor = Lanes{} + sink[0], term = Lanes{} + sink[1];
#pragma GCC unroll 12
        for (int k = 0; k < CHAINS; ++k) chain[k] = Lanes{} + static_cast<float>(k);
        const auto start = std::chrono::steady_clock::now();
        for (int step = 0; step < STEPS; ++step) {
#pragma GCC unroll 12
            for (int k = 0; k < CHAINS; ++k) chain[k] = chain[k] * factor + term;
        }
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        Lanes sum{};
#pragma GCC unroll 12
        for (int k = 0; k < CHAINS; ++k) sum += chain[k];
        sink[2] += sum[0];
        const double rate = 2.0 * CHAINS * STEPS * (bytes / 4) / seconds.count();
        best = rate > best ? rate : best;
    }
    return best * 1e-9;
}

#if defined(__x86_64__)
__attribute__((target("avx512f,fma"))) double avx512(float* sink) { return best_rate<64>(sink); }
__attribute__((target("avx2,fma"))) double avx2(float* sink) { return best_rate<32>(sink); }
#endif
double baseline(float* sink) { return best_rate<16>(sink); }

int main() {
    float sink[3] = {0.5f, 1.0f, 0.0f};
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) std::printf("avx512 %.2f\n", avx512(sink));
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) std::printf("avx2 %.2f\n", avx2(sink));
    std::printf("scalar %.2f\n", baseline(sink));
#else
    std::printf("neon %.2f\n", baseline(sink));
#endif
    return sink[2] == 12345.0f;
}
