"""What a fit returns."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.arrays import on_device, to_host
from xpkern.engine.contract import FitOptions, Float32, Float64, LossTerms
from xpkern.model.flux_model import FluxModel
from xpkern.model.type_prior import TypePrior
from xpkern.observe.observations import Observations
from xpkern.status import UNFITTED

if TYPE_CHECKING:
    from astropy.table import Table

    from xpkern.fit.zgr23 import Zgr23Options


@dataclass
class Fit:
    """Parameters of n stars, their errors, and how the fit went. A star without a fit has NaN and a status bit.

    Arrays are NumPy's, or CuPy's if the observations were: :meth:`on_host` brings them all to the host.

    Attributes
    ----------
    params : (n, 5) float64
        teff [kK], feh, logg [dex], ext, plx [mas] at the optimum.
    model_plx : (n,) float64
        Parallax [mas] at which the model's flux is the observed one: ``model.predict(..., plx=fit.model_plx)`` lies on
        the data, and ``loss``, ``chi2``, ``hessian``, ``residual`` and the like are those there. It is
        ``params[:, 4]``, unless the model's scale is theoretical (see :mod:`xpkern.fit.scale`): then it is the
        parallax by that scale, and ``params[:, 4]`` is drawn from it towards the measured one.
    cov, icov : (n, 5, 5) float64
        Covariance of ``params``, positive definite, and its inverse. Under the noise of Eq. 2 they come from ``fisher``
        alone, as ZGR23 have it. Under a learned noise the curvature of the prior is added to it: the posterior's width
        at the optimum. Jacobian terms never enter.
    fisher : (n, 5, 5) float64
        J^T C^-1 J plus the Gaussian constraints (Eqs. 21-22), in the linear parameters; a theoretical scale is
        marginalised over.
    hessian : (n, 5, 5) float64
        Of the loss, in x = (teff, feh, logg, ln ext, ln plx).
    loss, chi2, ln_prior : (n,) float64
        Eq. 19, the chi^2 of the flux under the noise of Eq. 2, and the normalised prior density. After a second pass
        under a learned noise ``loss`` is that pass's, ``chi2`` that at the first one's optimum.
    chi2_learned : (n,) float64
        chi^2 of the flux under the learned noise; NaN where the fit had none.
    gradient_norm : (n,) float64
        Euclidean norm of the gradient of the loss in x.
    decrement : (n,) float64
        How much one more Newton step would lower the loss.
    residual : (n, 66) float32
        (predicted - observed) / sigma, sigma from the diagonal of C; 0 where missing.
    status : (n,) uint32
        Bits of :class:`xpkern.status.Status`.
    iterations : (n,) int32
        Evaluations of the loss, or of its gradient alone, of all searches of a star.
    minima : (n,) int32
        Distinct minima that the searches found (``FitOptions.starts`` says how many there may be).
    second_params : (n, 5) float64
        Parameters of the second lowest of them, its parallax by the model's own scale; NaN where there is none.
    second_gap : (n,) float64
        How much higher the loss is there; NaN where there is none.
    engine : str
        Name of the engine that computed it.
    observations : Observations
        What was fitted, with its columns.
    model : FluxModel
    prior : TypePrior
    terms : LossTerms
        Which terms the loss had.
    options : FitOptions or Zgr23Options
        What the optimiser was told; its type says which one it was.
    noise_kind : {"eq2", "learned"}
        Under which noise ``params``, errors, ``loss`` and ``residual`` are.
    instruction_set : str
        Which of the engine's instruction sets computed it; empty for an engine that has only one.
    frozen_at : (n, 5) float64
        Parameters, the parallax by the model's own scale, at which the covariance of a learned noise was frozen; NaN
        where the fit had none.
    """

    params: Float64
    model_plx: Float64
    cov: Float64
    icov: Float64
    fisher: Float64
    hessian: Float64
    loss: Float64
    chi2: Float64
    chi2_learned: Float64
    ln_prior: Float64
    gradient_norm: Float64
    decrement: Float64
    residual: Float32
    status: NDArray[np.uint32]
    iterations: NDArray[np.int32]
    minima: NDArray[np.int32]
    second_params: Float64
    second_gap: Float64
    engine: str
    observations: Observations
    model: FluxModel
    prior: TypePrior
    terms: LossTerms = field(default_factory=LossTerms)
    options: FitOptions | Zgr23Options = field(default_factory=FitOptions)
    noise_kind: str = "eq2"
    instruction_set: str = ""
    frozen_at: Float64 = field(default_factory=lambda: np.empty((0, 0)))

    def __len__(self) -> int:
        return len(self.params)

    def __repr__(self) -> str:
        engine = f"{self.engine} {self.instruction_set}".strip()
        return f"Fit({len(self):,} stars, {int(self.fitted.sum()):,} fitted, engine {engine})"

    @property
    def source_id(self) -> NDArray[np.int64]:
        """Identifiers of the stars, (n,) int64."""
        return self.observations.source_id

    @property
    def fitted(self) -> NDArray[np.bool_]:
        """Which stars have a solution, (n,) bool."""
        return (self.status & np.uint32(UNFITTED)) == 0

    def on_host(self) -> Fit:
        """The same fit with arrays of NumPy throughout; the fit itself if it has no others."""
        if not on_device(self.params):
            return self
        arrays = {each.name: getattr(self, each.name) for each in fields(self)}
        arrays = {name: to_host(array) for name, array in arrays.items() if on_device(array)}
        return replace(self, observations=self.observations.on_host(), **arrays)

    def without_spectra(self) -> Fit:
        """The same fit, of whose observations only what is a number of each star is left: no fluxes, no whiteners."""
        observed = self.observations
        return replace(self, observations=replace(observed, flux=observed.flux[:0], whitener=observed.whitener[:0]))

    @property
    def diagnostics(self) -> Table:
        """How each fit went, as the table that accompanies a catalogue: loss, gradient, residuals, inputs of flags."""
        from xpkern.catalog.table import to_diagnostics

        return _for_votable(to_diagnostics(self))

    def to_table(self, layout: str = "default") -> Table:
        """The catalogue as an astropy Table whose columns carry units and descriptions.

        What files have as uint32 is int64 here: VOTable, and with it SAMP, has no such type.

        Parameters
        ----------
        layout : {"default", "zgr23"}
            Columns in the style of Gaia, or those ZGR23 published.

        Raises
        ------
        InputError
            If the layout is unknown.
        """
        from xpkern.catalog.table import to_table

        return _for_votable(to_table(self, layout))

    def write(
        self,
        path: str | os.PathLike[str],
        layout: str = "default",
        *,
        diagnostics: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Write the catalogue to a file, which appears under its name only once it is complete.

        Parameters
        ----------
        path : path-like
            Its ending says the format: ``.h5``, ``.fits``, ``.ecsv`` or ``.parquet``.
        layout : {"default", "zgr23"}
        diagnostics : bool
            Whether to write :attr:`diagnostics` beside it, as ``<name>.diagnostics.h5`` (or another ending).
        overwrite : bool
            Whether a file of that name is replaced.

        Raises
        ------
        InputError
            If the layout or the file's ending is unknown, or the file exists and is not to be replaced.
        """
        from xpkern.catalog.run import write_fit

        write_fit(self, path, layout, diagnostics=diagnostics, overwrite=overwrite)


def _for_votable(table: Table) -> Table:
    """A table with types that VOTable has in place of those that it lacks: wider ones, which hold the same numbers."""
    wider = {np.dtype(np.uint32): np.int64, np.dtype(np.float16): np.float32}
    for name in table.colnames:
        if table[name].dtype in wider:
            table[name] = table[name].astype(wider[table[name].dtype])
    return table
