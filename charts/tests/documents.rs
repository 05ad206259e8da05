//! Whole charts as documents: well-formed, self-contained, and with everything that was put in.

use charts::{
    Axis, Bar, BarChart, BarGroup, BarScale, Drawing, Interval, IntervalChart, LineChart, Point, Scale,
    Series, Spread, Style, Unit, escape,
};

const NAME: &str = r#"<b>"&' ]]> µs"#;

/// Every chart with hostile names, and with values that have no place.
fn drawings() -> Vec<Drawing> {
    let values = [0.0, -1.0, 1.0, 1e9, f64::NAN, f64::INFINITY];
    let spread = Some((f64::NEG_INFINITY, 2.0));
    let points = values.iter().map(|value| Point { x: *value, y: *value, spread }).collect();
    let lines = LineChart {
        title: NAME.to_owned(),
        description: NAME.to_owned(),
        x: Axis::new(NAME, Unit::named(NAME), Scale::Log2),
        y: Axis::new(NAME, Unit::named("us"), Scale::Log10),
        series: vec![Series { name: NAME.to_owned(), style: Style(5), points }],
        spread: Spread::Whiskers,
    };
    let bar = |value: &f64| Bar {
        name: NAME.to_owned(),
        style: Style(6),
        value: *value,
        spread,
        note: NAME.to_owned(),
    };
    let bars = BarChart {
        title: NAME.to_owned(),
        description: NAME.to_owned(),
        unit: Unit::named(NAME),
        scale: BarScale::PerGroup,
        groups: vec![BarGroup { label: NAME.to_owned(), bars: values.iter().map(bar).collect() }],
    };
    let row = |value: &f64| Interval {
        label: NAME.to_owned(),
        estimate: *value,
        low: -value,
        high: value * 2.0,
        note: NAME.to_owned(),
    };
    let intervals = IntervalChart {
        title: NAME.to_owned(),
        description: NAME.to_owned(),
        axis: Axis::new(NAME, Unit::named("%"), Scale::Linear),
        reference: 0.0,
        left_means: NAME.to_owned(),
        right_means: NAME.to_owned(),
        rows: values.iter().map(row).collect(),
    };
    vec![lines.draw(), bars.draw(), intervals.draw()]
}

/// Names of the tags that are open at the end of `document`, or the fault that was found in it.
fn open_tags(document: &str) -> Result<Vec<String>, String> {
    let mut open: Vec<String> = Vec::new();
    let mut rest = document;
    while let Some(start) = rest.find('<') {
        let (text, tail) = rest.split_at(start);
        if text.contains('>') || text.split('&').skip(1).any(|after| !after.contains(';')) {
            return Err(format!("markup in the text {text:?}"));
        }
        let end = tail.find('>').ok_or("a tag that does not end")?;
        let tag = &tail[1..end];
        rest = &tail[end + 1..];
        if tag.starts_with('?') {
            continue;
        }
        if tag.matches('"').count() % 2 == 1 || tag.contains('<') {
            return Err(format!("quotes in <{tag}>"));
        }
        match (tag.strip_prefix('/'), tag.ends_with('/')) {
            (Some(name), _) if open.pop().as_deref() != Some(name) => {
                return Err(format!("</{name}> closes another"));
            }
            (None, false) => open.push(tag.split_whitespace().next().unwrap_or_default().to_owned()),
            _ => {}
        }
    }
    Ok(open)
}

#[test]
fn charts_are_well_formed_whatever_their_names_and_values_are() {
    for drawing in drawings() {
        for document in [drawing.inline(), drawing.file()] {
            assert_eq!(open_tags(&document), Ok(Vec::new()), "{document}");
            assert!(document.contains(&format!("<title>{}</title>", escape(NAME))), "{document}");
            assert!(!document.contains("NaN") && !document.contains("=\"inf"), "{document}");
        }
    }
}

#[test]
fn the_checker_finds_faults() {
    assert_eq!(open_tags("<a><b/></a>"), Ok(Vec::new()));
    assert_eq!(open_tags("<a><b></b>"), Ok(vec!["a".to_owned()]));
    for fault in ["<a></b>", "a > b <c/>", "a & b <c/>", "<a b=\"></a>", "<a"] {
        assert!(open_tags(fault).is_err(), "{fault}");
    }
}

#[test]
fn charts_ask_nobody_for_anything() {
    for drawing in drawings() {
        let document = drawing.file();
        let addresses: Vec<_> =
            document.match_indices("://").map(|(at, _)| &document[at - 5..at + 20]).collect();
        assert_eq!(addresses.len(), 1, "only the name of the language: {addresses:?}");
        for word in ["href", "url(", "@import", "<script", "<image"] {
            assert!(!document.contains(word), "{word}");
        }
    }
}

#[test]
fn charts_are_told_to_those_who_cannot_see_them() {
    for drawing in drawings() {
        let document = drawing.inline();
        assert!(document.contains(r#"role="img""#) && document.contains("<desc>"), "{document}");
        let description = document.split("<desc>").nth(1).unwrap().split("</desc>").next().unwrap();
        assert!(description.starts_with(&escape(NAME)), "{description}");
        assert!(description.len() > NAME.len() + 40, "the values too: {description}");
    }
}

#[test]
fn the_style_is_no_markup() {
    assert!(!charts::STYLE.contains(['<', '&']), "it stands inside of <style> as it is");
}
