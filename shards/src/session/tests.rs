use std::ops::RangeInclusive;

use proptest::prelude::*;
use tungstenite::protocol::frame::Frame;

use super::*;

const BOUNDS: SessionBounds = SessionBounds { message_bytes_max: 1 << 20, fragments_max: 2000 };
const MASK: [u8; 4] = [0x11, 0x22, 0x83, 0xf4];

/// An event that outlives its input.
#[derive(Debug, Clone, PartialEq)]
enum Said {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
}

impl From<Event<'_>> for Said {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Text(text) => Said::Text(text.into()),
            Event::Binary(octets) => Said::Binary(octets.into()),
            Event::Ping(octets) => Said::Ping(octets.into()),
            Event::Pong(octets) => Said::Pong(octets.into()),
            Event::Close { code, reason } => Said::Close(code, reason.into()),
        }
    }
}

fn text(text: &str) -> Said {
    Said::Text(text.into())
}

/// What a session says to `chunks`, one `recv` each, and the error that ended it.
fn hear<'c>(
    session: &mut Session,
    chunks: impl IntoIterator<Item = &'c [u8]>,
    bounds: &SessionBounds,
) -> (Vec<Said>, Option<CloseReason>) {
    let (mut said, mut error) = (Vec::new(), None);
    for chunk in chunks {
        let mut chunk = chunk.to_vec();
        let mut input = Input::new(&mut chunk);
        loop {
            match session.next(&mut input, bounds) {
                Ok(Some(event)) => said.push(event.into()),
                Ok(None) => break,
                Err(reason) => assert_eq!(error.replace(reason), None, "a second error after the end"),
            }
        }
        assert_eq!(input.taken, chunk.len(), "input was left over");
    }
    (said, error)
}

fn hear_at_once(octets: &[u8]) -> (Vec<Said>, Option<CloseReason>) {
    hear(&mut Session::default(), [octets], &BOUNDS)
}

fn hear_octetwise(octets: &[u8]) -> (Vec<Said>, Option<CloseReason>) {
    hear(&mut Session::default(), octets.chunks(1), &BOUNDS)
}

/// Both ways of arriving, which must agree.
fn error_of(octets: &[u8]) -> Option<CloseReason> {
    let (said, error) = hear_at_once(octets);
    assert_eq!(hear_octetwise(octets), (said, error), "the split decides");
    error
}

/// A frame as tungstenite's client encodes it.
fn frame(opcode: OpCode, last: bool, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader { is_final: last, opcode, mask: Some(MASK), ..FrameHeader::default() };
    let mut wire = Vec::new();
    Frame::from_payload(header, payload.to_vec().into()).format(&mut wire).unwrap();
    wire
}

const TEXT: OpCode = OpCode::Data(Data::Text);
const BINARY: OpCode = OpCode::Data(Data::Binary);
const CONTINUE: OpCode = OpCode::Data(Data::Continue);
const PING: OpCode = OpCode::Control(Control::Ping);
const PONG: OpCode = OpCode::Control(Control::Pong);
const CLOSE: OpCode = OpCode::Control(Control::Close);

fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(CLOSE, true, &[&code.to_be_bytes()[..], reason].concat())
}

#[test]
fn a_whole_frame_is_read_where_it_lies() {
    let mut octets = [frame(TEXT, true, "grüß".as_bytes()), frame(BINARY, true, &[0xff; 300])].concat();
    let span = octets.as_ptr_range();
    let mut session = Session::default();
    let mut input = Input::new(&mut octets);
    let Some(Event::Text(text)) = session.next(&mut input, &BOUNDS).unwrap() else { panic!("no text") };
    assert_eq!(text, "grüß");
    assert!(span.contains(&text.as_ptr()), "the payload was copied");
    let Some(Event::Binary(binary)) = session.next(&mut input, &BOUNDS).unwrap() else { panic!("no binary") };
    assert_eq!(binary, [0xff; 300]);
    assert!(span.contains(&binary.as_ptr()), "the payload was copied");
    assert_eq!(session.next(&mut input, &BOUNDS), Ok(None));
    assert_eq!(session.held_bytes(), 0);
}

#[test]
fn what_is_held_is_freed_when_it_is_whole() {
    let message = [frame(TEXT, false, b"a"), frame(PING, true, b"p"), frame(CONTINUE, true, b"b")].concat();
    let mut session = Session::default();
    for cut in 1..message.len() {
        let (said, error) = hear(&mut session, [&message[..cut]], &BOUNDS);
        assert!(session.held_bytes() > 0, "nothing is held of a message cut at {cut}");
        let (rest, _) = hear(&mut session, [&message[cut..]], &BOUNDS);
        assert_eq!([said, rest].concat(), [Said::Ping(b"p".into()), text("ab")]);
        assert_eq!((session.held_bytes(), error), (0, None), "cut at {cut}");
    }
}

#[test]
fn control_frames_come_inside_a_fragmented_message() {
    let octets = [
        frame(BINARY, false, b"one "),
        frame(PING, true, b"first"),
        frame(CONTINUE, false, b""),
        frame(PONG, true, b""),
        frame(CONTINUE, true, b"two"),
        close(1000, "bye".as_bytes()),
        frame(TEXT, true, b"after the end"),
    ]
    .concat();
    let said = vec![
        Said::Ping(b"first".into()),
        Said::Pong(b"".into()),
        Said::Binary(b"one two".into()),
        Said::Close(Some(1000), "bye".into()),
    ];
    assert_eq!(hear_at_once(&octets), (said.clone(), None));
    assert_eq!(hear_octetwise(&octets), (said, None));
}

#[test]
fn an_unmasked_frame_is_a_protocol_error() {
    assert_eq!(error_of(&[0x81, 0x02, b'h', b'i']), Some(CloseReason::ProtocolError));
    assert_eq!(error_of(&[0x89, 0x00]), Some(CloseReason::ProtocolError));
}

#[test]
fn reserved_bits_and_opcodes_are_protocol_errors() {
    let mut sound = frame(TEXT, true, b"hi");
    for bit in [0x40, 0x20, 0x10] {
        let mut octets = sound.clone();
        octets[0] |= bit;
        assert_eq!(error_of(&octets), Some(CloseReason::ProtocolError), "bit {bit:#x}");
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        sound[0] = 0x80 | opcode;
        assert_eq!(error_of(&sound), Some(CloseReason::ProtocolError), "opcode {opcode}");
    }
}

#[test]
fn a_control_frame_is_whole_and_at_most_125_bytes() {
    for opcode in [PING, PONG, CLOSE] {
        assert_eq!(error_of(&frame(opcode, false, b"")), Some(CloseReason::ProtocolError));
        assert_eq!(error_of(&frame(opcode, true, &[b'x'; 126])), Some(CloseReason::ProtocolError));
    }
    assert_eq!(hear_octetwise(&frame(PING, true, &[b'x'; 125])), (vec![Said::Ping(vec![b'x'; 125])], None));
}

#[test]
fn a_continuation_needs_a_start_and_a_start_needs_the_end_of_the_last_message() {
    for last in [true, false] {
        assert_eq!(error_of(&frame(CONTINUE, last, b"x")), Some(CloseReason::ProtocolError));
        for opcode in [TEXT, BINARY] {
            let octets = [frame(TEXT, false, b"x"), frame(opcode, last, b"y")].concat();
            assert_eq!(error_of(&octets), Some(CloseReason::ProtocolError));
        }
    }
    let ended = [frame(TEXT, false, b"x"), frame(CONTINUE, true, b""), frame(CONTINUE, true, b"")].concat();
    assert_eq!(hear_octetwise(&ended), (vec![text("x")], Some(CloseReason::ProtocolError)));
}

#[test]
fn a_length_in_more_octets_than_it_needs_is_a_protocol_error() {
    for (length_octets, expected) in [
        (&[126, 0, 125][..], Some(CloseReason::ProtocolError)),
        (&[126, 0, 126], None),
        (&[127, 0, 0, 0, 0, 0, 0, 0xff, 0xff], Some(CloseReason::ProtocolError)),
        (&[127, 0, 0, 0, 0, 0, 1, 0, 0], None),
    ] {
        let mut octets = vec![0x82];
        octets.extend_from_slice(length_octets);
        octets[1] |= 0x80;
        octets.extend_from_slice(&MASK);
        assert_eq!(error_of(&octets), expected, "{length_octets:?}");
    }
}

#[test]
fn a_length_above_2_to_the_63_is_a_protocol_error_and_one_below_it_too_big() {
    let header = |length: u64| [&[0x82, 0xff][..], &length.to_be_bytes(), &MASK].concat();
    assert_eq!(error_of(&header(1 << 63)), Some(CloseReason::ProtocolError));
    assert_eq!(error_of(&header(u64::MAX)), Some(CloseReason::ProtocolError));
    assert_eq!(error_of(&header((1 << 63) - 1)), Some(CloseReason::MessageTooBig));
}

#[test]
fn a_message_above_its_bound_is_refused_by_the_header_that_exceeds_it() {
    let bounds = SessionBounds { message_bytes_max: 10, ..BOUNDS };
    let hear = |octets: &[u8]| hear(&mut Session::default(), [octets], &bounds);
    assert_eq!(hear(&frame(TEXT, true, b"ten octets")), (vec![text("ten octets")], None));
    // The header alone, not a byte of its payload.
    assert_eq!(hear(&frame(BINARY, true, b"11 octets!!")[..6]), (vec![], Some(CloseReason::MessageTooBig)));
    let fragments = [frame(BINARY, false, b"1234567"), frame(CONTINUE, true, b"8901")].concat();
    assert_eq!(hear(&fragments[..fragments.len() - 4]), (vec![], Some(CloseReason::MessageTooBig)));
    // Control frames are not the message's.
    let fragments =
        [frame(TEXT, false, b"12345"), frame(PING, true, &[0; 99]), frame(CONTINUE, true, b"67890")];
    assert_eq!(hear(&fragments.concat()), (vec![Said::Ping(vec![0; 99]), text("1234567890")], None));
}

#[test]
fn a_declared_length_reserves_nothing() {
    let mut session = Session::default();
    let header = &frame(BINARY, true, &vec![0; BOUNDS.message_bytes_max])[..14];
    assert_eq!(hear(&mut session, [header, b"ten octets"], &BOUNDS), (vec![], None));
    assert!(session.held_bytes() < 512, "{} bytes are held for ten", session.held_bytes());
}

#[test]
fn a_message_that_arrives_octet_by_octet_is_moved_a_bounded_number_of_times() {
    let octets = frame(TEXT, true, "ü".repeat(BOUNDS.message_bytes_max / 2).as_bytes());
    let mut session = Session::default();
    let (mut moves, mut held_bytes, mut said) = (0, 0, 0);
    for (arrived, octet) in octets.iter().enumerate() {
        said += hear(&mut session, [&[*octet][..]], &BOUNDS).0.len();
        moves += usize::from(session.held_bytes() != held_bytes);
        held_bytes = session.held_bytes();
        assert!(held_bytes <= 2 * arrived + 512, "{held_bytes} bytes are held for {arrived}");
    }
    assert_eq!(said, 1);
    assert!(moves < 32, "the buffer was moved {moves} times on its way to 1 MiB");
}

#[test]
fn tiny_fragments_do_not_move_the_message_each_time() {
    let bounds = SessionBounds { message_bytes_max: 1 << 24, fragments_max: 1 << 17 };
    let mut session = Session::default();
    // Autobahn 9.3.1 and 9.4.1: 4 MiB in fragments of 64 bytes, ended by an empty one; 65,537 frames in all.
    let (first, middle) = (frame(BINARY, false, &[7; 64]), frame(CONTINUE, false, &[7; 64]));
    let (mut moves, mut held_bytes) = (0, 0);
    for index in 0..65_536 {
        let fragment = if index == 0 { &first } else { &middle };
        assert_eq!(hear(&mut session, [&fragment[..]], &bounds), (vec![], None));
        moves += usize::from(session.held_bytes() != held_bytes);
        held_bytes = session.held_bytes();
    }
    let (said, error) = hear(&mut session, [&frame(CONTINUE, true, b"")[..]], &bounds);
    assert_eq!((said, error), (vec![Said::Binary(vec![7; 64 * 65_536])], None));
    assert!(moves < 32, "the buffer was moved {moves} times on its way to 4 MiB");
}

#[test]
fn more_fragments_than_the_bound_are_refused_by_the_header_of_the_one_above_it() {
    let bounds = SessionBounds { fragments_max: 3, ..BOUNDS };
    let three =
        [frame(TEXT, false, b"a"), frame(CONTINUE, false, b"b"), frame(CONTINUE, false, b"c")].concat();
    let mut session = Session::default();
    assert_eq!(hear(&mut session, [&three[..]], &bounds), (vec![], None));
    let fourth = &frame(CONTINUE, true, b"d")[..6];
    assert_eq!(hear(&mut session, [fourth], &bounds), (vec![], Some(CloseReason::TooManyFragments)));
}

#[test]
fn many_fragments_need_a_mean_size() {
    let message = |payload: &[u8], count: u32| {
        let mut octets = frame(BINARY, false, payload);
        for _ in 1..count {
            octets.extend(frame(CONTINUE, false, payload));
        }
        octets.extend(frame(CONTINUE, true, &[0; FRAGMENT_BYTES_MEAN_MIN]));
        octets
    };
    let below = [0; FRAGMENT_BYTES_MEAN_MIN - 1];
    let (said, error) = hear_at_once(&message(&below, FRAGMENTS_FREE - 1));
    assert_eq!((said.len(), error), (1, None), "the first ones are free");
    assert_eq!(hear_at_once(&message(&below, FRAGMENTS_FREE)), (vec![], Some(CloseReason::TooManyFragments)));
    let (said, error) = hear_at_once(&message(&[0; FRAGMENT_BYTES_MEAN_MIN], FRAGMENTS_FREE + 9));
    assert_eq!((said.len(), error), (1, None));
}

#[test]
fn a_text_is_refused_as_soon_as_nothing_could_mend_it() {
    // The frame declares 100 bytes and stays unfinished; each of these ends in an octet that settles it.
    for octets in [&b"ok\xff"[..], b"\xce\xba\xed\xa0", b"\xf4\x90", b"\xc0", b"\xe2\x82x", b"\xf0\x80"] {
        let whole = frame(TEXT, true, &[octets, &[b'x'; 100][octets.len()..]].concat());
        let settled = whole.len() - 100 + octets.len();
        assert_eq!(error_of(&whole[..settled]), Some(CloseReason::InvalidUtf8), "{octets:x?}");
        assert_eq!(error_of(&whole[..settled - 1]), None, "{octets:x?}");
    }
}

#[test]
fn a_character_may_be_split_over_fragments_and_must_end_with_the_message() {
    let euro = "€".as_bytes();
    let split =
        [frame(TEXT, false, &euro[..1]), frame(CONTINUE, false, b""), frame(CONTINUE, true, &euro[1..])];
    assert_eq!(hear_at_once(&split.concat()), (vec![text("€")], None));
    assert_eq!(hear_octetwise(&split.concat()), (vec![text("€")], None));
    for unfinished in [
        frame(TEXT, true, &euro[..2]),
        [frame(TEXT, false, &euro[..2]), frame(CONTINUE, true, b"")].concat(),
        [frame(TEXT, false, &euro[..2]), frame(CONTINUE, true, b"x")].concat(),
    ] {
        assert_eq!(error_of(&unfinished), Some(CloseReason::InvalidUtf8));
    }
    assert_eq!(hear_at_once(&frame(BINARY, true, &euro[..2])), (vec![Said::Binary(euro[..2].into())], None));
}

#[test]
fn a_close_body_is_empty_or_an_allowed_code_and_a_reason() {
    assert_eq!(hear_octetwise(&frame(CLOSE, true, b"")), (vec![Said::Close(None, "".into())], None));
    assert_eq!(error_of(&frame(CLOSE, true, b"\x03")), Some(CloseReason::ProtocolError));
    const REFUSED: [RangeInclusive<u16>; 4] = [0..=999, 1004..=1006, 1015..=2999, 5000..=65_535];
    for code in REFUSED.into_iter().flat_map(|range| [*range.start(), *range.end()]) {
        assert_eq!(error_of(&close(code, b"")), Some(CloseReason::ProtocolError), "{code}");
    }
    for code in [1000, 1003, 1007, 1014, 3000, 4999] {
        assert_eq!(hear_at_once(&close(code, b"why")), (vec![Said::Close(Some(code), "why".into())], None));
    }
    assert_eq!(error_of(&close(1000, b"\xff")), Some(CloseReason::InvalidUtf8));
    assert_eq!(error_of(&close(1000, &"€".as_bytes()[..2])), Some(CloseReason::InvalidUtf8));
}

#[test]
fn a_message_that_was_begun_is_not_held_beyond_the_close() {
    let mut session = Session::default();
    let begun = frame(TEXT, false, &[b'x'; 1000]);
    hear(&mut session, [&begun[..]], &BOUNDS);
    assert!(session.held_bytes() >= 1000);
    assert_eq!(hear(&mut session, [&close(1000, b"")[..]], &BOUNDS).0, [Said::Close(Some(1000), "".into())]);
    assert_eq!(session.held_bytes(), 0);
}

#[test]
fn nothing_is_said_after_the_end() {
    for end in [close(1000, b""), frame(CONTINUE, true, b"")] {
        let mut session = Session::default();
        hear(&mut session, [&end[..]], &BOUNDS);
        assert!(session.has_ended());
        let more = [frame(TEXT, true, b"x"), end].concat();
        assert_eq!(hear(&mut session, [&more[..]], &BOUNDS), (vec![], None));
        assert_eq!(session.held_bytes(), 0);
    }
}

/// One message or control frame and the frames that carry it; the fragments have control frames between them.
fn exchange() -> impl Strategy<Value = (Vec<Said>, Vec<u8>)> {
    let control = (any::<bool>(), proptest::collection::vec(any::<u8>(), 0..=125));
    let payload = prop_oneof![
        ".{0,80}".prop_map(|text| (true, text.into_bytes())),
        proptest::collection::vec(any::<u8>(), 0..300).prop_map(|octets| (false, octets)),
        (65_530usize..65_540).prop_map(|bytes| (false, vec![b'x'; bytes])),
    ];
    let cuts = proptest::collection::vec((any::<proptest::sample::Index>(), control), 0..4);
    (payload, cuts).prop_map(|((is_text, payload), cuts)| {
        let (mut said, mut octets, mut sent) = (Vec::new(), Vec::new(), 0);
        let mut opcode = if is_text { TEXT } else { BINARY };
        for (cut, (is_ping, control)) in cuts {
            let end = sent + cut.index(payload.len() - sent + 1);
            octets.extend(frame(opcode, false, &payload[sent..end]));
            octets.extend(frame(if is_ping { PING } else { PONG }, true, &control));
            said.push(if is_ping { Said::Ping(control) } else { Said::Pong(control) });
            (opcode, sent) = (CONTINUE, end);
        }
        octets.extend(frame(opcode, true, &payload[sent..]));
        said.push(if is_text {
            Said::Text(String::from_utf8(payload).unwrap())
        } else {
            Said::Binary(payload)
        });
        (said, octets)
    })
}

/// Cuts `octets` at `cuts`, in order.
fn chunks<'o>(octets: &'o [u8], cuts: &[proptest::sample::Index]) -> Vec<&'o [u8]> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(octets.len() + 1)).collect();
    ends.sort_unstable();
    ends.push(octets.len());
    let mut start = 0;
    ends.into_iter().map(|end| &octets[std::mem::replace(&mut start, end)..end]).collect()
}

fn cuts() -> impl Strategy<Value = Vec<proptest::sample::Index>> {
    proptest::collection::vec(any::<proptest::sample::Index>(), 0..12)
}

proptest! {
    #[test]
    fn what_tungstenite_encodes_is_heard_however_it_is_split(
        exchanges in proptest::collection::vec(exchange(), 0..5),
        cuts in cuts(),
    ) {
        let said: Vec<Said> = exchanges.iter().flat_map(|(said, _)| said.clone()).collect();
        let octets: Vec<u8> = exchanges.iter().flat_map(|(_, octets)| octets.clone()).collect();
        let mut session = Session::default();
        prop_assert_eq!(hear(&mut session, chunks(&octets, &cuts), &BOUNDS), (said, None));
        prop_assert_eq!(session.held_bytes(), 0);
    }

    #[test]
    fn damaged_frames_say_the_same_however_they_are_split(
        exchanges in proptest::collection::vec(exchange(), 1..4),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
        cuts in cuts(),
    ) {
        let mut octets: Vec<u8> = exchanges.into_iter().flat_map(|(_, octets)| octets).collect();
        for (place, octet) in damage {
            let place = place.index(octets.len());
            octets[place] = octet;
        }
        prop_assert_eq!(hear(&mut Session::default(), chunks(&octets, &cuts), &BOUNDS), hear_at_once(&octets));
    }

    #[test]
    fn small_bounds_say_the_same_however_they_are_split(
        exchanges in proptest::collection::vec(exchange(), 1..4),
        cuts in cuts(),
        message_bytes_max in 0usize..200,
        fragments_max in 1u32..5,
    ) {
        let octets: Vec<u8> = exchanges.into_iter().flat_map(|(_, octets)| octets).collect();
        let bounds = SessionBounds { message_bytes_max, fragments_max };
        let split = hear(&mut Session::default(), chunks(&octets, &cuts), &bounds);
        prop_assert_eq!(split, hear(&mut Session::default(), [&octets[..]], &bounds));
    }

    #[test]
    fn octets_of_any_kind_say_the_same_however_they_are_split(
        octets in proptest::collection::vec(any::<u8>(), 0..200),
        cuts in cuts(),
    ) {
        let whole = hear_at_once(&octets);
        prop_assert_eq!(hear(&mut Session::default(), chunks(&octets, &cuts), &BOUNDS), whole.clone());
        prop_assert_eq!(hear_octetwise(&octets), whole);
    }

    #[test]
    fn a_payload_of_any_octets_is_a_text_exactly_if_it_is_utf8(
        octets in proptest::collection::vec(prop_oneof![any::<u8>(), 0x80u8..0xc0, 0xe0u8..0xf8], 0..40),
        cuts in cuts(),
    ) {
        let expected = match String::from_utf8(octets.clone()) {
            Ok(text) => (vec![Said::Text(text)], None),
            Err(_) => (vec![], Some(CloseReason::InvalidUtf8)),
        };
        let wire = frame(TEXT, true, &octets);
        prop_assert_eq!(hear(&mut Session::default(), chunks(&wire, &cuts), &BOUNDS), expected);
    }

    #[test]
    fn unmasking_is_the_definition(octets in proptest::collection::vec(any::<u8>(), 0..70), mask: [u8; 4]) {
        let expected: Vec<u8> = octets.iter().enumerate().map(|(i, octet)| octet ^ mask[i % 4]).collect();
        let mut found = octets;
        unmask(&mut found, mask);
        prop_assert_eq!(found, expected);
    }
}
