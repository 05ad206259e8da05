//! Which room a publication over HTTP is for: the one that its query would join.

use std::borrow::Cow;
use std::convert::Infallible;

use super::{RouteError, Routes, full_name, is_name, missing_parameter, name_fault, not_forbidden};
use crate::config::{Route, Template, TemplatePart};

/// Names a room where a route has none of its own.
const ROOM: &str = "room";
const PUBLISH: &str = "/publish";
const JOIN: &str = "/ws";

impl Routes {
    /// The path whose rooms are published to at `path`: `/ws` for `/publish`, and `/NAME/ws` for `/NAME/publish` where there
    /// is such a route. `None` for every other path, and for one that is a route itself.
    pub fn joining_path(&self, path: &str) -> Option<String> {
        if path == PUBLISH {
            return Some(JOIN.to_owned());
        }
        self.beside(path, PUBLISH)
    }

    /// The path of the WebSockets beside `path`, which ends in `name`: `/NAME/ws` for `/NAME/sse`, where there is such a route.
    /// `None` for a path that is a route itself.
    pub fn beside(&self, path: &str, name: &str) -> Option<String> {
        let joining = format!("{}{JOIN}", path.strip_suffix(name)?);
        let has = |path: &str| self.routes.iter().any(|route| route.path == path);
        (has(&joining) && !has(path)).then_some(joining)
    }

    /// Whether `/ws?room=NAME` joins one room on listener `listener`, without a key, and `/publish?room=NAME` reaches it.
    pub fn has_room_by_name(&self, listener: usize, name: &str) -> bool {
        let query = |parameter: &str| Ok::<_, Infallible>((parameter == ROOM).then_some(Cow::Borrowed(name)));
        let published = self.room_to_publish(listener, JOIN, query).ok();
        let joined = self.resolve(listener, JOIN, query).ok().filter(|joined| !joined.key);
        published.zip(joined).is_some_and(|(room, joined)| joined.rooms == [room])
    }

    /// Full name of the room that a publication is for: what a request for `joining_path` with this query would join on
    /// listener `listener`.
    ///
    /// Where the path joins no room by its query, or one that the query doesn't choose, `room` names one in the space of that
    /// route; at the plain path without a fitting route, one in the plain space, if any route has rooms by that name.
    ///
    /// # Errors
    /// [`RouteError`], as [`resolve`](Self::resolve); [`RouteError::Rooms`] for a list of rooms.
    pub fn room_to_publish<'q, E>(
        &self,
        listener: usize,
        joining_path: &str,
        query: impl Fn(&str) -> Result<Option<Cow<'q, str>>, E>,
    ) -> Result<String, RouteError<E>> {
        let named = query(ROOM).map_err(RouteError::Query)?.filter(|name| !name.is_empty());
        let mut resolved = match self.resolve(listener, joining_path, query) {
            Ok(resolved) => resolved,
            Err(error @ (RouteError::Missing(_) | RouteError::NotFound)) => {
                let is_plain = joining_path == JOIN && self.routes.iter().any(has_rooms_by_name);
                return match named {
                    Some(name) if is_plain => named_room("", &name),
                    _ => Err(error),
                };
            }
            Err(error) => return Err(error),
        };
        let route = self.routes.get(resolved.route_index);
        let is_chosen = route.is_none_or(|route| route.when_query.is_some() || takes(&route.room, ROOM));
        match named {
            Some(name) if !is_chosen || resolved.rooms.is_empty() => {
                route.map_or(Ok(()), |route| not_forbidden(route, &name))?;
                named_room(&resolved.space, &name)
            }
            _ => match resolved.rooms.len() {
                0 => Err(RouteError::Missing(missing_parameter(ROOM))),
                1 => Ok(resolved.rooms.swap_remove(0)),
                found => Err(RouteError::Rooms { found, due: 1 }),
            },
        }
    }
}

/// Whether the route's rooms are named by `room` in the query, or by messages.
fn has_rooms_by_name(route: &Route) -> bool {
    route.room.parts.is_empty() || takes(&route.room, ROOM)
}

fn takes(template: &Template, parameter: &str) -> bool {
    template.parts.iter().any(|part| matches!(part, TemplatePart::Query(name) if name == parameter))
}

fn named_room<E>(space: &str, name: &str) -> Result<String, RouteError<E>> {
    if !is_name(name) {
        return Err(RouteError::Room(name_fault(name)));
    }
    Ok(full_name(space, name))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::{File, Inputs, load};

    /// What `POST target` publishes to on the first listener.
    fn room(presets: &str, file: &str, target: &str) -> Result<String, String> {
        let presets = (!presets.is_empty()).then(|| presets.split(',').map(str::to_owned).collect());
        let file = Some(File { name: "test.toml", text: file });
        let inputs = Inputs { presets, file, node_id: "n1".to_owned(), ..Inputs::default() };
        let routes = Routes::new(&load(&inputs).unwrap_or_else(|errors| panic!("{errors}")).config);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query: BTreeMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        let path = routes.joining_path(path).ok_or("404")?;
        let query = |name: &str| Ok::<_, String>(query.get(name).map(|value| Cow::Borrowed(*value)));
        routes.room_to_publish(0, &path, query).map_err(|error| format!("{} {error}", error.status()))
    }

    fn refused(sentence: &str) -> Result<String, String> {
        Err(sentence.to_owned())
    }

    #[test]
    fn what_would_join_a_room_publishes_to_it() {
        assert_eq!(room("", "", "/publish?room=lobby"), Ok("lobby".to_owned()));
        assert_eq!(room("workflow", "", "/publish?username=alice"), Ok("user\u{1f}alice".to_owned()));
        assert_eq!(
            room("workflow", "", "/workflow/publish?username=alice"),
            Ok("user\u{1f}alice".to_owned())
        );
        let both = |target| room("event-fanout,workflow", "", target);
        assert_eq!(both("/publish?username=alice"), Ok("workflow.user\u{1f}alice".to_owned()));
        assert_eq!(both("/publish?room=alice"), Ok("alice".to_owned()));
        assert_eq!(both("/event-fanout/publish?room=alice"), Ok("alice".to_owned()));
        let everybody = room("broadcaster", "", "/publish");
        assert_eq!(everybody, room("broadcaster", "", "/broadcaster/publish"));
        assert!(everybody.is_ok(), "{everybody:?}");
    }

    #[test]
    fn what_would_join_nothing_publishes_nowhere() {
        assert_eq!(room("", "", "/publish"), refused("400 missing parameter room"));
        assert_eq!(room("workflow", "", "/publish"), refused("400 username is required"));
        assert_eq!(room("workflow", "", "/publish?room=lobby"), refused("400 username is required"));
        assert_eq!(
            room("workflow", "", "/publish?username=a:b"),
            refused("400 found ':' in a name, which may not hold it here")
        );
        assert_eq!(
            room("event-fanout,workflow", "", "/publish?room=a&username=b"),
            refused("400 found both room and username in the query, due one of them")
        );
        assert_eq!(room("workflow", "", "/nobody/publish?username=a"), refused("404"));
        let list =
            "[[route]]\npath = \"/ws\"\nwhen_query = \"rooms\"\nroom = \"{query.rooms}\"\nseparator = \",\"";
        assert_eq!(room("", list, "/publish?rooms=a,b"), refused("400 found 2 rooms, due at most 1"));
        assert_eq!(room("", list, "/publish?rooms=a"), Ok("a".to_owned()));
    }

    #[test]
    fn another_parameter_never_turns_one_users_publication_to_another() {
        assert_eq!(
            room("workflow", "", "/publish?username=alice&room=bob"),
            Ok("user\u{1f}alice".to_owned())
        );
    }

    #[test]
    fn a_room_by_name_is_reached_where_the_path_itself_joins_another_or_none() {
        assert_eq!(room("broadcaster", "", "/publish?room=x"), Ok("x".to_owned()));
        let elsewhere = "[[route]]\npath = \"/chat\"\nwhen_query = \"room\"\nroom = \"{query.room}\"";
        assert_eq!(room("", elsewhere, "/publish?room=x"), Ok("x".to_owned()));
        let long = "x".repeat(256);
        assert!(
            room("", elsewhere, &format!("/publish?room={long}"))
                .unwrap_err()
                .starts_with("400 the room's name has 256 bytes")
        );
    }

    #[test]
    fn a_route_of_ones_own_goes_before_publishing() {
        let own = "[[route]]\npath = \"/a/ws\"\nroom = \"r\"\n[[route]]\npath = \"/a/publish\"\nroom = \"s\"";
        assert_eq!(room("", own, "/a/publish"), refused("404"));
    }
}
