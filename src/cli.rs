//! The command line.
//!
//! The flags of a server are not written down here: they are the rows of [`SETTINGS`], so that a flag, its variable and its
//! key in the file can't differ.

use std::path::PathBuf;

use clap::builder::Styles;
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, Parser, Subcommand, value_parser};
use shards::config::settings::{SETTINGS, Setting};

use crate::clients::ClientsArgs;
use crate::consume::{self, ConsumeArgs};
use crate::dead_letters::{self, DeadLettersCommand};
use crate::doctor::{self, DoctorArgs};
use crate::publish::PublishArgs;
use crate::report::ReportArgs;
use crate::subscribe::SubscribeArgs;
use crate::tune::{self, TuneArgs};

/// A WebSocket fan-out server: publications in from Redis, HTTP or clients, out to tens of thousands of WebSockets.
#[derive(Debug, Parser)]
#[command(name = "corecast", version, styles = Styles::plain(), after_help = EXAMPLES, subcommand_required = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  corecast serve                                       local broker, http://127.0.0.1:8080
  curl -d hello 'localhost:8080/publish?room=lobby'    reaches ws://localhost:8080/ws?room=lobby
  corecast serve --preset event-fanout                 Redis on localhost:6379, ws://localhost:8081/ws?room=NAME
  corecast config show --preset event-fanout           every value and where it came from

Exit codes: 0 done, 1 failed at run time, 2 usage, 69 something needed is not there, 73 can't bind, 77 no permission,
78 configuration.";

const SERVE_EXAMPLES: &str = "\
Flags override variables, variables the file, the file presets. ADDR and PORT are read where CORECAST_LISTEN is not set;
REDIS_URL, REDIS_ADDR, REDIS_HOST with REDIS_PORT where CORECAST_REDIS is not; REDIS_PASSWORD where the URL has none.

Examples:
  corecast serve
  corecast serve --listen :8080 --redis redis://localhost:6379 --shards 2
  corecast serve --preset event-fanout --admin 127.0.0.1:9090 --log-format json
  corecast serve --config /etc/corecast.toml --ping-interval 20s --message-bytes-max 128KiB";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the server
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(ConfigArgs),
    /// Publish messages, over HTTP or straight to Redis
    Publish(Box<PublishArgs>),
    /// Join rooms and print what arrives
    Subscribe(SubscribeArgs),
    /// Connect many clients and measure every delivery
    Clients(ClientsArgs),
    /// Say what the clients received, out of their logs
    Report(ReportArgs),
    /// Handle the events of a Redis channel: log them, run a command, call a webhook
    #[command(after_help = consume::EXAMPLES)]
    Consume(Box<ConsumeArgs>),
    /// List or replay the events that `consume` gave up
    #[command(after_help = dead_letters::EXAMPLES)]
    DeadLetters {
        #[command(subcommand)]
        command: DeadLettersCommand,
    },
    /// Say whether this host, its kernel and Redis suit a configuration, and what cures what doesn't
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(Box<DoctorArgs>),
    /// Say what the kernel should be for so many connections, set it, and set it back
    #[command(after_help = tune::EXAMPLES)]
    Tune(TuneArgs),
    /// Say whether a configuration is good, without starting anything
    CheckConfig(CheckArgs),
    /// Work with the configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Print the version
    Version {
        /// Also target, profile and presets
        #[arg(long)]
        verbose: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the configuration as a file, each value with the place it came from
    Show(ConfigArgs),
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The configuration file, as --config
    #[arg(value_name = "FILE", conflicts_with = "config")]
    file: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
}

impl CheckArgs {
    /// The flags, with the file in the place of `--config`.
    pub fn in_place(self) -> ConfigArgs {
        ConfigArgs { file: self.file.or(self.config.file), ..self.config }
    }
}

/// The flags that decide a configuration.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ConfigArgs {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// `--preset`.
    pub presets: Option<Vec<String>>,
    /// Setting and value of every other flag that was given.
    pub settings: Vec<(String, String)>,
}

impl Args for ConfigArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        let presets = shards::config::preset_names().collect::<Vec<_>>().join(", ");
        let command = command
            .arg(
                Arg::new("preset")
                    .long("preset")
                    .value_name("NAME,...")
                    .value_delimiter(',')
                    .action(ArgAction::Append)
                    .help(format!("Serve the users of these systems: {presets} [env: CORECAST_PRESET]"))
                    .help_heading("Configuration"),
            )
            .arg(
                Arg::new("config")
                    .long("config")
                    .value_name("FILE")
                    .value_parser(value_parser!(PathBuf))
                    .help(
                        "TOML file with routes, rooms, sources and any setting below [env: CORECAST_CONFIG]",
                    )
                    .help_heading("Configuration"),
            );
        SETTINGS.iter().fold(command, |command, setting| command.arg(setting_arg(setting)))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ConfigArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let texts = |name| matches.get_many::<String>(name).map(|texts| texts.cloned().collect::<Vec<_>>());
        self.file = matches.get_one::<PathBuf>("config").cloned().or(self.file.take());
        self.presets = texts("preset").or(self.presets.take());
        for setting in SETTINGS {
            if let Some(texts) = texts(setting.name) {
                self.settings.push((setting.name.to_owned(), texts.join(",")));
            }
        }
        Ok(())
    }
}

/// The flag of `setting`, its value as text: the setting's own reader judges it.
fn setting_arg(setting: &'static Setting) -> Arg {
    let default = setting.default_text().map_or(String::new(), |text| format!(" [default: {text}]"));
    let is_list = setting.form.ends_with("...");
    let arg = Arg::new(setting.name)
        .long(setting.flag())
        .value_name(setting.form)
        .help(format!("{} [env: {}]{default}", setting.help, setting.variable()))
        .help_heading(setting.heading)
        .action(if is_list { ArgAction::Append } else { ArgAction::Set });
    let arg = match setting.flag_alias {
        Some(alias) => arg.visible_alias(alias),
        None => arg,
    };
    if setting.is_switch() {
        return arg.num_args(0..=1).require_equals(true).default_missing_value("true");
    }
    arg
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn served(flags: &[&str]) -> ConfigArgs {
        match Cli::try_parse_from(["corecast", "serve"].iter().chain(flags)).unwrap().command {
            Command::Serve(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn help(command: &str) -> String {
        let mut cli = Cli::command();
        cli.find_subcommand_mut(command).unwrap().render_help().to_string()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_setting_has_its_flag_with_variable_and_default_in_the_help() {
        let help = help("serve");
        for setting in SETTINGS {
            assert!(help.contains(&format!("--{}", setting.flag())), "{}", setting.name);
            assert!(help.contains(&setting.variable()), "{}", setting.name);
            assert!(help.contains(&format!("{}:\n", setting.heading)), "{}", setting.heading);
        }
        assert!(help.contains("[default: 127.0.0.1:8080]") && help.contains("[default: 64KiB]"), "{help}");
        assert!(help.contains("Examples:"));
    }

    #[test]
    fn the_flags_that_scripts_rely_on_are_taken() {
        let flags = "--listen 127.0.0.1:0 --admin 127.0.0.1:0 --redis redis://h --preset a,b --config f.toml --shards 2 \
                     --cores 0,1 --driver epoll --drain 5s --ports-file p.json --log-format json --log-level debug \
                     --broker redis --api-key-file k --origins any --node-id n --ping-interval 5s --connections-max 9";
        let args = served(&flags.split_whitespace().collect::<Vec<_>>());
        assert_eq!(args.presets, Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(args.file, Some(PathBuf::from("f.toml")));
        let value = |name: &str| {
            args.settings.iter().find(|(setting, _)| setting == name).map(|(_, text)| text.as_str())
        };
        assert_eq!(
            (value("shards"), value("ports_file"), value("cores")),
            (Some("2"), Some("p.json"), Some("0,1"))
        );
        assert_eq!(
            (value("drain"), value("ping_interval"), value("echo_route")),
            (Some("5s"), Some("5s"), None)
        );
    }

    #[test]
    fn switches_stand_alone_and_lists_may_be_repeated() {
        let args = served(&[
            "--echo",
            "--require-broker=false",
            "--listen",
            "127.0.0.1:1",
            "--listen",
            "127.0.0.1:2",
        ]);
        let expected =
            [("listen", "127.0.0.1:1,127.0.0.1:2"), ("require_broker", "false"), ("echo_route", "true")];
        assert_eq!(args.settings, expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
    }

    #[test]
    fn the_server_knows_every_variable_of_the_other_commands() {
        for command in Cli::command().get_subcommands() {
            let help = command.clone().render_long_help().to_string();
            for variable in help.split(|c: char| !(c.is_ascii_uppercase() || c == '_')) {
                let is_setting = || SETTINGS.iter().any(|setting| setting.variable() == variable);
                let is_known = || shards::config::OTHER_VARIABLES.contains(&variable) || is_setting();
                assert!(
                    !variable.starts_with("CORECAST_") || is_known(),
                    "{} {variable}",
                    command.get_name()
                );
            }
        }
    }

    #[test]
    fn an_unknown_flag_is_a_fault_of_usage() {
        let error = Cli::try_parse_from(["corecast", "serve", "--lisen", "x"]).unwrap_err();
        assert_eq!(error.exit_code(), i32::from(crate::exit::USAGE));
        assert!(error.to_string().contains("--listen"), "{error}");
    }
}
