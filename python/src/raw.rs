//! The tensors of one parameter as the library takes them.

use dualadam::{RawBuffer, RawTensor};

/// The tensors of one parameter, by their addresses. `moments` are those of `exp_avg` and
/// `exp_avg_sq`.
///
/// With a master, the step updates the master, and the parameter is a copy of it.
pub(crate) fn raw_tensor(
    param: RawBuffer,
    grad: RawBuffer,
    moments: [u64; 2],
    master: Option<RawBuffer>,
    len: u64,
) -> RawTensor {
    let (params, copy) = match master {
        Some(master) => (master, Some(param)),
        None => (param, None),
    };
    let [exp_avg, exp_avg_sq] = moments;
    RawTensor { params, grads: grad, exp_avg, exp_avg_sq, copy, len, set: 0 }
}
