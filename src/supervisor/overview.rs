//! The pages of the admin address that are about all processes: each is asked, and their answers make one.

use std::io;
use std::thread;
use std::time::Duration;

use serde_json::{Map, Value, json};
use shards::request::HttpError;

use super::admin::no_answer;
use super::ask::{self, Answer, GATHER_TIMEOUT, READINESS_TIMEOUT};
use super::board::{View, Views};
use super::page;
use super::passing::ending;

/// Each serving process's answer to the same request; a process that is dying has none.
///
/// # Errors
/// What the first refuses, all refuse.
pub fn gather(views: &Views, bytes: &[u8]) -> Result<Vec<(usize, Answer)>, HttpError> {
    let request = ending(bytes, "GET");
    let mut answers = ask_all(views, &request, GATHER_TIMEOUT);
    if answers.iter().all(|(_, answer)| answer.status == 200) {
        return Ok(answers);
    }
    answers.retain(|(_, answer)| answer.status != 200);
    let (process, answer) = answers.swap_remove(0);
    Err(match answer.status {
        401 => HttpError::new(401, answer.text().trim_end().to_owned())
            .with_fields(&[("WWW-Authenticate", "Bearer realm=\"corecast\"")]),
        400..500 => HttpError::new(answer.status, answer.text().trim_end().to_owned()),
        status => no_answer(process, &format!("status {status}: {}", answer.text().trim_end())),
    })
}

/// All at once: the slowest decides how long it takes.
fn ask_all(views: &Views, request: &[u8], patience: Duration) -> Vec<(usize, Answer)> {
    thread::scope(|scope| {
        let asked: Vec<_> = views
            .places
            .iter()
            .enumerate()
            .filter_map(|(process, view)| Some((process, view.door.as_deref()?)))
            .filter_map(|(process, door)| {
                let ask = move || ask::ask(door, request, patience);
                Some((process, thread::Builder::new().name("ask".to_owned()).spawn_scoped(scope, ask).ok()?))
            })
            .collect();
        let answer = |(process, asked): (usize, thread::ScopedJoinHandle<'_, io::Result<Answer>>)| match asked
            .join()
        {
            Ok(Ok(answer)) => Some((process, answer)),
            Ok(Err(error)) => {
                tracing::warn!(process, %error, "a process did not answer a question on the admin address");
                None
            }
            Err(panic) => std::panic::resume_unwind(panic),
        };
        asked.into_iter().filter_map(answer).collect()
    })
}

/// Ready with one process that is: it takes clients on the port of all.
pub fn readiness(views: &Views, bytes: &[u8]) -> (u16, String) {
    let answers = match views.is_leaving {
        true => Vec::new(),
        false => ask_all(views, &ending(bytes, "GET"), READINESS_TIMEOUT),
    };
    let is_ready =
        |process: usize| answers.iter().any(|(found, answer)| *found == process && answer.status == 200);
    let told: Vec<Value> = (0..views.places.len())
        .map(|process| json!({"process": process, "ready": is_ready(process)}))
        .collect();
    let ready = (0..views.places.len()).filter(|process| is_ready(*process)).count();
    let page = json!({"ready": ready, "processes": told, "draining": views.is_leaving});
    (if ready > 0 { 200 } else { 503 }, format!("{page}\n"))
}

pub fn metrics(views: &Views, answers: &[(usize, Answer)]) -> String {
    let pages: Vec<_> = answers.iter().map(|(process, answer)| (*process, answer.text())).collect();
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

pub fn stats(views: &Views, answers: &[(usize, Answer)]) -> Value {
    let of = |process: usize| {
        let answer = answers.iter().find(|(found, _)| *found == process)?;
        serde_json::from_slice::<Map<String, Value>>(answer.1.body()).ok()
    };
    let processes: Vec<Value> = views
        .places
        .iter()
        .enumerate()
        .map(|(process, view)| {
            let mut page = told(process, view);
            page.extend(of(process).unwrap_or_default());
            Value::Object(page)
        })
        .collect();
    let total = page::total(processes.iter());
    json!({"rolling": views.is_rolling, "total": total, "processes": processes})
}

/// What the parent knows of a process.
fn told(process: usize, view: &View) -> Map<String, Value> {
    Map::from_iter([
        ("process".to_owned(), process.into()),
        ("pid".to_owned(), view.pid.into()),
        ("serves".to_owned(), view.door.is_some().into()),
        ("leaving".to_owned(), view.leaving.clone().into()),
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
