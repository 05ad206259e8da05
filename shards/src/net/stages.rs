//! Where the relay's time goes, by stage: the numbers behind `corecast_relay_busy_seconds_total`.
//!
//! A batch is timed as a whole, from the read's return until its last publication has been handled, by the thread's CPU
//! clock: a system call, but a clock that runs on while somebody else has the core would count him. Where batches are
//! small, one that follows [`SAMPLED_EVERY`] publications that were not timed stands for them too. What a batch spent is told
//! apart by the laps of one publication in [`SAMPLED_EVERY`], so that no publication pays for a clock of its own. What the
//! batches and the shards' commands leave of the thread's CPU time is `receive`; it is known only where the relay has its
//! thread to itself. Never told apart by room or source.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::metrics::{Label, Metrics, Stage};

/// One publication in so many is timed: four or more clock reads, 25 ns each, come to 3 ns a publication.
const SAMPLED_EVERY: u32 = 32;
/// Shares follow the load: after so many samples those before count half.
const SAMPLES_KEPT: u32 = 256;

/// The laps of one publication.
pub struct Sample {
    since: Instant,
    laps: Laps,
}

/// Nanoseconds by [`Stage::index`].
type Laps = [u64; Stage::ALL.len()];

impl Sample {
    fn starting_at(since: Instant) -> Self {
        Self { since, laps: Laps::default() }
    }

    /// Everything since the last lap was `stage`.
    pub fn lap(&mut self, stage: Stage) {
        let now = Instant::now();
        self.laps[stage.index()] += nanos(now - self.since);
        self.since = now;
    }
}

/// See the module.
pub struct Stages {
    metrics: Arc<Metrics>,
    has_own_thread: bool,
    /// The thread's CPU time when the batch began that is being handled, where it is timed.
    batch_since: Option<u64>,
    /// Publications of the batch that is being handled.
    batch: u32,
    /// Publications since the last batch that was timed.
    untimed: u32,
    /// Publications until the next sample.
    until_sample: u32,
    /// Of the publication that is next, where it is to be sampled.
    next: Option<Sample>,
    /// Sums of samples; only their shares count.
    shares: Laps,
    samples: u32,
}

impl Stages {
    /// Nothing has been spent. `has_own_thread`: whatever this thread does is the relay's.
    pub fn new(metrics: Arc<Metrics>, has_own_thread: bool) -> Self {
        Self {
            metrics,
            has_own_thread,
            batch_since: None,
            batch: 0,
            untimed: SAMPLED_EVERY,
            until_sample: 0,
            next: None,
            shares: Laps::default(),
            samples: 0,
        }
    }

    /// A read has returned.
    pub fn batch_begins(&mut self) {
        self.batch = 0;
        self.batch_since = (self.untimed >= SAMPLED_EVERY).then(cpu_nanos);
        self.next = (self.until_sample == 0).then(|| Sample::starting_at(Instant::now()));
    }

    /// A publication has been found in the batch. The sample, if it is one, runs since the one before it.
    pub fn publication_begins(&mut self) -> Option<Sample> {
        self.next.take()
    }

    /// The publication has been handled.
    pub fn publication_ends(&mut self, sample: Option<Sample>) {
        if let Some(mut sample) = sample {
            sample.lap(Stage::Place);
            self.note(&sample.laps);
            self.until_sample = SAMPLED_EVERY;
        }
        // Zero where a batch ended before the one that was due.
        self.until_sample = self.until_sample.saturating_sub(1);
        self.batch += 1;
        if self.until_sample == 0 {
            self.next = Some(Sample::starting_at(Instant::now()));
        }
    }

    fn note(&mut self, laps: &Laps) {
        if self.samples == SAMPLES_KEPT {
            self.samples /= 2;
            self.shares.iter_mut().for_each(|share| *share /= 2);
        }
        self.samples += 1;
        self.shares.iter_mut().zip(laps).for_each(|(share, lap)| *share += lap);
    }

    /// All of the batch has been handled; the shards are rung next. Returns when that began.
    pub fn batch_handled(&mut self) -> Instant {
        self.next = None;
        self.untimed = self.untimed.saturating_add(self.batch);
        if let Some(since) = self.batch_since.take() {
            let spent = cpu_nanos().saturating_sub(since);
            if self.batch == 0 {
                self.divide(spent);
            } else {
                self.divide(for_all(spent, self.batch, self.untimed));
                self.untimed = 0;
            }
        }
        Instant::now()
    }

    /// Counts what a batch spent, by the shares of the samples.
    fn divide(&self, spent: u64) {
        let busy = &self.metrics.relay.busy;
        let all: u64 = self.shares.iter().sum();
        let share_of = |stage: Stage| u128::from(self.shares[stage.index()]) * u128::from(spent);
        let part = |stage| share_of(stage).checked_div(u128::from(all)).unwrap_or(0) as u64;
        let (place, offer) = (part(Stage::Place), part(Stage::Offer));
        busy.add(Stage::Place, place);
        busy.add(Stage::Offer, offer);
        // Before the first publication everything that comes is replies, which are parsed.
        busy.add(Stage::Parse, spent - place - offer);
    }

    /// Everything since `since` was `stage`.
    pub fn spent_since(&self, since: Instant, stage: Stage) {
        self.metrics.relay.busy.add(stage, nanos(since.elapsed()));
    }

    /// Counts what the thread spent besides. To be called now and then, on the relay's thread.
    pub fn settle(&self) {
        if !self.has_own_thread {
            return;
        }
        let busy = &self.metrics.relay.busy;
        // The short stages are timed by a clock that runs on while somebody else has the core: theirs may be more than all.
        let rest = cpu_nanos().saturating_sub(busy.total());
        busy.add(Stage::Receive, rest);
    }
}

/// What `all` publications spent, where those of a batch of `batch` (at least one) spent `spent`.
fn for_all(spent: u64, batch: u32, all: u32) -> u64 {
    (u128::from(spent) * u128::from(all) / u128::from(batch)) as u64
}

/// CPU time of this thread.
fn cpu_nanos() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Identity;

    fn stages(has_own_thread: bool) -> (Stages, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new(1, Identity::default(), false));
        (Stages::new(metrics.clone(), has_own_thread), metrics)
    }

    #[test]
    fn a_batch_is_divided_as_its_samples_were_and_nothing_of_it_is_lost() {
        let (mut stages, metrics) = stages(false);
        let mut laps = Laps::default();
        laps[Stage::Parse.index()] = 10;
        laps[Stage::Place.index()] = 30;
        laps[Stage::Offer.index()] = 20;
        (0..1_000).for_each(|_| stages.note(&laps));
        stages.divide(6_001);
        let busy = &metrics.relay.busy;
        let of = |stage| busy.nanos(stage);
        assert_eq!((of(Stage::Place), of(Stage::Offer)), (3_000, 2_000));
        assert_eq!(of(Stage::Parse), 1_001, "what can't be divided is somebody's");
    }

    #[test]
    fn one_publication_in_so_many_is_sampled_however_the_batches_are_cut() {
        for batch in [1, 7, 32, 500] {
            let (mut stages, _) = stages(false);
            let (mut sampled, mut handled) = (0, 0);
            while handled < 3_200 {
                stages.batch_begins();
                for _ in 0..batch {
                    let sample = stages.publication_begins();
                    sampled += u32::from(sample.is_some());
                    stages.publication_ends(sample);
                    handled += 1;
                }
                stages.batch_handled();
            }
            assert_eq!(sampled, u32::div_ceil(handled, SAMPLED_EVERY), "batches of {batch}");
        }
    }

    #[test]
    fn a_batch_that_was_timed_stands_for_the_small_ones_before_it() {
        assert_eq!(for_all(1_000, 2, 34), 17_000);
        let (mut stages, metrics) = stages(false);
        let mut timed = 0;
        for _ in 0..10 * SAMPLED_EVERY {
            stages.batch_begins();
            timed += u32::from(stages.batch_since.is_some());
            let sample = stages.publication_begins();
            stages.publication_ends(sample);
            stages.batch_handled();
        }
        assert_eq!(timed, 10);
        assert!(metrics.relay.busy.total() > 0);
        // Replies are timed too, and hide none of the publications before them.
        stages.untimed = SAMPLED_EVERY;
        stages.batch_begins();
        stages.batch_handled();
        assert_eq!(stages.untimed, SAMPLED_EVERY);
    }

    #[test]
    fn what_a_thread_of_its_own_spends_besides_is_receiving() {
        let (stages, metrics) = stages(true);
        let until = Instant::now() + Duration::from_millis(5);
        while Instant::now() < until {
            std::hint::black_box(0);
        }
        stages.settle();
        assert!(metrics.relay.busy.nanos(Stage::Receive) > 0);
        let (shared, metrics) = self::stages(false);
        shared.settle();
        assert_eq!(metrics.relay.busy.total(), 0);
    }
}
