"""The parts of a recipe that cut training samples and train a model on them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, field_validator, model_validator

from bigmap.config.parts import Number, Part, Place, Positive, Whole

Share = Annotated[Number, Field(ge=0, le=1)]
ClassValue = Annotated[Whole, Field(ge=0, le=254)]


class VectorLabels(Part):
    """Polygons of a file, rasterised at the output pixel size."""

    kind: Literal["vector"]
    file: Place = Field(description="GPKG, GeoParquet, FlatGeobuf or GeoJSON, any CRS.")
    layer: str | None = Field(None, description="Of a file with several layers.")
    attribute: str | None = Field(
        None, description="Names the class; without it all polygons are of the one class given."
    )
    classes: dict[str, ClassValue] = Field(
        min_length=1,
        description="Value of the attribute -> value of the class in the legend; polygons with "
        "other values are unlabelled.",
    )
    background: ClassValue | None = Field(
        None, description="Class of what no polygon covers; by default that is unlabelled."
    )
    overlaps: Literal["unlabelled", "last", "refuse"] = Field(
        "unlabelled", description="What becomes of pixels that polygons of two classes cover."
    )

    @field_validator("classes", mode="before")
    @classmethod
    def _name_values(cls, classes: Any) -> Any:
        """Take whole numbers and truth values as texts, as an attribute's values are compared."""
        if not isinstance(classes, dict):
            return classes
        return {str(key) if isinstance(key, int) else key: classes[key] for key in classes}


class RasterLabels(Part):
    """A raster of classes, or several, warped by the mode of the source pixels."""

    kind: Literal["raster"]
    files: tuple[Place, ...] = Field(min_length=1, description="COGs, or one STAC collection.")
    classes: dict[Whole, ClassValue] | None = Field(
        None,
        description="Value of the raster -> value of the class; others are unlabelled. By default "
        "values are classes.",
    )


class SimulatedLabels(Part):
    """The truth of the simulated world."""

    kind: Literal["simulated"]
    layer: Literal["cropland", "land_cover", "crop", "building"] = "cropland"


LabelsConfig = Annotated[VectorLabels | RasterLabels | SimulatedLabels, Discriminator("kind")]


class DownsampledImage(Part):
    """Pairs made by downsampling: the chip is the degraded image, the image its own target.

    A model learns to go from ``grid.gsd_m * upscale`` to ``grid.gsd_m``, and maps one scale finer
    than it has learnt (Abadal et al. 2021, Pereira & dos Santos 2020).
    """

    kind: Literal["downsampled"]
    method: Literal["average", "bicubic"] = "average"


class SensorImage(Part):
    """Images of a second, sharper sensor (Razzak et al. 2021)."""

    kind: Literal["sensor"]
    files: tuple[Place, ...] = Field(
        default=(),
        description="COGs of reflectance in the model's output bands; none: the second sensor of "
        "the simulated world.",
    )
    scale: Number = Field(1.0, description="reflectance = scale * value + offset")
    offset: Number = 0.0


TargetConfig = Annotated[DownsampledImage | SensorImage, Discriminator("kind")]


class CellSplit(Part):
    """Square cells of one size, each in one split, with a buffer between the splits."""

    kind: Literal["cells"] = "cells"
    cell_km: Number = Field(10.0, gt=0, le=1000)
    buffer_m: Number = Field(500.0, ge=0, description="No chip of another split comes closer.")
    train: Share = 0.8
    validation: Share = 0.1
    test: Share = 0.1

    @model_validator(mode="after")
    def _check(self) -> CellSplit:
        if abs(self.train + self.validation + self.test - 1) > 1e-6:
            raise ValueError("train, validation and test do not add up to 1")
        return self


class PolygonSplit(Part):
    """Polygons of a file; an attribute names the split."""

    kind: Literal["polygons"]
    file: Place
    layer: str | None = Field(None, description="Of a file with several layers.")
    attribute: str = "split"
    buffer_m: Number = Field(500.0, ge=0, description="No chip of another split comes closer.")


class WithinSceneSplit(Part):
    """The upper 80 % of each square for training, the lower corners for the others.

    The protocol of Razzak et al. (2021), figure 4; the scenes are squares of one size here.
    """

    kind: Literal["within-scene"]
    scene_km: Number = Field(5.0, gt=0, le=1000)
    buffer_m: Number = Field(0.0, ge=0, description="No chip of another split comes closer.")


class SceneSplit(Part):
    """Whole scenes, named; as SPInet's paper splits 100 scenes into 90 and 10."""

    kind: Literal["scenes"]
    file: Place = Field(description="Polygons of the scenes.")
    layer: str | None = Field(None, description="Of a file with several layers.")
    attribute: str = Field("name", description="Names the scenes.")
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    buffer_m: Number = Field(0.0, ge=0, description="No chip of another split comes closer.")


SplitConfig = Annotated[
    CellSplit | PolygonSplit | WithinSceneSplit | SceneSplit, Discriminator("kind")
]


class SamplesConfig(Part):
    """Training chips, cut from the recipe's scenes on its lattice."""

    path: Place = Field(description="Folder of the chips, ends in .zarr.")
    chip_px: Positive = Field(64, description="Side of a chip, in input pixels.")
    max_dates: Whole = Field(12, ge=1, le=400, description="Dates of a chip, the clearest first.")
    min_clear_percent: Number = Field(75.0, ge=0, le=100, description="Of the chip, in a date.")
    min_dates: Whole = Field(1, ge=1, le=400, description="A chip with fewer is left out.")
    labels: LabelsConfig | None = None
    target: TargetConfig | None = Field(None, description="The image that models are to make.")
    min_labelled_percent: Number = Field(50.0, ge=0, le=100)
    max_chips: Whole | None = Field(None, ge=1, description="Of a split; drawn by the seed.")
    balance: Literal["none", "classes"] = Field(
        "none", description="Draw chips so that rare classes are seen more often."
    )
    split: SplitConfig = CellSplit()
    seed: Whole = Field(0, ge=0)

    @field_validator("path")
    @classmethod
    def _check_path(cls, value: str) -> str:
        if not value.endswith(".zarr"):
            raise ValueError(f"{value!r} does not end in .zarr")
        return value

    @model_validator(mode="after")
    def _check(self) -> SamplesConfig:
        if self.labels is None and self.target is None:
            raise ValueError("give labels, a target, or both")
        if self.balance == "classes" and (self.max_chips is None or self.labels is None):
            raise ValueError("balance: classes draws chips by their labels; give max_chips too")
        if self.min_dates > self.max_dates:
            raise ValueError(f"min_dates {self.min_dates} is more than max_dates {self.max_dates}")
        return self


class SegmentationObjective(Part):
    """Classes alone: binary cross-entropy for two classes, else weighted cross-entropy."""

    kind: Literal["segmentation"] = "segmentation"
    weighted: bool = Field(True, description="Weigh classes by 1 / ln(1.02 + frequency).")


class DualObjective(Part):
    """Cross-entropy + image_weight * MSE + affinity_weight * feature affinity (Abadal et al.)."""

    kind: Literal["dual"]
    weighted: bool = Field(True, description="Weigh classes by 1 / ln(1.02 + frequency).")
    image_weight: Number = Field(1.0, ge=0)
    affinity_weight: Number = Field(1.0, ge=0)


class EndToEndObjective(Part):
    """alpha * L1 of the image + beta * cross-entropy (Pereira & dos Santos)."""

    kind: Literal["end-to-end"]
    alpha: Number = Field(0.1, ge=0)
    beta: Number = Field(1000.0, ge=0)


class ImageObjective(Part):
    """A super-resolved image against its target."""

    kind: Literal["image"]
    loss: Literal["mae", "mse", "ssim", "uncertainty"] = "mae"
    registered: bool = Field(
        False, description="Register the image to the target by ShiftNet before the loss."
    )
    consistency_weight: Share = Field(
        0.0,
        description="Share of the radiometric consistency with Sentinel-2 in the loss; above 0, "
        "colours are matched to the target's before the rest (Razzak et al.: 0.9).",
    )


ObjectiveConfig = Annotated[
    SegmentationObjective | DualObjective | EndToEndObjective | ImageObjective,
    Discriminator("kind"),
]


class OptimiserConfig(Part):
    """How weights follow gradients."""

    kind: Literal["adam", "adamw"] = "adam"
    learning_rate: Number = Field(1e-4, gt=0, le=1)
    weight_decay: Number = Field(0.0, ge=0, le=1)
    segmentation_weight_decay: Number | None = Field(
        None, ge=0, le=1, description="Of the segmentation network of dbpn-segnet, if other."
    )


class ConstantSchedule(Part):
    """One learning rate."""

    kind: Literal["constant"] = "constant"


class CosineSchedule(Part):
    """From the learning rate to nothing along half a cosine, after a linear rise."""

    kind: Literal["cosine"]
    warmup_epochs: Number = Field(0.0, ge=0)


class PlateauSchedule(Part):
    """Lower the rate where the validation loss has not fallen for some epochs."""

    kind: Literal["plateau"]
    patience_epochs: Whole = Field(2, ge=0)
    factor: Number = Field(0.1, gt=0, lt=1)


class StepSchedule(Part):
    """Lower the rate once, at a share of the epochs."""

    kind: Literal["step"]
    at: Share = 0.5
    factor: Number = Field(0.1, gt=0, lt=1)


ScheduleConfig = Annotated[
    ConstantSchedule | CosineSchedule | PlateauSchedule | StepSchedule, Discriminator("kind")
]


class AugmentConfig(Part):
    """What is varied in a chip; image, mask and labels move together."""

    flips: bool = True
    turns: bool = Field(True, description="By quarter turns.")
    date_dropout: Share = Field(0.0, description="Chance that a date is left out; one stays.")
    shuffle_dates: bool = False
    jitter: Number = Field(
        0.0, ge=0, le=0.5, description="Standard deviation of a gain and an offset per date."
    )


class TrainingConfig(Part):
    """How the recipe's model is trained on its samples."""

    weights: Place = Field(description="Where the best weights go, ends in .safetensors.")
    objective: ObjectiveConfig = SegmentationObjective()
    optimiser: OptimiserConfig = OptimiserConfig()
    schedule: ScheduleConfig = ConstantSchedule()
    augment: AugmentConfig = AugmentConfig()
    epochs: Whole = Field(60, ge=1, le=100_000)
    batch_chips: Positive = Field(8, description="Of all processes together, in one step.")
    accumulate: Positive = Field(1, description="Parts in which a batch goes through the model.")
    clip_norm: Number | None = Field(None, gt=0, description="Greatest norm of the gradient.")
    ema_decay: Number | None = Field(
        None, gt=0, lt=1, description="Keep a moving average of the weights and use that."
    )
    early_stop_epochs: Whole | None = Field(
        None, ge=1, description="Stop where the validation score has not risen for so long."
    )
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_minutes: Number = Field(10.0, gt=0)
    seed: Whole = Field(0, ge=0)

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, value: str) -> str:
        if not value.endswith(".safetensors"):
            raise ValueError(f"{value!r} does not end in .safetensors")
        return value
