//! Exports say what the plan says, in the form of their readers.

use std::process::Stdio;

use super::machine::Machine;
use crate::support::scratch::Scratch;
use crate::support::tool;

#[track_caller]
fn export(machine: &Machine, profile: &str, form: &str) -> Vec<String> {
    let exported = machine.tune(&["export", profile, "--as", form]);
    assert_eq!((exported.code(), exported.stderr.as_str()), (Some(0), ""), "{exported:?}");
    let lines = exported.stdout.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines.map(str::to_owned).collect()
}

#[test]
fn for_sysctl_it_is_one_line_for_each_parameter() {
    let machine = Machine::new();
    let due = [
        "net.core.somaxconn = 65535",
        "fs.nr_open = 1048576",
        "fs.file-max = 805306",
        "net.netfilter.nf_conntrack_max = 262144",
        "net.ipv4.tcp_mem = 94212 230000 345000",
    ];
    assert_eq!(export(&machine, "100k", "sysctl.d"), due);
}

#[test]
fn what_a_module_brings_is_told_and_what_can_not_be_read_is_not_left_out_in_silence() {
    let machine = Machine::new();
    let exported = machine.tune(&["export", "100k", "--as", "sysctl.d"]).stdout;
    let words = exported.split_whitespace().filter(|word| *word != "#").collect::<Vec<_>>().join(" ");
    assert!(words.contains("the line nf_conntrack in /etc/modules-load.d/corecast.conf"), "{exported}");
    machine.write("proc/sys/net/ipv4/tcp_mem", "plenty\n");
    for form in ["sysctl.d", "compose", "kubernetes", "systemd"] {
        let odd = machine.tune(&["export", "100k", "--as", form]);
        assert_eq!((odd.code(), odd.stdout.as_str()), (Some(69), ""), "{odd:?}");
        assert!(odd.stderr.contains("net.ipv4.tcp_mem is \"plenty\""), "{odd:?}");
    }
}

#[test]
fn sysctl_reads_the_file_and_the_kernel_takes_it() {
    let Some(trial) = super::Trial::new() else { return };
    let exported = super::run(&["tune", "export", "load-generator", "--as", "sysctl.d"]);
    let network: Vec<_> = exported
        .stdout
        .lines()
        .filter(|line| !line.starts_with("fs.") && !line.starts_with("net.netfilter"))
        .collect();
    let file = trial.scratch.write("60-corecast.conf", &network.join("\n"));
    trial.netns.output(&["sysctl", "-p", &file.to_string_lossy()]);
    let planned = trial.tune(&["plan", "load-generator"]);
    assert_eq!(planned.code(), Some(0), "it is as if it had been applied: {planned:?}");
}

#[test]
fn for_compose_it_holds_what_a_container_has_of_its_own() {
    let machine = Machine::new();
    let due = [
        "services:",
        "  corecast:",
        "    sysctls:",
        "      net.ipv4.ip_local_port_range: \"1024 65535\"",
        "      net.ipv4.tcp_tw_reuse: \"1\"",
        "    ulimits:",
        "      nofile: 60072",
    ];
    assert_eq!(export(&machine, "load-generator", "compose"), due);
}

#[test]
fn for_kubernetes_it_says_which_are_safe_and_what_the_node_must_allow() {
    let machine = Machine::new();
    let exported = machine.tune(&["export", "load-generator", "--as", "kubernetes"]).stdout;
    let words = exported.split_whitespace().filter(|word| *word != "#").collect::<Vec<_>>().join(" ");
    assert!(words.contains("--allowed-unsafe-sysctls=net.ipv4.tcp_tw_reuse."), "{exported}");
    assert!(
        words.contains("safe - {name: net.ipv4.ip_local_port_range, value: \"1024 65535\"}"),
        "{exported}"
    );
    assert!(words.contains("unsafe - {name: net.ipv4.tcp_tw_reuse, value: \"1\"}"), "{exported}");
    assert!(!exported.contains("{name: fs."), "{exported}");
}

#[test]
fn for_systemd_it_is_the_limit_that_the_connections_need_whatever_the_shell_has() {
    let machine = Machine::new();
    assert_eq!(export(&machine, "100k", "systemd"), ["[Service]", "LimitNOFILE=100072"]);
}

const PROFILES: [&str; 5] = ["10k", "100k", "1m", "low-latency", "load-generator"];

/// What a checker says of what it takes; `None`, with a word, where it is not installed.
#[track_caller]
fn checked(program: &str, args: &[&str]) -> Option<String> {
    let mut command = tool::command(program);
    let Ok(checked) = command.args(args).stdin(Stdio::null()).output() else {
        eprintln!("not run: no {program}");
        return None;
    };
    let said =
        [checked.stdout, checked.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(checked.status.success(), "{program} {args:?}: {said}");
    Some(said)
}

/// What `machine` exports, whole.
#[track_caller]
fn exported(machine: &Machine, profile: &str, form: &str) -> String {
    machine.tune(&["export", profile, "--as", form]).stdout
}

#[test]
fn compose_takes_every_profile() {
    let (machine, scratch) = (Machine::new(), Scratch::new());
    for profile in PROFILES {
        let file = scratch.write(&format!("{profile}.yaml"), &exported(&machine, profile, "compose"));
        let args = ["--builtin-schema", "vendor.compose-spec", &file.to_string_lossy()];
        let Some(_) = checked("check-jsonschema", &args) else { return };
    }
}

#[test]
fn kubernetes_takes_the_pods_of_every_profile() {
    let (machine, scratch) = (Machine::new(), Scratch::new());
    let manifest =
        std::fs::read_to_string(tool::repository("deploy/kubernetes/corecast.yaml")).expect("a file");
    for profile in PROFILES {
        let patch = exported(&machine, profile, "kubernetes");
        let (_, sysctls) = patch.split_once("      securityContext:\n").expect("the pod's");
        // The first one of the manifest is the pod's, too.
        let patched =
            manifest.replacen("      securityContext:\n", &format!("      securityContext:\n{sysctls}"), 1);
        assert!(patched.contains("sysctls:"), "{patched}");
        let file = scratch.write(&format!("{profile}.yaml"), &patched);
        let Some(_) = checked("kubernetes-validate", &["--strict", &file.to_string_lossy()]) else { return };
    }
}

#[test]
fn kustomize_puts_the_patch_into_the_deployment() {
    let (machine, scratch) = (Machine::new(), Scratch::new());
    scratch.write("tuning.yaml", &exported(&machine, "load-generator", "kubernetes"));
    let manifest = tool::repository("deploy/kubernetes/corecast.yaml");
    std::fs::copy(manifest, scratch.path("corecast.yaml")).expect("it is there");
    scratch.write("kustomization.yaml", "resources: [corecast.yaml]\npatches: [{path: tuning.yaml}]\n");
    let folder = scratch.dir().to_string_lossy().into_owned();
    let mut kubectl = tool::command("kubectl");
    let Ok(built) = kubectl.args(["kustomize", &folder]).output() else {
        eprintln!("not run: no kubectl");
        return;
    };
    let text = String::from_utf8_lossy(&built.stdout).into_owned();
    assert!(built.status.success(), "{built:?}");
    assert!(text.contains("        sysctls:\n        - name: net.ipv4.ip_local_port_range\n"), "{text}");
    assert!(text.contains("        runAsNonRoot: true\n"), "what was there is there: {text}");
}

#[test]
fn systemd_takes_the_drop_in() {
    let (machine, scratch) = (Machine::new(), Scratch::new());
    std::fs::create_dir(scratch.path("corecast.service.d")).expect("a folder");
    let unit = std::fs::read_to_string(tool::repository("deploy/systemd/corecast.service")).expect("a file");
    let file = scratch.write("corecast.service", &unit.replace("/usr/local/bin/corecast", "/bin/true"));
    for profile in PROFILES {
        scratch.write("corecast.service.d/tuning.conf", &exported(&machine, profile, "systemd"));
        let Some(said) = checked("systemd-analyze", &["verify", &file.to_string_lossy()]) else { return };
        // It warns of what it doesn't understand, and is content.
        assert!(!said.contains("tuning.conf"), "{said}");
    }
}
