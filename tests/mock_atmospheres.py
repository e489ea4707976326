"""Atmospheres that are black bodies: a grid of them, and a source distribution like SEDFit's."""

from __future__ import annotations

import bz2
import io
import pickle
import tarfile
from itertools import product

import numpy as np
from astropy import units
from astropy.table import Table

from xpkern.grid import WAVELENGTH
from xpkern.train.atmospheres import Atmospheres


def planck(wavelength, teff):
    """pi B_lambda [erg s-1 cm-2 A-1] at wavelengths in Angstrom."""
    metre = wavelength * 1e-10
    surface = 2 * np.pi * 6.62607015e-34 * 2.99792458e8**2 / metre**5
    return surface / np.expm1(6.62607015e-34 * 2.99792458e8 / (metre * 1.380649e-23 * teff)) * 1e-7


#: Where each passband of the mock starts and ends [Angstrom].
PASSBANDS = {
    "2MASS.J": (11000, 14000),
    "2MASS.H": (15000, 18000),
    "2MASS.Ks": (20000, 23000),
    "WISE.W1": (28000, 38000),
    "WISE.W2": (40000, 53000),
    "GAIA.GAIA3.G": (3300, 10500),
}

#: Nodes of the two mock grids [K], either of which goes beyond where it is used.
NODES = {"sed_phoenix.p": np.linspace(2300.0, 4500.0, 12), "sed_kurucz.p": np.linspace(3500.0, 12000.0, 18)}


def black_body_sdist(path, grid=None):
    """A source distribution like SEDFit's whose atmospheres are black bodies, log g and feh notwithstanding."""
    wavelength = np.geomspace(3000.0, 60000.0, 3000)
    members = {}
    for name, teff in NODES.items():
        nodes = list(product(teff, (1.0, 4.0), (-1.0, 0.0), (0.0, 0.4)))
        table = Table(rows=nodes, names=("teff", "logg", "feh", "alpha"))
        flux = np.array([np.log10(wavelength * planck(wavelength, node[0])) for node in nodes])
        content = [flux, table, wavelength * units.AA] if grid is None else grid
        members[name] = bz2.compress(pickle.dumps(content, protocol=4), 1)
    for name, (first, last) in PASSBANDS.items():
        response = np.column_stack([np.linspace(first, last, 9), np.minimum(np.arange(9), np.arange(9)[::-1]) > 0])
        members[f"{name}.dat"] = "\n".join(f"{x} {y}" for x, y in response).encode()
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            information = tarfile.TarInfo(f"SEDFit-0/SEDFit/{name}")
            information.size = len(content)
            archive.addfile(information, io.BytesIO(content))
    return path


def black_bodies() -> Atmospheres:
    """A grid whose surface flux is known everywhere, whatever feh and log g."""
    teff, feh, logg = np.geomspace(2.3, 20.0, 60), np.array([-2.5, 0.5]), np.array([0.0, 5.0])
    surface = np.log([planck(WAVELENGTH * 10.0, 1000.0 * node) * 1e-2 for node in teff])
    return Atmospheres(teff, feh, logg, np.broadcast_to(surface[:, None, None], (60, 2, 2, surface.shape[1])).copy())
