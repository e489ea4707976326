"""Numbers in csv text are, to the last bit, what float() makes of them."""

import math
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xpkern.observe._csv import read_numbers


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def assert_exact(texts: list[str]) -> None:
    for text, value in zip(texts, read_numbers(texts), strict=True):
        assert bits(value) == bits(float(text)), (text, value, float(text))


decimals = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "-", "+"]),
    st.from_regex(r"[0-9]{1,24}", fullmatch=True),
    st.one_of(st.just(""), st.from_regex(r"\.[0-9]{0,24}", fullmatch=True)),
    st.one_of(st.just(""), st.integers(-400, 400).map("e{}".format), st.integers(0, 30).map("E+{}".format)),
)


@given(st.floats(allow_nan=False, allow_infinity=False))
@example(5e-324)
@example(2.2250738585072014e-308)
@example(1.7976931348623157e308)
@example(-0.0)
def test_shortest_decimals_of_any_float(value):
    assert_exact([repr(value), f"{value:.17e}", f"{value:.16G}"])


@given(st.floats(-1e6, 1e6), st.integers(0, 20))
def test_fixed_decimals_of_the_size_of_coefficients(value, digits):
    assert_exact([f"{value:.{digits}f}", f"{value:.{digits}E}"])


@given(decimals)
@example("9007199254740993")  # 2^53 + 1: a tie, to even
@example("9.703617325266347")  # 16 digits, the mantissa above 2^53
@example("9007199254740993.0000000000000000000000000001")
@example("0.500000000000000166533453693773481063544750213623046875")
@example("1844674407370955161.6")  # 2^64 / 10
@example("99999999999999999999")
@example("00000000000000000000000000000.1")
@example("0." + "0" * 400 + "1E401")
@example("1" + "0" * 400 + "e-400")
@example("1e400")
@example("-1e-400")
@example("0." + "0" * 400 + "1")
@example("1e99999999999999999999")
@example("0e99999999999999999999")
def test_any_decimal(text):
    assert_exact([text])


def test_many_numbers_of_every_length(rng):
    # where a number takes another route depends on how many digits it has: every length many times over
    texts = []
    for digits in range(1, 25):
        for value in rng.integers(0, 10, (300, digits)):
            text = "".join(map(str, value))
            point = int(rng.integers(0, digits + 1))
            texts += [f"{text[:1]}.{text[1:]}", f"-0.{text}", f"{text[:point]}.{text[point:]}", f"{text}E-{point}"]
    assert_exact(texts)


@given(st.integers(1, 2**64 - 1), st.integers(-30, 40))
def test_any_64_bit_integer_with_any_power_of_ten(mantissa, exponent):
    assert_exact([f"{mantissa}E{exponent}", f"-{mantissa}e{exponent}"])


@given(st.integers(2**52, 2**53 - 1), st.integers(-90, 0))
def test_halves_between_neighbours_round_to_even(mantissa, power):
    # m + 1/2 in units of the last place, written out in full: the hardest case there is
    tie = 2 * mantissa + 1
    digits = tie * 5 ** (1 - power)
    assert_exact([f"{digits}E{power - 1}", f"{digits}0001E{power - 5}", f"{digits - 1}E{power - 1}"])


def test_words_and_spellings():
    assert_exact(["1.", ".5", "-.5", "+1", "1E+5", "0", "-0", "0.0E0", "007", "Infinity", "-inf", "INF"])
    assert math.isnan(read_numbers(["NaN"])[0])
    assert math.isnan(read_numbers(["-nan"])[0])


@pytest.mark.parametrize(
    "text",
    ["", "-", "+", ".", "e5", "1e", "1e+", "--1", "+-1", "1.2.3", "0x10", "1_0", " 1", "1 ", "abc", "1,2", "na", "in"],
)
def test_what_is_no_number_is_refused(text):
    with pytest.raises(ValueError, match="not a number"):
        read_numbers([text])
