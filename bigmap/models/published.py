"""Weights that others have published, turned into ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bigmap.errors import ModelError
from bigmap.models import build_model
from bigmap.models.base import MapModel, OptionValue
from bigmap.models.card import Training
from bigmap.models.checkpoint import check_tensors, read_tensors, save_weights
from bigmap.models.importing import import_highresnet, import_piunet
from bigmap.models.layers import BandStatistics

NETWORK = "network."
"""Before the names of a network's tensors within the model that maps with it."""


@dataclass(frozen=True)
class Images:
    """What a network was trained on: it saw (scale * reflectance - mean) / std.

    Mean and deviation are in the units of its images, one for each band or one for all.
    """

    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class PublishedFormat:
    """Names under which a network was published, and what such a file does not tell."""

    rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    options: Mapping[str, str]
    """Options of ours that decide what comes out, and that no tensor tells; with advice."""
    is_standardised: bool
    """Whether its images were standardised, by numbers that the file does not hold."""


FORMATS = {
    "highres-net": PublishedFormat(
        import_highresnet,
        {"upscale": "3 for Deudon et al., 2 for Razzak et al.",
         "sigmoid": "false for Deudon et al., true for Razzak et al."},
        is_standardised=False,
    ),
    "piunet": PublishedFormat(import_piunet, {}, is_standardised=True),
}  # fmt: skip


def import_weights(
    name: str,
    file: Path,
    out: Path,
    *,
    options: Mapping[str, OptionValue],
    bands: tuple[str, ...] | None = None,
    images: Images | None = None,
    data: str = "unknown",
) -> MapModel:
    """Write published weights as ours, with a card.

    Parameters
    ----------
    name
        The model. One without published names takes a file with the names of our own network or
        model.
    file
        PyTorch or safetensors file; nothing in it is run.
    out
        Ends in ``.safetensors``.
    options, bands
        Of the model, as in a recipe.
    images
        What the network was trained on. A published file does not tell, so it must be said; one
        with our own names is taken for a network that saw reflectance, standardised by its own
        statistics or, where it holds none, by those that our networks start with.
    data
        What the weights were trained on, for the card.

    Returns
    -------
    MapModel
        As it was written.

    Raises
    ------
    ModelError
        If the file cannot be read, does not hold the network's tensors, or if something that
        decides what the network makes is known neither from it nor from the arguments.
    """
    images = images or Images()
    model = build_model(name, options, bands=bands)
    if not model.has_weights:
        raise ModelError(f"{name} has no weights, so none can be imported")
    tensors = read_tensors(file)
    published = FORMATS.get(name)
    if published is not None:
        tensors = published.rename(tensors)
        _refuse_unsaid(name, published, options, images)
    if hasattr(model, "network") and not any(key.startswith(NETWORK) for key in tensors):
        tensors = {f"{NETWORK}{key}": tensor for key, tensor in tensors.items()}
    statistics = _set_statistics(model, images, tensors, file=file)
    expected = model.state_dict()
    tensors = statistics | {
        # Halves and doubles of others; what does not fit float32 is not finite then.
        key: tensor.to(expected[key].dtype)
        if key in expected and tensor.is_floating_point() and expected[key].is_floating_point()
        else tensor
        for key, tensor in tensors.items()
    }
    check_tensors(model, tensors, file=file)
    model.load_state_dict(tensors)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_weights(model, out, training=Training(data=data, source=file.name))
    except OSError as error:
        raise ModelError(f"--out {out}: cannot be written ({error.strerror})") from None
    return model


def describe_images(model: MapModel) -> list[str]:
    """Tell what a network sees and gives, in words, one line each."""
    lines = []
    statistics = next((m for m in model.modules() if isinstance(m, BandStatistics)), None)
    if statistics is not None:
        bands = (
            f"{band} ({mean:.6g}, {std:.6g})"
            for band, mean, std in zip(
                model.spec.bands, statistics.mean.tolist(), statistics.std.tolist(), strict=True
            )
        )
        lines.append(f"input: (reflectance - mean) / deviation, with {', '.join(bands)}")
    if not model.spec.legend:
        is_bounded = bool(model.options.get("sigmoid"))
        how = "its sigmoid, taken as reflectance" if is_bounded else "times deviation, plus mean"
        lines.append(f"output: what the network gives, {how}")
    return lines


def _refuse_unsaid(
    name: str, published: PublishedFormat, options: Mapping[str, OptionValue], images: Images
) -> None:
    """Refuse a published network of which something is not known that decides what it makes."""
    for option, advice in published.options.items():
        if option not in options:
            raise ModelError(
                f"{name}: the file does not tell the {option} of its network; add --set "
                f"{option}=VALUE ({advice})"
            )
    if images.scale is None:
        raise ModelError(
            f"{name}: the file does not tell the units of its images; add --input-scale, by which "
            "reflectance is multiplied to get them (1 for reflectance, 10000 for its digital "
            "numbers)"
        )
    if published.is_standardised and (images.mean is None or images.std is None):
        raise ModelError(
            f"{name}: the file does not tell by which mean and deviation its images were "
            "standardised; add --input-mean and --input-std, in the units of its images"
        )
    if options.get("sigmoid") and images.scale != 1:
        raise ModelError(
            f"{name}: with sigmoid=true its image lies between 0 and 1 in the units of its images, "
            f"and a map holds reflectance; --input-scale {images.scale:g} does not go with that"
        )


def _set_statistics(
    model: MapModel, images: Images, tensors: Mapping[str, Tensor], *, file: Path
) -> dict[str, Tensor]:
    """Let a model standardise as its network was trained; return the tensors that say so."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if not isinstance(module, BandStatistics):
            continue
        keys = {f"{name}.mean", f"{name}.std"}
        if keys & tensors.keys():
            if images != Images():
                raise ModelError(
                    f"{file}: holds the statistics of its images; leave --input-scale, "
                    "--input-mean and --input-std out"
                )
            continue
        if images != Images():
            module.set(*_standardise(images, bands=len(model.spec.bands)))
        found |= {f"{name}.mean": module.mean, f"{name}.std": module.std}
    if images != Images() and not found:
        raise ModelError(f"{model.spec.name} does not standardise its images; leave --input-* out")
    return found


def _standardise(images: Images, *, bands: int) -> tuple[list[float], list[float]]:
    """Return mean and deviation of each band, in reflectance."""
    if (images.mean is None) is not (images.std is None):
        raise ModelError("--input-mean and --input-std belong together; give both")
    scale = 1.0 if images.scale is None else images.scale
    mean, std = images.mean or (0.0,), images.std or (1.0,)
    for option, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, bands):
            raise ModelError(
                f"--input-{option}: {len(values)} numbers are given for {bands} bands; give one "
                "for each, or one for all"
            )
    for option, value in (
        ("scale", scale),
        *(("mean", x) for x in mean),
        *(("std", x) for x in std),
    ):
        if not math.isfinite(value) or (option != "mean" and value <= 0):
            wanted = "finite" if option == "mean" else "finite and above 0"
            raise ModelError(f"--input-{option}: {value:g} is not {wanted}")
    means, stds = (values * (bands if len(values) == 1 else 1) for values in (mean, std))
    return [value / scale for value in means], [value / scale for value in stds]
