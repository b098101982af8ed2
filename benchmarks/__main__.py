"""``python -m benchmarks [NAME ...] [options]``: those named below; by default all."""

import sys

from benchmarks import (
    end_to_end,
    extraction,
    fetching,
    gpu,
    memory,
    model_table,
    networks,
    plan_continent,
    prediction,
    resampling,
    scale,
    training,
)

BENCHMARKS = {
    "end_to_end": end_to_end.main,
    "extraction": extraction.main,
    "fetching": fetching.main,
    "gpu": gpu.main,
    "memory": memory.main,
    "models": model_table.main,
    "networks": networks.main,
    "plan_continent": plan_continent.main,
    "prediction": prediction.main,
    "resampling": resampling.main,
    "scale": scale.main,
    "training": training.main,
}


def main() -> None:
    """Run the benchmarks that are named; options go to each of them."""
    names = [word for word in sys.argv[1:] if word in BENCHMARKS]
    options = [word for word in sys.argv[1:] if word not in BENCHMARKS]
    for name in names or BENCHMARKS:
        BENCHMARKS[name](options)


if __name__ == "__main__":
    main()
