//! The generator against a server that lives in the test: what it counts must be what that server did.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

/// What the server does to a room instead of sending a message once, by the number of the message.
type Mischief = fn(u64) -> &'static [i64];

/// Sends message n, then those at these distances from it, of all that came so far.
const HONEST: Mischief = |_| &[0];
/// No distance: the members are told that they are closed (1013), and let go.
const CLOSE: i64 = i64::MIN;
/// No distance: the members are let go without a word.
const LET_GO: i64 = i64::MIN + 1;

#[derive(Default)]
struct Rooms {
    members: BTreeMap<String, Vec<TcpStream>>,
    sent: BTreeMap<String, Vec<Vec<u8>>>,
}

/// A server of one thread per connection: `/ws?room=`, `POST /publish?room=`, `/echo`. Returns its port.
fn serve(mischief: Mischief) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let rooms: Arc<Mutex<Rooms>> = Arc::default();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let rooms = Arc::clone(&rooms);
            // A connection that ends in the middle of something ends its thread, and nothing else.
            std::thread::spawn(move || stream.and_then(|stream| converse(stream, &rooms, mischief)));
        }
    });
    port
}

fn converse(mut stream: TcpStream, rooms: &Mutex<Rooms>, mischief: Mischief) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let head = read_head(&mut stream)?;
        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let room = target.split("room=").nth(1).unwrap_or_default().to_owned();
        if head.starts_with("POST") {
            let length = head.split("Content-Length: ").nth(1).unwrap().lines().next().unwrap();
            let mut body = vec![0; length.parse().unwrap()];
            stream.read_exact(&mut body)?;
            publish(&mut rooms.lock().unwrap(), &room, body, mischief);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")?;
            continue;
        }
        // A member from its 101 on: nothing is published between the two.
        let mut all = rooms.lock().unwrap();
        stream.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        )?;
        if target != "/echo" {
            all.members.entry(room).or_default().push(stream.try_clone()?);
        }
        drop(all);
        loop {
            let (opcode, payload) = read_frame(&mut stream)?;
            match opcode {
                8 => {
                    stream.write_all(&[0x88, 2, 3, 0xe8])?;
                    // The room keeps a copy of the socket, so that dropping this one would not end it.
                    return stream.shutdown(Shutdown::Both);
                }
                1 if target == "/echo" => stream.write_all(&text(&payload))?,
                _ => {}
            }
        }
    }
}

fn publish(rooms: &mut Rooms, room: &str, body: Vec<u8>, mischief: Mischief) {
    let sent = rooms.sent.entry(room.to_owned()).or_default();
    let number = sent.len() as i64;
    sent.push(body);
    for distance in mischief(number as u64) {
        if [CLOSE, LET_GO].contains(distance) {
            for mut member in rooms.members.remove(room).into_iter().flatten() {
                let close = [0x88, 2, 0x03, 0xf5];
                let told = if *distance == CLOSE { member.write_all(&close) } else { Ok(()) };
                // Who has left needs no end.
                let _ = told.and_then(|()| member.shutdown(Shutdown::Write));
            }
            continue;
        }
        let Some(body) = sent.get((number + distance) as usize) else { continue };
        for member in rooms.members.get_mut(room).into_iter().flatten() {
            // A member that has left is none of the test's business.
            let _ = member.write_all(&text(body));
        }
    }
}

fn read_head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn read_frame(stream: &mut TcpStream) -> std::io::Result<(u8, Vec<u8>)> {
    let mut header = [0; 6];
    stream.read_exact(&mut header)?;
    let mut payload = vec![0; usize::from(header[1] & 0x7f)];
    stream.read_exact(&mut payload)?;
    payload.iter_mut().zip(header[2..].iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    Ok((header[0] & 0x0f, payload))
}

fn text(payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() < 126, "the test's messages are short");
    [&[0x81, payload.len() as u8], payload].concat()
}

/// Runs the generator against the test's own process and returns its exit code and its raw results.
///
/// One at a time: another generator would be a child of the measured process, and end in the middle of it.
fn bench(name: &str, port: u16, arguments: &[&str]) -> (i32, Value) {
    bench_until(name, port, arguments, || false)
}

/// The same, interrupted as by a terminal's Ctrl-C as soon as `is_enough`.
fn bench_until(
    name: &str,
    port: u16,
    arguments: &[&str],
    mut is_enough: impl FnMut() -> bool,
) -> (i32, Value) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|broken| broken.into_inner());
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    if out.exists() {
        std::fs::remove_dir_all(&out).unwrap();
    }
    let mut child = Command::new(env!("CARGO_BIN_EXE_corecast-bench"))
        .args(arguments)
        .args(["--pid", &std::process::id().to_string()])
        .args(["--url", &format!("ws://127.0.0.1:{port}/ws?room={{room}}")])
        .args(["--publish", "http", "--receivers", "poll:1ms", "--warm-up", "50ms"])
        .arg("--out")
        .arg(&out)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut errors = child.stderr.take().unwrap();
    let said = std::thread::spawn(move || {
        let mut said = Vec::new();
        errors.read_to_end(&mut said).unwrap();
        String::from_utf8_lossy(&said).into_owned()
    });
    while child.try_wait().unwrap().is_none() {
        if is_enough() {
            let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
            assert!(interrupted.success());
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let status = child.wait().unwrap();
    let said = said.join().unwrap();
    let file =
        std::fs::read_dir(&out).unwrap_or_else(|_| panic!("no results: {said}")).next().unwrap().unwrap();
    let results = serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap();
    (status.code().unwrap(), results)
}

fn phases<'a>(results: &'a Value, side: &'a str) -> impl Iterator<Item = &'a Value> {
    results["outcomes"][0]["phases"].as_array().unwrap().iter().filter(move |phase| phase["side"] == side)
}

const FANOUT: [&str; 15] = [
    "fanout",
    "--clients",
    "20",
    "--receiver-processes",
    "2",
    "--rate",
    "100",
    "--bytes",
    "64",
    "--runs",
    "2",
    "--duration",
    "300ms",
    "--rooms",
    "2",
];

#[test]
fn an_honest_server_and_the_floor_deliver_everything_once_and_in_order() {
    let (code, results) = bench("honest", serve(HONEST), &FANOUT);
    assert_eq!(code, 0);
    for side in ["server", "floor"] {
        assert_eq!(phases(&results, side).count(), 2, "{side}");
        for phase in phases(&results, side) {
            // 30 messages to rooms of ten, of the floor's sockets too.
            let owed = 300;
            assert_eq!((&phase["expected"], &phase["counts"]["delivered"]), (&owed.into(), &owed.into()));
            assert_eq!(phase["missing"], 0);
            assert_eq!(phase["latency"]["count"], owed);
        }
    }
}

#[test]
fn a_server_that_loses_and_repeats_and_swaps_is_found_out() {
    // Of ten messages to a room the fourth is sent after the fifth, the seventh twice, the ninth not at all.
    let mischief: Mischief = |number| match number % 10 {
        3 | 8 => &[],
        4 => &[0, -1],
        6 => &[0, 0],
        _ => &[0],
    };
    let mut arguments = FANOUT.to_vec();
    arguments.push("--no-floor");
    let (code, results) = bench("mischief", serve(mischief), &arguments);
    assert_eq!(code, 1, "losses are no success");
    let sum = |field: &str| {
        phases(&results, "server").map(|phase| phase["counts"][field].as_u64().unwrap()).sum::<u64>()
    };
    // Two runs of 15 messages to each of two rooms of ten members, after a warm-up of 5 messages (3 and 2): the room with
    // 3 sees its messages 3 to 32, the other its 2 to 31. Of those, three each are swapped, repeated and left out.
    assert_eq!(sum("out_of_order"), 2 * 3 * 10);
    assert_eq!(sum("duplicates"), 2 * 3 * 10);
    assert_eq!(sum("gaps"), 2 * 3 * 10);
    let missing: u64 = phases(&results, "server").map(|phase| phase["missing"].as_u64().unwrap()).sum();
    assert_eq!(missing, 2 * 3 * 10);
}

#[test]
fn what_was_lost_before_an_interrupt_is_still_told() {
    static PUBLISHED: AtomicU64 = AtomicU64::new(0);
    let mischief: Mischief = |number| {
        PUBLISHED.fetch_max(number, Ordering::Relaxed);
        if number % 4 == 3 { &[] } else { &[0] }
    };
    let arguments =
        ["fanout", "--clients", "4", "--receiver-processes", "1", "--rate", "100", "--bytes", "64"];
    let arguments = [&arguments[..], &["--runs", "1", "--duration", "10m", "--no-floor"]].concat();
    // Past the warm-up of 5 messages.
    let is_enough = || PUBLISHED.load(Ordering::Relaxed) > 40;
    let (code, results) = bench_until("interrupted", serve(mischief), &arguments, is_enough);
    assert_eq!((code, &results["interrupted"]), (130, &true.into()));
    let missing: u64 = phases(&results, "server").map(|phase| phase["missing"].as_u64().unwrap()).sum();
    assert!(missing >= 4 * 8, "every fourth of more than 35 to each of four: {missing}");
    assert_eq!(results["outcomes"][0]["flaws"].as_array().unwrap().len(), 1);
}

/// A storm on a quiet machine takes less than 100 ms: each room gets some forty messages even then.
const STORM: [&str; 11] =
    ["storm", "--clients", "20", "--rooms", "2", "--rate", "1000", "--bytes", "64", "--runs", "1"];

/// What stands under `field` in the account of the first run.
fn of_account(results: &Value, field: &str) -> u64 {
    results["outcomes"][0]["details"][0]["account"][field].as_u64().unwrap()
}

#[test]
fn who_comes_back_to_an_honest_server_has_lost_nothing() {
    let (code, results) = bench("storm-honest", serve(HONEST), &STORM);
    assert_eq!(code, 0, "{}", results["outcomes"][0]["flaws"]);
    assert_eq!(of_account(&results, "lost"), 0);
    let (came, missed) = (of_account(&results, "delivered"), of_account(&results, "absent"));
    assert_eq!(came + missed, of_account(&results, "owed"));
}

#[test]
fn a_server_that_loses_every_other_message_while_clients_come_and_go_is_found_out() {
    // The very first is lost, so that a storm that is over with the second has lost something too.
    let mischief: Mischief = |number| if number % 2 == 0 { &[] } else { &[0] };
    let soak = [&SOAK[..], &["--for", "1s"]].concat();
    for arguments in [&STORM[..], &soak] {
        let (code, results) = bench(&format!("{}-lossy", arguments[0]), serve(mischief), arguments);
        assert_eq!(code, 1, "{}: losses are no success", arguments[0]);
        assert!(of_account(&results, "lost") > 0);
    }
}

const SOAK: [&str; 17] = [
    "soak",
    "--clients",
    "20",
    "--rooms",
    "2",
    "--rate",
    "200",
    "--burst",
    "0",
    "--bytes",
    "64",
    "--slow-every",
    "0",
    "--interval",
    "50ms",
    "--growth-max",
    "8MiB",
];

/// Nobody leaves by itself.
const STAYING: [&str; 4] = ["--leaving", "0", "--for", "4s"];

fn flaws(results: &Value) -> String {
    results["outcomes"][0]["flaws"].to_string()
}

#[test]
fn a_server_that_goes_deaf_and_then_lets_go_has_lost_what_was_due_meanwhile() {
    // 100 messages a second to each of two rooms: deaf from 0.5 s to 3 s, then honest to who comes back.
    let mischief: Mischief = |number| match number {
        50..300 => &[],
        300 => &[LET_GO],
        _ => &[0],
    };
    let (code, results) = bench("soak-deaf", serve(mischief), &[&SOAK[..], &STAYING].concat());
    assert_eq!(code, 1, "losses are no success");
    // Of 250 messages to each of 20 clients those of the last second may have been under way.
    let lost = of_account(&results, "lost");
    assert!((20 * 100..=20 * 250).contains(&lost), "{lost}");
    assert!(flaws(&results).contains("lost by connections that were there"), "{}", flaws(&results));
    assert!(!flaws(&results).contains("balance"), "{}", flaws(&results));
}

#[test]
fn a_server_that_closes_who_reads_is_found_out() {
    let mischief: Mischief = |number| if number == 100 { &[0, CLOSE] } else { &[0] };
    let (code, results) = bench("soak-closing", serve(mischief), &[&SOAK[..], &STAYING].concat());
    assert_eq!((code, of_account(&results, "lost")), (1, 0), "{}", flaws(&results));
    assert!(flaws(&results).contains("read all along were closed"), "{}", flaws(&results));
    let counts = &results["outcomes"][0]["details"][0]["account"]["counts"];
    assert_eq!(counts["closes"], serde_json::json!({"1013": 20}));
}

#[test]
fn a_server_whose_memory_grows_with_each_message_is_found_out() {
    // A page and more for each of 200 messages a second, to each of two rooms in turn: 25 MiB a second.
    let mischief: Mischief = |_| {
        std::mem::forget(vec![1u8; 128 << 10]);
        &[0]
    };
    let arguments = [&SOAK[..], &["--for", "1s"]].concat();
    let (code, results) = bench("soak-growing", serve(mischief), &arguments);
    assert_eq!(code, 1, "growth is no success");
    let flaws = results["outcomes"][0]["flaws"].as_array().unwrap();
    assert!(flaws.iter().any(|flaw| flaw.as_str().unwrap().contains("memory grew")), "{flaws:?}");
    assert_eq!(of_account(&results, "lost"), 0);
}

#[test]
fn a_closed_loop_never_has_more_than_its_window_under_way() {
    let arguments = [
        "saturate",
        "--clients",
        "10",
        "--windows",
        "1,4",
        "--runs",
        "1",
        "--duration",
        "200ms",
        "--bytes",
        "64",
    ];
    let (code, results) = bench("closed", serve(HONEST), &arguments);
    assert_eq!(code, 0);
    for phase in phases(&results, "server") {
        let messages = phase["sent"]["messages"].as_u64().unwrap();
        assert!(messages > 4, "{messages} messages in 200 ms");
        assert_eq!(phase["counts"]["delivered"], messages * 10);
        assert_eq!(phase["sent"]["stuck"], false);
    }
}

#[test]
fn connections_come_and_go_and_hear_themselves() {
    let port = serve(HONEST);
    let (code, results) =
        bench("churn", port, &["churn", "--handshakes", "300", "--parallel", "10", "--runs", "1"]);
    assert_eq!((code, &results["outcomes"][0]["details"][0]["done"]), (0, &300.into()));
    let echo = ["echo", "--clients", "20", "--rate", "20", "--echo-rate", "100", "--runs", "1"];
    let arguments: Vec<_> = echo.into_iter().chain(["--duration", "300ms", "--bytes", "64"]).collect();
    let (code, results) = bench("echo", port, &arguments);
    assert_eq!((code, &results["outcomes"][0]["details"][0]["lost"]), (0, &0.into()));
    assert!(results["outcomes"][0]["details"][0]["all"]["count"].as_u64().unwrap() > 10);
}
