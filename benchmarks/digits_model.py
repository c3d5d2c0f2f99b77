"""A small CNN for 8 x 8 digits, and its training."""

from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["make", "train"]


def make() -> nn.Module:
    """Two convolutional blocks and a hidden layer: images [rows, 1, 8, 8] to scores [rows, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(),
        nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def train(model: nn.Module, images: Any, labels: Any, epochs: int = 15) -> None:
    """Trains in place, with a seed; leaves the model ready to answer."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rng = np.random.default_rng(0)
    model.train()
    for _ in range(epochs):
        for batch in np.array_split(rng.permutation(len(images)), len(images) // 64):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(torch.from_numpy(images[batch])), torch.from_numpy(labels[batch]))
            loss.backward()
            optimizer.step()
    model.eval()
