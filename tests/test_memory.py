"""Memory that blocks of stars give back stays with the process, unless its user has said what is to become of it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from xpkern.memory import VARIABLES

PROGRAM = """
import os
import numpy as np
from xpkern.memory import keep_memory
from xpkern.threads import in_order

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def block(_):
    arrays = [np.ones(20 << 20, np.uint8) for _ in range(6)]
    return len(arrays)

if {calls}:
    assert list(in_order(iter(range(3)), block, threads=1)) == [6, 6, 6]
print(keep_memory())
before = resident()
block(0)
print(resident() - before)
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc, whose malloc this is about")


def run(calls: bool = False, **environment: str) -> tuple[bool, int]:
    """Whether memory is kept, and by how many bytes the process grew by a block of 126 MB that it has freed again."""
    ours = {name: value for name, value in os.environ.items() if name not in (*VARIABLES, "GLIBC_TUNABLES")}
    program = PROGRAM.format(calls=calls)
    done = subprocess.run(
        [sys.executable, "-c", program], env=ours | environment, text=True, capture_output=True, check=True
    )
    is_kept, grown = done.stdout.split()
    return is_kept == "True", int(grown)


def test_what_a_block_gives_back_is_there_for_the_next_one():
    is_kept, grown = run()
    assert is_kept
    assert grown > 100 << 20
    is_kept, grown = run(calls=True)
    assert is_kept
    assert abs(grown) < 10 << 20  # the stream before has left all that is needed


@pytest.mark.parametrize(
    "environment", [{"MALLOC_TRIM_THRESHOLD_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=65536"}]
)
def test_what_the_environment_says_stays(environment):
    is_kept, grown = run(**environment)
    assert not is_kept
    assert abs(grown) < 10 << 20
