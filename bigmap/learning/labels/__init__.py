"""Labels: polygons, rasters or simulated truth -> values of classes on any grid.

A pixel's label depends on its place alone: polygons are taken at pixel centres, rasters by the
most frequent of the values below a pixel, or by the nearest where their pixels are larger.
"""
