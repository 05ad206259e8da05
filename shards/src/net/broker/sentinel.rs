//! Listening to sentinels, so that the link knows where its primary is and hears at once of a failover.
//!
//! A connection to each of them for the life of the link. After a failover the old connection can stay open and silent for
//! many seconds; what ends it is a sentinel's word, not TCP's.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::connect::{Connection, OneConnection, connect_to};
use super::half::{ReadHalf, WriteHalf};
use super::{Link, Wake, random};
use crate::config::{RedisAddress, RedisTarget, Sentinels, Server};
use crate::redis::Reconnect;
use crate::redis::sentinel::{SentinelSays, SentinelSession, Views};
use crate::resp::{Inbox, Received};

/// What the sentinels of a link say.
pub(super) struct Watch {
    sentinels: Sentinels,
    /// What they watch, with its TLS.
    target: RedisTarget,
    views: RefCell<Views>,
    /// Where the link went last, and how much had been heard by then.
    current: RefCell<Option<(Server, u64)>>,
    /// Something was heard since, and the link is to go elsewhere now.
    has_moved: Cell<bool>,
    /// Attempts since something new was heard.
    attempts: Cell<usize>,
    /// One for each listener.
    wakes: Vec<Wake>,
    listeners: RefCell<Vec<monoio::task::JoinHandle<()>>>,
}

impl Watch {
    /// Begins to listen to all of them.
    pub(super) fn start(target: &RedisTarget, sentinels: &Sentinels, link: &Rc<Link>) -> Rc<Self> {
        let count = sentinels.servers.len();
        let watch = Rc::new(Self {
            sentinels: sentinels.clone(),
            target: target.clone(),
            views: RefCell::new(Views::new(count)),
            current: RefCell::new(None),
            has_moved: Cell::new(false),
            attempts: Cell::new(0),
            wakes: (0..count).map(|_| Wake::default()).collect(),
            listeners: RefCell::new(Vec::new()),
        });
        let listen = |index| monoio::spawn(listen(watch.clone(), index, link.clone()));
        watch.listeners.replace((0..count).map(listen).collect());
        watch
    }

    /// Where to connect now. Waits a moment for the first word.
    ///
    /// # Errors
    /// A sentence, where none of them has said anything.
    pub(super) async fn locate(&self, link: &Link) -> Result<RedisAddress, String> {
        let until = Instant::now() + FIRST_WORD;
        while self.views.borrow().changes() == 0 && !link.is_stopping() && Instant::now() < until {
            link.supervisor_wake.wait_until(until).await;
        }
        self.has_moved.set(false);
        let views = self.views.borrow();
        let candidates = views.candidates();
        let attempt = self.attempts.replace(self.attempts.get() + 1);
        let Some(&server) = candidates.get(attempt % candidates.len().max(1)) else {
            let Sentinels { servers, primary, .. } = &self.sentinels;
            return Err(match servers.as_slice() {
                [one] => format!("the sentinel {one} has not said where {primary:?} is"),
                many => format!("none of {} sentinels has said where {primary:?} is", many.len()),
            });
        };
        self.current.replace(Some((server.clone(), views.changes())));
        Ok(RedisAddress::Tcp { host: server.host.clone(), port: server.port })
    }

    /// Whether the link is to go elsewhere than [`locate`](Self::locate) last said, and at once.
    pub(super) fn has_moved(&self) -> bool {
        self.has_moved.get()
    }

    /// Ends the listeners of a link that is stopping, and waits for them.
    pub(super) async fn stopped(&self) {
        self.wakes.iter().for_each(Wake::notify);
        let listeners = self.listeners.take();
        for listener in listeners {
            listener.await;
        }
    }

    fn note(&self, index: usize, primary: Server, link: &Link) {
        if !self.views.borrow_mut().note(index, primary.clone()) {
            return;
        }
        let sentinel = &self.sentinels.servers[index];
        tracing::info!(%sentinel, %primary, name = self.sentinels.primary, "a sentinel names the primary");
        self.attempts.set(0);
        let views = self.views.borrow();
        let current = self.current.borrow();
        let successor = match &*current {
            Some((current, since)) => views.successor(current, *since),
            None => None,
        };
        if let Some(successor) = successor {
            self.has_moved.set(true);
            link.end(format!("its sentinels say that the primary is {successor} now"));
        } else {
            link.supervisor_wake.notify();
        }
    }

    /// Listens to one of them until its connection is of no use. Returns why.
    async fn converse<R: ReadHalf + 'static, W: WriteHalf>(
        self: &Rc<Self>,
        index: usize,
        connection: Connection<R, W>,
        link: &Rc<Link>,
    ) -> String {
        let Connection { read: read_half, write: mut write_half, end } = connection;
        let server = &self.sentinels.servers[index];
        let conversation = Rc::new(Conversation {
            session: RefCell::new(SentinelSession::begin(&self.sentinels, server, Instant::now())),
            ended: RefCell::new(None),
        });
        let reading = read(self.clone(), index, conversation.clone(), read_half, link.clone());
        let reader = monoio::spawn(reading);
        while conversation.ended.borrow().is_none() && !link.is_stopping() {
            let polled = conversation.session.borrow_mut().poll(Instant::now());
            if let Err(error) = polled {
                conversation.end(error);
                break;
            }
            let chunk = conversation.session.borrow_mut().take_output();
            if chunk.is_empty() {
                let deadline = conversation.session.borrow().next_deadline();
                self.wakes[index].wait_until(deadline).await;
            } else if let Err(error) = write_half.write_all(chunk).await {
                conversation.end(format!("writing failed: {error}"));
            }
        }
        end.shutdown();
        reader.await;
        conversation.ended.take().unwrap_or_default()
    }
}

/// One connection to one sentinel.
struct Conversation {
    session: RefCell<SentinelSession>,
    ended: RefCell<Option<String>>,
}

impl Conversation {
    fn end(&self, reason: impl ToString) {
        self.ended.borrow_mut().get_or_insert_with(|| reason.to_string());
    }
}

/// Keeps a connection to one sentinel for as long as the link lives.
async fn listen(watch: Rc<Watch>, index: usize, link: Rc<Link>) {
    let sentinel = watch.sentinels.servers[index].clone();
    let mut reconnect = Reconnect::new();
    let mut last_reason = String::new();
    while !link.is_stopping() {
        let began = Instant::now();
        let target = watch.target.of_sentinel(&watch.sentinels, &sentinel);
        let reason = match connect_to(target, || link.is_stopping()).await {
            Ok(OneConnection::Tcp(connection)) => watch.converse(index, connection, &link).await,
            Ok(OneConnection::Tls(connection)) => watch.converse(index, connection, &link).await,
            Err(reason) => reason,
        };
        if link.is_stopping() {
            return;
        }
        // One line per change: attempts that fail like the last one say nothing.
        if reason != last_reason {
            tracing::warn!(%sentinel, %reason, "a sentinel is not heard; the others are, connecting again");
        }
        last_reason = reason;
        reconnect.note_end(began, Instant::now());
        let until = Instant::now() + reconnect.next_wait(random());
        while !link.is_stopping() && Instant::now() < until {
            watch.wakes[index].wait_until(until).await;
        }
    }
}

/// Reads until the socket ends or the session can't go on.
async fn read(
    watch: Rc<Watch>,
    index: usize,
    conversation: Rc<Conversation>,
    mut half: impl ReadHalf,
    link: Rc<Link>,
) {
    let mut inbox = Inbox::new();
    while conversation.ended.borrow().is_none() {
        let (result, buffer) = {
            let buffer = inbox.take_buffer();
            let held = buffer.len();
            let (result, slice) = half.read(monoio::buf::IoBufMut::slice_mut(buffer, held..)).await;
            (result, slice.into_inner())
        };
        inbox.put_buffer(buffer);
        match result {
            Ok(0) => conversation.end("it closed the connection"),
            Ok(_) => {}
            Err(error) => conversation.end(format!("reading failed: {error}")),
        }
        if let Err(reason) = handle(&watch, index, &conversation, &mut inbox, &link) {
            conversation.end(reason);
        }
        watch.wakes[index].notify();
    }
}

fn handle(
    watch: &Watch,
    index: usize,
    conversation: &Conversation,
    inbox: &mut Inbox,
    link: &Link,
) -> Result<(), String> {
    let now = Instant::now();
    while let Some(received) = inbox.take_frame().map_err(|error| error.to_string())? {
        let Received::Frame(bytes) = received else { return Err("it sent a frame without end".into()) };
        let said = conversation.session.borrow_mut().handle_frame(bytes, now);
        match said.map_err(|error| error.to_string())? {
            Some(SentinelSays::Primary(primary)) => watch.note(index, primary, link),
            Some(SentinelSays::Unknown) => {
                let primary = &watch.sentinels.primary;
                return Err(format!("it watches nothing named {primary:?}: correct the name in the URL"));
            }
            None => {}
        }
    }
    Ok(())
}

/// How long an attempt waits for the first sentinel's first word.
const FIRST_WORD: Duration = Duration::from_secs(1);
