//! Perto beside other caches for Rust, each doing the same.
//!
//! `make bench-peers`, or a part of it: `make bench-peers ARGS='--only l1,stale'`. Rewrites the table and the chart of
//! `README.md` from `measured.json`, where what was not measured again stays as it was. With `BENCH_JSON=FILE` it appends a
//! line of JSON for each figure.

mod bed;
mod chart;
mod measured;
mod peer;
mod peers;
mod report;
mod scenarios;

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use measured::{Measured, Piece};
use peer::Peer;
use peers::{bare, cached, hand_rolled, hitbox, moka, multi_tier, near, quick, tracking};
use scenarios::{Figures, eviction, l1, l2, outage, stale, stampede};

/// The least that says how far rounds differ.
const ROUNDS: usize = 5;

/// Who is measured, in the order of the table.
const PEERS: [&str; 8] =
    ["perto", "hand-rolled", "multi-tier-cache", "hitbox", "redis", "cached", "moka", "quick_cache"];

/// What runs in a process of its own; whether it needs several instances or Redis; whether all peers may do it at once, for it
/// is mostly waiting.
const PIECES: [(&str, bool, bool); 8] = [
    ("l1-small", false, false),
    ("l1-large", false, false),
    ("l2", true, false),
    ("eviction", true, false),
    ("stampede", false, false),
    ("stale", false, true),
    ("cut", true, true),
    ("killed", true, true),
];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["one", piece, peer] => {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            println!("{}", serde_json::to_string(&runtime.block_on(one(piece, peer))?)?);
            Ok(())
        }
        [] => all(""),
        ["--only", only] => all(only),
        ["--render"] => report::write(&Measured::read()?),
        other => bail!("{other:?}: --only l1,l2,eviction,stampede,stale,cut,killed is what there is"),
    }
}

/// Measures the pieces whose names begin with one of these, and writes what there is to say.
fn all(only: &str) -> Result<()> {
    let wanted = |piece: &str| only.split(',').any(|name| piece.starts_with(name));
    let mut measured = Measured::read()?;
    let pieces: Vec<_> = PIECES.into_iter().filter(|(piece, ..)| wanted(piece)).collect();
    ensure!(!pieces.is_empty(), "--only {only}: no such piece");
    for (piece, several, together) in pieces {
        let mut rounds = Vec::new();
        for round in 0..ROUNDS {
            eprint!("\r{piece}: round {} of {ROUNDS} ", round + 1);
            let mut peers: Vec<&str> =
                PEERS.into_iter().filter(|peer| !several || alone(peer).is_none()).collect();
            if piece.starts_with("l1") || ["l2", "eviction"].contains(&piece) {
                peers.push("bare");
            }
            // Nobody is always the one after the same other.
            let count = peers.len();
            peers.rotate_left(round * 3 % count);
            rounds.push(if together { begin(piece, &peers)? } else { in_turn(piece, &peers)? });
        }
        eprintln!();
        measured.put(Piece::new(piece, rounds)?);
        measured.save()?;
        measured.append_lines(piece)?;
    }
    report::write(&measured)
}

type Round = std::collections::BTreeMap<String, Figures>;

fn in_turn(piece: &str, peers: &[&str]) -> Result<Round> {
    peers
        .iter()
        .map(|peer| Ok(begin(piece, &[peer])?.into_iter()))
        .collect::<Result<Vec<_>>>()
        .map(|rounds| rounds.into_iter().flatten().collect())
}

/// Each peer in a process of its own, all at the same time.
fn begin(piece: &str, peers: &[&str]) -> Result<Round> {
    let this = std::env::current_exe()?;
    let children: Vec<_> = peers
        .iter()
        .map(|peer| {
            let mut command = Command::new(&this);
            let child =
                command.args(["one", piece, peer]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
            child.map(|child| (*peer, child))
        })
        .collect::<std::io::Result<_>>()?;
    let mut round = Round::new();
    for (peer, child) in children {
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{piece}, {peer}: {}", String::from_utf8_lossy(&output.stderr));
        round.insert(peer.to_owned(), serde_json::from_slice(&output.stdout)?);
    }
    Ok(round)
}

/// One piece for one peer, in this process.
async fn one(piece: &str, peer: &str) -> Result<Figures> {
    match (peer, piece) {
        ("bare", "eviction") => eviction::bare().await,
        ("bare", "l2") => measure::<bare::Client>(piece).await,
        ("bare", _) => measure::<bare::Memory>(piece).await,
        ("perto", _) => measure::<near::Near>(piece).await,
        ("hand-rolled", _) => measure::<hand_rolled::HandRolled>(piece).await,
        ("multi-tier-cache", _) => measure::<multi_tier::MultiTier>(piece).await,
        ("hitbox", _) => measure::<hitbox::Hitbox>(piece).await,
        ("redis", _) => measure::<tracking::Tracking>(piece).await,
        ("cached", _) => measure::<cached::Cached>(piece).await,
        ("moka", _) => measure::<moka::Moka>(piece).await,
        ("quick_cache", _) => measure::<quick::Quick>(piece).await,
        _ => bail!("{peer}: no such peer"),
    }
}

async fn measure<P: Peer>(piece: &str) -> Result<Figures> {
    match piece {
        "l2" => l2::measure::<P>().await,
        "eviction" => eviction::measure::<P>().await,
        "stampede" => stampede::measure::<P>().await,
        "stale" => stale::measure::<P>().await,
        "cut" => outage::cut::<P>().await,
        "killed" => outage::killed::<P>().await,
        _ => l1::measure::<P>(piece.strip_prefix("l1-").context("no such piece")?).await,
    }
}

/// Why a peer is left out of what needs Redis or a second instance.
fn alone(peer: &str) -> Option<&'static str> {
    match peer {
        "moka" => moka::Moka::ALONE,
        "quick_cache" => quick::Quick::ALONE,
        _ => None,
    }
}
