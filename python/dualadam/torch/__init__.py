"""DualAdam as an optimizer for PyTorch: `dualadam.torch.DualAdam`."""

from dualadam.torch.optimizer import DualAdam

__all__ = ["DualAdam"]
