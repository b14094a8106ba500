//! Bad tensors by address that every implementation must refuse. The addresses are invented, and no
//! test accesses them.

use dualadam::{Dtype, Error, Formats, RawBuffer, RawTensor, Role, TensorProblem};

use crate::refused;
use crate::tensor::map_addresses;

use Role::{ExpAvg, ExpAvgSq, Grad, Master, Param};
use TensorProblem::{Extent, FixedFormats, FixedLength, Misaligned, Null, Overlap};

pub fn f32_at(address: u64) -> RawBuffer {
    RawBuffer::f32(address)
}

pub fn bf16_at(address: u64) -> RawBuffer {
    RawBuffer::new(address, Dtype::Bf16)
}

/// A tensor of 64 elements with masters; each buffer has 256 bytes, one after the other.
pub fn good() -> RawTensor {
    RawTensor::new(64, bf16_at(0x1400), bf16_at(0x1100), f32_at(0x1200), f32_at(0x1300)).with_master(f32_at(0x1000))
}

/// The tensor with one change.
pub fn with(mut tensor: RawTensor, change: impl FnOnce(&mut RawTensor)) -> RawTensor {
    change(&mut tensor);
    tensor
}

pub fn moved(tensor: RawTensor, by: u64) -> RawTensor {
    map_addresses(tensor, |address, _| address + by)
}

/// Bad tensors are refused in a step of their own, and as the second of a list.
pub fn wrong_tensors<T, U, E: Into<Error>, F: Into<Error>>(
    alone: impl Fn(&RawTensor) -> Result<T, E>,
    list: impl Fn(&[RawTensor]) -> Result<U, F>,
) {
    const BEYOND: u64 = u64::MAX - 127;
    let second = |tensor| list(&[moved(good(), 0x10_0000), tensor]);
    let misaligned = |address, align| Misaligned { address, align };
    for (change, buffer, problem) in [
        ((|t| t.master = Some(f32_at(0))) as fn(&mut RawTensor), Master, Null),
        (|t| t.exp_avg = f32_at(0), ExpAvg, Null),
        (|t| t.exp_avg_sq = f32_at(0), ExpAvgSq, Null),
        (|t| t.param = bf16_at(0), Param, Null),
        (|t| t.master = Some(f32_at(0x1002)), Master, misaligned(0x1002, 4)),
        (|t| t.grad = bf16_at(0x1101), Grad, misaligned(0x1101, 2)),
        (|t| t.exp_avg = f32_at(0x1201), ExpAvg, misaligned(0x1201, 4)),
        (|t| t.exp_avg_sq = f32_at(0x1302), ExpAvgSq, misaligned(0x1302, 4)),
        (|t| t.param = bf16_at(0x1403), Param, misaligned(0x1403, 2)),
        (|t| (t.param, t.master) = (f32_at(0x1402), None), Param, misaligned(0x1402, 4)),
        (|t| (t.param, t.grad, t.master) = (f32_at(0x1400), f32_at(0x1102), None), Grad, misaligned(0x1102, 4)),
        (|t| t.exp_avg = f32_at(BEYOND), ExpAvg, Extent { address: BEYOND, len: 64, size: 4 }),
    ] {
        let tensor = with(good(), change);
        refused::problem(alone(&tensor), 0, buffer, problem);
        refused::problem(second(tensor), 1, buffer, problem);
    }
    for (change, one, other, address) in [
        ((|t| t.grad = bf16_at(0x10fe)) as fn(&mut RawTensor), Grad, Master, 0x10fe),
        (|t| t.exp_avg = f32_at(0xf04), ExpAvg, Master, 0x1000),
        (|t| t.exp_avg_sq = f32_at(0x1200), ExpAvg, ExpAvgSq, 0x1200),
        (|t| t.param = bf16_at(0x137e), Param, ExpAvgSq, 0x137e),
        (|t| t.param = bf16_at(0x1100), Param, Grad, 0x1100),
        (|t| t.exp_avg = f32_at(0x1400), Param, ExpAvg, 0x1400),
    ] {
        let tensor = with(good(), change);
        let both = |tensor| [(tensor, one.min(other)), (tensor, one.max(other))];
        assert_eq!(refused::overlap(alone(&tensor)), (both(0), address));
        assert_eq!(refused::overlap(second(tensor)), (both(1), address));
    }
    let bf16_master = Formats::new(Dtype::Bf16, Dtype::Bf16).with_master(Dtype::Bf16);
    for (tensor, formats) in [
        (with(good(), |t| t.master = Some(bf16_at(0x1000))), bf16_master),
        (
            with(good(), |t| (t.grad, t.master) = (RawBuffer::new(0x1100, Dtype::F16), None)),
            Formats::new(Dtype::Bf16, Dtype::F16),
        ),
    ] {
        refused::formats(alone(&tensor), 0, formats);
        refused::formats(second(tensor), 1, formats);
    }
    refused::problem(alone(&good().with_grad(bf16_at(0))), 0, Grad, Null);
    refused::coeffs_index(alone(&good().with_coeffs_index(1)), 0, 1, 1);
}

/// Buffers of two tensors must not overlap in a list, and a list keeps lengths and formats. An
/// update that is refused changes nothing.
pub fn wrong_lists<L, E: Into<Error>, F: Into<Error>>(
    new: impl Fn(&[RawTensor]) -> Result<L, E>,
    update: impl Fn(&mut L, &[RawTensor]) -> Result<(), F>,
    tensors: fn(&L) -> &[RawTensor],
) {
    let update = |list: &mut L, new: &[RawTensor]| {
        let before = tensors(list).to_vec();
        let result = update(list, new);
        assert_eq!(tensors(list), if result.is_ok() { new } else { &before });
        result
    };
    let (other, third) = (moved(good(), 0x10_0000), moved(good(), 0x20_0000));
    let refused = |tensor| refused::overlap(new(&[good(), other, tensor])).0;
    assert_eq!(refused(with(third, |t| t.exp_avg = f32_at(0x1000))), [(0, Master), (2, ExpAvg)]);
    assert_eq!(refused(third.with_grad(bf16_at(0x10_12fe))), [(1, ExpAvg), (2, Grad)]);
    assert_eq!(refused(third.with_master(f32_at(0x117c))), [(0, Grad), (2, Master)]);
    assert_eq!(refused(with(third, |t| t.exp_avg_sq = f32_at(0x1380))), [(0, ExpAvgSq), (2, ExpAvgSq)]);
    // Buffers may be adjacent, gradients may share memory, and an empty or skipped tensor may
    // overlap another.
    let beside = with(third, |t| (t.exp_avg, t.grad) = (f32_at(0x1500), good().grad));
    for fine in [beside, with(good(), |t| t.len = 0), good().with_grad(bf16_at(0))] {
        assert!(new(&[good(), other, fine]).is_ok(), "{fine:?}");
    }

    let Ok(mut list) = new(&[good(), other]) else { panic!("the tensors are refused") };
    refused::count(update(&mut list, &[good()]), "tensors", 2, 1);
    let overlap = |other_tensor, address| Overlap { other_tensor, other_buffer: Master, address };
    let f32_grad = other.with_grad(f32_at(other.grad.address));
    let [bf16, f32] = [Dtype::Bf16, Dtype::F32].map(|grad| Formats::new(Dtype::Bf16, grad).with_master(Dtype::F32));
    let formats = FixedFormats { expected: bf16, actual: f32 };
    for (tensor, buffer, problem) in [
        (with(other, |t| t.len = 63), None, FixedLength { expected: 64, actual: 63 }),
        (f32_grad, None, formats),
        (other.with_grad(bf16_at(0x1010)), Some(Grad), overlap(0, 0x1010)),
        (other.with_grad(bf16_at(0x10_1010)), Some(Grad), overlap(1, 0x10_1010)),
        (other.with_grad(bf16_at(0x1101)), Some(Grad), Misaligned { address: 0x1101, align: 2 }),
        (with(other, |t| t.exp_avg = f32_at(0)), Some(ExpAvg), Null),
        (with(other, |t| t.param = bf16_at(0)), Some(Param), Null),
        (with(other, |t| t.param = bf16_at(0x1401)), Some(Param), Misaligned { address: 0x1401, align: 2 }),
    ] {
        refused::problem(update(&mut list, &[good(), tensor]), 1, buffer, problem);
    }
    // Two buffers that start at the same address.
    for (tensor, both, address) in [
        (with(other, |t| t.exp_avg = f32_at(0x1300)), [(0, ExpAvgSq), (1, ExpAvg)], 0x1300),
        (with(other, |t| t.param = good().param), [(0, Param), (1, Param)], 0x1400),
        (other.with_grad(good().param), [(0, Param), (1, Grad)], 0x1400),
    ] {
        assert_eq!(refused::overlap(update(&mut list, &[good(), tensor])), (both, address));
    }
    assert!(update(&mut list, &[good(), other.with_coeffs_index(3)]).is_ok());
}
