"""The native module's stepper, and the arguments that it takes."""

from typing import Any

import torch
from torch import Tensor

from dualadam._dualadam import Config, Stepper
from dualadam.torch.groups import name_of
from dualadam.torch.openmp import parallel
from dualadam.torch.plain import plain, plain_grad, weak_storage
from dualadam.torch.scaling import Scalars

# A group as the stepper takes it: the parameters, the group itself, the hyperparameters, whether
# there are masters, and the lr if it is a tensor on a CUDA device.
NativeGroup = tuple[list[Any], dict[str, Any], Config, bool, Any | None]
# The arguments of its step that a second call repeats.
Arguments = tuple[float, bool, Scalars]


def new_stepper() -> Stepper:
    """A stepper for tensors of torch."""
    return Stepper(
        plain=[Tensor, torch.nn.Parameter],
        unwrap=plain,
        unwrap_grad=plain_grad,
        weak_storage=weak_storage,
        has_expired=torch.UntypedStorage._expired,  # type: ignore[arg-type]
        name_of=name_of,
        threads=torch.get_num_threads,
        parallel=parallel(),
    )
