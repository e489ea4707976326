"""Everything about one star: its fit, its posterior, pictures and tables of both, in a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xpkern.catalog.pending import PendingFile, commit_together, refuse_taken
from xpkern.catalog.schema import PARAMETER_COLUMNS
from xpkern.engine.contract import Float64
from xpkern.errors import InputError
from xpkern.fit.posterior_result import COLUMNS, MEANING, Posterior, PosteriorFlag
from xpkern.fit.profiles import loss_profiles
from xpkern.status import MEANING as MEANING_OF_STATUS
from xpkern.status import UNFITTED, Status

if TYPE_CHECKING:
    from astropy.table import Table

#: Files of a star's folder, and what each is.
FILES = {
    "spectrum.png": "the spectrum, the best fit, what is left in standard errors, infrared bands",
    "corner.png": "the posterior of each parameter and of each pair, ellipses of the fit's errors, modes",
    "profiles.png": "the loss around the optimum along each parameter",
    "parameters.ecsv": "a row for each parameter: optimum, its error, quantiles, the catalogue's value",
    "modes.ecsv": "a row for each mode: where, its loss, its weight",
    "samples.ecsv": "the samples of the posterior with their weights",
    "summary.txt": "all of it in words",
}


@dataclass(frozen=True)
class CatalogRow:
    """What a catalogue says of the star.

    Attributes
    ----------
    name : str
        Of its file.
    values, errors : (5,) float64
        teff [kK], feh, logg [dex], ext [mag], plx [mas]; NaN where it has none.
    quality_flags : int
    """

    name: str
    values: Float64
    errors: Float64
    quality_flags: int


def catalog_row(source_id: int, paths: Sequence[str | os.PathLike[str]]) -> CatalogRow:
    """The star's row of a catalogue, ours in any format or the published one.

    Raises
    ------
    InputError
        If a file is no catalogue, or the source is not in it.
    """
    from xpkern.catalog.compare import read_catalog

    table = read_catalog(*paths, source_id=np.array([source_id]))
    rows = np.flatnonzero(np.asarray(table["source_id"]) == source_id)
    if not len(rows):
        where = os.fspath(paths[0]) if len(paths) == 1 else f"{len(paths)} files"
        raise InputError(f"{source_id} is not in this catalogue", file=where, field="source_id")
    row = table[int(rows[0])]
    factor = np.array([each[2] for each in COLUMNS])

    def numbers(ending: str) -> Float64:
        found = [np.ma.filled(np.ma.asarray(row[f"{c.name}{ending}"]).astype(float), np.nan) for c in PARAMETER_COLUMNS]
        return np.array(found, np.float64) / factor

    return CatalogRow(Path(paths[0]).name, numbers(""), numbers("_error"), int(row["quality_flags"]))


def write_star(
    folder: str | os.PathLike[str],
    found: Posterior,
    catalog: CatalogRow | None = None,
    *,
    overwrite: bool = False,
) -> list[Path]:
    """Write pictures and tables of one star; all of them appear at once, when the last one is complete.

    Parameters
    ----------
    folder : path-like
        Made if it does not exist.
    found : Posterior
        Of one star.
    catalog : CatalogRow, optional
        To stand beside it.
    overwrite : bool
        Whether files of these names are replaced.

    Returns
    -------
    list of Path

    Raises
    ------
    InputError
        If the star has no fit, or one of the files exists and is not to be replaced.
    """
    from xpkern.report import star_figures

    if len(found) != 1:
        raise InputError(f"{len(found)} stars, not one", field="found")
    refuse_unfitted(found)
    directory = Path(folder)
    check_folder(directory, overwrite=overwrite)
    directory.mkdir(parents=True, exist_ok=True)
    pending = {name: PendingFile(directory / name) for name in FILES}
    title = f"Gaia DR3 {int(found.source_id[0])}"
    samples = _samples_table(found)
    try:
        star_figures.draw_spectrum(pending["spectrum.png"].partial, found, 0, title)
        values = None if catalog is None else catalog.values
        star_figures.draw_corner(pending["corner.png"].partial, found, 0, title, values)
        star_figures.draw_profiles(
            pending["profiles.png"].partial, found, 0, loss_profiles(found), f"{title}: the loss around the optimum"
        )
        parameters = parameters_table(found, catalog)
        for name, table in (
            ("parameters.ecsv", parameters),
            ("modes.ecsv", found.modes_table()),
            ("samples.ecsv", samples),
        ):
            table.write(pending[name].partial, format="ascii.ecsv", overwrite=True)
        pending["summary.txt"].partial.write_text(summary(found, catalog), encoding="utf-8")
        commit_together([(file, file.final) for file in pending.values()])
    finally:
        for file in pending.values():
            file.discard()
    return [directory / name for name in FILES]


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raise an InputError if the folder cannot take a star's files."""
    if folder.exists() and not folder.is_dir():
        raise InputError("is a file; a star's pictures and tables need a folder", file=str(folder))
    if not folder.absolute().parent.is_dir():
        raise InputError("its folder does not exist", file=str(folder))
    for name in FILES:
        refuse_taken(folder / name, overwrite=overwrite)


def refuse_unfitted(found: Posterior) -> None:
    """Raise an InputError that says why the star has no fit, if it has none."""
    status = int(found.fit.status[0])
    if not status & int(UNFITTED):
        return
    reasons = [MEANING_OF_STATUS[bit] for bit in Status if bit & UNFITTED and status & bit]
    details = [f"{field}: {message}" if field else message for _, _, field, message in found.fit.observations.reasons]
    raise InputError(f"source {int(found.source_id[0])} cannot be fitted: {'; '.join([*reasons, *details[:1]])}")


def parameters_table(found: Posterior, catalog: CatalogRow | None = None) -> Table:
    """A row for each parameter: optimum, its error, posterior quantiles, and what a catalogue has.

    Values are in the unit of the row: K, dex, dex, mag, mas.
    """
    from astropy.table import Column, Table

    factor = np.array([each[2] for each in COLUMNS])
    error = np.sqrt(np.einsum("nkk->nk", found.fit.cov))[0]
    low, middle, high = found.interval[0] * factor
    table = Table({"parameter": [name for name, _, _ in COLUMNS], "unit": [unit for _, unit, _ in COLUMNS]})
    columns = {
        "optimum": (found.fit.params[0] * factor, "at the lowest minimum of the loss that the fit found"),
        "fit_error": (error * factor, "standard error of the fit"),
        "p16": (low, "posterior quantile at 15.87 %"),
        "p50": (middle, "posterior median"),
        "p84": (high, "posterior quantile at 84.13 %"),
        "width_ratio": (found.width_ratio[0], "(p84 - p16) / 2 over fit_error"),
    }
    if catalog is not None:
        columns["catalog"] = (catalog.values * factor, f"in {catalog.name}")
        columns["catalog_error"] = (catalog.errors * factor, f"standard error in {catalog.name}")
        columns["difference"] = ((found.fit.params[0] - catalog.values) * factor, "optimum less the catalogue's value")
    for name, (values, description) in columns.items():
        table[name] = Column(values, description=description)
    table.meta.update(_facts(found))
    return table


def summary(found: Posterior, catalog: CatalogRow | None = None) -> str:
    """The star in words: what was seen of it, parameters, modes, what to beware of."""
    fit = found.fit
    lines = [f"Gaia DR3 {int(found.source_id[0])}", ""]
    status, flags = int(fit.status[0]), int(found.flags[0])
    seen = int((fit.residual[0] != 0).sum())
    data = fit.observations
    parallax = (
        f"parallax {data.plx[0]:.4f} ± {data.plx_err[0]:.4f} mas" if np.isfinite(data.plx_err[0]) else "no parallax"
    )
    lines += [f"seen       {seen} samples of flux, {parallax}"]
    lines += [
        f"fitted     loss {fit.loss[0]:.2f}, chi2 {fit.chi2[0]:.2f}, {found.fit.noise_kind} noise, engine {fit.engine}"
    ]
    lines += [
        f"posterior  {found.weights.shape[1]:,} samples, {found.ess[0]:,.0f} effective; {found.n_modes[0]} mode(s)"
    ]
    lines += [f"prior      {found.prior_text}", ""]
    head = f"{'':18}{'optimum':>11}{'error':>10}{'16 %':>11}{'50 %':>11}{'84 %':>11}{'ratio':>9}"
    lines.append(head if catalog is None else f"{head}{'catalogue':>12}{'error':>10}{'difference':>12}")
    for row in parameters_table(found, catalog):
        digits = 1 if row["unit"] == "K" else 4
        label = f"{row['parameter']} [{row['unit']}]"
        text = f"{label:<18}{row['optimum']:11.{digits}f}{row['fit_error']:10.{digits}f}"
        text += "".join(f"{row[name]:11.{digits}f}" for name in ("p16", "p50", "p84")) + f"{row['width_ratio']:9.2f}"
        if catalog is not None:
            text += f"{row['catalog']:12.{digits}f}{row['catalog_error']:10.{digits}f}{row['difference']:+12.{digits}f}"
        lines.append(text)
    if catalog is not None:
        lines.append(f"catalogue: {catalog.name}, quality_flags {catalog.quality_flags}")
    lines += ["", "modes (parallax: the star's own; weight: of the posterior's samples)"]
    lines.append(
        f"{'':4}{'teff':>9}{'feh':>8}{'logg':>8}{'ext':>8}{'parallax':>10}{'loss':>10}{'gap':>8}{'weight':>9}{'Laplace':>9}"
    )
    for row in found.modes_table():
        lines.append(
            f"{row['mode']:>3} {row['teff']:9.0f}{row['feh']:8.2f}{row['logg']:8.2f}{row['ext']:8.3f}"
            f"{row['parallax_est']:10.4f}{row['loss']:10.2f}{row['gap']:8.2f}"
            f"{row['weight']:9.4f}{row['laplace_weight']:9.4f}"
        )
    beware = [f"status {int(bit)} {bit.name}: {MEANING_OF_STATUS[bit]}" for bit in Status if status & bit]
    beware += [f"posterior {int(bit)} {bit.name}: {MEANING[bit]}" for bit in PosteriorFlag if flags & bit]
    lines += ["", *(beware or ["nothing to beware of"])]
    return "\n".join(lines) + "\n"


def _facts(found: Posterior) -> dict[str, object]:
    """What tables of the star say in their headers."""
    return {
        "source_id": int(found.source_id[0]),
        "prior": found.prior_text,
        "samples": int(found.weights.shape[1]),
        "effective_samples": float(found.ess[0]),
        "seed": found.seed,
        "status": int(found.fit.status[0]),
        "posterior_flags": int(found.flags[0]),
        "model": found.fit.model.digest,
    }


def _samples_table(found: Posterior) -> Table:
    from astropy.table import Column, Table

    table = Table()
    for k, (name, unit, factor) in enumerate(COLUMNS):
        table[name] = Column((found.samples[0, :, k] * factor).astype(np.float32), unit=unit)
    table["weight"] = Column(found.weights[0], description="adding up to 1")
    table.meta.update(_facts(found))
    return table
