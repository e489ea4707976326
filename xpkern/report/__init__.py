"""Figures and pages; the only part of the package that draws."""
