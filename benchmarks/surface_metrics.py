"""HD95, average symmetric surface distance and NSD of several libraries, where the true values are known; and time.

    pip install --no-deps monai surface-distance medpy panoptica ruamel.yaml typer pymeshmetrics vtk

measures these beside the package's own; what is not installed is left out. MetricsReloaded is on no package index: give
a checkout of it in PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from _measure import parse_cpu_arguments, write_report
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Three = tuple[float, float, float]

TOLERANCE = 2.0
SPEED_SPACING = (2.5, 0.8, 0.8)
SPEED_SHAPE = (100, 512, 512)


def box(shape: Sequence[int], low: Sequence[int], high: Sequence[int]) -> Mask:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*ends) for ends in zip(low, high, strict=True))] = True
    return mask


def ball(shape: Sequence[int], spacing: Sequence[float], radius: float, shift: Sequence[float] = (0, 0, 0)) -> Mask:
    axes = np.ogrid[tuple(slice(size) for size in shape)]
    squares = sum(
        ((axis - (size - 1) / 2) * step - off) ** 2
        for axis, size, step, off in zip(axes, shape, spacing, shift, strict=True)
    )
    return np.asarray(squares <= radius**2)


def cases() -> dict[str, tuple[Mask, Mask, Three, Three | None]]:
    """Reference, prediction, spacing, and the true HD95, average distance and NSD at 2 mm, by integration by hand."""
    thick = (5.0, 0.5, 0.5)
    # Faces 3 mm out: one outside, 1000 mm^2; one inside, min(3, t) at t from its rim of 140 mm; strips of 140 x 3 mm.
    shifted = (3.0, (3000 + 44 * 14 * 3 + 140 * 4.5 - 72 + 420 * 1.5) / 4800, 1 - (1000 + 46 * 16 + 140) / 4800)
    # The same for the ends of two boxes of 30 x 30 mm, 15 and 24 mm high, which fill their image from its border on.
    ends = (9.0, (12**2 * 9 + 4860 - 1944 + 8100 + 4860) / 8280, 1 - (26**2 + 900 + 840) / 8280)
    sphere = ((88, 70, 70), (0.8, 0.8, 0.8))
    flat = ((28, 70, 70), (2.5, 0.8, 0.8))
    empty = np.zeros((9, 9, 9), bool)
    return {
        "box of 50 x 20 x 20 mm, 5 mm slices, shifted by 3 mm": (
            box((20, 60, 60), (5, 10, 8), (15, 50, 48)),
            box((20, 60, 60), (5, 10, 14), (15, 50, 54)),
            thick,
            shifted,
        ),
        "boxes that touch the border, 9 mm apart": (
            box((20, 30, 30), (0, 0, 0), (5, 30, 30)),
            box((20, 30, 30), (0, 0, 0), (8, 30, 30)),
            (3.0, 1.0, 1.0),
            ends,
        ),
        "spheres of 20 and 24 mm, cubic voxels": (ball(*sphere, 20), ball(*sphere, 24), sphere[1], (4.0, 4.0, 0.0)),
        "the same, 2.5 mm slices": (ball(*flat, 20), ball(*flat, 24), flat[1], (4.0, 4.0, 0.0)),
        "nothing predicted": (box((9, 9, 9), (4, 4, 4), (5, 5, 5)), empty, (3.0, 1.0, 1.0), None),
        "nothing in both": (empty, empty, (3.0, 1.0, 1.0), None),
    }


def own(reference: Mask, prediction: Mask, spacing: Three) -> Three:
    from nnunet_godc.evaluation.surface import surface_distances

    distances = surface_distances(reference, prediction, spacing)
    return distances.hausdorff(95), distances.average_symmetric(), distances.normalised(TOLERANCE)


def surface_distance(reference: Mask, prediction: Mask, spacing: Three) -> Three:
    import surface_distance as library

    found = library.compute_surface_distances(reference, prediction, spacing)
    means = library.compute_average_surface_distance(found)
    areas = found["surfel_areas_gt"].sum(), found["surfel_areas_pred"].sum()
    return (
        library.compute_robust_hausdorff(found, 95),
        (means[0] * areas[0] + means[1] * areas[1]) / sum(areas),
        library.compute_surface_dice_at_tolerance(found, TOLERANCE),
    )


def monai(reference: Mask, prediction: Mask, spacing: Three) -> Three:
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    masks = [torch.from_numpy(np.stack([~mask, mask])[None].astype(np.float32)) for mask in (prediction, reference)]
    return (
        float(compute_hausdorff_distance(*masks, percentile=95, spacing=spacing)),
        float(compute_average_surface_distance(*masks, symmetric=True, spacing=spacing)),
        float(compute_surface_dice(*masks, [TOLERANCE], spacing=spacing, use_subvoxels=True)),
    )


def medpy(reference: Mask, prediction: Mask, spacing: Three) -> Three:
    from medpy.metric import binary

    return binary.hd95(prediction, reference, spacing), binary.assd(prediction, reference, spacing), math.nan


def panoptica(reference: Mask, prediction: Mask, spacing: Three) -> Three:
    from panoptica.metrics.assd import _average_symmetric_surface_distance as average
    from panoptica.metrics.hausdorff_distance import _compute_hausdorff_distance95 as hausdorff
    from panoptica.metrics.normalized_surface_dice import _compute_normalized_surface_dice as normalised

    return (
        hausdorff(reference, prediction, voxelspacing=spacing),
        average(reference, prediction, voxelspacing=spacing),
        normalised(reference, prediction, voxelspacing=spacing, threshold=TOLERANCE),
    )


def metrics_reloaded(reference: Mask, prediction: Mask, spacing: Three) -> Three:
    from MetricsReloaded.metrics.pairwise_measures import BinaryPairwiseMeasures

    found = BinaryPairwiseMeasures(
        prediction.astype(np.uint8),
        reference.astype(np.uint8),
        pixdim=spacing,
        dict_args={"hd_perc": 95, "nsd": TOLERANCE},
    )
    return (
        found.measured_hausdorff_distance_perc(),
        found.measured_average_distance(),
        found.normalised_surface_distance(),
    )


def mesh_metrics(reference: Mask, prediction: Mask, spacing: Three) -> Three:
    from meshmetrics import DistanceMetrics

    found = DistanceMetrics(verbose=False)
    found.set_input(ref=reference, pred=prediction, spacing=spacing)
    return found.hd(95), found.assd(), found.nsd(TOLERANCE)


# What they are called, what is imported, and the package whose version counts.
CANDIDATES: dict[str, tuple[Callable[[Mask, Mask, Three], Three], str]] = {
    "nnunet-godc": (own, "nnunet-godc"),
    "surface-distance": (surface_distance, "surface-distance"),
    "MONAI": (monai, "monai"),
    "medpy": (medpy, "medpy"),
    "panoptica": (panoptica, "panoptica"),
    "MetricsReloaded": (metrics_reloaded, "MetricsReloaded"),
    "MeshMetrics": (mesh_metrics, "pymeshmetrics"),
}


def measure(name: str) -> dict[str, Any]:
    """Everything about one candidate; in a process of its own, so that its peak of memory is its own."""
    warnings.simplefilter("ignore")
    function, package = CANDIDATES[name]
    values: dict[str, Any] = {}
    for case, (reference, prediction, spacing, _) in cases().items():
        try:
            values[case] = [float(value) for value in function(reference, prediction, spacing)]
        except ImportError:
            return {}
        except Exception as error:
            values[case] = type(error).__name__
    organ = [ball(SPEED_SHAPE, SPEED_SPACING, 85, shift) for shift in ((0, 0, 0), (3, 2, 0))]
    lesion = [ball(SPEED_SHAPE, SPEED_SPACING, radius) for radius in (12, 11)]
    seconds = {}
    for what, masks in {"organ": organ, "lesion": lesion}.items():
        start = time.process_time()
        function(masks[0], masks[1], SPEED_SPACING)
        seconds[what] = time.process_time() - start
    try:
        number = version(package)
    except PackageNotFoundError:
        number = "checkout"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"library": name, "version": number, "values": values, "seconds": seconds, "peak_mib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CANDIDATES, help=argparse.SUPPRESS)
    arguments = parse_cpu_arguments(parser)
    if arguments.only:
        print(json.dumps(measure(arguments.only)))
        return
    rows = []
    for name in CANDIDATES:
        command = [sys.executable, __file__, "--only", name]
        finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(finished.stdout.splitlines()[-1])
        if row:
            rows.append(row)
        else:
            print(f"{name} is not installed and left out")
    truths = {case: truth for case, (_, _, _, truth) in cases().items()}
    table = ["| | " + " | ".join(f"{row['library']} {row['version']}" for row in rows) + " | true |"]
    table.append("| --- |" + " --- |" * (len(rows) + 1))
    for case, truth in truths.items():
        cells = [shown(row["values"][case]) for row in rows]
        table.append(f"| {case} | {' | '.join(cells)} | {shown(truth) if truth else 'undefined'} |")
    for what in ("organ", "lesion"):
        cells = [f"{row['seconds'][what]:.2f}" for row in rows]
        table.append(f"| CPU seconds, {what} | {' | '.join(cells)} | |")
    cells = [f"{row['peak_mib']:.0f}" for row in rows]
    table.append(f"| peak memory, MiB | {' | '.join(cells)} | |")
    write_report(
        "surface_metrics",
        f"HD95 (mm), average symmetric surface distance (mm) and NSD at {TOLERANCE:g} mm. Seconds for all three of an "
        f"organ of 170 mm and a lesion of 24 mm in {' x '.join(map(str, SPEED_SHAPE))} voxels of "
        f"{' x '.join(map(str, SPEED_SPACING))} mm, once, after the small cases.",
        table,
        rows,
        arguments,
        ["one thread"],
    )


def shown(values: Any) -> str:
    return values if isinstance(values, str) else ", ".join(f"{value:.2f}" for value in values)


if __name__ == "__main__":
    main()
