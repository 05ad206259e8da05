//! Places in a frame, for answers whose values have values.

use redis_protocol::resp2::types::RangeFrame as Resp2;
use redis_protocol::resp3::types::RangeFrame as Resp3;

use super::{Frame, Value};

/// A value of a frame, with the values in it.
#[derive(Debug, Clone, Copy)]
pub struct Node<'f, 'a> {
    frame: &'f Frame<'a>,
    place: Place<'f>,
}

#[derive(Debug, Clone, Copy)]
enum Place<'f> {
    Resp2(&'f Resp2),
    Resp3(&'f Resp3),
}

impl<'f, 'a> Node<'f, 'a> {
    pub(super) fn resp2(frame: &'f Frame<'a>, value: &'f Resp2) -> Self {
        Self { frame, place: Place::Resp2(value) }
    }

    pub(super) fn resp3(frame: &'f Frame<'a>, value: &'f Resp3) -> Self {
        Self { frame, place: Place::Resp3(value) }
    }

    /// What it is.
    pub fn value(&self) -> Value<'a> {
        match self.place {
            Place::Resp2(value) => self.frame.resp2(value),
            Place::Resp3(value) => self.frame.resp3(value),
        }
    }

    /// The value at `index` of an array; `None` where there is none.
    pub fn item(&self, index: usize) -> Option<Node<'f, 'a>> {
        let place = match self.place {
            Place::Resp2(Resp2::Array(items)) => Place::Resp2(items.get(index)?),
            Place::Resp3(Resp3::Array { data, .. }) => Place::Resp3(data.get(index)?),
            _ => return None,
        };
        Some(Node { frame: self.frame, place })
    }

    /// The values of an array; none of anything else.
    pub fn items(self) -> impl Iterator<Item = Node<'f, 'a>> {
        (0..).map_while(move |index| self.item(index))
    }

    /// Text; `None` for anything else.
    pub fn text(&self) -> Option<&'a [u8]> {
        match self.value() {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::Protocol;

    #[test]
    fn values_in_values_are_reached_in_both_protocols() {
        for protocol in [Protocol::Resp2, Protocol::Resp3] {
            let frame = Frame::decode(protocol, b"*2\r\n*2\r\n$1\r\na\r\n:5\r\n+b\r\n").expect("a frame");
            let node = frame.node();
            let inner = node.item(0).expect("an array in an array");
            assert_eq!((inner.value(), inner.items().count()), (Value::Array(2), 2));
            assert_eq!(inner.item(0).and_then(|item| item.text()), Some(b"a".as_slice()));
            assert_eq!(
                inner.item(1).map(|item| (item.value(), item.text())),
                Some((Value::Integer(5), None))
            );
            assert_eq!(node.item(1).and_then(|item| item.text()), Some(b"b".as_slice()));
            assert!(node.item(2).is_none() && inner.item(1).is_some_and(|item| item.item(0).is_none()));
        }
    }
}
