"""The options of parameter groups: their values, and the library's checks of them."""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from dualadam._dualadam import Config, Schedule

HOW_TO_CHOOSE = (
    "DualAdam must be told when it becomes Adam. Give one of: switching_steps, the step by which "
    "it is Adam (the paper takes 16% of the run: 160 of 1,000 steps); switching_rate, "
    "1/switching_steps (the paper's own 8e-5 suits runs of some 78,000 steps, and leaves a "
    "short one in inverse Adam); schedule, a dualadam.Schedule for other shapes"
)
_NUMBERS = ("lr", "betas", "eps", "weight_decay")
_FLAGS = ("decoupled_weight_decay", "maximize", "capturable", "master_weights")
# Arguments that become a schedule when a group is added.
_SWITCHING = ("switching_rate", "switching_steps")
# Options of other optimizers that may be in a group, but must not be set.
REFUSED = {
    "amsgrad": "the rule has no maximum of second moments",
    "foreach": "all tensors are stepped in one call as it is",
    "differentiable": "the step is made in place, by a kernel without a gradient",
}
# The keys of groups that a step reads. Not all groups have those of `_READ` alone.
_NEEDED = (*_NUMBERS, "schedule", "inverse_term", *_FLAGS)
_READ = (*_NEEDED, *REFUSED, *_SWITCHING)


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Puts `what` before the text of a TypeError or ValueError."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{what}: {error}") from error.__cause__


def refuse(options: dict[str, Any]) -> None:
    """Fails if an option is set that other optimizers have and DualAdam does not."""
    for name, reason in REFUSED.items():
        if _is_set(options.get(name)):
            raise ValueError(f"{name} must not be set, got {options[name]!r}: {reason}")


def _is_set(value: Any) -> bool:
    try:
        return bool(value)
    except (RuntimeError, TypeError, ValueError):
        return True  # such as a tensor with several elements


def has_schedule(group: dict[str, Any]) -> bool:
    """Whether a group, as the user gave it, has an option that says when DualAdam becomes Adam."""
    return any(group.get(name) is not None for name in (*_SWITCHING, "schedule"))


def number(name: str, value: Any) -> float:
    """The value of an option: a number, or a tensor or array with one element."""
    if type(value) is float:
        return value
    element, cause = value, None
    try:
        if isinstance(value, Tensor):
            check_size(name, value.numel())
            element = value.detach() if value.requires_grad else value
        elif isinstance(getattr(value, "size", None), int):
            check_size(name, value.size)
            element = value.item()
        if not isinstance(element, (bool, str, bytes)):
            return float(element)
    except (AttributeError, OverflowError, RuntimeError, TypeError) as error:
        cause = error  # such as of a tensor that is complex or without a value
    raise TypeError(f"{name} must be a number, got {value!r}") from cause


def check_size(name: str, size: int) -> None:
    """Fails unless a tensor or array has one element."""
    if size != 1:
        raise ValueError(f"{name} must have one element, it has {size}")


def stored(options: dict[str, Any]) -> dict[str, Any]:
    """Options as groups keep them: the betas as a tuple, and numbers as Python's.

    Every kind of checkpoint can store these. Numbers that can change in place stay what they are.
    So does what is no number: `config_of` refuses it.
    """
    kept = dict(options)
    for name in ("lr", "eps", "weight_decay"):
        if name in kept:
            kept[name] = _stored_number(kept[name])
    if "betas" in kept:
        try:
            kept["betas"] = tuple(map(_stored_number, kept["betas"]))
        except TypeError:
            pass
    return kept


def _stored_number(value: Any) -> Any:
    # Tensors and arrays, whose elements can be set, stay what they are.
    if type(value) in (float, int) or hasattr(value, "__setitem__"):
        return value
    try:
        return number("it", value)
    except (TypeError, ValueError):
        return value


def schedule_of(
    rate: Any | None, steps: Any | None, schedule: Any | None
) -> tuple[Any, ...] | None:
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
    return None if schedule is None else as_schedule(schedule).as_tuple()


def as_schedule(schedule: Any) -> Schedule:
    """The schedule that a group has, or that a user gave."""
    return schedule if isinstance(schedule, Schedule) else Schedule.from_tuple(schedule)


class Options:
    """A group's options when they were checked last, for steps that find them unchanged."""

    def __init__(self, group: dict[str, Any]) -> None:
        missing = [name for name in _NEEDED if name not in group]
        if missing:
            raise ValueError(f"the group must have {', '.join(missing)}, it has {', '.join(group)}")
        self.config = config_of(group)
        self.has_masters = bool(group["master_weights"])
        self.is_capturable = bool(group["capturable"])
        self.device_lr = group["lr"] if is_on_device(group["lr"]) else None
        self._values = _values_of(group)
        self._keys = frozenset(group)
        self._read = operator.itemgetter(*filter(group.__contains__, _READ))
        # What the group has, if none of it can change in place: comparing that is fast.
        read = self._read(group)
        self._constants = read if all(map(_is_constant, read)) else None
        self._hash = None if self._constants is None else hash(read)

    def are_of(self, group: dict[str, Any]) -> bool:
        """Whether the options of a group are these."""
        try:
            if self._constants is not None:
                read = self._read(group)
                # A float32 is equal to the number that it was rounded from. Its hash is another.
                is_same = self._hash == hash(read) and self._constants == read
                return is_same and self._keys == group.keys()
            is_same_lr = self.device_lr is None or self.device_lr is group["lr"]
            return is_same_lr and self._values == _values_of(group)
        except (KeyError, RuntimeError, TypeError, ValueError):
            # Something that is no value. The check says what is wrong with it.
            return False


def _is_constant(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_constant, value))
    return value is None or type(value) in (float, int, bool, str)


def _values_of(group: dict[str, Any]) -> tuple[Any, ...]:
    """The values of a group's options, to be compared with those of another step.

    The host does not wait for a value on a device: its tensor and the tensor's version stand for
    it. The other values are numbers, so that changes in place are seen.
    """
    beta1, beta2 = group["betas"]
    lr = group["lr"]
    return (
        # The kernel reads an lr that is on a device. 0 stands for it on the host.
        0.0 if is_on_device(lr) else number("lr", lr),
        _value("beta1", beta1),
        _value("beta2", beta2),
        _value("eps", group["eps"]),
        _value("weight_decay", group["weight_decay"]),
        as_schedule(group["schedule"]).as_tuple(),
        group["inverse_term"],
        *(bool(group[name]) for name in _FLAGS),
        *map(group.get, REFUSED),
        *map(group.get, _SWITCHING),
    )


def _value(name: str, value: Any) -> Any:
    return (value, value._version) if is_on_device(value) else number(name, value)


def is_on_device(value: Any) -> bool:
    """Whether an option or a step counter is in a device's memory."""
    return isinstance(value, Tensor) and value.is_cuda


def _is_flag(value: Any) -> bool:
    """Whether a value is equal to True or False, as 0 and NumPy's booleans are."""
    try:
        return not isinstance(value, Tensor) and bool(value in (True, False))
    except ValueError:
        return False


def _check_switching(group: dict[str, Any], schedule: Schedule) -> None:
    """Fails if a group has arguments that would make another schedule than it has.

    Tools that keep the arguments of the constructor may write them into the groups.
    """
    rate, steps = (group.get(name) for name in _SWITCHING)
    is_given = rate is not None or steps is not None
    if is_given and schedule_of(rate, steps, None) != schedule.as_tuple():
        name, value = ("switching_rate", rate) if steps is None else ("switching_steps", steps)
        text = f"{name} must be None or that of the group's schedule, got {value!r}"
        raise ValueError(f"{text}: set the schedule instead, to a dualadam.Schedule")


def config_of(group: dict[str, Any]) -> Config:
    """The hyperparameters of a group, checked by the library."""
    refuse(group)
    schedule = as_schedule(group["schedule"])
    _check_switching(group, schedule)
    for name in _FLAGS:
        if not _is_flag(group[name]):
            raise TypeError(f"{name} must be True or False, got {group[name]!r}")
    try:
        beta1, beta2 = group["betas"]
    except (TypeError, ValueError):
        raise ValueError(f"betas must be two numbers, got {group['betas']!r}") from None
    if not isinstance(group["inverse_term"], str):
        text = f"inverse_term must be 'paper' or 'with_eps', got {group['inverse_term']!r}"
        raise TypeError(text)
    lr = group["lr"]
    if is_on_device(lr):
        check_size("lr", lr.numel())
    return Config(
        0.0 if is_on_device(lr) else number("lr", lr),
        (number("beta1", beta1), number("beta2", beta2)),
        number("eps", group["eps"]),
        number("weight_decay", group["weight_decay"]),
        schedule,
        decoupled=bool(group["decoupled_weight_decay"]),
        inverse_term=group["inverse_term"],
        maximize=bool(group["maximize"]),
    )
