//! Loaders that are shown what they brought before, and say that it is what there is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use perto::sim::{Down, Node, Sim, SimLoader};
use perto::{Cache, CacheBuilder, Error, Freshness, Load, Perto, Previous, Read, ReadOptions, Tier, Token};

use crate::ring::{BOUND, CACHE, eventually, ms, some, spawn, text};

const TTL: Duration = Duration::from_secs(5);

/// What each call of a loader was shown, in order.
type Shown = Arc<Mutex<Vec<Vec<(String, String)>>>>;

struct One {
    perto: Perto,
    node: Node,
    users: Cache<String, String>,
    loader: SimLoader,
    shown: Shown,
    /// The loader says of all that it was shown that it is what there is, whatever there is.
    lies: Arc<AtomicBool>,
}

impl One {
    async fn start(sim: &Sim) -> Self {
        Self::start_with(sim, |cache| cache).await
    }

    async fn start_with(
        sim: &Sim,
        cache: impl FnOnce(CacheBuilder<String, String>) -> CacheBuilder<String, String>,
    ) -> Self {
        let node = sim.node();
        let perto = node.builder("ring").build().unwrap();
        let (loader, shown, lies) = (sim.postgres.loader(CACHE), Shown::default(), Arc::default());
        let (loading, showing, lying) = (loader.clone(), Arc::clone(&shown), Arc::clone(&lies));
        let load = move |load: Load<String>, previous: Previous<String, String>| {
            let mut all: Vec<_> = previous.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
            all.sort_unstable();
            showing.lock().push(all);
            let (loading, lying): (SimLoader, Arc<AtomicBool>) = (loading.clone(), Arc::clone(&lying));
            async move {
                if !lying.load(Ordering::Acquire) {
                    return loading.load_changed(load, previous).await;
                }
                let keys = load.keys.clone();
                let value = |rows: &perto::sim::Rows<'_>, key: &String| match previous.get(key) {
                    Some(_) => Ok(None),
                    None => rows.get(CACHE, key),
                };
                let loaded = loading.statement(load, value).await?;
                let shown = keys.into_iter().filter(|key| previous.get(key).is_some());
                Ok::<_, Down>(shown.fold(loaded, perto::Loaded::with_unmodified))
            }
        };
        let users = cache(perto.cache(CACHE).ttl(TTL).absent_ttl(TTL)).conditional_loader(load).unwrap();
        perto.start().await.unwrap();
        ms(300).await;
        Self { perto, node, users, loader, shown, lies }
    }

    async fn read(&self, key: &str) -> Read<String> {
        let read = self.users.get(key).await.unwrap();
        assert_eq!(read.freshness, Freshness::Fresh);
        read
    }

    /// A read of key 1, and where it came from.
    async fn came(&self) -> (Option<String>, Tier) {
        let read = self.read("1").await;
        (text(&read), read.tier)
    }

    fn last_shown(&self) -> Vec<(String, String)> {
        self.shown.lock().last().cloned().unwrap_or_default()
    }

    fn unmodified(&self) -> u64 {
        self.users.stats().keys_unmodified
    }
}

fn write(sim: &Sim, key: &str, value: &str) -> perto::sim::Written {
    sim.postgres.write(CACHE, &key.to_owned(), &value).unwrap()
}

/// A write of row 1 that no trigger logs.
fn unlogged(sim: &Sim, value: &str) {
    let mut unlogged = sim.postgres.begin();
    unlogged.put_unlogged(CACHE, &"1".to_owned(), &value).unwrap();
    unlogged.commit().unwrap();
}

fn as_shown(value: &str) -> Vec<(String, String)> {
    vec![("1".to_owned(), value.to_owned())]
}

#[tokio::test(start_paused = true)]
async fn a_value_whose_time_is_over_stays_where_it_is_as_of_the_new_stamp() {
    let sim = Sim::new(1);
    write(&sim, "1", "Ada");
    let (one, two) = (One::start(&sim).await, One::start(&sim).await);
    let first = one.read("1").await;
    assert_eq!((text(&first), one.last_shown()), (some("Ada"), vec![]));
    for round in 1..4 {
        tokio::time::sleep(TTL).await;
        let written = write(&sim, "2", &round.to_string());
        let read = one.read("1").await;
        assert_eq!((text(&read), read.tier), (some("Ada"), Tier::Load));
        assert_eq!((one.unmodified(), one.last_shown()), (round, as_shown("Ada")));
        assert!(std::ptr::eq(first.value().unwrap(), read.value().unwrap()), "the very same");
        // Its token is that of the new stamp, which has the other write.
        let after = one.users.get_with("1", ReadOptions::at_least(written.token)).await.unwrap();
        assert_eq!(after.tier, Tier::Local);
        assert!(
            Token::of_all([read.token(), first.token()]) == read.token() && read.token() != first.token()
        );
        // L2 has it again, for as long.
        ms(20).await;
        assert_eq!(two.came().await, (some("Ada"), Tier::Remote));
    }
    // A write goes as ever.
    let written = write(&sim, "1", "Grace");
    one.perto.announce(written.token, &written.changes).await;
    assert_eq!(one.came().await, (some("Grace"), Tier::Load));
    assert_eq!((text(&first), one.last_shown()), (some("Ada"), vec![]));
    tokio::time::sleep(TTL).await;
    write(&sim, "1", "Edsger");
    assert_eq!(one.came().await, (some("Edsger"), Tier::Load), "it was shown, and is another by now");
    assert_eq!((one.unmodified(), one.last_shown()), (3, as_shown("Grace")));
}

/// By hand, because the value is wrong though its version is right: before the load's statement or after it.
#[tokio::test(start_paused = true)]
async fn what_is_invalidated_while_it_is_found_unmodified_is_loaded_again_and_not_shown() {
    for is_before in [true, false] {
        let sim = Sim::new(1);
        write(&sim, "1", "Ada");
        let (one, two) = (One::start(&sim).await, One::start(&sim).await);
        one.read("1").await;
        tokio::time::sleep(TTL).await;
        unlogged(&sim, "Grace");
        one.lies.store(true, Ordering::Release);
        let gate = if is_before { one.loader.before() } else { one.loader.after() };
        gate.close();
        let users = one.users.clone();
        let reading = spawn(async move { users.get("1").await });
        eventually("it loads", BOUND, || gate.waiting() == 1).await;
        two.users.invalidate(&"1".to_owned()).await.unwrap();
        ms(20).await;
        gate.open();
        let read = reading.await.unwrap().unwrap();
        assert_eq!((text(&read), read.freshness, read.tier), (some("Grace"), Freshness::Fresh, Tier::Load));
        assert_eq!(*one.shown.lock(), [vec![], as_shown("Ada"), vec![]]);
        assert_eq!(one.came().await, (some("Grace"), Tier::Local));
        ms(20).await;
        assert_eq!((two.came().await, one.unmodified()), ((some("Grace"), Tier::Remote), 0));
    }
}

/// The versions of a row count up from where the history was cut, so they are used twice.
#[tokio::test(start_paused = true)]
async fn without_a_lease_nothing_is_shown_and_nothing_that_was_shown_is_believed() {
    for is_over_before in [true, false] {
        let sim = Sim::new(1);
        write(&sim, "1", "Ada");
        let one = One::start(&sim).await;
        one.read("1").await;
        tokio::time::sleep(TTL).await;
        one.lies.store(true, Ordering::Release);
        let lost = async || {
            one.node.log.faults.hang();
            sim.postgres.crash(0);
            unlogged(&sim, "Grace");
            tokio::time::sleep(BOUND).await;
        };
        let expected = if is_over_before {
            lost().await;
            assert_eq!(one.came().await, (some("Grace"), Tier::Load));
            vec![vec![], vec![]]
        } else {
            one.loader.before().close();
            let users = one.users.clone();
            let reading = spawn(async move { users.get("1").await });
            eventually("it loads", BOUND, || one.loader.before().waiting() == 1).await;
            lost().await;
            one.loader.before().open();
            let read = reading.await.unwrap().unwrap();
            assert_eq!((text(&read), read.freshness), (some("Grace"), Freshness::Fresh));
            vec![vec![], as_shown("Ada"), vec![]]
        };
        assert_eq!((&*one.shown.lock(), one.unmodified()), (&expected, 0));
    }
}

/// A hint tells of the write while the load is on its way, or a poll does.
#[tokio::test(start_paused = true)]
async fn what_is_written_while_it_is_found_unmodified_is_loaded_again() {
    for is_announced in [true, false] {
        let sim = Sim::new(1);
        write(&sim, "1", "Ada");
        let (one, two) = (One::start(&sim).await, One::start(&sim).await);
        one.read("1").await;
        tokio::time::sleep(TTL).await;
        one.loader.after().close();
        let users = one.users.clone();
        let reading = spawn(async move { users.get("1").await });
        ms(1).await;
        let written = write(&sim, "1", "Grace");
        match is_announced {
            true => one.perto.announce(written.token, &written.changes).await,
            false => ms(300).await,
        }
        one.loader.after().open();
        let read = reading.await.unwrap().unwrap();
        assert_eq!((text(&read), read.freshness, one.unmodified()), (some("Grace"), Freshness::Fresh, 0));
        assert_eq!(*one.shown.lock(), [vec![], as_shown("Ada"), vec![]]);
        assert_eq!(one.came().await, (some("Grace"), Tier::Local));
        ms(20).await;
        assert_eq!(two.came().await, (some("Grace"), Tier::Remote));
    }
}

#[tokio::test(start_paused = true)]
async fn shown_is_nothing_that_was_invalidated_cleared_lost_or_made_of_more() {
    let sim = Sim::new(1);
    for key in ["1", "Upper"] {
        write(&sim, key, "Ada");
    }
    let one = One::start(&sim).await;
    let latest = async |key: &str| {
        let read = one.users.get_with(key, ReadOptions::latest()).await.unwrap();
        assert_eq!(text(&read), some("Ada"));
        one.last_shown()
    };
    assert_eq!(one.came().await.1, Tier::Load);
    one.users.invalidate(&"1".to_owned()).await.unwrap();
    assert_eq!((latest("1").await, one.shown.lock().len()), (vec![], 2));
    one.users.clear().await.unwrap();
    assert_eq!((latest("1").await, one.shown.lock().len()), (vec![], 3));
    tokio::time::sleep(TTL).await;
    assert_eq!((latest("1").await, one.shown.lock().len()), (as_shown("Ada"), 4));
    sim.postgres.restart();
    ms(600).await;
    assert_eq!((latest("1").await, one.shown.lock().len()), (vec![], 5), "of another era");
    // One that the log may spell otherwise is asked after in its bucket.
    latest("Upper").await;
    tokio::time::sleep(TTL).await;
    let upper = vec![("Upper".to_owned(), "Ada".to_owned())];
    assert_eq!((latest("Upper").await, one.shown.lock().len()), (upper, 7));
    one.users.invalidate(&"upper".to_owned()).await.unwrap();
    assert_eq!((latest("Upper").await, one.shown.lock().len()), (vec![], 8));
    // That there is none needs no version.
    for _ in 0..2 {
        assert_eq!(text(&one.read("3").await), None);
        tokio::time::sleep(TTL).await;
    }
    assert_eq!((one.last_shown(), one.unmodified()), (vec![], 2));
}

#[tokio::test(start_paused = true)]
async fn what_is_refreshed_ahead_is_shown_and_nobody_waits() {
    let sim = Sim::new(1);
    write(&sim, "1", "Ada");
    let one = One::start_with(&sim, |cache| cache.refresh_ahead(TTL / 2)).await;
    one.read("1").await;
    for round in 1..6 {
        tokio::time::sleep(TTL * 2 / 3).await;
        assert_eq!(one.came().await, (some("Ada"), Tier::Local));
        ms(20).await;
        assert_eq!((one.unmodified(), one.last_shown()), (round, as_shown("Ada")));
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_said_to_be_as_it_was_and_was_not_shown_fails_alone_unless_it_is_brought_too() {
    let sim = Sim::new(1);
    write(&sim, "2", "Grace");
    let perto = sim.node().builder("ring").build().unwrap();
    let loader = sim.postgres.loader(CACHE);
    let load = move |load: Load<u64>, previous: Previous<u64, String>| {
        let loader = loader.clone();
        async move {
            Ok::<_, Down>(loader.load_changed(load, previous).await?.with_unmodified(1).with_unmodified(2))
        }
    };
    let users: Cache<u64, String> = perto.cache(CACHE).conditional_loader(load).unwrap();
    perto.start().await.unwrap();
    let both = [1, 2].map(|key| {
        let users = users.clone();
        spawn(async move { users.get(&key).await })
    });
    let [one, two] = both;
    assert!(matches!(one.await.unwrap(), Err(Error::Load { .. })));
    assert_eq!(text(&two.await.unwrap().unwrap()), some("Grace"));
}

/// The auditor shows nothing, so it sees what the version hides.
#[tokio::test(start_paused = true)]
async fn a_loader_that_takes_a_changed_value_for_what_it_was_is_found_by_the_auditor() {
    let sim = Sim::new(1);
    write(&sim, "1", "Ada");
    let one = One::start(&sim).await;
    one.read("1").await;
    tokio::time::sleep(TTL).await;
    unlogged(&sim, "Grace");
    one.lies.store(true, Ordering::Release);
    assert_eq!(one.came().await, (some("Ada"), Tier::Load));
    assert_eq!(one.unmodified(), 1);
    let reading = async {
        loop {
            let _old_or_new = one.users.get("1").await;
            ms(10).await;
        }
    };
    let found = eventually("the auditor finds it", BOUND * 20, || one.users.stats().audit_violations > 0);
    tokio::select! {
        () = reading => {}
        () = found => {}
    }
    ms(300).await;
    assert_eq!(one.came().await.0, some("Grace"), "invalidated, it is not shown");
}
