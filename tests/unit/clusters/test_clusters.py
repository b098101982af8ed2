"""Cluster files, what is derived from them, and errors of clusters that cannot be started."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from bigmap.cli import main
from bigmap.clusters import open_cluster
from bigmap.clusters.local import cuda_options, start_cuda
from bigmap.clusters.slurm import cluster_options, list_directives, list_prologue
from bigmap.config import Recipe, load_recipe, parse_recipe
from bigmap.config.loading import list_clusters, load_cluster, write_schema
from bigmap.errors import ClusterError, RecipeError
from tests.integration.small_world import raw_recipe, write_recipe

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "cluster"
FILES = sorted(FOLDER.glob("*.yaml"))
SLURM = {"kind": "slurm", "interface": "lo"}


def make_recipe(**cluster) -> Recipe:
    return parse_recipe(raw_recipe(cluster=cluster))


def load(tmp_path: Path, **cluster):
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(cluster))
    return load_cluster(str(file))


def test_schema_of_cluster_files_is_in_sync(tmp_path):
    write_schema(tmp_path / "schema.json", of="cluster")
    assert (tmp_path / "schema.json").read_text() == (FOLDER / "cluster.schema.json").read_text()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_cluster_files_are_valid_and_name_their_schema(file):
    assert file.read_text().startswith("# yaml-language-server: $schema=cluster.schema.json\n")
    load_cluster(str(file))
    # Every setting that is only shown as a comment is one that exists.
    known = json.dumps(json.loads((FOLDER / "cluster.schema.json").read_text()))
    for line in file.read_text().splitlines():
        name, separator, _ = line.removeprefix("# ").partition(": ")
        if line.startswith("# ") and separator and name.isidentifier():
            assert f'"{name}"' in known, name


def test_there_is_a_file_for_each_kind():
    kinds = {load_cluster(str(file)).kind for file in FILES}
    assert kinds == {"local", "local-cuda", "slurm", "existing"}


def test_a_cluster_file_replaces_the_section_of_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write_recipe(Path("recipe.yaml"), cluster={"workers": 3})
    assert load_recipe(file).cluster.workers == 3
    assert load_recipe(file, cluster="local").cluster.workers is None
    Path("cluster").mkdir()
    Path("cluster/box.yaml").write_text("kind: local\nworkers: 5\n")
    assert load_recipe(file, cluster="box").cluster.workers == 5
    assert load_recipe(file, ["cluster.workers=7"], cluster="box").cluster.workers == 7
    assert list(list_clusters()) == ["local", "local-cuda", "box"]
    with pytest.raises(RecipeError, match=r"--cluster bx: no such file .* local, local-cuda, box"):
        load_recipe(file, cluster="bx")


def test_certificates_are_relative_to_their_file(tmp_path):
    files = {"tls_ca_file": "ca.pem", "tls_cert_file": "tls/c.pem", "tls_key_file": "/etc/k.pem"}
    cluster = load(tmp_path, kind="existing", address="tls://a.b:8786", **files)
    assert cluster.tls_ca_file == str(tmp_path / "ca.pem")
    assert cluster.tls_cert_file == str(tmp_path / "tls" / "c.pem")
    assert cluster.tls_key_file == "/etc/k.pem"


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ({"kind": "slrm"}, "cluster.kind: 'slrm' is unknown"),
        ({"kind": "slurm"}, "cluster.interface is missing"),
        (SLURM | {"max_jobs": 2, "min_jobs": 3}, "max_jobs 2 is below min_jobs 3"),
        (SLURM | {"walltime_minutes": 2}, "leaves workers no time"),
        (SLURM | {"gpu_type": "a100"}, "gpu_type is given without gpus_per_job"),
        (SLURM | {"gpus_per_job": 4, "workers_per_job": 2}, "each GPU has one worker"),
        (SLURM | {"partition": "a; rm -rf x"}, "cluster.partition: String should match"),
        (SLURM | {"prologue": ["module load x\nrm"]}, "cluster.prologue.0: String should match"),
        (SLURM | {"walltime": 3}, "walltime is not a known field; did you mean walltime_minutes"),
        ({"kind": "existing"}, "give either address or scheduler_file"),
        ({"kind": "existing", "address": "tcp://10.0.0.1:8786"}, "is not encrypted"),
        ({"kind": "existing", "address": "tls://10.0.0.1:8786"}, "speaks TLS; give tls_ca_file"),
        ({"kind": "existing", "address": "tcp://a:b@127.0.0.1:1"}, "must not hold credentials"),
        ({"kind": "local-cuda", "gpus": [0, 0]}, "names a GPU twice"),
    ],
)  # fmt: skip
def test_wrong_settings_are_one_sentence(tmp_path, cluster, words):
    with pytest.raises(RecipeError) as error:
        load(tmp_path, **cluster)
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("minutes", [3, 60, 43_200])
def test_every_worker_leaves_before_its_walltime(minutes):
    cluster = make_recipe(**SLURM, walltime_minutes=minutes, leave_before_s=100).cluster
    assert cluster.lifetime_s - cluster.stagger_s > 0
    assert cluster.lifetime_s + cluster.stagger_s <= 60 * minutes - 100 + 1e-6
    lines = list_prologue(cluster)
    assert f"export DASK_DISTRIBUTED__WORKER__LIFETIME__DURATION={cluster.lifetime_s:.0f}s" in lines


def test_a_gpu_job_has_one_worker_for_each_gpu(tmp_path):
    cluster = make_recipe(
        **SLURM, gpus_per_job=4, gpu_type="a100", cpus_per_worker=6, memory_gb=10,
        blocks_per_worker=3, max_jobs=2, directives=["--qos=long"],
    ).cluster  # fmt: skip
    assert list_directives(cluster) == ["--no-requeue", "--gres=gpu:a100:4", "--qos=long"]
    options = cluster_options(cluster, private_folder=str(tmp_path))
    assert options["worker_command"] == "dask_cuda.cli"
    assert (options["processes"], options["cores"], options["job_cpu"]) == (4, 12, 24)
    assert options["memory"] == "40000000000B"


def test_cuda_options_keep_to_loopback():
    cluster = make_recipe(kind="local-cuda", gpus=[1, 3], blocks_per_worker=4).cluster
    options = cuda_options(cluster, memory_gb=20)
    assert options == {
        "CUDA_VISIBLE_DEVICES": [1, 3], "threads_per_worker": 4, "memory_limit": 20_000_000_000,
        "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "silence_logs": 50,
    }  # fmt: skip


def test_a_machine_without_dask_cuda_or_gpu_is_one_sentence():
    cluster = make_recipe(kind="local-cuda").cluster
    with (
        pytest.raises(ClusterError, match=r"local-cuda (needs dask-cuda|found no usable GPU)"),
        start_cuda(cluster, memory_gb=4),
    ):
        pass


NVML = """
class NVMLError(Exception): pass
class NVMLError_LibraryNotFound(NVMLError): pass
"""
DASK_CUDA = """
from pynvml import NVMLError_LibraryNotFound
def LocalCUDACluster(**options):
    raise NVMLError_LibraryNotFound("NVML Shared Library Not Found")
"""


def test_the_error_of_a_missing_driver_is_one_sentence(tmp_path, monkeypatch):
    """dask-cuda is not among what development installs: this is what it raises without a GPU."""
    for name, code in (("pynvml", NVML), ("dask_cuda", DASK_CUDA)):
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with (
        pytest.raises(ClusterError, match=r"no usable GPU here \(NVMLError_LibraryNotFound: NVML"),
        start_cuda(make_recipe(kind="local-cuda").cluster, memory_gb=4),
    ):
        pass
    monkeypatch.undo()
    for name in ("pynvml", "dask_cuda"):
        sys.modules.pop(name, None)


def test_slurm_without_its_commands_is_one_sentence(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with (
        pytest.raises(ClusterError, match=r"needs sbatch, squeue, scancel"),
        open_cluster(make_recipe(**SLURM).cluster),
    ):
        pass


def test_an_interface_that_is_not_here_is_one_sentence(tmp_path, monkeypatch):
    for name in ("sbatch", "squeue", "scancel"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with (
        pytest.raises(ClusterError, match=r"cluster\.interface: 'ib9' is not a valid network"),
        open_cluster(make_recipe(kind="slurm", interface="ib9").cluster),
    ):
        pass


def test_a_scheduler_that_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("bigmap.clusters.existing.CONNECT_LIMIT_S", 1)
    with (
        pytest.raises(
            ClusterError, match=r"cluster\.address: no scheduler at tcp://127\.0\.0\.1:1"
        ),
        open_cluster(make_recipe(kind="existing", address="tcp://127.0.0.1:1").cluster),
    ):
        pass
    file = tmp_path / "scheduler.json"
    settings = make_recipe(kind="existing", scheduler_file=str(file)).cluster
    for content, words in ((None, "No such file"), ('{"address": "tcp://1.2.3.4:5"}', "encrypted")):
        if content:
            file.write_text(content)
        with pytest.raises(ClusterError, match=words), open_cluster(settings):
            pass


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_clusters_are_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("cluster").mkdir()
    Path("cluster/bad.yaml").write_text("kind: slurm\n")
    code, out, _ = call(capsys, "cluster", "list", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert rows["local"] == {"name": "local", "kind": "local", "file": "", "error": ""}
    assert "cluster.interface is missing" in rows["bad"]["error"]


def test_a_check_reports_workers_and_what_fails_on_them(tmp_path, capsys):
    output, one = str(tmp_path / "maps"), "--set=cluster.workers=1"
    missing = str(tmp_path / "missing.tif")
    code, out, error = call(
        capsys, "cluster", "check", "local", "--output", output, one, "--json", "--cog", missing
    )
    report = json.loads(out)
    (worker,) = report["workers"]
    assert code == 2
    assert len(error.splitlines()) == 1
    assert f"cannot read {missing}" in error
    assert len(worker["problems"]) == 1, "all the rest works"
    assert worker["device"]["kind"] in ("cpu", "cuda")
    assert worker["versions"]["torch"]
    assert report["wanted"] == 1
    assert list((tmp_path / "maps").iterdir()) == []


def test_a_worker_that_does_not_start_is_one_sentence(monkeypatch):
    def refuse(**options):
        raise RuntimeError("Nanny failed to start.") from RuntimeError("exit code -9")

    monkeypatch.setattr("bigmap.clusters.local.LocalCluster", refuse)
    with (
        pytest.raises(ClusterError, match=r"a worker did not start \(RuntimeError: exit code -9\)"),
        open_cluster(make_recipe(kind="local", workers=1).cluster),
    ):
        pass
