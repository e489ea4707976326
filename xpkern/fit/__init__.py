"""How a star is fitted: where the search starts, the fit itself, and what is reported of it."""
