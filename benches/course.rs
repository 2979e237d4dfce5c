//! The times of answers while faults come and go, and their plot.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use perto::Histogram;
use perto_cli::plot::{Axis, Band, Chart, Lane, Series, Stroke, Table, time_text};

const SLICE: Duration = Duration::from_millis(100);

/// The times of answers, by when they were asked for.
#[derive(Debug)]
pub struct Course {
    pub begun: Instant,
    slices: Vec<(Histogram, AtomicU64)>,
}

impl Course {
    pub fn new(length: Duration) -> Arc<Self> {
        let slices = (0..length.as_millis() / SLICE.as_millis()).map(|_| Default::default());
        Arc::new(Self { begun: Instant::now(), slices: slices.collect() })
    }

    pub fn record(&self, asked: Instant, took: Duration, failed: bool) {
        let at = asked.duration_since(self.begun).as_millis() / SLICE.as_millis();
        let (times, failures) = &self.slices[(at as usize).min(self.slices.len() - 1)];
        times.record(took);
        failures.fetch_add(u64::from(failed), Ordering::Relaxed);
    }

    pub fn chart(&self, bands: Vec<Band>) -> Chart {
        let length = SLICE.as_secs_f64();
        let (mut p50, mut longest, mut failed, mut rows) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut least, mut most) = (Duration::MAX, Duration::ZERO);
        for (at, (times, failures)) in self.slices.iter().enumerate() {
            let (from, failures) = (at as f64 * length, failures.load(Ordering::Relaxed));
            failed.push((from, from + length, failures));
            if times.count() == 0 {
                continue;
            }
            let (half, all) = (times.quantile(0.5), times.max());
            (least, most) = (least.min(half), most.max(all));
            p50.push((from + length / 2.0, Some(half.as_secs_f64())));
            longest.push((from + length / 2.0, Some(all.as_secs_f64())));
            let told = |time: Duration| time_text(time.as_secs_f64());
            rows.push(vec![
                format!("{from:.1} s"),
                times.count().to_string(),
                told(half),
                told(all),
                failures.to_string(),
            ]);
        }
        let series = |name: &str, points| Series {
            name: name.to_owned(),
            points,
            marks: Vec::new(),
            stroke: Stroke::Line,
        };
        let text = format!(
            "The time to the answer in slices of {SLICE:?}, at a steady rate, on a logarithmic scale."
        );
        let columns = ["from", "reads", "p50", "longest", "not 200"].map(str::to_owned).into();
        Chart {
            name: "latency",
            title: "Latency while Redis is down, silent and back".to_owned(),
            text,
            x: Axis::elapsed(SLICE * self.slices.len() as u32),
            y: Axis::latency("time to the answer", least / 2, most * 2),
            series: vec![series("p50", p50), series("longest", longest)],
            limit: None,
            bands,
            lanes: vec![Lane { name: "not 200".to_owned(), bars: failed }],
            table: Table { caption: "Time to the answer".to_owned(), columns, rows },
        }
    }
}
