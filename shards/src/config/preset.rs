//! Presets: named files of settings and tables that serve the users of another system.
//!
//! A preset is text of the same form as a configuration file, in `presets/NAME.toml`, and one row of [`PRESETS`]. What its
//! tables get on top: every route is also served below `/NAME`, and the tables of all but the first preset named live in
//! a name space of the preset's name, so that rooms of different presets never meet.

use super::file::parse_layer;
use super::layers::{ConfigError, Layer, Origin};
use super::nearest::hint;

/// Name and text.
pub(super) type Preset = (&'static str, &'static str);

pub(super) const PRESETS: &[Preset] = &[("event-fanout", include_str!("presets/event-fanout.toml"))];

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
        let Some((name, text)) = presets.iter().find(|(known, _)| known == name) else {
            let known = known_names().collect::<Vec<_>>().join(", ");
            let near = hint(name, known_names());
            let near = if near.starts_with("did") { format!("{near} ") } else { String::new() };
            errors.push(origin.error("preset", format!("found the preset {name:?}; {near}known: {known}")));
            continue;
        };
        if names[..index].iter().any(|earlier| earlier == name) {
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
        layer.routes.iter_mut().for_each(|(route, _)| route.space = name.to_owned());
        layer.rooms.iter_mut().for_each(|(class, _)| class.space = Some(name.to_owned()));
        layer.sources.iter_mut().for_each(|(source, _)| source.space = name.to_owned());
    }
    layer
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
