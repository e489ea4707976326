"""How the default model is learned from real stars: ``python -m xpkern.train default -o default.h5``."""
