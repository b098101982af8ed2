"""Scenes of Sentinel-2: items of catalogues, and reading their pixels as reflectance."""
