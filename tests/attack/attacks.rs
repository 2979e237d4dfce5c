//! What is done to the instances. Each attack runs until its time is over, and is as strong as its [`Power`] says.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::task::JoinSet;

use crate::client::{Client, Who};
use crate::redis_attacks;
use crate::support::hostile::{Crowd, Takes};
use crate::world::World;

pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    /// Whether it is part of the short run.
    pub(crate) smoke: bool,
    pub(crate) by: By,
    /// Whether it needs [`make_chats`].
    pub(crate) chats: bool,
    pub(crate) run: fn(Arc<World>, Arc<Power>) -> BoxFuture<'static, ()>,
}

/// Who attacks, and so what the quiet tenant may notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// Strangers and tenants: nothing but a little time.
    Http,
    /// Who writes to Redis, or is Redis: L2 may be lost, and with it time.
    Redis,
    /// Who publishes hints: L1 may be lost, until the second poll after the last one.
    Hints,
}

/// How strong an attack is.
pub(crate) struct Power {
    pub(crate) until: Instant,
    pub(crate) seed: u64,
    /// Hostile connections of an instance, where it is their number that hurts.
    pub(crate) connections: usize,
    /// Largest message in bytes.
    pub(crate) message: usize,
    /// What was tried.
    pub(crate) tried: AtomicU64,
    /// What was refused with an answer: 4xx, 5xx.
    pub(crate) refused: AtomicU64,
    /// What got no answer at all.
    pub(crate) cut: AtomicU64,
}

pub(crate) const ATTACKS: &[Attack] = &[
    Attack {
        name: "never-reading",
        what: "strangers ask for the largest file, and read nothing or 64 bytes each 8 s",
        smoke: true,
        chats: false,
        by: By::Http,
        run: |world, power| never_reading(world, power).boxed(),
    },
    Attack {
        name: "idle-strangers",
        what: "connections that say nothing, or a byte a second",
        smoke: true,
        chats: false,
        by: By::Http,
        run: |world, power| idle_strangers(world, power).boxed(),
    },
    Attack {
        name: "unread-pages",
        what: "a tenant asks for its largest pages, and reads nothing",
        smoke: true,
        chats: true,
        by: By::Http,
        run: |world, power| unread_pages(world, power).boxed(),
    },
    Attack {
        name: "large-chats",
        what: "a tenant reads 30 chats of 6.4 MB, one after the other",
        smoke: false,
        chats: true,
        by: By::Http,
        run: |world, power| large_chats(world, power).boxed(),
    },
    Attack {
        name: "validations",
        what: "a tenant has 1,000 contacts validated at a time, over four connections",
        smoke: false,
        chats: false,
        by: By::Http,
        run: |world, power| validations(world, power).boxed(),
    },
    Attack {
        name: "preloads",
        what: "a tenant preloads its contacts, over four connections",
        smoke: false,
        chats: false,
        by: By::Http,
        run: |world, power| preloads(world, power).boxed(),
    },
    Attack {
        name: "bad-imports",
        what: "a tenant imports 2 MB of rows that are all rejected, as often as it may",
        smoke: false,
        chats: false,
        by: By::Http,
        run: |world, power| bad_imports(world, power).boxed(),
    },
    Attack {
        name: "guessed-keys",
        what: "strangers guess API keys, and name traces to be sampled",
        smoke: true,
        chats: false,
        by: By::Http,
        run: |world, power| guessed_keys(world, power).boxed(),
    },
    Attack {
        name: "forged-tokens",
        what: "a tenant asks for what is newer than anything: tokens of other epochs, and of transactions to come",
        smoke: true,
        chats: false,
        by: By::Http,
        run: |world, power| forged_tokens(world, power).boxed(),
    },
    Attack {
        name: "one-forged-hint",
        what: "one hint of a transaction that is 900 million ahead, of all contacts",
        smoke: true,
        chats: false,
        by: By::Hints,
        run: |world, power| redis_attacks::one_forged_hint(world, power).boxed(),
    },
    Attack {
        name: "forged-hints",
        what: "1,000 hints a second of transactions that are none, by publishers that are none",
        smoke: true,
        chats: false,
        by: By::Hints,
        run: |world, power| redis_attacks::forged_hints(world, power).boxed(),
    },
    Attack {
        name: "poisoned-values",
        what: "garbage, others' values, and values of many MB under the names of those that are read",
        smoke: true,
        chats: false,
        by: By::Redis,
        run: |world, power| redis_attacks::poisoned_values(world, power).boxed(),
    },
    Attack {
        name: "huge-messages",
        what: "messages on the channel that are larger than any hint",
        smoke: false,
        chats: false,
        by: By::Redis,
        run: |world, power| redis_attacks::huge_messages(world, power).boxed(),
    },
    Attack {
        name: "slow-redis",
        what: "a Redis that takes 40 ms for all it says",
        smoke: false,
        chats: false,
        by: By::Redis,
        run: |world, power| redis_attacks::slow_redis(world, power).boxed(),
    },
];

/// Chats of the hostile tenant, of 500 messages, the newest first.
const CHATS: usize = 30;
/// Characters of four bytes.
const LARGE: &str = "𐍈";
/// Where strangers come from; the quiet tenant comes from another address.
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
const TENANT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 8);

impl Power {
    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    pub(crate) async fn wait(&self) {
        tokio::time::sleep_until(self.until.into()).await;
    }

    /// A number that the seed and the place make: the same in each run.
    pub(crate) fn chance(&self, place: u64) -> u64 {
        let mixed = (self.seed ^ place).wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn count(&self, answered: &std::io::Result<crate::client::Answer>) {
        self.tried.fetch_add(1, Ordering::Relaxed);
        match answered {
            Ok(answer) if answer.status >= 400 => drop(self.refused.fetch_add(1, Ordering::Relaxed)),
            Ok(_) => {}
            Err(_) => drop(self.cut.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

fn hostile(world: &World) -> Who {
    Who { from: TENANT, key: Some(world.hostile_key.clone()) }
}

const fn stranger() -> Who {
    Who { from: STRANGER, key: None }
}

/// So many clients of each instance, each asking again as soon as it was answered, or `every` so often.
async fn repeat<Fut>(
    world: &World,
    power: &Arc<Power>,
    who: &Who,
    clients: usize,
    every: Duration,
    ask: impl Fn(Client, u64) -> Fut + Clone + Send + 'static,
) where
    Fut: Future<Output = (Client, std::io::Result<crate::client::Answer>)> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for address in world.addresses() {
        for number in 0..clients {
            let (power, ask) = (Arc::clone(power), ask.clone());
            let mut client = Client::new(&address, who);
            tasks.spawn(async move {
                let mut at = number as u64;
                while !power.is_over() {
                    let asked = ask(client, power.chance(at)).await;
                    client = asked.0;
                    power.count(&asked.1);
                    at += clients as u64;
                    tokio::time::sleep(every).await;
                }
            });
        }
    }
    while tasks.join_next().await.is_some() {}
}

async fn crowd(world: &World, power: &Power, request: &[u8]) {
    let mut crowds = Vec::new();
    for address in world.addresses() {
        let mut crowd = Crowd::from(STRANGER);
        crowd.join(&address, power.connections / 2, request, Takes::Nothing).await;
        crowd.join(&address, power.connections.div_ceil(2), request, Takes::Drops).await;
        power.tried.fetch_add(power.connections as u64, Ordering::Relaxed);
        crowds.push(crowd);
    }
    power.wait().await;
    for mut crowd in crowds {
        let gone = power.connections.saturating_sub(crowd.held());
        power.cut.fetch_add(gone as u64, Ordering::Relaxed);
        crowd.leave().await;
    }
}

async fn never_reading(world: Arc<World>, power: Arc<Power>) {
    crowd(&world, &power, b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
}

async fn idle_strangers(world: Arc<World>, power: Arc<Power>) {
    crowd(&world, &power, b"GET /").await;
}

/// Makes the hostile tenant's chats, by SQL: it is not the writing that is tried.
///
/// They are half a gigabyte, written past the service, so no attack: that is done before the time that is judged.
pub(crate) async fn make_chats(world: &World) {
    let sql = format!(
        "insert into chats select ('10000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, 2 \
           from generate_series(1, {CHATS}) n on conflict do nothing; \
         insert into messages (chat_id, sender, body) \
           select ('10000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, 'contact', repeat('{LARGE}', 8000) \
           from generate_series(1, {CHATS}) n, generate_series(1, 500) \
           where not exists (select from messages where chat_id = '10000000-0000-4000-8000-000000000001')"
    );
    world.sql(&sql).await;
    world.sql("checkpoint").await;
}

fn chat(number: u64) -> String {
    format!("/api/v1/chats/10000000-0000-4000-8000-{:012}/messages", number % CHATS as u64 + 1)
}

/// Pages of a mebibyte that are asked for, of each instance. To make one takes a debug build tens of times as long.
const PAGES: usize = if cfg!(debug_assertions) { 8 } else { 120 };

async fn unread_pages(world: Arc<World>, power: Arc<Power>) {
    let (key, mut crowds) = (&world.hostile_key, Vec::new());
    for address in world.addresses() {
        let mut crowd = Crowd::from(TENANT);
        for number in 0..power.connections.min(PAGES) {
            let path = chat(number as u64);
            let request = format!(
                "GET {path}?limit=500 HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n\r\n"
            );
            crowd.join(&address, 1, request.as_bytes(), Takes::Nothing).await;
            power.tried.fetch_add(1, Ordering::Relaxed);
        }
        crowds.push(crowd);
    }
    power.wait().await;
    for mut crowd in crowds {
        let gone = power.connections.min(PAGES).saturating_sub(crowd.held());
        power.cut.fetch_add(gone as u64, Ordering::Relaxed);
        crowd.leave().await;
    }
}

async fn large_chats(world: Arc<World>, power: Arc<Power>) {
    let ask = |mut client: Client, chance: u64| async move {
        let answered = client.get(&format!("{}?limit=200", chat(chance))).await;
        (client, answered)
    };
    repeat(&world, &power, &hostile(&world), 2, Duration::from_millis(50), ask).await;
}

async fn validations(world: Arc<World>, power: Arc<Power>) {
    let contact = r#"{"phone":"+351 912 345 678","name":"Ada","email":"ada@example.com"}"#;
    let body: Arc<str> = format!("[{}]", vec![contact; 1_000].join(",")).into();
    let ask = move |mut client: Client, chance: u64| {
        // Of other numbers each time: nothing is to be had from a cache.
        let body = body.replace("912 345 678", &format!("9{:08}", chance % 100_000_000));
        async move {
            let path = "/api/v1/companies/2/contacts/validate";
            let answered = client.send("POST", path, "", body.as_bytes()).await;
            (client, answered)
        }
    };
    repeat(&world, &power, &hostile(&world), 4, Duration::from_millis(5), ask).await;
}

async fn preloads(world: Arc<World>, power: Arc<Power>) {
    let ask = |mut client: Client, _| async move {
        let path = "/api/v1/companies/2/contacts/preload";
        let answered = client.send("POST", path, "", br#"{"limit":1000}"#).await;
        (client, answered)
    };
    repeat(&world, &power, &hostile(&world), 4, Duration::from_millis(5), ask).await;
}

async fn bad_imports(world: Arc<World>, power: Arc<Power>) {
    let rows = "nobody's number,=cmd()\n".repeat(2_000_000 / 23);
    let file: Arc<[u8]> = format!("phone,name\n{rows}").into_bytes().into();
    let ask = move |mut client: Client, _| {
        let file = Arc::clone(&file);
        async move {
            let path = "/api/v1/companies/2/contacts/imports";
            let answered = client.send("POST", path, "content-type: text/csv\r\n", &file).await;
            (client, answered)
        }
    };
    repeat(&world, &power, &hostile(&world), 1, Duration::from_millis(200), ask).await;
}

async fn guessed_keys(world: Arc<World>, power: Arc<Power>) {
    let ask = |mut client: Client, chance: u64| async move {
        let headers = format!(
            "authorization: Bearer perto_{chance:064x}\r\ntraceparent: 00-{chance:032x}-{:016x}-01\r\n",
            chance | 1
        );
        let answered = client.send("GET", "/api/v1/companies/1/contacts/20", &headers, b"").await;
        (client, answered)
    };
    repeat(&world, &power, &stranger(), 4, Duration::from_millis(5), ask).await;
}

async fn forged_tokens(world: Arc<World>, power: Arc<Power>) {
    let epoch = world.epoch().await;
    let ask = move |mut client: Client, chance: u64| async move {
        let (epoch, xid) = match chance % 3 {
            0 => (epoch, chance >> 8),
            1 => (epoch ^ chance, 5),
            _ => (epoch.wrapping_sub(1), chance >> 16),
        };
        // Contacts of company 2 are 1, 21, 41, ...
        let path = format!("/api/v1/companies/2/contacts/{}", chance % 20 * 20 + 1);
        let header = format!("perto-at-least: {epoch:016x}-{xid:x}\r\n");
        let answered = client.send("GET", &path, &header, b"").await;
        (client, answered)
    };
    repeat(&world, &power, &hostile(&world), 2, Duration::from_millis(5), ask).await;
}
