//! The configuration of a command: reads file and environment, and tells what is wrong with them.

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use shards::config::{ConfigErrors, File as ConfigFile, Inputs, Loaded, Origin};

use tracing_subscriber::EnvFilter;

use crate::cli::ConfigArgs;
use crate::exit::{CONFIG, Failure, NO_PERMISSION, USAGE};
use crate::logs;
use crate::output::{complain, print};

/// Longest configuration file: 100 times what a large one has.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What `args`, the environment and the file they name say.
///
/// # Errors
/// A [`Failure`] with every fault, one a line: 2 if all of them are in flags, 77 for a file that may not be read, else 78.
pub fn load(args: &ConfigArgs) -> anyhow::Result<Loaded> {
    load_with(args, environment())
}

/// The same for a command whose Redis `redis` names: a table `[[redis]]` of the file, or else a URL. Which of the servers that
/// is comes with it; `None` where nobody said.
///
/// # Errors
/// As [`load`].
pub fn load_naming(args: ConfigArgs, redis: Option<&str>) -> anyhow::Result<(Loaded, Option<usize>)> {
    let Some(redis) = redis else { return Ok((load(&args)?, None)) };
    let mut environment = environment();
    if environment.contains_key("CORECAST_CONFIG") {
        // The flags for TLS are those of a URL.
        let is_of_tls = |name: &str| name.starts_with("redis_");
        let settings = args.settings.iter().filter(|(name, _)| !is_of_tls(name)).cloned().collect();
        let presets = args.presets.clone();
        let loaded = load(&ConfigArgs { settings, presets, ..ConfigArgs::default() })?;
        let servers = loaded.config.broker.servers();
        if let Some(index) = servers.iter().position(|server| loaded.names_servers() && server.name == redis)
        {
            return Ok((load(&args)?, Some(index)));
        }
        if loaded.names_servers() {
            // A server that is none of the file's.
            environment.remove("CORECAST_CONFIG");
        }
    }
    let url = ("redis".to_owned(), redis.to_owned());
    let settings = std::iter::once(url).chain(args.settings).collect();
    Ok((load_with(&ConfigArgs { settings, ..args }, environment)?, Some(0)))
}

/// `check-config`: warnings on stderr, the verdict on stdout.
pub fn check(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    let loaded = load(args)?;
    level(&loaded)?;
    warn(&loaded);
    print("ok\n")?;
    Ok(ExitCode::SUCCESS)
}

/// What is to be logged.
///
/// # Errors
/// A [`Failure`] for a level that nothing understands.
pub fn level(loaded: &Loaded) -> Result<EnvFilter, Failure> {
    logs::parse_level(&loaded.config.log_level).map_err(|message| refusal(loaded, "log_level", message))
}

/// The value of `setting` was refused by the machine or a library.
pub fn refusal(loaded: &Loaded, setting: &str, message: String) -> Failure {
    failure(&loaded.refused(setting, message))
}

/// `config show`: warnings on stderr, the configuration on stdout.
pub fn show(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    let loaded = load(args)?;
    warn(&loaded);
    print(&shards::config::show(&loaded))?;
    Ok(ExitCode::SUCCESS)
}

/// The warnings of `loaded` on stderr, for commands without a log.
pub fn warn(loaded: &Loaded) {
    for warning in &loaded.warnings {
        complain!("corecast: warning: {warning}");
    }
}

fn load_with(args: &ConfigArgs, environment: BTreeMap<String, String>) -> anyhow::Result<Loaded> {
    let variable = environment.get("CORECAST_CONFIG").filter(|path| !path.is_empty());
    let path = args.file.clone().or_else(|| variable.map(PathBuf::from));
    let file =
        path.as_deref().map(|path| Ok::<_, Failure>((path.to_string_lossy(), read(path)?))).transpose()?;
    let inputs = Inputs {
        file: file.as_ref().map(|(name, text)| ConfigFile { name, text }),
        environment,
        flags: args.settings.clone(),
        presets: args.presets.clone(),
        node_id: random_node_id(),
    };
    shards::config::load(&inputs).map_err(|errors| failure(&errors).into())
}

fn failure(errors: &ConfigErrors) -> Failure {
    Failure { code: code_of(errors), sentence: errors.to_string() }
}

/// Variables whose name is text; of values that aren't, what can be shown.
fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
        .collect()
}

fn read(path: &Path) -> Result<String, Failure> {
    let name = path.display();
    let failure = |error: std::io::Error| match error.kind() {
        ErrorKind::PermissionDenied => Failure {
            code: NO_PERMISSION,
            sentence: format!("cannot read {name}: {error}; make it readable for this user"),
        },
        _ => Failure::config(format!("cannot read {name}: {error}")),
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failure)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failure)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(Failure::config(format!("found more than 1 MiB in {name}, due a configuration file")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        Failure::config(format!("found bytes that are not UTF-8 in {name} at byte {offset}, due TOML"))
    })
}

fn code_of(errors: &ConfigErrors) -> u8 {
    let all_in_flags = errors.0.iter().all(|error| matches!(error.origin, Origin::Flag(_)));
    if all_in_flags { USAGE } else { CONFIG }
}

/// 16 hexadecimal digits. The keys of the standard hasher are the process's own randomness.
fn random_node_id() -> String {
    format!("{:016x}", RandomState::new().build_hasher().finish())
}
