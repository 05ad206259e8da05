//! io_uring: whether its calls are allowed, and which driver the shards would have.

use std::io;

use host::{Process, Root};
use shards::config::DriverChoice;
use shards::config::RingSetup;
use shards::net::Trial;

use super::finding::{Finding, Level};

/// What is known of the kernel interface.
pub struct Interface {
    /// As uname(1) prints it.
    pub release: String,
    /// `kernel.io_uring_disabled`: 0 for nobody, 1 for unprivileged processes, 2 for all (Linux 6.6).
    pub disabled: Option<u64>,
    /// A system call filter is in force.
    pub is_filtered: bool,
    /// The calls, really made.
    pub trial: Trial,
}

impl Interface {
    /// Tries the calls on this thread.
    pub fn read(root: &Root, process: Option<&Process>) -> Self {
        Self {
            release: root.read("/proc/sys/kernel/osrelease").unwrap_or_else(|_| "unknown".to_owned()),
            disabled: root.number("/proc/sys/kernel/io_uring_disabled"),
            is_filtered: process.is_some_and(|process| process.is_filtered),
            trial: Trial::run(RingSetup::default()),
        }
    }

    /// Under `--driver` as configured.
    pub fn judge(&self, choice: DriverChoice) -> Vec<Finding> {
        let level = match choice {
            DriverChoice::Auto => Level::Warn,
            DriverChoice::IoUring => Level::Bad,
            DriverChoice::Epoll => Level::Info,
        };
        vec![
            self.call("io_uring.setup", "io_uring_setup", Some(&self.trial.setup), level),
            self.call("io_uring.enter", "io_uring_enter", self.trial.enter.as_ref(), level),
            // Only registered buffers and files would need it, and the server has none.
            self.call("io_uring.register", "io_uring_register", self.trial.register.as_ref(), Level::Info),
            self.driver(choice),
        ]
    }

    fn call(&self, id: &'static str, name: &str, result: Option<&io::Result<()>>, level: Level) -> Finding {
        let release = &self.release;
        match result {
            None => Finding::info(id, format!("{name} not tried: there is no ring")),
            Some(Ok(())) => Finding::ok(id, format!("{name} works on Linux {release}")),
            Some(Err(error)) => {
                let (why, cure) = self.cause(error);
                Finding::new(id, level, format!("{name} says {error} on Linux {release}: {why}"))
                    .due("allowed, on Linux 6.1 or later")
                    .cure(cure)
            }
        }
    }

    /// Why the kernel refuses, and what to do.
    fn cause(&self, error: &io::Error) -> (String, &'static str) {
        const PROFILE: &str = "docker run --security-opt seccomp=deploy/seccomp-io_uring.json corecast  # Kubernetes: \
                               seccompProfile of deploy/; systemd: SystemCallFilter=@system-service";
        match (error.raw_os_error(), self.disabled) {
            (Some(libc::EPERM | libc::EACCES), Some(disabled @ 1..)) => {
                (format!("kernel.io_uring_disabled is {disabled}"), "sysctl -w kernel.io_uring_disabled=0")
            }
            (Some(libc::EPERM | libc::EACCES | libc::ENOSYS), _) if self.is_filtered => {
                ("a system call filter (seccomp) denies it".to_owned(), PROFILE)
            }
            (Some(libc::EPERM | libc::EACCES), _) => {
                ("a security module or a sandbox around this process denies it".to_owned(), PROFILE)
            }
            (Some(libc::ENOSYS | libc::EINVAL), _) => (
                "this kernel is too old, or built without it".to_owned(),
                "uname -r  # install and boot Linux 6.1 or later, built with CONFIG_IO_URING=y",
            ),
            (Some(libc::ENOMEM), _) => (
                "locked memory is at its limit".to_owned(),
                "ulimit -l unlimited  # systemd: LimitMEMLOCK=infinity; Docker: --ulimit memlock=-1",
            ),
            (Some(libc::EMFILE | libc::ENFILE), _) => {
                ("there is no descriptor left".to_owned(), "ulimit -n \"$(ulimit -Hn)\"")
            }
            _ => ("see io_uring_setup(2)".to_owned(), "man 2 io_uring_setup"),
        }
    }

    /// Of the call without which there is no driver.
    fn cure(&self) -> &'static str {
        let refused = self.trial.setup.as_ref().err().or(self
            .trial
            .enter
            .as_ref()
            .and_then(|call| call.as_ref().err()));
        refused.map_or("man 2 io_uring_setup", |error| self.cause(error).1)
    }

    fn driver(&self, choice: DriverChoice) -> Finding {
        // 256 operations in a call: `limits.rs`, BATCH_SENDS_MAX. The costs are those of sends to many sockets, measured.
        const LOST: &str =
            "a system call for each send instead of one for up to 256: 4.1-4.6 us of CPU instead of 3.4-3.6";
        const ID: &str = "driver";
        let works = self.trial.setup.is_ok() && matches!(self.trial.enter, Some(Ok(())));
        match (choice, works) {
            (DriverChoice::Auto, true) => Finding::ok(ID, "--driver auto takes io_uring"),
            (DriverChoice::IoUring, true) => Finding::ok(ID, "--driver io_uring works"),
            (DriverChoice::Auto, false) => Finding::warn(ID, format!("--driver auto takes epoll: {LOST}"))
                .due("io_uring")
                .cure(self.cure()),
            (DriverChoice::IoUring, false) => {
                Finding::bad(ID, "--driver io_uring: the server would not start (exit code 69)")
                    .due("io_uring as above, or a driver that works")
                    .cure("corecast serve --driver auto")
            }
            (DriverChoice::Epoll, true) => {
                Finding::info(ID, format!("--driver epoll, though io_uring works: {LOST}"))
            }
            (DriverChoice::Epoll, false) => Finding::info(ID, format!("--driver epoll: {LOST}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(errno: i32, disabled: Option<u64>, is_filtered: bool) -> Interface {
        let setup = Err(io::Error::from_raw_os_error(errno));
        let trial = Trial { setup, enter: None, register: None };
        Interface { release: "6.1.0".to_owned(), disabled, is_filtered, trial }
    }

    fn levels(findings: &[Finding]) -> Vec<&'static str> {
        findings.iter().map(|finding| finding.level.name()).collect()
    }

    #[test]
    fn the_cause_decides_the_cure() {
        for (interface, part) in [
            (denied(libc::EPERM, Some(2), true), "sysctl -w kernel.io_uring_disabled=0"),
            (denied(libc::EPERM, Some(0), true), "seccomp=deploy/seccomp-io_uring.json"),
            (denied(libc::ENOSYS, None, true), "seccomp=deploy/seccomp-io_uring.json"),
            (denied(libc::EPERM, None, false), "seccomp=deploy/seccomp-io_uring.json"),
            (denied(libc::EINVAL, None, false), "Linux 6.1"),
            (denied(libc::ENOMEM, Some(0), false), "ulimit -l"),
            (denied(libc::EMFILE, Some(0), false), "ulimit -n"),
        ] {
            let findings = interface.judge(DriverChoice::Auto);
            let cure = findings[0].cure.as_deref().expect("it has a cure");
            assert!(cure.contains(part), "{part}: {cure}");
            assert_eq!(findings[3].cure.as_deref(), Some(cure), "what the driver lacks");
        }
    }

    #[test]
    fn what_a_refusal_means_depends_on_the_driver_that_is_wanted() {
        let judged = |choice| levels(&denied(libc::EPERM, Some(2), false).judge(choice));
        assert_eq!(judged(DriverChoice::Auto), ["warn", "info", "info", "warn"]);
        assert_eq!(judged(DriverChoice::IoUring), ["bad", "info", "info", "bad"]);
        assert_eq!(judged(DriverChoice::Epoll), ["info", "info", "info", "info"]);
    }

    #[test]
    fn a_ring_that_may_not_be_entered_is_no_driver_and_one_without_register_is() {
        let denied = || Some(Err(io::Error::from_raw_os_error(libc::EPERM)));
        let with = |enter, register| Interface {
            release: "6.1.0".to_owned(),
            disabled: Some(0),
            is_filtered: true,
            trial: Trial { setup: Ok(()), enter, register },
        };
        let no_enter = with(denied(), Some(Ok(()))).judge(DriverChoice::Auto);
        assert_eq!(levels(&no_enter), ["ok", "warn", "ok", "warn"]);
        let no_register = with(Some(Ok(())), denied()).judge(DriverChoice::Auto);
        assert_eq!(levels(&no_register), ["ok", "ok", "info", "ok"]);
    }
}
