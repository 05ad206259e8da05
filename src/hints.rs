//! What a newcomer may try first, for the log of a server that was started with hardly a flag. Only what would work.

use std::net::SocketAddr;

use shards::config::{BrokerChoice, Config};
use shards::route::Routes;

/// Sentences with addresses to open and commands to paste; none where Redis or a preset has its own users, who know theirs.
pub fn of(config: &Config, routes: &Routes, listen: &[SocketAddr], admin: Option<SocketAddr>) -> Vec<String> {
    let is_first_try = config.broker == BrokerChoice::Local && config.presets.is_empty();
    let Some(public) = listen.first().filter(|_| is_first_try && routes.has_room_by_name(0, ROOM)) else {
        return Vec::new();
    };
    let mut hints = vec![format!("open http://{}/?room={ROOM} in a browser", reachable(*public))];
    // Without a key only this machine publishes, and only to a server that nobody else reaches.
    let is_private = admin.map_or(listen.iter().all(is_loopback), |admin| is_loopback(&admin));
    if config.api_key_file.is_none() && is_private {
        let address = reachable(admin.unwrap_or(*public));
        hints.push(format!("then: curl -d hello 'http://{address}/publish?room={ROOM}'"));
    }
    hints
}

const ROOM: &str = "lobby";

fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().is_loopback()
}

fn reachable(address: SocketAddr) -> String {
    match address.ip().is_unspecified() {
        true => format!("localhost:{}", address.port()),
        false => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use shards::config::{File, Inputs, load};

    use super::*;

    fn hints(file: &str, listen: &str, admin: Option<&str>) -> Vec<String> {
        let address = |text: &str| text.parse().expect("an address");
        let file = Some(File { name: "test.toml", text: file });
        let loaded =
            load(&Inputs { file, node_id: "n".to_owned(), ..Inputs::default() }).expect("it is sound");
        of(&loaded.config, &Routes::new(&loaded.config), &[address(listen)], admin.map(address))
    }

    #[test]
    fn without_a_word_it_is_the_page_and_a_publication() {
        let due = |address: &str| {
            let open = format!("open http://{address}/?room=lobby in a browser");
            vec![open, format!("then: curl -d hello 'http://{address}/publish?room=lobby'")]
        };
        assert_eq!(hints("", "127.0.0.1:8080", None), due("127.0.0.1:8080"));
        assert_eq!(hints("", "[::1]:8080", None), due("[::1]:8080"));
    }

    #[test]
    fn what_would_not_work_is_left_out() {
        let fixed = "[[route]]\npath = \"/fix\"\nroom = \"fixed\"\n";
        let list = "[[route]]\npath = \"/ws\"\nwhen_query = \"rooms\"\nroom = \"{query.rooms}\"\nseparator = \",\"\n";
        for file in [fixed, list, "redis = \"redis://h\"\n"] {
            assert_eq!(hints(file, "127.0.0.1:8080", None), [""; 0], "{file}");
        }
        let open = |file, listen, admin| {
            let hints = hints(file, listen, admin);
            assert!(hints.first().is_some_and(|hint| hint.starts_with("open http://")), "{hints:?}");
            hints[1..].join(" ")
        };
        assert_eq!(open("", "0.0.0.0:8080", None), "", "nobody publishes there without a key");
        assert_eq!(open("api_key_file = \"/key\"\n", "127.0.0.1:8080", None), "");
        let elsewhere = open("", "0.0.0.0:8080", Some("127.0.0.1:9"));
        assert_eq!(elsewhere, "then: curl -d hello 'http://127.0.0.1:9/publish?room=lobby'");
    }
}
