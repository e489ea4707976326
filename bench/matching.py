"""How fast two catalogues are matched on the sky, from files to a file, beside what matches them in memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.spatial import cKDTree

from bench.harness import Contestant, compare, measure_once, null_run
from bench.result import Result
from bench.stars import SEED
from xpkern.catalog.match import match_tables
from xpkern.observe.crossmatch import ARCSEC, cross_match, unit_vectors

#: Radius of a match, and scatter of the matches [arcsec].
RADIUS, SCATTER = 0.5, 0.1

#: Share of the rows that are near a source, and of the sources that lie towards the plane of the Galaxy.
NEAR, CROWDED = 0.8, 0.5

#: Rounds of a duel at most: one takes minutes.
MOST_ROUNDS = 3

#: What a fresh Python does to tell the memory of one way to match.
CHILD = """
import re, sys
from pathlib import Path
from bench.matching import WAYS
WAYS[sys.argv[1]](Path(sys.argv[2]))
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def bench_crossmatch(n_rows: int, rounds: int, _engine: str) -> Result:
    """Two catalogues of so many rows, files to file out of memory, against astropy and SciPy in memory, files read."""
    rounds = min(rounds, MOST_ROUNDS)
    with tempfile.TemporaryDirectory(prefix="xpkern-bench-") as name:
        folder = Path(name)
        make_sky(folder, n_rows)
        ours = Contestant("xpkern match: two files to one, out of memory", lambda: by_files(folder), n_rows)
        peers = {
            "astropy match_to_catalog_sky: two files, in memory": by_astropy,
            "SciPy cKDTree of unit vectors: two files, in memory": by_scipy,
            "xpkern cross_match: two files, in memory": in_memory,
        }
        duels = [
            compare(ours, Contestant(what, lambda run=run: run(folder), n_rows), rounds=rounds, repeats=1)
            for what, run in peers.items()
        ]
        found, expected = by_files(folder), by_astropy(folder)
        extra: dict[str, Any] = {
            "rows of each": n_rows,
            "matches": len(found),
            "matches that astropy does not find, and the reverse": len(np.setxor1d(found, expected)),
            "bytes of both files a row": sum(path.stat().st_size for path in folder.glob("*s.h5")) / n_rows,
            "reading alone [us a row of each]": 1e6 / measure_once(Contestant("", lambda: read(folder), n_rows), 3),
        }
        for what in WAYS:
            extra[f"{what}: peak memory [MB]"] = peak_memory(what, folder)
        null = null_run(ours, rounds=rounds, repeats=1)
    return Result("crossmatch", "rows/s", duels, null, extra)


def make_sky(folder: Path, n_rows: int) -> None:
    """Write sources, half of them within some degrees of a great circle, and rows most of which are near a source."""
    rng = np.random.default_rng(SEED)
    crowded = rng.random(n_rows) < CROWDED
    sine = np.where(crowded, np.clip(rng.laplace(0.0, 0.1, n_rows), -1, 1), rng.uniform(-1, 1, n_rows))
    tilted = _tilted(rng.uniform(0, 2 * np.pi, n_rows), sine)
    ra = np.degrees(np.arctan2(tilted[:, 1], tilted[:, 0])) % 360
    dec = np.degrees(np.arcsin(np.clip(tilted[:, 2], -1, 1)))
    near = rng.permutation(n_rows)[: int(NEAR * n_rows)]
    other_dec = np.degrees(np.arcsin(rng.uniform(-1, 1, n_rows)))
    other_ra = rng.uniform(0, 360, n_rows)
    other_dec[: len(near)] = np.clip(dec[near] + rng.normal(0, SCATTER / 3600, len(near)), -90, 90)
    other_ra[: len(near)] = (ra[near] + rng.normal(0, SCATTER / 3600, len(near)) / np.cos(np.radians(dec[near]))) % 360
    shuffled = rng.permutation(n_rows)
    with h5py.File(folder / "sources.h5", "w") as file:
        file["source_id"] = rng.permutation(n_rows) * ((1 << 62) // n_rows)
        file["ra"], file["dec"] = ra, dec
    with h5py.File(folder / "rows.h5", "w") as file:
        file["ra"], file["dec"] = other_ra[shuffled], other_dec[shuffled]
        file["number"] = np.arange(n_rows)
        for band in ("w1", "w2"):
            file[f"flux_{band}"] = rng.lognormal(3, 1, n_rows).astype(np.float32)


def read(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Both files, whole."""
    tables = []
    for name in ("sources", "rows"):
        with h5py.File(folder / f"{name}.h5") as file:
            tables.append({column: data[()] for column, data in file.items()})
    return tables[0], tables[1]


def by_files(folder: Path) -> np.ndarray:
    """Pairs, as one number each, by ``xpkern match``."""
    match_tables(
        folder / "rows.h5", folder / "sources.h5", folder / "matched.h5", radius=RADIUS, threads=1, overwrite=True
    )
    with h5py.File(folder / "matched.h5") as file:
        return _pairs(file["source_id"][()], file["number"][()])


def by_astropy(folder: Path) -> np.ndarray:
    """Pairs by astropy."""
    from astropy.coordinates import SkyCoord

    sources, rows = read(folder)
    here, there = (SkyCoord(table["ra"], table["dec"], unit="deg") for table in (sources, rows))
    row, apart, _ = here.match_to_catalog_sky(there)
    near = apart.arcsec < RADIUS
    return _pairs(sources["source_id"][near], row[near])


def by_scipy(folder: Path) -> np.ndarray:
    """Pairs by a k-d tree of all rows, as one writes it oneself."""
    sources, rows = read(folder)
    tree = cKDTree(unit_vectors(rows["ra"], rows["dec"])[0])
    here, _ = unit_vectors(sources["ra"], sources["dec"])
    chord, row = tree.query(here, distance_upper_bound=2 * np.sin(0.5 * RADIUS / ARCSEC))
    near = np.isfinite(chord)
    return _pairs(sources["source_id"][near], row[near])


def in_memory(folder: Path) -> np.ndarray:
    """Pairs by xpkern's core alone, of the whole catalogues at once."""
    sources, rows = read(folder)
    found = cross_match(sources["ra"], sources["dec"], rows["ra"], rows["dec"], RADIUS)
    return _pairs(sources["source_id"][found.source], found.row)


#: Ways to match by name.
WAYS = {"xpkern match": by_files, "astropy": by_astropy, "SciPy": by_scipy, "xpkern in memory": in_memory}


def peak_memory(way: str, folder: Path) -> float:
    """High-water mark of the resident memory [MB] of a process of its own that matches."""
    checkout = str(Path(__file__).parents[1])
    search = os.pathsep.join([checkout, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, way, str(folder)],
        env=os.environ | {"PYTHONPATH": search},
        check=True,
        capture_output=True,
        text=True,
    )
    return float(child.stdout.split()[-1]) * 1024e-6


def _tilted(longitude: np.ndarray, sine: np.ndarray) -> np.ndarray:
    """Unit vectors, the equator tilted by 60 degrees, as the plane of the Galaxy is."""
    cosine = np.sqrt(1 - sine**2)
    x, y = cosine * np.cos(longitude), cosine * np.sin(longitude)
    tilt = np.radians(60.0)
    return np.column_stack([x, y * np.cos(tilt) - sine * np.sin(tilt), y * np.sin(tilt) + sine * np.cos(tilt)])


def _pairs(source_id: np.ndarray, row: np.ndarray) -> np.ndarray:
    """One number for each pair: the rows are fewer than 2^24."""
    return np.sort(source_id.astype(np.uint64) * np.uint64(1 << 24) + row.astype(np.uint64))
