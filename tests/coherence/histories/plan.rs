//! What happens in a history, as data: so that a history that fails can be made smaller.

use std::ops::Range;
use std::time::Duration;

use perto::{Outage, StaleWhileLoading, Tier, TierMode};
use proptest::collection::vec;
use proptest::prelude::*;

pub(super) const ROWS: usize = 5;
pub(super) const KEYS: u64 = ROWS as u64;
pub(super) const INSTANCES: usize = 3;

#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Decides which messages are lost and how late late ones are.
    pub(super) seed: u64,
    pub(super) ttl: Duration,
    pub(super) outages: Vec<Outage>,
    pub(super) stale: Option<Stale>,
    /// Whether one instance loads a key for all.
    pub(super) fleet_single_flight: bool,
    /// Whether the auditor works. Its loads would count as those of the entries whose time to live is checked.
    pub(super) audited: bool,
    /// Whether loaders say of what is as it was shown that it is.
    pub(super) conditional: bool,
    pub(super) steps: Vec<Step>,
}

#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) what: What,
    /// Time until the next step.
    pub(super) pause: Duration,
}

/// Stale answers, and loads before anybody misses a value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stale {
    pub(super) while_loading: StaleWhileLoading,
    pub(super) refresh_ahead: Duration,
    pub(super) jitter: u8,
}

/// What a read asks for beyond the bound.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asks {
    Nothing,
    /// To see the last write that was announced, of whatever key. Reads that one too.
    Token,
    Within(Duration),
    Latest,
    LatestByToken,
    /// To be no older than what the session has seen and written, by the last token that it got.
    Session,
}

/// Instances are numbered; open transactions too, modulo how many there are.
#[derive(Debug, Clone)]
pub(super) enum What {
    Read {
        who: usize,
        keys: Vec<u64>,
        asks: Asks,
        patience: Duration,
    },
    /// Of two rows in one value, by what it depends on.
    ReadPair {
        who: usize,
        key: u64,
        asks: Asks,
        patience: Duration,
    },
    /// Of rows and of a pair, at one moment.
    View {
        who: usize,
        keys: Vec<u64>,
        pair: u64,
        latest: bool,
        patience: Duration,
    },
    /// Some transactions get their number long before they write here, or write elsewhere alone.
    Begin,
    Put(Put),
    RollBack(usize),
    Commit {
        last: Put,
        /// By which instance, and how late. Nobody else hears of the write but by the log.
        announce: Option<(usize, Duration)>,
    },
    /// For a source that no trigger watches.
    Invalidate {
        who: usize,
        key: u64,
    },
    Fault {
        who: usize,
        seam: Seam,
        fault: Fault,
    },
    Loader {
        who: usize,
        loader: Loader,
    },
    L2(L2),
    /// Somebody switches a tier of all instances, of the rows' cache or of all caches.
    Switch {
        all: bool,
        tier: Tier,
        mode: TierMode,
        lasts: Option<Duration>,
    },
    /// Postgres crashes, and loses so many of the last commits and all of the log. None: it is stopped in order, and keeps both.
    Crash(usize),
    Jump {
        who: usize,
        by: Duration,
    },
    Freeze(usize),
    Thaw(usize),
    /// A process ends and another takes its place.
    Restart(usize),
    Trim,
    /// The replica has replayed all but so many commits.
    Replay(usize),
}

#[derive(Debug, Clone)]
pub(super) struct Put {
    pub(super) transaction: usize,
    pub(super) key: u64,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Value,
    /// The log has a row for the whole cache, and none for the key.
    Bulk,
    Removal,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Seam {
    Log,
    Remote,
    Bus,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    Cut,
    Hang,
    /// Of a hundred.
    Lose(u64),
    Double(u64),
    Delay(Duration),
    Heal,
    HealAll,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Loader {
    CloseBefore,
    CloseAfter,
    Cut,
    Delay(Duration),
    Replica { heeds_primary: bool },
    Primary,
    Heal,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum L2 {
    Flush,
    /// Bytes are changed at random.
    Scramble,
    Dump,
    /// It goes back to the last dump.
    Restore,
}

/// Any length up to `steps`: a shorter one than the shortest would never be tried when a history is made smaller.
pub(super) fn plans(steps: usize) -> impl Strategy<Value = Plan> {
    let ttl = prop_oneof![7 => Just(Duration::from_mins(30)), 3 => Just(Duration::from_secs(2))];
    let outage =
        prop_oneof![2 => Just(Outage::default()), 1 => Just(Outage::PassThrough), 1 => Just(Outage::Fail)];
    let stale = prop_oneof![1 => Just(None), 1 => stale().prop_map(Some)];
    let flags = (any::<bool>(), any::<bool>());
    (any::<u64>(), ttl, vec(outage, INSTANCES), flags, stale, vec(step(), 0..=steps)).prop_map(
        |(seed, ttl, outages, (audited, fleet_single_flight), stale, steps)| Plan {
            seed,
            ttl,
            outages,
            stale,
            fleet_single_flight,
            audited,
            conditional: seed % 2 == 0,
            steps,
        },
    )
}

fn stale() -> impl Strategy<Value = Stale> {
    let after = prop_oneof![Just(Duration::ZERO), millis(1..100)];
    let ahead = prop_oneof![Just(Duration::ZERO), millis(1..1_500)];
    (millis(1..20_000), after, millis(0..2_000), ahead, 0..50_u8).prop_map(
        |(grace, after, retry, refresh_ahead, jitter)| Stale {
            while_loading: StaleWhileLoading::for_up_to(grace).after(after).retry_after(retry),
            refresh_ahead,
            jitter,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let pause = prop_oneof![3 => micros(0..1_000), 5 => micros(0..20_000), 1 => micros(0..150_000), 1 => micros(0..600_000)];
    (what(), pause).prop_map(|(what, pause)| Step { what, pause })
}

fn what() -> impl Strategy<Value = What> {
    let keys = prop_oneof![17 => vec(key(), 1), 3 => vec(key(), 3)];
    let asks = prop_oneof![
        16 => Just(Asks::Nothing),
        2 => Just(Asks::Token),
        1 => millis(1..400).prop_map(Asks::Within),
        1 => Just(Asks::Latest),
        1 => Just(Asks::LatestByToken),
        2 => Just(Asks::Session),
    ];
    let patience = || prop_oneof![17 => Just(Duration::from_mins(1)), 3 => millis(0..60)];
    let asks_of_pair = asks.clone();
    let announce = prop_oneof![
        4 => Just(None),
        4 => who().prop_map(|who| Some((who, Duration::ZERO))),
        2 => (who(), millis(0..400)).prop_map(Some),
    ];
    prop_oneof![
        350 => (who(), keys, asks, patience())
            .prop_map(|(who, keys, asks, patience)| What::Read { who, keys, asks, patience }),
        100 => (who(), key(), asks_of_pair, patience())
            .prop_map(|(who, key, asks, patience)| What::ReadPair { who, key, asks, patience }),
        60 => (who(), vec(key(), 0..=3), key(), any::<bool>(), patience())
            .prop_map(|(who, keys, pair, latest, patience)| What::View { who, keys, pair, latest, patience }),
        60 => Just(What::Begin),
        90 => put().prop_map(What::Put),
        15 => (0..4_usize).prop_map(What::RollBack),
        85 => (put(), announce).prop_map(|(last, announce)| What::Commit { last, announce }),
        10 => (who(), key()).prop_map(|(who, key)| What::Invalidate { who, key }),
        140 => (who(), seam(), fault()).prop_map(|(who, seam, fault)| What::Fault { who, seam, fault }),
        40 => (who(), loader()).prop_map(|(who, loader)| What::Loader { who, loader }),
        40 => l2().prop_map(What::L2),
        30 => (any::<bool>(), tier(), mode(), lasts())
            .prop_map(|(all, tier, mode, lasts)| What::Switch { all, tier, mode, lasts }),
        10 => (0..3_usize).prop_map(What::Crash),
        10 => (who(), millis(0..3_000)).prop_map(|(who, by)| What::Jump { who, by }),
        5 => who().prop_map(What::Freeze),
        10 => who().prop_map(What::Thaw),
        10 => who().prop_map(What::Restart),
        10 => Just(What::Trim),
        30 => (0..4_usize).prop_map(What::Replay),
    ]
}

fn put() -> impl Strategy<Value = Put> {
    let kind = prop_oneof![78 => Just(Kind::Value), 7 => Just(Kind::Bulk), 15 => Just(Kind::Removal)];
    (0..4_usize, key(), kind).prop_map(|(transaction, key, kind)| Put { transaction, key, kind })
}

fn seam() -> impl Strategy<Value = Seam> {
    prop_oneof![Just(Seam::Log), Just(Seam::Remote), Just(Seam::Bus)]
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        3 => Just(Fault::Heal),
        1 => Just(Fault::HealAll),
        1 => Just(Fault::Cut),
        1 => Just(Fault::Hang),
        1 => (0..=100_u64).prop_map(Fault::Lose),
        1 => Just(Fault::Double(50)),
        1 => millis(0..700).prop_map(Fault::Delay),
    ]
}

fn loader() -> impl Strategy<Value = Loader> {
    prop_oneof![
        2 => Just(Loader::Heal),
        1 => Just(Loader::CloseBefore),
        1 => Just(Loader::CloseAfter),
        1 => Just(Loader::Cut),
        1 => millis(0..400).prop_map(Loader::Delay),
        1 => any::<bool>().prop_map(|heeds_primary| Loader::Replica { heeds_primary }),
        1 => Just(Loader::Primary),
    ]
}

fn l2() -> impl Strategy<Value = L2> {
    prop_oneof![1 => Just(L2::Flush), 1 => Just(L2::Scramble), 1 => Just(L2::Dump), 2 => Just(L2::Restore)]
}

fn tier() -> impl Strategy<Value = Tier> {
    prop_oneof![Just(Tier::Local), Just(Tier::Remote)]
}

fn mode() -> impl Strategy<Value = TierMode> {
    prop_oneof![3 => Just(TierMode::On), 1 => Just(TierMode::ReadOnly), 1 => Just(TierMode::Off)]
}

fn lasts() -> impl Strategy<Value = Option<Duration>> {
    prop_oneof![1 => Just(None), 2 => (1_000..2_000_u64).prop_map(|ms| Some(Duration::from_millis(ms)))]
}

fn who() -> Range<usize> {
    0..INSTANCES
}

fn key() -> Range<u64> {
    0..KEYS
}

fn millis(range: Range<u64>) -> impl Strategy<Value = Duration> {
    range.prop_map(Duration::from_millis)
}

fn micros(range: Range<u64>) -> impl Strategy<Value = Duration> {
    range.prop_map(Duration::from_micros)
}
