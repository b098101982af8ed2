"""What one writes today to map with SPInet: python network_by_hand.py case.json map.zarr."""

import json
import os
import sys
from functools import partial
from pathlib import Path

# Threads of PyTorch that spin while they wait would count as work on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import dask.array as da
import numpy as np
import pystac
import stackstac
import torch
import xarray as xr
from dask.distributed import Client
from plain_spinet import load
from rasterio.enums import Resampling
from safetensors.torch import load_file
from scipy.ndimage import binary_dilation


def map_chunk(stack, *, network, offset, margin, clear_values, dilate, threads):
    """Turn twelve bands and SCL (date, band, y, x) into classes four times finer."""
    torch.set_num_threads(threads)
    bands, scl = stack[:, :-1], stack[:, -1]
    bad = (scl != 0) & ~np.isin(scl, clear_values)
    bad = binary_dilation(bad, np.ones((1, 2 * dilate + 1, 2 * dilate + 1)))
    seen = ((scl != 0) & ~bad).any(axis=0).repeat(4, axis=0).repeat(4, axis=1)
    reflectance = bands.astype(np.float32) * np.float32(1e-4) + offset
    with torch.inference_mode():
        logits = network(torch.from_numpy(reflectance))[0].numpy()
    classes = np.where(seen, logits > 0, 255).astype(np.uint8)
    return classes[4 * margin : -4 * margin, 4 * margin : -4 * margin]


def main(case, path):
    """Map one case."""
    items = sorted(pystac.ItemCollection.from_file(case["items"]), key=lambda i: i.datetime)
    grid = {key: case[key] for key in ("epsg", "resolution", "bounds", "chunksize")}
    grid |= {"dtype": "uint16", "fill_value": np.uint16(0), "rescale": False, "snap_bounds": False}
    bands = stackstac.stack(items, assets=case["bands"], resampling=Resampling.bilinear, **grid)
    scl = stackstac.stack(items, assets=["scl"], resampling=Resampling.nearest, **grid)
    applied = [item.properties["earthsearch:boa_offset_applied"] for item in items]
    offset = np.where(applied, 0, -0.1).astype(np.float32)[:, None, None, None]
    stack = da.concatenate([bands.data, scl.data], axis=1).rechunk({0: -1, 1: -1})
    depth, network = case["depth"], load(load_file(case["weights"]))
    classes = da.map_overlap(
        partial(map_chunk, margin=depth, network=network, offset=offset),
        stack,
        depth=(0, 0, depth, depth),
        boundary="nearest",
        trim=False,
        drop_axis=[0, 1],
        chunks=tuple(tuple(4 * n for n in sizes) for sizes in stack.chunks[2:]),
        meta=np.empty((0, 0), np.uint8),
        **{key: case[key] for key in ("clear_values", "dilate", "threads")},
    )
    dataset = xr.Dataset({"class": (("y", "x"), classes)})
    stored = {"chunks": (case["chunk_px"],) * 2}
    dataset.to_zarr(path, mode="w", zarr_format=3, encoding={"class": stored})


if __name__ == "__main__":
    settings = json.loads(Path(sys.argv[1]).read_text())
    with Client(n_workers=settings["workers"], threads_per_worker=1):
        main(settings, sys.argv[2])
