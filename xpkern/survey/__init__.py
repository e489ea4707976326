"""Simulated surveys with a known truth: a sky of stars and of what is taken for stars, in Gaia's own formats."""
