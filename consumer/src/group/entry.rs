//! Entries of a Redis stream as replies bring them: ids, the field that holds the event, delivery counts.

use redis_protocol::resp2::types::OwnedFrame;
use shards::redis::EntryId;

/// The field of an entry that holds the event.
pub const DATA_FIELD: &str = shards::redis::DATA;

/// One entry of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub id: EntryId,
    pub content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// The value of [`DATA_FIELD`].
    Data(Vec<u8>),
    /// It has no such field.
    Other,
    /// It was pending, and has been deleted or trimmed from the stream since.
    Gone,
}

/// The entries of XREADGROUP's answer for one stream; none where there was nothing. `None`: this is no such answer.
pub(crate) fn page_of_read(answer: OwnedFrame) -> Option<Vec<Entry>> {
    match answer {
        OwnedFrame::Null => Some(Vec::new()),
        OwnedFrame::Array(mut streams) if streams.len() == 1 => {
            let OwnedFrame::Array(mut stream) = streams.pop()? else { return None };
            match (stream.len(), stream.pop()?) {
                (2, OwnedFrame::Array(entries)) => entries.into_iter().map(entry_of).collect(),
                _ => None,
            }
        }
        _ => None,
    }
}

/// What XAUTOCLAIM says: where it goes on (0-0: it is through), and what it took over.
pub(crate) fn page_of_claim(answer: OwnedFrame) -> Option<(EntryId, Vec<Entry>)> {
    // Since 7.0 a third part lists entries that it found deleted and removed from the pending ones.
    let OwnedFrame::Array(parts) = answer else { return None };
    let mut parts = parts.into_iter();
    let next = id_of(&parts.next()?)?;
    let OwnedFrame::Array(entries) = parts.next()? else { return None };
    // 6.2 leaves a nothing in the place of a deleted entry, whose id it doesn't tell.
    let entries = entries.into_iter().filter(|entry| *entry != OwnedFrame::Null);
    let mut page: Vec<Entry> = entries.map(entry_of).collect::<Option<_>>()?;
    if let Some(OwnedFrame::Array(gone)) = parts.next() {
        for id in gone {
            page.push(Entry { id: id_of(&id)?, content: Content::Gone });
        }
    }
    Some((next, page))
}

/// Ids and delivery counts of XPENDING with a range: `[[id, consumer, idle, deliveries], ...]`.
pub(crate) fn deliveries_of(answer: &OwnedFrame) -> Option<Vec<(EntryId, u64)>> {
    let OwnedFrame::Array(rows) = answer else { return None };
    let row = |row: &OwnedFrame| match row {
        OwnedFrame::Array(columns) => match columns.as_slice() {
            [id, _, _, OwnedFrame::Integer(deliveries)] => {
                Some((id_of(id)?, u64::try_from(*deliveries).ok()?))
            }
            _ => None,
        },
        _ => None,
    };
    rows.iter().map(row).collect()
}

/// The `last-delivered-id` of `group` in XINFO GROUPS; `None` where there is no such group, or no such answer.
pub(crate) fn position_of(answer: &OwnedFrame, group: &str) -> Option<EntryId> {
    let OwnedFrame::Array(groups) = answer else { return None };
    let value = |fields: &[OwnedFrame], name: &str| {
        let pair = fields.chunks_exact(2).find(|pair| text_of(&pair[0]) == Some(name.as_bytes()))?;
        text_of(&pair[1]).map(<[u8]>::to_vec)
    };
    let position = |frame: &OwnedFrame| match frame {
        OwnedFrame::Array(fields) if value(fields, "name").as_deref() == Some(group.as_bytes()) => {
            let id = value(fields, "last-delivered-id")?;
            EntryId::parse(&id)
        }
        _ => None,
    };
    groups.iter().find_map(position)
}

/// `[id, [name, value, ...]]`, or `[id, nothing]` for one that is gone.
fn entry_of(frame: OwnedFrame) -> Option<Entry> {
    let OwnedFrame::Array(mut parts) = frame else { return None };
    let (2, fields) = (parts.len(), parts.pop()?) else { return None };
    let id = id_of(&parts.pop()?)?;
    let content = match fields {
        OwnedFrame::Null => Content::Gone,
        OwnedFrame::Array(fields) => {
            let mut fields = fields.into_iter();
            loop {
                match (fields.next(), fields.next()) {
                    (Some(name), Some(OwnedFrame::BulkString(value)))
                        if text_of(&name) == Some(DATA_FIELD.as_bytes()) =>
                    {
                        break Content::Data(value);
                    }
                    (Some(_), Some(_)) => {}
                    _ => break Content::Other,
                }
            }
        }
        _ => return None,
    };
    Some(Entry { id, content })
}

fn id_of(frame: &OwnedFrame) -> Option<EntryId> {
    EntryId::parse(text_of(frame)?)
}

fn text_of(frame: &OwnedFrame) -> Option<&[u8]> {
    match frame {
        OwnedFrame::BulkString(bytes) | OwnedFrame::SimpleString(bytes) => Some(bytes),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn id(text: &str) -> EntryId {
        EntryId::parse(text.as_bytes()).expect("an id")
    }

    fn bulk(text: &str) -> OwnedFrame {
        OwnedFrame::BulkString(text.as_bytes().to_vec())
    }

    fn array(frames: impl IntoIterator<Item = OwnedFrame>) -> OwnedFrame {
        OwnedFrame::Array(frames.into_iter().collect())
    }

    fn entry(id: &str, fields: &[&str]) -> OwnedFrame {
        array([bulk(id), array(fields.iter().map(|field| bulk(field)))])
    }

    #[test]
    fn a_page_tells_events_from_other_entries_and_from_what_is_gone() {
        let entries = [
            entry("1-0", &["type", "a", "data", "{}"]),
            entry("1-1", &["type", "data"]),
            array([bulk("1-2"), OwnedFrame::Null]),
        ];
        let answer = array([array([bulk("key"), array(entries)])]);
        let page = page_of_read(answer).expect("a page");
        let contents: Vec<_> = page.iter().map(|entry| &entry.content).collect();
        assert_eq!(contents, [&Content::Data(b"{}".to_vec()), &Content::Other, &Content::Gone]);
        assert_eq!(page_of_read(OwnedFrame::Null), Some(Vec::new()), "the time to wait is over");
        for nonsense in [OwnedFrame::Integer(1), array([]), array([array([bulk("key")])])] {
            assert_eq!(page_of_read(nonsense), None);
        }
    }

    #[test]
    fn a_claim_says_where_it_goes_on_and_what_is_gone() {
        let taken = || [entry("1-0", &["data", "{}"]), OwnedFrame::Null];
        let old = array([bulk("0-0"), array(taken())]);
        let (next, page) = page_of_claim(old).expect("6.2's answer");
        assert_eq!((next, page.len()), (EntryId::default(), 1));
        let new = array([bulk("3-0"), array(taken()), array([bulk("2-0")])]);
        let (next, page) = page_of_claim(new).expect("7.0's answer");
        assert_eq!(next, id("3-0"));
        assert_eq!(page[1], Entry { id: id("2-0"), content: Content::Gone });
        assert_eq!(page_of_claim(array([bulk("x"), array([])])), None);
    }

    #[test]
    fn counts_and_positions_are_found() {
        let row = |id: &str, deliveries| {
            array([bulk(id), bulk("me"), OwnedFrame::Integer(5), OwnedFrame::Integer(deliveries)])
        };
        assert_eq!(deliveries_of(&array([row("1-0", 3)])), Some(vec![(id("1-0"), 3)]));
        assert_eq!(deliveries_of(&array([row("1-0", -3)])), None);
        let group = |name: &str, position: &str| {
            let fields = ["name", name, "consumers", "0", "last-delivered-id", position];
            array(fields.iter().map(|field| bulk(field)))
        };
        let groups = array([group("a", "1-0"), group("b", "2-0")]);
        assert_eq!(position_of(&groups, "b"), Some(id("2-0")));
        assert_eq!(position_of(&groups, "c"), None);
    }
}
