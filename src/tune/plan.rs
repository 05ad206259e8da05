//! What a profile would change in the running kernel.

use host::Root;

use crate::footprint;
use crate::tune::formula::Facts;
use crate::tune::knob::{Knob, KnobError, Name, Scope};
use crate::tune::profile::Profile;
use crate::tune::target::{Target, TargetError};

/// A profile beside the values that there are.
#[derive(Debug)]
pub struct Plan {
    /// Which.
    pub profile: Profile,
    /// What its formulas were computed from.
    pub facts: Facts,
    /// Every knob, a pattern once for each file that fits.
    pub steps: Vec<Step>,
}

/// One value.
#[derive(Debug)]
pub struct Step {
    /// The place of its knob in the profile.
    pub knob: usize,
    /// The knob's, or the file's that fits the knob's pattern.
    pub name: String,
    /// `None` for what the running kernel doesn't hold.
    pub target: Option<Target>,
    /// Whom a change reaches.
    pub scope: Scope,
    /// How it is.
    pub state: State,
}

/// How a value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// As it should be, or as good.
    Good {
        /// The value.
        now: String,
    },
    /// To be changed.
    Differs {
        /// The value.
        now: String,
        /// What it should be.
        due: String,
    },
    /// This machine, kernel or namespace doesn't have it.
    Absent,
    /// It can't be read, or has another form than the knob.
    Unreadable {
        /// Why.
        why: String,
    },
}

impl Plan {
    /// Reads every value of `profile`. Acts in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`KnobError::Formula`]: a formula that has no value on this machine is the profile's fault.
    pub fn make(profile: Profile, facts: Facts, root: &Root) -> Result<Self, KnobError> {
        let mut steps = Vec::new();
        for (index, knob) in profile.knobs.iter().enumerate() {
            let step = |name, target, state| Step { knob: index, name, target, scope: knob.scope, state };
            let targets = knob.targets(root);
            if targets.is_empty() {
                let state = match knob.name {
                    Name::LimitNofile => limit_state(knob, &facts, root)?,
                    _ => State::Absent,
                };
                steps.push(step(knob.name.to_string(), None, state));
            }
            for target in targets {
                let state = state(knob, &facts, target.read(root))?;
                steps.push(step(target.to_string(), Some(target), state));
            }
        }
        Ok(Self { profile, facts, steps })
    }

    /// Those that are to be changed, as far as `apply` can: (step, target, now, due).
    pub fn changes(&self) -> impl Iterator<Item = (&Step, &Target, &str, &str)> {
        self.steps.iter().filter_map(|step| match (&step.target, &step.state) {
            (Some(target), State::Differs { now, due }) => Some((step, target, now.as_str(), due.as_str())),
            _ => None,
        })
    }

    /// Memory that so many idle connections take, corecast's own and the kernel's.
    pub fn connections_bytes(&self) -> u64 {
        footprint::idle_bytes(self.facts.connections)
    }
}

fn state(knob: &Knob, facts: &Facts, read: Result<String, TargetError>) -> Result<State, KnobError> {
    let now = match read {
        Ok(now) => now,
        Err(error) if error.is_absence() => return Ok(State::Absent),
        Err(error) => return Ok(State::Unreadable { why: error.to_string() }),
    };
    match knob.due(facts, &now) {
        Ok(due) if due == now => Ok(State::Good { now }),
        Ok(due) => Ok(State::Differs { now, due }),
        Err(error @ KnobError::Form { .. }) => Ok(State::Unreadable { why: error.to_string() }),
        Err(error) => Err(error),
    }
}

/// Of the process that asks: its hard limit, up to which corecast raises its soft one.
fn limit_state(knob: &Knob, facts: &Facts, root: &Root) -> Result<State, KnobError> {
    let limits = root.read("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    match line.and_then(|line| line.split_whitespace().nth(1)) {
        None => Ok(State::Unreadable { why: "/proc/self/limits doesn't tell it".to_owned() }),
        Some("unlimited") => Ok(State::Good { now: "unlimited".to_owned() }),
        Some(hard) => state(knob, facts, Ok(hard.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::scratch::Scratch;

    const FACTS: Facts = Facts {
        connections: 100_000,
        memory_bytes: 8 << 30,
        cores: 4,
        page_bytes: 4096,
        listen_backlog: 65_535,
        reserved_descriptors: 104,
    };

    #[test]
    fn a_plan_tells_what_differs_what_is_good_and_what_is_not_there() {
        let scratch = Scratch::new("plan");
        scratch.sysctl("net/core/somaxconn", "4096");
        scratch.sysctl("fs/nr_open", "1048576");
        scratch.sysctl("fs/file-max", "many");
        scratch.sysctl("net/ipv4/tcp_mem", "94212\t125616\t188424");
        scratch.write(
            "proc/self/limits",
            "Limit  Soft Limit  Hard Limit  Units\nMax open files  1024  524288  files\n",
        );
        let profile = Profile::built_in("100k").expect("it is read").expect("it is built in");
        let plan = Plan::make(profile, FACTS, scratch.root()).expect("it is made");
        let differs = |now: &str, due: &str| State::Differs { now: now.to_owned(), due: due.to_owned() };
        let good = |now: &str| State::Good { now: now.to_owned() };
        let unreadable = State::Unreadable {
            why: "fs.file-max is \"many\", due were as many numbers as the knob has: 1".to_owned(),
        };
        let due = [
            ("net.core.somaxconn", differs("4096", "65535")),
            ("fs.nr_open", good("1048576")),
            ("fs.file-max", unreadable),
            ("net.netfilter.nf_conntrack_max", State::Absent),
            // 100,000 connections x 2.3 and x 3.45 pages, neither above a quarter and a third of 2,097,152.
            ("net.ipv4.tcp_mem", differs("94212 125616 188424", "94212 230000 345000")),
            ("LimitNOFILE", good("524288")),
        ];
        let found: Vec<_> = plan.steps.iter().map(|step| (step.name.as_str(), step.state.clone())).collect();
        assert_eq!(found, due);
        assert_eq!(plan.changes().count(), 2);
        assert_eq!(plan.connections_bytes(), 500_000_000);
    }

    #[test]
    fn a_small_machine_is_never_asked_for_more_tcp_memory_than_a_third_of_what_it_has() {
        let scratch = Scratch::new("plan-small");
        scratch.sysctl("net/ipv4/tcp_mem", "1 2 3");
        for memory_bytes in [256 << 20, 1 << 30, 64 << 30] {
            let facts = Facts { connections: 10_000_000, memory_bytes, ..FACTS };
            let profile = Profile::built_in("1m").expect("it is read").expect("it is built in");
            let plan = Plan::make(profile, facts, scratch.root()).expect("it is made");
            let due = plan.changes().next().expect("it differs").3;
            let numbers: Vec<u64> = due.split(' ').map(|number| number.parse().expect("a number")).collect();
            let pages = memory_bytes.div_ceil(4096);
            assert!(numbers[0] < numbers[1] && numbers[1] < numbers[2], "{due}");
            assert!(numbers[1] <= pages.div_ceil(4) && numbers[2] <= pages.div_ceil(3), "{due}");
        }
    }
}
