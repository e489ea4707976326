"""The report of a catalogue: time and memory, which must not grow with the number of stars."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.made_catalogue import write_made_catalogue
from bench.result import Result

#: The smaller of the two catalogues has this share of the stars of the larger one.
_SMALLER = 10

#: Run in a process of its own, whose peak memory is then the report's.
PROGRAM = """
import json, resource, sys, time
from xpkern.report.run import write_report
wall, own = time.perf_counter(), time.process_time()
write_report(sys.argv[1], sys.argv[2], labels=sys.argv[3])
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([time.perf_counter() - wall, time.process_time() - own, usage.ru_maxrss * 1024]))
"""


def bench_report(n_stars: int, rounds: int, engine: str) -> Result:
    """Time and peak memory of `xpkern report` with labels for half of the stars, and of a tenth of the catalogue."""
    del rounds, engine  # a report takes a minute; nothing is fitted
    result = Result("report", "stars/s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for n in (max(n_stars // _SMALLER, 10), n_stars):
            catalog, labels = folder / f"{n}.h5", folder / f"{n}.fits"
            write_made_catalogue(catalog, n, labels=labels)
            arguments = [str(catalog), str(folder / f"report-{n}"), str(labels)]
            ran = subprocess.run(
                [sys.executable, "-c", PROGRAM, *arguments], check=True, capture_output=True, text=True
            )
            wall, own, peak = json.loads(ran.stdout)
            result.extra |= {
                f"{n:,} stars: wall time [s]": wall,
                f"{n:,} stars: CPU time [s]": own,
                f"{n:,} stars: peak memory [MB]": peak / 1e6,
                f"{n:,} stars: index.html [MB]": (folder / f"report-{n}" / "index.html").stat().st_size / 1e6,
            }
    return result
