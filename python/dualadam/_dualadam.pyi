from collections.abc import Callable, Sequence
from typing import Any, final

@final
class Schedule:
    @staticmethod
    def linear(switching_rate: float) -> Schedule: ...
    @staticmethod
    def linear_until(step: int) -> Schedule: ...
    @staticmethod
    def linear_early_drop(switching_rate: float) -> Schedule: ...
    @staticmethod
    def exponential(base: float, period: int, cutoff: float) -> Schedule: ...
    @staticmethod
    def fixed(switching_step: int) -> Schedule: ...
    @staticmethod
    def from_tuple(parts: Sequence[str | float]) -> Schedule: ...
    def as_tuple(self) -> tuple[str | float, ...]: ...
    def alpha(self, step: int) -> float: ...
    def first_adam_step(self) -> int | None: ...
    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...

@final
class Config:
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
    def coeffs(self, step: int, grad_multiplier: float = 1.0) -> dict[str, float]: ...
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
) -> None: ...
def multiplier(grad_scale: float, found_inf: float) -> float | None: ...
def use_threads(threads: int) -> None: ...

@final
class Stepper:
    def __new__(
        cls,
        plain: Sequence[type],
        unwrap: Callable[[Any], Any | None],
        unwrap_grad: Callable[[Any, Any], Any | None],
    ) -> Stepper: ...
    def step(
        self,
        state: dict[Any, Any],
        groups: Sequence[tuple[list[Any], list[str] | None, Config, bool, Any | None]],
        grads: dict[int, Any] | None,
        multiplier: float,
        is_controlled: bool,
        scalars: Sequence[tuple[int, Any | None, Any | None]],
    ) -> list[tuple[int, int]] | None: ...
    def has_begun(self) -> bool: ...
    def forget(self) -> None: ...
