//! The files of `deploy/` and the Dockerfile promise what the README says of them.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

const IO_URING: [&str; 3] = ["io_uring_enter", "io_uring_register", "io_uring_setup"];

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
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
