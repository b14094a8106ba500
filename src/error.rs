//! All errors of the library as one type, for callers who do not care which part reports them.

use crate::checkpoint::StateError;
#[cfg(feature = "cuda")]
use crate::cuda::CudaError;
use crate::rule::ConfigError;
use crate::tensor::{ArgumentError, ListError, TensorError};
#[cfg(feature = "webgpu")]
use crate::webgpu::WebGpuError;

/// What can be wrong with any call. Every function returns the error type of its own part; all of
/// them convert into this.
///
/// A call that returns an error has written nothing, unless the error is a driver's
/// (`cuda::CudaError` and `webgpu::WebGpuError` say which), or `State::save` only failed to make a
/// finished file durable.
///
/// # Example
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
    /// A hyperparameter or a scalar is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The config of one of several groups is not valid.
    #[error("group {group}: {problem}")]
    Group {
        /// The position of the group.
        group: usize,
        /// What is wrong with its config.
        problem: ConfigError,
    },
    /// Something is wrong with one tensor.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// Something is wrong with a list of arguments, or with a position in one.
    #[error(transparent)]
    List(#[from] ListError),
    /// A state could not be saved or resumed.
    #[error(transparent)]
    State(StateError),
    /// The CUDA driver, or what it was asked for.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(CudaError),
    /// wgpu, or what it was asked for.
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

    /// An error travels through every result of a step.
    #[test]
    fn errors_are_small() {
        assert!(size_of::<Error>() <= 64, "{}", size_of::<Error>());
        assert!(size_of::<ArgumentError>() <= 64 && size_of::<StateError>() <= 64);
    }
}
