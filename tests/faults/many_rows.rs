//! Values of many rows, and many values of one moment, on real engines.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use parking_lot::Mutex;
use perto::proxy::{Fault, FaultProxy};
use perto::sim::Dice;
use perto::{Cache, Error, Freshness, Load, Perto, postgres};
use sqlx::{AssertSqlSafe, PgPool};

use crate::support::engines::{moved_to, place_of};
use crate::world::{BOUND, POLL_INTERVAL, World, coherent};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |number| number.parse().unwrap())
}

/// For whoever runs it for its figures.
fn shown(figures: std::fmt::Arguments<'_>) {
    drop(writeln!(std::io::stderr(), "{figures}"));
}

/// Pairs of rows that are only ever written together, to the same version, by sixteen writers. Redis is cut off and comes back, and hints
/// are lost. `PERTO_VIEWS=1000000` for more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_rows_of_one_transaction_are_never_seen_torn_in_a_view() {
    const PAIRS: i64 = 50;
    const COMMITS: u64 = 500;
    let views = number("PERTO_VIEWS", 10_000);
    let world = World::new().await;
    world.sql(&format!("insert into items select id, 0 from generate_series(0, {}) id", 2 * PAIRS - 1)).await;
    let proxy = FaultProxy::start(place_of(&world.redis)).await.unwrap();
    let lossy = moved_to(&world.redis, &proxy.address().to_string());
    let a = world.start().await;
    let b = world.start_with(|perto| perto.redis(&lossy).subscribe_at(&lossy), |cache| cache).await;
    coherent([&a, &b]).await;
    let (begun, committed) = (AtomicU64::new(0), AtomicU64::new(0));
    let (overtaken, refused, alone) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    // As many as were asked for, and until something was there to be torn.
    let until = Instant::now() + Duration::from_secs(60);
    let goes_on = || {
        let enough = begun.load(Ordering::Acquire) >= views
            && committed.load(Ordering::Acquire) >= COMMITS
            && alone.load(Ordering::Acquire) > 0;
        !enough && (begun.load(Ordering::Acquire) < views || Instant::now() < until)
    };
    let took = Mutex::new(Vec::new());
    let writing = async |seed: u64| {
        let mut dice = Dice::new(seed);
        while goes_on() {
            let pair = i64::try_from(dice.below(PAIRS.unsigned_abs())).unwrap();
            let sql = format!("update items set v = v + 1 where id in ({}, {})", 2 * pair, 2 * pair + 1);
            // Half of them through an instance, which tells the others.
            if dice.below(2) == 0 {
                world.sql(&sql).await;
            } else {
                let run =
                    async |tx: &mut sqlx::PgConnection| sqlx::raw_sql(AssertSqlSafe(sql)).execute(tx).await;
                a.perto.write(&world.pool, run).await.unwrap();
            }
            committed.fetch_add(1, Ordering::AcqRel);
            tokio::time::sleep(Duration::from_millis(dice.below(20))).await;
        }
    };
    let reading = async |perto: &Perto, items: &Cache<i64, i64>, seed: u64| {
        let mut dice = Dice::new(seed);
        while goes_on() {
            begun.fetch_add(1, Ordering::AcqRel);
            // What is in L1 waits for nothing, and would keep the writers from their turn.
            tokio::task::yield_now().await;
            let pair = i64::try_from(dice.below(PAIRS.unsigned_abs())).unwrap();
            let began = Instant::now();
            let seen = perto
                .view(|view| async move {
                    Ok::<_, Error>((
                        view.get(items, &(2 * pair)).await?,
                        view.get(items, &(2 * pair + 1)).await?,
                    ))
                })
                .await;
            match seen {
                Ok((one, other)) => {
                    assert_eq!(one.value(), other.value(), "pair {pair}");
                    took.lock().push(began.elapsed());
                }
                Err(Error::Unsettled) => drop(overtaken.fetch_add(1, Ordering::Relaxed)),
                // A busy machine: no answer is no torn one.
                Err(Error::Unverified) => drop(refused.fetch_add(1, Ordering::Relaxed)),
                Err(error) => panic!("{error}"),
            }
            // What two reads by themselves show, for comparison: it must be possible to see them torn.
            let (first, second) = (2 * pair, 2 * pair + 1);
            let (one, other) = tokio::join!(items.get(&first), items.get(&second));
            let torn = matches!((one, other), (Ok(one), Ok(other)) if one.value() != other.value());
            alone.fetch_add(u64::from(torn), Ordering::AcqRel);
        }
    };
    let breaking = async {
        while goes_on() {
            for fault in [Fault::DropMessages, Fault::None, Fault::Cut, Fault::None] {
                proxy.set(fault);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    };
    let readers = (0..32)
        .map(|n| if n % 2 == 0 { reading(&a.perto, &a.items, n) } else { reading(&b.perto, &b.items, n) });
    let (_, (), _) = tokio::join!(join_all((0..16).map(|n| writing(100 + n))), breaking, join_all(readers));
    let (overtaken, refused, alone) = (overtaken.into_inner(), refused.into_inner(), alone.into_inner());
    let mut took = took.into_inner();
    took.sort_unstable();
    let counted = [&a, &b].map(|instance| instance.perto.stats());
    let sum = |of: fn(&perto::InstanceStats) -> u64| counted.iter().map(of).sum::<u64>();
    let said = format!(
        "{} views, median {:?}, p99 {:?}; {} waited for a poll, {} attempts given up, {overtaken} never settled, {refused} \
         refused; \
         {} commits; read one by one {alone} pairs were torn",
        took.len(),
        took[took.len() / 2],
        took[took.len() * 99 / 100],
        sum(|stats| stats.views_awaited),
        sum(|stats| stats.views_again),
        committed.into_inner(),
    );
    shown(format_args!("{said}"));
    assert!(alone > 0, "nothing was there to be torn: {said}");
    assert!((overtaken + refused) * 20 <= begun.into_inner(), "{said}");
}

/// One write to a hundred views of three rows, as most are read. `PERTO_VIEWS` for more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_few_write_a_view_waits_for_no_poll() {
    const ROWS: u64 = 1_000;
    let views = number("PERTO_VIEWS", 10_000);
    let world = World::new().await;
    world.sql(&format!("insert into items select id, 0 from generate_series(0, {}) id", ROWS - 1)).await;
    let a = world.start().await;
    coherent([&a]).await;
    let keys: Vec<i64> = (0..i64::try_from(ROWS).unwrap()).collect();
    a.items.get_many(&keys).await.unwrap();
    a.polled().await;
    let (before, mut dice) = (a.perto.stats(), Dice::new(7));
    // Small numbers are read more often.
    let pick = |dice: &mut Dice| {
        let below = 1 + dice.below(ROWS);
        i64::try_from(dice.below(below)).unwrap()
    };
    let items = &a.items;
    for view in 0..views {
        if view % 100 == 0 {
            let row = pick(&mut dice);
            world.sql(&format!("update items set v = v + 1 where id = {row}")).await;
        }
        let keys = [pick(&mut dice), pick(&mut dice), pick(&mut dice)];
        let keys = &keys;
        let seen = a.perto.view(|view| async move { view.get_many(items, keys).await }).await.unwrap();
        assert!(seen.iter().all(|read| read.freshness == Freshness::Fresh));
        if view % 10 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let waited = a.perto.stats().views_awaited - before.views_awaited;
    shown(format_args!("{waited} of {views} views waited for a poll"));
    assert!(waited * 10 <= views, "{waited} of {views}");
}

type Card = (String, i64, String);

/// Caches over users and their companies: a join, a list and a count.
struct Office {
    perto: Perto,
    cards: Cache<i64, Card>,
    names: Cache<i64, Vec<String>>,
    counts: Cache<i64, i64>,
}

impl Office {
    async fn open(world: &World, redis: &str) -> Self {
        let perto = Perto::builder(&world.name)
            .schema(&world.name)
            .postgres(&world.database)
            .redis(redis)
            .subscribe_at(redis)
            .poll_interval(POLL_INTERVAL)
            .remote_timeout(Duration::from_secs(1))
            .build()
            .unwrap();
        let table = |table: &str| format!("{}.{table}", world.name);
        let companies: Cache<i64, String> = perto
            .cache("company")
            .watch(&table("companies"), "id")
            .loader(postgres::by_key(&world.pool, "select id, name from companies where id = any($1)"))
            .unwrap();
        let staff = perto.topic("staff").watch(&table("users"), "company_id").declare().unwrap();
        let heads = perto
            .topic("heads")
            .watch_columns(&table("users"), "company_id", ["company_id"])
            .declare()
            .unwrap();
        let (pool, on) = (world.pool.clone(), companies.clone());
        let cards = perto.cache("user").watch(&table("users"), "id").loader(move |load: Load<i64>| {
            let (pool, on) = (pool.clone(), on.clone());
            async move {
                let sql = "select u.id, u.name, u.company_id, coalesce(c.name, '') \
                           from users u left join companies c on c.id = u.company_id where u.id = any($1)";
                let rows = postgres::query_as::<(i64, String, i64, String)>(sql)
                    .bind(load.keys)
                    .fetch(&pool)
                    .await?;
                let loaded = rows.by_key(|(id, name, company_id, company)| (id, (name, company_id, company)));
                Ok::<_, sqlx::Error>(
                    loaded.depends_on(move |_, card: Option<&Card>| card.map(|card| on.key(&card.1))),
                )
            }
        });
        let pool = world.pool.clone();
        let names = perto.cache("staff_names").tables([""; 0]).loader(move |load: Load<i64>| {
            let (pool, staff) = (pool.clone(), staff.clone());
            async move {
                let sql = "select company_id, name from users where company_id = any($1) order by name, id";
                let rows = postgres::query_as::<(i64, String)>(sql).bind(load.keys).fetch(&pool).await?;
                Ok::<_, sqlx::Error>(
                    rows.grouped(|row| row).depends_on(move |company, _| [staff.key(company)]),
                )
            }
        });
        let pool = world.pool.clone();
        let counts = perto.cache("head_count").tables([""; 0]).loader(move |load: Load<i64>| {
            let (pool, heads) = (pool.clone(), heads.clone());
            async move {
                let sql = "select company_id, count(*) from users where company_id = any($1) group by 1";
                let rows = postgres::query_as::<(i64, i64)>(sql).bind(load.keys).fetch(&pool).await?;
                Ok::<_, sqlx::Error>(
                    rows.by_key(|row| row).depends_on(move |company, _| [heads.key(company)]),
                )
            }
        });
        let office = Self { cards: cards.unwrap(), names: names.unwrap(), counts: counts.unwrap(), perto };
        office.perto.migrate().await.unwrap();
        office.perto.start().await.unwrap();
        office
    }
}

/// What both tables are.
#[derive(Debug, Clone, Default, PartialEq)]
struct Tables {
    companies: BTreeMap<i64, String>,
    users: BTreeMap<i64, (String, i64)>,
}

impl Tables {
    fn card(&self, user: i64) -> Option<Card> {
        let (name, company) = self.users.get(&user)?;
        Some((name.clone(), *company, self.companies.get(company).cloned().unwrap_or_default()))
    }

    fn names(&self, company: i64) -> Vec<String> {
        let mut names: Vec<_> = self.users.iter().filter(|(_, (_, of))| *of == company).collect();
        names.sort_by_key(|(id, (name, _))| (name.clone(), **id));
        names.into_iter().map(|(_, (name, _))| name.clone()).collect()
    }

    /// Changes something at random, and says so in SQL.
    fn change(&mut self, dice: &mut Dice, serial: u64) -> String {
        let id = |dice: &mut Dice, below| i64::try_from(dice.below(below)).unwrap();
        let (user, company, name) = (id(dice, USERS), id(dice, COMPANIES), format!("n{serial}"));
        match dice.below(6) {
            0 => {
                self.users.remove(&user);
                format!("delete from users where id = {user}")
            }
            1 => {
                self.companies.remove(&company);
                format!("delete from companies where id = {company}")
            }
            2 => {
                self.companies.insert(company, name.clone());
                format!(
                    "insert into companies values ({company}, '{name}') on conflict (id) do update set name = excluded.name"
                )
            }
            3 => {
                if let Some((_, of)) = self.users.get_mut(&user) {
                    *of = company;
                }
                format!("update users set company_id = {company} where id = {user}")
            }
            4 => {
                if let Some((of_user, _)) = self.users.get_mut(&user) {
                    of_user.clone_from(&name);
                }
                format!("update users set name = '{name}' where id = {user}")
            }
            _ => {
                self.users.insert(user, (name.clone(), company));
                format!(
                    "insert into users values ({user}, '{name}', {company}) \
                     on conflict (id) do update set name = excluded.name, company_id = excluded.company_id"
                )
            }
        }
    }
}

const USERS: u64 = 8;
const COMPANIES: u64 = 4;

/// The tables, one state after the other: when the change was sent, when it was committed for certain, and what it led to.
#[derive(Default)]
struct Past(Mutex<Vec<(Instant, Instant, Arc<Tables>)>>);

impl Past {
    /// Whether this was so at some time that a fresh read between these two may show.
    fn explains(&self, began: Instant, ended: Instant, is: impl Fn(&Tables) -> bool) -> bool {
        let states = self.0.lock();
        let over = |at: usize| states.get(at + 1).map(|(_, committed, _)| *committed);
        let mut possible = states.iter().enumerate().filter(|(at, (sent, _, _))| {
            *sent <= ended && over(*at).is_none_or(|over| over + BOUND >= began)
        });
        possible.any(|(_, (_, _, tables))| is(tables))
    }
}

async fn write_at_random(pool: &PgPool, past: &Past, done: &AtomicBool) -> u64 {
    let (mut dice, mut tables, mut serial) = (Dice::new(3), Tables::default(), 0);
    let now = Instant::now();
    past.0.lock().push((now, now, Arc::new(tables.clone())));
    while !done.load(Ordering::Acquire) {
        serial += 1;
        let sql = tables.change(&mut dice, serial);
        let sent = Instant::now();
        // Before it is sent: a reader may see it at once.
        past.0.lock().push((sent, sent + Duration::from_hours(1), Arc::new(tables.clone())));
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.unwrap();
        past.0.lock().last_mut().unwrap().1 = Instant::now();
        tokio::time::sleep(Duration::from_millis(dice.below(30))).await;
    }
    serial
}

/// SQL by hand to both tables: rows that come, go, change and move. `PERTO_SECONDS` for longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joins_lists_and_counts_are_never_older_than_the_bound_under_random_writes_to_all_their_tables() {
    let world = World::new().await;
    world
        .sql(
            "create table companies (id bigint primary key, name text not null); \
             create table users (id bigint primary key, name text not null, company_id bigint not null)",
        )
        .await;
    let proxy = FaultProxy::start(place_of(&world.redis)).await.unwrap();
    let lossy = moved_to(&world.redis, &proxy.address().to_string());
    let offices = [Office::open(&world, &world.redis).await, Office::open(&world, &lossy).await];
    for office in &offices {
        office.perto.ready().await.unwrap();
    }
    let (past, done) = (Past::default(), AtomicBool::new(false));
    let (reads, hits) = (AtomicU64::new(0), AtomicU64::new(0));
    let reading = async |office: &Office, seed: u64| {
        let mut dice = Dice::new(seed);
        while !done.load(Ordering::Acquire) {
            let id = |dice: &mut Dice, below| i64::try_from(dice.below(below)).unwrap();
            let (user, company) = (id(&mut dice, USERS), id(&mut dice, COMPANIES));
            let began = Instant::now();
            let (card, names, count) = tokio::join!(
                office.cards.get(&user),
                office.names.get(&company),
                office.counts.get(&company)
            );
            let ended = Instant::now();
            let (card, names, count) = (card.unwrap(), names.unwrap(), count.unwrap());
            let fresh = [card.freshness, names.freshness, count.freshness];
            assert_eq!(fresh, [Freshness::Fresh; 3]);
            let tiers = [card.tier, names.tier, count.tier];
            hits.fetch_add(
                tiers.iter().filter(|tier| **tier == perto::Tier::Local).count() as u64,
                Ordering::Relaxed,
            );
            reads.fetch_add(3, Ordering::Relaxed);
            let (card, names) = (card.value().cloned(), names.value().cloned().unwrap_or_default());
            let count = count.value().copied().unwrap_or_default();
            assert!(past.explains(began, ended, |tables| tables.card(user) == card), "card {user}: {card:?}");
            assert!(
                past.explains(began, ended, |tables| tables.names(company) == names),
                "staff of {company}: {names:?}"
            );
            let counted = |tables: &Tables| i64::try_from(tables.names(company).len()).unwrap();
            assert!(
                past.explains(began, ended, |tables| counted(tables) == count),
                "count of {company}: {count}"
            );
            tokio::time::sleep(Duration::from_micros(dice.below(3_000))).await;
        }
    };
    let breaking = async {
        let until = Instant::now() + Duration::from_secs(number("PERTO_SECONDS", 8));
        while Instant::now() < until {
            for fault in [Fault::DropMessages, Fault::None, Fault::Cut, Fault::None] {
                proxy.set(fault);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        done.store(true, Ordering::Release);
    };
    let readers = (0..8).map(|n| reading(&offices[n % 2], n as u64));
    let (writes, _, ()) =
        tokio::join!(write_at_random(&world.pool, &past, &done), join_all(readers), breaking);
    let (reads, hits) = (reads.into_inner(), hits.into_inner());
    shown(format_args!("{reads} reads beside {writes} writes, {hits} of them from L1"));
    assert!(
        writes > 100 && reads > 1_000 && hits > reads / 10,
        "{reads} reads beside {writes} writes, {hits} of them from L1"
    );
    for office in &offices {
        office.perto.shutdown().await;
    }
}
