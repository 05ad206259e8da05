//! Cores: which there are, which share a core or a memory, and how they are clocked.

use std::collections::BTreeSet;

use crate::Root;

/// All cores that are online, ascending.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cpus {
    /// See [`Core`].
    pub cores: Vec<Core>,
    /// Taken out of the scheduler's hands (`isolcpus=`).
    pub isolated: Vec<usize>,
}

/// One logical core.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Core {
    /// Its number.
    pub id: usize,
    /// Logical cores of the same physical one, itself included.
    pub siblings: Vec<usize>,
    /// Its NUMA node.
    pub node: usize,
    /// Its frequency governor; `None` where the kernel doesn't set frequencies, as in most virtual machines.
    pub governor: Option<String>,
    /// What sets it: `acpi-cpufreq`, `intel_pstate`.
    pub frequency_driver: Option<String>,
}

impl Core {
    /// Whether the driver chooses frequencies by itself, so that the governor is only a hint: the active mode of the P-state
    /// drivers (kernel: admin-guide/pm/intel_pstate, amd-pstate).
    pub fn sets_frequency_itself(&self) -> bool {
        matches!(self.frequency_driver.as_deref(), Some("intel_pstate" | "amd-pstate-epp" | "amd_pstate_epp"))
    }
}

impl Cpus {
    /// What `/sys/devices/system` says; no cores where it says nothing.
    pub fn read(root: &Root) -> Self {
        let list = |path: &str| parse_list(&root.read(path).ok()?);
        let online = list("/sys/devices/system/cpu/online").unwrap_or_default();
        let nodes: Vec<(usize, Vec<usize>)> = root
            .names("/sys/devices/system/node")
            .into_iter()
            .filter_map(|name| {
                let number = name.strip_prefix("node")?.parse().ok()?;
                Some((number, list(&format!("/sys/devices/system/node/{name}/cpulist"))?))
            })
            .collect();
        let core = |id: usize| {
            let path = format!("/sys/devices/system/cpu/cpu{id}");
            Core {
                id,
                siblings: list(&format!("{path}/topology/thread_siblings_list")).unwrap_or_else(|| vec![id]),
                node: nodes.iter().find(|(_, cores)| cores.contains(&id)).map_or(0, |(number, _)| *number),
                governor: root.read(&format!("{path}/cpufreq/scaling_governor")).ok(),
                frequency_driver: root.read(&format!("{path}/cpufreq/scaling_driver")).ok(),
            }
        };
        Self {
            cores: online.into_iter().map(core).collect(),
            isolated: list("/sys/devices/system/cpu/isolated").unwrap_or_default(),
        }
    }

    /// The core of this number.
    pub fn core(&self, id: usize) -> Option<&Core> {
        self.cores.iter().find(|core| core.id == id)
    }
}

/// `0-3,8`, as the kernel writes cores and ports: numbers, ascending, each once; the empty text is none. `None` for anything
/// else, and for numbers that it never has (above 65,535).
pub fn parse_list(text: &str) -> Option<Vec<usize>> {
    const HIGHEST: usize = 65_535;
    let mut numbers = BTreeSet::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last > HIGHEST {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_read() {
        for (text, expected) in [
            ("0-3,8", Some(vec![0, 1, 2, 3, 8])),
            ("5", Some(vec![5])),
            ("2,1,1-2", Some(vec![1, 2])),
            ("", Some(vec![])),
            ("\n", Some(vec![])),
            ("3-1", None),
            ("a", None),
            ("0-99999999999", None),
            ("-1", None),
        ] {
            assert_eq!(parse_list(text), expected, "{text:?}");
        }
    }
}
