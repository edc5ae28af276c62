"""What GODC and LFAM cost in each network that the package trains: parameters, FLOP, memory and time of a step.

Every step is made by nnU-Net's own trainer with a batch drawn once, on 2D plans of six stages. FLOP are those of the
forward pass of one patch, two for each multiplication of convolutions; a deformable convolution counts as the
convolution of its size, its interpolation not at all.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401  before all that imports the package
import torch
from _measure import TINY, parse_arguments, peak_memory_mib, quartiles, save_report, stem, time_ms
from torch.utils.flop_counter import FlopCounterMode

import nnunet_godc.ops  # noqa: F401  registers the operator whose products are counted

NETWORKS = ("", "UNet", "ResUNet", "UNetPlusPlus", "AttentionUNet", "CENet")
ADDITIONS = ("", "GODC", "LFAM", "GODCLFAM")
BATCH_SIZE, CLASSES = 2, 3
WIDTHS = (32, 64, 128, 256, 512, 512)  # of nnU-Net's 2d plans
ROUNDS = 5


def plans(patch: int, widths: tuple[int, ...]) -> dict[str, Any]:
    """nnU-Net's plans of one 2d configuration, with what a trainer reads of them."""
    stages = len(widths)
    network = {
        "n_stages": stages,
        "features_per_stage": list(widths),
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3]] * stages,
        "strides": [[1, 1], *[[2, 2]] * (stages - 1)],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": "benchmark",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": BATCH_SIZE,
        "patch_size": [patch, patch],
        "spacing": [1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": network,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": True,
    }
    return {
        "dataset_name": "Dataset999_Benchmark",
        "plans_name": "nnUNetPlans",
        "label_manager": "LabelManager",
        "configurations": {"2d": configuration},
        "continue_training": False,
    }


def make(name: str, planned: dict[str, Any], device: torch.device) -> Any:
    """An initialised trainer of that name."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    with contextlib.redirect_stdout(io.StringIO()):
        dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "tumour": 2}}
        trainer = recursive_find_trainer_class_by_name(name)(
            copy.deepcopy(planned), "2d", 0, {**dataset, "numTraining": 1, "file_ending": ".nii.gz"}, device
        )
        torch.manual_seed(0)
        trainer.initialize()
        trainer.network.train()
    return trainer


def batch(trainer: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    patch = trainer.configuration_manager.patch_size
    targets = [
        torch.randint(
            CLASSES, (BATCH_SIZE, 1, *(round(e * s) for e, s in zip(patch, scale, strict=True))), generator=generator
        )
        for scale in trainer._get_deep_supervision_scales() or [[1.0, 1.0]]
    ]
    target = targets if trainer.enable_deep_supervision else targets[0]
    return {"data": torch.randn(BATCH_SIZE, 1, *patch, generator=generator), "target": target}


def forward_flop(trainer: Any, data: torch.Tensor) -> int:
    """Of one patch."""

    def deformable(input: Any, offset: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return 2 * math.prod(weight) * out_shape[0] * math.prod(out_shape[2:])

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.nnunet_godc.deform_conv: deformable})
    with counter, torch.no_grad():
        trainer.network(data[:1].to(trainer.device).expand(2, *data.shape[1:]))
    return counter.get_total_flops() // 2


def measure(arguments: argparse.Namespace, planned: dict[str, Any]) -> list[dict[str, Any]]:
    device = torch.device(arguments.device)
    results = []
    for network in NETWORKS:
        running = {}
        for addition in ADDITIONS:
            trainer = make(f"nnUNetTrainer{network}{addition}", planned, device)
            data = batch(trainer)
            entry = {
                "network": network or "nnU-Net",
                "addition": addition or "stock",
                "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
                "forward_gflop": forward_flop(trainer, data["data"]) / 1e9,
            }

            def step(trainer: Any = trainer, data: dict[str, Any] = data) -> None:
                trainer.train_step(data)

            step()
            entry["peak_memory_mib"] = peak_memory_mib(step, device)
            running[addition] = (entry, step, [])
            results.append(entry)
        # interleaved, so that whatever disturbs the machine meets all of them
        for _ in range(ROUNDS):
            for _, step, times in running.values():
                times.append(time_ms(step, device) / 1e3)
        for entry, _, times in running.values():
            entry["step_s"] = quartiles(times)
            print(f"{entry['network']}, {entry['addition']}: {entry['step_s'][1]:.2f} s", flush=True)
        write(arguments, results, planned)
    return results


def write(arguments: argparse.Namespace, results: list[dict[str, Any]], planned: dict[str, Any]) -> None:
    patch = " x ".join(map(str, planned["configurations"]["2d"]["patch_size"]))
    lines = [
        "| network | | parameters in 10^6 | forward GFLOP | peak memory in MiB | step in s | to stock |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    stock: dict[str, float] = {}
    for entry in results:
        first, median, third = entry["step_s"]
        ratio = median / stock.setdefault(entry["network"], median)
        lines.append(
            f"| {entry['network']} | {entry['addition']} | {entry['parameters'] / 1e6:.1f} "
            f"| {entry['forward_gflop']:.1f} | {entry['peak_memory_mib']:.0f} "
            f"| {median:.2f} [{first:.2f}, {third:.2f}] | {ratio:.2f} |"
        )
    save_report(
        "networks",
        f"Training steps of nnU-Net's trainers on 2D patches of {patch}, batch {BATCH_SIZE}; median [quartiles] of "
        f"{ROUNDS} rounds, in which the four of a network take turns. Peak memory beyond weights, momentum and batch.",
        lines,
        results,
        arguments,
        [f"widths of the plans: {WIDTHS}", *([TINY] if arguments.tiny else [])],
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--patch", type=int, default=128, help="size of the square patch, a multiple of 32")


def main() -> int:
    arguments = parse_arguments(__doc__, add_options)
    planned = plans(32 if arguments.tiny else arguments.patch, (4, 4, 4, 4) if arguments.tiny else WIDTHS)
    with tempfile.TemporaryDirectory() as folder:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[variable] = folder
        data = Path(folder, planned["dataset_name"], "benchmark")
        data.mkdir(parents=True)
        (data / "case.b2nd").touch()  # by its files nnU-Net tells the kind of dataset
        measure(arguments, planned)
    print(f"Written: {arguments.out / stem('networks', arguments)}.json and .md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
