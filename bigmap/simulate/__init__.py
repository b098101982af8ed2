"""A virtual Sentinel-2 world: scenes, items and truth for any area, from a seed."""

from bigmap.simulate.scenes import SceneRequest, list_request_parts, write_part, write_scenes
from bigmap.simulate.truth import LAYERS, render_truth

__all__ = [
    "LAYERS",
    "SceneRequest",
    "list_request_parts",
    "render_truth",
    "write_part",
    "write_scenes",
]
