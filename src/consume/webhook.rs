//! The handler `webhook`: one POST for each event.

use std::io::Read;
use std::time::Duration;

use corecast_consumer::{Event, Handler, HandlerError};

/// Bytes of an answer that become the reason of a failure.
const ANSWER_BYTES_MAX: u64 = 512;
/// Connections that are kept open between events, to spare a handshake each.
const IDLE_CONNECTIONS_MAX: usize = 16;

/// POSTs each event, byte for byte, to a URL; an answer of 2xx is success.
pub struct Webhook {
    agent: ureq::Agent,
    url: String,
    timeout: Duration,
}

impl Webhook {
    /// A URL whose answer may take `timeout`, connecting included. A redirection is no success.
    pub fn new(url: String, timeout: Duration) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .max_idle_connections_per_host(IDLE_CONNECTIONS_MAX)
            .user_agent(concat!("corecast/", env!("CARGO_PKG_VERSION")))
            .timeout_global(Some(timeout))
            .build();
        Self { agent: config.new_agent(), url, timeout }
    }
}

impl Handler for Webhook {
    fn handle(&self, event: &Event) -> Result<(), HandlerError> {
        let Self { agent, url, timeout } = self;
        let request = agent.post(url).header("Content-Type", "application/json");
        let mut response = request.send(event.text().as_bytes()).map_err(|error| {
            HandlerError::Retry(match error {
                ureq::Error::Timeout(_) => format!("{url} didn't answer within {timeout:?}"),
                error => format!("{url} can't be asked ({error})"),
            })
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let mut said = Vec::new();
        // The status is the answer; what else was said is only for whoever reads the reason.
        let _ = response.body_mut().as_reader().take(ANSWER_BYTES_MAX).read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said).trim().replace(['\r', '\n'], " ");
        let said = if said.is_empty() { said } else { format!(": {said}") };
        Err(HandlerError::Retry(format!("{url} answered {status} where 2xx was due{said}")))
    }
}
