//! The files of `deploy/` and the Dockerfile promise what the README says of them.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpListener;
use std::thread;

use serde_json::Value;

use crate::support::http;
use crate::support::kernel::Confinement;
use crate::support::program;
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::tool;

const IO_URING: [&str; 3] = ["io_uring_enter", "io_uring_register", "io_uring_setup"];

fn read(path: &str) -> String {
    let path = tool::repository(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn names(rule: &Value) -> BTreeSet<&str> {
    rule["names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect()
}

/// Allowed whatever the container's capabilities, the machine and the arguments.
fn is_unconditional(rule: &Value) -> bool {
    let fields: Vec<_> = rule.as_object().unwrap().keys().map(String::as_str).collect();
    rule["action"] == "SCMP_ACT_ALLOW"
        && fields.iter().all(|field| matches!(*field, "names" | "action" | "comment"))
}

#[test]
fn the_seccomp_profile_is_dockers_plus_the_three_calls_of_io_uring() {
    let profile: Value = serde_json::from_str(&read("deploy/seccomp-io_uring.json")).unwrap();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO", "what no rule allows is refused");
    assert_eq!(profile["defaultErrnoRet"], 1, "and looks like a lack of permission (EPERM)");
    let rules = profile["syscalls"].as_array().unwrap();
    let (added, docker): (Vec<_>, Vec<_>) =
        rules.iter().partition(|rule| names(rule).iter().any(|name| name.contains("uring")));
    assert_eq!(added.len(), 1, "one rule of ours");
    assert_eq!(names(added[0]), BTreeSet::from(IO_URING));
    assert!(is_unconditional(added[0]), "a container without capabilities may use io_uring");

    // Docker's profile of May 2026: 361 calls for everybody in one rule, 32 rules with conditions.
    let unconditional: Vec<_> = docker.iter().filter(|rule| is_unconditional(rule)).collect();
    assert_eq!((unconditional.len(), names(unconditional[0]).len(), docker.len()), (1, 361, 33));
}

#[test]
fn the_seccomp_profile_still_refuses_what_docker_refuses() {
    let profile: Value = serde_json::from_str(&read("deploy/seccomp-io_uring.json")).unwrap();
    let rules = profile["syscalls"].as_array().unwrap();
    let allowed: BTreeSet<_> = rules.iter().filter(|rule| is_unconditional(rule)).flat_map(names).collect();
    for call in
        ["bpf", "mount", "ptrace", "clone", "clone3", "setns", "unshare", "keyctl", "add_key", "reboot"]
    {
        assert!(!allowed.contains(call), "{call} is allowed to everybody");
    }
    let known: BTreeSet<_> = rules.iter().flat_map(names).collect();
    for call in ["kexec_load", "userfaultfd", "keyctl", "add_key", "request_key", "swapon", "nfsservctl"] {
        assert!(!known.contains(call), "{call} is allowed to somebody");
    }
}

#[test]
fn the_image_runs_as_nobody_and_gets_its_signals() {
    let dockerfile = read("Dockerfile");
    let last_stage = dockerfile.rsplit("\nFROM ").next().unwrap();
    assert!(last_stage.lines().any(|line| line == "USER 65532:65532"), "{last_stage}");
    assert!(last_stage.contains("\nENTRYPOINT [\"/usr/local/bin/corecast\"]\n"), "exec form");
    assert!(last_stage.contains("\nSTOPSIGNAL SIGTERM\n"));
}

/// One service of `deploy/compose.yaml` that runs corecast.
struct Service {
    name: String,
    preset: String,
    port: u16,
    environment: Vec<(String, String)>,
    /// What Docker runs inside the container.
    health: Vec<String>,
}

/// Reads the services by the form they are written in: two spaces before a service's name, four before its keys.
#[track_caller]
fn services() -> Vec<Service> {
    let compose = read("deploy/compose.yaml");
    let (_, services) = compose.split_once("\nservices:\n").expect("services");
    let mut found = Vec::new();
    for block in services.split("\n\n") {
        let Some(preset) =
            block.lines().find_map(|line| line.strip_prefix("    command: [serve, --preset, "))
        else {
            continue;
        };
        let name = block.lines().find_map(|line| line.strip_prefix("  ")?.strip_suffix(':')).expect("a name");
        let json = |key: &str| -> Vec<String> {
            let value = block.lines().find_map(|line| line.trim_start().strip_prefix(key));
            let value = value.unwrap_or_else(|| panic!("{name} has no {key}"));
            serde_json::from_str(value).unwrap_or_else(|error| panic!("{name}: {error} in {key} {value}"))
        };
        let ports = json("ports: ");
        let (host, container) = ports[0].split_once(':').expect("host:container");
        assert_eq!(host, container, "{name} has the port that its users know");
        let variables = block.lines().skip_while(|line| *line != "    environment:").skip(1);
        let environment = variables
            .map_while(|line| line.strip_prefix("      ")?.split_once(": "))
            .map(|(variable, value)| (variable.to_owned(), interpolated(value.trim_matches('"'))));
        found.push(Service {
            name: name.to_owned(),
            preset: preset.trim_end_matches(']').to_owned(),
            port: host.parse().expect("a port"),
            environment: environment.collect(),
            health: json("test: "),
        });
    }
    found
}

/// `${NAME:-default}` where NAME is not set.
fn interpolated(value: &str) -> String {
    let default = value.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')).map(|inside| {
        inside
            .split_once(":-")
            .unwrap_or_else(|| panic!("{value} has no default: Compose would warn of it"))
            .1
    });
    default.unwrap_or(value).to_owned()
}

/// `corecast config show --preset NAME` with these variables and no others.
#[track_caller]
fn config_show(preset: &str, environment: &[(String, String)]) -> String {
    let mut command = program::command();
    command.args(["config", "show", "--preset", preset]).envs(environment.iter().map(|(k, v)| (k, v)));
    let shown = program::finish(command, Confinement::default());
    assert_eq!(shown.code(), Some(0), "{preset}: {}", shown.stderr);
    assert_eq!(shown.stderr, "", "{preset}: no variable is unknown or contradicts another");
    shown.stdout
}

/// The presets that the binary has.
fn presets() -> Vec<String> {
    let version = program::run(&["version", "--verbose"]).stdout;
    let presets = version.lines().find_map(|line| line.trim().strip_prefix("presets "));
    presets.unwrap_or_else(|| panic!("no presets in {version}")).split(' ').map(str::to_owned).collect()
}

#[test]
fn compose_has_a_service_for_each_preset_on_its_own_port() {
    let services = services();
    for preset in presets() {
        let service = services.iter().find(|service| service.preset == preset);
        let service = service.unwrap_or_else(|| panic!("no service of deploy/compose.yaml runs {preset}"));
        let port = format!("listen = \":{}\" ", service.port);
        for environment in [&[], service.environment.as_slice()] {
            let shown = config_show(&preset, environment);
            assert!(shown.contains(&port), "{}: {port} was due, found {shown}", service.name);
        }
        let shown = config_show(&preset, &service.environment);
        assert!(shown.contains("\nredis = \"redis://redis:6379\" "), "{}: {shown}", service.name);
    }
}

#[test]
fn the_health_check_of_compose_tells_a_server_that_lives_from_one_that_does_not() {
    let mut server = Server::builder().preset("event-fanout").start();
    let stranger = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let not_found = thread::spawn({
        let listener = stranger.try_clone().expect("a descriptor is left");
        move || {
            let (mut stream, _) = listener.accept().expect("the health check connects");
            stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").expect("it reads");
        }
    });
    let services = services();
    let check = |service: &Service, port: u16| {
        let [docker, shell @ ..] = service.health.as_slice() else { panic!("{}: no check", service.name) };
        assert_eq!(docker, "CMD");
        // Compose turns $$ into $.
        let words: Vec<String> = shell
            .iter()
            .map(|word| word.replace("$$", "$").replace(&format!("/{}", service.port), &format!("/{port}")))
            .collect();
        let output = tool::command(&words[0]).args(&words[1..]).output().expect("bash is there");
        output.status.success()
    };
    for service in &services {
        assert!(check(service, server.address().port()), "{}: it lives", service.name);
    }
    let event_fanout = &services[0];
    assert!(!check(event_fanout, stranger.local_addr().expect("an address").port()), "404 is no health");
    not_found.join().expect("it was asked");
    let port = server.address().port();
    server.kill9();
    assert!(!check(event_fanout, port), "it is gone");
}

#[test]
fn beside_a_service_named_redis_kubernetes_variables_are_ignored_with_a_word() {
    let redis = Redis::start();
    let server = Server::builder()
        .preset("event-fanout")
        .listen_unsaid()
        .broker_unsaid()
        .env("ADDR", "127.0.0.1:0")
        .env("REDIS_ADDR", &redis.address().to_string())
        .env("REDIS_PORT", "tcp://10.96.0.17:6379")
        .env("REDIS_PORT_6379_TCP", "tcp://10.96.0.17:6379")
        .env("REDIS_PORT_6379_TCP_ADDR", "10.96.0.17")
        .env("REDIS_SERVICE_HOST", "10.96.0.17")
        .env("REDIS_SERVICE_PORT", "6379")
        .start();
    server.wait_broker(true);
    server.wait_log("it says what it ignores", |line| {
        line.contains("WARN")
            && line.contains("REDIS_PORT is \"tcp://10.96.0.17:6379\"")
            && line.contains("ignored")
    });
}

#[test]
fn the_probes_of_kubernetes_are_answered_on_the_admin_port_without_redis() {
    let manifest = read("deploy/kubernetes/corecast.yaml");
    let probes: Vec<&str> =
        manifest.lines().filter_map(|line| line.trim().strip_prefix("httpGet: {path: ")).collect();
    assert_eq!(probes.len(), 3, "startup, liveness, readiness");
    let server = Server::builder().preset("event-fanout").admin().redis_url("redis://127.0.0.1:1").start();
    for probe in probes {
        let path = probe.strip_suffix(", port: admin}").expect("the admin port");
        let answer = http::request(server.admin_address(), "GET", path, &[]).expect("an answer");
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
    }
}

#[test]
fn kubernetes_waits_for_the_drain_before_it_kills() {
    let manifest = read("deploy/kubernetes/corecast.yaml");
    let seconds = |before: &str, after: &str| -> u64 {
        let value = manifest.split_once(before).unwrap_or_else(|| panic!("no {before}")).1;
        let value = value.split_once(after).unwrap_or_else(|| panic!("no {after:?} after {before}")).0;
        value.trim().parse().unwrap_or_else(|error| panic!("{error}: {before}{value}"))
    };
    let grace = seconds("terminationGracePeriodSeconds:", "\n");
    let before = seconds("command: [sleep, \"", "\"");
    let drain = seconds("name: CORECAST_DRAIN, value: ", "s}");
    assert!(before + drain + 5 <= grace, "{before} s and a drain of {drain} s in {grace} s");
}

#[test]
fn kubernetes_gives_corecast_only_variables_that_it_knows() {
    let manifest = read("deploy/kubernetes/corecast.yaml");
    let environment = manifest.lines().filter_map(|line| {
        let (name, value) = line.trim().strip_prefix("- {name: ")?.split_once(", value: ")?;
        Some((name.to_owned(), value.trim_end_matches('}').trim_matches('"').to_owned()))
    });
    let environment: Vec<_> =
        environment.chain([("CORECAST_NODE_ID".to_owned(), "pod-0".to_owned())]).collect();
    let shown = config_show("event-fanout", &environment);
    for due in
        ["listen = \":8081\" ", "admin = \":9100\" ", "redis = \"redis://redis:6379\" ", "drain = \"30s\" "]
    {
        assert!(shown.contains(due), "{due} was due: {shown}");
    }
    assert!(manifest.contains("enableServiceLinks: false"));
    assert!(manifest.contains("localhostProfile: corecast/seccomp-io_uring.json"));
    let installer = read("deploy/kubernetes/seccomp.yaml");
    assert!(
        installer.contains("/node/corecast/seccomp-io_uring.json]"),
        "the installer writes where the kubelet looks"
    );
    assert!(installer.contains("hostPath: {path: /var/lib/kubelet/seccomp,"));
}

#[test]
fn terraform_starts_the_preset_on_its_port() {
    let variables = read("deploy/terraform/variables.tf");
    let default = |name: &str| {
        let variable = variables.split_once(&format!("variable \"{name}\" {{")).expect("a variable").1;
        let line = variable.lines().find_map(|line| line.trim().strip_prefix("default")).expect("a default");
        line.trim_start_matches([' ', '=']).trim_matches('"').to_owned()
    };
    let shown = config_show(&default("corecast_preset"), &[]);
    assert!(shown.contains(&format!("listen = \":{}\" ", default("corecast_port"))), "{shown}");
    assert!(shown.contains(&default("channel_name")), "{shown}");
}
