use super::*;

const PATIENCE: Patience = Patience {
    start: Duration::from_secs(60),
    leave: Duration::from_secs(20),
    stop: Duration::from_secs(3),
    settle: Duration::ZERO,
    silence: None,
};

fn started(places: usize, patience: Patience) -> (Fleet, Instant) {
    let now = Instant::now();
    let mut fleet = Fleet::new(places, patience, now);
    let starts: Vec<Step> = fleet.tick(now);
    let due = |place| Step::Start { place, generation: place as u64 };
    assert_eq!(starts, (0..places).map(due).collect::<Vec<_>>());
    for generation in 0..places as u64 {
        fleet.handle_ready(generation, now);
    }
    assert!(fleet.has_served());
    (fleet, now)
}

/// Without what is only told.
fn done(steps: Vec<Step>) -> Vec<Step> {
    steps.into_iter().filter(|step| !matches!(step, Step::Tell(_))).collect()
}

fn told(steps: &[Step]) -> Vec<&News> {
    steps.iter().filter_map(|step| if let Step::Tell(news) = step { Some(news) } else { None }).collect()
}

const fn start(place: usize, generation: u64) -> Step {
    Step::Start { place, generation }
}

const fn leave(generation: u64) -> Step {
    Step::Leave { generation, for_good: false }
}

#[test]
fn who_dies_is_started_again_at_once_and_then_ever_later() {
    let (mut fleet, now) = started(2, PATIENCE);
    assert_eq!(done(fleet.handle_gone(1, now, 0.0)), [start(1, 2)]);
    assert_eq!(done(fleet.handle_gone(2, now, 0.0)), []);
    let due = fleet.next_due().expect("a start is due");
    assert_eq!(due, now + Duration::from_millis(200));
    assert_eq!(done(fleet.tick(due)), [start(1, 3)]);
    assert_eq!((fleet.restarts(0), fleet.restarts(1)), (0, 2));
    assert_eq!((fleet.serving(0), fleet.serving(1)), (Some(0), None));
}

#[test]
fn a_crash_loop_is_told_once_until_it_ends() {
    let (mut fleet, mut now) = started(1, PATIENCE);
    let mut deaths = Vec::new();
    for generation in 0..20 {
        let steps = fleet.handle_gone(generation, now, 0.0);
        deaths.extend(told(&steps).into_iter().cloned());
        now = fleet.next_due().unwrap_or(now).max(now);
        fleet.tick(now);
    }
    let told_in_full = deaths.iter().filter(|news| matches!(news, News::Died { .. })).count();
    assert_eq!((told_in_full, deaths.len()), (3, 20), "{deaths:?}");
    assert_eq!(fleet.restarts(0), 20);
}

#[test]
fn newcomers_do_not_wait_for_a_place_whose_process_dies_again_and_again() {
    let (mut fleet, mut now) = started(2, PATIENCE);
    for (generation, closes) in [(1, false), (2, false), (3, true), (4, true)] {
        let steps = fleet.handle_gone(generation, now, 0.0);
        assert_eq!(steps.contains(&Step::Close { place: 1 }), closes, "{generation}: {steps:?}");
        now = fleet.next_due().unwrap_or(now).max(now);
        fleet.tick(now);
    }
}

#[test]
fn a_rolling_restart_replaces_one_after_the_other_and_waits_for_each_to_leave() {
    let (mut fleet, now) = started(2, PATIENCE);
    assert_eq!(done(fleet.roll(now)), [start(0, 2)]);
    assert_eq!(fleet.serving(0), Some(0), "until the successor is ready");
    assert_eq!(done(fleet.handle_ready(2, now)), [leave(0)]);
    assert_eq!(fleet.serving(0), Some(2));
    assert_eq!(done(fleet.tick(now)), [], "the old one drains");
    assert_eq!(done(fleet.handle_gone(0, now, 0.0)), [start(1, 3)]);
    assert_eq!(done(fleet.handle_ready(3, now)), [leave(1)]);
    let steps = fleet.handle_gone(1, now, 0.0);
    assert_eq!(told(&steps), [&News::Left { place: 1, generation: 1 }, &News::Rolled]);
    assert_eq!((fleet.restarts(0), fleet.restarts(1), fleet.is_rolling()), (0, 0, false));
}

#[test]
fn a_second_rolling_restart_follows_the_first_however_that_ends() {
    let (mut fleet, now) = started(1, PATIENCE);
    fleet.roll(now);
    for _ in 0..2 {
        assert_eq!(fleet.roll(now), [Step::Tell(News::RollsAgain)]);
    }
    fleet.handle_ready(1, now);
    let steps = fleet.handle_gone(0, now, 0.0);
    assert_eq!(told(&steps)[1..], [&News::Rolled, &News::RollBegins]);
    assert_eq!(done(steps), [start(0, 2)]);
    fleet.roll(now);
    assert_eq!(done(fleet.handle_gone(2, now, 0.0)), [start(0, 3)], "the second failed");
    fleet.handle_ready(3, now);
    let steps = fleet.handle_gone(1, now, 0.0);
    assert_eq!((told(&steps)[1], fleet.is_rolling()), (&News::Rolled, false));
}

#[test]
fn a_successor_that_cannot_start_ends_the_rolling_restart_and_nobody_leaves() {
    let (mut fleet, now) = started(2, PATIENCE);
    fleet.roll(now);
    let steps = fleet.handle_gone(2, now, 0.0);
    assert_eq!(steps, [Step::Tell(News::RollFailed { place: 0 })]);
    assert_eq!((fleet.serving(0), fleet.serving(1), fleet.is_rolling()), (Some(0), Some(1), false));
}

#[test]
fn a_successor_that_is_not_ready_in_time_is_killed_and_nobody_leaves() {
    let (mut fleet, now) = started(2, PATIENCE);
    fleet.roll(now);
    let late = now + PATIENCE.start;
    assert_eq!(fleet.next_due(), Some(late));
    assert_eq!(done(fleet.tick(late)), [Step::Kill { generation: 2 }]);
    assert_eq!(done(fleet.handle_gone(2, late, 0.0)), []);
    assert_eq!((fleet.serving(0), fleet.serving(1), fleet.is_rolling()), (Some(0), Some(1), false));
}

#[test]
fn one_that_dies_while_its_successor_starts_is_succeeded_and_not_restarted() {
    let (mut fleet, now) = started(1, PATIENCE);
    fleet.roll(now);
    assert_eq!(done(fleet.handle_gone(0, now, 0.0)), []);
    assert_eq!(done(fleet.handle_ready(1, now)), []);
    assert_eq!((fleet.serving(0), fleet.is_rolling()), (Some(1), false));
}

#[test]
fn a_build_that_dies_as_soon_as_it_serves_is_not_rolled_over_all_places() {
    let (mut fleet, now) = started(3, PATIENCE);
    fleet.roll(now);
    fleet.handle_ready(3, now);
    assert_eq!(done(fleet.handle_gone(0, now, 0.0)), [start(1, 4)]);
    let steps = fleet.handle_gone(3, now, 0.0);
    assert!(told(&steps).contains(&&News::RollBroken { place: 0 }), "{steps:?}");
    assert_eq!(done(steps), [Step::Kill { generation: 4 }, start(0, 5)]);
    fleet.handle_gone(4, now, 0.0);
    assert_eq!((fleet.serving(1), fleet.serving(2), fleet.is_rolling()), (Some(1), Some(2), false));
}

#[test]
fn a_death_of_the_old_build_does_not_end_the_rolling_restart() {
    let (mut fleet, now) = started(2, PATIENCE);
    fleet.roll(now);
    assert_eq!(done(fleet.handle_gone(1, now, 0.0)), [start(1, 3)]);
    assert!(fleet.is_rolling());
}

#[test]
fn the_next_place_has_its_turn_when_a_successor_has_served_for_a_while() {
    let settle = Duration::from_secs(2);
    let (mut fleet, now) = started(2, Patience { settle, ..PATIENCE });
    fleet.roll(now);
    fleet.handle_ready(2, now);
    assert_eq!(done(fleet.handle_gone(0, now, 0.0)), []);
    assert_eq!(fleet.next_due(), Some(now + settle));
    assert_eq!(done(fleet.tick(now + settle)), [start(1, 3)]);
}

#[test]
fn a_place_whose_process_goes_before_its_successor_fails_is_not_left_empty() {
    type Goes = fn(&mut Fleet, Instant) -> Vec<Step>;
    let ways: [Goes; 2] = [
        |fleet, now| fleet.handle_gone(0, now, 0.0),
        |fleet, now| fleet.handle_leaving(0, Duration::ZERO, now),
    ];
    for goes in ways {
        let (mut fleet, now) = started(2, PATIENCE);
        fleet.roll(now);
        assert_eq!(done(goes(&mut fleet, now)), []);
        assert_eq!(done(fleet.handle_gone(2, now, 0.0)), [start(0, 3)], "the successor died");
        fleet.handle_ready(3, now);
        assert_eq!((fleet.serving(0), fleet.restarts(0), fleet.is_rolling()), (Some(3), 1, false));

        let (mut fleet, now) = started(2, PATIENCE);
        fleet.roll(now);
        goes(&mut fleet, now);
        let late = now + PATIENCE.start;
        fleet.tick(now + PATIENCE.leave);
        assert_eq!(done(fleet.tick(late)), [Step::Kill { generation: 2 }], "the successor was late");
        assert_eq!(done(fleet.tick(late)), [start(0, 3)]);
        fleet.handle_ready(3, late);
        assert_eq!((fleet.serving(0), fleet.is_rolling()), (Some(3), false));
    }
}

#[test]
fn a_rolling_restart_waits_for_a_place_whose_process_is_dead() {
    let (mut fleet, now) = started(2, PATIENCE);
    fleet.handle_gone(0, now, 0.0);
    fleet.handle_gone(2, now, 0.0);
    assert_eq!(done(fleet.roll(now)), [], "place 0 has nobody");
    let due = fleet.next_due().expect("a start is due");
    assert_eq!(done(fleet.tick(due)), [start(0, 3)]);
    assert_eq!(done(fleet.handle_ready(3, due)), [start(1, 4)]);
}

#[test]
fn one_that_leaves_by_itself_is_succeeded_at_once_and_not_waited_for() {
    let (mut fleet, now) = started(2, PATIENCE);
    assert_eq!(done(fleet.handle_leaving(1, Duration::ZERO, now)), [start(1, 2)]);
    assert_eq!(done(fleet.handle_ready(2, now)), []);
    assert_eq!((fleet.serving(1), fleet.restarts(1)), (Some(2), 0));
    assert_eq!(fleet.leaving(1).collect::<Vec<_>>(), [1]);
    assert_eq!(done(fleet.handle_gone(1, now, 0.0)), []);
}

#[test]
fn what_the_supervisor_told_to_leave_is_not_succeeded_twice() {
    let (mut fleet, now) = started(1, PATIENCE);
    fleet.roll(now);
    fleet.handle_ready(1, now);
    assert_eq!(done(fleet.handle_leaving(0, Duration::ZERO, now)), []);
    fleet.end(now);
    assert_eq!(done(fleet.handle_leaving(1, Duration::ZERO, now)), []);
}

#[test]
fn all_leave_for_good_and_nobody_is_restarted() {
    let (mut fleet, now) = started(2, PATIENCE);
    let leaves = [0, 1].map(|generation| Step::Leave { generation, for_good: true });
    assert_eq!(fleet.end(now), leaves);
    assert!(!fleet.has_ended());
    for generation in [0, 1] {
        let place = generation as usize;
        assert_eq!(done(fleet.handle_gone(generation, now, 0.0)), [Step::Close { place }]);
    }
    assert!(fleet.has_ended());
}

#[test]
fn where_all_leave_a_place_without_a_process_keeps_nobody_waiting() {
    let (mut fleet, now) = started(2, PATIENCE);
    fleet.handle_gone(1, now, 0.0);
    fleet.handle_gone(2, now, 0.0);
    let leave = Step::Leave { generation: 0, for_good: true };
    assert_eq!(fleet.end(now), [leave, Step::Close { place: 1 }]);
}

#[test]
fn the_end_takes_successors_and_leavers_along_and_the_second_word_stops_them() {
    let (mut fleet, now) = started(1, PATIENCE);
    fleet.roll(now);
    fleet.handle_ready(1, now);
    let both = [0, 1];
    assert_eq!(fleet.end(now), both.map(|generation| Step::Leave { generation, for_good: true }));
    assert_eq!(fleet.end(now), both.map(|generation| Step::Stop { generation }));
}

#[test]
fn who_hangs_when_all_are_to_end_at_once_is_killed_a_moment_later() {
    let (mut fleet, now) = started(2, PATIENCE);
    fleet.end(now);
    fleet.end(now);
    fleet.handle_leaving(1, PATIENCE.leave * 3, now);
    let due = now + PATIENCE.stop;
    assert_eq!(fleet.next_due(), Some(due));
    assert_eq!(done(fleet.tick(due)), [0, 1].map(|generation| Step::Kill { generation }));
}

#[test]
fn who_says_that_leaving_takes_longer_is_given_that_time() {
    let (mut fleet, now) = started(1, PATIENCE);
    fleet.end(now);
    assert_eq!(fleet.leave_due(), Some(now + PATIENCE.leave));
    fleet.handle_leaving(0, PATIENCE.leave * 3, now);
    assert_eq!(fleet.leave_due(), Some(now + PATIENCE.leave * 3));
    assert_eq!(done(fleet.tick(now + PATIENCE.leave)), []);
    assert_eq!(done(fleet.tick(now + PATIENCE.leave * 3)), [Step::Kill { generation: 0 }]);
}

#[test]
fn who_does_not_leave_in_time_is_killed_once() {
    let (mut fleet, now) = started(1, PATIENCE);
    fleet.end(now);
    let late = now + PATIENCE.leave;
    assert_eq!(fleet.next_due(), Some(late));
    assert_eq!(done(fleet.tick(late)), [Step::Kill { generation: 0 }]);
    assert_eq!(done(fleet.tick(late)), []);
}

#[test]
fn under_a_watchdog_one_that_says_nothing_is_killed_and_one_that_speaks_is_not() {
    let silence = Duration::from_secs(5);
    let (mut fleet, now) = started(2, Patience { silence: Some(silence), ..PATIENCE });
    fleet.handle_alive(1, now + Duration::from_secs(4));
    assert_eq!(done(fleet.tick(now + silence)), [Step::Kill { generation: 0 }]);
    assert_eq!(done(fleet.tick(now + silence)), [], "once");
    assert_eq!(fleet.next_due(), Some(now + Duration::from_secs(9)));
}
