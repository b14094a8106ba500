//! Where the optimizers' steps run. The network itself always runs on the CPU.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use dualadam::cpu::{self, Buffer, BufferMut};
use dualadam::{DualAdamConfig, TensorSpec};

#[cfg(feature = "cuda")]
use crate::on_cuda;
#[cfg(feature = "webgpu")]
use crate::on_webgpu;

/// Whatever can go wrong in a run.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// Where the optimizer's steps run. The network itself always runs on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// CUDA where there is a device, else a GPU through WebGPU, else the CPU
    Auto,
    /// The CPU
    Cpu,
    /// The first CUDA device
    Cuda,
    /// The best WebGPU adapter, also one that runs on the CPU
    Webgpu,
}

/// Whether a WebGPU adapter that runs shaders on the CPU will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Software {
    Allowed,
    Refused,
}

/// A device that is there.
#[derive(Debug)]
pub(crate) enum Device {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(on_cuda::Cuda),
    #[cfg(feature = "webgpu")]
    Webgpu(on_webgpu::Webgpu),
}

impl Backend {
    /// The device; fails where it is not there.
    pub(crate) fn open(self) -> Result<Device, Error> {
        match self {
            Self::Auto => Ok(cuda().or_else(|_| webgpu(Software::Refused)).unwrap_or(Device::Cpu)),
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda => cuda(),
            Self::Webgpu => webgpu(Software::Allowed),
        }
    }
}

#[cfg(feature = "cuda")]
fn cuda() -> Result<Device, Error> {
    Ok(Device::Cuda(on_cuda::Cuda::open()?))
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Result<Device, Error> {
    Err("the backend cuda needs the feature cuda, which this program was built without".into())
}

#[cfg(feature = "webgpu")]
fn webgpu(software: Software) -> Result<Device, Error> {
    Ok(Device::Webgpu(on_webgpu::Webgpu::open(software)?))
}

#[cfg(not(feature = "webgpu"))]
fn webgpu(_software: Software) -> Result<Device, Error> {
    Err("the backend webgpu needs the feature webgpu, which this program was built without".into())
}

impl Device {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Cpu => "CPU",
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.name(),
            #[cfg(feature = "webgpu")]
            Self::Webgpu(webgpu) => webgpu.name(),
        }
    }

    /// An optimizer for these tensors.
    pub(crate) fn optimizer(&self, config: DualAdamConfig, specs: &[TensorSpec]) -> Result<Box<dyn Optimizer>, Error> {
        Ok(match self {
            Self::Cpu => Box::new(cpu::DualAdam::with_groups(&[config], specs)?),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => Box::new(cuda.optimizer(config, specs)?),
            #[cfg(feature = "webgpu")]
            Self::Webgpu(webgpu) => Box::new(webgpu.optimizer(config, specs)?),
        })
    }
}

/// An optimizer of a network whose parameters are on the CPU.
pub(crate) trait Optimizer {
    fn set_lr(&mut self, lr: f64) -> Result<(), Error>;

    /// One step; returns what it took without the copies to a device and back.
    fn step(&mut self, params: [BufferMut<'_>; 4], grads: [Buffer<'_>; 4]) -> Result<Duration, Error>;
}

impl Optimizer for cpu::DualAdam {
    fn set_lr(&mut self, lr: f64) -> Result<(), Error> {
        Ok(Self::set_lr(self, 0, lr)?)
    }

    fn step(&mut self, params: [BufferMut<'_>; 4], grads: [Buffer<'_>; 4]) -> Result<Duration, Error> {
        let start = Instant::now();
        Self::step(self, params, grads.map(Some))?;
        Ok(start.elapsed())
    }
}
