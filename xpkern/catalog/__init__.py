"""What comes out: the columns of a catalogue, its flags, its files, and the run that makes it."""

from xpkern.catalog.run import CatalogSummary, make_catalog, write_fit
from xpkern.catalog.table import to_table

__all__ = ["CatalogSummary", "make_catalog", "to_table", "write_fit"]
