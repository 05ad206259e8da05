//! The pages of several processes as one: `/metrics` with a label, `/stats` with a sum.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// The families of several Prometheus pages (text format 0.0.4), each declared once, with the labels that stand before a page
/// on each of its samples.
///
/// Families stand in the order of the first page that has them; a family's lines must follow each other on each page, as
/// the format demands.
pub fn merge(pages: &[(String, String)]) -> String {
    let mut families: Vec<Family> = Vec::new();
    let mut known: HashMap<&str, usize> = HashMap::new();
    for (labels, page) in pages {
        let mut current = None;
        for line in page.lines() {
            if let Some((name, declaration)) = declared(line) {
                let at = *known.entry(name).or_insert_with(|| {
                    families.push(Family::default());
                    families.len() - 1
                });
                let head = &mut families[at].head;
                // HELP and TYPE, of the first page that has them.
                if !head.iter().any(|line| line.starts_with(declaration)) {
                    head.push(line);
                }
                current = Some(at);
            } else if let Some(at) = current
                && !line.is_empty()
            {
                families[at].samples.push_str(&labelled(line, labels));
                families[at].samples.push('\n');
            }
        }
    }
    let mut merged = String::with_capacity(pages.iter().map(|(_, page)| page.len() * 3 / 2).sum());
    for family in &families {
        for line in &family.head {
            merged.push_str(line);
            merged.push('\n');
        }
        merged.push_str(&family.samples);
    }
    merged
}

#[derive(Default)]
struct Family<'a> {
    head: Vec<&'a str>,
    samples: String,
}

/// The family that `line` declares, and what begins such a line.
fn declared(line: &str) -> Option<(&str, &str)> {
    let rest = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE "))?;
    Some((rest.split(' ').next()?, &line[.."# HELP ".len()]))
}

/// `sample` with `ours` before its other labels: a name holds neither brace nor space, a label's value may.
fn labelled(sample: &str, ours: &str) -> String {
    let name_ends = sample.find(['{', ' ']).unwrap_or(sample.len());
    let (name, rest) = sample.split_at(name_ends);
    match rest.strip_prefix('{') {
        Some(labels) if labels.starts_with('}') => format!("{name}{{{ours}{labels}"),
        Some(labels) => format!("{name}{{{ours},{labels}"),
        None => format!("{name}{{{ours}}}{rest}"),
    }
}

/// The numbers of several objects added up, and what is true of all of them; what is neither is left out, and so is what only
/// names one of them.
pub fn total<'a>(objects: impl Iterator<Item = &'a Value>) -> Value {
    let mut total = Map::new();
    for object in objects.filter_map(Value::as_object) {
        add(&mut total, object);
    }
    Value::Object(total)
}

/// Names of one process, not amounts.
const NAMES: [&str; 3] = ["process", "pid", "restarts"];

fn add(total: &mut Map<String, Value>, object: &Map<String, Value>) {
    for (key, value) in object.iter().filter(|(key, _)| !NAMES.contains(&key.as_str())) {
        match value {
            Value::Number(_) | Value::Bool(_) => {
                let sum = total.get(key).map_or_else(|| value.clone(), |sum| sum_of(sum, value));
                total.insert(key.clone(), sum);
            }
            Value::Object(inner) => {
                let sums = total.entry(key.clone()).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(sums) = sums {
                    add(sums, inner);
                }
            }
            Value::Null | Value::String(_) | Value::Array(_) => {}
        }
    }
}

fn sum_of(a: &Value, b: &Value) -> Value {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Value::Bool(*a && *b),
        _ => match (a.as_u64(), b.as_u64()) {
            (Some(a), Some(b)) => a.saturating_add(b).into(),
            _ => (a.as_f64().unwrap_or(0.0) + b.as_f64().unwrap_or(0.0)).into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(process: usize) -> String {
        format!("process=\"{process}\"")
    }

    #[test]
    fn a_family_is_declared_once_and_its_samples_stand_together() {
        let page = |n| {
            format!(
                "# HELP a_total As.\n# TYPE a_total counter\na_total {n}\n# HELP b Bs.\n# TYPE b gauge\n\
                 b{{le=\"+Inf\",x=\"}} 1\"}} {n}\nb{{}} {n}\n"
            )
        };
        let merged = merge(&[(of(0), page(1)), (of(2), page(5))]);
        let due = "# HELP a_total As.\n# TYPE a_total counter\na_total{process=\"0\"} 1\na_total{process=\"2\"} 5\n\
                   # HELP b Bs.\n# TYPE b gauge\nb{process=\"0\",le=\"+Inf\",x=\"} 1\"} 1\nb{process=\"0\"} 1\n\
                   b{process=\"2\",le=\"+Inf\",x=\"} 1\"} 5\nb{process=\"2\"} 5\n";
        assert_eq!(merged, due);
    }

    #[test]
    fn a_family_that_only_one_process_has_is_told_too() {
        let merged = merge(&[
            (of(0), "# HELP a A.\n# TYPE a gauge\na 1\n".to_owned()),
            (of(1), "# HELP z Z.\n# TYPE z gauge\nz 1\n# HELP a Another.\n# TYPE a gauge\na 2\n".to_owned()),
        ]);
        let due = "# HELP a A.\n# TYPE a gauge\na{process=\"0\"} 1\na{process=\"1\"} 2\n\
                   # HELP z Z.\n# TYPE z gauge\nz{process=\"1\"} 1\n";
        assert_eq!(merged, due);
    }

    #[test]
    fn numbers_are_added_up_and_truths_must_hold_for_all() {
        let pages = [
            json!({"process": 0, "rooms": 2, "closed": {"x": 1}, "up": true, "busy": 0.5, "shards": [1]}),
            json!({"process": 1, "rooms": 3, "closed": {"x": 1, "y": 4}, "up": false, "busy": 1, "driver": "epoll"}),
        ];
        let due = json!({"rooms": 5, "closed": {"x": 2, "y": 4}, "up": false, "busy": 1.5});
        assert_eq!(total(pages.iter()), due);
    }
}
