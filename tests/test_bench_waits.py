"""What is predicted by the waits in machine code: listings are read, routes followed and played as they should be."""

from __future__ import annotations

import sys

import pytest

from bench.__main__ import main
from bench.gpu import machine_code, nvrtc
from bench.gpu.machine_code import read_listing
from bench.gpu.playing import LATENCY, LostError, Route, follow, play

SOURCE = ["void made() {", "for (int i = 0; i < n; ++i) {", "if (rare) call();", "}", "if (common) {", "more();", "}"]
NONE = 7


@pytest.fixture(autouse=True)
def made_source(monkeypatch):
    monkeypatch.setitem(machine_code._lines, "core/made.hpp", SOURCE)


def instruction(text, stall=1, sets=NONE, reads=NONE, waits=(), line=1):
    """A line of a listing, with its place above it."""
    control = stall | sets << 5 | reads << 8 | sum(1 << barrier for barrier in waits) << 11
    return (
        f'\t//## File "/somewhere/csrc/core/made.hpp", line {line}\n'
        f"        /*0000*/                   {text} ;    /* 0x0000000000007918 */\n"
        f"                                               /* {control << 41 | 0x1FF:#018x} */\n"
    )


def listing(*rows, kernel="made"):
    return f"\t.section\t.text.{kernel}\n.text.{kernel}:\n{''.join(rows)}\t.section\t.text.other\n{instruction('EXIT')}"


def code(*rows):
    return read_listing(listing(*rows), "made")


def route(**more):
    return Route("made", "made", "made", warps=1, **more)


def test_a_listing_is_read():
    found = code(
        instruction("LDS.128 R4, [R2]", stall=3, sets=2, reads=5, waits=(0, 4), line=2),
        ".L_x_1:\n",
        '\t//## File "/somewhere/csrc/core/lane.hpp", line 9\n',
        instruction("@!P0 BRA `(.L_x_1)", line=5),
    )
    load, jump = found.instructions
    assert (load.operation, load.name, load.predicate, load.target) == ("LDS.128", "LDS", "", None)
    assert (load.stall, load.cleared_by_result, load.cleared_by_reading, load.waits) == (3, 2, 5, (0, 4))
    assert (load.file, load.line) == ("core/made.hpp", 2)
    assert (jump.predicate, jump.target, jump.cleared_by_result, jump.waits) == ("@!P0 ", ".L_x_1", None, ())
    assert found.labels == {".L_x_1": 1}
    assert found.is_of(0, "for (int i = 0")
    assert found.is_of(0, "++i) { if (rare)")  # goes on below
    assert not found.is_of(0, "if (rare)")  # begins below


@pytest.mark.parametrize(("text", "reason"), [("", "no kernel made"), (listing(), "no instruction of made")])
def test_what_is_no_listing_of_the_kernel_is_said(text, reason):
    with pytest.raises(ValueError, match=reason):
        read_listing(text, "made")


def test_a_route_goes_round_loops_and_over_rare_calls():
    made = code(
        ".L_x_0:\n",
        instruction("FADD R1, R1, R1"),
        instruction("@P0 BRA `(.L_x_1)", line=3),
        instruction("CALL.REL.NOINC `($rare$)"),
        ".L_x_1:\n",
        instruction("@P1 BRA `(.L_x_0)", line=2),
        instruction("@P2 BRA `(.L_x_2)", line=5),
        instruction("FMUL R1, R1, R1"),
        ".L_x_2:\n",
        instruction("EXIT"),
    )

    def names(**more):
        return [each.name for each in follow(made, route(passes={"for (int i": 3}, **more))]

    assert names() == ["FADD", "BRA", "BRA"] * 3 + ["BRA", "FMUL", "EXIT"]
    assert names(jumps=("if (common)",)) == ["FADD", "BRA", "BRA"] * 3 + ["BRA", "EXIT"]
    with pytest.raises(LostError, match=r"how often is the loop passed that ends at core/made\.hpp:2: for"):
        follow(made, route())
    with pytest.raises(LostError, match="'if \\(nowhere\\)'"):
        names(jumps=("if (nowhere)",))
    with pytest.raises(LostError, match="'if \\(common\\)'"):
        names(jumps=("if (common)",) * 2)  # it is met once


def test_a_line_is_jumped_from_as_often_as_it_is_given():
    jumps = [
        [instruction(f"@P0 BRA `(.L_x_{n})", line=5), instruction("FMUL R1, R1, R1"), f".L_x_{n}:\n"] for n in range(3)
    ]
    made = code(*(row for jump in jumps for row in jump), instruction("EXIT"))
    found = follow(made, route(jumps=("if (common)",) * 2))
    assert [each.name for each in found] == ["BRA", "BRA", "BRA", "FMUL", "EXIT"]


def test_a_called_function_is_followed_and_left():
    made = code(
        instruction("CALL.REL.NOINC `($made$function)"),
        instruction("EXIT"),
        "$made$function:\n",
        instruction("FADD R1, R1, R1"),
        instruction("RET.REL.NODEC R2 `(made)"),
    )
    assert [each.name for each in follow(made, route())] == ["CALL", "FADD", "RET", "EXIT"]


def test_a_pass_of_an_endless_loop_and_a_stretch():
    made = code(
        instruction("MOV R1, R2"),
        ".L_x_0:\n",
        instruction("FADD R1, R1, R1", line=5),
        instruction("FMUL R1, R1, R1", line=6),
        instruction("BRA `(.L_x_0)"),
    )
    assert [each.name for each in follow(made, route(loop="core/made.hpp"))] == ["FADD", "FMUL"]
    assert [each.name for each in follow(made, route(begins="if (common)", ends="more()"))] == ["FADD"]
    longer = code(
        ".L_x_0:\n",
        instruction("FADD R1, R1, R1"),
        ".L_x_1:\n",
        instruction("FMUL R1, R1, R1"),
        instruction("BRA `(.L_x_1)"),
        instruction("EXIT"),
        instruction("BRA `(.L_x_0)"),  # where lanes come together again: no loop
    )
    assert [each.name for each in follow(longer, route(loop="core/made.hpp"))] == ["FMUL"]
    with pytest.raises(LostError, match="no end after"):
        follow(made, route())
    with pytest.raises(LostError, match=r"no endless loop of core/other\.hpp"):
        follow(made, route(loop="core/other.hpp"))
    with pytest.raises(LostError, match="'less"):
        follow(made, route(begins="less()"))


def played(*rows, warps=1, schedulers=1, passes=1):
    return play(code(*rows).instructions, warps, schedulers=schedulers, passes=passes)


def test_a_warp_waits_for_a_result_and_for_the_instruction_before():
    found = played(
        instruction("LDS R1, [R2]", stall=2, sets=0), instruction("FADD R1, R1, R1", waits=(0,)), instruction("EXIT")
    )
    assert found.cycles == LATENCY["LDS"] + 1 + 1
    assert found.waited == {"LDS": LATENCY["LDS"] - 2, "held up by the instruction before": 1}
    assert found.spent == {"core/made.hpp:1": found.cycles}
    assert played(*[instruction("FADD R1, R1, R1", stall=4)] * 5).cycles == 20


def test_a_product_of_which_nobody_knows_the_size_is_said():
    with pytest.raises(LostError, match=r"which tiles\? DMMA R4"):
        played(instruction("DMMA R4, R8, R12, R4"))


def test_copies_are_waited_for_all_together():
    copies = [instruction("LDGSTS.E [R1], [R2]")] * 3
    without = played(*copies, instruction("EXIT")).cycles
    assert played(*copies, instruction("DEPBAR.LE SB0, 0x0"), instruction("EXIT")).cycles > without + 600


@pytest.mark.parametrize(
    ("text", "busy", "shared"),
    [
        ("DMMA.16x8x4 R4, R8, R12, R4", 16, False),
        ("DMMA.8x8x4 R4, R8, R12, R4", 8, False),
        ("DMMA.16x8x16 R4, R8, R12, R4", 64, False),
        ("DFMA R2, R4, R6, R8", 2, False),
        ("F2F.F64.F32 R2, R4", 8, False),
        ("LDS.128 R4, [R2]", 4, True),
        ("LDS.64 R4, [R2]", 2, True),
        ("FADD R1, R1, R1", 1, False),
    ],
)
def test_units_are_shared_by_the_warps_of_a_scheduler_and_memory_by_all(text, busy, shared):
    """Many warps of which none waits: then the unit alone is what counts."""
    rows = [instruction(text)] * 8
    for schedulers in (1, 4):
        found = played(*rows, warps=8, schedulers=schedulers, passes=4)
        expected = 8 * busy * (schedulers if shared else 1)
        assert found.cycles == pytest.approx(expected, rel=0.2)
        for share in found.busy.values():
            assert 0.8 < share <= 1


@pytest.mark.parametrize(("missing", "wheel"), [("nvdisasm", "nvdisasm"), ("libnvrtc", "nvrtc")])
def test_without_its_tools_it_says_so(missing, wheel, monkeypatch, capsys):
    monkeypatch.setattr(machine_code.shutil, "which", lambda name: None if name == missing else name)
    monkeypatch.setitem(sys.modules, "nvidia", None)  # no wheel of NVIDIA's is there
    assert main(["waits"]) == 1
    assert capsys.readouterr().err.startswith(f"bench waits: no {missing}: pip install nvidia-cuda-{wheel}")


def test_the_kernels_of_this_checkout_are_played(capsys):
    try:
        nvrtc.load_nvrtc()
        machine_code._find_disassembler()
    except ImportError as error:
        pytest.skip(str(error))
    assert main(["waits", "--lines", "1"]) == 0
    found = capsys.readouterr().out
    assert "PREDICTED, not measured" in found
    assert "MEASURED of" in found
    for kernel in ("an evaluation with its step", "train_stars", "train_model"):
        assert kernel in found
