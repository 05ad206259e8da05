//! The binary: the library's [`run`](corecast::run), and the allocator that it runs with.

/// Small objects of many connections: measured against glibc's. It asks for no huge pages (`no_thp`), and `serve` refuses those
/// that nobody asks for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    corecast::run()
}
