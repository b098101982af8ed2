"""What one writes today instead of ``bigmap run``: python by_hand.py case.json map.zarr."""

import json
import sys
from pathlib import Path

import dask.array as da
import numpy as np
import pystac
import stackstac
import torch
import xarray as xr
from dask.distributed import Client
from rasterio.enums import Resampling
from scipy.ndimage import binary_dilation


def map_ndvi(stack, offset, clear_values, dilate, threshold, scale):
    """Turn red, NIR and SCL (date, band, y, x) into class and 10,000 x NDVI on a finer grid."""
    bands, scl = stack[:, :2], stack[:, 2]
    bad = (scl != 0) & ~np.isin(scl, clear_values)
    bad = binary_dilation(bad, np.ones((1, 2 * dilate + 1, 2 * dilate + 1)))
    clear = (bands != 0).all(axis=1) & (scl != 0) & ~bad
    red, nir = np.maximum(bands * np.float32(1e-4) + offset, 0).swapaxes(0, 1)
    ndvi = np.where(clear, (nir - red) / np.maximum(nir + red, 1e-6), 0).sum(axis=0)
    count = clear.sum(axis=0)
    mean = torch.from_numpy(ndvi / np.maximum(count, 1)).float()[None, None]
    fine = torch.nn.functional.interpolate(mean, scale_factor=scale, mode="bicubic")[0, 0].numpy()
    seen = (count > 0).repeat(scale, axis=0).repeat(scale, axis=1)
    ndvi = np.where(seen, np.rint(fine * 1e4), -32768)
    layers = np.stack([np.where(seen, fine > threshold, 255), ndvi]).astype(np.int16)
    return layers[:, 4 * scale : -4 * scale, 4 * scale : -4 * scale]


def main(case, path):
    """Map one case."""
    items = sorted(pystac.ItemCollection.from_file(case["items"]), key=lambda i: i.datetime)
    grid = {key: case[key] for key in ("epsg", "resolution", "bounds", "chunksize")}
    grid |= {"dtype": "uint16", "fill_value": np.uint16(0), "rescale": False, "snap_bounds": False}
    bands = stackstac.stack(items, assets=["red", "nir"], resampling=Resampling.bilinear, **grid)
    scl = stackstac.stack(items, assets=["scl"], resampling=Resampling.nearest, **grid)
    applied = [item.properties["earthsearch:boa_offset_applied"] for item in items]
    offset = np.where(applied, 0, -0.1).astype(np.float32)[:, None, None, None]
    stack = da.concatenate([bands.data, scl.data], axis=1).rechunk({0: -1, 1: -1})
    finer = [tuple(case["scale"] * size for size in sizes) for sizes in stack.chunks[2:]]
    fine = da.map_overlap(
        map_ndvi, stack, depth=(0, 0, 4, 4), boundary="nearest", trim=False, drop_axis=0,
        chunks=((2,), *finer), meta=np.empty((0, 0, 0), np.int16), offset=offset,
        **{key: case[key] for key in ("clear_values", "dilate", "threshold", "scale")},
    )  # fmt: skip
    layers = {"class": fine[0].astype(np.uint8), "ndvi": fine[1]}
    dataset = xr.Dataset({name: (("y", "x"), layer) for name, layer in layers.items()})
    stored = {"chunks": (case["chunk_px"],) * 2, "shards": (case["shard_px"],) * 2}
    dataset.to_zarr(path, mode="w", zarr_format=3, encoding=dict.fromkeys(dataset, stored))


if __name__ == "__main__":
    settings = json.loads(Path(sys.argv[1]).read_text())
    with Client(n_workers=settings["workers"], threads_per_worker=settings["threads"]):
        main(settings, sys.argv[2])
