"""Maps of what stars tell of the Galaxy: dust in three dimensions, and metallicity.

``settings`` (bins, cuts), ``binning`` and ``median`` (stars into cells), ``bias``, ``make`` (catalogue to file),
``cube`` (the map and its queries), ``map_file``, ``galaxy`` (dust per distance, Eq. 30), ``bayestar``,
``projections``, ``figures``.
"""
