//! What every shard and the relay share and none of them changes: the configuration in its compiled form, and the numbers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use domains::Registry;

use crate::auth::Gate;
use crate::close::CloseReason;
use crate::config::{BrokerChoice, Config, Health, Origins};
use crate::limits::{Bounds, EngineBounds};
use crate::metrics::{Metrics, SourceName};
use crate::notice::Noticed;
use crate::route::Routes;

/// See the module.
pub struct Setup {
    /// Who joins what, which class, which channel.
    pub routes: Routes,
    /// Who may publish over HTTP and see rooms and users.
    pub gate: Gate,
    /// Which origins may connect.
    pub origins: Origins,
    /// Bounds that the configuration moved.
    pub bounds: Bounds,
    /// Bounds that nobody moves but a test, and an experiment's configuration two of them.
    pub engine: EngineBounds,
    /// What ingestors may say.
    pub domains: Registry,
    /// What `/healthz` says.
    pub health: Health,
    /// `/readyz` wants the broker.
    pub require_broker: bool,
    /// An admin listener has taken everything but health and the page.
    pub admin_elsewhere: bool,
    /// Which notices the shards make; none unless whoever starts them has somebody to read them.
    pub noticed: Noticed,
    /// Everybody's numbers.
    pub metrics: Arc<Metrics>,
    /// Set once, when the drain begins.
    draining: AtomicBool,
    /// Set at most once, after that.
    has_successor: AtomicBool,
}

impl Setup {
    /// Compiles `config`; `gate` and `metrics` come from outside because one reads a file and the other is shared. Domains,
    /// which may come from files too, are put in afterwards.
    pub fn new(config: &Config, gate: Gate, metrics: Arc<Metrics>) -> Self {
        let servers = config.broker.servers();
        let sources = config.sources.iter().map(|source| SourceName {
            source: source.subscribe.to_string(),
            server: servers.get(config.server_of(source)).map_or(String::new(), |server| server.name.clone()),
        });
        metrics.relay.publications_received.name_sources(sources);
        metrics.relay.name_servers(&server_names(config));
        Self {
            routes: Routes::new(config),
            gate,
            origins: config.origins.clone(),
            bounds: config.bounds.clone(),
            engine: EngineBounds {
                batch_sends_max: config.expert.batch_sends_max,
                pass_slice: config.expert.pass_slice,
                ..EngineBounds::default()
            },
            domains: Registry::default(),
            health: config.health,
            require_broker: config.require_broker,
            admin_elsewhere: config.admin.is_some(),
            noticed: Noticed::default(),
            metrics,
            draining: AtomicBool::new(false),
            has_successor: AtomicBool::new(false),
        }
    }

    /// Whether the server is leaving.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// The server is leaving; not taken back.
    pub fn drain(&self) {
        self.draining.store(true, Relaxed);
    }

    /// Who connects to this server's addresses is served by another process, now or as soon as it has started.
    pub fn expect_successor(&self) {
        self.has_successor.store(true, Relaxed);
    }

    /// Why a draining server closes a connection.
    pub fn farewell(&self) -> CloseReason {
        if self.has_successor.load(Relaxed) { CloseReason::ServiceRestart } else { CloseReason::GoingAway }
    }

    /// Whether each server of the broker has answered, or an attempt to reach it has failed.
    pub fn broker_is_known(&self) -> bool {
        let relay = &self.metrics.relay;
        let known = relay.broker_up.by_name().zip(relay.broker_attempts_failed.by_name());
        known.into_iter().all(|((_, up), (_, failed))| up == 1 || failed > 0)
    }

    /// Whether the broker answers, each of its servers; always so for the local one.
    pub fn broker_is_up(&self) -> bool {
        self.servers_away().next().is_none()
    }

    /// What `/readyz` says of a broker that doesn't answer.
    pub fn broker_fault(&self) -> String {
        match self.routes.servers_len() {
            1 => "the broker is away\n".to_owned(),
            _ => format!("away: {}\n", self.servers_away().collect::<Vec<_>>().join(", ")),
        }
    }

    /// Names of the broker's servers that don't answer.
    pub fn servers_away(&self) -> impl Iterator<Item = &str> {
        let servers = self.metrics.relay.broker_up.by_name();
        servers.filter(|(_, up)| *up == 0).map(|(name, _)| name)
    }
}

/// What metrics call the servers of the broker.
fn server_names(config: &Config) -> Vec<String> {
    match &config.broker {
        BrokerChoice::Local => vec!["local".to_owned()],
        BrokerChoice::Redis(servers) => servers.iter().map(|server| server.name.clone()).collect(),
    }
}
