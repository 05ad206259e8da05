//! How series are told apart: colour, marker and dash together, in light and in dark.

use crate::svg::Svg;

/// Series with a look of their own; one more looks like the first.
pub const STYLES: usize = 8;

/// Colours and fonts of every chart, for one `<style>` of the page around them.
///
/// A page may set the `--chart-*` variables itself. The colours have at least 3:1 against their background (WCAG 2.2,
/// 1.4.11), differ for readers who see no red, no green or no blue, and differ in lightness, for print and for grey.
pub const STYLE: &str = include_str!("style.css");

/// How one series looks, by its number: 0 is the first, the one that the chart is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style(pub usize);

impl Style {
    fn index(self) -> usize {
        self.0 % STYLES
    }

    /// Class of what is filled with the series' colour.
    pub(crate) fn fill(self) -> String {
        format!("fill{}", self.index())
    }

    /// Class of a line of the series, with its dashes.
    pub(crate) fn stroke(self) -> String {
        format!("line stroke{} dash{}", self.index(), self.index())
    }

    /// Class of a line of the series, without dashes.
    pub(crate) fn solid(self) -> String {
        format!("line stroke{}", self.index())
    }

    /// Class of the series' spread.
    pub(crate) fn band(self) -> String {
        format!("band fill{}", self.index())
    }

    /// Class of a whisker.
    pub(crate) fn whisker(self) -> String {
        format!("whisker stroke{}", self.index())
    }

    /// Draws the series' marker, `radius` from its centre to its rim.
    pub(crate) fn marker(self, svg: &mut Svg, (x, y): (f64, f64), radius: f64) {
        let class = format!("marker {}", self.fill());
        let r = radius;
        // Shapes of one area look alike in size: a square's half side is shorter than a circle's radius.
        let shape = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
            points.iter().map(|(across, down)| (x + across * r, y + down * r)).collect()
        };
        match self.index() {
            0 => svg.circle(&class, (x, y), r),
            1 => svg.polygon(&class, &shape(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)])),
            2 => svg.polygon(&class, &shape(&[(0.0, -1.25), (1.15, 0.85), (-1.15, 0.85)])),
            3 => svg.polygon(&class, &shape(&[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)])),
            4 => svg.polygon(&class, &shape(&[(0.0, 1.25), (1.15, -0.85), (-1.15, -0.85)])),
            5 => svg.polygon(&class, &shape(&PLUS)),
            6 => svg.polygon(&class, &shape(&CROSS)),
            _ => svg.polygon(&class, &shape(&[(-1.4, -0.55), (1.4, -0.55), (1.4, 0.55), (-1.4, 0.55)])),
        }
    }
}

const PLUS: [(f64, f64); 12] = [
    (-0.45, -1.3),
    (0.45, -1.3),
    (0.45, -0.45),
    (1.3, -0.45),
    (1.3, 0.45),
    (0.45, 0.45),
    (0.45, 1.3),
    (-0.45, 1.3),
    (-0.45, 0.45),
    (-1.3, 0.45),
    (-1.3, -0.45),
    (-0.45, -0.45),
];

const CROSS: [(f64, f64); 12] = [
    (-1.2, -0.6),
    (-0.6, -1.2),
    (0.0, -0.6),
    (0.6, -1.2),
    (1.2, -0.6),
    (0.6, 0.0),
    (1.2, 0.6),
    (0.6, 1.2),
    (0.0, 0.6),
    (-0.6, 1.2),
    (-1.2, 0.6),
    (-0.6, 0.0),
];

#[cfg(test)]
mod tests {
    use super::*;

    type Rgb = [f64; 3];

    /// What a reader without red, green or blue cones sees of linear RGB.
    ///
    /// Source: Machado, Oliveira, Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency"
    /// (2009), severity 1.0.
    const DEFICIENCIES: [[Rgb; 3]; 3] = [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ];
    const SEEN: [Rgb; 3] = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];

    fn times(matrix: &[Rgb; 3], colour: Rgb) -> Rgb {
        matrix.map(|row| row.iter().zip(colour).map(|(a, b)| a * b).sum::<f64>().clamp(0.0, 1.0))
    }

    fn linear(hex: &str) -> Rgb {
        [1, 3, 5].map(|at| {
            let share = f64::from(u8::from_str_radix(&hex[at..at + 2], 16).unwrap()) / 255.0;
            if share <= 0.04045 { share / 12.92 } else { ((share + 0.055) / 1.055).powf(2.4) }
        })
    }

    fn luminance([red, green, blue]: Rgb) -> f64 {
        0.2126 * red + 0.7152 * green + 0.0722 * blue
    }

    /// As WCAG 2.2 defines it.
    fn contrast(one: Rgb, other: Rgb) -> f64 {
        let (one, other) = (luminance(one) + 0.05, luminance(other) + 0.05);
        one.max(other) / one.min(other)
    }

    /// Source: Björn Ottosson, "A perceptual color space for image processing" (2020).
    fn oklab(rgb: Rgb) -> Rgb {
        let cones = [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ];
        let [l, m, s] = times(&cones, rgb).map(f64::cbrt);
        [
            0.2104542553 * l + 0.7936177850 * m - 0.0040720468 * s,
            1.9779984951 * l - 2.4285922050 * m + 0.4505937099 * s,
            0.0259040371 * l + 0.7827717662 * m - 0.8086757660 * s,
        ]
    }

    /// The background and the series' colours of each scheme, as the style sheet has them.
    fn schemes() -> Vec<(Rgb, Vec<Rgb>)> {
        let value_after = |text: &str, name: &str| {
            let at = text.find(name).unwrap_or_else(|| panic!("no {name}")) + name.len();
            linear(text[at..].trim_start())
        };
        let (light, dark) = STYLE.split_once("prefers-color-scheme: dark").expect("two schemes");
        [light, dark]
            .map(|scheme| {
                let series = (0..STYLES).map(|style| value_after(scheme, &format!("--chart-{style}:")));
                (value_after(scheme, "--chart-background:"), series.collect())
            })
            .to_vec()
    }

    #[test]
    fn every_colour_stands_out_from_its_background() {
        for (background, colours) in schemes() {
            for (style, colour) in colours.into_iter().enumerate() {
                let contrast = contrast(colour, background);
                assert!(contrast >= 3.0, "style {style}: {contrast:.2}");
            }
        }
    }

    #[test]
    fn colours_differ_for_the_colour_blind_and_in_grey() {
        for (_, colours) in schemes() {
            for (one, other) in (0..STYLES).flat_map(|one| (0..one).map(move |other| (one, other))) {
                let (a, b) = (colours[one], colours[other]);
                for eyes in DEFICIENCIES.iter().chain([&SEEN]) {
                    let (a, b) = (oklab(times(eyes, a)), oklab(times(eyes, b)));
                    let apart = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
                    // 0.02 is what is just noticed side by side in OKLab; across a chart it takes some times that.
                    assert!(apart >= 0.09, "styles {one} and {other}: {apart:.3}");
                }
                assert!(contrast(a, b) >= 1.12, "styles {one} and {other} are one grey");
            }
        }
    }

    #[test]
    fn every_marker_has_a_shape_of_its_own() {
        let shapes: std::collections::BTreeSet<String> = (0..STYLES)
            .map(|style| {
                let mut svg = Svg::default();
                Style(style).marker(&mut svg, (0.0, 0.0), 4.0);
                svg.into_text().replace(&format!("fill{style}"), "")
            })
            .collect();
        assert_eq!(shapes.len(), STYLES);
        assert_eq!(Style(STYLES).fill(), Style(0).fill(), "one more looks like the first");
    }
}
