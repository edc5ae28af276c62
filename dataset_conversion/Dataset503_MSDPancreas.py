"""The Decathlon's Task07_Pancreas: 281 CT scans with pancreas and tumour, 139 test scans."""

import argparse
import sys
from pathlib import Path

from nnunet_godc.conversion.case import CaseSource
from nnunet_godc.conversion.collection import Collection, CollectionListing, matched_by_number, missing_partners
from nnunet_godc.conversion.command import Converter, main
from nnunet_godc.conversion.files import visible_files
from nnunet_godc.conversion.labels import LabelMap

COLLECTION = Collection(
    title="MSD Task07_Pancreas",
    dataset_name="MSDPancreas",
    rules=LabelMap(names={1: "pancreas", 2: "tumour"}, region_of={"pancreas": (1, 2), "tumour": (2,)}),
    tumour=2,
    label_grid="physical",
    reference="https://doi.org/10.1038/s41467-022-30695-9",
    licence="CC BY-SA 4.0",
)

NAME = r"pancreas_(\d+)\.nii(?:\.gz)?"


def find_cases(root: Path, arguments: argparse.Namespace | None = None) -> CollectionListing:
    """The cases under `root`: pancreas_NNN in imagesTr, labelsTr and imagesTs, wherever these lie."""
    inside: dict[str, list[Path]] = {"imagesTr": [], "labelsTr": [], "imagesTs": []}
    for file in visible_files(root):
        inside.get(file.parent.name, []).append(file)
    image = matched_by_number(inside["imagesTr"], NAME, what="training image", root=root)
    label = matched_by_number(inside["labelsTr"], NAME, what="label", root=root)
    test = matched_by_number(inside["imagesTs"], NAME, what="test image", root=root)
    problems = [*image.problems, *label.problems, *test.problems, *missing_partners(image, label, root)]
    # The numbers of training and test images are one sequence, so that the names do not meet.
    both = image.files.keys() & test.files.keys()
    problems += [f"pancreas {n} is a training and a test image; move one away" for n in sorted(both)]
    cases = [
        CaseSource(f"pancreas_{n:03d}", image.files[n], label.files[n])
        for n in sorted((image.files.keys() & label.files.keys()) - both)
    ]
    cases += [CaseSource(f"pancreas_{n:03d}", test.files[n], None, test=True) for n in sorted(test.files.keys() - both)]
    return CollectionListing(tuple(cases), tuple(problems))


CONVERTER = Converter(lambda arguments: COLLECTION, 503, find_cases, __doc__)

if __name__ == "__main__":
    sys.exit(main(CONVERTER))
