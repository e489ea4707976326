"""The benchmarks themselves: each returns a duel, or figures of its own, on one pinned core."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import xpkern as xk
from bench.evaluation import FEW, MANY, multiply_adds_of_evaluation, seconds_per_evaluation
from bench.harness import Comparison, Contestant, compare, measure_once, null_run
from bench.peak import fma_peak
from bench.peers import NumpyFit, numpy_calibrate
from bench.stars import dense_whiteners, model_and_prior, observations, survey, survey_files
from xpkern.engine.contract import FitOptions, LossTerms, Solution, StarData
from xpkern.fit.fit import default_box
from xpkern.fit.start import start_grid
from xpkern.grid import N_BANDS
from xpkern.observe.calibration import Calibration
from xpkern.status import Status


@dataclass
class Result:
    """What one benchmark found.

    Attributes
    ----------
    name, unit : str
        ``unit`` is that of the rates, such as "stars/s".
    duel, null : Comparison, optional
        Ours against the peer, and ours against itself.
    extra : dict
        Other figures, each with its unit in its name.
    """

    name: str
    unit: str
    duel: Comparison | None = None
    null: Comparison | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain types, for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the result as text."""
        text = []
        for comparison in (self.duel, self.null):
            if comparison is not None:
                for rate in (comparison.ours, comparison.peer):
                    text.append(
                        f"{rate.name:58s} {rate.median:12,.0f} {self.unit} ({rate.lower:,.0f} ... {rate.upper:,.0f})"
                    )
                verdict = "" if comparison.differ else ": no difference"
                text.append(
                    f"{'    ratio':58s} {comparison.ratio:12.2f} "
                    f"({comparison.ratio_lower:.3f} ... {comparison.ratio_upper:.3f}){verdict}"
                )
        text += [f"{name:58s} {value:12,.3g}" for name, value in self.extra.items() if isinstance(value, float)]
        return text


def bench_fit(n_stars: int, rounds: int, engine_name: str) -> Result:
    """Stored whiteners to start, optimum and Fisher matrix, against Levenberg-Marquardt in NumPy from our starts."""
    model, prior = model_and_prior()
    obs = observations(n_stars)
    stars = obs.star_data()
    engine = xk.get_engine(engine_name)
    grid = start_grid(model, prior)
    starts = engine.start(grid, stars, FitOptions(), threads=1)[:, 0]
    box, terms, options = default_box(prior), LossTerms(), FitOptions()
    peer = NumpyFit(model, prior)
    few = slice(0, min(n_stars, 1024))
    whiteners = dense_whiteners(obs[few])

    def fit_from(start: Any) -> Callable[[], object]:
        return lambda: engine.fit(model, prior, stars, start, terms, box, options, threads=1)

    ours = Contestant("start + fit + Fisher", fit_from(grid), n_stars)
    theirs = Contestant(
        "NumPy Levenberg-Marquardt in float32 (fit only)",
        lambda: peer.run(starts[few], obs.flux[few], whiteners, obs.plx[few], obs.plx_err[few]),
        len(whiteners),
    )
    result = Result("fit", "stars/s", compare(ours, theirs, rounds=rounds), null_run(ours, rounds=rounds))
    solution = engine.fit(model, prior, stars, starts, terms, box, options, threads=1)
    _, peer_loss = theirs.run()
    result.extra = {
        "stars": n_stars,
        "stored whitener to optimum and Fisher [stars/s]": measure_once(
            Contestant("fit", fit_from(starts), n_stars), 3
        ),
        "start alone [stars/s]": measure_once(
            Contestant("start", lambda: engine.start(grid, stars, FitOptions(), threads=1)[:, 0], n_stars), 3
        ),
        "xpkern.fit, everything [stars/s]": measure_once(
            Contestant("xpkern.fit", lambda: xk.fit(obs, model, prior, engine=engine, threads=1), n_stars), 3
        ),
        "evaluations per star": float(np.mean(solution.iterations)),
        "share of stars whose loss the peer beats by 0.01": float(np.mean(peer_loss < solution.loss[few] - 0.01)),
        "share of stars whose loss beats the peer's by 0.01": float(np.mean(peer_loss > solution.loss[few] + 0.01)),
    }
    return result


def bench_calibrate(n_stars: int, rounds: int, engine_name: str) -> Result:
    """Coefficients with their covariance to flux and whitener, against the same by batched NumPy."""
    coefficients = survey(n_stars).coefficients
    calibration = Calibration.default()
    noise = model_and_prior()[0].noise
    engine = xk.get_engine(engine_name)
    no_band, no_error = np.zeros((n_stars, N_BANDS)), np.full((n_stars, N_BANDS), np.inf)
    few = slice(0, min(n_stars, 256))
    part = type(coefficients)(**{name: values[few] for name, values in vars(coefficients).items()})
    ours = Contestant(
        "flux and whitener",
        lambda: engine.calibrate(calibration, coefficients, noise, no_band, no_error, threads=1),
        n_stars,
    )
    peer = Contestant(
        "NumPy, batched, Cholesky by LAPACK", lambda: numpy_calibrate(calibration, part, noise), len(part.bp)
    )
    return Result(
        "calibrate",
        "stars/s",
        compare(ours, peer, rounds=rounds),
        null_run(ours, rounds=rounds),
        {"stars": n_stars},
    )


def bench_ingest(n_stars: int, rounds: int, engine_name: str) -> Result:
    """A bulk csv.gz file to a catalogue, against GaiaXPy's calibration of the plain csv, which fits nothing."""
    import gaiaxpy

    files = survey_files(n_stars)
    model, prior = model_and_prior()
    catalog = files.spectra.with_name("catalog.h5")
    rows_of_peer = min(n_stars, 256)
    plain = _plain_csv(files.spectra, rows_of_peer)
    calibration = Calibration.default()

    def make_catalog() -> None:
        xk.make_catalog(
            [files.spectra],
            catalog,
            gaia_source=files.gaia_source,
            model=model,
            prior=prior,
            engine=engine_name,
            threads=1,
        )

    def read() -> None:
        for _ in xk.iter_xp([files.spectra], gaia_source=files.gaia_source, engine=engine_name, threads=1):
            pass

    def calibrate_by_gaiaxpy() -> None:
        with silenced():
            gaiaxpy.calibrate(plain, sampling=calibration.wavelength, save_file=False)

    ours = Contestant("csv.gz to catalogue, end to end", make_catalog, n_stars)
    peer = Contestant("GaiaXPy calibrate, csv, without correlations", calibrate_by_gaiaxpy, rows_of_peer)
    result = Result("ingest", "rows/s", compare(ours, peer, rounds=rounds, repeats=1), None)
    result.extra = {
        "rows": n_stars,
        "gunzip alone [rows/s]": measure_once(Contestant("gunzip", lambda: _gunzip(files.spectra), n_stars), 3),
        "read to fluxes and whiteners [rows/s]": measure_once(Contestant("read", read, n_stars), 3),
        "compressed size of a row [B]": files.spectra.stat().st_size / n_stars,
    }
    return result


def bench_peak(n_stars: int, rounds: int, engine_name: str) -> Result:
    """The roof, this core's measured rate of fused multiply-adds, and the share of it that an evaluation reaches."""
    model, prior = model_and_prior()
    obs = observations(n_stars)
    stars = obs.star_data()
    engine = xk.get_engine(engine_name)
    starts = engine.start(start_grid(model, prior), stars, FitOptions(), threads=1)[:, 0]
    box, terms = default_box(prior), LossTerms()

    def fit_with_at_most(evaluations: int) -> Solution:
        # An infinite tolerance ends the fit at the first double-precision evaluation.
        options = FitOptions(max_iterations=evaluations, tolerance=np.inf)
        return engine.fit(model, prior, stars, starts, terms, box, options, threads=1)

    # Stars so far from the optimum that their Hessian is not definite would be handed to the slow path, and not always
    # the same number of them: leave them out.
    rescued = [(fit_with_at_most(number).status & np.uint32(Status.RESCUED)) != 0 for number in (FEW, MANY)]
    kept = np.flatnonzero(~np.logical_or(*rescued))
    stars = StarData(*(getattr(stars, name)[kept] for name in ("flux", "whitener", "mean", "sigma")))
    starts = starts[kept]

    isa = engine.instruction_set
    before = fma_peak(isa)
    seconds = seconds_per_evaluation(fit_with_at_most, len(kept), rounds=rounds)
    peak = 0.5 * (before + fma_peak(isa))
    operations = 2.0 * sum(multiply_adds_of_evaluation(model).values())
    result = Result("peak", "GFLOP/s")
    result.extra = {
        "stars": len(kept),
        "instruction set": isa,
        "peak of one core, float32 [GFLOP/s]": peak,
        "operations of one evaluation [kFLOP]": operations * 1e-3,
        "one evaluation of one star [us]": seconds * 1e6,
        "evaluation [GFLOP/s]": operations / seconds * 1e-9,
        "evaluation, share of peak": operations / seconds * 1e-9 / peak,
    }
    return result


@contextmanager
def silenced() -> Iterator[None]:
    """Send standard output and error nowhere, progress bars of libraries that hold on to them included."""
    kept = [os.dup(number) for number in (1, 2)]
    with open(os.devnull, "w") as nowhere:
        try:
            for number in (1, 2):
                os.dup2(nowhere.fileno(), number)
            yield
        finally:
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)


def _gunzip(path: Path) -> None:
    from isal import igzip

    with igzip.open(path, "rb") as stream:
        while stream.read(1 << 20):
            pass


def _plain_csv(path: Path, rows: int) -> Path:
    """Return the first rows as plain csv without the ECSV header: the form that GaiaXPy reads fastest."""
    target = path.with_name("plain.csv")
    with gzip.open(path, "rt") as source, open(target, "w") as sink:
        lines = (line for line in source if not line.startswith("#"))
        for _, line in zip(range(rows + 1), lines, strict=False):
            sink.write(line)
    return target


#: Benchmarks by name: (function, default number of stars).
BENCHMARKS = {
    "peak": (bench_peak, 4096),
    "fit": (bench_fit, 4096),
    "calibrate": (bench_calibrate, 4096),
    "ingest": (bench_ingest, 4096),
}
