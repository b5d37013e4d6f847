"""The small models the course trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SmallCNN(nn.Module):
    """Two convolutions and two linear layers for 28x28 digits, about 108,000 parameters.

    Without BatchNorm and dropout: a sample's output does not depend on the rest of its batch or
    on chance, so gradients of N ranks can be compared exactly with those of one.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, kernel_size=5, padding=2)
        self.conv2 = nn.Conv2d(8, 32, kernel_size=5, padding=2)
        self.fc1 = nn.Linear(32 * 7 * 7, 64)
        self.fc2 = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 28, 28) to logits (N, num_classes).

        Raises:
            ValueError: images of another shape.
        """
        if images.ndim != 4 or images.shape[1:] != (1, 28, 28):
            raise ValueError(
                f"images of shape {tuple(images.shape)}: SmallCNN expects (N, 1, 28, 28); "
                "for (N, 28, 28) add the channel with images.unsqueeze(1)"
            )
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)  # (N, 8, 14, 14)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # (N, 32, 7, 7)
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc2(x)


class MLP(nn.Module):
    """One hidden layer, for quick demonstrations."""

    def __init__(self, num_inputs: int = 784, num_hidden: int = 32, num_classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(num_inputs, num_hidden)
        self.fc2 = nn.Linear(num_hidden, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (N, ...) with num_inputs values a sample, to logits (N, num_classes)."""
        return self.fc2(F.relu(self.fc1(torch.flatten(inputs, 1))))


def count_parameters(model: nn.Module) -> int:
    """The number of single values that training can change."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
