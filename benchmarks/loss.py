"""GODC and cross-entropy, one after the other and in one pass, against nnU-Net's soft Dice and cross-entropy.

On the CPU of one output, as nnU-Net runs it there; on a GPU of all outputs of deep supervision, in fp16 autocast, and
compiled as the trainers do it besides. Needs no more than PyTorch and dynamic_network_architectures.
"""

from __future__ import annotations

from functools import partial

import torch
from _godc import GODCInOnePass, godc
from _measure import Step, compare, forward_backward, parse_arguments, write_results
from _stock import DeepSupervision, DiceAndCrossEntropy, SoftDice
from torch import Tensor, nn

CPU_SHAPES = [(2, 3, 96, 96, 96), (2, 14, 64, 64, 64)]
GPU_SHAPES = [(2, 3, 128, 128, 128), (2, 105, 128, 128, 128)]
OUTPUTS = 5  # of deep supervision, each half as large as the one before

STOCK = "nnU-Net's Dice + cross-entropy"
PLAIN = "GODC + cross-entropy, one after the other"
IN_ONE_PASS = "GODC + cross-entropy, in one pass"


def losses() -> dict[str, nn.Module]:
    """What nnU-Net runs on the CPU, and ours."""
    return {
        STOCK: DiceAndCrossEntropy(SoftDice(batch_dice=False), compiled=False),
        PLAIN: DiceAndCrossEntropy(godc(), compiled=False),
        IN_ONE_PASS: GODCInOnePass(),
    }


def supervised_losses() -> dict[str, nn.Module]:
    """With deep supervision, as they are and compiled: nnU-Net compiles the Dice term alone, our trainers all of it."""
    wrap = partial(DeepSupervision, outputs=OUTPUTS)
    in_one_pass = wrap(GODCInOnePass())
    in_one_pass.compile()
    return {name: wrap(loss) for name, loss in losses().items()} | {
        f"{STOCK}, compiled": wrap(DiceAndCrossEntropy(SoftDice(batch_dice=False), compiled=True)),
        f"{PLAIN}, compiled": wrap(DiceAndCrossEntropy(godc(), compiled=True)),
        f"{IN_ONE_PASS}, compiled": in_one_pass,
    }


def random_batch(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits and labels."""
    logits = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
    labels = torch.randint(shape[1], (shape[0], 1, *shape[2:]), device=device)
    return logits, labels.float()  # nnU-Net's loader gives floats


def steps(shape: tuple[int, ...], device: torch.device) -> dict[str, Step]:
    torch.manual_seed(0)
    if device.type != "cuda":
        logits, labels = random_batch(shape, device, torch.float32)
        return {name: forward_backward(partial(loss, logits, labels), [logits]) for name, loss in losses().items()}
    levels = [(*shape[:2], *(extent >> level for extent in shape[2:])) for level in range(OUTPUTS)]
    batches = [random_batch(level, device, torch.float16) for level in levels]
    outputs, targets = [logits for logits, _ in batches], [labels for _, labels in batches]

    def under_autocast(loss: nn.Module) -> Tensor:
        with torch.autocast("cuda"):
            value: Tensor = loss(outputs, targets)
        return value

    return {
        # the coarsest output does not count
        name: forward_backward(partial(under_autocast, loss), outputs[:-1])
        for name, loss in supervised_losses().items()
    }


def main() -> None:
    arguments = parse_arguments(__doc__)
    device = torch.device(arguments.device)
    measurements = []
    for shape in GPU_SHAPES if device.type == "cuda" else CPU_SHAPES:
        torch.compiler.reset()
        measurements += compare(" x ".join(map(str, shape)), steps(shape, device), device, arguments.seconds)
    write_results("loss", measurements, arguments, notes=[])


if __name__ == "__main__":
    main()
