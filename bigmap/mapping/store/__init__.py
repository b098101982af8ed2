"""The map: a Zarr v3 template, shards that one task writes, overviews, and opening it.

Level 0 lies at the root, so that ``xarray.open_zarr`` opens the map with its CRS, transform
and class names; overviews lie in the groups ``1``, ``2``, ... below. Attributes follow CF
(``flag_values``, ``grid_mapping``) and the Zarr conventions for projection, spatial
coordinates and multiscales.
"""
