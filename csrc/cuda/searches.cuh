// The searches of a fit between its kernels. Where a search is a thread's there is one for each stage: searches that
// are left are packed anew for the next one, in any order, as a search's path depends on nothing but its own star. The
// rules are those of core/search.hpp.
#pragma once

#include "threads.cuh"

XPKERN_NAMESPACE_BEGIN

// What the last stage leaves in double is reported after it.
using Search = SearchProgress<double>;

XPKERN_INLINE Search* searches_of(const FitArguments& a, int64_t row) {
    return reinterpret_cast<Search*>(a.progress) + row * a.fit.starts;
}

__device__ __forceinline__ void add_to_queue(const SearchQueue& queue, int64_t search) {
    const auto place = atomicAdd(reinterpret_cast<unsigned long long*>(queue.count), 1ull);
    queue.searches[place] = search;
}

XPKERN_NAMESPACE_END
