//! Steps on a CUDA device, of parameters that come from the CPU and go back there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dualadam::cpu::{Buffer, BufferMut};
use dualadam::cuda::cudarc::driver::{CudaSlice, CudaStream};
use dualadam::cuda::{self, DualAdam, Kernels};
use dualadam::half::bf16;
use dualadam::{DualAdamConfig, TensorSpec};

use crate::backend::{Error, Optimizer};

/// The first device.
#[derive(Debug)]
pub(crate) struct Cuda {
    kernels: Kernels,
    name: String,
}

impl Cuda {
    pub(crate) fn open() -> Result<Self, Error> {
        let kernels = Kernels::new(0)?;
        let name = format!("CUDA device {}", kernels.context().name()?);
        Ok(Self { kernels, name })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// An optimizer with a stream of its own.
    pub(crate) fn optimizer(
        &self,
        config: DualAdamConfig,
        specs: &[TensorSpec],
    ) -> Result<impl Optimizer + use<>, Error> {
        let stream = self.kernels.context().new_stream()?;
        let optimizer = DualAdam::with_groups(&self.kernels, &stream, &[config], specs)?;
        Ok(OnCuda { optimizer, stream })
    }
}

struct OnCuda {
    optimizer: DualAdam,
    stream: Arc<CudaStream>,
}

impl Optimizer for OnCuda {
    fn set_lr(&mut self, lr: f64) -> Result<(), Error> {
        Ok(self.optimizer.set_lr(0, lr)?)
    }

    fn step(&mut self, mut params: [BufferMut<'_>; 4], grads: [Buffer<'_>; 4]) -> Result<Duration, Error> {
        let stream = &self.stream;
        let upload = |(params, grads): (&BufferMut<'_>, &Buffer<'_>)| Tensor::upload(stream, params, grads);
        let mut tensors = params.iter().zip(&grads).map(upload).collect::<Result<Vec<_>, _>>()?;
        stream.synchronize()?;

        let start = Instant::now();
        let (views, grads): (Vec<_>, Vec<_>) = tensors.iter_mut().map(Tensor::views).unzip();
        self.optimizer.step(views, grads)?;
        stream.synchronize()?;
        let time = start.elapsed();

        tensors.iter().zip(&mut params).try_for_each(|(tensor, params)| tensor.download(stream, params))?;
        Ok(time)
    }
}

/// Parameters and gradients on the device.
enum Tensor {
    F32(CudaSlice<f32>, CudaSlice<f32>),
    Bf16(CudaSlice<bf16>, CudaSlice<bf16>),
}

impl Tensor {
    fn upload(stream: &Arc<CudaStream>, params: &BufferMut<'_>, grads: &Buffer<'_>) -> Result<Self, Error> {
        match (params, grads) {
            (BufferMut::F32(params), Buffer::F32(grads)) => {
                Ok(Self::F32(stream.clone_htod(&**params)?, stream.clone_htod(*grads)?))
            }
            (BufferMut::Bf16(params), Buffer::Bf16(grads)) => {
                Ok(Self::Bf16(stream.clone_htod(&**params)?, stream.clone_htod(*grads)?))
            }
            _ => Err(OTHER_TYPES.into()),
        }
    }

    fn views(&mut self) -> (cuda::BufferMut<'_>, Option<cuda::Buffer<'_>>) {
        match self {
            Self::F32(params, grads) => (params.into(), Some((&*grads).into())),
            Self::Bf16(params, grads) => (params.into(), Some((&*grads).into())),
        }
    }

    /// Waits for the stream and copies the parameters.
    fn download(&self, stream: &Arc<CudaStream>, to: &mut BufferMut<'_>) -> Result<(), Error> {
        match (self, to) {
            (Self::F32(params, _), BufferMut::F32(to)) => stream.memcpy_dtoh(params, &mut **to)?,
            (Self::Bf16(params, _), BufferMut::Bf16(to)) => stream.memcpy_dtoh(params, &mut **to)?,
            _ => return Err(OTHER_TYPES.into()),
        }
        Ok(stream.synchronize()?)
    }
}

const OTHER_TYPES: &str = "the example's tensors are f32 or bf16 throughout";

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use indicatif::ProgressBar;
    use stand_in_cuda::client::StandIn;

    use crate::backend::Backend;
    use crate::data::Digits;
    use crate::optimizers::contenders;
    use crate::train::{Dtype, Setting, train};

    /// On the stand-in for the driver, which runs the real kernels.
    #[test]
    fn a_run_is_the_cpus_to_the_bit() {
        let _stand_in = StandIn::start().unwrap();
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let losses = [Backend::Cpu, Backend::Cuda].map(|backend| {
                let device = backend.open().unwrap();
                let setting = Setting { digits: Digits::bundled(), epochs: 1, dtype, device };
                train(&setting, &contenders(1e-2, 10)[3], 0, &ProgressBar::hidden()).unwrap().losses
            });
            assert_eq!(losses[0], losses[1]);
        }
    }
}
