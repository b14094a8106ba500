"""DualAdam as an optimizer of PyTorch."""

from dualadam.torch.optimizer import DualAdam

__all__ = ["DualAdam"]
