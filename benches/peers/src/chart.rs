//! The chart of `README.md`: how long each peer takes beside the bare operation, on a logarithmic scale.

use std::fmt::Write as _;

use crate::measured::{Measured, median};
use crate::report::{Kind, LINES, NAMES};

const LEFT: f64 = 260.0;
const WIDTH: f64 = 520.0;
const STEP: f64 = 34.0;
const TOP: f64 = 60.0;
/// Powers of ten at both ends.
const ENDS: (i32, i32) = (-1, 3);
const COLORS: [&str; NAMES.len()] =
    ["#1f6feb", "#8b949e", "#bf8700", "#8250df", "#cf222e", "#e8590c", "#1a7f37", "#0a7ea4"];

pub fn draw(measured: &Measured) -> String {
    let rows: Vec<_> =
        LINES.iter().filter(|line| matches!(line.kind, Kind::Times(_) | Kind::Rate(_))).collect();
    let bottom = TOP + STEP * rows.len() as f64;
    let x = |ratio: f64| {
        let (low, high) = (f64::from(ENDS.0), f64::from(ENDS.1));
        LEFT + WIDTH * (ratio.log10().clamp(low, high) - low) / (high - low)
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 810 {}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        bottom + 50.0
    );
    for (at, ((_, name, _), color)) in NAMES.iter().zip(COLORS).enumerate() {
        let (left, top) = (24.0 + 200.0 * (at % 4) as f64, 18.0 + 20.0 * (at / 4) as f64);
        let _ = writeln!(
            svg,
            "<circle cx=\"{left}\" cy=\"{top}\" r=\"6\" fill=\"{color}\"/><text x=\"{}\" y=\"{}\">{name}</text>",
            left + 12.0,
            top + 4.0
        );
    }
    for power in ENDS.0..=ENDS.1 {
        let (ratio, weight) = (10_f64.powi(power), if power == 0 { "#555" } else { "#ddd" });
        let _ = writeln!(
            svg,
            "<line x1=\"{0:.0}\" x2=\"{0:.0}\" y1=\"{TOP}\" y2=\"{bottom:.0}\" stroke=\"{weight}\"/>\
             <text x=\"{0:.0}\" y=\"{1:.0}\" text-anchor=\"middle\" fill=\"#555\">{ratio} ×</text>",
            x(ratio),
            bottom + 18.0
        );
    }
    for (at, line) in rows.iter().enumerate() {
        let y = TOP + STEP * (at as f64 + 0.5);
        // More a second is less time for each.
        let (label, inverse) = match line.kind {
            Kind::Rate(_) => (line.label.replace("hits a second", "hit"), true),
            _ => (line.label.to_owned(), false),
        };
        let _ =
            writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{label}</text>", LEFT - 14.0, y + 4.0);
        // Perto last: on top.
        for ((peer, ..), color) in NAMES.iter().zip(COLORS).rev() {
            let Some(ratio) = median(&measured.ratios(peer, line.figure)).filter(|ratio| ratio.is_finite())
            else {
                continue;
            };
            let ratio = if inverse { 1.0 / ratio } else { ratio };
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{y}\" r=\"6\" fill=\"{color}\" fill-opacity=\"0.85\"/>",
                x(ratio)
            );
        }
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555\">time, beside the bare operation: to the left is quicker</text>",
        LEFT + WIDTH / 2.0,
        bottom + 40.0
    );
    svg + "</svg>\n"
}
