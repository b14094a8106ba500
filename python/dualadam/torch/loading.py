"""State dicts: which of their groups and states belong to which of the optimizer's."""

from collections import defaultdict
from collections.abc import Iterator
from copy import deepcopy
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dualadam.torch.groups import as_list, name_of, names_of
from dualadam.torch.openmp import only_threads_that_exist
from dualadam.torch.options import as_schedule, config_of, naming, refuse, schedule_of, stored
from dualadam.torch.state import MASTER, check_loaded, repaired

# Keys of saved groups of other optimizers that are not taken over. amsgrad is refused if it is set.
_NOT_TAKEN_OVER = ("params", "amsgrad", "foreach", "differentiable", "fused")

_Groups = list[dict[str, Any]]
# The place of a parameter: its group, and its position in the group.
_Place = tuple[int, int]


@only_threads_that_exist()
def loaded(
    groups: _Groups, states: dict[Tensor, Any], state_dict: Any, strict: bool
) -> dict[str, Any]:
    """The groups and states of an optimizer after a state dict is loaded. Changes nothing."""
    _check_parts(state_dict)
    saved = state_dict["param_groups"]
    params = [as_list(group["params"], index) for index, group in enumerate(groups)]
    sources, places = _match(groups, saved, strict)
    new_groups = [
        dict(group) if source is None else _loaded_group(group, saved[source], source)
        for group, source in zip(groups, sources)
    ]
    new_states: defaultdict[Tensor, Any] = defaultdict(dict)
    if not strict:
        new_states.update(states)
    with torch.no_grad():
        for key, value in state_dict["state"].items():
            if key not in places:
                new_states[key] = value
                continue
            place = places[key]
            if place is None:
                continue
            group, param = new_groups[place[0]], params[place[0]][place[1]]
            check_loaded(name_of(groups[place[0]], *place), param, value)
            if not value:
                continue
            on_device = param.is_cuda and bool(group["capturable"])
            # The next step makes a missing master: the parameter may be loaded after this.
            has_master = bool(group["master_weights"]) and MASTER in value
            new_states[param] = repaired(param, value, has_master, on_device, copies=True)
    return {"state": new_states, "param_groups": new_groups}


def _check_parts(state_dict: Any) -> None:
    """Fails unless a state dict has groups with parameters, and states."""
    if not isinstance(state_dict, dict):
        raise TypeError(f"the state dict must be a dict, it is {type(state_dict)}")
    for key, kind in (("state", dict), ("param_groups", (list, tuple))):
        if key not in state_dict:
            found = ", ".join(map(str, state_dict)) or "nothing"
            raise ValueError(f"the state dict must have {key}, it has {found}")
        if not isinstance(state_dict[key], kind):
            text = f"{key} of the state dict must be a {'dict' if kind is dict else 'list'}"
            raise TypeError(f"{text}, it is {type(state_dict[key])}")
    keys: set[Any] = set()
    for index, group in enumerate(state_dict["param_groups"]):
        if not isinstance(group, dict) or not isinstance(group.get("params"), (list, tuple)):
            raise ValueError(f"group {index} of the state dict must be a dict with params, a list")
        try:
            keys.update(group["params"])
        except TypeError:
            text = f"params of group {index} of the state dict must be numbers or names"
            raise TypeError(f"{text}, got {group['params']!r}") from None
    for key, state in state_dict["state"].items():
        # Other code may have entries of its own among the states of parameters.
        if key not in keys and isinstance(state, dict) and "exp_avg" in state:
            text = "the states of the state dict must have the keys that its groups have as params"
            raise ValueError(f"{text}, such as {next(iter(keys), None)!r}, got {key!r}")


class _Match(NamedTuple):
    """Which parts of a state dict belong to which parts of the optimizer."""

    # For each group of the optimizer, the saved group that its options come from, if there is one.
    groups: list[int | None]
    # For each parameter of the saved groups, by its key, its place in the optimizer, if it has one.
    places: dict[Any, _Place | None]


def _match(groups: _Groups, saved: _Groups, strict: bool) -> _Match:
    """Matches the groups and parameters of a state dict with those of the optimizer.

    If `strict` is set, both sides have the same names, or the order counts: without names, or if
    all names differ. If it is not set, the parameters are matched whose names both sides have.
    """
    own, other = _by_name(groups), _by_name(saved)
    if not strict:
        if own is None or other is None:
            where = "the optimizer" if own is None else "the state dict"
            text = f"strict must be True where parameters have no names of their own, as in {where}"
            raise ValueError(f"{text}: construct the optimizer from model.named_parameters()")
        return _match_by_name(own, other, groups, saved)
    _check_sizes(groups, saved)
    if own is not None and other is not None:
        in_same_group = all(name in own and own[name][0] == other[name][0] for name in other)
        if in_same_group:
            return _match_by_name(own, other, groups, saved)
        # If no name is the same, the model may be in another wrapper. Its order is the same then.
        if any(name in own for name in other):
            text = "strict=False loads what both have, and without param_names the order counts"
            expected = f"must have the optimizer's parameters, but {_difference(own, other)}"
            raise ValueError(f"the state dict {expected}; {text}")
    places = dict(zip(_keys(saved), _places(groups)))
    return _Match(list(range(len(groups))), dict(places))


def _match_by_name(
    own: dict[str, _Place], other: dict[str, _Place], groups: _Groups, saved: _Groups
) -> _Match:
    names = dict(zip(_keys(saved), other))
    sources: list[int | None] = [None] * len(groups)
    for name, (index, _) in own.items():
        if sources[index] is None and name in other:
            sources[index] = other[name][0]
    return _Match(sources, {key: own.get(name) for key, name in names.items()})


def _check_sizes(groups: _Groups, saved: _Groups) -> None:
    if len(saved) != len(groups):
        text = f"the state dict must have {len(groups)} parameter groups, it has {len(saved)}"
        raise ValueError(text)
    for index, (own, other) in enumerate(zip(groups, saved)):
        if len(own["params"]) != len(other["params"]):
            expected, actual = len(own["params"]), len(other["params"])
            text = f"group {index} of the state dict must have {expected} parameters"
            raise ValueError(f"{text}, it has {actual}")


def _difference(own: dict[str, _Place], other: dict[str, _Place]) -> str:
    """What tells the parameters of two sides apart."""
    missing, unexpected = [n for n in own if n not in other], [n for n in other if n not in own]
    if missing or unexpected:
        return f"it lacks {_shortened(missing)} and has {_shortened(unexpected)} besides"
    return f"it has {_shortened([n for n in own if own[n][0] != other[n][0]])} in other groups"


def _shortened(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3]) or "none"
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _by_name(groups: _Groups) -> dict[str, _Place] | None:
    """The place of each parameter by its name. None unless each has a name of its own."""
    names = [names_of(group) for group in groups]
    if not groups or None in names:
        return None
    named = dict(zip(chain.from_iterable(filter(None, names)), _places(groups)))
    return named if len(named) == sum(len(group["params"]) for group in groups) else None


def _places(groups: _Groups) -> Iterator[_Place]:
    for index, group in enumerate(groups):
        for position in range(len(group["params"])):
            yield index, position


def _keys(saved: _Groups) -> Iterator[Any]:
    return chain.from_iterable(group["params"] for group in saved)


def _loaded_group(own: dict[str, Any], saved: dict[str, Any], index: int) -> dict[str, Any]:
    """A group of the optimizer with the options of the `index`-th saved one, all checked.

    Options that were not saved stay.
    """
    what = f"group {index} of the state dict"
    missing = [key for key in ("lr", "betas", "eps", "weight_decay") if key not in saved]
    if missing:
        text = f"{what} must be that of a DualAdam or Adam, it has no {', '.join(missing)}"
        raise ValueError(text)
    with naming(what):
        refuse({"amsgrad": saved.get("amsgrad")})
        options = {k: deepcopy(value) for k, value in saved.items() if k not in _NOT_TAKEN_OVER}
        options = stored(options)
        rate, steps = options.pop("switching_rate", None), options.pop("switching_steps", None)
        if "schedule" in options:
            options["schedule"] = as_schedule(options["schedule"]).as_tuple()
        elif (rate, steps) != (None, None):
            options["schedule"] = schedule_of(rate, steps, None)
        # Names belong to the parameters, which stay.
        names = own if "param_names" in own else options
        group = {**own, **options, "params": own["params"]}
        if "schedule" in options:
            # These would be those of the schedule before.
            group.pop("switching_rate", None)
            group.pop("switching_steps", None)
        # A state dict without masters does not switch them off: the next step makes them.
        group["master_weights"] = own["master_weights"] or group["master_weights"]
        if "param_names" in names:
            group["param_names"] = names["param_names"]
        config_of(group)
    return group
