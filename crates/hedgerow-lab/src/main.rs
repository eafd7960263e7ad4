//! The lab as a program; see the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    hedgerow_lab::main()
}
