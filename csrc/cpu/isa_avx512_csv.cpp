// Eight numbers of csv text at a time, with AVX-512: those that csv_array.hpp calls short, if they are multiples of
// 10^-15, as all but a few errors and correlations are.
//
// What is not inlined here is in no header: the linker must not take a function for AVX-512 for another one's.
#include "cpu/csv_eights.hpp"

#include <immintrin.h>

#include <cstring>

namespace xpkern::csv::avx512 {
namespace {

alignas(64) constexpr double power_of_ten[16] = {1e0, 1e1, 1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                                 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15};
alignas(64) constexpr double reciprocal[16] = {1e0,  1e-1, 1e-2,  1e-3,  1e-4,  1e-5,  1e-6,  1e-7,
                                               1e-8, 1e-9, 1e-10, 1e-11, 1e-12, 1e-13, 1e-14, 1e-15};

// Element i of a table of 16.
inline __m512d looked_up(const double* table, __m512i i) {
    return _mm512_permutex2var_pd(_mm512_load_pd(table), i, _mm512_load_pd(table + 8));
}

inline __m128i bytes_before(const char* text, std::int32_t end) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(text + end - 16));
}

// The 16 bytes before four ends, of every second number from `ends` on.
inline __m512i bytes_before_four(const char* text, const std::int32_t* ends) {
    __m512i bytes = _mm512_castsi128_si512(bytes_before(text, ends[0]));
    bytes = _mm512_inserti32x4(bytes, bytes_before(text, ends[2]), 1);
    bytes = _mm512_inserti32x4(bytes, bytes_before(text, ends[4]), 2);
    return _mm512_inserti32x4(bytes, bytes_before(text, ends[6]), 3);
}

// The last n of each 16 bytes as digits, four to a number: n is that of every second number from `first` on. What is
// no digit sets a bit of `wrong`.
inline __m512i fours_of_digits(__m512i bytes, __m256i n, int first, __mmask64& wrong) {
    const __m512i lanes =
        _mm512_add_epi32(_mm512_set_epi32(6, 6, 6, 6, 4, 4, 4, 4, 2, 2, 2, 2, 0, 0, 0, 0), _mm512_set1_epi32(first));
    const __m512i n_of_lane = _mm512_permutexvar_epi32(lanes, _mm512_castsi256_si512(n));
    const __m512i n_of_byte = _mm512_shuffle_epi8(n_of_lane, _mm512_setzero_si512());
    const __m512i behind = _mm512_broadcast_i32x4(_mm_setr_epi8(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
    const __mmask64 keep = _mm512_cmpgt_epi8_mask(n_of_byte, behind);
    const __m512i digits = _mm512_maskz_sub_epi8(keep, bytes, _mm512_set1_epi8('0'));
    wrong = _mm512_cmpgt_epu8_mask(digits, _mm512_set1_epi8(9));
    const __m512i pairs = _mm512_maddubs_epi16(digits, _mm512_set1_epi16(10 | 1 << 8));
    return _mm512_madd_epi16(pairs, _mm512_set1_epi32(100 | 1 << 16));
}

// Bits of the numbers, every second one from `first` on, that have a wrong byte among their sixteen.
inline unsigned numbers_of_bytes(__mmask64 wrong, int first) {
    unsigned numbers = 0;
    for (int i = 0; i < 4; ++i) numbers |= static_cast<unsigned>((wrong >> (16 * i) & 0xffff) != 0) << (2 * i + first);
    return numbers;
}

inline int four_bytes(const char* text) {
    int bytes;
    std::memcpy(&bytes, text, sizeof bytes);
    return bytes;
}

// Four bytes of text from each of eight places on. No instruction that gathers: those wait, since they were found to
// leak what others had read.
inline __m256i four_bytes_of_eight(const char* text, const std::int32_t* places) {
    return _mm256_setr_epi32(four_bytes(text + places[0]), four_bytes(text + places[1]), four_bytes(text + places[2]),
                             four_bytes(text + places[3]), four_bytes(text + places[4]), four_bytes(text + places[5]),
                             four_bytes(text + places[6]), four_bytes(text + places[7]));
}

inline unsigned read_eight(const char* text, const std::int32_t* stops, float* out) {
    const __m256i begin =
        _mm256_add_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(stops - 1)), _mm256_set1_epi32(1));
    __m256i end = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(stops));
    __m256i head = four_bytes_of_eight(text + 1, stops - 1);
    const __m256i tail = four_bytes_of_eight(text - 4, stops);

    // "E-<digit>" is taken off, then a sign
    const __mmask8 has_exponent = _mm256_cmpeq_epi32_mask(_mm256_and_si256(tail, _mm256_set1_epi32(0xffff00)),
                                                          _mm256_set1_epi32('E' << 8 | '-' << 16));
    const __m256i exponent = _mm256_maskz_sub_epi32(has_exponent, _mm256_srli_epi32(tail, 24), _mm256_set1_epi32('0'));
    end = _mm256_mask_sub_epi32(end, has_exponent, end, _mm256_set1_epi32(3));
    const __mmask8 negative =
        _mm256_cmpeq_epi32_mask(_mm256_and_si256(head, _mm256_set1_epi32(0xff)), _mm256_set1_epi32('-'));
    head = _mm256_mask_srli_epi32(head, negative, head, 8);

    // a digit and a point, and n digits behind it
    const __m256i first =
        _mm256_sub_epi32(_mm256_and_si256(head, _mm256_set1_epi32(0xffff)), _mm256_set1_epi32('0' | '.' << 8));
    __m256i n = _mm256_sub_epi32(_mm256_sub_epi32(end, begin), _mm256_set1_epi32(2));
    n = _mm256_mask_sub_epi32(n, negative, n, _mm256_set1_epi32(1));
    const __m256i k = _mm256_add_epi32(n, exponent);
    __mmask8 good = _mm256_cmple_epu32_mask(first, _mm256_set1_epi32(9));
    good &= _mm256_cmplt_epu32_mask(_mm256_sub_epi32(n, _mm256_set1_epi32(1)), _mm256_set1_epi32(14));
    good &= _mm256_cmple_epu32_mask(exponent, _mm256_set1_epi32(9));
    good &= _mm256_cmple_epu32_mask(k, _mm256_set1_epi32(15));

    alignas(32) std::int32_t ends[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(ends), end);
    __mmask64 wrong_even, wrong_odd;
    const __m512i even = fours_of_digits(bytes_before_four(text, ends), n, 0, wrong_even);
    const __m512i odd = fours_of_digits(bytes_before_four(text, ends + 1), n, 1, wrong_odd);
    unsigned unread = static_cast<std::uint8_t>(~good);
    if ((wrong_even | wrong_odd) != 0) unread |= numbers_of_bytes(wrong_even, 0) | numbers_of_bytes(wrong_odd, 1);

    // in the order of the numbers again, each as two of eight digits, the higher one first; all exact to 15 digits
    const __m512i halves = _mm512_madd_epi16(_mm512_packus_epi32(even, odd), _mm512_set1_epi32(10000 | 1 << 16));
    const __m512i behind_point =
        _mm512_add_epi64(_mm512_mul_epu32(halves, _mm512_set1_epi64(100000000)), _mm512_srli_epi64(halves, 32));
    const __m512d mantissa = _mm512_fmadd_pd(
        _mm512_cvtepi32_pd(first), looked_up(power_of_ten, _mm512_cvtepi32_epi64(n)), _mm512_cvtepi64_pd(behind_point));

    // a product with a rounded power of ten, and the quotient where float32_tie asks for it
    const __m512d near = _mm512_mul_pd(mantissa, looked_up(reciprocal, _mm512_cvtepi32_epi64(k)));
    const __m512i from_tie =
        _mm512_and_si512(_mm512_sub_epi64(_mm512_castpd_si512(near), _mm512_set1_epi64(float32_tie - tie_margin)),
                         _mm512_set1_epi64(2 * float32_tie - 1));
    unread |= _mm512_cmple_epu64_mask(from_tie, _mm512_set1_epi64(2 * tie_margin));
    _mm256_storeu_ps(out, _mm512_cvtpd_ps(_mm512_mask_or_pd(near, negative, near, _mm512_set1_pd(-0.0))));
    return unread;
}

}  // namespace

void read_eights(const char* text, const std::int32_t* stops, int n, float* out, std::uint8_t* unread) {
    for (int j = 0; j < n; ++j) unread[j] = static_cast<std::uint8_t>(read_eight(text, stops + 8 * j, out + 8 * j));
}

}  // namespace xpkern::csv::avx512
