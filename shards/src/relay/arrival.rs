//! What Redis brought in an envelope that names its type and its origin, and what any payload says of itself.

use std::borrow::Cow;
use std::sync::Arc;

use super::{Outlet, Particulars, Relay};
use crate::command::{ConnectionId, Label};
use crate::config::Own;
use crate::dialect::{self, PLAIN_KIND};
use crate::envelope::{self, Event};
use crate::metrics::Via;
use crate::shard::Micros;

/// A publication of a source with [`Deliver::Event`](crate::config::Deliver::Event), for one room.
pub(super) struct Arrival<'a> {
    pub source: usize,
    /// Full name.
    pub room: Cow<'a, str>,
    pub payload: &'a [u8],
    /// The payload taken apart, where it is such an envelope.
    pub event: Option<Event<'a>>,
    pub except: Option<ConnectionId>,
}

/// Labels that are kept for use again: as many types as a system commonly has.
const LABELS_MAX: usize = 16;

impl Relay {
    /// Places what arrived, but for this node's own, which its members have had already.
    pub(super) fn arrived(&mut self, arrival: Arrival<'_>, outlet: &mut impl Outlet, now: Micros) {
        let Arrival { source, room, payload, event, except } = arrival;
        let via = Via::Source(source);
        let Some(event) = event else {
            self.place(&room, payload, Particulars { via, label: None, except }, outlet, now);
            return;
        };
        if self.setup.routes.own(source) == Own::Origin && self.is_own(&event) {
            return self.metrics().echoes_ignored.add(1);
        }
        let label = match &event.kind {
            Some(kind) => self.label(kind, event.is_json),
            None => self.label(PLAIN_KIND, event.is_json),
        };
        let particulars = Particulars { via, label: Some(label), except };
        self.place(&room, &event.data, particulars, outlet, now);
    }

    /// Ours always have an `instance_id`; an `origin` alone may be another's of the same name.
    fn is_own(&self, event: &Event<'_>) -> bool {
        event.instance_id.as_deref() == Some(&*self.instance_id)
    }

    /// What a payload that came without a label says of itself.
    pub(super) fn label_of(&mut self, payload: &[u8]) -> Option<Arc<Label>> {
        let kind = envelope::kind_of(payload)?;
        Some(self.label(&kind, true))
    }

    /// A label, shared with earlier publications of the same type. A type that is no name is cut.
    pub(super) fn label(&mut self, kind: &str, is_json: bool) -> Arc<Label> {
        let kind = dialect::kind(kind);
        let known = self.labels.iter().find(|label| label.is_json == is_json && *label.kind == *kind);
        if let Some(label) = known {
            return label.clone();
        }
        let label = Arc::new(Label { kind: kind.into(), is_json });
        if self.labels.len() == LABELS_MAX {
            self.labels.remove(0);
        }
        self.labels.push(label.clone());
        label
    }
}
