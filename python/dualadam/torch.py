"""DualAdam as an optimizer of PyTorch."""

import operator
from collections import defaultdict
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import chain
from numbers import Real
from typing import Any, TypeVar, overload

import torch
from torch import Tensor
from torch.__future__ import get_swap_module_params_on_conversion as _may_swap
from torch.optim.optimizer import (
    Optimizer,
    ParamsT,
    StateDict,
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)

from dualadam._dualadam import Config, Schedule, Stepper, use_threads

__all__ = ["DualAdam"]

_Loss = TypeVar("_Loss")

_MOMENTS = ("exp_avg", "exp_avg_sq")
_MASTER = "master_param"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The first number whose successor float32 does not have.
_FLOAT32_END = 2**24 - 1
# Above every count of steps, and within float64's whole numbers.
_STEPS_END = 9e15

_HOW_TO_CHOOSE = (
    "DualAdam must be told when it becomes Adam. Give one of: switching_steps, the step by which it is Adam (the paper takes 16% of the "
    "run: 160 of 1,000 steps); switching_rate, 1/switching_steps (the paper's own 8e-5 suits runs of some 78,000 steps, and leaves a "
    "short one in inverse Adam); schedule, a dualadam.Schedule for other shapes"
)
_REFUSED = {
    "amsgrad": "the rule has no maximum of second moments",
    "foreach": "all tensors are stepped in one call as it is",
    "differentiable": "the step is made in place, by a kernel without a gradient",
}
# What each group has beside its parameters, in state dicts too.
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


class DualAdam(Optimizer):
    r"""DualAdam: Adam that begins as a blend with inverse Adam.

    Per tensor, with t its own count of updates:

    .. math::
        \begin{aligned}
        m_t &= \beta_1 m_{t-1} + (1-\beta_1) g_t, &
        v_t &= \beta_2 v_{t-1} + (1-\beta_2) g_t^2, \\
        \hat m_t &= m_t / (1-\beta_1^t), &
        \hat v_t &= v_t / (1-\beta_2^t), \\
        \alpha_t &= \max(0, 1 - t\,\xi), &
        \theta_t &= \theta_{t-1} - \eta \lambda \theta_{t-1}
            - \eta \Bigl( (1-\alpha_t) \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}
            + \alpha_t\, \hat m_t \sqrt{\hat v_t} \Bigr)
        \end{aligned}

    This is Algorithm 1 of T. Shi, L. Chen, L. Jin, M. Zhou, "Combining Adam and its Inverse Counterpart to Enhance Generalization of Deep
    Learning Optimizers", arXiv 2603.07122 (2026).

    All tensors of a device are stepped in one call, in one pass through memory, on the CPU or on CUDA. The moments are float32. Parameters
    are float32, bfloat16 or float16, of any layout without gaps.

    Args:
        params: parameters, named parameters or groups of them, as for any optimizer. The options below may differ from group to group.
        lr: η, a number or a tensor with one.
        betas: β1 and β2.
        eps: ε.
        weight_decay: λ.
        switching_rate: ξ of the formula, per step.
        switching_steps: the step by which α is 0: ξ = 1/switching_steps.
        schedule: any other course of α, a `dualadam.Schedule`. One of these three must be given.
        decoupled_weight_decay: False adds λθ to the gradient instead, as Adam does (L2).
        inverse_term: "paper" is the formula; "with_eps" multiplies by √v̂ + ε, as the authors' published code does.
        maximize: go up, not down.
        capturable: the steps are counted on the CUDA device, so that a CUDA graph can have captured them. A replay takes a changed
            learning rate only from an lr that is a tensor on the device.
        master_weights: bfloat16 and float16 parameters have a float32 master in the state (`master_param`), which is what is updated;
            they get its value, rounded. Without, most small updates of a bfloat16 parameter are lost. The master is made from the
            parameter at its first step; what others write into the parameter later is overwritten.
        fused: None or True: there is no other kind.
        amsgrad, foreach, differentiable: not supported; here so that their use is refused by name.

    The state of each parameter is that of torch's Adam, and each loads the other's state dicts: `step`, `exp_avg`, `exp_avg_sq`.
    With `torch.amp.GradScaler` on CUDA, the gradients are unscaled and steps skipped on the device; nothing waits for it. Where
    one group is capturable, or has its lr on a device, or gradients are scaled, all steps on CUDA are counted there, as int64.

    On the CPU, as many threads are used as torch has when the first optimizer of the process makes its first step. As torch's own
    fused optimizers on the CPU, a step does not count as a change in place for autograd: a second backward pass through a graph that was made
    before the step is not refused.
    """

    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        switching_rate: float | None = None,
        switching_steps: int | None = None,
        schedule: Schedule | tuple[str | float, ...] | None = None,
        decoupled_weight_decay: bool = True,
        inverse_term: str = "paper",
        maximize: bool = False,
        capturable: bool = False,
        master_weights: bool = False,
        fused: bool | None = None,
        amsgrad: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
    ) -> None:
        if fused is not None and not fused:
            raise ValueError("fused must be None or True, got False: DualAdam has no other kind of step")
        _refuse({"amsgrad": amsgrad, "foreach": foreach, "differentiable": differentiable})
        defaults: dict[str, Any] = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "schedule": _schedule_of(switching_rate, switching_steps, schedule),
            "decoupled_weight_decay": decoupled_weight_decay,
            "inverse_term": inverse_term,
            "maximize": maximize,
            "capturable": capturable,
            "master_weights": master_weights,
        }
        if defaults["schedule"] is None:
            given: list[Any] = list(params)
            if not (given and all(isinstance(group, dict) and _has_schedule(group) for group in given)):
                raise ValueError(_HOW_TO_CHOOSE)
            params = given
            del defaults["schedule"]
        self._forget()
        super().__init__(params, defaults)

    def _forget(self) -> None:
        """Drops what is only kept for speed."""
        self._stepper: Stepper | None = None
        self._configs: dict[int, tuple[tuple[Any, ...], Config]] = {}

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The state of each parameter that was updated: `step`, `exp_avg`, `exp_avg_sq` and, with masters, `master_param`.

        Its tensors may be replaced, as by those that keep them elsewhere between steps: from here on, the optimizer has no reference to
        them but in this dict, until its next step.
        """
        stepper = self.__dict__.get("_stepper")
        if stepper is not None:
            stepper.forget()
        state: defaultdict[Tensor, Any] = self.__dict__["state"]
        return state

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        self.__dict__["state"] = state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters. It is checked wholly, and not added if it is wrong."""
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        group = dict(param_group)
        _refuse(group)
        group_schedule = _schedule_of(
            group.pop("switching_rate", None), group.pop("switching_steps", None), group.get("schedule")
        )
        if group_schedule is not None:
            group["schedule"] = group_schedule
        elif "schedule" not in self.defaults:
            raise ValueError(_HOW_TO_CHOOSE)
        unknown = set(group) - set(_OPTIONS) - {"params", "param_names", "initial_lr"}
        if unknown:
            raise ValueError(f"a parameter group must have only options of DualAdam, got {', '.join(sorted(unknown))}")
        _config_of({**self.defaults, **group}, len(self.param_groups))
        if not isinstance(group["params"], (Tensor, set)):
            group["params"] = list(group["params"])
            given = [entry[1] if isinstance(entry, tuple) else entry for entry in group["params"]]
            names = [entry[0] if isinstance(entry, tuple) else None for entry in group["params"]]
        elif isinstance(group["params"], Tensor):
            given, names = [group["params"]], [None]
        else:
            given, names = [], []  # refused by the base class
        seen: set[int] = set()
        for index, (param, name) in enumerate(zip(given, names)):
            place = f"parameter '{name}'" if name is not None else f"parameter {index} of group {len(self.param_groups)}"
            if id(param) in seen:
                raise ValueError(f"{place} must appear once, it is in the group twice")
            seen.add(id(param))
            if isinstance(param, Tensor) and not torch.nn.parameter.is_lazy(param):
                _check_param(place, param)
        super().add_param_group(group)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], _Loss]) -> _Loss: ...
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step of every parameter that has a gradient.

        A parameter without one is left alone, its count of steps too. If an exception is raised, nothing was stepped; but where a
        driver fails, the devices before it were.

        Args:
            closure: evaluates the model anew, and returns the loss, which is returned.
        """
        own = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
        if own or _global_optimizer_pre_hooks or _global_optimizer_post_hooks or _is_profiling():
            return self._hooked_step() if closure is None else self._hooked_step(closure)
        return self._step(closure)

    # torch wraps the step of every optimizer that does not say so, for hooks and the profiler; that costs more than the step of a small
    # model, so it is only done where there are any.
    step.hooked = True  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        groups = []
        is_controlled = False
        for index, group in enumerate(self.param_groups):
            lr, device_lr = group["lr"], None
            if isinstance(lr, Tensor):
                device_lr = lr if lr.is_cuda else None
                # What lies on the device is read there.
                lr = 0.0 if lr.is_cuda else _number("lr", lr)
            options = (
                lr,
                group["betas"],
                group["eps"],
                group["weight_decay"],
                group["schedule"],
                group["decoupled_weight_decay"],
                group["inverse_term"],
                group["maximize"],
            )
            known = self._configs.get(index)
            if known is None or known[0] != options:
                known = self._configs[index] = (options, _config_of(group, index))
            groups.append((group["params"], group.get("param_names"), known[1], group["master_weights"], device_lr))
            is_controlled = is_controlled or group["capturable"] or device_lr is not None

        multiplier: float = 1.0
        scalars: list[tuple[int, Tensor | None, Tensor | None]] = []
        grad_scale, found_inf = self.__dict__.get("grad_scale"), self.__dict__.get("found_inf")
        if grad_scale is not None or found_inf is not None:
            kinds = {param.device for group in self.param_groups for param in group["params"]}
            if any(device.type == "cpu" for device in kinds):
                if found_inf is not None and float(found_inf) != 0:
                    return loss
                scale = 1.0 if grad_scale is None else float(grad_scale)
                if scale == 0:
                    raise ValueError("grad_scale must not be 0")
                multiplier = 1.0 / scale
            on_cuda = [device for device in kinds if device.type == "cuda"]
            scalars = [(device.index, _on(device, grad_scale), _on(device, found_inf)) for device in on_cuda]
            is_controlled = is_controlled or bool(on_cuda)
        if not is_controlled and _is_capturing():
            raise RuntimeError("capturable must be True for a DualAdam whose step is captured in a CUDA graph")

        if self._stepper is None:
            use_threads(torch.get_num_threads())
            self._stepper = Stepper([Tensor, torch.nn.Parameter], _plain, _plain_grad)
        odd = self._stepper.step(self.__dict__["state"], groups, None, multiplier, is_controlled, scalars)
        if odd:
            self._step_with_repairs(odd, groups, multiplier, is_controlled, scalars)
        if _may_swap():
            # A parameter that is known has another owner, and could not be swapped.
            self._stepper.forget()
        return loss

    _hooked_step = Optimizer.profile_hook_step(_step)

    def _step_with_repairs(
        self,
        odd: list[tuple[int, int]],
        groups: list[tuple[list[Any], list[str] | None, Config, bool, Any | None]],
        multiplier: float,
        is_controlled: bool,
        scalars: list[tuple[int, Tensor | None, Tensor | None]],
    ) -> None:
        """The step where some parameters were not in order: new ones, those whose layout changed, or wrong ones."""
        states = self.__dict__["state"]
        places = [(self._name(*place), self.param_groups[place[0]], groups[place[0]][0][place[1]]) for place in odd]
        for name, group, param in places:
            _check_param(name, param)
            _check_grad(name, param, param.grad)
            _check_state(name, param, states.get(param, {}))
            if group["capturable"] and not param.is_cuda:
                raise ValueError(f"capturable must be False for {name}, which is on {param.device}")
            if param.is_cuda and _lacks_state(states.get(param, {}), param, group["master_weights"]) and _is_capturing():
                # A graph would make its moments zero again in each replay.
                raise RuntimeError(f"{name} must have had a step before its step is captured in a CUDA graph")
        before = {param: dict(states[param]) if param in states else None for _, _, param in places}
        grads: dict[int, Tensor] = {}
        counting = {param.device for param, state in states.items() if _is_on_device(state.get("step"))}
        assert self._stepper is not None
        try:
            with torch.no_grad():
                for _, group, param in places:
                    on_device = param.is_cuda and (is_controlled or param.device in counting)
                    states[param] = _repaired(param, states.get(param, {}), group["master_weights"], on_device)
                    like, grad = _plain(param), _plain_grad(param, param.grad)
                    assert like is not None and grad is not None
                    if grad.is_neg() or not _same_strides(grad, like):
                        grads[id(param)] = torch.empty_like(like, dtype=grad.dtype).copy_(grad)
            still_odd = self._stepper.step(states, groups, grads, multiplier, is_controlled, scalars)
            if still_odd:
                names = ", ".join(self._name(*place) for place in still_odd)
                raise RuntimeError(f"{names}: the tensors of a step must stay as they are while it is prepared")
        except BaseException:
            # What was stepped needs its state.
            if not self._stepper.has_begun():
                for param, state in before.items():
                    if state is None:
                        states.pop(param, None)
                    else:
                        states[param] = state
            raise

    def _name(self, group: int, index: int) -> str:
        names = self.param_groups[group].get("param_names")
        return f"parameter '{names[index]}'" if names else f"parameter {index} of group {group}"

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Takes over a state dict, of a DualAdam or of torch's Adam or AdamW.

        It is checked wholly first: if an exception is raised, the optimizer is as before. What a dict of Adam's does not have (the
        schedule and other options of DualAdam) stays as it is here.
        """
        state_dict = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            hook_result = pre_hook(self, state_dict)
            if hook_result is not None:
                state_dict = hook_result
        groups = self._loaded_groups(state_dict["param_groups"])
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        places = dict(zip(saved, self._places()))
        state: defaultdict[Tensor, Any] = defaultdict(dict)
        with torch.no_grad():
            for key, value in state_dict["state"].items():
                if key not in places:
                    state[key] = value
                    continue
                group, index = places[key]
                param, name = self.param_groups[group]["params"][index], self._name(group, index)
                if value:
                    _check_loaded(name, param, value)
                    on_device = param.is_cuda and groups[group]["capturable"]
                    # A master that is missing is made at the next step: the parameter may be loaded after this.
                    has_master = groups[group]["master_weights"] and _MASTER in value
                    state[param] = _repaired(param, value, has_master, on_device, copies=True)
        self.__setstate__({"state": state, "param_groups": groups})
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def _places(self) -> Iterator[tuple[int, int]]:
        for group_index, group in enumerate(self.param_groups):
            for index in range(len(group["params"])):
                yield group_index, index

    def _loaded_groups(self, saved: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The groups as they will be: the saved options, where there are, over those of now."""
        if len(saved) != len(self.param_groups):
            text = f"the state dict must have {len(self.param_groups)} parameter groups, it has {len(saved)}"
            raise ValueError(text)
        loaded = []
        for index, (own, other) in enumerate(zip(self.param_groups, saved)):
            if len(own["params"]) != len(other["params"]):
                expected, actual = len(own["params"]), len(other["params"])
                text = f"group {index} of the state dict must have {expected} parameters, it has {actual}"
                raise ValueError(text)
            missing = [key for key in ("lr", "betas", "eps", "weight_decay") if key not in other]
            if missing:
                text = f"group {index} of the state dict must be that of a DualAdam or Adam, it has no {', '.join(missing)}"
                raise ValueError(text)
            _refuse({key: other.get(key) for key in ("amsgrad",)})
            # Options of Adam's that say how it computes, not what.
            ignored = {"params", "amsgrad", "foreach", "differentiable", "fused"}
            options = {key: deepcopy(value) for key, value in other.items() if key not in ignored}
            if isinstance(options.get("betas"), list):
                options["betas"] = tuple(options["betas"])
            if "schedule" in options:
                options["schedule"] = _as_schedule(options["schedule"]).as_tuple()
            group = {**own, **options, "params": own["params"]}
            _config_of(group, index)
            loaded.append(group)
        return loaded


def _is_profiling() -> bool:
    return bool(getattr(torch.autograd.profiler, "_is_profiler_enabled", True))


def _lacks_state(state: dict[str, Any], param: Tensor, master_weights: bool) -> bool:
    needed = ["step", *_MOMENTS]
    if master_weights and param.dtype != torch.float32:
        needed.append(_MASTER)
    return any(key not in state for key in needed)


def _is_capturing() -> bool:
    initialized: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return initialized and torch.cuda.is_current_stream_capturing()


def _refuse(options: dict[str, Any]) -> None:
    for name, reason in _REFUSED.items():
        if options.get(name):
            raise ValueError(f"{name} must not be set: {reason}")


def _has_schedule(group: dict[str, Any]) -> bool:
    return any(group.get(name) is not None for name in ("switching_rate", "switching_steps", "schedule"))


def _number(name: str, value: Any) -> float:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must have one element, it has {value.numel()}")
        return float(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)


def _as_schedule(schedule: Any) -> Schedule:
    return schedule if isinstance(schedule, Schedule) else Schedule.from_tuple(schedule)


def _schedule_of(rate: float | None, steps: int | None, schedule: Any | None) -> tuple[str | float, ...] | None:
    """The schedule as a group has it: plain values, which every kind of checkpoint can keep."""
    given = [name for name, value in (("rate", rate), ("steps", steps), ("schedule", schedule)) if value is not None]
    if len(given) > 1:
        raise ValueError("only one of switching_rate, switching_steps and schedule must be given")
    if rate is not None:
        return Schedule.linear(_number("switching_rate", rate)).as_tuple()
    if steps is not None:
        try:
            whole = 0 if isinstance(steps, bool) else operator.index(steps)
        except TypeError:
            whole = 0
        if whole < 1:
            raise ValueError(f"switching_steps must be at least 1, and a whole number, got {steps!r}")
        return Schedule.linear_until(whole).as_tuple()
    return None if schedule is None else _as_schedule(schedule).as_tuple()


def _config_of(group: dict[str, Any], index: int) -> Config:
    """A group's hyperparameters, checked by the library."""
    try:
        for name in ("decoupled_weight_decay", "maximize", "capturable", "master_weights"):
            if not isinstance(group[name], bool):
                raise TypeError(f"{name} must be True or False, got {group[name]!r}")
        if not isinstance(group["betas"], (tuple, list)) or len(group["betas"]) != 2:
            raise ValueError(f"betas must be two numbers, got {group['betas']!r}")
        lr = _number("lr", group["lr"])
        return Config(
            # What lies on a device is read there, in the step.
            0.0 if isinstance(group["lr"], Tensor) and group["lr"].is_cuda else lr,
            (_number("beta1", group["betas"][0]), _number("beta2", group["betas"][1])),
            _number("eps", group["eps"]),
            _number("weight_decay", group["weight_decay"]),
            _as_schedule(group["schedule"]),
            decoupled=group["decoupled_weight_decay"],
            inverse_term=group["inverse_term"],
            maximize=group["maximize"],
        )
    except (TypeError, ValueError) as error:
        raise type(error)(f"group {index}: {error}") from None


def _plain(tensor: Any) -> Tensor | None:
    """The tensor whose memory an object stands for: of a DTensor, the part on this process; None where there is none."""
    if type(tensor) in (Tensor, torch.nn.Parameter):
        return tensor  # type: ignore[no-any-return]
    if not isinstance(tensor, Tensor):
        return None
    local = getattr(tensor, "_local_tensor", None)
    if local is not None:
        return _plain(local)
    # A result that other processes still send.
    if hasattr(tensor, "trigger_wait"):
        return _plain(tensor.trigger_wait())
    # A subclass that changes no operation is a tensor with its own memory.
    has_memory = type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__
    return tensor if has_memory else None


def _plain_grad(param: Any, grad: Any) -> Tensor | None:
    """The plain tensor of a parameter's gradient, brought to the parameter's placements if they are DTensors; None where there is none."""
    if hasattr(param, "placements") != hasattr(grad, "placements"):
        return None
    if hasattr(param, "placements") and grad.placements != param.placements:
        if grad.device_mesh != param.device_mesh:
            return None
        with torch.no_grad():
            grad = grad.redistribute(placements=param.placements)
    return _plain(grad)


def _same_strides(a: Tensor, b: Tensor) -> bool:
    """Whether elements have the same places; a stride along one element, or none, means nothing."""
    if a.numel() == 0:
        return True
    return all(x == y for x, y, size in zip(a.stride(), b.stride(), a.shape) if size != 1)


def _check_dense(what: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided:
        raise ValueError(f"{what} must be dense, its layout is {tensor.layout}")
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{what} must be float32, bfloat16 or float16, it is {tensor.dtype}")


def _check_param(name: str, param: Tensor) -> None:
    _check_dense(name, param)
    plain = _plain(param)
    if plain is None:
        raise TypeError(f"{name} must be a tensor with memory, it is a {torch.typename(param)}")
    if plain.is_neg():
        raise ValueError(f"{name} must have its own values in memory, it is a negated view")
    # A copy has the same strides exactly if the tensor has neither gaps nor overlap.
    if not _same_strides(torch.empty_like(plain, device="meta"), plain):
        text = f"{name} must fill its memory without gaps or overlap, its shape is {tuple(plain.shape)} and its strides are"
        raise ValueError(f"{text} {plain.stride()}")


def _check_grad(name: str, param: Tensor, grad: Tensor | None) -> None:
    _check_dense(f"the gradient of {name}", grad) if grad is not None else None
    like, plain = _plain(param), _plain_grad(param, grad)
    if like is None or plain is None:
        kind = "a DTensor on its mesh" if hasattr(param, "placements") else "a tensor with memory"
        raise TypeError(f"the gradient of {name} must be {kind}, it is a {torch.typename(grad)}")
    if plain.shape != like.shape:
        raise ValueError(f"the gradient of {name} must have the shape {tuple(like.shape)}, it has {tuple(plain.shape)}")
    if plain.device != like.device:
        raise ValueError(f"the gradient of {name} must be on {like.device}, it is on {plain.device}")
    for what, tensor in ((name, like), (f"the gradient of {name}", plain)):
        if tensor.device.type not in ("cpu", "cuda"):
            raise ValueError(f"{what} must be on the CPU or on CUDA, it is on {tensor.device}")
        _check_memory(what, tensor)


def _check_memory(what: str, tensor: Tensor | None) -> None:
    if tensor is None or tensor.numel() == 0 or tensor.device.type == "meta":
        return
    last = tensor.storage_offset() + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    if tensor.untyped_storage().nbytes() < (last + 1) * tensor.element_size():
        raise ValueError(f"{what} must have memory, its storage was freed or made smaller")


def _check_state(name: str, param: Tensor, state: dict[str, Any]) -> None:
    """Fails for what cannot be a parameter's state. What is missing, or of another type or layout, is no failure."""
    if not state:
        return
    for key in ("step", *_MOMENTS):
        if key not in state:
            raise ValueError(f"the state of {name} must have {key}, it has {', '.join(map(str, state))}")
    tensors = [key for key in (*_MOMENTS, _MASTER) if key in state]
    for key in tensors:
        value = state[key]
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout != torch.strided:
            raise TypeError(f"{key} of {name} must be a dense floating-point tensor, it is {_kind(value)}")
        if value.shape != param.shape:
            raise ValueError(f"{key} of {name} must have the shape {tuple(param.shape)}, it has {tuple(value.shape)}")
        placements, expected = (getattr(tensor, "placements", None) for tensor in (value, param))
        if placements != expected:
            raise ValueError(f"{key} of {name} must have the placements {expected}, it has {placements}")
    step = state["step"]
    for key in ("step", *tensors):
        if isinstance(state[key], Tensor):
            _check_memory(f"{key} of {name}", _plain(state[key]))
    if isinstance(step, Tensor) and step.numel() != 1:
        raise ValueError(f"step of {name} must be one number, it has the shape {tuple(step.shape)}")
    if not _is_on_device(step):
        number = float(step)
        if not (0 <= number < _STEPS_END and number.is_integer()):
            raise ValueError(f"step of {name} must be a whole number of at least 0 and below {_STEPS_END:.0e}, it is {number}")


def _check_loaded(name: str, param: Tensor, state: dict[str, Any]) -> None:
    if not isinstance(state, dict):
        raise TypeError(f"the state of {name} must be a dict, it is {_kind(state)}")
    if "max_exp_avg_sq" in state:
        raise ValueError(f"the state of {name} must be without max_exp_avg_sq: {_REFUSED['amsgrad']}")
    _check_state(name, param, state)


def _kind(value: Any) -> str:
    return f"{value.dtype}, {value.layout}" if isinstance(value, Tensor) else torch.typename(value)


def _repaired(
    param: Tensor, state: dict[str, Any], master_weights: bool, on_device: bool, copies: bool = False
) -> dict[str, Any]:
    """The state of a parameter as the kernels need it: made where there is none; what already fits stays the same tensor."""

    def fitting(value: Tensor | None, start: Callable[[], Tensor]) -> Tensor:
        if value is None:
            return start()
        plain, like = _plain(value), _plain(param)
        fits = plain is not None and like is not None and plain.dtype == torch.float32 and plain.device == like.device
        if fits and not copies and plain is not None and like is not None and _same_strides(plain, like):
            return value
        return torch.empty_like(param, dtype=torch.float32, requires_grad=False).copy_(value)

    # What is not this optimizer's stays as it is.
    others = {key: value for key, value in state.items() if key not in ("step", *_MOMENTS, _MASTER)}
    repaired: dict[str, Any] = {**others, "step": _counter(state.get("step", 0), param.device, on_device, copies)}
    for key in _MOMENTS:
        repaired[key] = fitting(state.get(key), lambda: torch.zeros_like(param, dtype=torch.float32, requires_grad=False))
    if master_weights and param.dtype != torch.float32:
        repaired[_MASTER] = fitting(
            state.get(_MASTER),
            lambda: torch.empty_like(param, dtype=torch.float32, requires_grad=False).copy_(param.detach()),
        )
    return repaired


def _counter(step: Any, device: torch.device, on_device: bool, copies: bool) -> Tensor:
    """A step counter: float32 on the CPU, as torch has it, float64 beyond float32's whole numbers; int64 on the device."""
    if on_device or (_is_on_device(step) and not copies):
        if isinstance(step, Tensor):
            return step.detach().reshape(()).to(device=device, dtype=torch.int64, copy=copies)
        return torch.full((), int(step), dtype=torch.int64, device=device)
    number = float(step)
    dtype = torch.float32 if number < _FLOAT32_END else torch.float64
    if isinstance(step, Tensor) and not copies and step.dtype == dtype and step.device.type == "cpu":
        return step
    return torch.tensor(number, dtype=dtype)


def _is_on_device(step: Any) -> bool:
    return isinstance(step, Tensor) and step.is_cuda


def _on(device: torch.device, scalar: Tensor | None) -> Tensor | None:
    return None if scalar is None else scalar.detach().to(device=device, dtype=torch.float32, non_blocking=True)
