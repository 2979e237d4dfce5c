//! What a drawing is made of.

use std::fmt::Write;

use super::Stroke;

/// A coordinate: a tenth of a pixel is enough.
pub(super) fn px(to: &mut String, number: f64) {
    let _ = write!(to, "{:.1}", if number.is_finite() { number } else { 0.0 });
}

pub(super) fn rect(svg: &mut String, class: &str, x: f64, y: f64, width: f64, height: f64) {
    if width > 0.0 {
        let _ = write!(
            svg,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
        );
    }
}

/// A sign of its own for each series: circle, square, triangle, diamond.
pub(super) fn marker(svg: &mut String, at: usize, stroke: Stroke, x: f64, y: f64, r: f64) {
    if stroke == Stroke::Alarm {
        let _ = write!(
            svg,
            "<path class=\"alarm\" d=\"M{:.1} {:.1}l{2:.1} {2:.1}m0 -{2:.1}l-{2:.1} {2:.1}\"/>",
            x - r,
            y - r,
            2.0 * r
        );
        return;
    }
    let _ = match at % 4 {
        0 => write!(svg, "<circle class=\"mark s{at}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r:.1}\"/>"),
        1 => write!(
            svg,
            "<rect class=\"mark s{at}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{2:.1}\" height=\"{2:.1}\"/>",
            x - r * 0.9,
            y - r * 0.9,
            r * 1.8
        ),
        2 => write!(
            svg,
            "<path class=\"mark s{at}\" d=\"M{x:.1} {:.1}l{1:.1} {2:.1}h-{3:.1}z\"/>",
            y - r * 1.2,
            r * 1.2,
            r * 2.1,
            r * 2.4
        ),
        _ => write!(
            svg,
            "<path class=\"mark s{at}\" d=\"M{x:.1} {:.1}l{1:.1} {1:.1}l-{1:.1} {1:.1}l-{1:.1} -{1:.1}z\"/>",
            y - r * 1.3,
            r * 1.3
        ),
    };
}

#[expect(clippy::cast_precision_loss, reason = "for a drawing")]
pub(super) fn precise(count: u64) -> f64 {
    count as f64
}
