//! The binary: the library's [`run`](corecast::run), and the allocator that it runs with.

/// Small objects of many connections: measured against glibc's, with huge pages off (`no_thp`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    corecast::run()
}
