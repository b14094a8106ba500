//! 16-bit loads and stores, seen through steps that change nothing else.

use bytemuck::Zeroable;
use dualadam::half::{bf16, f16};
use dualadam::webgpu::{Pipelines, TensorList};
use dualadam::{Dtype, Element, StepCoeffs};

use crate::common::contract::same;
use crate::common::data::{Inputs, SPECIAL};
use crate::gpu::{Device, Gpu};
use crate::host::{Host, Values};

fn step(device: &Device, host: &Host, coeffs: StepCoeffs) -> Host {
    let uploaded = host.upload(device);
    let list = TensorList::new(&Pipelines::new(&device.device).unwrap(), &[uploaded.tensor()]).unwrap();
    device.submit(|pass| list.encode(pass, &[coeffs]).unwrap());
    uploaded.download(device, host)
}

/// With β1 = 0 and m = 0 the new m is the gradient.
pub(crate) fn all_16_bit_patterns_load(gpu: &Gpu) {
    let coeffs = StepCoeffs { one_minus_beta1: 1.0, grad_scale: 1.0, eps: 1.0, ..StepCoeffs::zeroed() };
    let zeros = vec![0.0; 1 << 16];
    let inputs = Inputs { p: zeros.clone(), grad: zeros.clone(), m: zeros.clone(), v: zeros };
    for dtype in [Dtype::Bf16, Dtype::F16] {
        let mut host = Host::new((Dtype::F32, dtype, None), &inputs, 0);
        let patterns: Vec<u16> = (0..=u16::MAX).collect();
        host.grad.bytes_mut().copy_from_slice(bytemuck::cast_slice(&patterns));
        let found = step(&gpu.device, &host, coeffs).m.wide();
        for ((found, expected), pattern) in found.into_iter().zip(host.grad.wide()).zip(patterns) {
            // The device may flush what is subnormal in f32, and zero has lost its sign beside the old m.
            let flushed = expected.abs() < f32::MIN_POSITIVE && found == 0.0;
            assert!(flushed || same(found, expected), "{dtype} {pattern:#x}: {found:e}, not {expected:e}");
        }
    }
}

/// With a learning rate of 0 the parameter stays, and the copy is the parameter, narrowed.
pub(crate) fn ties_and_extremes_store(gpu: &Gpu) {
    let coeffs = StepCoeffs { eps: 1.0, ..StepCoeffs::zeroed() };
    let mut p: Vec<f32> = SPECIAL.to_vec();
    for bits in 0..=u16::MAX {
        let (b, h) = (u32::from(bits) << 16, f16::from_bits(bits).to_f32());
        let next = f16::from_bits(bits.wrapping_add(1)).to_f32();
        for tie in [b | 0x8000, ((h + next) / 2.0).to_bits()] {
            p.extend([tie.wrapping_sub(1), tie, tie.wrapping_add(1)].map(f32::from_bits));
        }
    }
    let zeros = vec![0.0; p.len()];
    let inputs = Inputs { p, grad: zeros.clone(), m: zeros.clone(), v: zeros };
    for dtype in [Dtype::Bf16, Dtype::F16] {
        let host = Host::new((Dtype::F32, Dtype::F32, Some(dtype)), &inputs, 0);
        let found = step(&gpu.device, &host, coeffs);
        let copy = match found.copy.as_ref().unwrap() {
            Values::Bf16(copy) => copy.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
            Values::F16(copy) => copy.iter().map(|x| x.to_bits()).collect(),
            Values::F32(_) => panic!("a copy has 16 bits"),
        };
        let (masters, mut flushed) = (found.p.wide(), 0);
        for (i, &x) in inputs.p.iter().enumerate() {
            let kept = masters[i];
            flushed += usize::from(x.is_subnormal() && kept == 0.0);
            assert!(same(kept, x) || x.is_subnormal(), "{x:e} became {kept:e}");
            let expected =
                if dtype == Dtype::Bf16 { bf16::narrow(kept).to_bits() } else { f16::narrow(kept).to_bits() };
            let is_nan = |bits: u16| Values::Bf16(vec![bf16::from_bits(bits)]).wide()[0].is_nan();
            let is_nan = |bits| if dtype == Dtype::Bf16 { is_nan(bits) } else { f16::from_bits(bits).is_nan() };
            let both_nan = is_nan(copy[i]) && is_nan(expected);
            assert!(copy[i] == expected || both_nan, "{dtype} of {x:e}: {:#x}, not {expected:#x}", copy[i]);
        }
        println!("{dtype}: {flushed} subnormal parameters were flushed");
    }
}
