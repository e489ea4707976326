// What a wider instruction set does for the reader of arrays: see csv_array.hpp.
#pragma once

#include <cstdint>

namespace xpkern::csv {

// A product with the rounded 1 / 10^k is within two units in the last place of the quotient m / 10^k as float64. Only
// where a tie between two float32 is that near (half a unit of float32 is bit 28 of float64) do they lead to different
// float32.
constexpr std::int64_t float32_tie = 1 << 28, tie_margin = 4;

// Reads 8 * n numbers of float32. Each ends at the place in `text` that `stops` has for it and begins behind the one
// before, which for the first is stops[-1]. Bit i of unread[j] says that number 8 * j + i is not a short one: what is
// in `out` for it means nothing. 19 bytes before text[stops[-1]] may be read.
using ReadEights = void(const char* text, const std::int32_t* stops, int n, float* out, std::uint8_t* unread);

namespace avx512 {
ReadEights read_eights;
}

}  // namespace xpkern::csv
