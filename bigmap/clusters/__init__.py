"""Clusters: where a run's workers come from, and how tasks are driven on them."""

from bigmap.clusters.opening import Cluster, open_client, open_cluster
from bigmap.clusters.scenes import render_on

__all__ = ["Cluster", "open_client", "open_cluster", "render_on"]
