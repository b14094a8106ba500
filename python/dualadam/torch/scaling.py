"""The loss scale and found-inf that `torch.amp.GradScaler` gives to a step."""

from itertools import chain
from typing import Any

import torch
from torch import Tensor

from dualadam._dualadam import multiplier as multiplier_of
from dualadam.torch.groups import as_list
from dualadam.torch.modes import is_capturing
from dualadam.torch.options import number

# For each CUDA device, by its number: the loss scale and found-inf as scalars on it.
Scalars = list[tuple[int, Tensor | None, Tensor | None]]


def devices_of(groups: list[dict[str, Any]]) -> set[torch.device]:
    """The devices of the parameters."""
    params = chain.from_iterable(as_list(g["params"], index) for index, g in enumerate(groups))
    return {param.device for param in params if isinstance(param, Tensor)}


def scaling(
    groups: list[dict[str, Any]], grad_scale: Any | None, found_inf: Any | None
) -> tuple[float, Scalars] | None:
    """The multiplier of the gradients on the CPU, and the scalars that CUDA devices read.

    None if the step must be skipped. Only with parameters on the CPU does the host read found-inf.
    """
    devices = devices_of(groups)
    multiplier = 1.0
    if any(device.type == "cpu" for device in devices):
        scale = 1.0 if grad_scale is None else number("grad_scale", grad_scale)
        found = 0.0 if found_inf is None else number("found_inf", found_inf)
        formed = multiplier_of(scale, found)
        if formed is None:
            return None
        multiplier = formed
    on_cuda = [device for device in devices if device.type == "cuda"]
    scalars = [
        (device.index, _on(device, grad_scale), _on(device, found_inf)) for device in on_cuda
    ]
    return multiplier, scalars


def _on(device: torch.device, scalar: Tensor | None) -> Tensor | None:
    if scalar is None:
        return None
    return scalar.detach().to(device=device, dtype=torch.float32, non_blocking=True)


class Skips:
    """Counts the steps that found-inf skips, without waiting for a device."""

    def __init__(self) -> None:
        self._on_host = 0
        self._on_device: Tensor | None = None

    def add(self, scaled: tuple[float, Scalars] | None) -> None:
        """Counts a step that `scaling` has looked at."""
        if scaled is None:
            self._on_host += 1
            return
        found = next((found_inf for _, _, found_inf in scaled[1] if found_inf is not None), None)
        if found is None or (self._on_device is None and is_capturing()):
            # A counter that is made in a capture would begin at 0 with each replay.
            return
        # A counter that is an inference tensor could not change outside of inference mode.
        with torch.inference_mode(False), torch.no_grad():
            if self._on_device is None or self._on_device.device != found.device:
                self._on_host = self.total()
                self._on_device = torch.zeros((), dtype=torch.int64, device=found.device)
            self._on_device.add_(found.reshape(()) != 0)

    def total(self) -> int:
        """The number of skipped steps. Waits for the device."""
        return self._on_host + (0 if self._on_device is None else int(self._on_device))
