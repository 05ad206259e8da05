//! Limits of the control group that are not memory: CPU time, threads, cores.

use host::{Bound, Cgroup};

use super::finding::{Count, Finding, list};
use super::need::Need;

const CPU: &str = "cgroup.cpu";
const PIDS: &str = "cgroup.pids";
const CPUSET: &str = "cgroup.cpuset";
/// Threads of a process beside shards and relay: main, signals, logs, and what the kernel starts for a ring.
const THREADS_BESIDE: u64 = 8;

/// CPU time and threads of `cgroup`, and `usable` cores of those that are `online`.
pub fn judge(cgroup: &Cgroup, online: &[usize], need: &Need) -> Vec<Finding> {
    vec![judge_cpu(cgroup, need), judge_pids(cgroup, need), judge_cpuset(online, need)]
}

fn judge_cpu(cgroup: &Cgroup, need: &Need) -> Finding {
    let Some(share) = cgroup.cpu else {
        return Finding::ok(CPU, "the control group has no limit of CPU time");
    };
    let threads = need.pinned_threads() as u64;
    let found = format!(
        "the control group may use {:.2} cores; it was held up in {} periods",
        share.cores(),
        Count(cgroup.throttled_periods)
    );
    if share.cores() >= threads as f64 {
        return match cgroup.throttled_periods {
            0 => Finding::ok(CPU, found),
            _ => Finding::info(CPU, format!("{found}, which is enough for {threads} threads alone")),
        };
    }
    // Of each process.
    let shards = (share.cores() as u64 / need.processes.len() as u64).max(1);
    let cure = match need.shards() > shards * need.processes.len() as u64 {
        true => format!(
            "corecast serve{} --shards {shards}  # or raise it: systemd CPUQuota=, Docker --cpus {threads}",
            need.several()
        ),
        false => format!("docker update --cpus {threads} NAME  # systemd: CPUQuota={}%", threads * 100),
    };
    Finding::warn(CPU, found)
        .due(format!(
            "{threads} for as many busy threads: once a period's time is used up all of them stand still until the next, up to \
             {} ms",
            share.period / 1000
        ))
        .cure(cure)
}

fn judge_pids(cgroup: &Cgroup, need: &Need) -> Finding {
    let Some(Bound { max, used }) = cgroup.pids else {
        return Finding::ok(PIDS, "the control group has no limit of threads");
    };
    let threads = need.shards() + need.processes.len() as u64 * (1 + THREADS_BESIDE);
    let found = format!("the control group may have {} threads, {} are there", Count(max), Count(used));
    let due = used.saturating_add(threads);
    if due <= max {
        return Finding::ok(PIDS, found);
    }
    Finding::bad(PIDS, found)
        .due(format!("{} for {threads} of the server's", Count(due)))
        .cure(format!("systemctl set-property corecast.service TasksMax={due}  # Docker: docker update --pids-limit {due} NAME"))
}

fn judge_cpuset(online: &[usize], need: &Need) -> Finding {
    let usable = &need.usable_cores;
    if usable.is_empty() || online.is_empty() {
        return Finding::untold(CPUSET, "which cores are online");
    }
    if usable.len() >= online.len() {
        return Finding::ok(CPUSET, format!("all {} cores of the host may be used", online.len()));
    }
    Finding::info(
        CPUSET,
        format!(
            "of {} cores {} may be used ({}): taskset, cpuset or AllowedCPUs=",
            online.len(),
            usable.len(),
            list(usable)
        ),
    )
}

#[cfg(test)]
mod tests {
    use host::CpuShare;

    use super::super::finding::Level;
    use super::super::need::tests::need;
    use super::*;

    #[test]
    fn cpu_time_is_due_for_every_busy_thread() {
        let judged = |quota, throttled_periods| {
            let cpu = Some(CpuShare { quota, period: 100_000 });
            judge_cpu(&Cgroup { cpu, throttled_periods, ..Cgroup::default() }, &need(1))
        };
        // Three shards and a relay.
        assert_eq!(judged(400_000, 0).level, Level::Ok);
        assert_eq!(judged(400_000, 9).level, Level::Info);
        let short = judged(250_000, 0);
        assert_eq!(short.level, Level::Warn);
        assert!(short.cure.is_some_and(|cure| cure.starts_with("corecast serve --shards 2 ")));
        assert!(judged(350_000, 0).cure.is_some_and(|cure| cure.starts_with("docker update --cpus 4 ")));
        assert_eq!(judge_cpu(&Cgroup::default(), &need(1)).level, Level::Ok);
    }

    #[test]
    fn threads_must_fit() {
        let judged = |max, used| {
            let cgroup = Cgroup { pids: Some(Bound { max, used }), ..Cgroup::default() };
            judge_pids(&cgroup, &need(1)).level
        };
        assert_eq!((judged(20, 8), judged(20, 9)), (Level::Ok, Level::Bad));
    }

    #[test]
    fn fewer_cores_than_the_host_has_are_named() {
        assert_eq!(judge_cpuset(&[0, 1, 2, 3], &need(1)).level, Level::Ok);
        let some = judge_cpuset(&[0, 1, 2, 3, 4, 5], &need(1));
        assert!(some.level == Level::Info && some.found.contains("(0,1,2,3)"), "{some:?}");
        assert_eq!(judge_cpuset(&[], &need(1)).level, Level::Info);
    }
}
