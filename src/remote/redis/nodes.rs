//! The nodes of a cluster, and which of them has which slots. Each node's connection has a life of its own.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use redis::Value;
use redis::aio::MultiplexedConnection;
use tokio::sync::{Mutex, Notify};

use super::address::Address;
use super::lanes::{Lane, Lanes};
use super::slots::{Placed, SLOTS, ranges};
use crate::error::RemoteError;

/// Before a node is tried again.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How long a node may take to be found out to answer, or to be connected with.
const MEND_TIMEOUT: Duration = Duration::from_millis(1_200);
/// Masters of a cluster, and replicas that are remembered: clusters are said to go up to so many nodes. Names that are, are a few for each.
const MOST_NODES: usize = 1_000;
const MOST_NAMES: usize = 4 * MOST_NODES;

/// A master of the cluster.
pub(crate) struct Node {
    /// The same whoever names it.
    id: String,
    pub(crate) address: Address,
    lanes: RwLock<Option<Lanes>>,
    /// Whether it has answered since it last did not.
    usable: AtomicBool,
    /// Whether it was tried in vain since it last answered.
    silent: AtomicBool,
    /// Whether somebody else answers at its address.
    misplaced: AtomicBool,
    lost: Notify,
    connecting: Mutex<()>,
}

impl Node {
    fn new(id: String, address: Address) -> Self {
        Self {
            id,
            address,
            lanes: RwLock::default(),
            usable: AtomicBool::default(),
            silent: AtomicBool::default(),
            misplaced: AtomicBool::default(),
            lost: Notify::new(),
            connecting: Mutex::default(),
        }
    }

    pub(super) fn is_usable(&self) -> bool {
        self.usable.load(Ordering::Acquire)
    }

    pub(super) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Acquire)
    }

    pub(super) fn lane(&self, lane: Lane) -> Option<MultiplexedConnection> {
        self.lanes.read().as_ref().filter(|_| self.is_usable()).map(|lanes| lanes.connection(lane))
    }

    /// It did not answer, or said that it is of no use.
    pub(super) fn lose(&self) {
        self.usable.store(false, Ordering::Release);
        self.lost.notify_one();
    }

    /// Whoever answers says that this node is elsewhere: somebody has come to an address that it had.
    pub(super) fn misplace(&self) {
        self.misplaced.store(true, Ordering::Release);
    }

    /// Finds out whether it answers, and connects anew where it does not.
    pub(super) async fn mend_within(&self, limit: Duration) -> Result<(), RemoteError> {
        let mended = tokio::time::timeout(limit, self.mend()).await.unwrap_or(Err(RemoteError::Timeout));
        self.silent.store(mended.is_err(), Ordering::Release);
        mended
    }

    async fn mend(&self) -> Result<(), RemoteError> {
        let _one_at_a_time = self.connecting.lock().await;
        let lanes = self.lanes.read().clone();
        if let Some(lanes) = lanes {
            if lanes.answer(std::future::ready(true)).await {
                self.usable.store(true, Ordering::Release);
                return Ok(());
            }
            // On a new connection one may answer that hangs on the old one. Whoever drops this leaves it to be kept.
            self.lose();
            *self.lanes.write() = None;
        }
        *self.lanes.write() = Some(Lanes::connect(&self.address).await?);
        self.usable.store(true, Ordering::Release);
        Ok(())
    }

    /// Mends it whenever it is lost. While it can't be, its slots may get another owner: `wished` is told. Never returns.
    pub(super) async fn keep(&self, wished: &Notify) {
        let mut pause = FIRST_PAUSE;
        loop {
            while self.is_usable() {
                self.lost.notified().await;
            }
            if self.mend_within(MEND_TIMEOUT).await.is_ok() {
                pause = FIRST_PAUSE;
            } else {
                wished.notify_one();
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("address", &self.address)
            .field("usable", &self.is_usable())
            .finish_non_exhaustive()
    }
}

/// Who has which slots, as far as is known.
#[derive(Debug, Default)]
pub(crate) struct Map {
    /// Of each slot: which of the nodes, counted from 1. Empty before it is known.
    owners: Vec<u16>,
    nodes: Vec<Arc<Node>>,
    /// By every name that somebody has for them.
    places: HashMap<String, Arc<Node>>,
    /// They can be asked too.
    pub(crate) replicas: Vec<Address>,
    /// How far whoever said it had followed the cluster.
    epoch: Option<u64>,
}

/// What a node says of who has which slots.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) by: Address,
    /// `CLUSTER SLOTS`.
    pub(super) slots: Value,
    pub(super) epoch: Option<u64>,
}

impl Map {
    pub(crate) fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    pub(crate) fn owner(&self, slot: u16) -> Option<&Arc<Node>> {
        let owner = *self.owners.get(usize::from(slot))?;
        self.nodes.get(usize::from(owner).checked_sub(1)?)
    }

    /// The node that `from` means by `host:port`, or by `:port` for one beside itself.
    pub(crate) fn named(&self, place: &str, from: &Node) -> Option<&Arc<Node>> {
        match place.strip_prefix(':') {
            Some(port) => self.places.get(&from.address.at_port(port.parse().ok()?).place()),
            None => self.places.get(place),
        }
    }

    /// Whether everything is where it was.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.owners == other.owners && self.has_same_nodes(&other.nodes)
    }

    pub(super) fn has_same_nodes(&self, nodes: &[Arc<Node>]) -> bool {
        // In whatever order: each node has one of its own.
        let is_there = |one: &Arc<Node>| nodes.iter().any(|other| Arc::ptr_eq(one, other));
        self.nodes.len() == nodes.len() && self.nodes.iter().all(is_there)
    }

    /// What a node says now. Nodes that stay keep their connections. None where it says nothing, or what was so before.
    pub(super) fn next(&self, said: &Said) -> Option<Self> {
        let address = |placed: &Placed| match &placed.host {
            Some(host) => said.by.at(host.clone(), placed.port),
            None => said.by.at_port(placed.port),
        };
        let (owners, epoch) = (vec![0; usize::from(SLOTS)], said.epoch.or(self.epoch));
        let mut next = Self { owners, epoch, ..Self::default() };
        let mut replicas = HashSet::new();
        for range in ranges(&said.slots).into_iter().take(SLOTS.into()) {
            let owner = address(&range.owner);
            let id = range.owner.id.unwrap_or_else(|| owner.place());
            let at = next.nodes.iter().position(|node| node.id == id).unwrap_or_else(|| {
                next.nodes.push(self.stays(id, owner.clone()));
                next.nodes.len() - 1
            });
            if at >= MOST_NODES {
                return None;
            }
            let node = Arc::clone(&next.nodes[at]);
            let number = u16::try_from(at + 1).ok()?;
            next.owners[usize::from(range.first)..=usize::from(range.last)].fill(number);
            next.places.insert(node.address.place(), Arc::clone(&node));
            next.places.insert(owner.place(), node);
            for replica in range.replicas.iter().map(address) {
                if next.replicas.len() < MOST_NODES && replicas.insert(replica.place()) {
                    next.replicas.push(replica);
                }
            }
        }
        for (place, before) in &self.places {
            if next.places.len() < MOST_NAMES
                && let Some(node) = next.nodes.iter().find(|node| node.id == before.id)
            {
                next.places.entry(place.clone()).or_insert_with(|| Arc::clone(node));
            }
        }
        (!next.nodes.is_empty() && !next.is_before(self)).then_some(next)
    }

    /// Whether it is from before the other one. What different clusters say can't be compared.
    fn is_before(&self, other: &Self) -> bool {
        let is_known = |node: &Arc<Node>| other.nodes.iter().any(|before| before.id == node.id);
        self.epoch < other.epoch && self.nodes.iter().any(is_known)
    }

    /// The node of this id. It may have another name than before, which only means that somebody else has named it, as long as it
    /// answers where it was.
    fn stays(&self, id: String, address: Address) -> Arc<Node> {
        let before = self.nodes.iter().find(|node| node.id == id);
        let is_there = |node: &&Arc<Node>| {
            let answers = node.is_usable() && !node.misplaced.load(Ordering::Acquire);
            answers || node.address.place() == address.place()
        };
        before.filter(is_there).cloned().unwrap_or_else(|| Arc::new(Node::new(id, address)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn range(first: i64, last: i64, host: &str, port: i64, id: &str) -> Value {
        let node = Value::Array(vec![bulk(host), Value::Int(port), bulk(id)]);
        Value::Array(vec![Value::Int(first), Value::Int(last), node])
    }

    #[test]
    fn nodes_that_stay_are_the_same_by_whatever_name() {
        let address = Address::parse("redis+cluster://u:p@127.0.0.1:7000").unwrap();
        let answered = address.at("127.0.0.1".to_owned(), 7_000);
        let first = Value::Array(vec![
            range(0, 99, "", 7_000, "a"),
            range(100, 199, "127.0.0.1", 7_001, "b"),
            range(200, 200, "", 7_000, "a"),
        ]);
        let said = |slots: &Value| Said { by: answered.clone(), slots: slots.clone(), epoch: None };
        let map = Map::default().next(&said(&first)).unwrap();
        let owner = |map: &Map, slot| map.owner(slot).map(|node| node.address.place());
        for (slot, place) in [(0, "7000"), (99, "7000"), (100, "7001"), (199, "7001"), (200, "7000")] {
            assert_eq!(owner(&map, slot), Some(format!("127.0.0.1:{place}")), "{slot}");
        }
        assert_eq!((owner(&map, 201), map.nodes.len()), (None, 2));

        // One that answers is the same by another name, one that does not is where it is said to be.
        map.nodes[0].usable.store(true, Ordering::Release);
        let other = Value::Array(vec![
            range(0, 150, "localhost", 7_000, "a"),
            range(151, 199, "10.0.0.9", 7_001, "b"),
            range(200, 299, "127.0.0.1", 7_002, "c"),
        ]);
        let next = map.next(&said(&other)).unwrap();
        assert!(Arc::ptr_eq(&next.nodes[0], &map.nodes[0]) && !Arc::ptr_eq(&next.nodes[1], &map.nodes[1]));
        assert_eq!(owner(&next, 150), Some("127.0.0.1:7000".to_owned()));
        assert_eq!(owner(&next, 151), Some("10.0.0.9:7001".to_owned()));
        let named = |place| next.named(place, &next.nodes[0]).map(|node| node.id.as_str());
        for (place, id) in [
            ("127.0.0.1:7000", "a"),
            ("localhost:7000", "a"),
            ("127.0.0.1:7001", "b"),
            ("10.0.0.9:7001", "b"),
            (":7002", "c"),
        ] {
            assert_eq!(named(place), Some(id), "{place}");
        }
        assert_eq!((named("h:1"), named(":x"), named("")), (None, None, None));
        assert!(!next.is_same(&map) && next.is_same(&next.next(&said(&other)).unwrap()));
        let mut turned = next.nodes.clone();
        turned.reverse();
        assert!(next.has_same_nodes(&turned) && !next.has_same_nodes(&map.nodes));
        assert!(map.next(&said(&Value::Nil)).is_none());
        // One that is said to be elsewhere by who answers where it was.
        map.nodes[0].misplace();
        let moved = map.next(&said(&other)).unwrap();
        assert!(!Arc::ptr_eq(&moved.nodes[0], &map.nodes[0]));
        assert_eq!(owner(&moved, 150), Some("localhost:7000".to_owned()));
        assert_eq!(next.nodes[2].address.user(), Some("u"));
    }

    /// Who says it may be cut off from the others.
    #[test]
    fn what_was_so_before_is_not_taken_back_from_who_knows_no_more() {
        let by = Address::parse("redis+cluster://127.0.0.1:7000").unwrap();
        let said = |id: &str, epoch| Said {
            by: by.clone(),
            slots: Value::Array(vec![range(0, 99, "", 7_000, id), range(100, 199, "", 7_001, "b")]),
            epoch,
        };
        let map = Map::default().next(&said("a", Some(5))).unwrap();
        let moved = map.next(&said("c", Some(6))).unwrap();
        assert!(moved.next(&said("a", Some(5))).is_none());
        assert!(moved.next(&said("a", Some(6))).is_some() && moved.next(&said("a", Some(7))).is_some());
        // Who says nothing of how much it knows: as far as it goes.
        let unknown = moved.next(&said("a", None)).unwrap();
        assert!(unknown.next(&said("c", Some(5))).is_none() && unknown.next(&said("c", Some(6))).is_some());
        let another = Said { slots: Value::Array(vec![range(0, 99, "", 7_000, "x")]), ..said("x", Some(1)) };
        assert!(moved.next(&another).is_some());
    }
}
