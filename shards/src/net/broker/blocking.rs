//! Work that blocks, on a plain thread, awaited by the relay's.

use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::limits::BROKER_HANDSHAKE_TIMEOUT;

/// Runs `work` on a thread of its own. It is awaited however long it takes, so that a name server which doesn't answer holds
/// one thread, not one per attempt; `is_slow` is called once when that is long.
///
/// # Errors
/// A sentence for the operator; also when `is_stopping` says so.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
    is_stopping: impl Fn() -> bool,
    is_slow: impl Fn(),
) -> Result<T, String> {
    let cannot = |error: std::io::Error| format!("can't wait for a thread: {error}");
    let (done, thread_end) = StdUnixStream::pair().map_err(cannot)?;
    done.set_nonblocking(monoio::utils::is_legacy()).map_err(cannot)?;
    let done = monoio::net::UnixStream::from_std(done).map_err(cannot)?;
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("redis-connect".into())
        .spawn(move || {
            // Nobody receives if the link has been shut down meanwhile.
            let _ = sender.send(work());
            // Its end becomes readable when this one is closed; also when the thread panics.
            drop(thread_end);
        })
        .map_err(cannot)?;
    let mut slow_at = Some(Instant::now() + 2 * BROKER_HANDSHAKE_TIMEOUT);
    loop {
        match receiver.try_recv() {
            Ok(result) => return Ok(result),
            Err(mpsc::TryRecvError::Disconnected) => return Err("the connecting thread has died".into()),
            Err(mpsc::TryRecvError::Empty) => {}
        }
        if is_stopping() {
            return Err("the server is shutting down".into());
        }
        if slow_at.is_some_and(|at| Instant::now() >= at) {
            slow_at = None;
            is_slow();
        }
        // Dropping readable() loses nothing; a short wait lets a shutdown through.
        let _ = monoio::time::timeout(CONNECT_POLL, done.readable(false)).await;
    }
}

/// How long a shutdown may wait for a connecting thread to be let go.
const CONNECT_POLL: Duration = Duration::from_millis(100);
