//! The run: samples in ABBA order, each in the set-up of its arm, until there are enough or something ends it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use host::Root;

use super::arm::{Arm, Knob, SetKnob};
use super::enclosure::{Enclosure, EnclosureError, Inside};
use super::host_knobs::{Applied, HostKnobs};
use super::plan::{Plan, Side};
use super::sample::{self, Programs, Sample, SampleError};
use crate::exit::{FAILED, Failure, NO_PERMISSION};
use crate::output::complain;
use crate::tune::target::{NETWORK_DEVICES, Target, TargetError};

/// All that a run needs.
pub struct Runner<'a> {
    pub plan: &'a Plan,
    pub programs: &'a Programs,
    pub enclosure: Enclosure,
    /// Where `/proc` and `/sys` are.
    pub root: &'a Root,
    /// What each arm sets where.
    pub setups: [Setup; 2],
    pub host_knobs: &'a HostKnobs,
    /// For files of samples; gone when the run is.
    pub folder: &'a Path,
    /// Becomes true when somebody wants to end.
    pub stop: &'a AtomicBool,
}

/// The knobs of an arm, by the place where they are set.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// In the namespace of the sample.
    pub inside: Vec<Knob>,
    /// For the whole host.
    pub host: Vec<Knob>,
}

/// How a run ended, and with what.
#[derive(Debug)]
pub struct Run {
    /// Those that were taken, in order.
    pub samples: Vec<Sample>,
    pub end: End,
}

/// See [`Run`].
#[derive(Debug)]
pub enum End {
    /// There are as many pairs as were planned.
    Complete,
    /// By a signal.
    Interrupted,
    /// A sample failed.
    Failed(String),
}

impl Run {
    /// The pairs (a, b) of which both samples were taken.
    pub fn pairs(&self) -> Vec<(f64, f64)> {
        let value = |pair, side| {
            let is_it = |sample: &&Sample| sample.pair == Some(pair) && sample.side == side;
            self.samples.iter().find(is_it).map(|sample| sample.value)
        };
        (0..).map_while(|pair| Some((value(pair, Side::A)?, value(pair, Side::B)?))).collect()
    }

    /// Samples that count and are doubted, and all that count.
    pub fn doubtful(&self) -> (usize, usize) {
        let counted = || self.samples.iter().filter(|sample| sample.pair.is_some());
        (counted().filter(|sample| !sample.doubts.is_empty()).count(), counted().count())
    }
}

impl Runner<'_> {
    /// Takes all samples; after each the machine is as it was.
    pub fn run(&self) -> Run {
        let began = Instant::now();
        let (mut samples, due) = (Vec::new(), self.plan.samples());
        for position in 0..due {
            if self.stop.load(Ordering::Relaxed) {
                return Run { samples, end: End::Interrupted };
            }
            match self.take(position) {
                Ok(sample) => {
                    tell(&sample, due, began.elapsed());
                    samples.push(sample);
                }
                Err(SampleError::Interrupted) => return Run { samples, end: End::Interrupted },
                Err(error) => {
                    let sentence = format!("sample {} of {due}: {error}", position + 1);
                    return Run { samples, end: End::Failed(sentence) };
                }
            }
        }
        Run { samples, end: End::Complete }
    }

    fn take(&self, position: usize) -> Result<Sample, SampleError> {
        let discard = self.plan.discard;
        // Discarded samples don't move the order of those that count: that begins with A.
        let (side, pair) = match position.checked_sub(discard) {
            None => (Side::at(position), None),
            Some(counted) => (Side::at(counted), Some(counted / 2)),
        };
        let (arm, setup) = (side.of(&self.plan.arms), side.of(&self.setups));
        let folder = self.folder.join(format!("sample-{position}"));
        fs::create_dir_all(&folder)
            .map_err(|error| SampleError::File("make the folder of a sample", error))?;
        let ran = self.in_setup(arm, setup, &folder);
        self.host_knobs.revert().map_err(|error| SampleError::Setup(error.to_string()))?;
        fs::remove_dir_all(&folder)
            .map_err(|error| SampleError::File("remove the folder of a sample", error))?;
        let (ran, knobs) = ran?;
        let (value, unit) = sample::figure(&ran.report, &self.plan.metric)?;
        let doubts = sample::doubts(&ran.report);
        let sample::Ran { command, report, seconds } = ran;
        Ok(Sample { position, side, pair, value, unit, doubts, seconds, knobs, command, report })
    }

    fn in_setup(
        &self,
        arm: &Arm,
        setup: &Setup,
        folder: &Path,
    ) -> Result<(sample::Ran, Vec<SetKnob>), SampleError> {
        let mut set =
            self.host_knobs.set(&setup.host).map_err(|error| SampleError::Setup(error.to_string()))?;
        let inside = self.enclosure.run(self.root, folder, |inside| {
            for knob in &setup.inside {
                let done = set_inside(knob, inside);
                set.push(done.map_err(|error| SampleError::Setup(error.to_string()))?);
            }
            sample::run(self.plan, arm, self.programs, folder, self.stop).map(|ran| (ran, set))
        });
        inside.map_err(|error| SampleError::Setup(error.to_string()))?
    }
}

fn set_inside(knob: &Knob, inside: &Inside) -> Result<SetKnob, TargetError> {
    let root = root_of(&knob.target, inside);
    knob.target.write(root, &knob.value)?;
    Ok(SetKnob { knob: knob.clone(), found: knob.target.read(root)? })
}

fn root_of<'i>(target: &Target, inside: &'i Inside) -> &'i Root {
    if matches!(target, Target::File(_)) { &inside.devices } else { &inside.proc }
}

/// Of what a profile was applied with on this host: what samples find, and what they don't, because each of them is in a
/// network namespace that has its own.
///
/// # Errors
/// A namespace can't be made any more.
pub fn reach(
    applied: Vec<Applied>,
    enclosure: Enclosure,
    root: &Root,
    scratch: &Path,
) -> Result<(Vec<Applied>, Vec<Applied>), EnclosureError> {
    let is_fresh = matches!(enclosure, Enclosure::Fresh { .. });
    enclosure.run(root, scratch, |inside| {
        let has_own =
            |target: &Target| target.is_of_network() && target.read(root_of(target, inside)).is_ok();
        applied.into_iter().partition(|applied| !(is_fresh && has_own(&applied.target)))
    })
}

/// Decides where the plan's knobs are set, and tries whether they are there, before the first sample.
///
/// # Errors
/// A [`Failure`]: 77 where no namespace may be made and one is needed, 1 for a knob that isn't there.
pub fn prepare(plan: &Plan, root: &Root, scratch: &Path) -> Result<(Enclosure, [Setup; 2]), Failure> {
    let knobs = || plan.arms.iter().flat_map(|arm| &arm.knobs);
    let with_devices = knobs().any(|knob| knob.target.to_string().starts_with(NETWORK_DEVICES));
    let fresh = Enclosure::Fresh { with_devices };
    let needs_namespace = knobs().any(Knob::is_of_network);
    let enclosure = match fresh.run(root, scratch, |_| ()) {
        Ok(()) => fresh,
        Err(error) if needs_namespace => {
            let sentence = format!(
                "{error}; run the experiment as root (CAP_SYS_ADMIN): its arms set kernel parameters"
            );
            return Err(Failure::new(NO_PERMISSION, sentence));
        }
        Err(error) if error.error.kind() == ErrorKind::PermissionDenied => {
            complain!("corecast: {error}: samples run in the network namespace that this program is in");
            Enclosure::Current
        }
        Err(error) => return Err(Failure::new(FAILED, error.to_string())),
    };
    let split = enclosure.run(root, scratch, |inside| {
        let [a, b] = &plan.arms;
        Ok([split(a, inside)?, split(b, inside)?])
    });
    split
        .map_err(|error| error.to_string())
        .and_then(|split| split)
        .and_then(|setups| check_host(&setups, root).map(|()| setups))
        .map(|setups| (enclosure, setups))
        .map_err(|sentence| Failure::new(FAILED, sentence))
}

/// A knob of the network that a namespace doesn't have is the host's, where the arm may touch it.
fn split(arm: &Arm, inside: &Inside) -> Result<Setup, String> {
    let mut setup = Setup::default();
    for knob in &arm.knobs {
        let found = knob.is_of_network().then(|| knob.target.read(root_of(&knob.target, inside)));
        match found {
            Some(Ok(_)) => setup.inside.push(knob.clone()),
            Some(Err(error)) if !(error.is_absence() && arm.host) => {
                let cure =
                    if error.is_absence() { "; if the host has it, say host = true in the arm" } else { "" };
                return Err(format!("{error}{cure}"));
            }
            _ => setup.host.push(knob.clone()),
        }
    }
    Ok(setup)
}

/// Whether the host has what arms set there.
fn check_host(setups: &[Setup; 2], root: &Root) -> Result<(), String> {
    let mut knobs = setups.iter().flat_map(|setup| &setup.host);
    knobs.try_for_each(|knob| knob.target.read(root).map(|_| ()).map_err(|error| error.to_string()))
}

/// A line of progress.
fn tell(sample: &Sample, due: usize, elapsed: Duration) {
    let taken = sample.position + 1;
    let left = elapsed.mul_f64((due - taken) as f64 / taken as f64);
    let whose = match sample.pair {
        None => format!("{}, not counted", sample.side),
        Some(pair) => format!("{} of pair {}", sample.side, pair + 1),
    };
    let doubts: String = sample.doubts.iter().map(|doubt| format!("; doubtful: {doubt}")).collect();
    let Sample { value, unit, .. } = sample;
    complain!("sample {taken} of {due} ({whose}): {value:.4} {unit}; about {} left{doubts}", time_text(left));
}

/// `1 h 5 m`, `3 m 20 s`, `40 s`.
pub fn time_text(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} m {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} m", seconds / 3600, seconds / 60 % 60),
    }
}

/// Nobody leaves so many.
const FOLDERS_TRIED: u32 = 1_000;

/// A folder that is gone when its owner is.
pub struct Folder(PathBuf);

impl Folder {
    /// A new one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn create() -> std::io::Result<Self> {
        let folder = std::env::temp_dir();
        // What a killed process of the same id left must not be taken for ours.
        let mut number = 0;
        loop {
            let path = folder.join(format!("corecast-experiment-{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && number < FOLDERS_TRIED => {
                    number += 1
                }
                created => return created.map(|()| Self(path)),
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            complain!("corecast: {} could not be removed: {error}", self.0.display());
        }
    }
}
