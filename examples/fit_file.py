"""Fit a file of XP spectra, as the Gaia archive ships it, and write a catalogue.

Usage: python examples/fit_file.py SPECTRA.csv.gz [GAIA_SOURCE.csv] [CATALOG.h5]
"""

import sys

import xpkern as xk


def main(spectra: str, gaia_source: str | None = None, output: str = "catalog.h5") -> None:
    obs = xk.read_xp(spectra, gaia_source=gaia_source)
    model, prior = xk.load_model()
    fit = xk.fit(obs, model, prior)
    for source_id, params, status in zip(fit.source_id[:5], fit.params[:5], fit.status[:5], strict=True):
        teff, feh, logg, ext, plx = params
        print(
            f"{source_id}: {1000 * teff:6.0f} K, [Fe/H] {feh:+.2f}, log g {logg:.2f}, E {ext:.3f}, {plx:.3f} mas "
            f"({xk.Status(int(status))!r})"
        )
    fit.write(output)
    print(f"{len(fit.params)} stars in {output}")


if __name__ == "__main__":
    main(*sys.argv[1:])
