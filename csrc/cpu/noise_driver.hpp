// The covariances of a block of stars under a learned noise: core/frozen_noise.hpp, a lane of stars at a time.
#pragma once

#include "../core/frozen_noise.hpp"
#include "star_lanes.hpp"

XPKERN_NAMESPACE_BEGIN

// Memory of one lane.
struct FreezeMemory {
    Workspace<DoubleLane, DoubleLane> workspace;
    DoubleLane *triangle, *along, *common, *lanes;
    FreezeMemory(const ModelView& model, int groups, Arena& arena) {
        const AnyShape shape(model);
        workspace = carve_workspace<DoubleLane, DoubleLane>(shape, PriorView{}, arena);
        triangle = arena.take<DoubleLane>(row_start(shape.samples()));
        along = arena.take<DoubleLane>(shape.samples());
        common = arena.take<DoubleLane>(shape.samples());
        lanes = arena.take<DoubleLane>(FreezeSpace<DoubleLane>::size(groups, shape.samples()));
    }
};

inline int64_t freeze_scratch_bytes(const ModelView& model, int groups) {
    Arena arena{nullptr, 0};
    FreezeMemory(model, groups, arena);
    return arena.used;
}

// blocks: see SampleBlocks. What becomes of a star does not depend on whether its neighbours' factors are in blocks.
inline void freeze_stars(const ModelView& model, const NoiseView& noise, const float* flux, const float* whitener,
                         const double* params, const SampleBlocks& blocks, const FrozenArrays& out, int64_t begin,
                         int64_t end, char* scratch) {
    const AnyShape shape(model);
    const int k = shape.parameters(), m = shape.samples();
    Arena arena{scratch, 0};
    const FreezeMemory memory(model, noise.n_groups, arena);
    const FreezeSpace<DoubleLane> space(noise.n_groups, m, memory.lanes);
    const auto load = [&](const Members<DoubleLane>& members) {
        load_rows<Next::following>(whitener, members.row, row_start(m), memory.triangle);
    };
    const auto freeze = [&](const Members<DoubleLane>& members, const BlockForm& form) {
        DoubleLane u[MAX_PARAMETERS];
        load_params(members.row, params, k, u);
        predict_values(model, shape, u, memory.workspace);
        load_rows(flux, members.row, m, space.observed);
        const DoubleLane ln_det = freeze_noise(noise, form, shape.inputs(), u, memory.workspace.flux, memory.along,
                                               memory.common, memory.triangle, space);
        store_rows<Next::following>(memory.triangle, row_start(m), members.row, members.count, out.whitener);
        for (int s = 0; s < members.count; ++s) out.ln_det[members.row[s]] = get(ln_det, s);
    };
    const BlockForm form = BlockForm::of(m, blocks), whole = BlockForm::whole(m);
    const auto in_blocks = [&] { return find_common_error(memory.triangle, form, memory.along, memory.common); };
    for (int64_t first = begin; first < end; first += Members<DoubleLane>::width) {
        const Members<DoubleLane> members(first, end);
        load(members);
        if (!form.has_trailing()) {
            freeze(members, whole);
            continue;
        }
        const Mask<DoubleLane> mask = in_blocks();
        const Members<DoubleLane> split = members.those(mask, true), others = members.those(mask, false);
        if (split.count > 0) {
            if (others.count > 0) {
                load(split);
                in_blocks();
            }
            freeze(split, form);
            if (others.count > 0) load(others);
        }
        if (others.count > 0) freeze(others, whole);
    }
}

XPKERN_NAMESPACE_END
