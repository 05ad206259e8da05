//! Profiles and knobs for people to read: `corecast tune list` and `corecast tune explain`.

use serde_json::{Value, json};

use crate::tune::columns::{columns, wrapped};
use crate::tune::knob::Knob;
use crate::tune::profile::{Profile, ProfileError, Refused, built_in_knobs, names, refused};

/// What a name means.
#[derive(Debug)]
pub enum Meaning {
    /// A profile.
    Profile(Profile),
    /// Knobs that are called so, and advice about it that is refused. One of them may be empty.
    Knobs(Vec<Knob>, Vec<Refused>),
}

/// Every profile, one line each.
///
/// # Errors
/// As [`built_in_knobs`].
pub fn profiles(is_json: bool) -> Result<String, ProfileError> {
    let profiles: Vec<Profile> =
        names().filter_map(|name| Profile::built_in(name).transpose()).collect::<Result<_, _>>()?;
    if is_json {
        return Ok(document(&Value::Array(profiles.iter().map(profile_json).collect())));
    }
    let row = |profile: &Profile| vec![profile.name.clone(), profile.title.clone()];
    Ok(columns(&profiles.iter().map(row).collect::<Vec<_>>()))
}

/// Every knob that is built in, one line each.
///
/// # Errors
/// As [`built_in_knobs`].
pub fn knobs(is_json: bool) -> Result<String, ProfileError> {
    let knobs = built_in_knobs()?;
    if is_json {
        return Ok(document(&Value::Array(knobs.iter().map(knob_json).collect())));
    }
    let head = ["knob", "scope", "due"].map(str::to_owned).to_vec();
    let row = |knob: &Knob| vec![knob.name.to_string(), knob.scope.to_string(), knob.due.to_string()];
    Ok(columns(&[vec![head], knobs.iter().map(row).collect()].concat()))
}

/// What people recommend and no profile sets, one line each.
///
/// # Errors
/// As [`built_in_knobs`].
pub fn advice(is_json: bool) -> Result<String, ProfileError> {
    let refused = refused()?;
    if is_json {
        return Ok(document(&Value::Array(refused.iter().map(refused_json).collect())));
    }
    let head = ["refused", "advice"].map(str::to_owned).to_vec();
    let row = |refused: &Refused| vec![refused.name.clone(), refused.advice.clone()];
    Ok(columns(&[vec![head], refused.iter().map(row).collect()].concat()))
}

/// What `name` means; `None` where it means nothing here.
///
/// A knob may be named by its last part (`somaxconn`).
///
/// # Errors
/// As [`built_in_knobs`].
pub fn meaning(name: &str) -> Result<Option<Meaning>, ProfileError> {
    if let Some(profile) = Profile::built_in(name)? {
        return Ok(Some(Meaning::Profile(profile)));
    }
    let is_meant = |known: &str| known == name || known.rsplit(['.', '/']).next() == Some(name);
    let mut knobs = built_in_knobs()?;
    knobs.retain(|knob| is_meant(&knob.name.to_string()));
    // Some are sentences, with a name in them; the list gives the sentence.
    let mut refused = refused()?;
    refused.retain(|refused| refused.name == name || refused.name.split(' ').any(is_meant));
    Ok((!knobs.is_empty() || !refused.is_empty()).then_some(Meaning::Knobs(knobs, refused)))
}

/// `meaning` in full.
pub fn explained(meaning: &Meaning, is_json: bool) -> String {
    match (meaning, is_json) {
        (Meaning::Profile(profile), true) => document(&profile_json(profile)),
        (Meaning::Profile(profile), false) => profile_text(profile),
        (Meaning::Knobs(knobs, refused), true) => document(&json!({
            "knobs": knobs.iter().map(knob_json).collect::<Vec<_>>(),
            "refused": refused.iter().map(refused_json).collect::<Vec<_>>(),
        })),
        (Meaning::Knobs(knobs, refused), false) => {
            let texts = knobs.iter().map(knob_text).chain(refused.iter().map(refused_text));
            texts.collect::<Vec<_>>().join("\n")
        }
    }
}

fn profile_text(profile: &Profile) -> String {
    let mut text = wrapped(&format!("{}: {}", profile.name, profile.title), "");
    if let Some(note) = &profile.note {
        text += &wrapped(note, "  ");
    }
    for knob in &profile.knobs {
        text += &format!("\n{}", knob_text(knob));
    }
    text
}

fn knob_text(knob: &Knob) -> String {
    let mut text = format!("{}  ({})\n", knob.name, knob.scope);
    let due = knob.due.to_string();
    for (head, part) in
        [("due", &due), ("reason", &knob.reason), ("risk", &knob.risk), ("evidence", &knob.evidence)]
    {
        text += &labelled(head, part);
    }
    text
}

fn refused_text(refused: &Refused) -> String {
    let mut text = format!("{}  (refused: no profile sets it)\n", refused.name);
    for (head, part) in
        [("advice", &refused.advice), ("why not", &refused.reason), ("instead", &refused.instead)]
    {
        text += &labelled(head, part);
    }
    text
}

/// `part` after `head`, its lines below each other.
fn labelled(head: &str, part: &str) -> String {
    let indent = " ".repeat(12);
    wrapped(part, &indent).replacen(&indent, &format!("  {head:<10}"), 1)
}

fn profile_json(profile: &Profile) -> Value {
    json!({
        "name": profile.name,
        "title": profile.title,
        "connections": profile.connections,
        "note": profile.note,
        "knobs": profile.knobs.iter().map(knob_json).collect::<Vec<_>>(),
    })
}

fn knob_json(knob: &Knob) -> Value {
    json!({
        "name": knob.name.to_string(),
        "scope": knob.scope,
        "due": knob.due.to_string(),
        "reason": knob.reason,
        "risk": knob.risk,
        "evidence": knob.evidence,
    })
}

fn refused_json(refused: &Refused) -> Value {
    let Refused { name, advice, reason, instead } = refused;
    json!({"name": name, "advice": advice, "reason": reason, "instead": instead})
}

/// A JSON document, for people too.
pub fn document(value: &Value) -> String {
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn text(name: &str) -> String {
        let meaning =
            meaning(name).expect("the files are good").unwrap_or_else(|| panic!("{name} means nothing"));
        explained(&meaning, false)
    }

    #[test]
    fn a_name_means_a_profile_a_knob_or_advice_that_is_refused() {
        assert!(text("100k").contains("\nnet.core.somaxconn  (network)\n"));
        assert!(
            text("tcp_slow_start_after_idle").starts_with("net.ipv4.tcp_slow_start_after_idle  (network)\n")
        );
        for name in ["tcp_tw_recycle", "net.ipv4.tcp_tw_recycle"] {
            assert!(
                text(name).contains("(refused: no profile sets it)") && text(name).contains("Linux 4.12")
            );
        }
        let both = text("somaxconn");
        assert!(
            both.contains("net.core.somaxconn  (network)")
                && both.contains("the application's backlog  (refused")
        );
        assert!(text("scaling_governor").contains("performance"));
        assert!(meaning("no_such_knob").expect("the files are good").is_none());
    }

    #[test]
    fn every_name_of_the_lists_is_explained() {
        let advice = refused().expect("the files are good").into_iter().map(|refused| refused.name);
        let knobs =
            built_in_knobs().expect("the files are good").into_iter().map(|knob| knob.name.to_string());
        for name in advice.chain(knobs).chain(names().map(str::to_owned)) {
            assert!(text(&name).contains(&name), "{name}");
        }
    }

    #[test]
    fn json_is_read_back() {
        for json in [profiles(true), knobs(true), advice(true)] {
            let json: Value = serde_json::from_str(&json.expect("the files are good")).expect("JSON");
            assert!(json.as_array().is_some_and(|array| array.len() >= 5));
        }
    }
}
