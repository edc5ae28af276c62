import pytest

from nnunet_godc.spelling import closest_match, closest_trainer, point_out_misspelling

KNOWN = frozenset(
    {
        "nnUNetTrainer",
        "nnUNetTrainer_100epochs",
        "nnUNetTrainerGODC",
        "nnUNetTrainerGODCOnly",
        "nnUNetTrainerGODCLFAM",
        "nnUNetTrainerGODCLFAMShared",
        "nnUNetTrainerGODCLFAM_50epochs",
        "nnUNetTrainerLFAM_100epochs",
    }
)


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("nnUNetTrainerGODCLAFM", "nnUNetTrainerGODCLFAM"),
        ("nnUnetTrainerGODCLFAM", "nnUNetTrainerGODCLFAM"),
        ("nnunettrainergodclfam", "nnUNetTrainerGODCLFAM"),
        ("nnUNetTrainerGODC_LFAM", "nnUNetTrainerGODCLFAM"),
        ("nnUNetTrainerGODC_only", "nnUNetTrainerGODCOnly"),
        ("nnUNetTrainerGODCLFAM_50epoch", "nnUNetTrainerGODCLFAM_50epochs"),
        ("nnUNetTrainerGODCLFAM50epochs", "nnUNetTrainerGODCLFAM_50epochs"),
        ("nnUNetTrainer_100epoch", "nnUNetTrainer_100epochs"),
    ],
)
def test_the_name_that_was_meant_is_the_nearest(misspelt: str, meant: str):
    assert closest_trainer(misspelt, KNOWN) == meant


@pytest.mark.parametrize("other", ["nnUNetTrainerVanillaAdam", "nnUNetTrainerCELoss", "__path__", "GODC", ""])
def test_names_of_other_things_have_no_nearest(other: str):
    assert closest_trainer(other, KNOWN) is None


def test_a_misspelling_is_pointed_out_once(capsys: pytest.CaptureFixture[str]):
    for _ in range(3):
        point_out_misspelling("nnUNetTrainerGODCC", KNOWN)
    assert capsys.readouterr().err == (
        "nnunet-godc knows no trainer called nnUNetTrainerGODCC; did you mean nnUNetTrainerGODC?\n"
    )


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("patiant", "patient"), ("PATIENT", "patient"), ("Lits_28", "LITS_028"), ("colour", None), ("", None)],
)
def test_nearest_name_of_any_kind(misspelt, meant):
    assert closest_match(misspelt, ["LITS_028", "case", "patient"]) == meant
