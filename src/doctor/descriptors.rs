//! Descriptors: of the process, and of the whole system.

use host::{OpenFiles, Root, SystemFiles};

use shards::limits::PROCESSES_MAX;

use super::finding::{Count, Finding};
use super::need::{Need, WantedBy};

/// A server that has space for fewer than this was hardly meant to: `corecast serve` warns below it too.
const FEW_CONNECTIONS: u64 = 1000;
const LIMIT: &str = "descriptors.limit";
const NR_OPEN: &str = "descriptors.nr_open";
const FILE_MAX: &str = "descriptors.file_max";

/// What there is of them.
pub struct Descriptors {
    /// Of this process.
    pub process: Option<OpenFiles>,
    /// Of the system.
    pub system: Option<SystemFiles>,
}

impl Descriptors {
    /// Reads both.
    pub fn read(root: &Root) -> Self {
        Self { process: OpenFiles::read(root), system: SystemFiles::read(root) }
    }

    /// Against the descriptors that the wanted connections need.
    pub fn judge(&self, need: &Need) -> Vec<Finding> {
        let system = |id, judge: fn(&SystemFiles, &Need) -> Finding| match &self.system {
            Some(files) => judge(files, need),
            None => Finding::untold(id, "/proc/sys/fs"),
        };
        let limit = match &self.process {
            Some(limits) => judge_limit(limits, need),
            None => Finding::untold(LIMIT, "/proc/self/limits"),
        };
        vec![limit, system(NR_OPEN, judge_nr_open), system(FILE_MAX, judge_file_max)]
    }
}

fn judge_limit(limits: &OpenFiles, need: &Need) -> Finding {
    let soft = limits.soft.map_or("unlimited".to_owned(), |soft| Count(soft).to_string());
    let Some(hard) = limits.hard else {
        return Finding::ok(LIMIT, format!("soft {soft}, hard unlimited; the server raises soft to hard"));
    };
    let found = format!("soft {soft}, hard {}; the server raises soft to hard", Count(hard));
    let reserved = need.descriptors_reserved;
    let fit = hard.saturating_sub(reserved);
    let cure = |wanted: u64| {
        format!(
            "ulimit -Hn {wanted}  # systemd: LimitNOFILE={wanted}; Docker: --ulimit nofile={wanted}; a login: \
             /etc/security/limits.conf"
        )
    };
    if need.descriptors() > hard {
        let processes = match need.connections.checked_div(fit) {
            Some(more) if need.has_redis && more < PROCESSES_MAX as u64 => {
                format!(", or --processes {}", need.connections.div_ceil(fit))
            }
            _ => String::new(),
        };
        let (all, connections) = (Count(need.descriptors()), Count(need.connections_of_a_process()));
        return Finding::bad(LIMIT, found)
            .due(format!(
                "{all} a process for {connections} connections and {reserved} of its own{processes}"
            ))
            .cure(cure(need.descriptors()));
    }
    if need.wanted_by == WantedBy::Descriptors && fit < FEW_CONNECTIONS {
        return Finding::warn(LIMIT, format!("{found}: {} connections fit", Count(fit)))
            .due("some more; 1,048,576 is usual for servers")
            .cure(cure(1_048_576));
    }
    Finding::ok(LIMIT, format!("{found}: {} connections fit into a process", Count(fit)))
}

fn judge_nr_open(files: &SystemFiles, need: &Need) -> Finding {
    let found = format!("fs.nr_open {}", Count(files.nr_open));
    if need.descriptors() > files.nr_open {
        return Finding::bad(NR_OPEN, found)
            .due(format!("{}: no process may be given more than nr_open", Count(need.descriptors())))
            .cure(format!("sysctl -w fs.nr_open={}", need.descriptors().next_power_of_two()));
    }
    Finding::ok(NR_OPEN, found)
}

fn judge_file_max(files: &SystemFiles, need: &Need) -> Finding {
    let due = files.open.saturating_add(need.descriptors_of_all());
    // The kernel's own default is so large that it prints as nothing anybody reads.
    let max = if files.max >= i64::MAX as u64 { "no limit".to_owned() } else { Count(files.max).to_string() };
    let found = format!("fs.file-max {max}, {} files open on this host", Count(files.open));
    if due > files.max {
        return Finding::bad(FILE_MAX, found)
            .due(format!(
                "{}: the files that are open and {} more",
                Count(due),
                Count(need.descriptors_of_all())
            ))
            .cure(format!("sysctl -w fs.file-max={}", due.next_power_of_two()));
    }
    Finding::ok(FILE_MAX, found)
}

#[cfg(test)]
mod tests {
    use shards::config::Config;

    use super::super::finding::Level;
    use super::super::need::tests::need;
    use super::*;

    fn levels(hard: Option<u64>, nr_open: u64, max: u64, need: &Need) -> Vec<Level> {
        let process = Some(OpenFiles { soft: Some(1024), hard });
        let system = Some(SystemFiles { nr_open, open: 5000, max });
        Descriptors { process, system }.judge(need).iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn each_bound_is_compared_with_the_wanted_connections_and_the_servers_own() {
        // 24 of the process and 16 of each of three shards: 72.
        let need = need(10_000);
        assert_eq!(need.descriptors(), 10_072);
        use Level::{Bad, Ok};
        assert_eq!(levels(Some(10_072), 10_072, 15_072, &need), [Ok, Ok, Ok]);
        assert_eq!(levels(Some(10_071), 10_072, 15_072, &need), [Bad, Ok, Ok]);
        assert_eq!(levels(Some(10_072), 10_071, 15_072, &need), [Ok, Bad, Ok]);
        assert_eq!(levels(Some(10_072), 10_072, 15_071, &need), [Ok, Ok, Bad]);
        assert_eq!(levels(None, u64::MAX, u64::MAX, &need), [Ok, Ok, Ok]);
    }

    #[test]
    fn too_low_a_limit_names_the_limit_that_is_due_and_how_many_processes_would_do() {
        let mut need = need(1_000_000);
        let judged = |need: &Need| judge_limit(&OpenFiles { soft: Some(20_000), hard: Some(20_072) }, need);
        let alone = judged(&need);
        assert!(alone.cure.is_some_and(|cure| cure.starts_with("ulimit -Hn 1000072 ")));
        assert!(!alone.due.is_some_and(|due| due.contains("--processes")), "without Redis they can't share");
        need.has_redis = true;
        assert!(judged(&need).due.is_some_and(|due| due.contains("or --processes 50")));
        need.connections *= 2;
        assert!(judged(&need).due.is_some_and(|due| !due.contains("--processes")), "so many are not allowed");
    }

    #[test]
    fn few_that_nobody_asked_for_are_a_warning_as_in_the_log() {
        let few = Need::of(&Config::default(), None, &[0], Some(1024));
        assert_eq!(levels(Some(1024), 1 << 20, 1 << 20, &few)[0], Level::Warn);
        let enough = Need::of(&Config::default(), None, &[0], Some(2048));
        assert_eq!(levels(Some(2048), 1 << 20, 1 << 20, &enough)[0], Level::Ok);
    }

    #[test]
    fn what_is_not_told_is_not_judged() {
        let findings = Descriptors { process: None, system: None }.judge(&need(1));
        assert!(findings.iter().all(|finding| finding.level == Level::Info), "{findings:?}");
    }
}
