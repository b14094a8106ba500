"""The optimizer: torch's interface, and the calls of the native module."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import chain
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
from dualadam.torch.groups import (
    HOW_TO_CHOOSE,
    config_of,
    has_schedule,
    loaded_groups,
    name_of,
    new_group,
    number,
    refuse,
    schedule_of,
)
from dualadam.torch.plain import check_grad, check_param, plain, plain_grad, same_strides
from dualadam.torch.scaling import Scalars, scaling
from dualadam.torch.state import (
    MASTER,
    check_loaded,
    check_state,
    is_incomplete,
    is_on_device,
    repaired,
)

_Loss = TypeVar("_Loss")

# A group as the native module takes it: the parameters, their names if they have any, the
# hyperparameters, whether there are masters, and the lr if it is on a device.
_Group = tuple[list[Any], list[str] | None, Config, bool, Any | None]
# The arguments of the native module's step that a second try takes over.
_Arguments = tuple[float, bool, Scalars]


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

    This is Algorithm 1 of T. Shi, L. Chen, L. Jin, M. Zhou, "Combining Adam and its Inverse
    Counterpart to Enhance Generalization of Deep Learning Optimizers", arXiv 2603.07122 (2026).

    One call steps all tensors of a device, in one pass through memory, on the CPU or on CUDA. The
    moments are float32. Parameters are float32, bfloat16 or float16, of any layout without gaps.

    Args:
        params: parameters, named parameters or groups of them, as for any optimizer. The options
            below may differ from group to group.
        lr: η, a number or a tensor with one.
        betas: β1 and β2.
        eps: ε.
        weight_decay: λ.
        switching_rate: ξ of the formula, per step.
        switching_steps: the step by which α is 0: ξ = 1/switching_steps.
        schedule: any other course of α, a `dualadam.Schedule`. One of these three must be given.
        decoupled_weight_decay: False adds λθ to the gradient instead, as Adam does (L2).
        inverse_term: "paper" is the formula; "with_eps" multiplies by √v̂ + ε, as the authors'
            published code does.
        maximize: go up, not down.
        capturable: the CUDA device counts the steps, so that a CUDA graph can capture them. A
            replay sees a changed learning rate only if lr is a tensor on the device.
        master_weights: bfloat16 and float16 parameters have a float32 master in the state
            (`master_param`). The step updates the master, and the parameter is its rounding.
            Without masters, most small updates of a bfloat16 parameter are lost. The first step
            makes the master from the parameter. From then on, each step overwrites what other
            code writes into the parameter.
        fused: None or True: there is no other kind.
        amsgrad, foreach, differentiable: not supported. They are arguments so that their use is
            refused by name.

    The state of each parameter is that of torch's Adam: `step`, `exp_avg`, `exp_avg_sq`. Each of
    the two optimizers loads the other's state dicts. With `torch.amp.GradScaler` on CUDA, the
    device unscales the gradients and skips steps, and the host does not wait for it. The CUDA
    devices count all steps of their parameters, as int64, if one group is capturable, or has its
    lr on a device, or if gradients are scaled.

    On the CPU, the first optimizer of the process sets the number of threads at its first step,
    to what torch has then. As with torch's own fused optimizers on the CPU, autograd does not
    count a step as a change in place: it does not refuse a second backward pass through a graph
    from before the step.
    """

    # Where users import it from, and the name that pickles have.
    __module__ = "dualadam.torch"

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
            text = "fused must be None or True, got False: DualAdam has no other kind of step"
            raise ValueError(text)
        refuse({"amsgrad": amsgrad, "foreach": foreach, "differentiable": differentiable})
        defaults: dict[str, Any] = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "schedule": schedule_of(switching_rate, switching_steps, schedule),
            "decoupled_weight_decay": decoupled_weight_decay,
            "inverse_term": inverse_term,
            "maximize": maximize,
            "capturable": capturable,
            "master_weights": master_weights,
        }
        if defaults["schedule"] is None:
            given: list[Any] = list(params)
            choose = all(isinstance(group, dict) and has_schedule(group) for group in given)
            if not (given and choose):
                raise ValueError(HOW_TO_CHOOSE)
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
        """The state of each parameter that was updated.

        Its keys are `step`, `exp_avg`, `exp_avg_sq` and, with masters, `master_param`. Callers may
        replace its tensors, for example to keep them elsewhere between steps: from this call to
        the next step, the optimizer refers to them only through this dict.
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
        """Adds a group of parameters. A group with an error in it is not added."""
        group = new_group(param_group, self.defaults, len(self.param_groups))
        super().add_param_group(group)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], _Loss]) -> _Loss: ...
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step of every parameter that has a gradient.

        A parameter without a gradient stays as it is, and so does its count of steps. If an
        exception is raised, nothing was stepped, unless a driver failed: then the devices before
        that one were.

        During the step, no other thread may use the parameters, gradients and states. Python code
        that the step runs, such as a property of a parameter's subclass, must not free their memory
        or give them other memory. On CUDA, the caller orders this work against other streams' uses
        of the tensors, as for any optimizer of torch's.

        Args:
            closure: evaluates the model again and returns the loss, which `step` returns.
        """
        own = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
        if own or _global_optimizer_pre_hooks or _global_optimizer_post_hooks or _is_profiling():
            return self._hooked_step() if closure is None else self._hooked_step(closure)
        return self._step(closure)

    # torch wraps the step of every optimizer for hooks and the profiler, unless it has this
    # attribute. The wrapper costs more than the step of a small model, so `step` calls it only if
    # there is a hook or the profiler runs.
    step.hooked = True  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        groups: list[_Group] = []
        is_controlled = False
        for index, group in enumerate(self.param_groups):
            lr, device_lr = group["lr"], None
            if isinstance(lr, Tensor):
                device_lr = lr if lr.is_cuda else None
                # The step's kernel reads an lr on a device there.
                lr = 0.0 if lr.is_cuda else number(f"group {index}: lr", lr)
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
                known = self._configs[index] = (options, config_of(group, index))
            names, has_masters = group.get("param_names"), group["master_weights"]
            groups.append((group["params"], names, known[1], has_masters, device_lr))
            is_controlled = is_controlled or group["capturable"] or device_lr is not None

        multiplier: float = 1.0
        scalars: Scalars = []
        grad_scale, found_inf = self.__dict__.get("grad_scale"), self.__dict__.get("found_inf")
        if grad_scale is not None or found_inf is not None:
            scaled = scaling(self.param_groups, grad_scale, found_inf)
            if scaled is None:
                return loss
            multiplier, scalars = scaled
            is_controlled = is_controlled or bool(scalars)
        if not is_controlled and _is_capturing():
            text = "capturable must be True for a DualAdam whose step is captured in a CUDA graph"
            raise RuntimeError(text)

        if self._stepper is None:
            use_threads(torch.get_num_threads())
            self._stepper = Stepper([Tensor, torch.nn.Parameter], plain, plain_grad)
        state = self.__dict__["state"]
        odd = self._stepper.step(state, groups, None, multiplier, is_controlled, scalars)
        if odd:
            self._step_with_repairs(odd, groups, (multiplier, is_controlled, scalars))
        if _may_swap():
            # torch cannot swap a parameter that the stepper refers to.
            self._stepper.forget()
        return loss

    _hooked_step = Optimizer.profile_hook_step(_step)

    def _step_with_repairs(
        self, odd: list[tuple[int, int]], groups: list[_Group], arguments: _Arguments
    ) -> None:
        """Repairs or refuses the parameters at the places `odd`, and makes the step.

        A parameter is odd if it is new, has another layout than before, or is wrong.
        """
        states = self.__dict__["state"]
        _, is_controlled, _ = arguments
        params = [(self.param_groups[index], groups[index][0][position]) for index, position in odd]
        for place, (group, param) in zip(odd, params):
            _check(self._name(*place), group, param, states.get(param, {}))
        before = {param: dict(states[param]) if param in states else None for _, param in params}
        grads: dict[int, Tensor] = {}
        counted = [param for param, state in states.items() if is_on_device(state.get("step"))]
        counting = {param.device for param in counted}
        assert self._stepper is not None
        try:
            with torch.no_grad():
                for group, param in params:
                    on_device = param.is_cuda and (is_controlled or param.device in counting)
                    state, has_masters = states.get(param, {}), group["master_weights"]
                    states[param] = repaired(param, state, has_masters, on_device)
                    like, grad = plain(param), plain_grad(param, param.grad)
                    assert like is not None and grad is not None
                    if grad.is_neg() or not same_strides(grad, like):
                        grads[id(param)] = torch.empty_like(like, dtype=grad.dtype).copy_(grad)
            still_odd = self._stepper.step(states, groups, grads, *arguments)
            if still_odd:
                names = ", ".join(self._name(*place) for place in still_odd)
                text = "the tensors of a step must stay as they are while it is prepared"
                raise RuntimeError(f"{names}: {text}")
        except BaseException:
            # Parameters that were stepped need their new state.
            if not self._stepper.has_begun():
                for param, old_state in before.items():
                    if old_state is None:
                        states.pop(param, None)
                    else:
                        states[param] = old_state
            raise

    def _name(self, index: int, position: int) -> str:
        return name_of(self.param_groups[index], index, position)

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Loads a state dict of a DualAdam or of torch's Adam or AdamW.

        The whole dict is checked first: if an exception is raised, the optimizer is as before.
        Options that a dict of Adam's lacks, such as the schedule, stay as they are.
        """
        state_dict = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            hook_result = pre_hook(self, state_dict)
            if hook_result is not None:
                state_dict = hook_result
        groups = loaded_groups(self.param_groups, state_dict["param_groups"])
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        places = dict(zip(saved, self._places()))
        state: defaultdict[Tensor, Any] = defaultdict(dict)
        with torch.no_grad():
            for key, value in state_dict["state"].items():
                if key not in places:
                    state[key] = value
                    continue
                index, position = places[key]
                group, param = groups[index], self.param_groups[index]["params"][position]
                if value:
                    check_loaded(self._name(index, position), param, value)
                    on_device = param.is_cuda and group["capturable"]
                    # The next step makes a missing master: the parameter may be loaded after this.
                    has_master = group["master_weights"] and MASTER in value
                    state[param] = repaired(param, value, has_master, on_device, copies=True)
        self.__setstate__({"state": state, "param_groups": groups})
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def _places(self) -> Iterator[tuple[int, int]]:
        """The group and the position of each parameter, in order."""
        for index, group in enumerate(self.param_groups):
            for position in range(len(group["params"])):
                yield index, position


def _check(name: str, group: dict[str, Any], param: Tensor, state: dict[str, Any]) -> None:
    """Fails if a parameter, its gradient or its state cannot be repaired."""
    check_param(name, param)
    check_grad(name, param, param.grad)
    check_state(name, param, state)
    if group["capturable"] and not param.is_cuda:
        raise ValueError(f"capturable must be False for {name}, which is on {param.device}")
    would_be_made = param.is_cuda and is_incomplete(state, param, group["master_weights"])
    if would_be_made and _is_capturing():
        # Each replay of the graph would set the moments to zero again.
        text = "must have had a step before its step is captured in a CUDA graph"
        raise RuntimeError(f"{name} {text}")


def _is_profiling() -> bool:
    return bool(getattr(torch.autograd.profiler, "_is_profiler_enabled", True))


def _is_capturing() -> bool:
    initialized: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return initialized and torch.cuda.is_current_stream_capturing()
