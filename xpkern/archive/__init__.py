"""What is asked of the archives: sources with their spectra and infrared magnitudes, in pieces, resumable."""

from xpkern.archive.fetch import FetchSummary, fetch
from xpkern.archive.queries import Selection, gaia_source_query, two_mass_query
from xpkern.archive.service import Archive

__all__ = ["Archive", "FetchSummary", "Selection", "fetch", "gaia_source_query", "two_mass_query"]
