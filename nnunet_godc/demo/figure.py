"""One picture per case: image, reference and prediction side by side."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from nnunet_godc.demo.phantom import LIVER, TUMOUR

WINDOW = (-160, 240)  # HU; the usual soft-tissue window, level 40 and width 400
# Blue and orange of Okabe and Ito: told apart by colour-blind readers, and from any grey.
COLOURS = {LIVER: "#56B4E9", TUMOUR: "#FF9D00"}


def draw_case(image: Path, reference: Path, prediction: Path, out: Path, *, title: str, score: str) -> None:
    """Write a PNG with the slice in which the reference tumour is largest (without tumour: the liver).

    Slices are axial and shown as radiologists do: the patient's right on the left, front at the top.

    Args:
        image: CT volume, NIfTI, any orientation.
        reference, prediction: label maps of the same grid.
        out: the PNG to write.
        title: heading of the picture.
        score: what stands over the prediction, below its name.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    volumes = [nibabel.as_closest_canonical(nibabel.load(path)) for path in (image, reference, prediction)]
    voxels, labels, predicted = (np.asanyarray(volume.dataobj) for volume in volumes)
    x_spacing, y_spacing, z_spacing = (float(step) for step in volumes[0].header.get_zooms()[:3])
    shown = most_conspicuous_slice(labels)

    width, height = voxels.shape[0] * x_spacing, voxels.shape[1] * y_spacing
    panel = 4.2  # inches
    figure = Figure(figsize=(3 * panel, panel * height / width + 1.15), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{title}, slice {shown + 1} of {voxels.shape[2]}, {x_spacing:.1f} x {y_spacing:.1f} x {z_spacing:.1f} mm",
        fontsize=13,
    )
    panels = (("CT", None), ("Reference", labels), (f"Prediction: {score}", predicted))
    for axes, (name, overlay) in zip(figure.subplots(1, 3), panels, strict=True):
        axes.imshow(
            _axial(voxels, shown),
            cmap="gray",
            vmin=WINDOW[0],
            vmax=WINDOW[1],
            aspect=y_spacing / x_spacing,
            interpolation="bicubic",
        )
        axes.set_title(name, fontsize=12)
        axes.set_axis_off()
        if overlay is None:
            continue
        for label, colour in COLOURS.items():
            here = _axial(overlay, shown)
            only = np.ma.masked_not_equal(here, label)
            axes.imshow(only, cmap=ListedColormap([colour]), alpha=0.3, aspect=y_spacing / x_spacing)
            # The tumour lies in the liver, so the liver's contour goes around both.
            if (here >= label).any():
                axes.contour(here >= label, levels=[0.5], colors=[colour], linewidths=1.8)
    legend = [Patch(color=COLOURS[LIVER], label="liver"), Patch(color=COLOURS[TUMOUR], label="tumour")]
    figure.legend(handles=legend, loc="outside lower center", ncols=2, frameon=False, fontsize=12)
    figure.savefig(out, dpi=100)


def most_conspicuous_slice(labels: NDArray[np.integer]) -> int:
    """Index along the last axis where most tumour lies; without tumour, most liver."""
    sought = labels == TUMOUR if (labels == TUMOUR).any() else labels == LIVER
    return int(sought.sum(axis=(0, 1)).argmax())


def _axial(volume: NDArray[np.number], index: int) -> NDArray[np.number]:
    """Rows from front to back, columns from the patient's right to the left, out of a volume in RAS order."""
    return volume[::-1, ::-1, index].T
