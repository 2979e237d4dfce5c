//! One plot, drawn as SVG: once for a screen or paper, once for a phone.

use std::fmt::Write;

use super::shapes::{marker, precise, px, rect};
use super::{Axis, Table, escaped, grouped};

/// A plot: series over two axes.
#[derive(Debug)]
pub struct Chart {
    /// Its name within the page: lower case, no spaces.
    pub name: &'static str,
    /// Its heading.
    pub title: String,
    /// What is to be seen in it, with the figures that matter: it is what is read aloud.
    pub text: String,
    /// From left to right.
    pub x: Axis,
    /// From the bottom up.
    pub y: Axis,
    /// What is drawn, at most four.
    pub series: Vec<Series>,
    /// A figure of `y` that is marked all along, and its name.
    pub limit: Option<(f64, String)>,
    /// Shaded stretches.
    pub bands: Vec<Band>,
    /// What is counted, in strips below.
    pub lanes: Vec<Lane>,
    /// The same in figures.
    pub table: Table,
}

/// One line, or scattered points.
#[derive(Debug)]
pub struct Series {
    /// What it is.
    pub name: String,
    /// By `x`; where there is no figure the line is broken.
    pub points: Vec<(f64, Option<f64>)>,
    /// Points that the reader is to find.
    pub marks: Vec<(f64, f64)>,
    /// How it is drawn.
    pub stroke: Stroke,
}

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stroke {
    /// A line; each series has its own dash and marker.
    Line,
    /// A marker for each point.
    Points,
    /// A marker for each point, as loud as can be: nothing of this should be there.
    Alarm,
}

/// A shaded stretch.
#[derive(Debug)]
pub struct Band {
    /// What happened.
    pub name: String,
    /// From where on.
    pub from: f64,
    /// Where it was over. Shaded less up to `healed`.
    pub to: f64,
    /// Where its effects were over.
    pub healed: f64,
}

/// Counts along `x`, as bars.
#[derive(Debug)]
pub struct Lane {
    /// What is counted.
    pub name: String,
    /// From where to where, and how many.
    pub bars: Vec<(f64, f64, u64)>,
}

/// Above the plot: what `y` is. Below it: the figures of `x`, and what `x` is.
const TOP: f64 = 22.0;
const BOTTOM: f64 = 38.0;
const BAND_ROW: f64 = 15.0;
const LANE: f64 = 38.0;
const BAR: f64 = 20.0;
/// Of the font at 12 pixels, on average.
const LETTER: f64 = 6.6;
/// Markers along a line.
const MARKERS: usize = 9;

/// Where things are in a drawing of one size.
struct Frame<'a> {
    chart: &'a Chart,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    width: f64,
    height: f64,
    labels: Vec<(f64, f64)>,
}

impl Chart {
    /// The drawing, `width` pixels wide. `id` is unique within the page.
    pub(super) fn svg(&self, id: &str, width: f64, plot_height: f64) -> String {
        let frame = Frame::new(self, width, plot_height);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {:.0}\" role=\"img\" \
             aria-labelledby=\"{id}-title {id}-desc\"><title id=\"{id}-title\">{}</title><desc id=\"{id}-desc\">{}</desc>\n",
            frame.height,
            escaped(&self.title),
            escaped(&self.text)
        );
        frame.bands(&mut svg);
        frame.grid(&mut svg);
        frame.lanes(&mut svg);
        for (at, series) in self.series.iter().enumerate() {
            frame.series(&mut svg, at, series);
        }
        frame.limit(&mut svg);
        frame.band_names(&mut svg);
        svg + "</svg>\n"
    }

    /// What each line and marker is, as HTML.
    pub(super) fn legend(&self) -> String {
        let mut html = "<ul class=\"legend\">".to_owned();
        for (at, series) in self.series.iter().enumerate() {
            let mut swatch = String::new();
            if series.stroke == Stroke::Line {
                let _ = write!(swatch, "<path class=\"line s{at}\" d=\"M1 7H35\"/>");
            }
            marker(&mut swatch, at, series.stroke, 18.0, 7.0, 4.0);
            let _ = write!(html, "<li>{}{}</li>", swatched(&swatch), escaped(&series.name));
        }
        if let Some((_, name)) = &self.limit {
            let swatch = "<path class=\"limit\" d=\"M1 7H35\"/>";
            let _ = write!(html, "<li>{}{}</li>", swatched(swatch), escaped(name));
        }
        if !self.bands.is_empty() {
            let mut swatch = String::new();
            let healing = self.bands.iter().any(|band| band.healed > band.to);
            rect(&mut swatch, "band", 1.0, 1.0, if healing { 17.0 } else { 34.0 }, 12.0);
            rect(&mut swatch, "healing", 18.0, 1.0, if healing { 17.0 } else { 0.0 }, 12.0);
            let said = if healing { "a fault, and what follows it until it has healed" } else { "a fault" };
            let _ = write!(html, "<li>{}{said}</li>", swatched(&swatch));
        }
        html + "</ul>\n"
    }
}

fn swatched(drawing: &str) -> String {
    format!("<svg class=\"swatch\" viewBox=\"0 0 36 14\" aria-hidden=\"true\">{drawing}</svg>")
}

impl<'a> Frame<'a> {
    fn new(chart: &'a Chart, width: f64, plot_height: f64) -> Self {
        let (left, right) = (58.0, width - 14.0);
        let mut frame =
            Self { chart, left, right, top: 0.0, bottom: 0.0, width, height: 0.0, labels: Vec::new() };
        let rows = frame.place_names();
        frame.top = TOP + f64::from(rows) * BAND_ROW;
        frame.bottom = frame.top + plot_height;
        let lanes = u32::try_from(chart.lanes.len()).unwrap_or(u32::MAX);
        frame.height = frame.bottom + BOTTOM + f64::from(lanes) * LANE;
        frame
    }

    /// Finds room for each band's name: above the plot, in as few rows as it takes. Returns how many.
    fn place_names(&mut self) -> u32 {
        let mut ends: Vec<f64> = Vec::new();
        for band in &self.chart.bands {
            let length = band.name.chars().fold(12.0, |length, _| length + LETTER);
            let x = self.x(band.from).min(self.right - length).max(0.0);
            let row = ends.iter().position(|end| *end <= x).unwrap_or(ends.len());
            if row == ends.len() {
                ends.push(0.0);
            }
            ends[row] = x + length;
            let row = u32::try_from(row).unwrap_or(u32::MAX);
            self.labels.push((x, TOP - 2.0 + (f64::from(row) + 0.7) * BAND_ROW));
        }
        u32::try_from(ends.len()).unwrap_or(u32::MAX)
    }

    fn x(&self, figure: f64) -> f64 {
        self.left + (self.right - self.left) * self.chart.x.place(figure)
    }

    fn y(&self, figure: f64) -> f64 {
        self.bottom - (self.bottom - self.top) * self.chart.y.place(figure)
    }

    fn bands(&self, svg: &mut String) {
        let bottom = self.height - BOTTOM;
        for (band, (_, label)) in self.chart.bands.iter().zip(&self.labels) {
            let (from, to, healed) = (self.x(band.from), self.x(band.to), self.x(band.healed));
            let _ = write!(
                svg,
                "<g><title>{}: from {:.2} s to {:.2} s, healed at {:.2} s</title>",
                escaped(&band.name),
                band.from,
                band.to,
                band.healed
            );
            rect(svg, "band", from, self.top, to - from, bottom - self.top);
            rect(svg, "healing", to, self.top, healed - to, bottom - self.top);
            let _ = writeln!(svg, "<path class=\"bandedge\" d=\"M{from:.1} {label:.1}V{bottom:.1}\"/></g>");
        }
    }

    fn band_names(&self, svg: &mut String) {
        for (band, (x, y)) in self.chart.bands.iter().zip(&self.labels) {
            let _ = writeln!(
                svg,
                "<text class=\"bandname\" x=\"{:.1}\" y=\"{y:.1}\">{}</text>",
                x + 4.0,
                escaped(&band.name)
            );
        }
    }

    fn grid(&self, svg: &mut String) {
        let foot = self.height - BOTTOM;
        let _ =
            writeln!(svg, "<text class=\"axis\" x=\"2\" y=\"13\">{}</text>", escaped(&self.chart.y.label));
        for (figure, text) in self.chart.y.ticks(7) {
            let y = self.y(figure);
            let _ = writeln!(
                svg,
                "<path class=\"grid\" d=\"M{:.1} {y:.1}H{:.1}\"/>\
                 <text class=\"tick\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{text}</text>",
                self.left,
                self.right,
                self.left - 6.0,
                y + 4.0
            );
        }
        for (figure, text) in self.chart.x.ticks(if self.width < 600.0 { 5 } else { 12 }) {
            let x = self.x(figure);
            let _ = writeln!(
                svg,
                "<path class=\"grid\" d=\"M{x:.1} {:.1}V{foot:.1}\"/>\
                 <text class=\"tick\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{text}</text>",
                self.top,
                x.min(self.right - 10.0),
                foot + 16.0
            );
        }
        let _ = writeln!(
            svg,
            "<path class=\"frame\" d=\"M{:.1} {:.1}H{:.1}\"/>\
             <text class=\"axis\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            self.left,
            self.bottom,
            self.right,
            self.right,
            foot + 33.0,
            escaped(&self.chart.x.label)
        );
    }

    fn lanes(&self, svg: &mut String) {
        let mut foot = self.bottom;
        for lane in &self.chart.lanes {
            foot += LANE;
            let (most, total) =
                lane.bars.iter().fold((0, 0), |(most, total), bar| (bar.2.max(most), total + bar.2));
            let said = if total == 0 { "none".to_owned() } else { grouped(total) };
            let _ = writeln!(
                svg,
                "<path class=\"frame\" d=\"M{:.1} {foot:.1}H{:.1}\"/>\
                 <text class=\"lane\" x=\"{:.1}\" y=\"{:.1}\">{}: {said}</text>",
                self.left,
                self.right,
                self.left + 3.0,
                foot - BAR - 3.5,
                escaped(&lane.name)
            );
            for (from, to, count) in lane.bars.iter().filter(|bar| bar.2 > 0) {
                let (from, to) = (self.x(*from), self.x(*to));
                let height = (BAR * precise(*count) / precise(most)).max(2.0);
                rect(svg, "bar", from, foot - height, (to - from).max(0.8), height);
            }
        }
    }

    fn series(&self, svg: &mut String, at: usize, series: &Series) {
        let mut drawing = String::new();
        if series.stroke == Stroke::Line {
            let mut path = String::new();
            let mut broken = true;
            for (x, y) in &series.points {
                let Some(y) = y else {
                    broken = true;
                    continue;
                };
                path.push(if broken { 'M' } else { 'L' });
                px(&mut path, self.x(*x));
                path.push(' ');
                px(&mut path, self.y(*y));
                // One point between two gaps is a dot.
                if broken {
                    path.push_str("h0");
                }
                broken = false;
            }
            if !path.is_empty() {
                let _ = writeln!(drawing, "<path class=\"line s{at}\" d=\"{path}\"/>");
            }
        }
        let every = match series.stroke {
            Stroke::Line => series.points.len().div_ceil(MARKERS).max(1),
            Stroke::Points | Stroke::Alarm => 1,
        };
        // Series of the same points have their markers at different ones.
        let first = every * (2 * at + 1) / 8;
        let radius = if series.stroke == Stroke::Points && self.width < 600.0 { 2.2 } else { 3.4 };
        if series.marks.is_empty() {
            for (x, y) in series.points.iter().skip(first).step_by(every) {
                if let Some(y) = y {
                    marker(&mut drawing, at, series.stroke, self.x(*x), self.y(*y), radius);
                }
            }
        }
        for (x, y) in &series.marks {
            marker(&mut drawing, at, series.stroke, self.x(*x), self.y(*y), 5.0);
        }
        let _ = writeln!(svg, "<g><title>{}</title>{drawing}</g>", escaped(&series.name));
    }

    fn limit(&self, svg: &mut String) {
        let Some((figure, name)) = &self.chart.limit else { return };
        let y = self.y(*figure);
        let _ = writeln!(
            svg,
            "<path class=\"limit\" d=\"M{:.1} {y:.1}H{:.1}\"/><text class=\"limitname\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            self.left,
            self.right,
            self.left + 4.0,
            y - 5.0,
            escaped(name)
        );
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn chart() -> Chart {
        let series = |name: &str, points: &[(f64, Option<f64>)], stroke| Series {
            name: name.to_owned(),
            points: points.to_vec(),
            marks: Vec::new(),
            stroke,
        };
        let line = [(1.0, Some(1.0)), (2.0, Some(10.0)), (3.0, None), (4.0, Some(1.0)), (5.0, None)];
        Chart {
            name: "test",
            title: "a & b".to_owned(),
            text: "<what it is>".to_owned(),
            x: Axis::elapsed(Duration::from_secs(10)),
            y: Axis::count("n", 10.0),
            series: vec![
                series("line", &line, Stroke::Line),
                series("alarm", &[(2.0, Some(f64::INFINITY)), (3.0, None)], Stroke::Alarm),
            ],
            limit: Some((5.0, "the <limit>".to_owned())),
            bands: [("one", 1.0, 4.0, 5.0), ("two", 1.5, 2.0, 2.0), ("at the end", 9.9, 10.0, 10.0)]
                .map(|(name, from, to, healed)| Band { name: name.to_owned(), from, to, healed })
                .into(),
            lanes: vec![Lane {
                name: "bars".to_owned(),
                bars: vec![(0.0, 1.0, 0), (1.0, 2.0, 1_000), (2.0, 3.0, 1)],
            }],
            table: Table::default(),
        }
    }

    #[test]
    fn a_line_is_broken_where_there_is_no_figure_and_a_lone_point_is_a_dot() {
        let svg = chart().svg("id", 172.0, 100.0);
        let path = svg.split("class=\"line s0\" d=\"").nth(1).unwrap().split('"').next().unwrap();
        // Ten pixels a second from 58 on.
        assert_eq!(path.matches('M').count(), 2, "{path}");
        assert!(path.starts_with("M68.0 ") && path.contains("h0L78.0 ") && path.contains("M98.0 "), "{path}");
        assert!(path.ends_with("h0"), "{path}");
    }

    #[test]
    fn what_breaks_the_promise_is_drawn_at_the_top_and_counted_in_the_lane() {
        let svg = chart().svg("id", 400.0, 100.0);
        assert_eq!(svg.matches("class=\"alarm\"").count(), 1);
        assert!(!svg.contains("inf") && !svg.contains("NaN"), "{svg}");
        assert!(svg.contains(">bars: 1,001</text>"));
        assert_eq!(svg.matches("class=\"bar\"").count(), 2, "nothing is drawn for none");
        assert!(svg.contains(">the &lt;limit&gt;</text>") && svg.contains(">&lt;what it is&gt;</desc>"));
    }

    #[test]
    fn names_of_faults_are_within_the_drawing_and_not_on_each_other() {
        for width in [370.0, 960.0] {
            let chart = chart();
            let frame = Frame::new(&chart, width, 100.0);
            let names: Vec<(f64, f64, f64)> = chart
                .bands
                .iter()
                .zip(&frame.labels)
                .map(|(band, (x, y))| (*x, band.name.chars().fold(*x, |end, _| end + LETTER), *y))
                .collect();
            for (at, (from, to, row)) in names.iter().enumerate() {
                assert!(*from >= 0.0 && *to <= width && *row < frame.top, "{names:?}");
                let apart = |other: &(f64, f64, f64)| {
                    (other.2 - row).abs() > 1.0 || other.1 <= *from || other.0 >= *to
                };
                assert!(names[..at].iter().all(apart), "{names:?}");
            }
        }
    }

    #[test]
    fn a_legend_says_what_each_sign_is() {
        let legend = chart().legend();
        for name in [">line</li>", ">alarm</li>", ">the &lt;limit&gt;</li>", "until it has healed</li>"] {
            assert!(legend.contains(name), "{legend}");
        }
    }
}
