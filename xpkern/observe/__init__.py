"""What is seen: readers of Gaia files, calibration, photometry, simulation, and the stars they all end in."""
