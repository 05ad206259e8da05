//! The pages of the admin address that are about all processes: each is asked, and their answers make one.

use std::io;
use std::iter;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use serde_json::{Map, Value, json};
use shards::request::HttpError;

use super::admin::no_answer;
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

/// The answers of the processes that serve or leave; one that is dying has none.
///
/// # Errors
/// What the first refuses, all refuse.
pub fn gather(views: &Views, bytes: &[u8]) -> Result<Vec<Said>, HttpError> {
    let all = views.places.iter().enumerate().flat_map(|(process, view)| {
        let serves = (process, None, view.door.as_deref());
        let leave = view.leaving.iter().map(move |one| (process, Some(one.pid), one.door.as_deref()));
        iter::once(serves).chain(leave)
    });
    let mut answers = ask_all(all, &ending(bytes, "GET"), GATHER_TIMEOUT);
    if answers.iter().all(|said| said.answer.status == 200) {
        return Ok(answers);
    }
    answers.retain(|said| said.answer.status != 200);
    let Said { process, answer, .. } = answers.swap_remove(0);
    Err(match answer.status {
        401 => HttpError::new(401, answer.text().trim_end().to_owned())
            .with_fields(&[("WWW-Authenticate", "Bearer realm=\"corecast\"")]),
        400..500 => HttpError::new(answer.status, answer.text().trim_end().to_owned()),
        status => no_answer(process, &format!("status {status}: {}", answer.text().trim_end())),
    })
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

pub fn stats(views: &Views, answers: &[Said]) -> Value {
    let content =
        |said: &Said| serde_json::from_slice::<Map<String, Value>>(said.answer.body()).unwrap_or_default();
    let processes: Vec<Value> = views
        .places
        .iter()
        .enumerate()
        .map(|(process, view)| {
            let mut page = told(process, view);
            let answer = answers.iter().find(|said| said.process == process && said.leaving.is_none());
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
    json!({"rolling": views.is_rolling, "total": total, "processes": processes, "leaving": leaving})
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
    use super::*;

    #[test]
    fn nobody_who_serves_is_not_ready_and_all_of_the_places_are_told() {
        let places = vec![View::default(), View { restarts: 3, ..View::default() }];
        let views = Views { places, ..Views::default() };
        let (status, body) = readiness(&views, b"GET /readyz HTTP/1.1\r\n\r\n");
        assert_eq!(status, 503);
        assert!(body.contains("\"ready\":0"), "{body}");
        let page = metrics(&views, &[]);
        assert!(page.contains("\ncorecast_process_restarts_total{process=\"1\"} 3\n"), "{page}");
        assert_eq!(stats(&views, &[])["processes"][1]["restarts"], 3);
    }
}
