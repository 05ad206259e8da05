//! The only folder that touches the kernel.
