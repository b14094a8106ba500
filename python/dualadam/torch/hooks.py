"""Whether something observes the steps of an optimizer: hooks, or torch's profiler."""

import torch
from torch.optim.optimizer import (
    Optimizer,
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)


def is_observed(optimizer: Optimizer) -> bool:
    """Whether a step must go through torch's wrapper, which calls hooks and the profiler."""
    own = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    of_all = _global_optimizer_pre_hooks or _global_optimizer_post_hooks
    return bool(own or of_all or getattr(torch.autograd.profiler, "_is_profiler_enabled", True))
