//! A cluster as its nodes describe it: which slots are whose, and which slot a channel has.
//!
//! What is read is `CLUSTER NODES` and not `CLUSTER SLOTS`, because it says the config epoch of each claim: of two nodes that
//! claim a slot the higher epoch is right, so that the word of a node which was cut off, or is behind, is known for what it is.
//!
//! Source: <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>.

use std::io::{self, Read, Write};

use redis_protocol::redis_keyslot;

use super::{Outbox, SERVICE_CHANNEL_PREFIX, SessionError};
use crate::config::{RedisTarget, Server};
use crate::resp::{Frame, Inbox, Protocol, Received, Value, excerpt};

/// Slots of a cluster.
pub const SLOTS: usize = 16384;

/// The slot of a channel, or of a key: of what stands between its first braces, or of all of it.
pub fn slot_of(channel: &[u8]) -> u16 {
    redis_keyslot(channel)
}

/// The channel for the probes of the node `node_id` of ours at whoever has `slot`.
pub fn probe_channel(slot: u16, node_id: &str) -> String {
    // A decimal number falls into each slot: 16,384 are tried on average, a third of a millisecond.
    let tag = (0u32..).map(|number| number.to_string()).find(|tag| slot_of(tag.as_bytes()) == slot);
    format!("{SERVICE_CHANNEL_PREFIX}{{{}}}:{node_id}", tag.unwrap_or_default())
}

/// What one node says of all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// Primaries that have slots.
    pub claims: Vec<Claim>,
}

/// A primary and its slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Where it listens.
    pub server: Server,
    /// Higher is newer.
    pub epoch: u64,
    /// First and last, both included.
    pub slots: Vec<(u16, u16)>,
}

impl Topology {
    /// Reads the reply to `CLUSTER NODES`. A node without an address of its own is the one that was `asked`.
    ///
    /// # Errors
    /// A sentence that says which line makes no sense; also where nobody has a slot.
    pub fn parse(text: &str, asked: &Server) -> Result<Self, String> {
        let wrong = |line: &str| format!("CLUSTER NODES holds the line {:?}", excerpt(line.as_bytes()));
        let mut claims = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let words: Vec<&str> = line.split(' ').collect();
            let [_, address, flags, _, _, _, epoch, _, slots @ ..] = words.as_slice() else {
                return Err(wrong(line));
            };
            let is_primary = flags.split(',').any(|flag| flag == "master");
            let is_nowhere = flags.split(',').any(|flag| flag == "noaddr" || flag == "handshake");
            // In brackets stand slots on their way: they are still whose they were.
            let slots: Vec<&&str> = slots.iter().filter(|slot| !slot.starts_with('[')).collect();
            if !is_primary || is_nowhere || slots.is_empty() {
                continue;
            }
            let slots = slots.iter().map(|slot| slot_range(slot)).collect::<Option<Vec<_>>>();
            let claim = server_of(address, asked).zip(epoch.parse().ok()).zip(slots);
            let ((server, epoch), slots) = claim.ok_or_else(|| wrong(line))?;
            claims.push(Claim { server, epoch, slots });
        }
        if claims.is_empty() {
            return Err(format!("in the eyes of {asked} no node has a slot: is the cluster made?"));
        }
        Ok(Self { claims })
    }

    /// Who has a slot.
    pub fn owner(&self, slot: u16) -> Option<&Server> {
        let has = |claim: &&Claim| claim.slots.iter().any(|&(first, last)| (first..=last).contains(&slot));
        self.claims.iter().filter(has).max_by_key(|claim| claim.epoch).map(|claim| &claim.server)
    }
}

/// `10.0.0.1:7000@17000,name`; the address before the colon may be IPv6, or nothing.
fn server_of(text: &str, asked: &Server) -> Option<Server> {
    let (address, _) = text.split_once('@').unwrap_or((text, ""));
    let (host, port) = address.rsplit_once(':')?;
    let host = if host.is_empty() { asked.host.as_str() } else { host.trim_matches(['[', ']']) };
    Some(Server { host: host.to_owned(), port: port.parse().ok().filter(|&port| port > 0)? })
}

fn slot_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let slot = |text: &str| text.parse().ok().filter(|&slot: &u16| usize::from(slot) < SLOTS);
    slot(first).zip(slot(last)).filter(|(first, last)| first <= last)
}

/// Asks one node over a blocking connection.
///
/// # Errors
/// What the connection says, and what the node says against it, as a sentence.
pub fn ask_topology(
    stream: &mut (impl Read + Write),
    target: &RedisTarget,
    asked: &Server,
) -> io::Result<Topology> {
    let mut out = Outbox::default();
    let mut dues = vec!["CLUSTER NODES"];
    match (&target.username, &target.password) {
        (_, None) => {}
        (None, Some(password)) => out.push(&[b"AUTH", password.as_bytes()]),
        (Some(user), Some(password)) => out.push(&[b"AUTH", user.as_bytes(), password.as_bytes()]),
    }
    if target.password.is_some() {
        dues.insert(0, "AUTH");
    }
    out.push(&[b"CLUSTER", b"NODES"]);
    stream.write_all(&out.take())?;
    let mut inbox = Inbox::new();
    let mut dues = dues.into_iter().peekable();
    loop {
        while let Some(received) = inbox.take_frame().map_err(io::Error::other)? {
            let Received::Frame(bytes) = received else {
                return Err(io::Error::other("a reply without end"));
            };
            let frame = Frame::decode(Protocol::Resp2, bytes).map_err(io::Error::other)?;
            let due = dues.next().unwrap_or_default();
            match frame.value() {
                // A password where none is needed does no harm, as with HELLO.
                Value::Error(_) if due == "AUTH" && dues.peek().is_some() => {}
                Value::Error(text) => {
                    let user = target.username.as_deref().unwrap_or("default");
                    let error = SessionError::from_reply(due, text, user, "+cluster|nodes");
                    return Err(io::Error::other(error));
                }
                Value::Text(text) if dues.peek().is_none() => {
                    let text = String::from_utf8_lossy(text);
                    return Topology::parse(&text, asked).map_err(io::Error::other);
                }
                _ => {}
            }
        }
        let mut buffer = inbox.take_buffer();
        let held = buffer.len();
        buffer.resize(buffer.capacity(), 0);
        let read = stream.read(&mut buffer[held..]);
        buffer.truncate(held + *read.as_ref().unwrap_or(&0));
        inbox.put_buffer(buffer);
        match read {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::target;
    use super::*;

    fn asked() -> Server {
        Server { host: "asked".to_owned(), port: 7000 }
    }

    fn server(host: &str, port: u16) -> Server {
        Server { host: host.to_owned(), port }
    }

    #[test]
    fn slots_are_those_of_the_specification() {
        // The first is its test vector (appendix A), the others are what CLUSTER KEYSLOT says.
        assert_eq!(slot_of(b"123456789"), 0x31c3);
        assert_eq!(slot_of(b"foo"), 12182);
        assert_eq!(slot_of(b"{user1000}.following"), slot_of(b"{user1000}.followers"));
        assert_eq!(slot_of(b"foo{}{bar}"), 8363);
        assert_eq!(slot_of(b"foo{{bar}}zap"), slot_of(b"{bar"));
    }

    #[test]
    fn a_probe_has_a_channel_in_each_slot() {
        for slot in [0, 1, 8191, 16383] {
            let channel = probe_channel(slot, "node{7}");
            assert_eq!(slot_of(channel.as_bytes()), slot, "{channel}");
            assert!(
                channel.starts_with(SERVICE_CHANNEL_PREFIX) && channel.ends_with(":node{7}"),
                "{channel}"
            );
        }
    }

    const NODES: &str = "\
07c3 10.0.0.1:30004@31004,hostname4 slave e7d1 0 1426238317239 4 connected\n\
67ed 10.0.0.1:30002@31002,hostname2 master - 0 1426238316232 2 connected 5461-10922\n\
292f 10.0.0.1:30003@31003 master,fail? - 0 1426238318243 3 connected 10923-16382 16383 [93-<-292f]\n\
6ec2 [::1]:30005@31005 slave 67ed 0 1426238316232 5 connected\n\
aaaa :0@0 master,noaddr - 1 1 9 disconnected 1-2\n\
bbbb 10.0.0.9:1@2 master - 0 0 0 connected\n\
e7d1 :30001@31001 myself,master - 0 0 1 connected 0-5460 [77->-67ed]\n";

    #[test]
    fn primaries_with_slots_are_read_from_what_a_node_says_of_all() {
        let topology = Topology::parse(NODES, &asked()).expect("it is the specification's example");
        let claim = |server, epoch, slots| Claim { server, epoch, slots };
        assert_eq!(
            topology.claims,
            [
                claim(server("10.0.0.1", 30002), 2, vec![(5461, 10922)]),
                claim(server("10.0.0.1", 30003), 3, vec![(10923, 16382), (16383, 16383)]),
                claim(server("asked", 30001), 1, vec![(0, 5460)]),
            ]
        );
        assert_eq!(topology.owner(16383), Some(&server("10.0.0.1", 30003)));
        assert_eq!(topology.owner(0), Some(&server("asked", 30001)));
    }

    #[test]
    fn what_makes_no_sense_is_a_sentence() {
        for (text, due) in [
            ("", "is the cluster made?"),
            ("a b:1@2 myself,master - 0 0 0 connected\n", "is the cluster made?"),
            ("hello", "holds the line \"hello\""),
            ("a b:x@2 master - 0 0 0 connected 1", "holds the line"),
            ("a b:1@2 master - 0 0 x connected 1", "holds the line"),
            ("a b:1@2 master - 0 0 1 connected 1-16384", "holds the line"),
            ("a b:1@2 master - 0 0 1 connected 9-8", "holds the line"),
        ] {
            let error = Topology::parse(text, &asked()).expect_err(text);
            assert!(error.contains(due), "{text:?} gave {error:?}");
        }
    }

    /// Answers a read with each of its words.
    struct Scripted(Vec<Vec<u8>>);

    impl Read for Scripted {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let Some(words) = self.0.pop() else { return Ok(0) };
            buffer[..words.len()].copy_from_slice(&words);
            Ok(words.len())
        }
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn one_node_is_asked_with_a_password_and_without() {
        let nodes = format!("${}\r\n{NODES}\r\n", NODES.len()).into_bytes();
        let (open, guarded) = (target(None, None, 0), target(Some("ann"), Some("secret"), 0));
        let ask = |target, mut words: Vec<&[u8]>| {
            words.reverse();
            let words = words.into_iter().map(<[u8]>::to_vec).collect();
            ask_topology(&mut Scripted(words), target, &asked()).map_err(|error| error.to_string())
        };
        assert_eq!(ask(&open, vec![&nodes]).map(|topology| topology.claims.len()), Ok(3));
        assert_eq!(ask(&guarded, vec![b"+O", b"K\r\n", &nodes]).map(|found| found.claims.len()), Ok(3));
        assert_eq!(
            ask(&guarded, vec![b"-ERR no password is set\r\n", &nodes]).map(|t| t.claims.len()),
            Ok(3)
        );
        let refused = ask(&open, vec![b"-ERR This instance has cluster support disabled\r\n"]);
        assert!(refused.is_err_and(|error| error.contains("cluster support disabled")));
        let refused = ask(&guarded, vec![b"-WRONGPASS no\r\n-NOAUTH Authentication required.\r\n"]);
        assert!(refused.is_err_and(|error| error.contains("wants a password")));
        assert!(ask(&open, vec![]).is_err_and(|error| error.contains("end of file")));
    }
}
