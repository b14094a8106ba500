"""The native module. The public names are in `dualadam`."""

from collections.abc import Callable, Sequence
from typing import Any, final

@final
class Schedule:
    """When DualAdam becomes Adam: how α, the weight of the inverse update, falls from 1 to 0."""

    @staticmethod
    def linear(switching_rate: float) -> Schedule:
        """α = max(0, 1 - t·ξ), where `switching_rate` is ξ, from 0 to 1."""

    @staticmethod
    def linear_until(step: int) -> Schedule:
        """The linear schedule whose α is 0 from step `step` on: ξ = 1/step."""

    @staticmethod
    def linear_early_drop(switching_rate: float) -> Schedule:
        """α = 1 - t·ξ while that is at least ξ, then 0: as in the authors' published code."""

    @staticmethod
    def exponential(base: float, period: int, cutoff: float) -> Schedule:
        """α = base^⌊(t-1)/period⌋ while that is at least `cutoff`, then 0."""

    @staticmethod
    def fixed(switching_step: int) -> Schedule:
        """α = 1 up to and including step `switching_step`, then 0."""

    @staticmethod
    def from_tuple(parts: Sequence[str | float]) -> Schedule:
        """The schedule of plain values, as `as_tuple` gives them."""

    def as_tuple(self) -> tuple[str | float, ...]:
        """The schedule as plain values: the name of the static method, then its arguments."""

    def alpha(self, step: int) -> float:
        """α in the `step`-th update of a tensor."""

    def first_adam_step(self) -> int | None:
        """The first step whose α is 0, or None if there is none."""

    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...

@final
class Config:
    """The hyperparameters of `dualadam.step`, checked."""

    def __new__(
        cls,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        schedule: Schedule,
        *,
        decoupled: bool = True,
        inverse_term: str = "paper",
        maximize: bool = False,
    ) -> Config: ...
    def coeffs(self, step: int, grad_multiplier: float = 1.0) -> dict[str, float]:
        """The coefficients of the `step`-th update of a tensor, as the kernels take them."""

    def __eq__(self, other: object) -> bool: ...

def step(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    *,
    config: Config,
    step: int,
    master: Any | None = None,
    grad_multiplier: float = 1.0,
    stream: int | None = None,
) -> None:
    """Make one DualAdam step of one tensor, in place, in one pass through memory."""

def multiplier(grad_scale: float, found_inf: float) -> float | None:
    """The multiplier of the gradients on the CPU, or None if the step must be skipped."""

def lacks_threads() -> bool:
    """Whether the library of OpenMP may lack its threads in this process, and wait for them."""

@final
class Stepper:
    """The steps of one `dualadam.torch.DualAdam`, which calls this."""

    def __new__(
        cls,
        *,
        plain: Sequence[type],
        unwrap: Callable[[Any], Any | None],
        unwrap_grad: Callable[[Any, Any], Any | None],
        weak_storage: Callable[[Any], Any],
        has_expired: Callable[[Any], bool],
        name_of: Callable[[dict[str, Any], int, int], str],
        threads: Callable[[], int],
        parallel: int,
    ) -> Stepper: ...
    def step(
        self,
        state: dict[Any, Any],
        groups: Sequence[tuple[list[Any], dict[str, Any], Config, bool, Any | None]],
        grads: dict[int, Any] | None,
        multiplier: float,
        is_controlled: bool,
        scalars: Sequence[tuple[int, Any | None, Any | None]],
    ) -> list[tuple[int, int]] | None:
        """Make one step of every parameter that has a gradient, or return the odd places."""

    def has_begun(self) -> bool:
        """Whether the last call of `step` stepped something, also if it ended by an exception."""

    def forget(self) -> None:
        """Drop all references to tensors."""

    def restart(self) -> None:
        """Drop all references to tensors, and what is known of masters."""

    def sync_masters(self, pairs: Sequence[tuple[int, Any, Any]]) -> None:
        """Take over into masters what their parameters have."""
