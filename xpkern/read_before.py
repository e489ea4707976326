"""What the server of processes reads before it forks any: most of what a process needs that fits the stars of a file.

Nothing here starts threads or touches a GPU, which a fork would not survive. Only the server imports this.
"""

import gc

gc.disable()  # nothing of what is read becomes free, and to look for it takes a sixth of the time
try:
    import xpkern.catalog.judgement
    import xpkern.engine.cpu
    import xpkern.observe.spectra_fits
    import xpkern.shards.workers  # noqa: F401 read for whoever is forked
finally:
    gc.freeze()  # to look through it later would copy its pages into each process, and keep the server from ending
    gc.enable()
