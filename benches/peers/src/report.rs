//! The table of `README.md`, from what was measured.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};

use crate::measured::{Measured, median};
use crate::scenarios::{eviction, outage, stale};
use crate::{PEERS, alone, chart};

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
const PROJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md");
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/chart.svg");
const LOCK: &str = include_str!("../Cargo.lock");

/// How a figure is said, and which is the better one.
#[derive(Clone, Copy)]
pub enum Kind {
    /// Beside the bare operation, in this unit: less is better.
    Times(&'static str),
    /// Beside the bare operation, in this unit: more is better.
    Rate(&'static str),
    Millis,
    /// Measured in microseconds, said in milliseconds.
    Micros,
    Count,
    Share,
}

pub struct Line {
    pub figure: &'static str,
    pub label: &'static str,
    pub kind: Kind,
}

const fn line(figure: &'static str, label: &'static str, kind: Kind) -> Line {
    Line { figure, label, kind }
}

pub const LINES: [Line; 20] = [
    line("l1_small_1", "L1 hit, 260 B, 1 task", Kind::Times("ns")),
    line("l1_small_2", "L1 hit, 260 B, 2 tasks", Kind::Times("ns")),
    line("l1_large_1", "L1 hit, 20 KB, 1 task", Kind::Times("ns")),
    line("l1_large_2", "L1 hit, 20 KB, 2 tasks", Kind::Times("ns")),
    line("l2_p50", "L2 hit, one after the other, p50", Kind::Times("µs")),
    line("l2_tasks64", "L2 hits a second, 64 tasks", Kind::Rate("/s")),
    line("eviction_p50", "commit to eviction elsewhere, p50", Kind::Times("µs")),
    line("eviction_p90", "the same, p90", Kind::Times("µs")),
    line("write_p50", "the same with the write itself, p50", Kind::Micros),
    line("by_hand", "SQL typed by hand, until it is seen", Kind::Millis),
    line("stampede_1", "1,000 misses of one key, 1 instance: loads", Kind::Count),
    line("stampede_4", "1,000 misses of one key, 4 instances: loads", Kind::Count),
    line("stale_served", "slow load during a write: old value served after", Kind::Share),
    line("stale_longest", "the same, for how long at most", Kind::Millis),
    line("stale_elsewhere", "the same, to an instance that has it from Redis", Kind::Share),
    line("cut_stale", "connection cut for 300 ms during a write: old value served", Kind::Millis),
    line("killed_stale", "Redis killed, a write meanwhile: old value served", Kind::Millis),
    line("killed_hot_failed", "Redis killed: reads of hot keys without a value", Kind::Share),
    line("killed_cold_failed", "Redis killed: reads of cold keys without a value", Kind::Share),
    line("killed_cold_p50", "Redis killed: a read of a cold key, p50", Kind::Millis),
];

/// How each is called in the table, and the crates whose versions count.
pub const NAMES: [(&str, &str, &[&str]); PEERS.len()] = [
    ("perto", "Perto", &[]),
    ("hand-rolled", "by hand", &["moka", "redis"]),
    ("multi-tier-cache", "multi-tier-cache", &["multi-tier-cache"]),
    ("hitbox", "hitbox", &["hitbox", "hitbox-fn", "hitbox-moka", "hitbox-redis"]),
    ("redis", "redis-rs CSC", &["redis"]),
    ("cached", "cached", &["cached"]),
    ("moka", "moka", &["moka"]),
    ("quick_cache", "quick_cache", &["quick_cache"]),
];

const FORGETS: &str = "redis-rs forgets all that it holds when its connection breaks, and every read is a load until it is back. Perto keeps what it has, and learns of the write from Postgres at its next poll.";

/// Why Perto is not the first, where it is known.
const WHY: [(&str, &str); 11] = [
    (
        "l1_small_1",
        "quick_cache's hit is a read lock and a bit that says \"used\". Perto's also compares a lease with a clock.",
    ),
    (
        "l1_small_2",
        "quick_cache's hit is a read lock and a bit that says \"used\". Perto's also compares a lease with a clock.",
    ),
    (
        "l1_large_1",
        "quick_cache's hit is a read lock and a bit that says \"used\". Perto's also compares a lease with a clock.",
    ),
    (
        "l1_large_2",
        "quick_cache's hit is a read lock and a bit that says \"used\". Perto's also compares a lease with a clock.",
    ),
    ("l2_p50", "Perto checks the value's sum and stamp before it believes it."),
    ("l2_tasks64", "Perto checks each value's sum and stamp, and puts it into L1."),
    (
        "eviction_p50",
        "A `DEL` is one command to Redis. Perto also buries the old value, for readers that are slow.",
    ),
    (
        "eviction_p90",
        "A `DEL` is one command to Redis. Perto also buries the old value, for readers that are slow.",
    ),
    (
        "write_p50",
        "Perto's write has a trigger's row in it, and asks for its own transaction before the commit. That is not all of the difference, and the rest is not explained yet.",
    ),
    ("cut_stale", FORGETS),
    ("killed_stale", FORGETS),
];

/// What the project's own README shows.
const SHORT: [&str; 8] = [
    "l1_small_1",
    "l2_tasks64",
    "eviction_p50",
    "by_hand",
    "stampede_1",
    "stale_served",
    "cut_stale",
    "killed_cold_p50",
];

/// Writes the chart, and what stands between the marks of both READMEs.
pub fn write(measured: &Measured) -> Result<()> {
    std::fs::write(CHART, chart::draw(measured))?;
    let (mut notes, mut all) = (Vec::new(), head());
    for line in &LINES {
        if !is_first(measured, line, "perto") && PEERS.into_iter().any(|peer| is_first(measured, line, peer))
        {
            let why = WHY.iter().find(|(figure, _)| *figure == line.figure).map(|(_, why)| *why);
            let why =
                why.with_context(|| format!("{}: Perto is not first, and nobody has said why", line.figure))?;
            if !notes.contains(&why) {
                notes.push(why);
            }
            let number = notes.iter().position(|note| *note == why).map_or(0, |at| at + 1);
            all += &row(measured, line, &format!(" <sup>{number}</sup>"));
        } else {
            all += &row(measured, line, "");
        }
    }
    for (number, note) in notes.iter().enumerate() {
        write!(all, "\n{}. {note}", number + 1)?;
    }
    write!(
        all,
        "\n\n![Each timing beside its bare operation, on a logarithmic scale](chart.svg)\n\n{}",
        facts(measured)?
    )?;
    replace(README, &all)?;
    let short = LINES.iter().filter(|line| SHORT.contains(&line.figure)).map(|line| row(measured, line, ""));
    replace(PROJECT, &(head() + &short.collect::<String>()))
}

/// Puts a text between the marks of a file.
fn replace(file: &str, text: &str) -> Result<()> {
    let before = std::fs::read_to_string(file)?;
    let (begin, end) = ("<!-- measured: begin -->\n", "<!-- measured: end -->");
    let (head, rest) =
        before.split_once(begin).with_context(|| format!("{file} has no beginning of the table"))?;
    let (_, tail) = rest.split_once(end).with_context(|| format!("{file} has no end of the table"))?;
    Ok(std::fs::write(file, format!("{head}{begin}\n{}\n\n{end}{tail}", text.trim_end()))?)
}

fn head() -> String {
    let names: String = NAMES.iter().map(|(_, name, _)| format!(" {name} |")).collect();
    format!("| | bare |{names}\n| --- | ---: |{}\n", " ---: |".repeat(NAMES.len()))
}

fn row(measured: &Measured, line: &Line, note: &str) -> String {
    let cells = PEERS.into_iter().map(|peer| {
        let cell = cell(measured, line, peer);
        if is_first(measured, line, peer) { format!(" **{cell}** |") } else { format!(" {cell} |") }
    });
    format!("| {}{note} | {} |{}\n", line.label, bare(measured, line), cells.collect::<String>())
}

/// Versions, machine and day.
fn facts(measured: &Measured) -> Result<String> {
    let crates = NAMES.iter().flat_map(|(.., crates)| *crates);
    let mut versions =
        crates.map(|name| Ok(format!("{name} {}", version(name)?))).collect::<Result<Vec<_>>>()?;
    versions.sort();
    versions.dedup();
    let mut places: Vec<_> =
        measured.pieces().map(|piece| format!("{}, {}", piece.machine, piece.day)).collect();
    places.sort();
    places.dedup();
    Ok(format!(
        "{}.\n\nTaken on {}. Medians of {} rounds, in which the peers take turns.",
        versions.join(", "),
        places.join("; and on "),
        crate::ROUNDS
    ))
}

/// Lower is better, whatever is said.
fn cost(measured: &Measured, line: &Line, peer: &str) -> Option<f64> {
    match line.kind {
        Kind::Times(_) => median(&measured.ratios(peer, line.figure)),
        Kind::Rate(_) => median(&measured.ratios(peer, line.figure)).map(|ratio| 1.0 / ratio),
        Kind::Millis | Kind::Micros | Kind::Count | Kind::Share => {
            median(&measured.samples(peer, line.figure))
        }
    }
}

/// Who is among the first: to a twentieth, which is less than rounds differ by. Nobody is where all are.
fn is_first(measured: &Measured, line: &Line, peer: &str) -> bool {
    let costs: Vec<f64> = PEERS.into_iter().filter_map(|peer| cost(measured, line, peer)).collect();
    let bar = costs.iter().copied().min_by(f64::total_cmp).map(|least| least * 1.05);
    let within = |cost: f64| bar.is_some_and(|bar| cost <= bar);
    cost(measured, line, peer).is_some_and(within) && !costs.into_iter().all(within)
}

fn bare(measured: &Measured, line: &Line) -> String {
    let Some(bare) = median(&measured.samples("bare", line.figure)) else { return String::new() };
    match line.kind {
        Kind::Rate(unit) => format!("{:.0},000{unit}", bare / 1e3),
        Kind::Times(unit) => format!("{bare:.0} {unit}"),
        Kind::Millis | Kind::Micros | Kind::Count | Kind::Share => String::new(),
    }
}

fn cell(measured: &Measured, line: &Line, peer: &str) -> String {
    let Some(middle) = median(&measured.samples(peer, line.figure)) else {
        return if alone(peer).is_some() { "–".to_owned() } else { String::new() };
    };
    match line.kind {
        _ if middle.is_infinite() => format!("over {}", watched(line.figure)),
        Kind::Times(_) | Kind::Rate(_) => match median(&measured.ratios(peer, line.figure)) {
            Some(ratio) => format!("{} ×", short(ratio)),
            None => String::new(),
        },
        Kind::Millis if middle == 0.0 => "0".to_owned(),
        Kind::Millis => format!("{} ms", short(middle)),
        Kind::Micros => format!("{} ms", short(middle / 1e3)),
        Kind::Count => format!("{middle:.0}"),
        Kind::Share => format!("{:.0} %", middle * 100.0),
    }
}

/// How long a scenario waits for what did not happen.
fn watched(figure: &str) -> String {
    let watched = match figure {
        _ if figure.starts_with("stale") => stale::WATCHED,
        _ if figure.starts_with("cut") || figure.starts_with("killed") => outage::WATCHED,
        _ => eviction::WATCHED,
    };
    format!("{} s", watched.as_secs_f64())
}

/// Two digits that count.
fn short(number: f64) -> String {
    match number {
        _ if number < 10.0 => format!("{number:.2}"),
        _ if number < 100.0 => format!("{number:.1}"),
        _ => format!("{number:.0}"),
    }
}

/// Of a crate, as it is locked. Where there are several, the newest is what we depend on.
fn version(name: &str) -> Result<&'static str> {
    let begin = format!("name = \"{name}\"\nversion = \"");
    let found = LOCK.split(&begin).skip(1).filter_map(|rest| rest.split('"').next()).last();
    let found = found.with_context(|| format!("{name} is not locked"))?;
    ensure!(!found.is_empty(), "{name} has no version");
    Ok(found)
}
