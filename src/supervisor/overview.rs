//! The pages of the admin address that are about all processes: each is asked, and their answers make one.

use std::io;
use std::iter;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use serde_json::{Map, Value, json};
use shards::request::HttpError;

use super::ask::{self, Answer, GATHER_TIMEOUT, READINESS_TIMEOUT};
use super::board::{View, Views};
use super::page;
use super::passing::ending;

/// What one process said to a question that all were asked.
pub struct Said {
    process: usize,
    /// Its id where it leaves: its place may have another one.
    leaving: Option<u32>,
    answer: Answer,
}

/// The answers of the processes that serve or leave; one that is dying, or too busy, has none.
///
/// # Errors
/// What one refuses because of the question, all refuse.
pub fn gather(views: &Views, bytes: &[u8]) -> Result<Vec<Said>, HttpError> {
    let all = views.places.iter().enumerate().flat_map(|(process, view)| {
        let serves = (process, None, view.door.as_deref());
        let leave = view.leaving.iter().map(move |one| (process, Some(one.pid), one.door.as_deref()));
        iter::once(serves).chain(leave)
    });
    let mut answers = ask_all(all, &ending(bytes, "GET"), GATHER_TIMEOUT);
    let is_refusal = |said: &&Said| matches!(said.answer.status, 400..500);
    if let Some(Said { answer, .. }) = answers.iter().find(is_refusal) {
        let refusal = HttpError::new(answer.status, answer.text().trim_end().to_owned());
        return Err(match answer.status {
            401 => refusal.with_fields(&[("WWW-Authenticate", "Bearer realm=\"corecast\"")]),
            _ => refusal,
        });
    }
    answers.retain(|said| {
        let is_answer = said.answer.status == 200;
        if !is_answer {
            let (process, status) = (said.process, said.answer.status);
            tracing::warn!(process, status, "a process refused a question on the admin address");
        }
        is_answer
    });
    Ok(answers)
}

/// All at once: the slowest decides how long it takes.
fn ask_all<'a>(
    doors: impl Iterator<Item = (usize, Option<u32>, Option<&'a OwnedFd>)>,
    request: &[u8],
    patience: Duration,
) -> Vec<Said> {
    thread::scope(|scope| {
        let asked: Vec<_> = doors
            .filter_map(|(process, leaving, door)| {
                let door = door?;
                let ask = move || ask::ask(door, request, patience);
                let asked = thread::Builder::new().name("ask".to_owned()).spawn_scoped(scope, ask).ok()?;
                Some((process, leaving, asked))
            })
            .collect();
        let said = |(process, leaving, asked): (_, _, thread::ScopedJoinHandle<'_, io::Result<Answer>>)| {
            match asked.join() {
                Ok(Ok(answer)) => Some(Said { process, leaving, answer }),
                Ok(Err(error)) => {
                    tracing::warn!(process, %error, "a process did not answer a question on the admin address");
                    None
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        };
        asked.into_iter().filter_map(said).collect()
    })
}

/// Ready with one process that is: it takes clients on the port of all.
pub fn readiness(views: &Views, bytes: &[u8]) -> (u16, String) {
    let serving =
        views.places.iter().enumerate().map(|(process, view)| (process, None, view.door.as_deref()));
    let answers = match views.is_leaving {
        true => Vec::new(),
        false => ask_all(serving, &ending(bytes, "GET"), READINESS_TIMEOUT),
    };
    let is_ready =
        |process: usize| answers.iter().any(|said| said.process == process && said.answer.status == 200);
    let told: Vec<Value> = (0..views.places.len())
        .map(|process| json!({"process": process, "ready": is_ready(process)}))
        .collect();
    let ready = (0..views.places.len()).filter(|process| is_ready(*process)).count();
    let page = json!({"ready": ready, "processes": told, "draining": views.is_leaving});
    (if ready > 0 { 200 } else { 503 }, format!("{page}\n"))
}

/// The families of all, those of a process that leaves with a label of their own: its counters go on beside those of its
/// successor, which begin anew.
pub fn metrics(views: &Views, answers: &[Said]) -> String {
    let labels = |said: &Said| match said.leaving {
        None => format!("process=\"{}\"", said.process),
        Some(pid) => format!("process=\"{}\",leaving=\"{pid}\"", said.process),
    };
    let pages: Vec<_> = answers.iter().map(|said| (labels(said), said.answer.text())).collect();
    let mut page = page::merge(&pages);
    let serving = views.places.iter().filter(|view| view.door.is_some()).count();
    let mut family = |name: &str, kind: &str, help: &str, samples: &[String]| {
        page.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        page.extend(samples.iter().map(|sample| format!("{name}{sample}\n")));
    };
    family("corecast_processes", "gauge", "Processes that serve.", &[format!(" {serving}")]);
    let wanted = [format!(" {}", views.places.len())];
    family("corecast_processes_wanted", "gauge", "Processes that are to serve (--processes).", &wanted);
    let up: Vec<String> = (0..views.places.len())
        .map(|process| {
            format!("{{process=\"{process}\"}} {}", u8::from(answer_of(answers, process).is_some()))
        })
        .collect();
    let help = "1 where the process that serves has answered: 0 is missing in what is summed over all.";
    family("corecast_process_up", "gauge", help, &up);
    let restarts: Vec<String> = views
        .places
        .iter()
        .enumerate()
        .map(|(process, view)| format!("{{process=\"{process}\"}} {}", view.restarts))
        .collect();
    let help = "Starts after a death; those of a rolling restart are not counted unless they fail.";
    family("corecast_process_restarts_total", "counter", help, &restarts);
    let rolling = [format!(" {}", u8::from(views.is_rolling))];
    family("corecast_rolling_restart", "gauge", "1 while a rolling restart is under way.", &rolling);
    page
}

/// What the parent and each process know, and the sum.
///
/// # Errors
/// 503 where no process answered: it is they who know who may see this.
pub fn stats(views: &Views, answers: &[Said]) -> Result<Value, HttpError> {
    if answers.is_empty() {
        return Err(HttpError::new(503, "no process answers at the moment: try again later"));
    }
    let content =
        |said: &Said| serde_json::from_slice::<Map<String, Value>>(said.answer.body()).unwrap_or_default();
    let processes: Vec<Value> = views
        .places
        .iter()
        .enumerate()
        .map(|(process, view)| {
            let mut page = told(process, view);
            let answer = answer_of(answers, process);
            page.insert("answered".to_owned(), answer.is_some().into());
            page.extend(answer.map(content).unwrap_or_default());
            Value::Object(page)
        })
        .collect();
    let leaving: Vec<Value> = answers
        .iter()
        .filter_map(|said| {
            let mut page = content(said);
            page.insert("process".to_owned(), said.process.into());
            page.insert("pid".to_owned(), said.leaving?.into());
            Some(Value::Object(page))
        })
        .collect();
    let total = page::total(processes.iter().chain(&leaving));
    Ok(json!({"rolling": views.is_rolling, "total": total, "processes": processes, "leaving": leaving}))
}

/// That of the process which serves at a place.
fn answer_of(answers: &[Said], process: usize) -> Option<&Said> {
    answers.iter().find(|said| said.process == process && said.leaving.is_none())
}

/// What the parent knows of a process.
fn told(process: usize, view: &View) -> Map<String, Value> {
    let leaving: Vec<u32> = view.leaving.iter().map(|one| one.pid).collect();
    Map::from_iter([
        ("process".to_owned(), process.into()),
        ("pid".to_owned(), view.pid.into()),
        ("serves".to_owned(), view.door.is_some().into()),
        ("leaving".to_owned(), leaving.into()),
        ("restarts".to_owned(), view.restarts.into()),
        ("status".to_owned(), view.status.clone().into()),
    ])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::supervisor::ask::doors;

    #[test]
    fn nobody_who_serves_is_not_ready_and_all_of_the_places_are_told() {
        let places = vec![View::default(), View { restarts: 3, ..View::default() }];
        let views = Views { places, ..Views::default() };
        let (status, body) = readiness(&views, b"GET /readyz HTTP/1.1\r\n\r\n");
        assert_eq!(status, 503);
        assert!(body.contains("\"ready\":0"), "{body}");
        let page = metrics(&views, &[]);
        assert!(page.contains("\ncorecast_process_restarts_total{process=\"1\"} 3\n"), "{page}");
    }

    fn places(doors: Vec<Arc<OwnedFd>>) -> Views {
        let place = |door| View { door: Some(door), ..View::default() };
        Views { places: doors.into_iter().map(place).collect(), ..Views::default() }
    }

    const QUESTION: &[u8] = b"GET /stats HTTP/1.1\r\nHost: a\r\n\r\n";
    const PAGE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"rooms\":7}";

    #[test]
    fn who_does_not_answer_is_told_and_hides_nobody() {
        let busy = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
        let views = places(vec![doors::dead(), doors::answering(PAGE), doors::answering(busy)]);
        let answers = gather(&views, QUESTION).expect("one answers");
        let page = stats(&views, &answers).expect("one answers");
        let answered = [0, 1, 2].map(|process: usize| page["processes"][process]["answered"] == true);
        assert_eq!(answered, [false, true, false], "{page}");
        assert_eq!(
            (&page["total"]["rooms"], &page["total"]["answered"]),
            (&7.into(), &false.into()),
            "{page}"
        );
        let page = metrics(&views, &[]);
        assert!(page.contains("\ncorecast_process_up{process=\"1\"} 0\n"), "{page}");
    }

    #[test]
    fn what_the_gate_of_one_refuses_is_refused_and_without_any_answer_nothing_is_told() {
        let refusal = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 4\r\n\r\nkey\n";
        let views = places(vec![doors::answering(refusal), doors::dead()]);
        let refused = gather(&views, QUESTION).map(drop).expect_err("it is refused");
        assert_eq!((refused.status, &*refused.message), (401, "key"));
        let views = places(vec![doors::dead()]);
        let answers = gather(&views, QUESTION).expect("nobody refuses");
        assert_eq!(stats(&views, &answers).expect_err("nobody judges").status, 503);
    }
}
