"""Train, predict and evaluate on a small made-up CT collection, on the CPU, in a few minutes."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for data, models and pictures")


def run(arguments: argparse.Namespace) -> int:
    from nnunet_godc.demo import run_demo

    run_demo(arguments.out)
    return 0
