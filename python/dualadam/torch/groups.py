"""Parameter groups: the names of their parameters, and the checks of new groups."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from torch import Tensor

from dualadam.torch.options import (
    HOW_TO_CHOOSE,
    config_of,
    has_schedule,
    naming,
    refuse,
    schedule_of,
    stored,
)
from dualadam.torch.plain import check_tensor


def name_of(group: dict[str, Any], index: int, position: int) -> str:
    """The name that error messages give the parameter at `position` of the `index`-th group."""
    names = _entries_of(group)
    return _place(names[position] if names else None, index, position)


def names_of(group: dict[str, Any]) -> list[str] | None:
    """The names of a group's parameters, or None if they do not all have one."""
    names = _entries_of(group)
    return list(names) if names and all(isinstance(name, str) for name in names) else None


def _entries_of(group: dict[str, Any]) -> Sequence[Any]:
    """The `param_names` of a group, if there is one for each parameter. Any object may be there."""
    names = group.get("param_names")
    if isinstance(names, (list, tuple)) and len(names) == len(group["params"]):
        return names
    return ()


def _place(name: Any, index: int, position: int) -> str:
    """The name in error messages of a parameter, which the user may have given a name."""
    has_name = isinstance(name, str)
    return f"parameter '{name}'" if has_name else f"parameter {position} of group {index}"


def new_group(given: dict[str, Any], defaults: dict[str, Any], index: int) -> dict[str, Any]:
    """The group to add as the `index`-th, with all its options checked.

    Keys of other tools stay in it, as in the groups of torch's optimizers.
    """
    if not isinstance(given, dict):
        raise TypeError(f"group {index} must be a dict, got {type(given)}")
    group = dict(given)
    with naming(f"group {index}"):
        refuse(group)
        rate, steps = group.pop("switching_rate", None), group.pop("switching_steps", None)
        schedule = schedule_of(rate, steps, group.get("schedule"))
        if schedule is not None:
            group["schedule"] = schedule
        elif "schedule" in defaults:
            group.pop("schedule", None)
        else:
            raise ValueError(HOW_TO_CHOOSE)
        group = stored(group)
        if "params" not in group:
            raise ValueError(f"params must be given, got only {', '.join(map(str, given))}")
        config_of({**defaults, **group})
    group["params"] = _checked_params(group["params"], index)
    return group


def with_schedule(params: Any, defaults: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The parameters and the defaults of a new optimizer, without a schedule that is None.

    Fails if neither the defaults nor all groups have a schedule.
    """
    if defaults["schedule"] is not None:
        return params, defaults
    groups = list(params)
    choose = all(isinstance(group, dict) and has_schedule(group) for group in groups)
    if not (groups and choose):
        raise ValueError(HOW_TO_CHOOSE)
    return groups, {key: value for key, value in defaults.items() if key != "schedule"}


def check_in_one_group(groups: list[dict[str, Any]], new: dict[str, Any]) -> None:
    """Fails if a parameter of a new group is in another group."""
    lists = (as_list(group["params"], index) for index, group in enumerate(groups))
    known = {id(param) for param in chain.from_iterable(lists)}
    for position, entry in enumerate(new["params"]):
        name, param = entry if isinstance(entry, tuple) else (None, entry)
        if id(param) in known:
            what = _place(name, len(groups), position)
            raise ValueError(f"{what} must be in one group, it is in more than one parameter group")


def as_list(params: Any, index: int) -> list[Any]:
    """The parameters of the `index`-th group, as a list."""
    try:
        iterator = iter(params)
    except TypeError:
        text = f"params of group {index} must be an iterable of parameters, got {params!r}"
        raise TypeError(text) from None
    return list(iterator)


def _checked_params(params: Any, index: int) -> Any:
    """The parameters of a new group, as a list unless the base class refuses them."""
    if isinstance(params, Tensor):
        return [params]
    if isinstance(params, set):
        return params
    params = as_list(params, index)
    seen: set[int] = set()
    for position, entry in enumerate(params):
        if isinstance(entry, tuple) and len(entry) != 2:
            what = _place(None, index, position)
            raise ValueError(
                f"{what} must be a Tensor, or a name and a Tensor, it is a tuple of {len(entry)}"
            )
        name, param = entry if isinstance(entry, tuple) else (None, entry)
        what = _place(name, index, position)
        check_tensor(what, param)
        if not (param.is_leaf or param.retains_grad):
            text = "must be a leaf, such as a torch.nn.Parameter, it is the result of an operation"
            raise ValueError(f"{what} {text}")
        if id(param) in seen:
            raise ValueError(f"{what} must appear once, it is in the group twice")
        seen.add(id(param))
    return params
