"""A small model and its data, for programs that need no model of their own."""

import torch
from torch.utils.data import DataLoader, TensorDataset

BATCHES = 8
EPOCHS = 12


def model_and_data() -> tuple[torch.nn.Module, DataLoader[tuple[torch.Tensor, ...]]]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    x = torch.randn(BATCHES * 8, 8)
    data = TensorDataset(x, x.sum(dim=1, keepdim=True))
    return model, DataLoader(data, batch_size=8)
