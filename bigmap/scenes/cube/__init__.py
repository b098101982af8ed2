"""Item rows and a region of the grid -> pixels.

Two loaders, stackstac and odc-stac, build the same stack of items; both read through
:class:`~bigmap.scenes.cube.reading.RasterReader`, so that values depend neither on the loader nor
on chunks.
"""
