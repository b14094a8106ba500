//! Bad input is refused with a status and a text that names the argument and the value, and nothing
//! is written.

mod arguments;
mod states;
mod tensors;
