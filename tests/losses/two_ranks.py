"""One rank of a training run with two, as nnU-Net runs it: what the tests of several ranks start in processes."""

from pathlib import Path

import torch
import torch._inductor.config
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from torch import nn

from nnunet_godc.losses import GODCConfig, GODCLoss
from nnunet_godc.losses.compounds import fused

STEPS = 2  # the running mean takes part from the second step on


def make_network():
    torch.manual_seed(0)
    return nn.Conv3d(1, 3, 3, padding=1).double()


def make_step(step):
    """Images (3, 1, ...) and labels (3, 1, ...) of one batch of three samples with objects of very different size."""
    generator = torch.Generator().manual_seed(step)
    labels = torch.zeros((3, 1, 6, 6, 6), dtype=torch.long)
    for sample, edge in enumerate((1, 3, 6)):
        labels[sample, :, :edge, :edge, :edge] = 1
        labels[sample, :, 0, 0, : edge // 2] = 2
    noise = torch.randn(labels.shape, generator=generator, dtype=torch.float64)
    return labels * torch.tensor([0.2, 1, 3]).view(3, 1, 1, 1, 1) + noise, labels


def make_loss(config, ddp, in_one_pass=False):
    options = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": ddp, "config": config, "classes": 3}
    loss = DC_and_CE_loss(options, {}, weight_ce=0, dice_class=GODCLoss)
    return fused(loss) if in_one_pass else loss


def gradients(network, loss, samples):
    """Per step the gradients of the network's parameters by the loss of these samples, and the loss's last state."""
    steps = []
    for step in range(STEPS):
        images, labels = make_step(step)
        network.zero_grad()
        loss(network(images[samples]), labels[samples]).backward()
        steps.append([parameter.grad.clone() for parameter in network.parameters()])
    return steps, {name.removeprefix("_orig_mod."): value for name, value in loss.dc.state_dict().items()}


def run_rank(rank, folder, cases):
    """Trains each case: options of GODCConfig, samples of each rank, backend of torch.compile or None, in one pass."""
    torch.set_num_threads(1)
    torch._inductor.config.compile_threads = 1  # no pool of compilers beside each rank
    rendezvous = f"file://{Path(folder) / 'rendezvous'}"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    results = []
    for options, samples, backend, in_one_pass in cases:
        torch._dynamo.reset()
        network = nn.parallel.DistributedDataParallel(make_network())
        loss = make_loss(GODCConfig(**options), True, in_one_pass)
        if backend is not None and in_one_pass:
            loss.compile(backend=backend)
        elif backend is not None:
            loss.dc = torch.compile(loss.dc, backend=backend)
        results.append(gradients(network, loss, samples[rank]))
    torch.save(results, Path(folder) / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()
