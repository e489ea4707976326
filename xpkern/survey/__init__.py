"""Simulated surveys with a known truth: a sky of stars and of what is taken for stars, in Gaia's own formats."""

#: Names of the truths: where spectra come from.
TRUTHS = ("kurucz", "model")

#: Names of the formats of spectra.
FORMATS = ("csv", "hdf5")

#: Range of true G: XP spectra were published to 17.65; the brightest stars have errors of their own.
MAGNITUDES = (6.0, 17.65)

#: Rows of a file of spectra: about what the archive's files have.
STARS_PER_FILE = 65536
