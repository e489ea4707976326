"""Spectra of a dwarf and a giant from the shipped model, behind more and more dust."""

import numpy as np

import xpkern as xk


def main() -> None:
    model, _ = xk.load_model()
    ext = np.array([0.0, 0.3, 1.0])
    dwarf = model.predict(teff=5.77, feh=0.0, logg=4.44, ext=ext, plx=10.0)
    giant = model.predict(teff=4.50, feh=-0.3, logg=2.30, ext=ext, plx=1.0)
    print("wavelength [nm]   dwarf at 100 pc, giant at 1 kpc, each at E = 0, 0.3, 1 [1e-18 W m-2 nm-1]")
    for sample in range(0, len(model.wavelength), 13):
        values = " ".join(f"{flux:11.4g}" for flux in [*dwarf[:, sample], *giant[:, sample]])
        print(f"{model.wavelength[sample]:15.1f}   {values}")


if __name__ == "__main__":
    main()
