// Warps that begin together: csrc/cuda/round.cuh.
#include "../cuda_shim/shim.hpp"

#include "cuda/round.cuh"

#include "check.hpp"

namespace {

constexpr int WARPS = 8, ROUNDS = 40;

struct alignas(16) Table {
    kernels::Round round;
    int begun[WARPS];        // rounds that each warp has asked for
    bool takes_part[WARPS];  // of each
};

struct Arguments {
    int* wrong;     // how often a warp went on while another one that takes part had not come
    int* finished;  // rounds of all warps
};

// How many rounds a warp asks for, and whether it leaves after one of them: some always take part, some now and then,
// one does not at all.
int rounds_of(int warp) {
    return warp == WARPS - 1 ? 0 : ROUNDS - 5 * (warp % 3);
}
bool leaves_after(int warp, int round) {
    return warp % 2 == 1 && round % (warp + 1) == 0;
}

void take_rounds(const Arguments a) {
    auto& table = *reinterpret_cast<Table*>(shim::dynamic_shared());
    const int warp = static_cast<int>(threadIdx.x) / kernels::LANES;
    const bool first_lane = kernels::lane_in_warp() == 0;
    if (threadIdx.x == 0) table.round.begin();
    if (first_lane) table.begun[warp] = 0, table.takes_part[warp] = false;
    __syncthreads();
    bool met[WARPS] = {};
    int least[WARPS] = {}, most[WARPS] = {};  // rounds by which the others are behind, as long as they have been there
    for (int round = 1; round <= rounds_of(warp); ++round) {
        if (first_lane) ++table.begun[warp];
        table.round.join(table.takes_part[warp]);
        if (first_lane) {
            ++*a.finished;
            // of two that stay, neither is ever more than a round ahead
            for (int other = 0; other < WARPS - 1; other += 2) {
                if (warp % 2 == 1 || !table.takes_part[other]) continue;
                const int ahead = table.begun[warp] - table.begun[other];
                if (!met[other]) least[other] = most[other] = ahead, met[other] = true;
                least[other] = ahead < least[other] ? ahead : least[other];
                most[other] = ahead > most[other] ? ahead : most[other];
                *a.wrong += most[other] - least[other] > 1 ? 1 : 0;
            }
        }
        if (leaves_after(warp, round)) table.round.leave(table.takes_part[warp]);
        for (int turn = 0; turn < warp; ++turn) __syncwarp();  // some are later than others
    }
    table.round.leave(table.takes_part[warp]);
    table.round.leave(table.takes_part[warp]);  // as one that takes no part: nothing
}

// Four neighbours wait for one another, also where some have nothing to do; a block of another number has none.
void count_neighbours(const Arguments a) {
    auto* const begun = reinterpret_cast<int*>(shim::dynamic_shared());
    const int warp = static_cast<int>(threadIdx.x) / kernels::LANES, place = kernels::place_among_neighbours();
    const bool first_lane = kernels::lane_in_warp() == 0;
    if (first_lane) begun[warp] = 0;
    __syncthreads();
    const int n = 6 * WARPS + 3, step = static_cast<int>(blockDim.x) / kernels::LANES;
    for (int row = warp; row < n + place; row += step) {
        if (first_lane) ++begun[warp];
        kernels::wait_for_neighbours();
        if (first_lane && kernels::has_neighbours())
            for (int other = warp - place; other < warp - place + kernels::NEIGHBOURS; ++other)
                *a.wrong += begun[other] < begun[warp] ? 1 : 0;
        if (row < n && first_lane) ++*a.finished;
    }
}

}  // namespace

int main() {
    int expected = 0;
    for (int warp = 0; warp < WARPS; ++warp) expected += rounds_of(warp);
    for (int block = 0; block < 6; ++block) {  // whose threads take turns in either order
        int wrong = 0, finished = 0;
        shim::launch(take_rounds, 1, WARPS * kernels::LANES, Arguments{&wrong, &finished}, true, sizeof(Table));
        CHECK(wrong == 0);
        CHECK(finished == expected);
    }
    for (const int warps : {4, 6, 8}) {
        int wrong = 0, finished = 0;
        shim::launch(count_neighbours, 1, warps * kernels::LANES, Arguments{&wrong, &finished}, true, 256);
        CHECK(wrong == 0);
        CHECK(finished == 6 * WARPS + 3);
    }
    return failures();
}
