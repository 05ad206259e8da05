//! Figures as bars: those that belong together in one picture, on one scale if they can be seen on one.

use charts::{Bar, BarChart, BarGroup, BarScale, Drawing, Unit};

use crate::figure::median;
use crate::page::figures::ratio;
use crate::page::run::Figure;
use crate::page::side::{OURS, Sides, samples, shown, spread};

/// Groups in which the largest value is more than so many times the smallest have a scale each.
const SHARED_SCALE_MAX: f64 = 10.0;
/// What one picture holds before nobody finds anything in it.
const GROUPS_MAX: usize = 24;

const TOLD: &str =
    "Bars begin at zero and end at the median, whiskers go from the lowest to the highest sample.";

/// A figure, and what it is called in its picture.
type Named<'a> = (String, &'a Figure);

/// Pictures of a scenario's figures, by unit and by what their names share.
pub fn of_figures(figures: &[&Figure], sides: &Sides) -> Vec<Drawing> {
    let by_unit = clusters(figures.iter().copied(), |figure| Some(figure.unit.clone()));
    let pictures = by_unit.into_iter().flat_map(|(_, figures)| together(figures));
    pictures.flat_map(|(title, groups)| draw(&title, &groups, sides)).collect()
}

/// Pictures of one kind of figure of several scenarios, named by their titles; none for a single scenario, which has its
/// own.
pub fn across(title: &str, figures: Vec<(&str, &Figure)>, sides: &Sides) -> Vec<Drawing> {
    if figures.iter().all(|(scenario, _)| Some(*scenario) == figures.first().map(|(first, _)| *first)) {
        return Vec::new();
    }
    let by_unit = clusters(figures.into_iter(), |(_, figure)| Some(figure.unit.clone()));
    let pictures = by_unit.into_iter().flat_map(|(_, figures)| {
        let name = |(scenario, figure): (&str, _)| -> Named {
            let figure: &Figure = figure;
            let label = if figure.name == title {
                scenario.to_owned()
            } else {
                format!("{scenario}: {}", figure.name)
            };
            (label, figure)
        };
        draw(title, &figures.into_iter().map(name).collect::<Vec<_>>(), sides)
    });
    pictures.collect()
}

/// Values by their key, both in the order in which they came; what has no key is of the key `None`.
fn clusters<T>(
    values: impl Iterator<Item = T>,
    key: impl Fn(&T) -> Option<String>,
) -> Vec<(Option<String>, Vec<T>)> {
    let mut clusters: Vec<(Option<String>, Vec<T>)> = Vec::new();
    for value in values {
        let key = key(&value);
        match clusters.iter_mut().find(|(known, _)| *known == key) {
            Some((_, cluster)) => cluster.push(value),
            None => clusters.push((key, vec![value])),
        }
    }
    clusters
}

/// Takes a name apart into what it may share with others, and what is its own.
type Naming = fn(&str) -> Option<(&str, &str)>;

/// "1 room: CPU" and "100 rooms: CPU" are of "CPU"; "CPU, raw" and "CPU, field:data" are too.
const NAMINGS: [Naming; 2] =
    [|name| name.rsplit_once(": ").map(|(own, common)| (common, own)), |name| name.split_once(", ")];

/// Figures of one unit in pictures: those that share a part of their name, then all others.
fn together(figures: Vec<&Figure>) -> Vec<(String, Vec<Named<'_>>)> {
    let mut pictures = Vec::new();
    let mut rest = figures;
    for naming in NAMINGS {
        let common = |figure: &&Figure| naming(&figure.name).map(|(common, _)| common.to_owned());
        let mut others = Vec::new();
        for (common, cluster) in clusters(rest.into_iter(), common) {
            match common.filter(|_| cluster.len() > 1) {
                Some(common) => {
                    let own = |figure: &Figure| {
                        naming(&figure.name).map_or(String::new(), |(_, own)| own.to_owned())
                    };
                    pictures
                        .push((common, cluster.into_iter().map(|figure| (own(figure), figure)).collect()));
                }
                None => others.extend(cluster),
            }
        }
        rest = others;
    }
    if !rest.is_empty() {
        pictures.push((title(&rest), rest.into_iter().map(|figure| (figure.name.clone(), figure)).collect()));
    }
    pictures
}

/// What figures of one unit are called that have nothing else in common.
fn title(figures: &[&Figure]) -> String {
    if let [figure] = figures {
        return figure.name.clone();
    }
    match figures.first().map_or("", |figure| figure.unit.as_str()) {
        "" => "Counts".to_owned(),
        unit @ ("ns" | "us" | "ms" | "s") => format!("Times, measured in {unit}"),
        "B" | "KiB" | "MiB" | "GiB" => "Memory".to_owned(),
        "/s" => "Rates".to_owned(),
        "x" => "Ratios".to_owned(),
        unit => format!("Figures in {unit}"),
    }
}

/// Bars of figures of one unit, a group each, in as many pictures as can be read. A single bar is no picture: it would
/// show its number and nothing else.
fn draw(title: &str, groups: &[Named], sides: &Sides) -> Vec<Drawing> {
    let pictures = groups.chunks(GROUPS_MAX).map(|chunk| {
        let groups: Vec<BarGroup> = chunk.iter().map(|(label, figure)| group(label, figure, sides)).collect();
        BarChart {
            title: title.to_owned(),
            description: TOLD.to_owned(),
            unit: Unit::named(chunk.first().map_or("", |(_, figure)| &figure.unit)),
            scale: scale(&groups),
            groups,
        }
    });
    let has_something = |chart: &BarChart| {
        let bars: Vec<_> = chart.groups.iter().flat_map(|group| &group.bars).collect();
        bars.len() > 1 || bars.iter().any(|bar| bar.spread.is_some())
    };
    pictures.filter(has_something).map(|chart| chart.draw()).collect()
}

/// One scale as long as the shortest group can still be seen beside the longest. Groups of one bar have nothing to be
/// compared with but the other groups.
fn scale(groups: &[BarGroup]) -> BarScale {
    let longest = groups.iter().map(|group| group.bars.iter().map(|bar| bar.value).fold(0.0, f64::max));
    let (low, high) = longest
        .filter(|value| *value > 0.0)
        .fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
    let has_sides = groups.iter().any(|group| group.bars.len() > 1);
    if has_sides && high > low * SHARED_SCALE_MAX { BarScale::PerGroup } else { BarScale::Shared }
}

fn group(label: &str, figure: &Figure, sides: &Sides) -> BarGroup {
    let bars = sides.iter().filter_map(|side| {
        let samples = samples(figure, side);
        let is_flawed = figure.peers.get(side).is_some_and(|peer| peer.is_flawed);
        if samples.is_empty() && side != OURS && !is_flawed {
            return None;
        }
        let note = match ratio(figure, side).filter(|_| side != OURS) {
            _ if is_flawed => "(flawed)".to_owned(),
            Some(ratio) => format!("(ours {}×)", charts::number(ratio)),
            None => String::new(),
        };
        let value = median(&samples).unwrap_or(f64::NAN);
        let name = shown(side).to_owned();
        Some(Bar { name, style: sides.style(side), value, spread: spread(&samples), note })
    });
    BarGroup { label: label.to_owned(), bars: bars.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str) -> Figure {
        Figure { name: name.to_owned(), samples: vec![Some(1.0)], ..Figure::default() }
    }

    /// Titles and labels of the pictures of figures with these names.
    fn pictures(names: &[&str]) -> Vec<(String, Vec<String>)> {
        let figures: Vec<Figure> = names.iter().map(|name| figure(name)).collect();
        let pictures = together(figures.iter().collect()).into_iter();
        pictures
            .map(|(title, groups)| (title, groups.into_iter().map(|(label, _)| label).collect()))
            .collect()
    }

    fn picture(title: &str, labels: &[&str]) -> (String, Vec<String>) {
        (title.to_owned(), labels.iter().map(|label| (*label).to_owned()).collect())
    }

    #[test]
    fn what_figures_have_in_common_is_said_once() {
        assert_eq!(pictures(&["CPU, raw", "CPU, field"]), [picture("CPU", &["raw", "field"])]);
        assert_eq!(
            pictures(&["1 room: CPU", "1 room: p50", "9 rooms: CPU", "9 rooms: p50", "rise"]),
            [
                picture("CPU", &["1 room", "9 rooms"]),
                picture("p50", &["1 room", "9 rooms"]),
                picture("rise", &["rise"]),
            ]
        );
        assert_eq!(
            pictures(&["CPU, shards: 1", "CPU, shards: 2"]),
            [picture("CPU", &["shards: 1", "shards: 2"])]
        );
        assert_eq!(pictures(&["CPU, raw", "p50"]), [picture("Counts", &["CPU, raw", "p50"])]);
    }

    fn group_of(values: &[f64]) -> BarGroup {
        let bar = |value: &f64| Bar {
            name: String::new(),
            style: charts::Style(0),
            value: *value,
            spread: None,
            note: String::new(),
        };
        BarGroup { label: String::new(), bars: values.iter().map(bar).collect() }
    }

    #[test]
    fn a_scale_is_shared_until_short_bars_can_not_be_seen() {
        assert_eq!(scale(&[group_of(&[1.0, 2.0]), group_of(&[20.0])]), BarScale::Shared);
        assert_eq!(scale(&[group_of(&[1.0, 2.0]), group_of(&[21.0])]), BarScale::PerGroup);
        assert_eq!(
            scale(&[group_of(&[1.0]), group_of(&[1000.0])]),
            BarScale::Shared,
            "one bar fills any scale"
        );
        assert_eq!(scale(&[]), BarScale::Shared);
    }

    #[test]
    fn a_bar_alone_is_no_picture_unless_it_has_a_spread() {
        let one = figure("CPU");
        assert!(of_figures(&[&one], &Sides::default()).is_empty());
        let spread = Figure { samples: vec![Some(1.0), Some(2.0)], ..one.clone() };
        let sides = Sides::of(&serde_json::from_str(r#"{"outcomes": []}"#).unwrap());
        assert_eq!(of_figures(&[&spread], &sides).len(), 1);
        assert_eq!(of_figures(&[&one, &one], &sides).len(), 1);
    }

    #[test]
    fn figures_of_several_scenarios_stand_together_and_those_of_one_do_not() {
        let (cpu, mut other) = (figure("CPU"), figure("CPU"));
        other.unit = "B".to_owned();
        let sides = Sides::of(&serde_json::from_str(r#"{"outcomes": []}"#).unwrap());
        assert!(across("CPU", vec![("burst", &cpu), ("burst", &cpu)], &sides).is_empty());
        assert!(across("CPU", vec![], &sides).is_empty());
        let drawings = across("CPU", vec![("burst", &cpu), ("echo", &cpu), ("echo", &other)], &sides);
        assert_eq!(drawings.len(), 1, "a unit of its own is a picture of its own, and one bar is none");
        assert!(drawings[0].inline().contains(">echo<"), "{}", drawings[0].inline());
    }
}
