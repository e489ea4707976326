"""How a model is learned: from labelled stars by a recipe, ``xpkern train`` (:mod:`xpkern.train.run`).

``python -m xpkern.train default -o default.h5`` makes the model that comes with the package, from published spectra
without parallaxes (:mod:`xpkern.train.default_model`).
"""
