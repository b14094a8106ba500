"""Fused kernels for the DualAdam optimizer, on the CPU and on CUDA devices.

DualAdam blends Adam's update with an inverse update. The weight α of the inverse update falls from
1 to 0 during training; from then on the update is Adam's. The source is Algorithm 1 of T. Shi,
L. Chen, L. Jin, M. Zhou, "Combining Adam and its Inverse Counterpart to Enhance Generalization of
Deep Learning Optimizers", arXiv 2603.07122 (2026).

- `dualadam.torch.DualAdam`: the optimizer for PyTorch.
- `dualadam.step`: one step of arrays of NumPy, CuPy and any other library with DLPack.
- `dualadam.Config`: the hyperparameters of `dualadam.step`.
- `dualadam.Schedule`: α for each step.

`import dualadam` does not import torch.

Example:
    >>> import numpy as np
    >>> import dualadam
    >>> schedule = dualadam.Schedule.linear_until(160)  # plain Adam from step 160 on
    >>> config = dualadam.Config(1e-3, (0.9, 0.999), 1e-8, 0.0, schedule)
    >>> param, grad = np.ones(3, np.float32), np.ones(3, np.float32)
    >>> exp_avg, exp_avg_sq = np.zeros_like(param), np.zeros_like(param)
    >>> dualadam.step(param, grad, exp_avg, exp_avg_sq, config=config, step=1)
    >>> param
    array([0.999, 0.999, 0.999], dtype=float32)
"""

from dualadam._dualadam import Config, Schedule, step

__all__ = ["Config", "Schedule", "step"]
