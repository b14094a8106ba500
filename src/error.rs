//! The errors of all parts of the library as one type.

use crate::checkpoint::StateError;
#[cfg(feature = "cuda")]
use crate::cuda::CudaError;
use crate::rule::ConfigError;
use crate::tensor::{ArgumentError, ListError, TensorError};
#[cfg(feature = "webgpu")]
use crate::webgpu::WebGpuError;

/// Any error of the library.
///
/// Every function returns the error type of its own part: [`ConfigError`], [`TensorError`],
/// [`ListError`], [`ArgumentError`], [`StateError`], `cuda::CudaError` or `webgpu::WebGpuError`.
/// Each converts into this type, so that `?` works in a function that calls several parts.
///
/// A call that returns an error has written nothing, with two exceptions:
///
/// - A driver fails while it works. The documentation of `cuda::CudaError` and
///   `webgpu::WebGpuError` says what holds then.
/// - `State::save` has replaced the file, and cannot sync the folder that the file is in.
///
/// # Examples
///
/// ```
/// use dualadam::{DualAdamConfig, Error};
///
/// fn train() -> Result<(), Error> {
///     let config = DualAdamConfig::default().with_lr(-0.1);
///     dualadam::cpu::DualAdam::new(config, &[8])?;
///     Ok(())
/// }
/// assert_eq!(train().unwrap_err().to_string(), "group 0: lr must be finite and at least 0, got -0.1");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A hyperparameter, a step or a gradient multiplier is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The config of one parameter group is not valid.
    #[error("group {group}: {problem}")]
    Group {
        /// The index of the group.
        group: usize,
        /// The problem with its config.
        problem: ConfigError,
    },
    /// One tensor, or one of its buffers, is not valid.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A list of arguments, or an index into one, is not valid.
    #[error(transparent)]
    List(#[from] ListError),
    /// A state is not valid, or could not be saved or loaded.
    #[error(transparent)]
    State(StateError),
    /// The CUDA driver failed, or an argument is not valid for CUDA.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(CudaError),
    /// wgpu failed, or an argument is not valid for WebGPU.
    #[cfg(feature = "webgpu")]
    #[error(transparent)]
    WebGpu(WebGpuError),
}

impl From<ArgumentError> for Error {
    fn from(error: ArgumentError) -> Self {
        match error {
            ArgumentError::Config(error) => error.into(),
            ArgumentError::Group { group, problem } => Self::Group { group, problem },
            ArgumentError::Tensor(error) => error.into(),
            ArgumentError::List(error) => error.into(),
        }
    }
}

impl From<StateError> for Error {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Argument(error) => error.into(),
            other => Self::State(other),
        }
    }
}

#[cfg(feature = "cuda")]
impl From<CudaError> for Error {
    fn from(error: CudaError) -> Self {
        match error {
            CudaError::Argument(error) => error.into(),
            CudaError::State(error) => (*error).into(),
            other => Self::Cuda(other),
        }
    }
}

#[cfg(feature = "webgpu")]
impl From<WebGpuError> for Error {
    fn from(error: WebGpuError) -> Self {
        match error {
            WebGpuError::Argument(error) => error.into(),
            WebGpuError::State(error) => (*error).into(),
            other => Self::WebGpu(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every step returns one, so its size costs time where nothing fails.
    #[test]
    fn errors_are_small() {
        assert!(size_of::<Error>() <= 64, "{}", size_of::<Error>());
        assert!(size_of::<ArgumentError>() <= 64 && size_of::<StateError>() <= 64);
    }
}
