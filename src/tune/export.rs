//! A profile as a file that outlives a restart, in the form of whoever sets it then.
//!
//! The values are those of a plan for this machine, so that one which is more generous already is not lowered.

use clap::ValueEnum;

use crate::tune::columns::wrapped;
use crate::tune::knob::{Due, Knob, Name, Scope};
use crate::tune::plan::{Plan, State};
use crate::tune::target::Target;

/// For whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// A file of /etc/sysctl.d
    #[value(name = "sysctl.d")]
    SysctlD,
    /// A file for Docker Compose, to be named after the other with -f
    Compose,
    /// A patch for the Deployment, and what its nodes need
    Kubernetes,
    /// A drop-in of corecast.service
    Systemd,
}

/// `plan` in `form`, for the service `corecast`.
///
/// # Errors
/// Why a value can't be read: what it should be is not known then.
pub fn exported(plan: &Plan, form: Form) -> Result<String, String> {
    let values = values(plan)?;
    let body = match form {
        Form::SysctlD => sysctl_d(&values),
        Form::Compose => compose(&values),
        Form::Kubernetes => kubernetes(&values),
        Form::Systemd => systemd(&values),
    };
    let facts = &plan.facts;
    let head = format!(
        "corecast tune export {} --connections {}, computed on a machine with {} bytes of memory and {} cores: export it \
         again where these are others.",
        plan.profile.name, facts.connections, facts.memory_bytes, facts.cores
    );
    Ok(wrapped(&head, "# ") + &body)
}

/// A knob with its value; `None` where this machine doesn't have it.
struct Value<'p> {
    knob: &'p Knob,
    due: Option<String>,
}

impl Value<'_> {
    /// The name of a sysctl and its value, if that is what it is.
    fn sysctl(&self) -> Option<(&str, &str)> {
        match &self.knob.name {
            Name::Kernel(Target::Sysctl(name)) => Some((name.as_str(), self.due.as_deref()?)),
            _ => None,
        }
    }
}

/// Every knob of the profile; a pattern's files have one value.
fn values(plan: &Plan) -> Result<Vec<Value<'_>>, String> {
    let value = |(index, knob)| Ok(Value { knob, due: due(plan, index, knob)? });
    plan.profile.knobs.iter().enumerate().map(value).collect()
}

fn due(plan: &Plan, index: usize, knob: &Knob) -> Result<Option<String>, String> {
    if knob.name == Name::LimitNofile {
        // Not that of the shell which asks.
        return Ok(knob.due(&plan.facts, "0").ok());
    }
    match plan.steps.iter().find(|step| step.knob == index).map(|step| &step.state) {
        Some(State::Good { now }) => Ok(Some(now.clone())),
        Some(State::Differs { due, .. }) => Ok(Some(due.clone())),
        Some(State::Unreadable { why }) => Err(why.clone()),
        Some(State::Absent) | None => Ok(None),
    }
}

fn sysctl_d(values: &[Value<'_>]) -> String {
    let mut text = wrapped(
        "To /etc/sysctl.d/60-corecast.conf, then `sysctl --system`. What belongs to a network namespace holds for the \
         host's: containers have their own (--as compose, --as kubernetes).",
        "# ",
    );
    for value in values {
        text += &format!("\n{}", wrapped(&value.knob.reason, "# "));
        text += &of_a_module(value);
        text += &match (value.sysctl(), &value.knob.due) {
            (Some((name, due)), _) => format!("{name} = {due}\n"),
            (None, Due::Word { word, .. }) => format!(
                "# No sysctl. As a line of /etc/tmpfiles.d/corecast.conf:\n# w {} - - - - {word}\n",
                value.knob.name
            ),
            (None, _) => elsewhere(value),
        };
    }
    text
}

/// A parameter that a module brings is not there before the module is.
fn of_a_module(value: &Value<'_>) -> String {
    match value.sysctl() {
        Some((name, _)) if name.starts_with("net.netfilter.nf_conntrack") => wrapped(
            "It is there only once the module is loaded, mostly by Docker or a firewall, and that is after systemd-sysctl has \
             read this file: then it holds nothing. With the line nf_conntrack in /etc/modules-load.d/corecast.conf it is \
             loaded before. sysctl --system needs it loaded, too (modprobe nf_conntrack).",
            "# ",
        ),
        _ => String::new(),
    }
}

/// What the form has no place for.
fn elsewhere(value: &Value<'_>) -> String {
    match (&value.knob.name, &value.due) {
        (Name::LimitNofile, Some(due)) => {
            format!(
                "# Not of the kernel's: LimitNOFILE={due} where corecast is started (--as systemd, --as compose).\n"
            )
        }
        (name, _) => format!("# {name} is not there on this machine.\n"),
    }
}

fn compose(values: &[Value<'_>]) -> String {
    let mut text = wrapped(
        "For the service that runs corecast, here called so: docker compose -f compose.yaml -f THIS-FILE up. Compose sets \
         sysctls of the container's own network namespace, so not with network_mode: host.",
        "# ",
    );
    text += &of_the_host(values);
    let sysctls = of_the_namespace(values);
    text += "services:\n  corecast:\n";
    if !sysctls.is_empty() {
        text += "    sysctls:\n";
    }
    for (name, due) in &sysctls {
        text += &format!("      {name}: \"{due}\"\n");
    }
    match limit(values) {
        Some((_, limit)) => text += &format!("    ulimits:\n      nofile: {limit}\n"),
        None if sysctls.is_empty() => text += "    {}\n",
        None => {}
    }
    text
}

fn kubernetes(values: &[Value<'_>]) -> String {
    let sysctls = of_the_namespace(values);
    let is_safe = |name: &str| SAFE_SYSCTLS.contains(&name);
    let unsafe_names: Vec<_> = sysctls.iter().map(|(name, _)| *name).filter(|name| !is_safe(name)).collect();
    let mut text = wrapped(
        "A patch for the Deployment: `patches: [{path: THIS-FILE}]` in kustomization.yaml. The pod has a network namespace of \
         its own, so nothing else is touched.",
        "# ",
    );
    if !unsafe_names.is_empty() {
        text += &wrapped(
            &format!(
                "Kubernetes calls {} unsafe and rejects the pod (SysctlForbidden), unless the kubelet of its node has \
                 --allowed-unsafe-sysctls={}.",
                unsafe_names.join(" and "),
                unsafe_names.join(",")
            ),
            "# ",
        );
    }
    if let Some((_, limit)) = limit(values) {
        text += &wrapped(
            &format!(
                "Kubernetes has no setting for descriptors: LimitNOFILE of the node's container runtime is to be {limit} or \
                 more."
            ),
            "# ",
        );
    }
    text += &of_the_host(values);
    text += "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: corecast\nspec:\n  template:\n    spec:\n      securityContext:\n";
    if sysctls.is_empty() {
        return text + "        sysctls: []\n";
    }
    text += "        sysctls:\n";
    for (name, due) in sysctls {
        let safe = if is_safe(name) { "safe" } else { "unsafe" };
        text += &format!("          # {safe}\n          - {{name: {name}, value: \"{due}\"}}\n");
    }
    text
}

/// Names and values that a container has of its own.
fn of_the_namespace<'v>(values: &'v [Value<'_>]) -> Vec<(&'v str, &'v str)> {
    values.iter().filter(|value| value.knob.scope == Scope::Network).filter_map(Value::sysctl).collect()
}

/// Reason and value of the limit of descriptors.
fn limit<'v>(values: &'v [Value<'_>]) -> Option<(&'v str, &'v str)> {
    let limit = values.iter().find(|value| value.knob.name == Name::LimitNofile)?;
    Some((&limit.knob.reason, limit.due.as_deref()?))
}

/// Those that a container can't have of its own.
fn of_the_host(values: &[Value<'_>]) -> String {
    let of_host = values.iter().filter(|value| value.knob.scope == Scope::Host && value.due.is_some());
    let names: Vec<_> = of_host.map(|value| value.knob.name.to_string()).collect();
    match names.is_empty() {
        true => String::new(),
        false => wrapped(
            &format!("On each host beside it, as --as sysctl.d prints them: {}.", names.join(", ")),
            "# ",
        ),
    }
}

fn systemd(values: &[Value<'_>]) -> String {
    let mut text = wrapped(
        "To /etc/systemd/system/corecast.service.d/tuning.conf, then `systemctl daemon-reload` and a restart of corecast. \
         A unit has no sysctls: --as sysctl.d.",
        "# ",
    );
    text += "[Service]\n";
    if let Some((reason, due)) = limit(values) {
        text += &format!("{}LimitNOFILE={due}\n", wrapped(reason, "# "));
    }
    text
}

/// What every kubelet allows a pod to set, of what a network namespace has: Kubernetes' own documentation, "Using sysctls in
/// a Kubernetes Cluster", for 1.32; all of it needs a kernel of 4.15 at most.
const SAFE_SYSCTLS: [&str; 11] = [
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];
