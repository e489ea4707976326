r"""The linear map from XP coefficients to calibrated flux, and the files it is valid for.

The sampled flux of one band is a design matrix times its coefficients; GaiaXPy merges the two bands with weights
that add up to one at every wavelength. :class:`Calibration` holds the products of both, so that

.. math:: f = f_{BP} + f_{RP} = A_{BP} c_{BP} + A_{RP} c_{RP}, \qquad C_{gaia} = A \Sigma A^T .

It also knows which coefficients it belongs to, because another data release numbers its basis functions
differently and has another number of them.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xpkern.errors import InputError
from xpkern.grid import XP_WAVELENGTH

if TYPE_CHECKING:
    from collections.abc import Iterable

#: The shipped calibration, made by ``python -m xpkern.observe.calibration``.
DEFAULT_FILE = "calibration_gaia_dr3.npz"

#: GaiaXPy returns W m-2 nm-1; every flux of xpkern is in 1e-18 of that, where stars of Gaia are of order one.
FLUX_UNIT = 1e-18


@dataclass(frozen=True, eq=False)
class Calibration:
    """Design matrices of one instrument model at the wavelengths of the flux.

    Attributes
    ----------
    release : str
        Data release whose coefficients this is for, such as ``"Gaia DR3"``.
    instrument_model : str
        Where the matrices come from: software, version and instrument models.
    bp_design, rp_design : (n_xp, n_bp), (n_xp, n_rp) float64
        Merge weight times design matrix [1e-18 W m-2 nm-1 per coefficient unit].
    wavelength : (n_xp,) float64
        Wavelengths [nm] of the rows.
    bp_basis_function_id, rp_basis_function_id : int
        Identifiers of the sets of basis functions, as in the archive's columns of the same names.

    Raises
    ------
    InputError
        If the shapes disagree, a number is not finite, or an identifier is not a whole number.
    """

    release: str
    instrument_model: str
    bp_design: NDArray[np.float64]
    rp_design: NDArray[np.float64]
    wavelength: NDArray[np.float64]
    bp_basis_function_id: int
    rp_basis_function_id: int

    def __post_init__(self) -> None:
        for name in ("bp_design", "rp_design", "wavelength"):
            array = np.ascontiguousarray(getattr(self, name), dtype=np.float64)
            if not np.isfinite(array).all():
                raise InputError("not every number is finite", field=name)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        for name in ("bp_basis_function_id", "rp_basis_function_id"):
            number = np.asarray(getattr(self, name))
            if number.shape != () or number.dtype.kind not in "iuf" or not float(number).is_integer():
                raise InputError(f"{getattr(self, name)!r} is not a whole number", field=name)
            object.__setattr__(self, name, int(number))
        for name in ("bp_design", "rp_design"):
            shape = getattr(self, name).shape
            if len(shape) != 2 or shape[0] != self.wavelength.size:
                raise InputError(
                    f"shape {shape} has not one row for each of {self.wavelength.size} samples", field=name
                )

    @property
    def n_bp(self) -> int:
        """Number of BP coefficients."""
        return self.bp_design.shape[1]

    @property
    def n_rp(self) -> int:
        """Number of RP coefficients."""
        return self.rp_design.shape[1]

    @classmethod
    @cache  # it never changes, and a process may read many files
    def default(cls) -> Calibration:
        """Return the shipped calibration: Gaia DR3 at 392, 402 ... 992 nm."""
        return cls.load(files("xpkern.observe") / "data" / DEFAULT_FILE)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a calibration that :meth:`save` wrote.

        Raises
        ------
        InputError
            If the file is absent, is no such file, or fails the checks of the class.
        """
        try:
            if not zipfile.is_zipfile(path):  # NumPy would advise to unpickle it
                with open(path, "rb"):
                    raise ValueError("no npz")
            with np.load(path, allow_pickle=False) as stored:
                return cls(
                    release=str(stored["release"]),
                    instrument_model=str(stored["instrument_model"]),
                    bp_design=stored["bp_design"],
                    rp_design=stored["rp_design"],
                    wavelength=stored["wavelength"],
                    bp_basis_function_id=stored["bp_basis_function_id"],
                    rp_basis_function_id=stored["rp_basis_function_id"],
                )
        except InputError as error:
            raise InputError(error.message, file=str(path), field=error.field) from error
        except Exception as error:  # a damaged file fails in any way at any place
            raise InputError(f"not a readable calibration file ({error})", file=str(path)) from error

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write everything to an ``.npz`` file; the same calibration gives the same bytes.

        Parameters
        ----------
        path : path-like
        overwrite : bool
            Whether a file of that name is replaced.

        Raises
        ------
        InputError
            If there is one and it is not, or its folder does not exist.
        """
        from xpkern.catalog.pending import PendingFile, refuse_taken

        pending = PendingFile(Path(path))
        refuse_taken(pending.final, overwrite=overwrite)
        with pending as partial, open(partial, "wb") as stream:
            np.savez(
                stream,
                release=np.array(self.release),
                instrument_model=np.array(self.instrument_model),
                bp_design=self.bp_design,
                rp_design=self.rp_design,
                wavelength=self.wavelength,
                bp_basis_function_id=np.array(self.bp_basis_function_id),
                rp_basis_function_id=np.array(self.rp_basis_function_id),
            )

    @classmethod
    def from_gaiaxpy(
        cls,
        wavelength: NDArray[np.float64] = XP_WAVELENGTH,
        *,
        release: str = "Gaia DR3",
        instrument_model: str = "BP v375wi, RP v142r",
        n_bp: int = 55,
        n_rp: int = 55,
        bp_basis_function_id: int = 56,
        rp_basis_function_id: int = 57,
    ) -> Calibration:
        """Ask the installed GaiaXPy: its calibration is linear, so unit vectors give the columns.

        Parameters
        ----------
        wavelength : (n_xp,) float64
            Wavelengths [nm].
        release, instrument_model : str
            What the installed GaiaXPy calibrates, in words.
        n_bp, n_rp : int
            Coefficients of each band in that release.
        bp_basis_function_id, rp_basis_function_id : int
            Its sets of basis functions.

        Raises
        ------
        InputError
            If GaiaXPy cannot calibrate that many coefficients: it is a version for another release.

        Notes
        -----
        GaiaXPy 2.1 knows the coefficients of Gaia DR3 only, which are the defaults.
        """
        import gaiaxpy
        import pandas

        spectra = pandas.DataFrame(list(_unit_spectra(n_bp, n_rp)))
        try:
            flux, _ = gaiaxpy.calibrate(spectra, sampling=np.asarray(wavelength, dtype=np.float64), save_file=False)
        except (ValueError, IndexError) as error:
            raise InputError(
                f"GaiaXPy {gaiaxpy.__version__} cannot calibrate {n_bp} + {n_rp} coefficients ({error})", field="n_bp"
            ) from error
        design = np.stack(flux["flux"].to_numpy()).T / FLUX_UNIT
        return cls(
            release=release,
            instrument_model=f"GaiaXPy {gaiaxpy.__version__} ({instrument_model})",
            bp_design=design[:, :n_bp],
            rp_design=design[:, n_bp:],
            wavelength=np.asarray(wavelength, dtype=np.float64),
            bp_basis_function_id=bp_basis_function_id,
            rp_basis_function_id=rp_basis_function_id,
        )


def _unit_spectra(n_bp: int, n_rp: int) -> Iterable[dict[str, object]]:
    """Yield one GaiaXPy input row for each coefficient, first BP's then RP's; the error columns do not matter."""
    for unit in np.eye(n_bp + n_rp):
        row: dict[str, object] = {"source_id": 1}
        for band, coefficients in zip(("bp", "rp"), np.split(unit, [n_bp]), strict=True):
            n_coefficients = len(coefficients)
            row |= {
                f"{band}_n_parameters": n_coefficients,
                f"{band}_n_relevant_bases": n_coefficients,
                f"{band}_standard_deviation": 1.0,
                f"{band}_coefficients": coefficients,
                f"{band}_coefficient_errors": np.ones(n_coefficients),
                f"{band}_coefficient_correlations": np.zeros(n_coefficients * (n_coefficients - 1) // 2),
            }
        yield row


if __name__ == "__main__":
    Calibration.from_gaiaxpy().save(Path(__file__).parent / "data" / DEFAULT_FILE, overwrite=True)
