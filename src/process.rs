//! This process as one of several behind one port: its place, and the channel to its parent.
//!
//! The parent's end closes the channel, whatever ended it, so nobody serves on without a parent: no signal is needed that
//! could come before this process asks for it (PR_SET_PDEATHSIG, prctl(2)).

use std::env;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc;

use anyhow::Context;
use shards::config::{Config, Loaded, ShardCount};
use shards::net::{AdminWay, Holder, Leave, Listening, Passed};

use crate::exit::Failure;
use crate::manager::ServiceManager;
use crate::serve::Said;
use crate::supervisor::channel::{self, Order, Place, VARIABLE, VERSION};

/// See the module.
pub struct Process {
    channel: Arc<OwnedFd>,
    place: Place,
}

impl Process {
    /// The place that a parent gives this process, and the sockets that belong to it; `None` without a parent.
    ///
    /// # Errors
    /// 78 where the variable is set and nobody gives a place, or a parent of another version does.
    pub fn from_environment() -> Result<Option<(Self, Passed)>, Failure> {
        if env::var_os(VARIABLE).is_none() {
            return Ok(None);
        }
        let no_parent = |error: io::Error| {
            Failure::config(format!(
                "{VARIABLE} is set, which only a parent process does, and none gives this one a place ({error}): unset it"
            ))
        };
        let channel = io::stdin().as_fd().try_clone_to_owned().map_err(no_parent)?;
        let place = match channel::hear(&channel).map_err(no_parent)? {
            Some(Order::Place(place)) if place.version == VERSION => place,
            Some(Order::Place(Place { version, .. })) => {
                return Err(Failure::config(format!(
                    "found a parent process of version {version}, due {VERSION}: the program was replaced by one that doesn't \
                     understand the running one; stop and start the whole service"
                )));
            }
            Some(Order::Leave { .. } | Order::Stop) => {
                return Err(no_parent(io::ErrorKind::InvalidData.into()));
            }
            None => return Err(no_parent(io::ErrorKind::UnexpectedEof.into())),
        };
        let descriptors = channel::take(&channel, place.descriptors()).map_err(no_parent)?;
        let passed = passed(&place, descriptors);
        Ok(Some((Self { channel: Arc::new(channel), place }, passed)))
    }

    /// Which of the processes.
    pub fn index(&self) -> u16 {
        self.place.process
    }

    /// Makes of the configuration of all that of this one.
    pub fn apply_to(&self, loaded: &mut Loaded) {
        let has_name = loaded.is_said("node_id");
        let config = &mut loaded.config;
        config.processes = 1;
        config.shards = ShardCount::Count(self.place.shards);
        config.cores = Some(self.place.cores.clone());
        config.admin = None;
        config.ports_file = None;
        if has_name {
            config.node_id = node_id(config, self.place.process);
        }
        // The parent has told them.
        loaded.warnings.clear();
    }

    /// The parent is told as a service manager would be.
    pub fn manager(&self) -> ServiceManager {
        ServiceManager::of_parent(self.channel.clone(), self.place.watchdog)
    }

    /// Passes the parent's orders on, and its end.
    ///
    /// # Errors
    /// No thread is left.
    pub fn listen(&self, sender: mpsc::Sender<Said>) -> anyhow::Result<()> {
        let channel = self.channel.clone();
        let listen = move || {
            loop {
                let said = match channel::hear(&*channel) {
                    Ok(Some(Order::Leave { for_good: false })) => Said::Leave(Leave::ToSuccessor),
                    Ok(Some(Order::Leave { for_good: true })) => Said::Leave(Leave::ForGood),
                    Ok(Some(Order::Stop)) => Said::Stop,
                    Ok(Some(Order::Place(_))) => continue,
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                        tracing::warn!(%error, "the parent process said what this version doesn't understand");
                        continue;
                    }
                    Ok(None) | Err(_) => {
                        tracing::warn!("the parent process is gone: this one drains and ends");
                        let _ended_already = sender.send(Said::Leave(Leave::ForGood));
                        return;
                    }
                };
                if sender.send(said).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("parent".to_owned())
            .spawn(listen)
            .context("can't start a thread")?;
        Ok(())
    }
}

/// A name that no other process has, its predecessor and its successor among them: who shares a name takes the other's
/// publications for his own.
fn node_id(config: &Config, process: u16) -> String {
    format!("{}-{process}-{}", config.node_id, std::process::id())
}

fn passed(place: &Place, descriptors: Vec<OwnedFd>) -> Passed {
    let mut descriptors = descriptors.into_iter();
    let listen = place
        .listen
        .iter()
        .map(|address| Listening {
            address: address.address,
            sockets: descriptors.by_ref().take(address.sockets).collect(),
            holder: if address.of_manager { Holder::Manager } else { Holder::Parent },
        })
        .collect();
    let admin = place.admin.zip(descriptors.next()).map(|(address, door)| AdminWay::Door(door, address));
    Passed { listen, admin, process: Some(place.process) }
}
