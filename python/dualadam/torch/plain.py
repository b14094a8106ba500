"""The plain tensor behind a parameter or a gradient, and checks of its memory and strides."""

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor as _is_functorch_wrapped
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def plain(tensor: Any) -> Tensor | None:
    """The tensor whose memory an object stands for. Of a DTensor, the part of this process.

    None if there is no such tensor.
    """
    if not isinstance(tensor, Tensor) or _is_functorch_wrapped(tensor):
        return None
    if type(tensor) in (Tensor, torch.nn.Parameter):
        return tensor
    local = getattr(tensor, "_local_tensor", None)
    if local is not None:
        return plain(local)
    # The result of a collective operation, which may still be in flight.
    if hasattr(tensor, "trigger_wait"):
        return plain(tensor.trigger_wait())
    # A subclass that overrides no operations has memory of its own.
    has_memory = type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__
    return tensor if has_memory else None


def weak_storage(tensor: Tensor) -> StorageWeakRef:
    """A weak reference to the storage of a plain tensor."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def plain_grad(param: Any, grad: Any) -> Tensor | None:
    """The plain tensor behind a parameter's gradient, or None if there is no such tensor.

    If both are DTensors, the gradient is redistributed to the parameter's placements first.
    """
    if hasattr(param, "placements") != hasattr(grad, "placements"):
        return None
    if hasattr(param, "placements") and grad.placements != param.placements:
        if grad.device_mesh != param.device_mesh:
            return None
        with torch.no_grad():
            grad = grad.redistribute(placements=param.placements)
    return plain(grad)


def same_strides(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of the same shape have each element at the same offset.

    The stride of a dimension with one element does not matter and is not compared.
    """
    if a.numel() == 0:
        return True
    return all(x == y for x, y, size in zip(a.stride(), b.stride(), a.shape) if size != 1)


def kind(value: Any) -> str:
    """The description of a value in an error message."""
    if not isinstance(value, Tensor):
        return torch.typename(value)
    return f"{value.dtype}, {'nested' if value.is_nested else value.layout}"


def is_strided(tensor: Tensor) -> bool:
    """Whether a tensor has a place in memory for each element, at strides."""
    return tensor.layout == torch.strided and not tensor.is_nested


def is_fake(tensor: Any) -> bool:
    """Whether an object only stands for a tensor that is not there, as in FakeTensorMode.

    A DTensor does if its part of this process does.
    """
    return isinstance(getattr(tensor, "_local_tensor", tensor), FakeTensor)


def is_aligned(tensor: Tensor) -> bool:
    """Whether the elements of a tensor have addresses that their type may have."""
    return tensor.data_ptr() % tensor.element_size() == 0


def span(tensor: Tensor) -> tuple[int, int]:
    """The addresses of the first byte of a dense tensor, and of the first behind it."""
    return tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()


def check_apart(what: str, tensor: Tensor, other: Tensor) -> None:
    """Fails if a dense tensor shares memory with another."""
    one, two = plain(tensor), plain(other)
    if one is None or two is None or one.device != two.device:
        return
    (begin, end), (other_begin, other_end) = span(one), span(two)
    if max(begin, other_begin) < min(end, other_end):
        raise ValueError(f"{what} must have memory of its own, it overlaps a parameter")


def _check_filled(name: str, tensor: Tensor) -> None:
    """Fails unless each element has its value in a place of its own, with no gaps between them."""
    if tensor.is_neg():
        raise ValueError(f"{name} must have its own values in memory, it is a negated view")
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape)):
        if size != 1:
            if stride != expected and tensor.numel() != 0:
                raise ValueError(
                    f"{name} must fill its memory without gaps or overlap, "
                    f"its shape is {tuple(tensor.shape)} and its strides are {tensor.stride()}"
                )
            expected *= size


def check_tensor(name: str, param: Any) -> None:
    """Fails unless a parameter is a tensor."""
    if not isinstance(param, Tensor):
        raise TypeError(f"{name} must be a Tensor, it is a {torch.typename(param)}")


def check_param(name: str, param: Tensor) -> None:
    """Fails unless a parameter has memory of its own, without gaps or overlap."""
    _check_dense(name, param)
    own = plain(param)
    if own is None:
        raise TypeError(f"{name} must be a tensor with memory, it is a {_class_of(param)}")
    _check_filled(name, own)


def _class_of(value: Any) -> str:
    """The class of an object without memory of its own, and what to do about it."""
    if isinstance(value, Tensor) and _is_functorch_wrapped(value):
        return "tensor of a torch.func transform: step outside of the transform"
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    is_subclass = isinstance(value, Tensor) and type(value) is not Tensor
    return f"{name}: step such tensors with torch.optim.AdamW" if is_subclass else name


def check_grad(name: str, param: Tensor, grad: Tensor | None) -> None:
    """Fails unless a gradient is like its parameter, which `name` names."""
    what = f"the gradient of {name}"
    if grad is not None:
        _check_dense(what, grad)
    like, own = plain(param), plain_grad(param, grad)
    if like is None or own is None:
        is_dtensor = hasattr(param, "placements")
        expected = "a DTensor on its mesh" if is_dtensor else "a tensor with memory"
        raise TypeError(f"{what} must be {expected}, it is a {_class_of(grad)}")
    if own.shape != like.shape:
        text = f"{what} must have the shape {tuple(like.shape)}, it has {tuple(own.shape)}"
        raise ValueError(text)
    if own.device != like.device:
        raise ValueError(f"{what} must be on {like.device}, it is on {own.device}")
    for which, tensor in ((name, like), (what, own)):
        check_device(which, tensor)
        check_memory(which, tensor)


def check_fake(name: str, param: Tensor) -> None:
    """Fails if a step would refuse the form of a fake parameter or of its gradient."""
    grad = param.grad
    assert grad is not None
    for what, tensor in ((name, param), (f"the gradient of {name}", grad)):
        _check_dense(what, tensor)
        check_device(what, tensor)
    _check_filled(name, param)


def check_device(what: str, tensor: Tensor) -> None:
    """Fails unless there are kernels for the device of a tensor."""
    if tensor.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{what} must be on the CPU or on CUDA, it is on {tensor.device}")
    if tensor.is_cuda and torch.version.hip is not None:
        text = "must be on the CPU or on a GPU of NVIDIA, and this torch is built for ROCm"
        raise ValueError(f"{what} {text}")


def _check_dense(what: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided:
        text = f"{what} must be dense, its layout is {tensor.layout}"
        raise ValueError(f"{text}: torch.optim.SparseAdam steps sparse gradients")
    if tensor.dtype not in _DTYPES:
        text = f"{what} must be float32, bfloat16 or float16, it is {tensor.dtype}"
        raise TypeError(f"{text}: convert the model, such as with model.float()")


def check_memory(what: str, tensor: Tensor | None) -> None:
    """Fails if the storage of a tensor ends before the tensor's last element."""
    if tensor is None or tensor.numel() == 0 or tensor.device.type == "meta":
        return
    dimensions = zip(tensor.shape, tensor.stride())
    last = tensor.storage_offset() + sum((size - 1) * stride for size, stride in dimensions)
    if tensor.untyped_storage().nbytes() < (last + 1) * tensor.element_size():
        raise ValueError(f"{what} must have memory, its storage was freed or made smaller")
