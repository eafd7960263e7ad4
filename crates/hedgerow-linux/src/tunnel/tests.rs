//! The tunnel's tests: the machine in memory, against another implementation, on the real kernel.

mod attacks;
mod interop;
mod kernel;
mod machine;
mod pair;
mod paths;
mod plane;
