//! Connection tracking of netfilter, which drops packets of new connections when its table is full.

use host::{Conntrack, Root};

use super::finding::{Count, Finding};
use super::need::Need;

const ID: &str = "net.conntrack";

/// The table, where there is one, against the wanted connections.
pub fn judge(root: &Root, need: &Need) -> Finding {
    judge_table(Conntrack::read(root), need)
}

fn judge_table(table: Option<Conntrack>, need: &Need) -> Finding {
    let Some(table) = table else {
        return Finding::ok(
            ID,
            "nf_conntrack is not loaded, or not seen in this network namespace (of a container in a bridge the host's counts)",
        );
    };
    let due = table.count.saturating_add(need.connections);
    let found = format!("nf_conntrack tracks {}, at most {}", Count(table.count), Count(table.max));
    // A quarter more, so that TIME-WAIT and other programs have their place.
    let with_room = due.saturating_add(due / 4);
    if with_room <= table.max {
        return Finding::ok(ID, found);
    }
    let text = format!("{}: those and {} more, and a quarter", Count(with_room), Count(need.connections));
    let cure = format!(
        "sysctl -w net.netfilter.nf_conntrack_max={}  # on the host, also of a container; or don't track, see \
         docs/TUNING.md for where that is safe",
        with_room.next_power_of_two(),
    );
    // The kernel hooks in only where a rule asks for it; then not even this program's own connections are counted.
    match (table.count, due > table.max) {
        (0, _) => {
            Finding::info(ID, format!("{found}: loaded, and no rule makes it track")).due(text).cure(cure)
        }
        (_, true) => Finding::bad(ID, found).due(text).cure(cure),
        (_, false) => Finding::warn(ID, found).due(text).cure(cure),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::super::need::tests::need;
    use super::*;

    #[test]
    fn the_table_has_room_for_the_wanted_connections_and_a_quarter_more() {
        let judged = |count, max| judge_table(Some(Conntrack { count, max }), &need(100_000));
        assert_eq!(judge_table(None, &need(100_000)).level, Level::Ok);
        assert_eq!(judged(4000, 130_000).level, Level::Ok);
        assert_eq!(judged(4000, 129_999).level, Level::Warn);
        assert_eq!(judged(4000, 104_000).level, Level::Warn);
        let bad = judged(4000, 103_999);
        assert_eq!(bad.level, Level::Bad);
        let cure = bad.cure.expect("it has a cure");
        assert!(cure.starts_with("sysctl -w net.netfilter.nf_conntrack_max=131072 "), "{cure}");
        assert!(!cure.contains("NOTRACK"), "it takes a published port of a container off the net: {cure}");
        assert_eq!(judged(0, 1000).level, Level::Info, "loaded, and nothing tracked");
    }
}
