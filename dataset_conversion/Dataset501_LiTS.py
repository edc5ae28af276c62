"""LiTS: 131 CT scans with liver and liver tumour, as downloaded, or as the Decathlon's Task03_Liver."""

import argparse
import sys
from pathlib import Path

from nnunet_godc.conversion.case import CaseSource
from nnunet_godc.conversion.collection import Collection, CollectionListing, matched_by_number, missing_partners
from nnunet_godc.conversion.command import Converter, main
from nnunet_godc.conversion.dataset import PARTS
from nnunet_godc.conversion.files import visible_files
from nnunet_godc.conversion.labels import LabelMap

COLLECTION = Collection(
    title="LiTS",
    dataset_name="LiTS",
    rules=LabelMap(names={1: "liver", 2: "tumour"}, region_of={"liver": (1, 2), "tumour": (2,)}),
    tumour=2,
    # Some segmentations have an identity affine or a foreign origin; all lie on their image's voxels.
    label_grid="image",
    reference="https://doi.org/10.1016/j.media.2022.102680",
    licence="CC BY-NC-ND 4.0",
)

WARNINGS = {54: "its segmentation is said to be shifted against the image: look at the preview"}


def find_cases(root: Path, arguments: argparse.Namespace | None = None) -> CollectionListing:
    """The cases under `root`: volume-N and segmentation-N in any folders, or liver_N in imagesTr and labelsTr.

    Test cases are test-volume-N, or liver_N in imagesTs. LiTS delivers no labels for them; where somebody has
    test-segmentation-N, or liver_N in labelsTs, these go along.
    """
    files = visible_files(root)
    as_downloaded = _pairs(
        root,
        images=(files, r"volume-(\d+)\.nii(?:\.gz)?"),
        labels=(files, r"segmentation-(\d+)\.nii(?:\.gz)?"),
        tests=(files, r"test-volume-(\d+)\.nii(?:\.gz)?"),
        test_labels=(files, r"test-segmentation-(\d+)\.nii(?:\.gz)?"),
    )
    inside = {part: [file for file in files if file.parent.name == part] for part in PARTS}
    decathlon_name = r"liver_(\d+)\.nii(?:\.gz)?"
    decathlon = _pairs(
        root,
        images=(inside["imagesTr"], decathlon_name),
        labels=(inside["labelsTr"], decathlon_name),
        tests=(inside["imagesTs"], decathlon_name),
        test_labels=(inside["labelsTs"], decathlon_name),
    )
    if as_downloaded.cases and decathlon.cases:
        return CollectionListing(
            (), ("the folder holds both LiTS's own files and the Decathlon's Task03_Liver; give one of them",)
        )
    return CollectionListing(
        (*as_downloaded.cases, *decathlon.cases),
        (*as_downloaded.problems, *decathlon.problems),
    )


def _pairs(
    root: Path,
    *,
    images: tuple[list[Path], str],
    labels: tuple[list[Path], str],
    tests: tuple[list[Path], str],
    test_labels: tuple[list[Path], str],
) -> CollectionListing:
    image = matched_by_number(*images, what="volume", root=root)
    label = matched_by_number(*labels, what="segmentation", root=root)
    test = matched_by_number(*tests, what="test volume", root=root)
    test_label = matched_by_number(*test_labels, what="test segmentation", root=root)
    cases = [
        CaseSource(
            f"LiTS_{number:03d}",
            image.files[number],
            label.files[number],
            warnings=(WARNINGS[number],) if number in WARNINGS else (),
        )
        for number in sorted(image.files.keys() & label.files.keys())
    ]
    cases += [
        CaseSource(f"LiTS_test_{number:03d}", test.files[number], test_label.files.get(number), test=True)
        for number in sorted(test.files.keys() - test_label.several)
    ]
    problems = (*image.problems, *label.problems, *test.problems, *test_label.problems)
    return CollectionListing(tuple(cases), (*problems, *missing_partners(image, label, root)))


CONVERTER = Converter(lambda arguments: COLLECTION, 501, find_cases, __doc__)

if __name__ == "__main__":
    sys.exit(main(CONVERTER))
