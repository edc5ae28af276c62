"""GODC and LFAM in a MONAI training loop: a DynUNet, sliding windows, MONAI's metric.

    pip install 'nnunet-godc[comparison]'    # MONAI
    python examples/monai_training.py        # a minute on two CPU cores

Spheres of very different sizes in noise stand for lesions; put your own images and labels in their place.
"""

import argparse

import numpy as np
import torch
from monai.data import DataLoader, Dataset, decollate_batch
from monai.inferers import SlidingWindowInferer
from monai.metrics import DiceMetric
from monai.networks.nets import DynUNet
from monai.transforms import AsDiscrete, Compose, RandCropByPosNegLabeld, RandFlipd
from monai.utils import set_determinism

from nnunet_godc.alignment import LFAMConfig, align_skips
from nnunet_godc.losses import MonaiGODCLoss

SIZE, PATCH = 32, (24, 24, 24)


def sphere(rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """An image (1, D, H, W) and its labels (1, D, H, W), 0 and 1."""
    radius = rng.uniform(3, 10)
    centre = rng.uniform(radius, SIZE - radius, size=(3, 1, 1, 1))
    label = (np.square(np.indices((SIZE,) * 3) - centre).sum(0) < radius**2)[None]
    image = label + rng.normal(scale=0.5, size=label.shape)
    return {"image": torch.from_numpy(image).float(), "label": torch.from_numpy(label).float()}


def main() -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--cases", type=int, default=16)
    arguments = parser.parse_args()
    set_determinism(0)
    rng = np.random.default_rng(0)
    cases = [sphere(rng) for _ in range(arguments.cases)]
    held_out = max(1, len(cases) // 4)
    augment = Compose(
        [
            RandCropByPosNegLabeld(["image", "label"], label_key="label", spatial_size=PATCH, num_samples=1),
            RandFlipd(["image", "label"], prob=0.5, spatial_axis=(0, 1, 2)),
        ]
    )
    training = DataLoader(Dataset(cases[held_out:], augment), batch_size=4, shuffle=True)
    validation = DataLoader(Dataset(cases[:held_out]), batch_size=1)

    network = DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=2,
        kernel_size=[3, 3, 3],
        strides=[1, 2, 2],
        upsample_kernel_size=[2, 2],
        filters=[8, 16, 32],
    )
    # on every skip but that of the full resolution, where a deformable convolution takes longest
    align_skips(network, LFAMConfig(first_level=1))

    # In place of monai.losses.DiceLoss with the same arguments. GODC weighs the samples of a batch against each other:
    # batches of one sample make it the Dice loss, unless normalization is "running".
    godc = MonaiGODCLoss(to_onehot_y=True, softmax=True, include_background=False)
    cross_entropy = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)

    for epoch in range(arguments.epochs):
        network.train()
        total = 0.0
        for batch in training:
            optimizer.zero_grad()
            logits = network(batch["image"])
            loss = godc(logits, batch["label"]) + cross_entropy(logits, batch["label"][:, 0].long())
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch}: loss {total / len(training):.3f}")

    network.eval()
    windows = SlidingWindowInferer(roi_size=PATCH, overlap=0.5)
    metric = DiceMetric(include_background=False)
    to_one_hot, to_labels = AsDiscrete(to_onehot=2), AsDiscrete(argmax=True, to_onehot=2)
    with torch.no_grad():
        for batch in validation:
            logits = windows(batch["image"], network)
            metric([to_labels(case) for case in decollate_batch(logits)], [to_one_hot(case) for case in batch["label"]])
    dice = metric.aggregate().item()
    print(f"Dice on {held_out} held-out cases: {dice:.3f}")
    return dice


if __name__ == "__main__":
    main()
