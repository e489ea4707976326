// Parquet's pages under the sanitizers: levels and dictionaries against a decoder of one bit at a time, and damaged
// bytes in buffers that end where the page does.
#include "check.hpp"
#include "cpu/parquet_page.hpp"

#include <cstdio>
#include <cstring>
#include <vector>

using namespace xpkern::parquet;

using Buffer = std::vector<std::uint8_t>;

static Bytes bytes_of(const Buffer& buffer) {
    return {buffer.data(), buffer.data() + buffer.size()};
}

static void put_varint(Buffer& out, std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) out.push_back(static_cast<std::uint8_t>(value | 0x80));
    out.push_back(static_cast<std::uint8_t>(value));
}

// Values as runs of either kind; a packed one is of whole groups of eight, so that all but the last hold nothing else.
static Buffer runs_of(const std::vector<std::uint32_t>& values, int width, Random& random) {
    Buffer out;
    for (std::size_t at = 0; at < values.size();) {
        std::size_t equal = 1;
        while (at + equal < values.size() && values[at + equal] == values[at]) ++equal;
        if (equal >= 8 || random.bits() % 8 == 0) {
            put_varint(out, equal << 1);
            for (int byte = 0; byte < (width + 7) / 8; ++byte)
                out.push_back(static_cast<std::uint8_t>(values[at] >> (8 * byte)));
            at += equal;
            continue;
        }
        const std::size_t groups = 1 + random.bits() % 4;
        put_varint(out, groups << 1 | 1);
        Buffer packed(groups * static_cast<std::size_t>(width));
        for (std::size_t i = 0; i < 8 * groups && at < values.size(); ++i, ++at)
            for (std::size_t bit = 0; bit < static_cast<std::size_t>(width); ++bit)
                if (values[at] >> bit & 1) packed[(i * width + bit) / 8] |= 1 << (i * width + bit) % 8;
        out.insert(out.end(), packed.begin(), packed.end());
    }
    return out;
}

// Values of runs, as many as there are, up to `count`.
static std::vector<std::uint32_t> decoded(const Buffer& runs, int width, std::size_t count) {
    std::vector<std::uint32_t> values;
    std::size_t at = 0;
    while (values.size() < count) {
        std::uint64_t head = 0;
        int shift = 0;
        for (;; shift += 7, ++at) {
            if (at == runs.size() || shift > 63) return values;
            head |= static_cast<std::uint64_t>(runs[at] & 0x7f) << shift;
            if (runs[at] < 0x80) break;
        }
        ++at;
        if (head >> 1 == 0) return values;
        const bool is_packed = head & 1;
        const std::uint64_t bytes = is_packed ? (head >> 1) * static_cast<std::uint64_t>(width) : (width + 7) / 8;
        if (bytes > runs.size() - at || head >> 33 > 0) return values;
        for (std::uint64_t i = 0; i < (head >> 1) * (is_packed ? 8 : 1) && values.size() < count; ++i) {
            std::uint32_t value = 0;
            for (int bit = 0; bit < (is_packed ? width : 8 * static_cast<int>(bytes)); ++bit) {
                const std::size_t place = (is_packed ? i * width : 0) + bit;
                value |= static_cast<std::uint32_t>(runs[at + place / 8] >> place % 8 & 1) << bit;
            }
            values.push_back(value);
        }
        at += bytes;
    }
    return values;
}

static void damage(Buffer& buffer, Random& random) {
    if (buffer.empty()) return;
    const std::size_t place = random.bits() % buffer.size();
    if (random.bits() % 3 == 0)
        buffer.resize(place);
    else
        buffer[place] ^= 1 << random.bits() % 8;
    buffer.shrink_to_fit();  // so that what is behind it is no longer its own
}

static void test_levels() {
    Random random(3);
    int regular = 0, irregular = 0;
    for (int repeat = 0; repeat < 20000; ++repeat) {
        const std::size_t size = 1 + random.bits() % 40, before = random.bits() % size, count = random.bits() % 300;
        const unsigned largest = 1 + random.bits() % 3;
        std::vector<std::uint32_t> repetition(count), definition(count, largest);
        for (std::size_t i = 0; i < count; ++i) repetition[i] = (before + i) % size != 0;
        const std::vector<std::uint32_t> expected[] = {repetition, definition};
        if (count && random.bits() % 4 == 0) repetition[random.bits() % count] ^= 1;
        if (count && random.bits() % 4 == 0) definition[random.bits() % count] = random.bits() % largest;
        Buffer levels[] = {runs_of(repetition, 1, random), runs_of(definition, largest > 1 ? 2 : 1, random)};
        for (Buffer& each : levels)
            if (random.bits() % 4 == 0) damage(each, random);
        const bool found[] = {rows_begin(bytes_of(levels[0]), static_cast<std::int64_t>(count),
                                         static_cast<std::int64_t>(size), static_cast<std::int64_t>(before)),
                              all_defined(bytes_of(levels[1]), static_cast<std::int64_t>(count), largest)};
        for (int i = 0; i < 2; ++i) {
            CHECK(found[i] == (decoded(levels[i], i && largest > 1 ? 2 : 1, count) == expected[i]));
            ++(found[i] ? regular : irregular);
        }
    }
    CHECK(regular > 10000 && irregular > 5000);
}

static void test_dictionaries() {
    Random random(4);
    for (int repeat = 0; repeat < 5000; ++repeat) {
        const int width = static_cast<int>(random.bits() % 21);
        std::vector<std::uint64_t> dictionary(1 + random.bits() % (1u << width));
        for (std::uint64_t& entry : dictionary) entry = random.bits();
        std::vector<std::uint32_t> places(random.bits() % 100);
        for (std::uint32_t& place : places) place = static_cast<std::uint32_t>(random.bits() % dictionary.size());
        if (random.bits() % 2 && !places.empty()) std::fill(places.begin() + places.size() / 2, places.end(), 0);
        Buffer page = runs_of(places, width, random);
        if (random.bits() % 4 == 0) damage(page, random);
        places = decoded(page, width, places.size());
        const std::size_t count = places.size();
        page.insert(page.begin(), static_cast<std::uint8_t>(width));
        page.shrink_to_fit();
        std::vector<std::uint64_t> out(count);
        bool is_good = true;
        for (const std::uint32_t place : places) is_good = is_good && place < dictionary.size();
        CHECK(look_up(bytes_of(page), dictionary.data(), static_cast<std::int64_t>(dictionary.size()), out.data(),
                      static_cast<std::int64_t>(count)) == is_good);
        for (std::size_t i = 0; is_good && i < count; ++i) CHECK(out[i] == dictionary[places[i]]);
        std::vector<std::uint64_t> more(count + 100000);  // than there are
        if (page.size() < 100)
            CHECK(!look_up(bytes_of(page), dictionary.data(), static_cast<std::int64_t>(dictionary.size()), more.data(),
                           static_cast<std::int64_t>(more.size())) ||
                  decoded(Buffer(page.begin() + 1, page.end()), width, more.size()).size() == more.size());
    }
}

static void test_streams() {
    const Buffer streams{1, 2, 3, 4, 5, 6, 7, 8};
    std::uint32_t words[2];
    join_streams(streams.data(), 2, words);
    CHECK(words[0] == 0x07050301 && words[1] == 0x08060402);
    std::uint64_t word = 0;
    join_streams(streams.data(), 1, &word);
    CHECK(word == 0x0807060504030201);
}

static void test_headers() {
    // a data page of 300 values, 1205 bytes, plain, with statistics
    const Buffer statistics{0x18, 2, 0xff, 0xff, 0x16, 0, 0x00};
    Buffer data{0x15, 0, 0x15, 0xea, 0x12, 0x15, 0xea, 0x12, 0x2c, 0x15, 0xd8, 0x04, 0x15, 0, 0x15, 6, 0x15, 6, 0x1c};
    data.insert(data.end(), statistics.begin(), statistics.end());
    data.insert(data.end(), {0, 0});
    // one of the second kind: 300 values, no null, 30 rows, plain, 40 and 50 bytes of levels, not compressed
    const Buffer second{0x15, 6,    0x15, 0xea, 0x12, 0x15, 0xea, 0x12, 0x5c, 0x15, 0xd8, 0x04, 0x15,
                        0,    0x15, 60,   0x15, 0,    0x15, 80,   0x15, 100,  0x12, 0,    0};
    PageHeader header;
    CHECK(read_header(bytes_of(data), header));
    CHECK(header.length == static_cast<std::int64_t>(data.size()) && header.kind == data_page);
    CHECK(header.size == 1205 && header.stored_size == 1205 && header.n_values == 300 && header.encoding == 0);
    CHECK(header.definition_encoding == 3 && header.repetition_encoding == 3);
    CHECK(read_header(bytes_of(second), header));
    CHECK(header.kind == data_page_2 && header.n_values == 300 && header.encoding == 0);
    CHECK(header.definition_size == 40 && header.repetition_size == 50 && header.is_compressed == 0);
    for (const Buffer* each : {static_cast<const Buffer*>(&data), &second}) {
        for (std::size_t size = 0; size < each->size(); ++size) {
            const Buffer cut(each->begin(), each->begin() + static_cast<std::ptrdiff_t>(size));
            CHECK(!read_header(bytes_of(cut), header));
        }
    }
    Random random(5);
    for (int repeat = 0; repeat < 100000; ++repeat) {
        Buffer any = random.bits() % 2 ? data : second;
        for (std::size_t n = 1 + random.bits() % 3; n > 0; --n) damage(any, random);
        if (repeat % 10 == 0)
            for (std::uint8_t& byte : any) byte = static_cast<std::uint8_t>(random.bits());
        if (read_header(bytes_of(any), header)) CHECK(header.length <= static_cast<std::int64_t>(any.size()));
    }
}

static void test_row_groups() {
    // two columns in one row group of 7 rows; lists, a map and truth values that are skipped
    const Buffer column{0x26, 8, 0x1c, 0x15, 8,    0x19, 0x25, 0,    6,    0x19, 0x18, 1,  'x',
                        0x15, 2, 0x16, 14,   0x16, 60,   0x16, 58,   0x26, 8,    0x26, 10, 0,
                        0x1b, 1, 0x88, 1,    'k',  1,    'v',  0x19, 0x22, 1,    2,    0};
    Buffer footer{0x15, 2, 0x26, 14, 0x19, 0x1c, 0x19, 0x2c};
    for (int i = 0; i < 2; ++i) footer.insert(footer.end(), column.begin(), column.end());
    footer.insert(footer.end(), {0x16, 100, 0x16, 14, 0, 0});
    std::vector<RowGroup> groups;
    CHECK(read_row_groups(bytes_of(footer), groups));
    CHECK(groups.size() == 1 && groups[0].n_rows == 7 && groups[0].columns.size() == 2);
    for (const ColumnChunk& c : groups[0].columns) {
        CHECK(c.type == 4 && c.codec == 1 && c.n_values == 7 && c.size == 30 && c.stored_size == 29);
        CHECK(c.first_page == 4 && c.dictionary_page == 5 && c.is_elsewhere == 0);
    }
    Random random(6);
    for (int repeat = 0; repeat < 30000; ++repeat) {
        Buffer any = footer;
        for (std::size_t n = 1 + random.bits() % 3; n > 0; --n) damage(any, random);
        groups.clear();
        if (read_row_groups(bytes_of(any), groups)) CHECK(groups.size() <= any.size());
    }
}

int main() {
    test_row_groups();
    test_levels();
    test_dictionaries();
    test_streams();
    test_headers();
    return failures() != 0;
}
