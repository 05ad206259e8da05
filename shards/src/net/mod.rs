//! The only folder that touches the kernel.

pub mod broker;
