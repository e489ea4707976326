// Parquet as far as columns need it whose rows are lists of one length: where their pages are, and the headers, levels
// and values of these.
//
// A list column has two levels with each of its numbers: the repetition level is 0 where a row begins and 1 within it,
// the definition level is the largest there is where nothing is missing. Levels, and places in a dictionary, are stored
// as runs: of one value that repeats, or of values packed in a few bits each. Rows of one length without gaps make a
// pattern that can be told from the bytes, eight levels at a time, and then the values of a page are plain arrays.
//
// Every function here returns false for what it does not understand, which may be damaged or only unusual, and reads
// nothing outside of the bytes that it is given.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace xpkern::parquet {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "numbers are taken as they lie in the file");

// What is left to read.
struct Bytes {
    const std::uint8_t* at;
    const std::uint8_t* end;

    std::int64_t size() const { return end - at; }

    bool skip(std::uint64_t count) {
        if (count > static_cast<std::uint64_t>(size())) return false;
        at += count;
        return true;
    }

    bool read_byte(unsigned& value) {
        if (at == end) return false;
        value = *at++;
        return true;
    }

    // Seven bits a byte, the lowest first, as long as the highest bit of a byte is set.
    bool read_varint(std::uint64_t& value) {
        value = 0;
        for (int shift = 0; shift < 64; shift += 7) {
            unsigned byte = 0;
            if (!read_byte(byte)) return false;
            value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
            if (byte < 0x80) return true;
        }
        return false;
    }

    // Small positive and negative numbers in turns.
    bool read_zigzag(std::int64_t& value) {
        std::uint64_t number = 0;
        if (!read_varint(number)) return false;
        value = static_cast<std::int64_t>(number >> 1) ^ -static_cast<std::int64_t>(number & 1);
        return true;
    }
};

// ---- structures in Thrift's compact protocol

enum : unsigned { stop, yes, no, byte, short_integer, integer, long_integer, real, binary, list, set, map, structure };

// Numbers of fields have 16 bits.
inline constexpr std::int64_t largest_field = 32767;

// Structures within structures; Parquet has five at most.
inline constexpr int deepest = 16;

// Reads the fields of a structure: on_field(number, type) must read the value, and say whether it could.
template <class OnField>
bool read_fields(Bytes& bytes, OnField on_field) {
    std::int64_t field = 0;
    for (;;) {
        unsigned head = 0;
        if (!bytes.read_byte(head)) return false;
        const unsigned type = head & 0xf, step = head >> 4;
        if (type == stop) return true;
        if (step != 0) {
            field += step;
        } else if (!bytes.read_zigzag(field)) {
            return false;
        }
        if (field < 1 || field > largest_field || !on_field(field, type)) return false;
    }
}

// Reads the elements of a list: on_element(type) must read one, and say whether it could.
template <class OnElement>
bool read_list(Bytes& bytes, OnElement on_element) {
    unsigned head = 0;
    if (!bytes.read_byte(head)) return false;
    std::uint64_t size = head >> 4;
    if (size == 15 && !bytes.read_varint(size)) return false;
    for (; size > 0; --size)
        if (!on_element(head & 0xf)) return false;
    return true;
}

// Reads a whole number or a truth value.
inline bool read_integer(Bytes& bytes, unsigned type, std::int64_t& value) {
    unsigned small = 0;
    switch (type) {
        case yes:
        case no:
            value = type == yes;
            return true;
        case byte:
            if (!bytes.read_byte(small)) return false;
            value = static_cast<std::int8_t>(small);
            return true;
        case short_integer:
        case integer:
        case long_integer:
            return bytes.read_zigzag(value);
        default:
            return false;
    }
}

inline bool skip_value(Bytes& bytes, unsigned type, int depth = 0) {
    std::int64_t number = 0;
    std::uint64_t length = 0;
    if (depth > deepest) return false;
    // each truth value in a list has a byte, and so at least has anything else
    const auto skip_element = [&](unsigned of) {
        return of == yes || of == no ? bytes.skip(1) : skip_value(bytes, of, depth + 1);
    };
    switch (type) {
        case real:
            return bytes.skip(8);
        case binary:
            return bytes.read_varint(length) && bytes.skip(length);
        case list:
        case set:
            return read_list(bytes, skip_element);
        case map: {
            unsigned types = 0;
            if (!bytes.read_varint(length)) return false;
            if (length != 0 && !bytes.read_byte(types)) return false;
            for (; length > 0; --length)
                if (!skip_element(types >> 4) || !skip_element(types & 0xf)) return false;
            return true;
        }
        case structure:
            return read_fields(bytes, [&](std::int64_t, unsigned of) { return skip_value(bytes, of, depth + 1); });
        default:
            return read_integer(bytes, type, number);
    }
}

// What stands for a number that is not there.
inline constexpr std::int64_t absent = -1;

// The whole numbers of a structure by their field; all others are skipped.
template <std::size_t size>
bool read_numbers(Bytes& bytes, std::array<std::int64_t, size>& numbers) {
    numbers.fill(absent);
    return read_fields(bytes, [&](std::int64_t field, unsigned type) {
        const bool is_number = (type >= yes && type <= long_integer) && static_cast<std::size_t>(field) < size;
        return is_number ? read_integer(bytes, type, numbers[static_cast<std::size_t>(field)])
                         : skip_value(bytes, type);
    });
}

// ---- the description at the end of a file

// What a file says of one column in one row group; `absent` where it does not.
struct ColumnChunk {
    std::int64_t type = absent, codec = absent, n_values = absent, size = absent, stored_size = absent;
    std::int64_t first_page = absent, dictionary_page = absent, is_elsewhere = 0;
};

struct RowGroup {
    std::int64_t n_rows = absent;
    std::vector<ColumnChunk> columns;
};

inline bool read_column_chunk(Bytes& bytes, ColumnChunk& chunk) {
    return read_fields(bytes, [&](std::int64_t field, unsigned type) {
        if (field == 1) chunk.is_elsewhere = 1;  // in the file that is named here
        if (field != 3 || type != structure) return skip_value(bytes, type);
        std::array<std::int64_t, 12> n;
        if (!read_numbers(bytes, n)) return false;
        chunk.type = n[1], chunk.codec = n[4], chunk.n_values = n[5], chunk.size = n[6], chunk.stored_size = n[7];
        chunk.first_page = n[9], chunk.dictionary_page = n[11];
        return true;
    });
}

inline bool read_row_group(Bytes& bytes, RowGroup& group) {
    return read_fields(bytes, [&](std::int64_t field, unsigned type) {
        if (field == 3 && type == long_integer) return read_integer(bytes, type, group.n_rows);
        if (field != 1 || type != list) return skip_value(bytes, type);
        return read_list(bytes, [&](unsigned of) {
            group.columns.emplace_back();
            return of == structure && read_column_chunk(bytes, group.columns.back());
        });
    });
}

inline bool read_row_groups(Bytes bytes, std::vector<RowGroup>& groups) {
    return read_fields(bytes, [&](std::int64_t field, unsigned type) {
        if (field != 4 || type != list) return skip_value(bytes, type);
        return read_list(bytes, [&](unsigned of) {
            groups.emplace_back();
            return of == structure && read_row_group(bytes, groups.back());
        });
    });
}

// ---- page headers

// What the header of a page says; `absent` where it does not.
struct PageHeader {
    std::int64_t length = absent;  // of the header itself
    std::int64_t kind = absent, size = absent, stored_size = absent, n_values = absent, encoding = absent;
    // of a page of the first kind
    std::int64_t definition_encoding = absent, repetition_encoding = absent;
    // of a page of the second kind, whose levels are never compressed
    std::int64_t definition_size = absent, repetition_size = absent, is_compressed = absent;
};

enum : std::int64_t { data_page = 0, index_page = 1, dictionary_page = 2, data_page_2 = 3 };

inline bool read_header(Bytes bytes, PageHeader& header) {
    const std::uint8_t* const begin = bytes.at;
    std::array<std::int64_t, 9> page, inner;
    page.fill(absent);
    inner.fill(absent);
    const bool is_whole = read_fields(bytes, [&](std::int64_t field, unsigned type) {
        const auto at = static_cast<std::size_t>(field);
        if (type == structure && at < page.size()) {  // what depends on the kind of the page
            page[at] = 1;
            return read_numbers(bytes, inner);
        }
        return at < 5 ? read_integer(bytes, type, page[at]) : skip_value(bytes, type);
    });
    if (!is_whole) return false;
    header = PageHeader{};
    header.length = bytes.at - begin;
    header.kind = page[1];
    header.size = page[2];
    header.stored_size = page[3];
    header.n_values = inner[1];
    header.encoding = inner[header.kind == data_page_2 ? 4 : 2];
    switch (header.kind) {
        case data_page:
            header.definition_encoding = inner[3];
            header.repetition_encoding = inner[4];
            return page[5] == 1;
        case index_page:
            return true;
        case dictionary_page:
            return page[7] == 1;
        case data_page_2:
            header.definition_size = inner[5];
            header.repetition_size = inner[6];
            header.is_compressed = inner[7] != 0;  // unless it says that it is not
            return page[8] == 1;
        default:
            return false;
    }
}

// ---- runs

struct Run {
    std::int64_t count;          // of its values
    const std::uint8_t* packed;  // where it holds values one after the other, each of some bits; else null
    std::uint32_t value;         // of all, if not
};

// Reads a run of at most `left` values of `width` bits (at most 32), of which a run may claim more.
inline bool read_run(Bytes& bytes, int width, std::int64_t left, Run& run) {
    std::uint64_t head = 0;
    if (!bytes.read_varint(head) || head >> 1 == 0) return false;
    run = {0, nullptr, 0};
    if (head & 1) {
        const std::uint64_t groups = head >> 1;
        if (groups > std::uint64_t{1} << 32) return false;
        run.packed = bytes.at;
        run.count = std::min(left, static_cast<std::int64_t>(8 * groups));
        return bytes.skip(groups * static_cast<std::uint64_t>(width));
    }
    run.count = static_cast<std::int64_t>(std::min(static_cast<std::uint64_t>(left), head >> 1));
    const std::uint64_t size = (static_cast<std::uint64_t>(width) + 7) / 8;
    if (size > static_cast<std::uint64_t>(bytes.size())) return false;
    std::memcpy(&run.value, bytes.at, size);
    return bytes.skip(size);
}

// ---- levels

// Whether `count` definition levels all are the largest, which is 1, 2 or 3.
inline bool all_defined(Bytes bytes, std::int64_t count, unsigned largest) {
    const int width = largest > 1 ? 2 : 1;
    const unsigned in_byte = 8 / static_cast<unsigned>(width), pattern = largest == 2 ? 0xaa : 0xff;
    while (count > 0) {
        Run run;
        if (!read_run(bytes, width, count, run)) return false;
        if (run.packed == nullptr) {
            if (run.value != largest) return false;
        } else {
            const std::int64_t whole = run.count / in_byte, rest = run.count % in_byte;
            for (std::int64_t i = 0; i < whole; ++i)
                if (run.packed[i] != pattern) return false;
            const unsigned mask = (1u << (rest * width)) - 1;
            if (rest != 0 && ((run.packed[whole] ^ pattern) & mask) != 0) return false;
        }
        count -= run.count;
    }
    return true;
}

// Whether rows of `size` values begin where `count` repetition levels say so; `before` values of the first row have
// come already.
inline bool rows_begin(Bytes bytes, std::int64_t count, std::int64_t size, std::int64_t before) {
    std::int64_t until = (size - before) % size;  // the next row begins
    while (count > 0) {
        Run run;
        if (!read_run(bytes, 1, count, run)) return false;
        count -= run.count;
        if (run.packed != nullptr) {
            for (std::int64_t i = 0; i < run.count; i += 8) {
                const std::int64_t in_byte = std::min<std::int64_t>(8, run.count - i);
                unsigned expected = 0xff;
                for (; until < in_byte; until += size) expected &= ~(1u << until);
                until -= in_byte;
                if (((run.packed[i / 8] ^ expected) & ((1u << in_byte) - 1)) != 0) return false;
            }
        } else if (run.value == 1) {
            if (until < run.count) return false;
            until -= run.count;
        } else {
            if (run.value != 0 || until != 0 || (size > 1 && run.count > 1)) return false;
            until = size - 1;
        }
    }
    return true;
}

// ---- values

// Values (count,) of `out` from their places in a dictionary of so many; both hold numbers of one type.
template <class T>
bool look_up(Bytes bytes, const T* dictionary, std::int64_t n_entries, T* out, std::int64_t count) {
    unsigned bits = 0;
    if (!bytes.read_byte(bits) || bits > 32) return false;
    const int width = static_cast<int>(bits);
    const std::uint64_t mask = (std::uint64_t{1} << width) - 1, entries = static_cast<std::uint64_t>(n_entries);
    while (count > 0) {
        Run run;
        if (!read_run(bytes, width, count, run)) return false;
        if (run.packed == nullptr) {
            if (run.value >= entries) return false;
            std::fill_n(out, run.count, dictionary[run.value]);
        } else {
            const std::int64_t size = (run.count * width + 7) / 8;
            for (std::int64_t i = 0; i < run.count; ++i) {
                const std::int64_t bit = i * width, first = bit / 8;
                std::uint64_t word = 0;
                if (size - first >= 8)
                    std::memcpy(&word, run.packed + first, 8);
                else
                    std::memcpy(&word, run.packed + first, static_cast<std::size_t>(size - first));
                const std::uint64_t place = word >> (bit % 8) & mask;
                if (place >= entries) return false;
                out[i] = dictionary[place];
            }
        }
        out += run.count;
        count -= run.count;
    }
    return true;
}

// Numbers whose first bytes come one after the other, then their second bytes, and so on (BYTE_STREAM_SPLIT).
template <class Word>
void join_streams(const std::uint8_t* streams, std::int64_t count, Word* out) {
    for (std::int64_t i = 0; i < count; ++i) {
        Word word = 0;
        for (std::size_t k = 0; k < sizeof(Word); ++k)
            word |= static_cast<Word>(streams[static_cast<std::int64_t>(k) * count + i]) << (8 * k);
        out[i] = word;
    }
}

}  // namespace xpkern::parquet
