"""``grid.crs: utm``: one plan for each UTM zone, mapped one after the other into one map.

Each zone is an ordinary plan, whose map is a group below that of the whole and whose run folder
lies in that of the whole; so nothing below planning knows of zones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bigmap import simulate
from bigmap.area import list_utm_zones, read_area, utm_crs
from bigmap.catalog import Catalogue
from bigmap.config import UTM, Recipe
from bigmap.errors import CatalogError, EmptyAreaError, OutputError, RecipeError
from bigmap.lease import Lease
from bigmap.models import MapModel
from bigmap.planning import (
    CACHE_LIMIT,
    Estimate,
    Plan,
    check_inputs,
    check_scenes,
    make_plan,
)
from bigmap.progress import StageProgress
from bigmap.runner import Reporter, RunSummary
from bigmap.runs import RunFolder, check_output
from bigmap.staging import StageSummary, read_staged, stage_plan, use_staged, verify_stage
from bigmap.store import create_root


@dataclass(frozen=True)
class ZonePlans:
    """The plans of all zones of a map."""

    recipe: Recipe
    """With ``grid.crs: utm``."""
    plans: tuple[Plan, ...]
    """From west to east; the last part of their ``output.path`` is the name of the group."""

    @property
    def model(self) -> MapModel:
        """The model, which all zones share."""
        return self.plans[0].model

    @property
    def is_remote(self) -> bool:
        """Tell whether scenes lie behind a network."""
        return any(plan.is_remote for plan in self.plans)

    @cached_property
    def scenes(self) -> simulate.SceneStock | None:
        """Scenes that a simulated source needs in all zones; see :attr:`Plan.scenes`."""
        stocks = [plan.scenes for plan in self.plans if plan.scenes is not None]
        return simulate.SceneStock.join(stocks) if stocks else None

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, for example ``utm31n``."""
        return tuple(group_of(plan.recipe) for plan in self.plans)

    def estimate(self) -> Estimate:
        """Estimate what the run will take; an item that two zones read counts twice."""
        days = [plan.catalogue.rows.column("solar_day") for plan in self.plans]
        total = Estimate.add([plan.estimate() for plan in self.plans])
        return replace(total, dates=len(np.unique(np.concatenate(days))))


def is_utm(recipe: Recipe) -> bool:
    """Tell whether a recipe asks for a grid of each UTM zone."""
    return recipe.grid.crs == UTM


def group_of(recipe: Recipe) -> str:
    """Return the name of a zone's group in the map."""
    return recipe.output.path.rpartition("/")[2]


def split_recipe(recipe: Recipe) -> list[Recipe]:
    """Return the recipe of each zone in which the area may lie."""
    area = recipe.area
    zones = list_utm_zones(**area.model_dump(exclude={"utm_zone"}))
    return [
        recipe.model_copy(
            update={
                "grid": recipe.grid.model_copy(update={"crs": utm_crs(zone)}),
                "area": area.model_copy(update={"utm_zone": zone}),
                "output": recipe.output.model_copy(
                    update={"path": f"{recipe.output.path}/utm{zone}"}
                ),
            }
        )
        for zone in zones
        if area.utm_zone in (None, zone)
    ]


def plan_zones(
    recipe: Recipe,
    *,
    resume: bool = False,
    staged: Path | None = None,
    needs_weights: bool = False,
) -> ZonePlans:
    """Plan all zones of a map.

    Parameters
    ----------
    recipe
        With ``grid.crs: utm``.
    resume
        Take the items of zones that have been started, and check that they still fit.
    needs_weights
        As for :func:`bigmap.planning.make_plan`.
    staged
        Folder of :func:`stage_zones`: its scenes are read, and nothing else.

    Raises
    ------
    BigmapError
        If a zone cannot be mapped; all are planned before the first is run.
    """
    check_inputs(recipe)
    plans = []
    for part in split_recipe(recipe):
        folder = RunFolder(part.output.path)
        started = resume and folder.exists()
        scenes = staged / group_of(part) if staged is not None else None
        try:
            items = folder.read_items() if started else _read_scenes(part, scenes)
            plan = make_plan(part, catalogue=items, needs_weights=needs_weights)
        except EmptyAreaError:
            continue  # only the search for zones, which is generous, thought it touched
        except CatalogError as error:
            raise CatalogError(f"{group_of(part)}: {error}") from error
        if started:
            folder.check_plan(plan)
        if scenes is not None:
            plan = use_staged(plan, scenes)
        check_scenes(replace(plan, recipe=recipe))
        plans.append(plan)
    if not plans:
        raise RecipeError("area: lies in no UTM zone that it may be mapped in")
    zones = ZonePlans(recipe, tuple(plans))
    if zones.scenes is not None:
        zones.scenes.check_size(CACHE_LIMIT)
    return zones


def _read_scenes(part: Recipe, scenes: Path | None) -> Catalogue | None:
    """Return the staged items of a zone; none was staged where it only might have been touched."""
    if scenes is None:
        return None
    read_area(crs=part.grid.crs, **part.area.model_dump())
    return read_staged(scenes)


def stage_zones(
    zones: ZonePlans, folder: Path, *, whole: bool, jobs: int, reporter: StageProgress | None
) -> StageSummary:
    """Fetch the scenes of all zones, each into a folder of the zone's name; see :func:`stage_plan`.

    What two zones read of an item is fetched for each of them: it lies at the border of both.
    """
    return StageSummary.add(
        {
            group: stage_plan(plan, folder / group, whole=whole, jobs=jobs, reporter=reporter)
            for group, plan in zip(zones.groups, zones.plans, strict=True)
        }
    )


def verify_zones(recipe: Recipe, folder: Path, *, jobs: int) -> StageSummary:
    """Compare the staged files of all zones with their checksums; see :func:`verify_stage`."""
    groups = [group_of(part) for part in split_recipe(recipe)]
    there = [group for group in groups if (folder / group).is_dir()]
    if not there:
        raise CatalogError(f"{folder}: holds no staged scenes; make them with bigmap stage")
    return StageSummary.add({group: verify_stage(folder / group, jobs=jobs) for group in there})


def run_zones(
    zones: ZonePlans,
    run: Callable[..., RunSummary],
    *,
    resume: bool,
    limit: int | None,
    reporter: Reporter,
    redo: Collection[str] | None = None,
    reuse: str | None = None,
    overwrite: bool = False,
) -> RunSummary:
    """Run the plans of all zones one after the other.

    Parameters
    ----------
    zones
        Of :func:`plan_zones`.
    run
        :func:`bigmap.runner.run_plan` with its cluster.
    resume, limit, reporter, redo, reuse, overwrite
        As for it; blocks are named as in ``utm31n/r12c34``, and the
        limit holds for all zones together.

    Returns
    -------
    RunSummary
        The sum over zones; a zone that the limit or a stop did not reach is not in it.
    """
    folder = RunFolder(zones.recipe.output.path)
    if redo is not None:
        _check_blocks(redo, zones.groups)
    if reuse is not None and not RunFolder(reuse).zones():
        raise OutputError(f"--reuse {reuse}: is not a map with grid.crs utm")
    lease = Lease(folder.path)
    lease.acquire(reporter.note)
    try:
        resume = check_output(zones.recipe, resume=resume, overwrite=overwrite and not resume)
        if not resume:
            folder.clear(lease)
        attributes = dict(zones.plans[0].template().attributes)
        del attributes["bigmap:area_bbox"]  # of its zone
        own = {"bigmap:recipe": zones.recipe.model_dump(mode="json", exclude={"cluster"})}
        create_root(folder.output, {**attributes, **own}, zones.groups)
        folder.create_zones(
            zones.recipe,
            {
                group: len(plan.blocks)
                for group, plan in zip(zones.groups, zones.plans, strict=True)
            },
            lease,
        )
        total = RunSummary(planned=0)
        for group, plan in zip(zones.groups, zones.plans, strict=True):
            lease.check()
            started = resume and RunFolder(plan.recipe.output.path).exists()
            left = None if limit is None else limit - total.sent
            own_redo = _blocks_in(redo, group)
            if (left == 0 or own_redo == frozenset()) and not started:
                continue
            reporter.note(f"{group}: {plan.area.area_km2:,.0f} km² in {plan.lattice.crs}")
            old = f"{reuse}/{group}" if reuse else None
            summary = run(
                plan,
                resume=started,
                overwrite=True,
                limit=left,
                reporter=reporter,
                redo=own_redo,
                reuse=old if old and RunFolder(old).exists() else None,
            )
            total = add_summary(total, summary, group)
            if summary.stopped:
                break
        return total
    finally:
        lease.release()


def add_summary(total: RunSummary, summary: RunSummary, group: str) -> RunSummary:
    """Return a summary with that of one more zone, whose blocks and objects get its name."""
    named = replace(
        summary,
        missing_shards=tuple(f"{group}/{key}" for key in summary.missing_shards),
        failures=tuple((f"{group}/{block}", error) for block, error in summary.failures),
        replaced=tuple(each for each in summary.replaced if each not in total.replaced),
    )
    either: dict[str, Any] = {
        "stopped": total.stopped or named.stopped,
        "has_overviews": total.has_overviews and named.has_overviews,
    }
    sums = {
        field.name: getattr(total, field.name) + getattr(named, field.name)
        for field in fields(RunSummary)
        if field.name not in either
    }
    return RunSummary(**sums | either)


def _check_blocks(redo: Collection[str], groups: Sequence[str]) -> None:
    for name in redo:
        if "/" in name and name.split("/")[0] not in groups:
            raise OutputError(f"--redo {name}: there is no such zone; there are {list(groups)}")
        if "/" not in name and name not in ("failed", "degraded"):
            raise OutputError(f"--redo {name}: name its zone too, as in {groups[0]}/{name}")


def _blocks_in(redo: Collection[str] | None, group: str) -> frozenset[str] | None:
    """Return what is to be redone in one zone; None where nothing was asked for."""
    if redo is None:
        return None
    return frozenset(
        name.rpartition("/")[2] for name in redo if "/" not in name or name.startswith(f"{group}/")
    )
