"""Turn a checkpoint of plain nnU-Net into one that an LFAM trainer starts from."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stock", type=Path, metavar="STOCK.pth", help="checkpoint that plain nnU-Net has written")
    parser.add_argument("out", type=Path, metavar="OUT.pth", help="file for nnUNetv2_train -pretrained_weights")
    parser.add_argument("-tr", dest="trainer", required=True, metavar="NAME", help="trainer that will start from it")


def run(arguments: argparse.Namespace) -> int:
    from nnunet_godc.training.warm_start import warm_start

    added = warm_start(arguments.stock, arguments.out, arguments.trainer)
    print(
        f"Wrote {arguments.out}: the weights of {arguments.stock} and {added} of {arguments.trainer}'s own, which "
        f"change nothing yet.\nTrain from it with: nnUNetv2_train DATASET CONFIGURATION FOLD -tr {arguments.trainer} "
        f"-pretrained_weights {arguments.out}"
    )
    return 0
