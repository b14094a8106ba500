//! What an error must be. The library's variants are named here, so that tests need not.

use std::fmt::Debug;

use dualadam::{ConfigError, Error, Formats, ListError, Role, TensorError, TensorProblem};

/// The error of something that must be refused.
#[track_caller]
pub fn refused<T, E: Into<Error>>(result: Result<T, E>) -> Error {
    match result {
        Ok(_) => panic!("not refused"),
        Err(error) => error.into(),
    }
}

#[track_caller]
fn is<E: Debug + PartialEq>(error: Error, found: Option<E>, expected: E) {
    assert_eq!(found, Some(expected), "{error}");
}

/// A list must have another number of entries, or be another list: an error of lists.
#[track_caller]
pub fn list<T, E: Into<Error>>(result: Result<T, E>, expected: ListError) {
    let error = refused(result);
    let found = if let Error::List(found) = error { Some(found) } else { None };
    is(error, found, expected);
}

#[track_caller]
pub fn count<T, E: Into<Error>>(result: Result<T, E>, list: &'static str, expected: usize, actual: usize) {
    self::list(result, ListError::Count { list, expected, actual });
}

#[track_caller]
pub fn empty<T, E: Into<Error>>(result: Result<T, E>, list: &'static str) {
    self::list(result, ListError::Empty { list });
}

#[track_caller]
pub fn position<T, E: Into<Error>>(result: Result<T, E>, list: &'static str, len: usize, value: usize) {
    self::list(result, ListError::Position { list, len, value });
}

#[track_caller]
pub fn too_many<T, E: Into<Error>>(result: Result<T, E>, list: &'static str, limit: u64, actual: u64) {
    self::list(result, ListError::TooMany { list, limit, actual });
}

/// A scalar of this name is not valid.
#[track_caller]
pub fn value<T, E: Into<Error>>(result: Result<T, E>, name: &str) {
    let error = refused(result);
    let found = if let Error::Config(ConfigError::Value { name, .. }) = error { Some(name) } else { None };
    is(error, found, name);
}

/// A scalar of this name is not valid in the config of a group.
#[track_caller]
pub fn group_value<T, E: Into<Error>>(result: Result<T, E>, expected: usize, name: &str) {
    match refused(result) {
        Error::Group { group, problem } => {
            assert_eq!(group, expected);
            value(Err::<T, _>(problem), name);
        }
        other => panic!("not of a group: {other:?}"),
    }
}

/// The tensor's error.
#[track_caller]
pub fn tensor_error<T, E: Into<Error>>(result: Result<T, E>) -> TensorError {
    match refused(result) {
        Error::Tensor(error) => error,
        other => panic!("not of a tensor: {other:?}"),
    }
}

/// This tensor, or this buffer of it, has this problem.
#[track_caller]
pub fn problem<T, E: Into<Error>>(
    result: Result<T, E>,
    tensor: usize,
    buffer: impl Into<Option<Role>>,
    problem: TensorProblem,
) {
    let error = tensor_error(result);
    assert_eq!((error.tensor, error.buffer, error.problem), (tensor, buffer.into(), problem), "{error}");
}

#[track_caller]
pub fn length<T, E: Into<Error>>(result: Result<T, E>, tensor: usize, buffer: Role, expected: usize, actual: usize) {
    problem(result, tensor, buffer, TensorProblem::Length { expected, actual });
}

#[track_caller]
pub fn coeffs_index<T, E: Into<Error>>(result: Result<T, E>, tensor: usize, len: usize, value: usize) {
    problem(result, tensor, None, TensorProblem::CoeffsIndex { len, value });
}

#[track_caller]
pub fn group<T, E: Into<Error>>(result: Result<T, E>, tensor: usize, len: usize, value: usize) {
    problem(result, tensor, None, TensorProblem::Group { len, value });
}

#[track_caller]
pub fn step_overflow<T, E: Into<Error>>(result: Result<T, E>, tensor: usize) {
    problem(result, tensor, None, TensorProblem::StepOverflow);
}

#[track_caller]
pub fn overlap<T, E: Into<Error>>(result: Result<T, E>) {
    let error = tensor_error(result);
    assert!(matches!(error.problem, TensorProblem::Overlap { .. }), "{error}");
}

#[track_caller]
pub fn formats<T, E: Into<Error>>(result: Result<T, E>, tensor: usize, formats: Formats) {
    problem(result, tensor, None, TensorProblem::Formats { formats });
}
