"""1,003 samples, a number to predict, and the lowest error tells the best epoch."""

import torch
from torch import nn
from torch.utils.data import TensorDataset, default_collate

BETTER = ("mean_squared_error", min)
collate = default_collate


def make_datasets():
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(1003, 8, generator=draws)
    y = (x[:, :4] * x[:, 4:]).sum(dim=1, keepdim=True)
    return TensorDataset(x[:900], y[:900]), TensorDataset(x[900:], y[900:])


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1)
    )


def loss(model, batch):
    x, y = batch
    return nn.functional.mse_loss(model(x), y, reduction="sum"), len(y)


def metrics(model, batch):
    return {"mean_squared_error": loss(model, batch)}


def track(step, values):
    pass
