//! What an error must be. The library's variants are named here, so that tests need not.

use dualadam::{Dtype, Error, WgpuProblem};

/// The error of something that must be refused.
#[track_caller]
pub fn refused<T>(result: Result<T, Error>) -> Error {
    match result {
        Ok(_) => panic!("not refused"),
        Err(error) => error,
    }
}

/// Defines for each variant a function that fails unless a result is that error with these fields.
macro_rules! refusals {
    ($($name:ident = $variant:ident { $($field:ident: $type:ty),* };)*) => {$(
        #[track_caller]
        pub fn $name<T>(result: Result<T, Error>, $($field: $type),*) {
            let (error, expected) = (refused(result), ($($field,)*));
            let message = error.to_string();
            match error {
                Error::$variant { $($field,)* .. } => assert_eq!(($($field,)*), expected, "{message}"),
                error => panic!("not {}: {error:?}", stringify!($variant)),
            }
        }
    )*};
}

refusals! {
    buffer_size = BufferSize { tensor: usize, buffer: &str, required: u128, actual: u64 };
    captured = Captured {};
    context = Context { argument: &str };
    count = Count { list: &str, expected: usize, actual: usize };
    empty = Empty { list: &str };
    index = Index { tensor: usize, index: &str, len: usize, value: usize };
    interrupted = Interrupted {};
    limit = Limit { required: u64, actual: u64 };
    length = Length { tensor: usize, buffer: &str, expected: usize, actual: usize };
    offset = Offset { tensor: usize, buffer: &str, align: u64, offset: u64 };
    overlap = Overlap {};
    position = Position { list: &str, len: usize, value: usize };
    step_overflow = StepOverflow { tensor: usize };
    too_many = TooMany { list: &str, limit: u64, actual: u64 };
    types = Types { tensor: usize, params: Dtype, grads: Dtype, copy: Option<Dtype> };
    unordered = Unordered { argument: &str };
    usage = Usage { tensor: usize, buffer: &str };
    value = Value { name: &str };
}

#[track_caller]
pub fn lost_device<T>(result: Result<T, Error>) {
    let error = refused(result);
    assert!(matches!(error, Error::Wgpu { problem: WgpuProblem::DeviceLost, .. }), "{error:?}");
}
