//! The page at `/admin/stats`, as JSON.

use serde_json::{Map, Value, json};

use super::{AGES, Listed, Survey};
use crate::route::{plain_name, space_of};
use crate::setup::Setup;

/// One object: counts, the busiest rooms and users, connections by route and age.
pub fn page(setup: &Setup, survey: &Survey, uptime_seconds: u64) -> String {
    let (totals, identity) = (&survey.totals, &setup.metrics.identity);
    let page = json!({
        "version": identity.version,
        "node": identity.node_id,
        "presets": identity.presets,
        "shards": setup.metrics.shards.len(),
        "uptime_seconds": uptime_seconds,
        "filter": filter(survey),
        "connections": totals.connections,
        "stalled": totals.stalled,
        "users": survey.users,
        "rooms": survey.rooms,
        "complete": survey.is_complete,
        "ages": ages(survey),
        "by_route": by_route(setup, survey),
        "busiest_users": survey.busiest_users.iter().map(user).collect::<Vec<_>>(),
        "busiest_rooms": survey.busiest_rooms.iter().map(room).collect::<Vec<_>>(),
    });
    format!("{page}\n")
}

fn filter(survey: &Survey) -> Value {
    let wanted = &survey.wanted;
    let given = [("username", &wanted.user), ("room", &wanted.room)];
    let given =
        given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.as_deref()?.into())));
    Value::Object(given.collect())
}

fn ages(survey: &Survey) -> Value {
    let names = AGES.iter().map(|(_, name)| *name).chain(["older"]);
    let mut ages: Map<String, Value> =
        names.zip(survey.totals.ages).map(|(name, n)| (name.to_owned(), n.into())).collect();
    ages.insert("oldest_seconds".to_owned(), survey.totals.oldest_seconds.into());
    Value::Object(ages)
}

fn by_route(setup: &Setup, survey: &Survey) -> Vec<Value> {
    let counted = survey.totals.by_route.iter().enumerate().filter(|(_, connections)| **connections > 0);
    let route = |(index, connections): (usize, &u64)| {
        let route = setup.routes.route(index)?;
        Some(json!({
            "path": route.path,
            "when_query": route.when_query,
            "preset": route.preset,
            "connections": connections,
        }))
    };
    counted.filter_map(route).collect()
}

fn user(listed: &Listed) -> Value {
    json!({
        "username": &*listed.name,
        "connections": listed.sum.members,
        "stalled": listed.sum.stalled,
        "bytes_behind": listed.sum.bytes_behind,
    })
}

fn room(listed: &Listed) -> Value {
    json!({
        "room": plain_name(&listed.name),
        "space": space_of(&listed.name),
        "members": listed.sum.members,
        "stalled": listed.sum.stalled,
        "bytes_behind": listed.sum.bytes_behind,
    })
}
