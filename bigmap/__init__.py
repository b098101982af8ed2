"""Maps of any area from Sentinel-2, super-resolved and segmented, on Dask."""
