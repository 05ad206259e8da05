//! `/metrics` and `/healthz` of a consumer: one thread, one request a connection.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use corecast_consumer::Consumer;

/// Bytes of a request's head; what Prometheus and probes send has a few hundred.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// For a whole request and its answer: one slow client delays the next scrape by no more.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves on `listener` until the process ends; returns its address.
///
/// # Errors
/// When the system gives no thread or address.
pub fn serve(
    listener: TcpListener,
    consumer: Arc<Consumer>,
    is_up: impl Fn() -> bool + Send + 'static,
) -> io::Result<SocketAddr> {
    let address = listener.local_addr()?;
    thread::Builder::new().name("metrics".to_owned()).spawn(move || {
        for stream in listener.incoming() {
            let exchanged =
                stream.and_then(|stream| exchange(stream, |path| answer(path, &consumer, is_up())));
            if let Err(error) = exchanged {
                tracing::debug!(%error, "a request for metrics failed");
                // Out of descriptors accept fails at once, again and again.
                if error.raw_os_error().is_some_and(|code| code == libc::EMFILE || code == libc::ENFILE) {
                    thread::sleep(EXCHANGE_TIMEOUT);
                }
            }
        }
    })?;
    Ok(address)
}

struct Answer {
    status: &'static str,
    content_type: &'static str,
    body: String,
}

fn answer(path: &str, consumer: &Consumer, is_up: bool) -> Answer {
    let plain = |status, body: &str| Answer { status, content_type: "text/plain", body: body.to_owned() };
    match path {
        "/metrics" => {
            let up = "# HELP corecast_consume_redis_up Whether Redis has confirmed the subscription and answers.\n\
                      # TYPE corecast_consume_redis_up gauge\ncorecast_consume_redis_up";
            Answer {
                status: "200 OK",
                content_type: "text/plain; version=0.0.4; charset=utf-8",
                body: format!("{}{up} {}\n", consumer.metrics().exposition(), u8::from(is_up)),
            }
        }
        "/healthz" | "/health" if is_up => plain("200 OK", "ok"),
        "/healthz" | "/health" => plain("503 Service Unavailable", "redis down"),
        _ => plain("404 Not Found", "found another path, due /metrics or /healthz\n"),
    }
}

fn exchange(mut stream: TcpStream, answer: impl FnOnce(&str) -> Answer) -> io::Result<()> {
    stream.set_write_timeout(Some(EXCHANGE_TIMEOUT))?;
    let head = read_head(&mut stream)?;
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let parsed = request.parse(&head);
    let (answer, is_head) = match (parsed, request.method, request.path) {
        (Ok(httparse::Status::Complete(_)), Some(method @ ("GET" | "HEAD")), Some(target)) => {
            let path = target.split('?').next().unwrap_or_default();
            (answer(path), method == "HEAD")
        }
        (Ok(httparse::Status::Complete(_)), ..) => (refusal("405 Method Not Allowed"), false),
        _ => (refusal("400 Bad Request"), false),
    };
    let Answer { status, content_type, body } = answer;
    let length = body.len();
    let mut bytes = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    if !is_head {
        bytes.push_str(&body);
    }
    stream.write_all(bytes.as_bytes())
}

fn refusal(status: &'static str) -> Answer {
    Answer {
        status,
        content_type: "text/plain",
        body: "found another request, due GET /metrics\n".to_owned(),
    }
}

/// Up to the empty line, or to the bound; a request without an end is refused by its parser.
fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + EXCHANGE_TIMEOUT;
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk)? {
            0 => break,
            count => head.extend_from_slice(&chunk[..count]),
        }
    }
    Ok(head)
}
