"""The DualAdam optimizer: fused kernels for the CPU and for CUDA.

`dualadam.torch.DualAdam` is the optimizer for PyTorch. `dualadam.step` steps arrays of any library
that has DLPack.

Early in training, DualAdam blends Adam with its inverse counterpart; then it becomes Adam: T. Shi,
L. Chen, L. Jin, M. Zhou, "Combining Adam and its Inverse Counterpart to Enhance Generalization of
Deep Learning Optimizers", arXiv 2603.07122 (2026), Algorithm 1.
"""

from dualadam._dualadam import Config, Schedule, step

__all__ = ["Config", "Schedule", "step"]
