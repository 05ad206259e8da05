//! Exports say what the plan says, in the form of their readers.

use super::machine::Machine;

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
        "net.ipv4.tcp_mem = 94212 150000 200000",
    ];
    assert_eq!(export(&machine, "100k", "sysctl.d"), due);
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
