"""`DualAdam`: torch's interface of an optimizer, which calls the native module."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import Optimizer, ParamsT, StateDict

from dualadam._dualadam import Schedule, Stepper
from dualadam.torch.groups import as_list, check_in_one_group, new_group, with_schedule
from dualadam.torch.hooks import is_observed
from dualadam.torch.loading import loaded
from dualadam.torch.modes import check_modes
from dualadam.torch.native import NativeGroup, new_stepper
from dualadam.torch.options import Options, naming, refuse, schedule_of, stored
from dualadam.torch.repair import step_with_repairs
from dualadam.torch.scaling import Scalars, Skips, devices_of, scaling
from dualadam.torch.state import with_masters

_Loss = TypeVar("_Loss")


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
    gradients of all three types. A parameter is checked when it has a gradient.

    Args:
        params (iterable): parameters, pairs of name and parameter, or dicts of parameter groups.
            A group may set any option up to master_weights for itself, and keeps other keys.
        lr (float or Tensor): learning rate, at least 0. Default 1e-3.
        betas (tuple[float, float]): β1 and β2, each at least 0 and below 1. Default (0.9, 0.999).
        eps (float): ε, above 0. Default 1e-8.
        weight_decay (float): λ, at least 0. Default 0.01, as AdamW's.
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
            Replays see a changed learning rate only if lr is a tensor on the device. It has no
            effect on the CPU. Default False.
        master_weights (bool): bfloat16 and float16 parameters have a float32 master in the state.
            The first step makes it from the parameter. Each step updates the master, and writes
            its values, rounded, over the parameter. If other code changed the parameter since the
            last step, the master takes that over first: see `sync_masters`. Default False.
        fused (bool or None): every step is fused. True also lets the step on CUDA unscale the
            gradients of `torch.amp.GradScaler` and skip, so that the host does not wait, as in
            torch. Default None.
        amsgrad, foreach, differentiable: refused if set.

    A number may be a Python number, a tensor or an array with one element. Each step reads the
    options of the groups again, so that they may be changed, in place too.

    Raises:
        ValueError: an option is out of range or refused; none or several of switching_rate,
            switching_steps and schedule are given; or a parameter appears twice.
        TypeError: an option has the wrong type.

    The state of a parameter has `step`, `exp_avg` and `exp_avg_sq`, as torch's Adam, and
    `master_param` if it has a master. The moments are float32. The CUDA devices count the steps,
    as int64, if a group is capturable or has its lr on a device, or if `torch.amp.GradScaler`
    leaves it to them to unscale the gradients and to skip steps.

    On the CPU, a step of more than 32,768 elements runs on the threads of torch's OpenMP. If
    RAYON_NUM_THREADS is set, it has threads of its own. Autograd does not count a step as a change
    in place, so it does not refuse a second backward pass through a graph from before it.

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

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
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
        foreach: bool | None = None,
        differentiable: bool = False,
    ) -> None:
        refused = {"amsgrad": amsgrad, "foreach": foreach, "differentiable": differentiable}
        defaults: dict[str, Any] = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "schedule": schedule,
            "decoupled_weight_decay": decoupled_weight_decay,
            "inverse_term": inverse_term,
            "maximize": maximize,
            "capturable": capturable,
            "master_weights": master_weights,
            "fused": fused,
        }
        self._begin(params, defaults, refused, switching_rate, switching_steps)

    @_disable_dynamo
    def _begin(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        refused: dict[str, Any],
        rate: float | None,
        steps: int | None,
    ) -> None:
        """The part of `__init__` that torch.compile must not trace into."""
        refuse(refused)
        defaults["schedule"] = schedule_of(rate, steps, defaults["schedule"])
        params, defaults = with_schedule(params, stored(defaults))
        self._forget()
        super().__init__(params, defaults)

    def _forget(self) -> None:
        """Drops what is known of the parameters and the options.

        The stepper stays the same: a wrapper may have it too.
        """
        stepper = self.__dict__.get("_stepper")
        if stepper is not None:
            stepper.restart()
        self._stepper: Stepper = stepper or new_stepper()
        self._options: dict[int, Options] = {}

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
        try:
            state: defaultdict[Tensor, Any] = self.__dict__["state"]
        except KeyError:
            # A wrapper may share this class and not run its __init__.
            raise AttributeError(f"{type(self).__name__} has no attribute 'state' yet") from None
        return state

    @state.deleter
    def state(self) -> None:
        del self.__dict__["state"]

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        self.__dict__["state"] = state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._forget()
        super().__setstate__(state)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether `torch.amp.GradScaler` leaves it to the step to unscale and to skip.

        Otherwise it does not call a step that it skips, which schedulers, hooks and tools rely on.
        On the CPU, the scaler does not wait for a device either.
        """
        is_asked_for = any(group.get("fused") for group in self.param_groups)
        return is_asked_for and any(d.type == "cuda" for d in devices_of(self.param_groups))

    @property
    def skipped_steps(self) -> int:
        """The number of calls of `step` that changed nothing, since a gradient was not finite.

        `torch.amp.GradScaler` leaves this decision to the step on CUDA if `fused=True`. Otherwise
        it does not call `step` then. Reading the number waits for the device; counting does not.
        """
        skips: Skips | None = getattr(self, "_skips", None)
        return 0 if skips is None else skips.total()

    @_disable_dynamo
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group.

        Args:
            param_group (dict): "params" and options. The constructor's values are the defaults.

        Raises:
            ValueError, TypeError: as for the constructor. The group is not added then.
        """
        group = new_group(param_group, self.defaults, len(self.param_groups))
        check_in_one_group(self.param_groups, group)
        super().add_param_group(group)
        # The caller's dict becomes the group, as in torch, but only if nothing was raised.
        param_group.clear()
        param_group.update(group)
        self.param_groups[-1] = param_group

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
            RuntimeError: a CUDA graph cannot capture the step, torch traces it, another thread is
                in a step of this optimizer, threads cannot be started, or the CUDA driver failed.

        If an exception is raised, nothing was stepped, unless a driver failed: then the devices
        before that one were stepped.
        """
        if torch.compiler.is_compiling():
            # torch.compile must not trace into the step. It breaks the graph here.
            return self._step_outside_of_graphs(closure)  # type: ignore[arg-type]
        # torch wraps the step of a subclass, if it has its own.
        wrapper = DualAdam._hooked_step.__code__
        is_wrapped = getattr(type(self).step, "__code__", None) is wrapper
        if not is_wrapped and is_observed(self):
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

        groups: list[NativeGroup] = []
        is_controlled = False
        for index, group in enumerate(self.param_groups):
            options = self._options_of(index, group)
            params = group["params"]
            if type(params) is not list:
                params = as_list(params, index)
            groups.append((params, group, options.config, options.has_masters, options.device_lr))
            is_controlled |= options.is_capturable or options.device_lr is not None

        multiplier: float = 1.0
        scalars: Scalars = []
        grad_scale, found_inf = self.__dict__.get("grad_scale"), self.__dict__.get("found_inf")
        if grad_scale is not None or found_inf is not None:
            scaled = scaling(self.param_groups, grad_scale, found_inf)
            self.__dict__.setdefault("_skips", Skips()).add(scaled)
            if scaled is None:
                return loss
            multiplier, scalars = scaled
            is_controlled = is_controlled or bool(scalars)
        check_modes(self.param_groups, is_controlled)
        stepper, state = self._stepper, self.__dict__["state"]
        arguments = (multiplier, is_controlled, scalars)
        odd = stepper.step(state, groups, None, *arguments)
        if odd:
            step_with_repairs(stepper, self.param_groups, state, odd, groups, arguments)
        return loss

    _hooked_step = Optimizer.profile_hook_step(_step)
    _step_outside_of_graphs = _disable_dynamo(step)

    def _options_of(self, index: int, group: dict[str, Any]) -> Options:
        """The options of a group, checked again if one of them changed."""
        options = self._options.get(index)
        if options is None or not options.are_of(group):
            with naming(f"group {index}"):
                options = self._options[index] = Options(group)
        return options

    @_disable_dynamo
    def sync_masters(self) -> None:
        """Take over into the masters what other code wrote into their parameters.

        An element whose rounded master is no longer the parameter takes the parameter's value. The
        others keep their masters' low bits.

        Each step does this by itself for a parameter that torch counts as changed in place, or
        that has other memory or another layout than before. torch does not count writes into
        `.data` and other views of the memory, into inference tensors, by the replay of a CUDA
        graph, by the step of a fused optimizer, also of another DualAdam, by collective operations
        such as `torch.distributed.broadcast`, and through a detached DTensor. Call this after such
        a write, and before the next step or `state_dict`. During the call, nothing else may use the
        parameters and masters.

        Raises:
            ValueError, TypeError: a master does not fit its parameter.
            RuntimeError: another thread is in a step of this optimizer, or a driver failed.

        Example:
            >>> import torch
            >>> from dualadam.torch import DualAdam
            >>> param = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
            >>> optimizer = DualAdam([param], switching_steps=160, master_weights=True)
            >>> param.grad = torch.ones_like(param)
            >>> optimizer.step()
            >>> param.data[0] = 0.5
            >>> optimizer.sync_masters()
            >>> float(optimizer.state[param]["master_param"][0])
            0.5
        """
        pairs = with_masters(self.param_groups, self.state)
        self._stepper.sync_masters(pairs)

    @_disable_dynamo
    def load_state_dict(self, state_dict: StateDict, strict: bool = True) -> None:
        """Load a state dict of a DualAdam, or of torch's Adam or AdamW.

        Options that the dict lacks, such as the schedule in one of Adam's, stay as they are. If the
        optimizer and the dict have the same names of parameters, states go to the parameters of
        the same name. Without names, or if all differ, the order counts, as in torch. The next step
        makes masters that the dict lacks.

        Args:
            state_dict (dict): as `state_dict()` of the optimizer returns it.
            strict (bool): False loads the states of the parameters that both sides have, by their
                names. Other parameters of the optimizer keep their states. Default True.

        Raises:
            ValueError, TypeError: the dict does not fit the optimizer, or is of an Adam with
                amsgrad.
            RuntimeError: another thread is in a step of this optimizer.

        If an exception is raised, the optimizer is unchanged: the whole dict is checked first.

        Example:
            >>> import torch
            >>> from dualadam.torch import DualAdam
            >>> params = [torch.nn.Parameter(torch.ones(3))]
            >>> optimizer = DualAdam(params, lr=1e-2, switching_steps=160)
            >>> optimizer.load_state_dict(torch.optim.AdamW(params, lr=1e-3).state_dict())
            >>> optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["schedule"]
            (0.001, ('linear', 0.00625))
        """
        if isinstance(state_dict, dict):
            state_dict = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            hook_result = pre_hook(self, state_dict)
            if hook_result is not None:
                state_dict = hook_result
        self.__setstate__(loaded(self.param_groups, self.__dict__["state"], state_dict, strict))
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)
