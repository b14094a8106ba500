"""Parameter groups: their options, the checks of the options, and groups in state dicts."""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from dualadam._dualadam import Config, Schedule
from dualadam.torch.plain import check_param

HOW_TO_CHOOSE = (
    "DualAdam must be told when it becomes Adam. Give one of: switching_steps, the step by which "
    "it is Adam (the paper takes 16% of the run: 160 of 1,000 steps); switching_rate, "
    "1/switching_steps (the paper's own 8e-5 suits runs of some 78,000 steps, and leaves a "
    "short one in inverse Adam); schedule, a dualadam.Schedule for other shapes"
)
REFUSED = {
    "amsgrad": "the rule has no maximum of second moments",
    "foreach": "all tensors are stepped in one call as it is",
    "differentiable": "the step is made in place, by a kernel without a gradient",
}
# The keys of each group besides its parameters, also in state dicts.
_OPTIONS = (
    "lr",
    "betas",
    "eps",
    "weight_decay",
    "schedule",
    "decoupled_weight_decay",
    "inverse_term",
    "maximize",
    "capturable",
    "master_weights",
)
# Other keys that a group may have. Schedulers of torch add the last.
_OTHER_KEYS = ("params", "param_names", "initial_lr")
# Keys of saved groups, also of Adam, that are not taken over. amsgrad is refused if it is set.
_IGNORED = ("params", "amsgrad", "foreach", "differentiable", "fused")


def name_of(group: dict[str, Any], index: int, position: int) -> str:
    """The name that error messages give the parameter at `position` of the `index`-th group."""
    names = group.get("param_names")
    return _place(names[position] if names else None, index, position)


def _place(name: str | None, index: int, position: int) -> str:
    """As `name_of`, for a parameter whose own name may be None."""
    return f"parameter {position} of group {index}" if name is None else f"parameter '{name}'"


def refuse(options: dict[str, Any]) -> None:
    """Fails if an option is set that other optimizers have and DualAdam does not."""
    for name, reason in REFUSED.items():
        if options.get(name):
            raise ValueError(f"{name} must not be set, got {options[name]!r}: {reason}")


def has_schedule(group: dict[str, Any]) -> bool:
    """Whether a group, as the user gave it, has an option that says when DualAdam becomes Adam."""
    given = ("switching_rate", "switching_steps", "schedule")
    return any(group.get(name) is not None for name in given)


def number(name: str, value: Any) -> float:
    """The value of an option that must be a number, or a tensor with one element."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must have one element, it has {value.numel()}")
        return float(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)


def schedule_of(
    rate: float | None, steps: int | None, schedule: Any | None
) -> tuple[str | float, ...] | None:
    """The schedule as groups keep it: plain values, which every kind of checkpoint can store."""
    all_three = {"switching_rate": rate, "switching_steps": steps, "schedule": schedule}
    given = [name for name, value in all_three.items() if value is not None]
    if len(given) > 1:
        text = "only one of switching_rate, switching_steps and schedule must be given, got"
        raise ValueError(f"{text} {' and '.join(given)}")
    if rate is not None:
        return Schedule.linear(number("switching_rate", rate)).as_tuple()
    if steps is not None:
        try:
            whole = 0 if isinstance(steps, bool) else operator.index(steps)
        except TypeError:
            whole = 0
        if whole < 1:
            text = f"switching_steps must be at least 1, and a whole number, got {steps!r}"
            raise ValueError(text)
        return Schedule.linear_until(whole).as_tuple()
    return None if schedule is None else _as_schedule(schedule).as_tuple()


def _as_schedule(schedule: Any) -> Schedule:
    return schedule if isinstance(schedule, Schedule) else Schedule.from_tuple(schedule)


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Puts `what` before the text of a TypeError or ValueError."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{what}: {error}") from None


def config_of(group: dict[str, Any], index: int) -> Config:
    """The hyperparameters of the `index`-th group, checked by the library."""
    with _naming(f"group {index}"):
        for name in ("decoupled_weight_decay", "maximize", "capturable", "master_weights"):
            if not isinstance(group[name], bool):
                raise TypeError(f"{name} must be True or False, got {group[name]!r}")
        if not isinstance(group["betas"], (tuple, list)) or len(group["betas"]) != 2:
            raise ValueError(f"betas must be two numbers, got {group['betas']!r}")
        lr = number("lr", group["lr"])
        return Config(
            # The kernel reads an lr that is on a device. 0 stands for it on the host.
            0.0 if isinstance(group["lr"], Tensor) and group["lr"].is_cuda else lr,
            (number("beta1", group["betas"][0]), number("beta2", group["betas"][1])),
            number("eps", group["eps"]),
            number("weight_decay", group["weight_decay"]),
            _as_schedule(group["schedule"]),
            decoupled=group["decoupled_weight_decay"],
            inverse_term=group["inverse_term"],
            maximize=group["maximize"],
        )


def new_group(given: dict[str, Any], defaults: dict[str, Any], index: int) -> dict[str, Any]:
    """The group to add as the `index`-th, with all its options and parameters checked."""
    if not isinstance(given, dict):
        raise TypeError(f"group {index} must be a dict, got {type(given)}")
    group = dict(given)
    with _naming(f"group {index}"):
        refuse(group)
        rate, steps = group.pop("switching_rate", None), group.pop("switching_steps", None)
        schedule = schedule_of(rate, steps, group.get("schedule"))
        if schedule is not None:
            group["schedule"] = schedule
        elif "schedule" not in defaults:
            raise ValueError(HOW_TO_CHOOSE)
    unknown = ", ".join(sorted(set(group).difference(_OPTIONS, _OTHER_KEYS)))
    if unknown:
        raise ValueError(f"group {index} must have only options of DualAdam, got {unknown}")
    config_of({**defaults, **group}, index)
    _check_params(group, index)
    return group


def _check_params(group: dict[str, Any], index: int) -> None:
    """Checks the parameters of a new group, and puts them into a list if they are an iterator."""
    params: Any = group["params"]
    if isinstance(params, Tensor):
        params = [params]
    elif isinstance(params, set):
        return  # The base class refuses it.
    else:
        params = group["params"] = list(params)
    seen: set[int] = set()
    for position, entry in enumerate(params):
        name, param = (entry[0], entry[1]) if isinstance(entry, tuple) else (None, entry)
        what = _place(name, index, position)
        if id(param) in seen:
            raise ValueError(f"{what} must appear once, it is in the group twice")
        seen.add(id(param))
        if isinstance(param, Tensor) and not torch.nn.parameter.is_lazy(param):
            check_param(what, param)


def loaded_groups(
    groups: list[dict[str, Any]], saved: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The optimizer's groups after a state dict is loaded.

    Saved options replace those of `groups`. Options that were not saved stay.
    """
    if len(saved) != len(groups):
        text = f"the state dict must have {len(groups)} parameter groups, it has {len(saved)}"
        raise ValueError(text)
    loaded = []
    for index, (own, other) in enumerate(zip(groups, saved)):
        what = f"group {index} of the state dict"
        if len(own["params"]) != len(other["params"]):
            expected, actual = len(own["params"]), len(other["params"])
            raise ValueError(f"{what} must have {expected} parameters, it has {actual}")
        missing = [key for key in ("lr", "betas", "eps", "weight_decay") if key not in other]
        if missing:
            text = f"{what} must be that of a DualAdam or Adam, it has no {', '.join(missing)}"
            raise ValueError(text)
        with _naming(what):
            refuse({"amsgrad": other.get("amsgrad")})
        options = {key: deepcopy(value) for key, value in other.items() if key not in _IGNORED}
        if isinstance(options.get("betas"), list):
            options["betas"] = tuple(options["betas"])
        if "schedule" in options:
            with _naming(what):
                options["schedule"] = _as_schedule(options["schedule"]).as_tuple()
        group = {**own, **options, "params": own["params"]}
        config_of(group, index)
        loaded.append(group)
    return loaded
