//! The Grafana dashboard and the alerts, asked of a real Prometheus that scrapes the real server.
//!
//! A query about a name or label that isn't on `/metrics` is no error to Prometheus: it answers with nothing. So each query
//! must answer with something, on io_uring and epoll, while there is traffic.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::deadline::{SOON, eventually_ok};
use crate::support::http;
use crate::support::publisher::Publisher;
use crate::support::redis::Redis;
use crate::support::server::{Driver, Server};
use crate::support::swarm::Swarm;
use crate::support::tool::{self, Tool};

const DASHBOARD: &str = "deploy/grafana/dashboards/corecast.json";

#[test]
fn every_query_of_the_dashboard_and_of_the_alerts_has_an_answer() {
    let redis = Redis::start();
    // One process, and several with their label and their alerts.
    let servers = [
        Server::event_fanout(&redis, Driver::IoUring).start(),
        Server::event_fanout(&redis, Driver::Epoll).processes(2).admin().start(),
    ];
    let swarm = Swarm::new();
    for server in &servers {
        swarm.add_many(server.address(), "/ws?room=lobby", 10);
    }
    swarm.wait_open();
    let load = Publisher::start(&redis, &["room:lobby".to_owned()], 'P', 64, 50);
    let prometheus = prometheus(&servers);
    eventually_ok(SOON, "both servers are scraped", || {
        match samples(&prometheus, "up{job=\"corecast\"} == 1") {
            Ok(2) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });

    for (title, query) in dashboard_queries() {
        eventually_ok(SOON, &format!("panel {title:?} shows something: {query}"), || {
            answered(&prometheus, &query)
        });
    }
    let rules = eventually_ok(SOON, "every alert was evaluated", || evaluated_rules(&prometheus));
    assert!(rules.len() >= 10, "{rules:?}");
    for (alert, query) in rules {
        let selectors = selectors(&query);
        assert!(!selectors.is_empty(), "{alert} asks for nothing: {query}");
        for selector in selectors {
            eventually_ok(SOON, &format!("{alert} asks for what is there: {selector}"), || {
                answered(&prometheus, &selector)
            });
        }
    }
    load.stop();
}

#[test]
fn the_dashboard_shows_what_operators_ask_for_first() {
    let queries: String = dashboard_queries().into_iter().map(|(_, query)| query + "\n").collect();
    for name in [
        "corecast_connections{",
        "corecast_deliveries_total{",
        "by (reason) (rate(corecast_drops_total{",
        "by (reason) (rate(corecast_gaps_total{",
        "by (reason) (rate(corecast_connections_closed_total{",
        "corecast_broker_up{",
        "corecast_broker_reconnects_total{",
        "corecast_ring_depth{",
        "corecast_ring_full_total{",
        "histogram_quantile(0.99, sum by (le) (rate(corecast_turn_seconds_bucket{",
        "histogram_quantile(0.99, sum by (le) (rate(corecast_delivery_seconds_bucket{",
        "process_resident_memory_bytes{",
        "process_open_fds{",
        "corecast_driver_info{",
    ] {
        assert!(queries.contains(name), "no panel asks for {name}");
    }
}

#[test]
fn the_dashboards_panels_have_names_and_do_not_overlap() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().expect("an id")).collect();
    assert_eq!(ids.len(), panels.len(), "ids are unique");
    let mut taken = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().filter(|title| !title.is_empty());
        let title = title.unwrap_or_else(|| panic!("a panel without a title: {panel}"));
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap_or_else(|| panic!("{title}: no {key}"));
        assert!(place("x") + place("w") <= 24, "{title} is wider than the page");
        for y in place("y")..place("y") + place("h") {
            for x in place("x")..place("x") + place("w") {
                assert!(taken.insert((x, y)), "{title} lies on another panel");
            }
        }
    }
}

#[test]
fn grafana_finds_the_dashboard_and_prometheus_where_compose_puts_them() {
    let read = |path: &str| std::fs::read_to_string(tool::repository(path)).expect("our file");
    let compose = read("deploy/compose.yaml");
    let provider = read("deploy/grafana/provisioning/dashboards/corecast.yaml");
    assert!(provider.contains("path: /var/lib/grafana/dashboards\n"), "{provider}");
    assert!(compose.contains("- ./grafana/dashboards:/var/lib/grafana/dashboards:ro\n"));
    assert!(compose.contains("- ./grafana/provisioning:/etc/grafana/provisioning:ro\n"));
    let source = read("deploy/grafana/provisioning/datasources/prometheus.yaml");
    assert!(source.contains("url: http://prometheus:9090\n"), "{source}");
    assert!(compose.contains("\n  prometheus:\n") && compose.contains(":9090:9090\"]"));
}

/// Prometheus with our configuration and rules, but other targets and intervals.
#[track_caller]
fn prometheus(servers: &[Server; 2]) -> Tool {
    let read = |path: &str| std::fs::read_to_string(tool::repository(path)).expect("our file");
    let targets = servers.each_ref().map(|server| format!("\"{}\"", server.admin_address())).join(", ");
    Tool::start("install Debian's package prometheus", |port, scratch| {
        let mut config = read("deploy/prometheus/prometheus.yml");
        for (from, to) in [
            ("scrape_interval: 15s", "scrape_interval: 200ms"),
            ("evaluation_interval: 15s", "evaluation_interval: 200ms"),
            ("[\"event-fanout:8081\"]", &format!("[{targets}]")),
        ] {
            assert_eq!(config.matches(from).count(), 1, "{from:?} stands in prometheus.yml once");
            config = config.replace(from, to);
        }
        scratch.write("corecast.rules.yml", &read("deploy/prometheus/corecast.rules.yml"));
        let mut command = tool::command("prometheus");
        command
            .arg(format!("--config.file={}", scratch.write("prometheus.yml", &config).display()))
            .arg(format!("--storage.tsdb.path={}", scratch.path("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"));
        command
    })
}

fn dashboard() -> Value {
    let text = std::fs::read_to_string(tool::repository(DASHBOARD)).expect("our file");
    serde_json::from_str(&text).expect("the dashboard is JSON")
}

/// Title and query of each target of each panel, and of each variable, with Grafana's variables filled in.
#[track_caller]
fn dashboard_queries() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let text =
        |value: &Value| value.as_str().unwrap_or_else(|| panic!("text was due, found {value}")).to_owned();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            queries.push((text(&panel["title"]), text(&target["expr"])));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().expect("variables") {
        let Some(query) = variable["query"]["query"].as_str() else { continue };
        let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (series, label) =
            inside.and_then(|inside| inside.rsplit_once(", ")).expect("label_values(series, label)");
        queries.push((
            text(&variable["name"]),
            format!("count by ({label}) ({series}) and on ({label}) {series}"),
        ));
    }
    assert!(queries.len() > 40, "{} queries", queries.len());
    let filled = |query: String| {
        let query =
            query.replace("$job", "corecast").replace("$instance", ".*").replace("$__rate_interval", "5s");
        assert!(!query.contains('$'), "a variable that this test doesn't know: {query}");
        query
    };
    queries.into_iter().map(|(title, query)| (title, filled(query))).collect()
}

/// How many series answer `query`.
///
/// # Errors
/// What Prometheus says of a query that it can't read, and answers that are no numbers.
fn samples(prometheus: &Tool, query: &str) -> Result<usize, String> {
    let answer = ask(prometheus, &format!("/api/v1/query?query={}", encoded(query)))?;
    let result = answer["data"]["result"].as_array().ok_or_else(|| answer.to_string())?;
    match result.iter().find(|series| series["value"][1] == "NaN") {
        Some(series) => Err(format!("{series} is no number")),
        None => Ok(result.len()),
    }
}

fn answered(prometheus: &Tool, query: &str) -> Result<(), String> {
    match samples(prometheus, query)? {
        0 => Err("nothing answers".to_owned()),
        _ => Ok(()),
    }
}

/// Name and query of each alert, once Prometheus has evaluated all of them without a fault.
fn evaluated_rules(prometheus: &Tool) -> Result<Vec<(String, String)>, String> {
    let answer = ask(prometheus, "/api/v1/rules")?;
    let groups = answer["data"]["groups"].as_array().ok_or_else(|| answer.to_string())?;
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten());
    rules
        .map(|rule| match (rule["health"].as_str(), rule["name"].as_str(), rule["query"].as_str()) {
            (Some("ok"), Some(name), Some(query)) => Ok((name.to_owned(), query.to_owned())),
            _ => Err(rule.to_string()),
        })
        .collect()
}

fn ask(prometheus: &Tool, target: &str) -> Result<Value, String> {
    // HTTP/1.0: an answer of 1.1 may come in chunks.
    let request = format!("GET {target} HTTP/1.0\r\nHost: {}\r\n\r\n", prometheus.address());
    let response =
        http::exchange(prometheus.address(), request.as_bytes()).map_err(|error| error.to_string())?;
    let answer: Value = serde_json::from_slice(&response.body).map_err(|error| error.to_string())?;
    if answer["status"] == "success" { Ok(answer) } else { Err(answer.to_string()) }
}

fn encoded(query: &str) -> String {
    query.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// The instant vector selectors of a PromQL expression: `name` or `name{...}`.
fn selectors(query: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut found = BTreeSet::new();
    let mut rest = query;
    while let Some(first) = rest.chars().next() {
        let skipped = match first {
            '[' => rest.find(']').map_or(rest.len(), |end| end + 1),
            c if is_name(c) => {
                let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
                let (name, after) = (&rest[..end], rest[end..].trim_start());
                if LABEL_LISTS.contains(&name) {
                    rest.find(')').map_or(rest.len(), |end| end + 1)
                } else if after.starts_with('{') {
                    let end = rest.find('}').map_or(rest.len(), |end| end + 1);
                    found.insert(rest[..end].to_owned());
                    end
                } else {
                    let is_word = after.starts_with('(') || AGGREGATIONS.contains(&name);
                    if !is_word && !name.starts_with(|c: char| c.is_ascii_digit()) {
                        found.insert(name.to_owned());
                    }
                    // A number's fraction and exponent belong to it.
                    end
                }
            }
            c => c.len_utf8(),
        };
        rest = &rest[skipped..];
    }
    found
}

#[test]
fn selectors_are_found_in_an_expression() {
    let query = r#"sum by (job, reason) (rate(a_total{reason=~"slow_.*"}[5m])) / on (job) group_left () b{x="y"} > 0.01 * c"#;
    let found: Vec<String> = selectors(query).into_iter().collect();
    assert_eq!(found, [r#"a_total{reason=~"slow_.*"}"#, r#"b{x="y"}"#, "c"]);
}

const LABEL_LISTS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
/// Words that stand before a label list, so that no parenthesis follows at once.
const AGGREGATIONS: [&str; 8] = ["sum", "min", "max", "avg", "count", "and", "or", "unless"];
