//! Presets: named files of settings and tables that serve the users of another system.
//!
//! A preset is text of the same form as a configuration file, in `presets/NAME.toml`, and one row of [`PRESETS`]. What its
//! tables get on top: every route is also served below `/NAME`, and the tables of all but the first preset named live in
//! a name space of the preset's name, so that rooms of different presets never meet. A space that a preset's own tables
//! name becomes a part of that one.

use super::RoomClass;
use super::file::parse_layer;
use super::layers::{ConfigError, Layer, Origin};
use super::nearest::hint;

/// Name and text.
pub(super) type Preset = (&'static str, &'static str);

pub(super) const PRESETS: &[Preset] = &[
    ("event-fanout", include_str!("presets/event-fanout.toml")),
    ("workflow", include_str!("presets/workflow.toml")),
    ("backbone", include_str!("presets/backbone.toml")),
    ("broadcaster", include_str!("presets/broadcaster.toml")),
    ("star", include_str!("presets/star.toml")),
];

/// Every preset there is.
pub fn preset_names() -> impl Iterator<Item = &'static str> + Clone {
    PRESETS.iter().map(|(name, _)| *name)
}

/// The layers of `names`, in their order.
pub(super) fn preset_layers(
    presets: &[Preset],
    names: &[String],
    origin: &Origin,
    errors: &mut Vec<ConfigError>,
) -> Vec<Layer> {
    let known_names = || presets.iter().map(|(name, _)| *name);
    let mut layers = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let is_repeated = names[..index].contains(name);
        let Some((name, text)) = presets.iter().find(|(known, _)| known == name) else {
            if is_repeated {
                continue;
            }
            let known = known_names().collect::<Vec<_>>().join(", ");
            let near = hint(name, known_names());
            let near = if near.starts_with("did") { format!("{near} ") } else { String::new() };
            errors.push(origin.error("preset", format!("found the preset {name:?}; {near}known: {known}")));
            continue;
        };
        if is_repeated {
            errors.push(origin.error("preset", format!("the preset {name:?} is named twice: name it once")));
            continue;
        }
        layers.push(preset_layer(name, text, index == 0, errors));
    }
    layers
}

fn preset_layer(name: &str, text: &str, is_first: bool, errors: &mut Vec<ConfigError>) -> Layer {
    let mut layer = parse_layer(text, &|_, _| Origin::Preset(name.to_owned()), errors);
    let below: Vec<_> = layer
        .routes
        .iter()
        .map(|(route, origin)| {
            let mut route = route.clone();
            route.path = format!("/{name}{}", route.path);
            (route, origin.clone())
        })
        .collect();
    layer.routes.extend(below);
    for (route, _) in &mut layer.routes {
        route.preset = Some(name.to_owned());
    }
    if !is_first {
        move_inside(&mut layer, name);
    }
    layer
}

/// Puts a layer's tables into the space `name`.
fn move_inside(layer: &mut Layer, name: &str) {
    let inside = |space: &str| match space {
        "" => name.to_owned(),
        space => format!("{name}.{space}"),
    };
    layer.routes.iter_mut().for_each(|(route, _)| route.space = inside(&route.space));
    layer.sources.iter_mut().for_each(|(source, _)| source.space = inside(&source.space));
    // A class for every space becomes one for each that the preset has.
    let mut spaces: Vec<String> = layer.routes.iter().map(|(route, _)| route.space.clone()).collect();
    spaces.sort();
    spaces.dedup();
    for (class, origin) in std::mem::take(&mut layer.rooms) {
        let of_class = match &class.space {
            Some(space) => vec![inside(space)],
            None => spaces.clone(),
        };
        let copies = of_class.into_iter().map(|space| RoomClass { space: Some(space), ..class.clone() });
        layer.rooms.extend(copies.map(|class| (class, origin.clone())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_reads_without_fault_and_brings_its_port() {
        for (name, text) in PRESETS {
            let mut errors = Vec::new();
            let layer = preset_layer(name, text, true, &mut errors);
            assert!(errors.is_empty(), "{name}: {errors:?}");
            assert!(
                layer.settings.iter().any(|(setting, ..)| setting.name == "listen"),
                "{name} has no port"
            );
            assert!(layer.presets.is_none(), "{name} can't name presets");
            let below = format!("/{name}/");
            assert!(layer.routes.iter().any(|(route, _)| route.path.starts_with(&below)), "{name}: {below}");
        }
    }
}
