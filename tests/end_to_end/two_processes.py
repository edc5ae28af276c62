"""`nnUNetv2_train -num_gpus` on the CPU: nnU-Net's own command, with what needs GPUs replaced and nothing else.

nnU-Net starts one process per rank, and each imports this file anew, so that the replacements hold there too.

One addition: `-tr A,B` trains A, then B, in the same processes, since these take longer to start than to train.
"""

import os
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import nnunetv2.training.nnUNetTrainer.nnUNetTrainer
import torch
from nnunetv2.run import run_training
from torch import nn
from torch.nn.parallel import DistributedDataParallel

PATIENCE = timedelta(minutes=10)  # a rank that waits for another in vain is to fail, not to hang

init_process_group = torch.distributed.init_process_group
get_trainer_from_args = run_training.get_trainer_from_args
run_ddp = run_training.run_ddp
groups = count()


def init_gloo(backend: str, **options: Any) -> None:
    assert backend == "nccl"
    # not at nnU-Net's port, where the store of the group before may still answer
    rendezvous = Path(os.environ["nnUNet_results"]) / f"rendezvous_{os.environ['MASTER_PORT']}_{next(groups)}"
    init_process_group("gloo", init_method=rendezvous.as_uri(), timeout=PATIENCE, **options)


def get_trainer_on_cpu(*arguments: Any, **options: Any) -> Any:
    trainer = get_trainer_from_args(*arguments, **options)
    trainer.device = torch.device("cpu")
    trainer.grad_scaler = None  # as nnU-Net has it on the CPU
    return trainer


def parallel_on_cpu(network: nn.Module, device_ids: list[int]) -> DistributedDataParallel:
    return DistributedDataParallel(network)


def run_each(rank: int, dataset: str, configuration: str, fold: int, trainers: str, *options: Any) -> None:
    for trainer in trainers.split(","):
        run_ddp(rank, dataset, configuration, fold, trainer, *options)


torch.distributed.init_process_group = init_gloo
torch.cuda.set_device = lambda device: None
nnunetv2.training.nnUNetTrainer.nnUNetTrainer.DDP = parallel_on_cpu
run_training.get_trainer_from_args = get_trainer_on_cpu
run_training.run_ddp = run_each

if __name__ == "__main__":
    run_training.run_training_entry()
