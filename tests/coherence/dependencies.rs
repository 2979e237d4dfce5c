//! Values of many rows: joins, lists and counts, by what their loaders say that they depend on.

use perto::sim::{Down, Node, Rows, Sim, SimLoader, Written};
use perto::{
    Cache, Dependency, Error, Freshness, Loaded, MAX_DEPENDENCIES, Perto, Read, ReadOptions, Refusal, Stamp,
    Tier, Token, Topic, TroubleKind,
};

use crate::ring::{BOUND, POLL, ms};

/// Of a user: the name, the company's number, and its name.
type Card = (String, u64, String);

/// An instance with caches over two tables, `user` and `company`.
struct Office {
    node: Node,
    perto: Perto,
    companies: Cache<u64, String>,
    /// Users with the names of their companies: a join.
    cards: Cache<u64, Card>,
    /// The users of each company.
    staff: Topic<u64>,
    /// How many users a company has, of those below 10.
    counts: Cache<u64, u64>,
    loader: SimLoader,
}

fn card(rows: &Rows<'_>, user: &u64) -> Result<Option<Card>, Down> {
    let Some((name, company)) = rows.get::<_, (String, u64)>("user", user)? else { return Ok(None) };
    let of: Option<String> = rows.get("company", &company)?;
    Ok(Some((name, company, of.unwrap_or_default())))
}

fn count(rows: &Rows<'_>, company: &u64) -> Result<Option<u64>, Down> {
    let mut count = 0;
    for user in 0..10 {
        let user: Option<(String, u64)> = rows.get("user", &user)?;
        count += u64::from(user.is_some_and(|(_, of)| of == *company));
    }
    Ok(Some(count))
}

impl Office {
    async fn open(sim: &Sim) -> Self {
        Self::open_that(sim, |companies, card| vec![companies.key(&card.1)]).await
    }

    /// One whose cards depend on what is said.
    async fn open_that(sim: &Sim, on: fn(&Cache<u64, String>, &Card) -> Vec<Dependency>) -> Self {
        Self::open_at(sim.node(), sim, on).await
    }

    async fn open_at(node: Node, sim: &Sim, on: fn(&Cache<u64, String>, &Card) -> Vec<Dependency>) -> Self {
        let perto = node.builder("office").allow_unwatched().build().unwrap();
        let loader = sim.postgres.loader("company");
        let companies = perto.cache("company").loader(loader.function()).unwrap();
        let staff = perto.topic("staff").tables(["user"]).declare().unwrap();
        let (loads, of) = (loader.clone(), companies.clone());
        let of_card = perto.cache("user").loader(move |load| {
            let (loads, of) = (loads.clone(), of.clone());
            async move {
                let loaded = loads.statement(load, card).await?;
                Ok::<_, Down>(
                    loaded.depends_on(move |_, card| card.map_or_else(Vec::new, |card| on(&of, card))),
                )
            }
        });
        let (loads, of) = (loader.clone(), staff.clone());
        let of_count = perto.cache("count").loader(move |load| {
            let (loads, of) = (loads.clone(), of.clone());
            async move {
                Ok::<_, Down>(
                    loads.statement(load, count).await?.depends_on(move |company, _| [of.key(company)]),
                )
            }
        });
        let office = Self {
            companies,
            cards: of_card.unwrap(),
            staff,
            counts: of_count.unwrap(),
            loader,
            node,
            perto,
        };
        office.perto.start().await.unwrap();
        ms(300).await;
        office
    }

    async fn card(&self, user: u64) -> (Option<Card>, Tier) {
        let read = self.cards.get(&user).await.unwrap();
        assert_eq!(read.freshness, Freshness::Fresh);
        (read.value().cloned(), read.tier)
    }

    async fn count(&self, company: u64) -> (u64, Tier) {
        let read = self.counts.get(&company).await.unwrap();
        assert_eq!(read.freshness, Freshness::Fresh);
        (*read.value().unwrap(), read.tier)
    }

    async fn announce(&self, written: &Written) {
        self.perto.announce(written.token, &written.changes).await;
    }
}

fn of(name: &str, company: u64, called: &str) -> Option<Card> {
    Some((name.to_owned(), company, called.to_owned()))
}

/// A user who comes to a company, or moves there from another, as triggers log it.
fn hire(sim: &Sim, user: u64, name: &str, company: u64, from: Option<u64>) -> Written {
    let mut transaction = sim.postgres.begin();
    transaction.put("user", &user, &(name, company)).unwrap();
    for company in from.into_iter().chain([company]) {
        transaction.touch("staff", &company.to_string());
    }
    transaction.commit().unwrap()
}

fn call(sim: &Sim, company: u64, name: &str) -> Written {
    sim.postgres.write("company", &company, &name).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_row_that_was_joined_is_seen_to_change_by_hint_and_by_poll() {
    let sim = Sim::new(1);
    call(&sim, 7, "Acme");
    hire(&sim, 1, "Ada", 7, None);
    let (one, two) = (Office::open(&sim).await, Office::open(&sim).await);
    for office in [&one, &two] {
        office.card(1).await;
        assert_eq!(office.card(1).await, (of("Ada", 7, "Acme"), Tier::Local));
    }
    one.announce(&call(&sim, 7, "Acme 2")).await;
    ms(10).await;
    for office in [&one, &two] {
        assert_eq!(office.card(1).await.0, of("Ada", 7, "Acme 2"), "a hint told of it");
    }
    call(&sim, 7, "Acme 3");
    tokio::time::sleep(POLL).await;
    for office in [&one, &two] {
        assert_eq!(office.card(1).await.0, of("Ada", 7, "Acme 3"), "the log told of it");
        assert_eq!(office.card(1).await.1, Tier::Local);
        assert_eq!(office.cards.stats().dependents_dropped, 2);
    }
    // What it does not depend on leaves it where it is.
    call(&sim, 8, "Other");
    tokio::time::sleep(POLL).await;
    assert_eq!(one.card(1).await.1, Tier::Local);
}

#[tokio::test(start_paused = true)]
async fn a_row_that_is_joined_to_another_one_depends_on_that_one() {
    let sim = Sim::new(1);
    call(&sim, 7, "Acme");
    call(&sim, 8, "Beta");
    hire(&sim, 1, "Ada", 7, None);
    let office = Office::open(&sim).await;
    office.card(1).await;
    office.announce(&hire(&sim, 1, "Ada", 8, Some(7))).await;
    assert_eq!(office.card(1).await.0, of("Ada", 8, "Beta"));
    ms(10).await;
    office.announce(&call(&sim, 7, "gone")).await;
    assert_eq!(office.card(1).await.1, Tier::Local, "it depends on it no more");
    office.announce(&call(&sim, 8, "Beta 2")).await;
    assert_eq!(office.card(1).await.0, of("Ada", 8, "Beta 2"));
}

#[tokio::test(start_paused = true)]
async fn a_count_sees_what_comes_goes_and_moves() {
    let sim = Sim::new(1);
    let office = Office::open(&sim).await;
    assert_eq!((office.count(7).await.0, office.count(8).await.0), (0, 0));
    hire(&sim, 1, "Ada", 7, None);
    tokio::time::sleep(POLL).await;
    assert_eq!(office.count(7).await, (1, Tier::Load));
    assert_eq!(office.count(8).await, (0, Tier::Local), "another company's");
    hire(&sim, 1, "Ada", 8, Some(7));
    tokio::time::sleep(POLL).await;
    assert_eq!((office.count(7).await.0, office.count(8).await.0), (0, 1));
    let mut all = sim.postgres.begin();
    all.put("user", &2_u64, &("Bob", 7_u64)).unwrap();
    all.clear("staff");
    all.commit().unwrap();
    tokio::time::sleep(POLL).await;
    assert_eq!(office.count(7).await, (1, Tier::Load), "the whole topic");
    office.count(8).await;
    office.staff.invalidate(&7).await.unwrap();
    assert_eq!((office.count(7).await.1, office.count(8).await.1), (Tier::Load, Tier::Local), "by hand");
}

/// `DependencyLostInL2`.
#[tokio::test(start_paused = true)]
async fn what_l2_brings_is_judged_by_what_it_depends_on() {
    let sim = Sim::new(1);
    call(&sim, 7, "Acme");
    hire(&sim, 1, "Ada", 7, None);
    let one = Office::open(&sim).await;
    one.card(1).await;
    ms(20).await;
    let two = Office::open(&sim).await;
    assert_eq!(two.card(1).await, (of("Ada", 7, "Acme"), Tier::Remote));
    // It is judged at each hit too, though it came from there.
    two.announce(&call(&sim, 7, "Acme 2")).await;
    let dump = sim.remote.dump();
    assert_eq!(two.card(1).await, (of("Ada", 7, "Acme 2"), Tier::Load));
    ms(20).await;
    // Redis goes back to what there was before.
    sim.remote.restore(&dump);
    let (three, refused) = (Office::open(&sim).await, two.cards.stats().l2_refused);
    assert_eq!(three.card(1).await, (of("Ada", 7, "Acme 2"), Tier::Load));
    assert!(three.cards.stats().l2_refused > 0 || refused > 0);
}

/// `UndeclaredSubjectIgnored`.
#[tokio::test(start_paused = true)]
async fn a_value_that_depends_on_what_is_not_declared_here_is_a_miss_here() {
    let sim = Sim::new(1);
    call(&sim, 7, "Acme");
    hire(&sim, 1, "Ada", 7, None);
    let one = Office::open(&sim).await;
    one.card(1).await;
    ms(20).await;
    // An instance of an older program: it has no cache of companies.
    let perto = sim.node().builder("office").build().unwrap();
    let loads = one.loader.clone();
    let loader = move |load| {
        let loads = loads.clone();
        async move { loads.statement(load, card).await }
    };
    let cards: Cache<u64, Card> = perto.cache("user").loader(loader).unwrap();
    perto.start().await.unwrap();
    ms(300).await;
    assert_eq!(cards.get(&1).await.unwrap().tier, Tier::Load);
    assert_eq!(cards.stats().l2_undeclared, 1);
}

#[tokio::test(start_paused = true)]
async fn a_load_in_the_air_is_given_to_nobody_who_knows_that_what_it_joined_has_changed() {
    let sim = Sim::new(1);
    call(&sim, 7, "Acme");
    hire(&sim, 1, "Ada", 7, None);
    let office = Office::open(&sim).await;
    office.loader.after().close();
    let reading = |office: &Office| {
        let cards = office.cards.clone();
        crate::ring::spawn(async move { cards.get(&1).await.unwrap() })
    };
    let first = reading(&office);
    ms(1).await;
    office.announce(&call(&sim, 7, "Acme 2")).await;
    let second = reading(&office);
    ms(1).await;
    office.loader.after().open();
    let name = |read: Read<Card>| read.value().unwrap().2.clone();
    assert_eq!(name(first.await.unwrap()), "Acme", "it began before");
    assert_eq!(name(second.await.unwrap()), "Acme 2");
    assert_eq!(office.card(1).await.0, of("Ada", 7, "Acme 2"));
}

#[tokio::test(start_paused = true)]
async fn a_value_that_depends_on_too_much_or_on_a_stranger_is_loaded_by_each_read_and_told_of() {
    let too_many = |of: &Cache<u64, String>, card: &Card| {
        (0..=MAX_DEPENDENCIES as u64).map(|more| of.key(&(card.1 + more))).collect()
    };
    let stranger = |_: &Cache<u64, String>, _: &Card| {
        let sim = Sim::new(2);
        let other = sim.node().builder("other").build().unwrap();
        vec![other.topic::<u64>("elsewhere").declare().unwrap().key(&1)]
    };
    for (on, why) in
        [(too_many as fn(&Cache<u64, String>, &Card) -> _, "17 keys"), (stranger, "\"elsewhere\"")]
    {
        let sim = Sim::new(1);
        call(&sim, 7, "Acme");
        hire(&sim, 1, "Ada", 7, None);
        let office = Office::open_that(&sim, on).await;
        for name in ["Acme", "Acme 2", "Acme 3"] {
            call(&sim, 7, name);
            assert_eq!(office.card(1).await, (of("Ada", 7, name), Tier::Load));
        }
        // Nor does it keep anybody from his own write, or from a view.
        let written = call(&sim, 7, "Acme 4");
        let by_token = office.cards.get_with(&1, ReadOptions::at_least(written.token)).await.unwrap();
        assert_eq!(by_token.value().cloned(), of("Ada", 7, "Acme 4"));
        let cards = &office.cards;
        let view = office.perto.view(|view| async move { view.get(cards, &1).await }).await.unwrap();
        assert_eq!(view.value().cloned(), of("Ada", 7, "Acme 4"));
        ms(20).await;
        assert!(sim.remote.keys().is_empty(), "nor is it in L2");
        let troubles = office.perto.health().troubles;
        let told = |kind| troubles.iter().find(|trouble| trouble.kind == kind);
        let detail = &told(TroubleKind::ValuesUnstorable).unwrap().detail;
        assert!(detail.contains(why), "{detail}");
    }
}

#[tokio::test(start_paused = true)]
async fn inspect_shows_what_a_value_depends_on_and_which_of_it_refuses() {
    let sim = Sim::new(1);
    call(&sim, 7, "Acme");
    hire(&sim, 1, "Ada", 7, None);
    let office = Office::open(&sim).await;
    office.card(1).await;
    ms(20).await;
    let refused = async || {
        let seen = office.cards.inspect(&1).await.unwrap();
        let [on] = &seen.local.unwrap().depends[..] else { panic!("one dependency") };
        assert_eq!((on.on.cache(), on.on.key()), ("company", "7"));
        (on.refused, seen.remote_refused)
    };
    assert_eq!(refused().await, (None, None));
    let written = call(&sim, 7, "Acme 2");
    tokio::time::sleep(POLL).await;
    let misses = Some(Refusal::Misses(perto::Missing::Transaction(written.xid)));
    assert_eq!(refused().await, (misses, misses));
}

/// A forgotten dependency: nothing evicts the value, and the auditor names what it may have been.
#[tokio::test(start_paused = true)]
async fn the_auditor_finds_a_forgotten_dependency_and_names_it() {
    let sim = Sim::new(1);
    call(&sim, 7, "Acme");
    hire(&sim, 1, "Ada", 7, None);
    let office = Office::open_that(&sim, |_, _| Vec::new()).await;
    let mut events = office.perto.events();
    office.card(1).await;
    call(&sim, 7, "Acme 2");
    tokio::time::sleep(2 * BOUND).await;
    for _ in 0..400 {
        office.card(1).await;
        ms(50).await;
    }
    assert_eq!(office.card(1).await.0, of("Ada", 7, "Acme 2"), "it was mended");
    let mut named = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let perto::Event::AuditViolation { cache, changed, .. } = event {
            named.push((cache, changed));
        }
    }
    assert_eq!(named, [("user".to_owned(), vec!["company".to_owned()])]);
    let troubles = office.perto.health().troubles;
    let trouble = troubles.iter().find(|trouble| trouble.kind == TroubleKind::AuditViolation).unwrap();
    assert!(trouble.detail.contains("company"), "{}", trouble.detail);
}

#[tokio::test(start_paused = true)]
async fn a_key_of_another_instance_can_be_in_no_view() {
    let sim = Sim::new(1);
    let (one, two) = (Office::open(&sim).await, Office::open(&sim).await);
    let (mine, theirs) = (&one.companies, &two.companies);
    let view = one.perto.view(|view| async move { view.get(theirs, &7).await }).await;
    assert!(matches!(view, Err(Error::NoSnapshot { .. })), "{view:?}");
    assert!(one.perto.view(|view| async move { view.get(mine, &7).await }).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_is_named_twice_counts_once() {
    let sim = Sim::new(1);
    call(&sim, 7, "Acme");
    hire(&sim, 1, "Ada", 7, None);
    let office = Office::open_that(&sim, |of, card| vec![of.key(&card.1); 40]).await;
    office.card(1).await;
    assert_eq!(office.card(1).await, (of("Ada", 7, "Acme"), Tier::Local));
    office.announce(&call(&sim, 7, "Acme 2")).await;
    assert_eq!(office.card(1).await.0, of("Ada", 7, "Acme 2"));
}

/// A number that reads with leading zeros, and writes without.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Plain(u64);

impl std::fmt::Display for Plain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for Plain {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// The log's text is parsed before it is recorded. So is that of a dependency, whoever has spelled it.
#[tokio::test(start_paused = true)]
async fn a_dependency_is_judged_by_the_key_that_its_text_is_parsed_as() {
    let sim = Sim::new(1);
    let perto = sim.node().builder("office").build().unwrap();
    let _topic: Topic<Plain> = perto.topic("staff").tables(["user"]).declare().unwrap();
    let loads = sim.postgres.loader("count");
    let counts: Cache<u64, u64> = perto
        .cache("count")
        .loader(move |load| {
            let loads = loads.clone();
            async move {
                let loaded = loads.statement(load, count).await?;
                Ok::<_, Down>(
                    loaded.depends_on(|company, _| [Dependency::of("staff", &format!("00{company}"))]),
                )
            }
        })
        .unwrap();
    perto.start().await.unwrap();
    ms(300).await;
    let counted = async || *counts.get(&7).await.unwrap().value().unwrap();
    assert_eq!(counted().await, 0);
    hire(&sim, 1, "Ada", 7, None);
    tokio::time::sleep(POLL).await;
    assert_eq!(counted().await, 1);
    // A text that is no key at all can't be judged.
    let other: Dependency = Dependency::of("staff", &"seven");
    assert_eq!((other.cache(), other.key()), ("staff", "seven"));
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_names_no_table_is_told_of() {
    let sim = Sim::new(1);
    let perto = sim.node().builder("office").build().unwrap();
    let _silent: Topic<u64> = perto.topic("silent").declare().unwrap();
    let _by_hand: Topic<u64> = perto.topic("by_hand").tables([""; 0]).declare().unwrap();
    let mut events = perto.events();
    perto.start().await.unwrap();
    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let perto::Event::Undeclared { cache } = event {
            told.push(cache);
        }
    }
    assert_eq!(told, ["silent"]);
}

/// What a second statement has read is not in the stamp of the first.
#[tokio::test(start_paused = true)]
async fn what_several_statements_have_read_gives_no_token_and_is_in_no_view() {
    let sim = Sim::new(1);
    let perto = sim.node().builder("office").build().unwrap();
    let postgres = sim.postgres.clone();
    let counts: Cache<u64, u64> = perto
        .cache("count")
        .loader(move |_| {
            let stamp = Stamp::parse(&format!("{} primary clean 1", postgres.snapshot())).unwrap();
            async move { Ok::<_, Down>(Loaded::new(stamp.as_lower_bound()).with(7, 1)) }
        })
        .unwrap();
    perto.start().await.unwrap();
    ms(300).await;
    let read = counts.get(&7).await.unwrap();
    assert_eq!((read.freshness, read.token()), (Freshness::Fresh, None));
    assert_eq!(counts.get(&7).await.unwrap().tier, Tier::Local, "it is cached as ever");
    let counts = &counts;
    let view = perto.view(|view| async move { view.get(counts, &7).await }).await;
    assert!(matches!(view, Err(Error::NoSnapshot { .. })), "{view:?}");
}

#[tokio::test(start_paused = true)]
async fn a_view_that_outlives_its_attempt_reads_no_more() {
    let sim = Sim::new(1);
    let office = Office::open(&sim).await;
    let companies = &office.companies;
    let escaped = office.perto.view(|view| async move { Ok::<_, Error>(view) }).await.unwrap();
    assert!(matches!(escaped.get(companies, &7).await, Err(Error::Unsettled)));
}

/// Of many keys the last answer's token is not enough, and one for all is.
#[tokio::test(start_paused = true)]
async fn one_token_for_many_answers_contains_them_all() {
    let sim = Sim::new(1);
    call(&sim, 7, "Acme");
    let (one, two) = (Office::open(&sim).await, Office::open(&sim).await);
    for office in [&one, &two] {
        office.companies.get_many(&[7, 8]).await.unwrap();
    }
    ms(300).await;
    // One instance sees it by hint, and the other one hears nothing.
    two.node.bus.faults.lose(100);
    one.announce(&call(&sim, 7, "Acme 2")).await;
    let reads = one.companies.get_many(&[7, 8]).await.unwrap();
    assert_eq!(reads[0].value().map(String::as_str), Some("Acme 2"));
    let all = Token::of_all(reads.iter().map(Read::token)).unwrap();
    assert_eq!(all, reads[0].token().unwrap(), "the newest of them");
    assert_ne!(all, reads[1].token().unwrap());
    let read = two.companies.get_with(&7, ReadOptions::at_least(all)).await.unwrap();
    assert_eq!(read.value().map(String::as_str), Some("Acme 2"));
    assert_eq!(Token::of_all([Some(all), None]), None);
    assert_eq!(Token::of_all([]), None);
}

/// Whoever reads it there later may know nothing of the writes that nobody saw.
#[tokio::test(start_paused = true)]
async fn what_depends_on_what_is_not_watched_stays_out_of_l2() {
    let sim = Sim::new(1);
    let node = sim.node();
    node.log.watch("user", false);
    let one = Office::open_at(node, &sim, |companies, card| vec![companies.key(&card.1)]).await;
    call(&sim, 7, "Alpha");
    hire(&sim, 1, "Ann", 7, None);
    tokio::time::sleep(POLL).await;
    assert_eq!((one.count(7).await, one.card(1).await.1), ((1, Tier::Load), Tier::Load));
    ms(300).await;
    one.perto.shutdown().await;
    let other = Office::open(&sim).await;
    assert_eq!(other.card(1).await.1, Tier::Remote, "it depends on another");
    assert_eq!(other.count(7).await, (1, Tier::Load));
    other.perto.shutdown().await;
}
