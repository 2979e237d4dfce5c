//! What was measured, kept in `measured.json` with the day and the versions.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{PEERS, Round};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/measured.json");

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    pieces: BTreeMap<String, Piece>,
}

/// Rounds of one piece, taken in one run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Piece {
    name: String,
    pub day: String,
    pub machine: String,
    rounds: Vec<Round>,
}

impl Piece {
    pub fn new(name: &str, rounds: Vec<Round>) -> Result<Self> {
        let day = said("date", &["-u", "+%F"])?;
        let cores = std::thread::available_parallelism()?;
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu =
            cpu.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("unknown").to_owned();
        let redis = said("redis-server", &["--version"]).unwrap_or_default();
        let redis =
            redis.split(' ').find_map(|word| word.strip_prefix("v=")).unwrap_or("of its own").to_owned();
        let rust = said("rustc", &["--version"])?;
        let rust = rust.split(' ').nth(1).unwrap_or_default().to_owned();
        let machine = format!("{cores} cores of an {cpu}, Redis {redis} on loopback, Rust {rust}");
        Ok(Self { name: name.to_owned(), day, machine, rounds })
    }
}

impl Measured {
    /// What there is. Nothing, where nothing was measured yet.
    pub fn read() -> Result<Self> {
        match std::fs::read(FILE) {
            Ok(bytes) => serde_json::from_slice(&bytes).context("measured.json"),
            Err(_) => Ok(Self::default()),
        }
    }

    pub fn put(&mut self, piece: Piece) {
        self.pieces.insert(piece.name.clone(), piece);
    }

    pub fn save(&self) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        Ok(std::fs::write(FILE, text)?)
    }

    pub fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.pieces.values()
    }

    /// A figure of each round: infinite where it did not happen within the time that was watched, and nothing where the
    /// peer was left out.
    pub fn samples(&self, peer: &str, figure: &str) -> Vec<f64> {
        let rounds = self.pieces.values().flat_map(|piece| &piece.rounds);
        let figures = rounds.filter_map(|round| round.get(peer)?.get(figure));
        figures.map(|figure| figure.unwrap_or(f64::INFINITY)).collect()
    }

    /// The same beside the bare operation's of the same round.
    pub fn ratios(&self, peer: &str, figure: &str) -> Vec<f64> {
        let (own, bare) = (self.samples(peer, figure), self.samples("bare", figure));
        own.iter().zip(bare).map(|(own, bare)| own / bare).collect()
    }

    /// A line of JSON for each figure of a piece, for who reads it by machine: ratios where there is a bare operation.
    pub fn append_lines(&self, piece: &str) -> Result<()> {
        let Some(path) = std::env::var("BENCH_JSON").ok().filter(|path| !path.is_empty()) else {
            return Ok(());
        };
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
        let rounds = self.pieces.get(piece).map(|piece| &piece.rounds[..]).unwrap_or_default();
        for peer in PEERS {
            for figure in rounds.iter().filter_map(|round| round.get(peer)).take(1).flat_map(BTreeMap::keys) {
                let mut samples = self.ratios(peer, figure);
                if samples.is_empty() {
                    samples = self.samples(peer, figure);
                }
                let name = format!("peers_{figure}_{peer}").replace('-', "_");
                // JSON has no infinity: null.
                let line =
                    serde_json::json!({ "name": name, "median": median(&samples), "samples": samples });
                writeln!(file, "{line}")?;
            }
        }
        Ok(())
    }
}

/// The middle one, or nothing of nothing.
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
