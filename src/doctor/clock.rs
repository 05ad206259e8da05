//! The clock that every turn and every latency is read from.

use host::Root;

use super::finding::Finding;

const ID: &str = "clock.source";

/// Of this host.
pub fn judge(root: &Root) -> Finding {
    let read = |name: &str| root.read(&format!("/sys/devices/system/clocksource/clocksource0/{name}")).ok();
    match read("current_clocksource") {
        None => Finding::untold(ID, "the clock source"),
        Some(current) => judge_source(&current, &read("available_clocksource").unwrap_or_default()),
    }
}

fn judge_source(current: &str, available: &str) -> Finding {
    let found = format!("clock source {current}");
    // These are read with a system call, and the chip behind it takes a microsecond; the others are read in user space.
    if !matches!(current, "acpi_pm" | "hpet" | "jiffies" | "refined-jiffies" | "pit") {
        return Finding::ok(ID, found);
    }
    let finding = Finding::warn(ID, found)
        .due("one that is read without a system call, such as tsc: a shard reads it each turn");
    let is_there = |name: &&str| available.split_whitespace().any(|found| found == *name);
    match ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"]
        .iter()
        .copied()
        .find(|name| is_there(name))
    {
        Some(better) => finding.cure(format!(
            "echo {better} > /sys/devices/system/clocksource/clocksource0/current_clocksource"
        )),
        None => {
            finding.cure("dmesg | grep -i -e tsc -e clocksource  # why the kernel gave the better one up")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn slow_clocks_are_a_warning_with_the_better_one_that_there_is() {
        for current in ["tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page"] {
            assert_eq!(judge_source(current, "").level, Level::Ok, "{current}");
        }
        for current in ["hpet", "acpi_pm", "jiffies"] {
            let finding = judge_source(current, "tsc hpet acpi_pm");
            assert_eq!(finding.level, Level::Warn);
            assert!(finding.cure.is_some_and(|cure| cure.starts_with("echo tsc > ")));
        }
        assert!(judge_source("hpet", "hpet acpi_pm").cure.is_some_and(|cure| cure.starts_with("dmesg ")));
    }
}
