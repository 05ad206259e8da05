//! Frames from clients: what is put together and answered, and which close code each fault earns.

use std::time::{Duration, Instant};

use tungstenite::Message;

use crate::support::client::{Client, Ending, RawClient};
use crate::support::deadline::SOON;
use crate::support::on_both_drivers;
use crate::support::server::{Driver, Server};
use crate::support::swarm::Swarm;
use crate::support::wire::{self, BINARY, CLOSE, Frame, PING, PONG, TEXT, header, masked};

on_both_drivers!(
    each_fault_of_a_frame_earns_its_close_code,
    faults_earn_the_same_codes_when_their_bytes_come_one_by_one,
    a_close_is_answered_with_its_own_code,
    fragments_are_put_together_and_pings_between_them_answered,
    text_and_binary_of_every_length_come_back_unchanged,
    echo_returns_each_message_as_it_was_once_the_flag_is_set,
    a_flood_of_pings_is_answered_by_its_last_and_costs_no_memory,
    who_answers_no_ping_is_closed_and_who_answers_stays,
    messages_within_and_beyond_the_bound_are_told_apart_by_their_header,
);

/// Continuation, first fragment of text, first fragment of binary: opcodes with and without FIN.
const LAST_FRAGMENT: u8 = 0x80;
const FIRST_TEXT: u8 = 0x01;
const FIRST_BINARY: u8 = 0x02;
const MIDDLE: u8 = 0x00;
/// Default of `message_bytes_max`.
const MESSAGE_BYTES_MAX: u64 = 64 * 1024;

fn faults() -> Vec<(&'static str, Vec<u8>, u16)> {
    let mut faults = vec![
        ("an unmasked frame", vec![TEXT, 1, b'a'], 1002),
        ("reserved bit 1", masked(TEXT | 0x40, b"a"), 1002),
        ("reserved bit 2", masked(TEXT | 0x20, b"a"), 1002),
        ("reserved bit 3", masked(TEXT | 0x10, b"a"), 1002),
        ("data opcode 3", masked(0x83, b"a"), 1002),
        ("data opcode 7", masked(0x87, b"a"), 1002),
        ("control opcode 11", masked(0x8B, b"a"), 1002),
        ("control opcode 15", masked(0x8F, b"a"), 1002),
        ("a fragmented ping", masked(PING & 0x7F, b"a"), 1002),
        ("a fragmented close", masked(CLOSE & 0x7F, b""), 1002),
        ("a ping of 126 bytes", masked(PING, &[b'a'; 126]), 1002),
        ("a pong of 126 bytes", masked(PONG, &[b'a'; 126]), 1002),
        ("a continuation of nothing", masked(LAST_FRAGMENT, b"a"), 1002),
        ("a middle of nothing", masked(MIDDLE, b"a"), 1002),
        ("text inside a fragmented text", [masked(FIRST_TEXT, b"a"), masked(TEXT, b"b")].concat(), 1002),
        ("binary inside a fragmented text", [masked(FIRST_TEXT, b"a"), masked(BINARY, b"b")].concat(), 1002),
        (
            "a length of 5 in two bytes",
            vec![TEXT, 0xFE, 0, 5, 0, 0, 0, 0, b'h', b'e', b'l', b'l', b'o'],
            1002,
        ),
        (
            "a length of 126 in eight bytes",
            [&[BINARY, 0xFF, 0, 0, 0, 0, 0, 0, 0, 126], &[0; 130][..]].concat(),
            1002,
        ),
        ("a length of 2^63", [&[BINARY, 0xFF, 0x80], &[0; 11][..]].concat(), 1002),
        ("text that is no UTF-8", masked(TEXT, &[0xFF]), 1007),
        ("text with a surrogate", masked(TEXT, &[0xED, 0xA0, 0x80]), 1007),
        ("text that ends within a character", masked(TEXT, &[0xC3]), 1007),
        (
            "a character that breaks between fragments",
            [masked(FIRST_TEXT, &[0xCE]), masked(LAST_FRAGMENT, &[0xFF])].concat(),
            1007,
        ),
        ("a fragment that can't become UTF-8 any more", masked(FIRST_TEXT, &[0xF5]), 1007),
        ("a message that announces too much", header(BINARY, MESSAGE_BYTES_MAX + 1), 1009),
        ("a message of 2^62 bytes", header(BINARY, 1 << 62), 1009),
        (
            "fragments that together are too much",
            [masked(FIRST_BINARY, &[0; MESSAGE_BYTES_MAX as usize]), header(LAST_FRAGMENT, 1)].concat(),
            1009,
        ),
        ("a close with half a code", masked(CLOSE, &[3]), 1002),
        ("a close whose reason is no UTF-8", masked(CLOSE, &[0x03, 0xE8, 0xFF]), 1007),
    ];
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535] {
        faults.push(("a close with a code that may not be sent", wire::close(code), 1002));
    }
    faults
}

fn each_fault_of_a_frame_earns_its_close_code(driver: Driver) {
    let server = Server::builder().driver(driver).start();
    let mut wrong = Vec::new();
    for (what, bytes, code) in faults() {
        let mut client = RawClient::upgraded(server.address(), "/ws?room=lobby");
        client.send(&bytes);
        judge(&mut client, what, code, &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let page = server.metrics();
    for (reason, code) in [("protocol_error", 1002), ("invalid_utf8", 1007), ("message_too_big", 1009)] {
        let expected = faults().iter().filter(|fault| fault.2 == code).count();
        assert_eq!(
            page.closed(reason),
            expected as f64,
            "{}",
            page.show("corecast_connections_closed_total")
        );
    }
}

fn faults_earn_the_same_codes_when_their_bytes_come_one_by_one(driver: Driver) {
    let server = Server::builder().driver(driver).start();
    let mut wrong = Vec::new();
    for (what, bytes, code) in faults().into_iter().filter(|(_, bytes, _)| bytes.len() < 200) {
        let mut client = RawClient::upgraded(server.address(), "/ws?room=lobby");
        bytes.iter().for_each(|byte| client.send(&[*byte]));
        judge(&mut client, what, code, &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Notes what is wrong with the end that `client` meets.
fn judge(client: &mut RawClient, what: &str, code: u16, wrong: &mut Vec<String>) {
    let began = Instant::now();
    let Ending { frames, clean } = client.ending();
    let took = began.elapsed();
    let told = matches!(frames.as_slice(), [Frame::Close(Some((found, _)))] if *found == code);
    // The end of TCP is due within a second; the rest is for a busy machine.
    if !told || !clean || took > Duration::from_secs(3) {
        wrong.push(format!("{what}: {frames:?}, clean {clean}, after {took:?}; {code} was due"));
    }
}

fn a_close_is_answered_with_its_own_code(driver: Driver) {
    let server = Server::builder().driver(driver).start();
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999] {
        let mut client = RawClient::upgraded(server.address(), "/ws?room=lobby");
        client.send(&wire::close(code));
        let ending = client.ending();
        assert_eq!((ending.code(), ending.clean), (Some(code), true), "{ending:?}");
    }
    let mut client = RawClient::upgraded(server.address(), "/ws?room=lobby");
    client.send(&masked(CLOSE, b""));
    let ending = client.ending();
    assert!(ending.clean && matches!(ending.frames.as_slice(), [Frame::Close(_)]), "{ending:?}");
    assert_eq!(server.metrics().closed("peer_closed"), 14.0);
}

fn fragments_are_put_together_and_pings_between_them_answered(driver: Driver) {
    let server = Server::builder().driver(driver).start();
    let mut client = RawClient::upgraded(server.address(), "/ws?room=lobby");
    // The second fragment ends within a character.
    for frame in [
        masked(FIRST_TEXT, b"gr\xC3"),
        masked(PING, b"between"),
        masked(MIDDLE, b"\xBC\xC3"),
        masked(MIDDLE, b""),
        masked(LAST_FRAGMENT, b"\x9Fe"),
    ] {
        client.send(&frame);
    }
    assert_eq!(client.next(), Frame::Pong(b"between".to_vec()));
    assert_eq!(client.next(), Frame::Text("grüße".as_bytes().to_vec()));
    // A pong that nobody asked for is nothing.
    client.send(&[masked(PONG, b"unasked"), masked(TEXT, b"still here")].concat());
    assert_eq!(client.next(), Frame::Text(b"still here".to_vec()));
}

fn text_and_binary_of_every_length_come_back_unchanged(driver: Driver) {
    let server = Server::builder().driver(driver).start();
    let mut client = Client::join(&server, "lobby");
    for bytes in [0, 1, 125, 126, 127, 4096, 16_384, 65_535, 65_536] {
        let text = Message::text("ä".repeat(bytes / 2) + &"a".repeat(bytes % 2));
        client.send(text.clone());
        assert_eq!(client.next(), text, "text of {bytes} bytes");
        let binary = Message::binary((0..bytes).map(|index| (index * 31) as u8 | 0x80).collect::<Vec<_>>());
        client.send(binary.clone());
        // No bytes at all are valid UTF-8 and leave as text.
        assert_eq!(
            client.next(),
            if bytes == 0 { Message::text("") } else { binary },
            "binary of {bytes} bytes"
        );
    }
}

fn echo_returns_each_message_as_it_was_once_the_flag_is_set(driver: Driver) {
    let server = Server::builder().driver(driver).arg("--echo").start();
    let mut client = Client::connect(server.address(), "/echo");
    for bytes in [0, 1, 125, 126, 65_535, 65_536, 1 << 20, 16 << 20] {
        // Text in binary stays binary: a suite of conformance tests looks.
        for message in [Message::text("a".repeat(bytes)), Message::binary(vec![b'a'; bytes])] {
            client.send(message.clone());
            assert!(client.next() == message, "{bytes} bytes came back changed");
        }
    }
    assert_eq!(server.metrics().sum("corecast_publications_received_total"), 0.0);
    let plain = Server::builder().driver(driver).start();
    assert_eq!(plain.get("/echo").status, 404);
}

fn a_flood_of_pings_is_answered_by_its_last_and_costs_no_memory(driver: Driver) {
    let server = Server::builder().driver(driver).start();
    let mut client = RawClient::upgraded(server.address(), "/ws?room=lobby");
    let before = server.user_memory_bytes();
    let flood: Vec<u8> = (0..50_000_u32).flat_map(|number| masked(PING, &number.to_be_bytes())).collect();
    // Nothing is read meanwhile: whatever is owed waits at the server or not at all.
    client.send(&flood);
    let last = 49_999_u32.to_be_bytes().to_vec();
    let mut pongs = 0;
    loop {
        pongs += 1;
        if client.next() == Frame::Pong(last.clone()) {
            break;
        }
    }
    assert!(pongs <= 50_000);
    let grown = server.user_memory_bytes().saturating_sub(before);
    assert!(grown < 4 << 20, "a flood of pings cost {grown} bytes");
}

fn who_answers_no_ping_is_closed_and_who_answers_stays(driver: Driver) {
    let bounds = "[bounds]\nping_interval = \"300ms\"\npong_timeout = \"1s\"\n";
    let server = Server::builder().driver(driver).config(bounds).start();
    let answering = Swarm::new();
    answering.add_many(server.address(), "/ws?room=lobby", 5);
    answering.wait_open();
    let mut mute = RawClient::upgraded(server.address(), "/ws?room=lobby");

    let ending = mute.ending();
    assert!(matches!(ending.frames.first(), Some(Frame::Ping(_))), "no ping came first: {ending:?}");
    assert_eq!(ending.code(), Some(1008), "{ending:?}");
    answering.assert_all_open();
    assert_eq!(server.metrics().closed("pong_timeout"), 1.0);
}

fn messages_within_and_beyond_the_bound_are_told_apart_by_their_header(driver: Driver) {
    let server = Server::builder().driver(driver).config("[bounds]\nmessage_bytes_max = \"1MiB\"\n").start();
    let mut client = RawClient::upgraded(server.address(), "/ws?room=lobby");
    let largest = vec![b'x'; 1 << 20];
    client.send(&masked(TEXT, &largest));
    assert_eq!(client.next(), Frame::Text(largest));

    client.send(&header(TEXT, (1 << 20) + 1));
    let began = Instant::now();
    assert_eq!(client.ending().code(), Some(1009));
    assert!(began.elapsed() < SOON);
}
