//! A peer: another server that is measured beside ours, in the same run, on the same core.
//!
//! Owns what a peer is told by (`--peer`, `--peer-set`, `--peers`), and what ours and a peer have in common: a command, and
//! a way in for receivers and messages. Starts nothing.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::cli::PublishVia;
use crate::orders::PathTemplate;

/// What our side is called in results.
pub const OURS: &str = "server";
/// What the floor is called in results.
pub const FLOOR: &str = "floor";

/// Which peers there are.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Other servers in the same run")]
pub struct PeerArguments {
    /// Another server to measure in turn with ours, by a command like that of --server, with these places more: {scratch}
    /// (an empty folder). Repeatable.
    #[arg(long = "peer", value_name = "NAME=COMMAND", value_parser = parse_peer)]
    pub peers: Vec<(String, String)>,
    /// One key of a peer: path, multi_room_path, echo_path, publish (redis, http, pipelined-http, ws), publish_path,
    /// channel_prefix, envelope, version (a command), notes, config (what the file at {config} holds). Repeatable.
    #[arg(long = "peer-set", value_name = "NAME.KEY=VALUE", value_parser = parse_setting)]
    pub settings: Vec<(String, String, String)>,
    /// TOML file of [[peer]] tables with name, command and the keys of --peer-set; {folder} is the file's own.
    #[arg(long = "peers", value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// A server beside ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// In results and on the command line.
    pub name: String,
    /// With places, like that of `--server`.
    pub command: String,
    /// Of a connection in one room.
    #[serde(default = "default_path")]
    path: String,
    /// Of a connection in several rooms; without it the peer is left out of scenarios that need it, as without
    /// `echo_path`.
    multi_room_path: Option<String>,
    /// Of a connection that gets back what it sends.
    echo_path: Option<String>,
    /// How messages get there.
    #[serde(default = "default_publish")]
    publish: PublishVia,
    /// Of `publish = "http"` and `"pipelined-http"`.
    #[serde(default = "default_publish_path")]
    publish_path: String,
    /// Before a room's name in its Redis channel.
    #[serde(default = "default_channel_prefix")]
    channel_prefix: String,
    /// Publish as this string field of a JSON object.
    envelope: Option<String>,
    /// Command whose first line of output is the version.
    pub version: Option<String>,
    /// What a reader of results must know of this set-up.
    #[serde(default)]
    pub notes: String,
    /// What the file at `{config}` holds; places in it are filled too.
    #[serde(default)]
    pub config: String,
}

/// How receivers and messages get into a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Of a connection in one room.
    pub path: PathTemplate,
    /// Of a connection in several rooms.
    pub multi_room_path: Option<PathTemplate>,
    /// Of a connection that gets back what it sends.
    pub echo_path: Option<String>,
    /// How messages get there.
    pub publish: PublishVia,
    /// Of messages over HTTP.
    pub publish_path: PathTemplate,
    /// Before a room's name in its Redis channel.
    pub channel_prefix: String,
    /// String field of a JSON object that messages travel in through Redis.
    pub envelope: Option<String>,
}

/// A server to be measured.
#[derive(Debug, Clone, Copy)]
pub enum Contender<'a> {
    /// The server of the command line, by default corecast.
    Ours,
    /// One beside it.
    Peer(&'a Peer),
}

impl Contender<'_> {
    /// In results.
    pub fn name(&self) -> &str {
        match self {
            Self::Ours => OURS,
            Self::Peer(peer) => &peer.name,
        }
    }
}

impl Peer {
    /// The way in.
    pub fn access(&self) -> Access {
        Access {
            path: PathTemplate(self.path.clone()),
            multi_room_path: self.multi_room_path.clone().map(PathTemplate),
            echo_path: self.echo_path.clone(),
            publish: self.publish,
            publish_path: PathTemplate(self.publish_path.clone()),
            channel_prefix: self.channel_prefix.clone(),
            envelope: self.envelope.clone(),
        }
    }

    /// Whether it wants a Redis.
    pub fn needs_redis(&self) -> bool {
        self.publish == PublishVia::Redis
            || [&self.command, &self.config].iter().any(|text| text.contains("{redis}"))
    }
}

impl PeerArguments {
    /// Whether none was named.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.file.is_none()
    }

    /// All peers: the file's in its order, then those of `--peer`, which may replace a command of the file's.
    pub fn resolve(&self) -> Result<Vec<Peer>> {
        let mut tables = match &self.file {
            None => Vec::new(),
            Some(path) => {
                let text = fs::read_to_string(path)
                    .with_context(|| format!("reading the peers of {}", path.display()))?;
                let folder = path.canonicalize()?.parent().unwrap_or(Path::new("/")).to_owned();
                tables_of(&text, &folder).with_context(|| path.display().to_string())?
            }
        };
        for (name, command) in &self.peers {
            let command = Value::String(command.clone());
            match table_of(&mut tables, name) {
                Some(table) => drop(table.insert("command".to_owned(), command)),
                None => {
                    let name = ("name".to_owned(), Value::String(name.clone()));
                    tables.push(Table::from_iter([name, ("command".to_owned(), command)]));
                }
            }
        }
        for (name, key, value) in &self.settings {
            let table = table_of(&mut tables, name)
                .with_context(|| format!("--peer-set {name}.{key}: no peer is called {name:?}"))?;
            table.insert(key.clone(), Value::String(value.clone()));
        }
        let mut peers: Vec<Peer> = Vec::with_capacity(tables.len());
        for table in tables {
            let name = name_of(&table).unwrap_or("(without a name)").to_owned();
            let peer: Peer = table.try_into().with_context(|| format!("peer {name}"))?;
            check_name(&peer.name).map_err(anyhow::Error::msg)?;
            if peers.iter().any(|known| known.name == peer.name) {
                bail!("two peers are called {:?}: results could not tell them apart", peer.name);
            }
            peers.push(peer);
        }
        Ok(peers)
    }
}

fn tables_of(text: &str, folder: &Path) -> Result<Vec<Table>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[serde(default)]
        peer: Vec<Table>,
    }
    let mut file: File = toml::from_str(text)?;
    let folder = folder.to_string_lossy();
    for table in &mut file.peer {
        for (_, value) in table.iter_mut() {
            if let Value::String(text) = value {
                *text = text.replace("{folder}", &folder);
            }
        }
    }
    Ok(file.peer)
}

fn name_of(table: &Table) -> Option<&str> {
    table.get("name").and_then(Value::as_str)
}

fn table_of<'a>(tables: &'a mut [Table], name: &str) -> Option<&'a mut Table> {
    tables.iter_mut().find(|table| name_of(table) == Some(name))
}

fn parse_peer(text: &str) -> Result<(String, String), String> {
    let (name, command) = text.split_once('=').ok_or_else(|| format!("{text:?} is not like NAME=COMMAND"))?;
    check_name(name)?;
    if command.trim().is_empty() {
        return Err(format!("{name} has no command"));
    }
    Ok((name.to_owned(), command.to_owned()))
}

fn parse_setting(text: &str) -> Result<(String, String, String), String> {
    let due = || format!("{text:?} is not like NAME.KEY=VALUE");
    let (place, value) = text.split_once('=').ok_or_else(due)?;
    // A key has no dot in it; a name may.
    let (name, key) = place.rsplit_once('.').ok_or_else(due)?;
    check_name(name)?;
    Ok((name.to_owned(), key.to_owned(), value.to_owned()))
}

/// A name becomes a column, a key of JSON and a word of the command line.
fn check_name(name: &str) -> Result<(), String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || !name.chars().all(is_word) {
        return Err(format!("a peer can't be called {name:?}: letters, digits, '-', '_' and '.' only"));
    }
    if [OURS, FLOOR].contains(&name) {
        return Err(format!("a peer can't be called {name:?}: results have a side of that name"));
    }
    Ok(())
}

fn default_path() -> String {
    "/ws?room={room}".to_owned()
}

fn default_publish() -> PublishVia {
    PublishVia::Redis
}

fn default_publish_path() -> String {
    "/publish?room={room}".to_owned()
}

fn default_channel_prefix() -> String {
    "room:".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(peers: &[&str], settings: &[&str]) -> Result<Vec<Peer>> {
        let peers = peers.iter().map(|text| parse_peer(text)).collect::<Result<_, _>>();
        let settings = settings.iter().map(|text| parse_setting(text)).collect::<Result<_, _>>();
        let (peers, settings) = (peers.map_err(anyhow::Error::msg)?, settings.map_err(anyhow::Error::msg)?);
        PeerArguments { peers, settings, file: None }.resolve()
    }

    #[test]
    fn a_peer_is_a_name_and_a_command_and_the_rest_has_defaults() {
        let peers =
            resolve(&["node=node s.js --a=b {port}", "other=x"], &["node.path=/?r={room}&x=1"]).unwrap();
        assert_eq!(peers[0].command, "node s.js --a=b {port}");
        assert_eq!(peers[0].access().path, PathTemplate("/?r={room}&x=1".to_owned()));
        let access = peers[1].access();
        assert_eq!(access.path, PathTemplate("/ws?room={room}".to_owned()));
        assert_eq!((access.publish, access.channel_prefix.as_str()), (PublishVia::Redis, "room:"));
        assert!(peers[1].needs_redis());
    }

    #[test]
    fn what_names_no_peer_or_no_key_is_refused() {
        let refused =
            |peers: &[&str], settings: &[&str]| format!("{:#}", resolve(peers, settings).unwrap_err());
        assert!(refused(&["node"], &[]).contains("NAME=COMMAND"));
        assert!(refused(&["a= "], &[]).contains("no command"));
        assert!(refused(&["floor=x"], &[]).contains("a side of that name"));
        assert!(refused(&["a b=x"], &[]).contains("letters"));
        assert!(refused(&["a=x"], &["b.path=/"]).contains("no peer is called \"b\""));
        assert!(refused(&["a=x"], &["a.paht=/"]).contains("paht"));
        assert!(refused(&["a=x"], &["a.publish=smoke"]).contains("pipelined-http"));
    }

    #[test]
    fn a_file_describes_peers_and_the_command_line_has_the_last_word() {
        let text = "[[peer]]\nname = \"a\"\ncommand = \"{folder}/a {port}\"\npublish = \"ws\"\n\
                    config = '''\nlisten {port};\n'''\n[[peer]]\nname = \"b\"\ncommand = \"b\"\n";
        let folder = std::env::temp_dir().join(format!("corecast-bench-peers-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("peers.toml");
        fs::write(&file, text).unwrap();
        let mut arguments = PeerArguments { file: Some(file), ..PeerArguments::default() };
        arguments.peers = vec![("b".to_owned(), "b2".to_owned()), ("c".to_owned(), "c".to_owned())];
        let peers = arguments.resolve();
        let path = folder.canonicalize().unwrap();
        fs::remove_dir_all(&folder).unwrap();
        let peers = peers.unwrap();
        assert_eq!(
            peers.iter().map(|peer| peer.command.as_str()).collect::<Vec<_>>(),
            [format!("{}/a {{port}}", path.display()).as_str(), "b2", "c"]
        );
        assert!(!peers[0].needs_redis());
        assert_eq!(peers[0].config, "listen {port};\n");
        let unknown = tables_of("[[peers]]\nname = \"a\"\n", Path::new("/")).unwrap_err();
        assert!(unknown.to_string().contains("peers"), "{unknown}");
    }

    #[test]
    fn two_peers_of_one_name_are_refused() {
        let tables = "[[peer]]\nname='a'\ncommand='x'\n[[peer]]\nname='a'\ncommand='y'\n";
        let path = std::env::temp_dir().join(format!("corecast-bench-twice-{}.toml", std::process::id()));
        fs::write(&path, tables).unwrap();
        let resolved = PeerArguments { file: Some(path.clone()), ..PeerArguments::default() }.resolve();
        fs::remove_file(&path).unwrap();
        assert!(resolved.unwrap_err().to_string().contains("two peers"));
    }
}
