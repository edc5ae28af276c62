import pytest
import torch


@pytest.fixture
def random_batch():
    """Makes logits (B, C, ...) and labels (B, 1, ...); from sample to sample objects grow and are better predicted."""

    def make(batch=2, classes=3, size=(6, 5, 4), seed=0, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn((batch, classes, *size), generator=generator, dtype=torch.float64).to(dtype)
        chance = torch.rand((batch, 1, *size), generator=generator)
        labels = torch.randint(1, classes, (batch, 1, *size), generator=generator)
        foreground = torch.linspace(0.05, 0.7, batch).view(batch, 1, *[1] * len(size))
        labels = torch.where(chance < foreground, labels, 0)
        right = torch.linspace(0, 3, batch).view(foreground.shape).expand(labels.shape)
        return logits.scatter_add(1, labels, right.to(dtype)), labels

    return make


@pytest.fixture
def differentiate():
    """Value of a loss and its gradient by the first argument."""

    def run(loss, prediction, *arguments):
        prediction = prediction.detach().clone().requires_grad_()
        value = loss(prediction, *arguments)
        (gradient,) = torch.autograd.grad(value, prediction)
        return value.detach(), gradient

    return run
