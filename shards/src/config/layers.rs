//! From preset, file, environment and flags to one [`Config`], with the place every value came from.

use std::collections::BTreeMap;
use std::fmt;

use super::environment::parse_environment;
use super::file::parse_layer;
use super::input::Input;
use super::nearest::hint;
use super::preset::{PRESETS, Preset, preset_layers};
use super::servers::choose_servers;
use super::settings::{BrokerKind, Combine, Draft, SETTINGS, Setting};
use super::validate::validate;
use super::{
    BrokerChoice, Config, RedisAddress, RedisServer, RedisTarget, RoomClass, Route, Source, Subscribe,
};

/// All that decides a configuration, as text.
#[derive(Debug, Default)]
pub struct Inputs<'a> {
    /// The configuration file.
    pub file: Option<File<'a>>,
    /// The whole environment.
    pub environment: BTreeMap<String, String>,
    /// Setting (as in [`Setting::name`]) and value of each flag given; a flag given twice is two values with a comma.
    pub flags: Vec<(String, String)>,
    /// The presets that flags name, if they name any.
    pub presets: Option<Vec<String>>,
    /// What `node_id` is when nothing says it.
    pub node_id: String,
}

/// A configuration file.
#[derive(Debug, Clone, Copy)]
pub struct File<'a> {
    /// Its name, for errors.
    pub name: &'a str,
    /// Its content.
    pub text: &'a str,
}

/// A configuration, and what there is to say about it.
#[derive(Debug)]
pub struct Loaded {
    /// What the server obeys.
    pub config: Config,
    /// What an operator should be told at start-up.
    pub warnings: Vec<Warning>,
    /// Where each value came from.
    pub provenance: Provenance,
}

impl Loaded {
    /// Whether somebody has said what `setting` is.
    pub fn is_said(&self, setting: &str) -> bool {
        self.provenance.settings.contains_key(setting)
    }

    /// Whether tables `[[redis]]` name the servers.
    pub fn names_servers(&self) -> bool {
        !self.provenance.servers.is_empty()
    }

    /// A value that only the machine or another library could judge was refused: as a fault of where it came from.
    pub fn refused(&self, setting: &str, message: impl Into<String>) -> ConfigErrors {
        let origin = self.provenance.settings.get(setting).cloned().unwrap_or_default();
        ConfigErrors(vec![origin.error(setting, message)])
    }
}

/// A sentence for the operator: nothing is wrong enough to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning(pub String);

/// Where the values of a [`Config`] came from.
#[derive(Debug, Default)]
pub struct Provenance {
    pub(super) settings: BTreeMap<&'static str, Origin>,
    pub(super) presets: Origin,
    /// Parallel to [`Config::routes`].
    pub(super) routes: Vec<Origin>,
    /// Parallel to [`Config::rooms`].
    pub(super) rooms: Vec<Origin>,
    /// Parallel to [`Config::sources`].
    pub(super) sources: Vec<Origin>,
    /// Name and place of each table `[[redis]]`.
    pub(super) servers: Vec<(String, Origin)>,
    /// The password to Redis is `REDIS_PASSWORD`'s.
    pub(super) password_from_variable: bool,
}

/// Where a value came from; a later variant overrides an earlier one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Origin {
    /// Corecast itself.
    #[default]
    Default,
    /// The preset of this name.
    Preset(String),
    /// A file, counting from 1.
    File {
        /// As [`File::name`].
        name: String,
        /// Line.
        line: usize,
        /// Column, in characters.
        column: usize,
    },
    /// The variable of this name.
    Variable(String),
    /// The flag of this setting.
    Flag(String),
}

/// One fault: where, which key, and what was found, what was due, what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", prefix(.origin, .key))]
pub struct ConfigError {
    /// Where it is.
    pub origin: Origin,
    /// The key.
    pub key: String,
    /// The sentence.
    pub message: String,
}

/// Every fault there is, one a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines(.0))]
pub struct ConfigErrors(pub Vec<ConfigError>);

/// Values of one origin.
#[derive(Default)]
pub(super) struct Layer {
    pub settings: Vec<(&'static Setting, Input, Origin)>,
    pub presets: Option<(Vec<String>, Origin)>,
    pub routes: Vec<(Route, Origin)>,
    pub rooms: Vec<(RoomClass, Origin)>,
    pub sources: Vec<(Source, Origin)>,
    pub servers: Vec<(RedisServer, Origin)>,
}

/// Merges `inputs`: flags over environment over file over presets over corecast's own defaults.
///
/// Tables add up instead: the file's come before the presets', and replace those with the same condition, class name or
/// subscription. Corecast's own route and source hold only where no one else has any; its room class comes last.
///
/// # Errors
/// Every fault of every layer and of their combination.
pub fn load(inputs: &Inputs<'_>) -> Result<Loaded, ConfigErrors> {
    load_with(PRESETS, inputs)
}

/// As [`load`], with these presets.
pub(super) fn load_with(presets: &[Preset], inputs: &Inputs<'_>) -> Result<Loaded, ConfigErrors> {
    let known_presets = presets;
    let mut errors = Vec::new();
    let mut warnings = Vec::new();
    let file = inputs.file.map_or_else(Layer::default, |file| {
        let origin = |line, column| Origin::File { name: file.name.to_owned(), line, column };
        parse_layer(file.text, &origin, &mut errors)
    });
    let environment = parse_environment(&inputs.environment, &inputs.flags, &mut errors, &mut warnings);
    let flags = flag_layer(inputs, &mut errors);

    let (presets, presets_origin) = [&flags, &environment.layer, &file]
        .into_iter()
        .find_map(|layer| layer.presets.clone())
        .unwrap_or_default();
    let preset_layers = preset_layers(known_presets, &presets, &presets_origin, &mut errors);

    let mut draft = Draft::default();
    draft.config.node_id.clone_from(&inputs.node_id);
    let mut provenance = Provenance { presets: presets_origin, ..Provenance::default() };
    merge_presets(&preset_layers, &mut draft, &mut provenance, &mut errors);
    for layer in [&file, &environment.layer, &flags] {
        for (setting, input, origin) in &layer.settings {
            apply(setting, input, origin, &mut draft, &mut errors);
            provenance.settings.insert(setting.name, origin.clone());
        }
    }
    let mut file = file;
    match std::mem::take(&mut file.servers) {
        tables if tables.is_empty() => {
            choose_broker(
                &mut draft,
                environment.redis_password,
                &mut provenance,
                &mut errors,
                &mut warnings,
            );
        }
        tables => {
            let variables = &inputs.environment;
            choose_servers(tables, variables, &mut draft, &mut provenance, &mut errors, &mut warnings);
        }
    }
    let mut config = draft.config;
    config.listen_presets = listen_presets(&config, &preset_layers, &presets);
    check_listeners(&config, &presets, &provenance, &mut errors);
    config.presets = presets;
    let mut preset_layers = preset_layers;
    for layer in preset_layers.iter_mut().chain([&mut file]) {
        name_channels(layer, &inputs.environment, &mut errors);
    }
    merge_tables(file, preset_layers, &mut config, &mut provenance, &mut errors, &mut warnings);
    validate(&config, &provenance, &mut errors, &mut warnings);
    if errors.is_empty() {
        return Ok(Loaded { config, warnings, provenance });
    }
    errors.sort_by_key(|error| error.origin.rank());
    Err(ConfigErrors(errors))
}

fn flag_layer(inputs: &Inputs<'_>, errors: &mut Vec<ConfigError>) -> Layer {
    let mut layer = Layer::default();
    if let Some(names) = &inputs.presets {
        layer.presets = Some((names.clone(), Origin::Flag("preset".to_owned())));
    }
    for (name, text) in &inputs.flags {
        let origin = Origin::Flag(name.clone());
        match Setting::named(name) {
            Some(setting) => layer.settings.push((setting, Input::Word(text.clone()), origin)),
            None => {
                let known = SETTINGS.iter().map(|setting| setting.name);
                errors.push(origin.error(name, format!("unknown setting; {}", hint(name, known))));
            }
        }
    }
    layer
}

fn apply(
    setting: &Setting,
    input: &Input,
    origin: &Origin,
    draft: &mut Draft,
    errors: &mut Vec<ConfigError>,
) {
    if let Err(wrong) = (setting.apply)(draft, input) {
        errors.push(origin.error(setting.name, wrong.to_string()));
    }
}

/// Gives each setting the presets' value, by the setting's own rule where several have one.
fn merge_presets(
    layers: &[Layer],
    draft: &mut Draft,
    provenance: &mut Provenance,
    errors: &mut Vec<ConfigError>,
) {
    for (setting, input, origin) in layers.iter().flat_map(|layer| &layer.settings) {
        let known = provenance.settings.contains_key(setting.name);
        let wins = match &setting.combine {
            _ if !known => {
                apply(setting, input, origin, draft, errors);
                true
            }
            Combine::First => false,
            Combine::Join(join) => {
                let mut other = Draft::default();
                apply(setting, input, origin, &mut other, errors);
                join(&mut draft.config, &other.config);
                false
            }
            Combine::Largest(measure) | Combine::Smallest(measure) => {
                let mut other = Draft::default();
                apply(setting, input, origin, &mut other, errors);
                let is_larger = measure(&other.config) > measure(&draft.config);
                let is_smaller = measure(&other.config) < measure(&draft.config);
                let wins =
                    if matches!(setting.combine, Combine::Largest(_)) { is_larger } else { is_smaller };
                if wins {
                    apply(setting, input, origin, draft, errors);
                }
                wins
            }
        };
        if wins {
            provenance.settings.insert(setting.name, origin.clone());
        }
    }
}

/// Of `broker` and `redis` the one said in the higher layer decides; in the same layer `broker` does.
fn choose_broker(
    draft: &mut Draft,
    password_variable: Option<String>,
    provenance: &mut Provenance,
    errors: &mut Vec<ConfigError>,
    warnings: &mut Vec<Warning>,
) {
    let origin = |name| provenance.settings.get(name).cloned().unwrap_or_default();
    let (kind_origin, target_origin) = (origin("broker"), origin("redis"));
    let is_redis = match (draft.broker, &draft.redis) {
        (Some(_), Some(_)) if target_origin.level() > kind_origin.level() => true,
        (Some(kind), _) => kind == BrokerKind::Redis,
        (None, target) => target.is_some(),
    };
    if !is_redis {
        if draft.broker.is_some() && draft.redis.is_some() && kind_origin.level() == target_origin.level() {
            let (kind, target) = (kind_origin.bare_key("broker"), target_origin.bare_key("redis"));
            warnings.push(Warning(format!("{kind} is local, so {target} is not used: leave one out")));
        }
        return;
    }
    let local = RedisAddress::Tcp { host: "localhost".to_owned(), port: 6379 };
    let mut target = draft.redis.clone().unwrap_or(RedisTarget {
        address: local,
        username: None,
        password: None,
        database: 0,
        tls: None,
    });
    if let Err((key, message)) = draft.redis_tls.put_into(&mut target, "--redis-") {
        let key = format!("redis_{key}");
        let origin = provenance.settings.get(key.as_str()).cloned().unwrap_or_default();
        errors.push(origin.error(&key, message));
    }
    if let Some(password) = password_variable {
        let variable_level = Origin::Variable(String::new()).level();
        match &target.password {
            Some(own) if target_origin.level() >= variable_level => {
                if *own != password {
                    let target = target_origin.bare_key("redis");
                    warnings.push(Warning(format!(
                        "the password in {target} wins over REDIS_PASSWORD, which is another: unset one"
                    )));
                }
            }
            _ => {
                target.password = Some(password);
                provenance.password_from_variable = true;
            }
        }
    }
    draft.config.broker = BrokerChoice::redis(target);
    // Which setting made it Redis is what `config show` should name.
    if draft.broker != Some(BrokerKind::Redis) {
        provenance.settings.insert("broker", target_origin);
    }
}

/// An address can only be the own one of a preset that is there.
fn check_listeners(
    config: &Config,
    presets: &[String],
    provenance: &Provenance,
    errors: &mut Vec<ConfigError>,
) {
    for preset in config.listen_presets.iter().flatten().filter(|preset| !presets.contains(preset)) {
        let origin = provenance.settings.get("listen").cloned().unwrap_or_default();
        let message = format!("found the preset {preset:?}, which is not in use: name it in --preset too");
        errors.push(origin.error("listen", message));
    }
}

/// For each address the preset that it was given to, or else the one whose own port it has.
fn listen_presets(config: &Config, layers: &[Layer], names: &[String]) -> Vec<Option<String>> {
    let ports: Vec<(u16, &String)> = layers
        .iter()
        .zip(names)
        .flat_map(|(layer, name)| {
            let mut own = Draft::default();
            own.config.listen.clear();
            for (setting, input, _) in &layer.settings {
                if setting.name == "listen" {
                    // A fault in it has been collected when the layer was merged.
                    let _ = (setting.apply)(&mut own, input);
                }
            }
            own.config.listen.into_iter().map(move |address| (address.port(), name))
        })
        .collect();
    let owner = |port| ports.iter().find(|(own, _)| *own == port).map(|(_, name)| (*name).clone());
    let listeners = config.listen.iter().zip(&config.listen_presets);
    listeners.map(|(address, given)| given.clone().or_else(|| owner(address.port()))).collect()
}

/// Gives the sources whose channel a variable may name the channel that it names.
fn name_channels(layer: &mut Layer, variables: &BTreeMap<String, String>, errors: &mut Vec<ConfigError>) {
    for (source, origin) in &mut layer.sources {
        let Some(variable) = &source.variable else { continue };
        let Some(channel) = variables.get(variable).filter(|channel| !channel.is_empty()) else { continue };
        *origin = Origin::Variable(variable.clone());
        match Subscribe::parse(&format!("subscribe {channel}")) {
            Ok(subscribe @ Subscribe::Channel(_)) => source.subscribe = subscribe,
            Ok(_) => errors.push(origin.error(
                variable,
                format!("found {channel:?}, due the name of one channel, without a place {{1}}"),
            )),
            Err(wrong) => errors.push(origin.error(variable, wrong.to_string())),
        }
    }
}

fn merge_tables(
    file: Layer,
    presets: Vec<Layer>,
    config: &mut Config,
    provenance: &mut Provenance,
    errors: &mut Vec<ConfigError>,
    warnings: &mut Vec<Warning>,
) {
    find_twins(&file, errors);
    let (mut routes, mut rooms, mut sources) = (file.routes, file.rooms, file.sources);
    let (file_routes, file_rooms, file_sources) = (routes.clone(), rooms.clone(), sources.clone());
    // The first preset's classes hold in every space, so those of single spaces come before them.
    let mut first_classes = None;
    for mut layer in presets {
        layer.routes.retain(|(route, _)| {
            let replaces = |own: &Route| own.preset.is_none() || own.preset == route.preset;
            !file_routes.iter().any(|(own, _)| same_condition(own, route) && replaces(own))
        });
        layer.rooms.retain(|(class, _)| !file_rooms.iter().any(|(own, _)| same_class(own, class)));
        layer.sources.retain(|(source, _)| {
            !file_sources.iter().any(|(own, _)| same_feed(own, source) || same_variable(own, source))
        });
        routes.append(&mut layer.routes);
        sources.append(&mut layer.sources);
        match first_classes {
            None => first_classes = Some(layer.rooms),
            Some(_) => rooms.append(&mut layer.rooms),
        }
    }
    rooms.extend(first_classes.unwrap_or_default());

    if routes.is_empty() {
        routes.push((Route::default(), Origin::Default));
    }
    if sources.is_empty() {
        sources.push((Source::default(), Origin::Default));
    }
    let matches_all = |class: &RoomClass| class.name == "*" && class.space.is_none();
    if let Some(last) = rooms.iter().position(|(class, _)| matches_all(class)) {
        for (class, origin) in rooms.drain(last + 1..) {
            if origin.level() > Origin::Preset(String::new()).level() {
                let name = class.name;
                warnings.push(Warning(format!("{origin}: no room reaches the class {name:?}, because one before it matches every name: move it up")));
            }
        }
    } else {
        rooms.push((RoomClass::default(), Origin::Default));
    }
    (config.routes, provenance.routes) = routes.into_iter().unzip();
    (config.rooms, provenance.rooms) = rooms.into_iter().unzip();
    (config.sources, provenance.sources) = sources.into_iter().unzip();
}

/// Tables of one file that say the same thing twice.
fn find_twins(file: &Layer, errors: &mut Vec<ConfigError>) {
    for (index, (route, origin)) in file.routes.iter().enumerate() {
        let twin = file.routes[..index]
            .iter()
            .find(|(other, _)| same_condition(other, route) && other.preset == route.preset);
        if let Some((_, earlier)) = twin {
            let condition = route.when_query.as_ref().map_or(String::new(), |name| format!(" with ?{name}="));
            let path = &route.path;
            errors.push(origin.error(
                "route",
                format!("{path}{condition} is already the route of {earlier}: change path or when_query"),
            ));
        }
    }
    for (index, (class, origin)) in file.rooms.iter().enumerate() {
        let twin = file.rooms[..index].iter().find(|(other, _)| same_class(other, class));
        if let Some((_, earlier)) = twin {
            errors.push(origin.error(
                "room",
                format!("the class {:?} is already there at {earlier}: leave one out", class.name),
            ));
        }
    }
    for (index, (source, origin)) in file.sources.iter().enumerate() {
        if let Some((_, earlier)) = file.sources[..index].iter().find(|(other, _)| same_feed(other, source)) {
            let text = source.subscribe.to_string();
            errors.push(origin.error(
                "source",
                format!("{text:?} feeds the same rooms as the source of {earlier}: leave one out"),
            ));
        }
    }
}

fn same_condition(a: &Route, b: &Route) -> bool {
    a.path == b.path && a.when_query == b.when_query
}

fn same_class(a: &RoomClass, b: &RoomClass) -> bool {
    a.name == b.name && a.space == b.space
}

fn same_feed(a: &Source, b: &Source) -> bool {
    a.subscribe == b.subscribe && a.room == b.room && a.space == b.space
}

/// One source whose channel a variable names: whoever wrote it down has the channel that the variable named then.
fn same_variable(a: &Source, b: &Source) -> bool {
    a.variable.is_some() && a.variable == b.variable && a.room == b.room && a.space == b.space
}

impl Origin {
    /// A fault here.
    pub(super) fn error(&self, key: &str, message: impl Into<String>) -> ConfigError {
        ConfigError { origin: self.clone(), key: key.to_owned(), message: message.into() }
    }

    /// Precedence.
    pub(super) fn level(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::Preset(_) => 1,
            Self::File { .. } => 2,
            Self::Variable(_) => 3,
            Self::Flag(_) => 4,
        }
    }

    /// Its name in a sentence.
    pub(super) fn bare(&self) -> String {
        match self {
            Self::Variable(name) => name.clone(),
            Self::Flag(name) => format!("--{}", name.replace('_', "-")),
            _ => self.to_string(),
        }
    }

    /// Its name in a sentence, with the key where the origin alone doesn't say it.
    fn bare_key(&self, key: &str) -> String {
        match self {
            Self::Variable(_) | Self::Flag(_) => self.bare(),
            _ => format!("{key} ({self})"),
        }
    }

    fn rank(&self) -> (u8, usize, usize) {
        match self {
            Self::File { line, column, .. } => (self.level(), *line, *column),
            _ => (self.level(), 0, 0),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Preset(name) => write!(f, "preset {name}"),
            Self::File { name, line, .. } => write!(f, "{name}:{line}"),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::Flag(_) => write!(f, "flag {}", self.bare()),
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn prefix(origin: &Origin, key: &str) -> String {
    match origin {
        Origin::File { name, line, column } => format!("{name}:{line}:{column}: {key}: "),
        Origin::Variable(_) | Origin::Flag(_) => format!("{}: ", origin.bare()),
        _ => format!("{origin}: {key}: "),
    }
}

fn lines(errors: &[ConfigError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
