//! The example `digits` on WebGPU, whichever adapter there is, beside its run on the CPU.

#![expect(dead_code, unused_imports, reason = "the example's own tests, table and options are not used here")]

#[path = "../src/backend.rs"]
mod backend;
#[path = "../src/data.rs"]
mod data;
#[path = "../src/network.rs"]
mod network;
#[cfg(feature = "cuda")]
#[path = "../src/on_cuda.rs"]
mod on_cuda;
#[path = "../src/on_webgpu.rs"]
mod on_webgpu;
#[path = "../src/optimizers.rs"]
mod optimizers;
#[path = "../src/train.rs"]
mod train;

use std::time::Duration;

use dualadam::Element;
use dualadam::cpu::{self, Buffer, BufferMut};
use indicatif::ProgressBar;

use backend::{Backend, Device, Error, Optimizer};
use data::Digits;
use optimizers::{DUAL_LINEAR, contenders};
use testkit::contract::U;
use testkit::device::{self, DeviceTest};
use train::{Dtype, Setting, train_with};

const TESTS: &[DeviceTest<()>] = &[("losses_are_within_the_steps_bounds", losses_are_within_the_steps_bounds)];

fn main() {
    let device = Backend::Webgpu.open().map(|device| println!("{}", device.name()));
    device::run("webgpu", device.map_err(|error| error.to_string()), TESTS).exit();
}

/// WebGPU's losses are no further from the CPU's than those of a run on the CPU whose every step is
/// off by as much as the bound of one step allows: along the gradient in one run, against it in the
/// other.
///
/// f32 losses then lie between those of the two runs. In bf16 an error shows only where it moves a
/// parameter across a rounding, by more than itself, so that either run may have either sign.
fn losses_are_within_the_steps_bounds(&(): &()) {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let contender = &contenders(1e-2, 10)[DUAL_LINEAR];
        let run = |device: Device, off: Option<f64>| {
            let setting = Setting { digits: Digits::bundled(), epochs: 2, dtype, device };
            let optimizer = |specs: &[_]| -> Result<Box<dyn Optimizer>, Error> {
                match off {
                    None => setting.device.optimizer(contender.config, specs),
                    Some(direction) => {
                        let inner = cpu::DualAdam::with_groups(&[contender.config], specs)?;
                        Ok(Box::new(Off { inner, direction }))
                    }
                }
            };
            train_with(&setting, contender, 0, &ProgressBar::hidden(), optimizer).unwrap().losses
        };
        let losses = run(Backend::Webgpu.open().unwrap(), None);
        let [on_cpu, low, high] = [None, Some(-1.0), Some(1.0)].map(|off| run(Device::Cpu, off));
        println!("{dtype:?}: {losses:?}, CPU {on_cpu:?}, off by the bound {low:?} and {high:?}");
        assert_eq!(losses[0], on_cpu[0]);
        for epoch in 1..=2 {
            let distance = |losses: &[f64]| (losses[epoch] - on_cpu[epoch]).abs();
            let most = f64::max(distance(&low), distance(&high));
            assert!(distance(&losses) <= most, "{dtype:?}, epoch {epoch}: {:e}, bound {most:e}", distance(&losses));
        }
    }
}

/// The CPU's optimizer with an error in each step.
struct Off {
    inner: cpu::DualAdam,
    direction: f64,
}

impl Optimizer for Off {
    fn set_lr(&mut self, lr: f64) -> Result<(), Error> {
        Optimizer::set_lr(&mut self.inner, lr)
    }

    fn step(&mut self, mut params: [BufferMut<'_>; 4], grads: [Buffer<'_>; 4]) -> Result<Duration, Error> {
        let wide = params.each_ref().map(wide);
        let grad_values = grads.each_ref().map(|grads| match grads {
            Buffer::F32(grads) => grads.to_vec(),
            Buffer::Bf16(grads) => grads.iter().map(|grad| grad.widen()).collect(),
            other => panic!("the example has no {}", other.dtype()),
        });
        let before = self.inner.state().clone();
        let reborrowed = params.each_mut().map(reborrow);
        self.inner.step(reborrowed, grads.map(Some))?;
        let mut after = self.inner.state().clone();
        for (index, grads) in grad_values.iter().enumerate() {
            let is_set = before.ledger.master_is_set(index)?;
            let old = before.arrays[index].master.as_ref().filter(|_| is_set);
            let old = old.unwrap_or(&wide[index]);
            let mut new = after.arrays[index].master.clone().unwrap_or_else(|| self::wide(&params[index]));
            for (i, new) in new.iter_mut().enumerate() {
                let (m_before, m) = (before.arrays[index].exp_avg[i], after.arrays[index].exp_avg[i]);
                let bound = bound(old[i], *new, m_before, m, grads[i]);
                *new = (f64::from(*new) + self.direction * bound * f64::from(grads[i]).signum()) as f32;
            }
            match &mut params[index] {
                BufferMut::F32(params) => params.copy_from_slice(&new),
                BufferMut::Bf16(params) => {
                    params.iter_mut().zip(&new).for_each(|(to, from)| *to = Element::narrow(*from));
                }
                other => panic!("the example has no {}", other.dtype()),
            }
            if let Some(master) = &mut after.arrays[index].master {
                *master = new;
            }
        }
        self.inner = after.try_into()?;
        Ok(Duration::ZERO)
    }
}

/// The same parameters for a shorter time.
fn reborrow<'a>(params: &'a mut BufferMut<'_>) -> BufferMut<'a> {
    match params {
        BufferMut::F32(params) => (&mut **params).into(),
        BufferMut::Bf16(params) => (&mut **params).into(),
        other => panic!("the example has no {}", other.dtype()),
    }
}

fn wide(params: &BufferMut<'_>) -> Vec<f32> {
    match params {
        BufferMut::F32(params) => params.to_vec(),
        BufferMut::Bf16(params) => params.iter().map(|p| p.widen()).collect(),
        other => panic!("the example has no {}", other.dtype()),
    }
}

/// How far a step of WebGPU may be from the CPU's, by the documented bound, twice: the CPU's has an
/// error of its own. There is no decay, so that the update is m·w, and w is the update by m.
fn bound(old: f32, new: f32, m_before: f32, m: f32, grad: f32) -> f64 {
    let [old, new, m_before, m, grad] = [old, new, m_before, m, grad].map(f64::from);
    if m == 0.0 {
        return 0.0;
    }
    let m_summands = m_before.abs() + 0.1 * (grad.abs() + m_before.abs());
    let w = (old - new).abs() / m.abs();
    3.0 * U * new.abs() + 80.0 * U * m_summands * w
}
