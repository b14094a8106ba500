"""`DualAdam`: torch's interface of an optimizer, which calls the native module."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, TypeVar, overload

import torch
from torch import Tensor
from torch.__future__ import get_swap_module_params_on_conversion as _may_swap
from torch.optim.optimizer import Optimizer, ParamsT, StateDict

from dualadam._dualadam import Config, Schedule, Stepper
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
from dualadam.torch.hooks import is_observed
from dualadam.torch.plain import plain, plain_grad, same_strides
from dualadam.torch.scaling import Scalars, scaling
from dualadam.torch.state import (
    MASTER,
    check_loaded,
    check_repairable,
    is_capturing,
    is_on_device,
    repaired,
)

_Loss = TypeVar("_Loss")

# A group as the native module takes it: the parameters, their names or None, the hyperparameters,
# whether there are masters, and the lr if it is a tensor on a CUDA device.
_Group = tuple[list[Any], list[str] | None, Config, bool, Any | None]
# The arguments of the native module's step that its second call repeats.
_Arguments = tuple[float, bool, Scalars]


class DualAdam(Optimizer):
    """DualAdam for PyTorch: Adam that begins as a blend with inverse Adam.

    For a parameter p with gradient g, with t the number of its update, from 1:

        m = β1·m + (1-β1)·g       m̂ = m/(1-β1^t)
        v = β2·v + (1-β2)·g²      v̂ = v/(1-β2^t)
        α = max(0, 1 - t·ξ)
        p = p - lr·((1-α)·m̂/(√v̂ + ε) + α·m̂·√v̂) - lr·λ·p

    Once α is 0, this is AdamW. The source is Algorithm 1 of T. Shi, L. Chen, L. Jin, M. Zhou,
    "Combining Adam and its Inverse Counterpart to Enhance Generalization of Deep Learning
    Optimizers", arXiv 2603.07122 (2026).

    One call steps all tensors of a device in one pass through memory, on the CPU or on CUDA.
    Parameters are float32, bfloat16 or float16, of any shape, in any dense layout. A gradient has
    its parameter's shape, and is float32 or of its parameter's type. A float32 parameter takes
    gradients of all three types.

    Args:
        params (iterable): parameters, pairs of name and parameter, or dicts of parameter groups.
            A group may set any option up to master_weights for itself.
        lr (float or Tensor): learning rate, at least 0. A tensor has one element. Default 1e-3.
        betas (tuple[float, float]): β1 and β2, each at least 0 and below 1. Default (0.9, 0.999).
        eps (float): ε, above 0. Default 1e-8.
        weight_decay (float): λ, at least 0. Default 0.
        switching_rate (float): ξ per step, from 0 to 1. 1 is AdamW. The paper's is 8e-5.
        switching_steps (int): the step from which on α is 0, at least 1: ξ = 1/switching_steps.
            The paper takes 16% of the run.
        schedule (dualadam.Schedule): any course of α. One of the last three must be given.
        decoupled_weight_decay (bool): False adds λ·p to the gradient, as Adam does (L2). Default
            True.
        inverse_term (str): "paper" is the formula above. "with_eps" has √v̂ + ε in place of the
            last √v̂, as the authors' published code. Default "paper".
        maximize (bool): True to maximise. Default False.
        capturable (bool): CUDA devices count the steps, so that a CUDA graph can capture them.
            Replays see a changed learning rate only if lr is a tensor on the device. Default False.
        master_weights (bool): bfloat16 and float16 parameters have a float32 master in the state.
            The first step makes it from the parameter. Each step updates the master, and writes
            its values, rounded, over the parameter. Default False.
        fused (bool or None): None or True. There is no other kind of step.
        amsgrad, foreach, differentiable: refused if set.

    Raises:
        ValueError: an option is out of range, refused or unknown; none or several of
            switching_rate, switching_steps and schedule are given; or a parameter is sparse, or
            has gaps or overlaps.
        TypeError: an option or a parameter has the wrong type.

    The state of a parameter has `step`, `exp_avg` and `exp_avg_sq`, as torch's Adam, and
    `master_param` if it has a master. The moments are float32. The CUDA devices count the steps,
    as int64, if a group is capturable or has its lr on a device, or if `torch.amp.GradScaler`
    scales the gradients. They also unscale the gradients and skip steps, without the host.

    On the CPU, a step of more than 32,768 elements uses as many threads as torch, unless
    RAYON_NUM_THREADS is set. They are the optimizer's own. Autograd does not count a step as a
    change in place, so it does not refuse a second backward pass through a graph from before it.

    Example:
        >>> import torch
        >>> from dualadam.torch import DualAdam
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = DualAdam(model.parameters(), lr=1e-2, switching_steps=160)
        >>> model(torch.ones(8, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> list(optimizer.state[model.weight])
        ['step', 'exp_avg', 'exp_avg_sq']
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
        """Drops what is kept only for speed."""
        self._stepper: Stepper | None = None
        self._configs: dict[int, tuple[tuple[Any, ...], Config]] = {}

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The state of each parameter that was updated: a dict by parameter.

        Its keys are `step`, `exp_avg`, `exp_avg_sq` and, with a master, `master_param`. Callers may
        replace the tensors: from this call to the next step, the optimizer refers to them only
        through this dict.
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
        """Add a parameter group.

        Args:
            param_group (dict): "params" and options. The constructor's values are the defaults.

        Raises:
            ValueError, TypeError: as for the constructor. The group is not added then.
        """
        group = new_group(param_group, self.defaults, len(self.param_groups))
        super().add_param_group(group)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], _Loss]) -> _Loss: ...
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step of every parameter that has a gradient.

        A parameter without a gradient is skipped: it keeps its values and its count of steps.

        During the step, no other thread may use the parameters, gradients and states. Python code
        that the step runs, such as a property of a parameter's subclass, must not free or replace
        their memory. On CUDA, the step runs on torch's current stream of each device. The caller
        must order it against other streams' uses of the tensors, as for any optimizer.

        Args:
            closure (callable or None): evaluates the model again and returns the loss.

        Returns:
            What `closure` returned, or None.

        Raises:
            ValueError, TypeError: a gradient, a state or an option does not fit. The message names
                the parameter or the group.
            RuntimeError: a CUDA graph cannot capture the step, another thread is in a step of this
                optimizer, threads cannot be started, or the CUDA driver failed.

        If an exception is raised, nothing was stepped, unless a driver failed: then the devices
        before that one were stepped.
        """
        if is_observed(self):
            return self._hooked_step() if closure is None else self._hooked_step(closure)
        return self._step(closure)

    # torch wraps the step of every optimizer for hooks and the profiler, unless it has this
    # attribute. The wrapper takes longer than the step of a small model, so `step` calls it only
    # if there is a hook or the profiler runs.
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
                # The kernel reads an lr that is on a device. 0 stands for it on the host.
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
        if not is_controlled and is_capturing():
            text = "capturable must be True for a DualAdam whose step is captured in a CUDA graph"
            raise RuntimeError(text)

        if self._stepper is None:
            kinds = [Tensor, torch.nn.Parameter]
            self._stepper = Stepper(kinds, plain, plain_grad, torch.get_num_threads)
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
        """Repairs or refuses the parameters at the places `odd`, then makes the step.

        A parameter is odd if it is new, has another layout than before, or does not fit.
        """
        states = self.__dict__["state"]
        _, is_controlled, _ = arguments
        params = [(self.param_groups[index], groups[index][0][position]) for index, position in odd]
        for place, (group, param) in zip(odd, params):
            check_repairable(self._name(*place), group, param, states.get(param, {}))
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
        """Load a state dict of a DualAdam, or of torch's Adam or AdamW.

        Options that the dict lacks, such as the schedule in one of Adam's, stay as they are.

        Args:
            state_dict (dict): as `state_dict()` of the optimizer returns it.

        Raises:
            ValueError, TypeError: the dict does not fit the optimizer, or is of an Adam with
                amsgrad. The whole dict is checked first, so the optimizer is unchanged then.

        Example:
            >>> import torch
            >>> from dualadam.torch import DualAdam
            >>> params = [torch.nn.Parameter(torch.ones(3))]
            >>> optimizer = DualAdam(params, lr=1e-2, switching_steps=160)
            >>> optimizer.load_state_dict(torch.optim.AdamW(params, lr=1e-3).state_dict())
            >>> optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["schedule"]
            (0.001, ('linear', 0.00625))
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
