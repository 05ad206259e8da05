//! What a long scenario sampled over time.

use charts::{Axis, Drawing, LineChart, Point, Scale, Series, Spread, Style, Unit};
use serde_json::Value;

/// A picture of samples: its title, their unit, how the axis is spaced, and the fields with their names.
struct Picture {
    title: &'static str,
    unit: &'static str,
    scale: Scale,
    fields: &'static [(&'static str, &'static str)],
}

const PICTURES: [Picture; 5] = [
    Picture {
        title: "The server's memory over time",
        unit: "B",
        scale: Scale::FromZero,
        fields: &[("anonymous_bytes", "its own"), ("resident_bytes", "resident")],
    },
    Picture {
        title: "Latency over time",
        unit: "us",
        scale: Scale::Log10,
        fields: &[("p99_us", "p99"), ("max_us", "max")],
    },
    Picture {
        title: "CPU per delivery over time",
        unit: "us",
        scale: Scale::FromZero,
        fields: &[("cpu_us_per_delivery", "CPU per delivery")],
    },
    Picture {
        title: "Deliveries over time",
        unit: "/s",
        scale: Scale::FromZero,
        fields: &[("deliveries_per_second", "deliveries")],
    },
    Picture {
        title: "Connections over time",
        unit: "",
        scale: Scale::FromZero,
        fields: &[("clients", "clients"), ("descriptors", "the server's descriptors")],
    },
];

/// Pictures of the samples in `details`; none where nothing was sampled.
pub fn of_details(details: &[Value]) -> Vec<Drawing> {
    let sampled = details.iter().filter_map(|detail| detail["samples"].as_array());
    sampled
        .filter(|samples| samples.iter().any(|sample| sample["seconds"].is_number()))
        .flat_map(|samples| PICTURES.iter().filter_map(|picture| picture.draw(samples)))
        .collect()
}

impl Picture {
    fn draw(&self, samples: &[Value]) -> Option<Drawing> {
        let points = |field: &str| -> Vec<Point> {
            let point = |sample: &Value| {
                let (x, y) = (sample["seconds"].as_f64()?, sample[field].as_f64()?);
                Some(Point { x, y, spread: None })
            };
            samples.iter().filter_map(point).collect()
        };
        let series = self.fields.iter().enumerate().map(|(place, (field, name))| Series {
            name: (*name).to_owned(),
            style: Style(place),
            points: points(field),
        });
        let series: Vec<_> = series.filter(|series| !series.points.is_empty()).collect();
        let chart = LineChart {
            title: self.title.to_owned(),
            description: "One point for each interval.".to_owned(),
            x: Axis::new("time since the beginning", Unit::named("s"), Scale::FromZero),
            y: Axis::new("", Unit::named(self.unit), self.scale.clone()),
            series,
            spread: Spread::Band,
        };
        (!chart.series.is_empty()).then(|| chart.draw())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_over_time_are_lines_of_what_they_have() {
        let details = r#"[{"samples": [{"seconds": 10, "anonymous_bytes": 1048576, "p99_us": 5},
                                       {"seconds": 20, "anonymous_bytes": 2097152, "p99_us": null}]}]"#;
        let details: Vec<Value> = serde_json::from_str(details).unwrap();
        let drawings: Vec<String> = of_details(&details).iter().map(Drawing::inline).collect();
        assert_eq!(drawings.len(), 2, "memory and latency");
        assert!(
            drawings[0].contains("its own, 20 s: 2 MiB") && !drawings[0].contains("resident"),
            "{}",
            drawings[0]
        );
        assert!(drawings[1].contains("p99, 10 s: 5 µs"), "{}", drawings[1]);
    }

    #[test]
    fn what_has_no_time_is_no_timeline() {
        let details =
            serde_json::from_str::<Vec<Value>>(r#"[{"samples": [1, 2]}, {"samples": 7}, {}]"#).unwrap();
        assert!(of_details(&details).is_empty());
    }
}
