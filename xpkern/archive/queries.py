"""ADQL for the Gaia archive: the two queries of ZGR23's Appendix A, corrected, for any selection of sources.

Corrected: ``ph_qual`` has three letters, one for each band, so that patterns of two or four match nothing; the inner
join to ``astrophysical_parameters`` was not used and could only lose sources; a comma was missing. Added: what the zero
point of the parallax depends on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from xpkern.errors import InputError
from xpkern.observe.source_position import bits_below

#: Columns of gaia_source, most of which cuts, flags and the zero point of the parallax need.
_GAIA_SOURCE = """
    source_id random_index ref_epoch ra ra_error dec dec_error parallax parallax_error pmra pmra_error pmdec
    pmdec_error nu_eff_used_in_astrometry pseudocolour ecl_lat astrometric_params_solved ruwe
    astrometric_excess_noise phot_g_mean_mag phot_g_mean_flux phot_g_mean_flux_error phot_bp_mean_mag
    phot_bp_mean_flux phot_bp_mean_flux_error phot_rp_mean_mag phot_rp_mean_flux phot_rp_mean_flux_error
    phot_bp_rp_excess_factor has_xp_continuous phot_bp_n_obs phot_rp_n_obs visibility_periods_used
""".split()  # noqa: SIM905 a list of so many names is read as text

_TWO_MASS = ["designation", "j_m", "j_msigcom", "h_m", "h_msigcom", "ks_m", "ks_msigcom", "ph_qual", "ext_key"]

#: Level of the HEALPix pixels of which the names of Gaia's files speak.
_LEVEL_OF_FILES = 8

_RANGE = re.compile(r"(\d{6})-(\d{6})")


@dataclass(frozen=True)
class Selection:
    """Which sources are meant.

    Attributes
    ----------
    condition : str
        In ADQL, of ``gaiadr3.gaia_source AS g``.
    """

    condition: str

    @classmethod
    def region(cls, text: str) -> Selection:
        """Sources in a region: ``CIRCLE ra dec radius``, ``BOX ra dec width height`` or ``POLYGON ra dec …`` [deg].

        Raises
        ------
        InputError
            If it is none of these, or its numbers cannot be.
        """
        word, *rest = text.replace(",", " ").split() or [""]
        try:
            numbers = [float(number) for number in rest]
        except ValueError:
            raise InputError(f"{text!r} has something that is not a number", field="--region") from None
        shape = word.upper()
        fits = {
            "CIRCLE": len(numbers) == 3,
            "BOX": len(numbers) == 4,
            "POLYGON": len(numbers) % 2 == 0 <= len(numbers) - 6,
        }
        if not fits.get(shape, False):
            known = "CIRCLE ra dec radius, BOX ra dec width height, or POLYGON with three corners or more"
            raise InputError(f"{text!r} is not {known} [deg]", field="--region")
        places, sizes = (numbers, []) if shape == "POLYGON" else (numbers[:2], numbers[2:])
        size_is = "radius" if shape == "CIRCLE" else "size"
        wrong = [f"right ascension {ra:g}, not between 0 and 360" for ra in places[::2] if not 0 <= ra <= 360]
        wrong += [f"declination {dec:g}, not between -90 and 90" for dec in places[1::2] if not abs(dec) <= 90]
        wrong += [f"{size_is} {size:g}, not between 0 and 360" for size in sizes if not 0 < size <= 360]
        if wrong:
            raise InputError(f"{text!r} has a {wrong[0]}", field="--region")
        values = ", ".join(f"{number:.10g}" for number in numbers)
        return cls(f"1 = CONTAINS(POINT('ICRS', g.ra, g.dec), {shape}('ICRS', {values}))")

    @classmethod
    def file_range(cls, text: str) -> Selection:
        """Sources of one of Gaia's files, by the range of HEALPix pixels of level 8 in its name: ``000000-003111``.

        Raises
        ------
        InputError
            If there is no such range in the text.
        """
        match = _RANGE.search(text)
        if match is None or int(match[1]) > int(match[2]):
            raise InputError(f"{text!r} has no range of pixels, as 000000-003111", field="range")
        bits = bits_below(_LEVEL_OF_FILES)
        first, last = int(match[1]) << bits, ((int(match[2]) + 1) << bits) - 1
        return cls(f"g.source_id BETWEEN {first} AND {last}")

    @classmethod
    def sources(cls, source_ids: Sequence[int]) -> Selection:
        """Sources by their numbers."""
        return cls(f"g.source_id IN ({', '.join(str(int(number)) for number in source_ids)})")

    def and_between(self, first: int, last: int) -> Selection:
        """Those of them in a range of source_id, both ends included."""
        return Selection(f"{self.condition} AND g.source_id BETWEEN {first} AND {last}")

    def and_after(self, source_id: int) -> Selection:
        """Those of them beyond a source_id."""
        return Selection(f"{self.condition} AND g.source_id > {source_id}")


def gaia_source_query(selection: Selection, rows: int) -> str:
    """Sources with XP spectra: the first rows by source_id.

    With their astrometric fidelity (Rybizki et al. 2022), and how well the archive's coefficients fit the transits,
    which classifiers of confidence look at.

    Parameters
    ----------
    selection : Selection
    rows : int
        At most so many.

    Returns
    -------
    str
        ADQL.
    """
    columns = ", ".join(f"g.{name}" for name in _GAIA_SOURCE)
    return (
        f"SELECT TOP {rows} {columns}, spur.fidelity_v2, spur.norm_dg, xp.bp_chi_squared, xp.rp_chi_squared "
        "FROM gaiadr3.gaia_source AS g "
        # EXTERNAL is a reserved word of ADQL: quoted it is a name
        'LEFT OUTER JOIN "external".gaiaedr3_spurious AS spur ON g.source_id = spur.source_id '
        "LEFT OUTER JOIN gaiadr3.xp_summary AS xp ON g.source_id = xp.source_id "
        f"WHERE g.has_xp_continuous = 'True' AND {selection.condition} "
        "ORDER BY g.source_id"
    )


def two_mass_query(selection: Selection, rows: int) -> str:
    """2MASS stars that are the best neighbours of sources with XP spectra: the first rows by source_id.

    Stars of which no band has quality A, and extended ones, are left out, as no band of theirs counts.

    Parameters
    ----------
    selection : Selection
    rows : int
        At most so many.

    Returns
    -------
    str
        ADQL.
    """
    columns = ", ".join(f"tmass.{name}" for name in _TWO_MASS)
    return (
        f"SELECT TOP {rows} g.source_id, {columns}, xmatch.angular_distance "
        "FROM gaiadr3.gaia_source AS g "
        "JOIN gaiadr3.tmass_psc_xsc_best_neighbour AS xmatch ON g.source_id = xmatch.source_id "
        "JOIN gaiadr3.tmass_psc_xsc_join AS xjoin ON xmatch.clean_tmass_psc_xsc_oid = xjoin.clean_tmass_psc_xsc_oid "
        "JOIN gaiadr1.tmass_original_valid AS tmass ON xjoin.original_psc_source_id = tmass.designation "
        f"WHERE g.has_xp_continuous = 'True' AND {selection.condition} "
        "AND (tmass.ph_qual LIKE 'A__' OR tmass.ph_qual LIKE '_A_' OR tmass.ph_qual LIKE '__A') "
        "AND tmass.ext_key IS NULL "
        "ORDER BY g.source_id"
    )
