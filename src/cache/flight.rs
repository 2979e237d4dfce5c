//! One load per key: who comes first leads, who comes later waits for the same outcome.
//!
//! A leader that is dropped (its reader was cancelled, or panicked) ends the flight without an outcome; its waiters
//! wake, and one of them leads. A leader that nobody polls during its look-up is given up by those who wait; a load that
//! has begun runs in a task of the instance, and needs nobody. Whether an outcome may be served is for each waiter to
//! judge: a flight that began before an invalidation is still a flight.

use std::hash::{BuildHasher, Hash};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::trace::Origin;
use crate::watched::Watched;

/// The loads in progress of one cache. A key is hashed once, by its reader and before any lock: where that panics, it is nobody else's
/// trouble.
#[derive(Debug)]
pub(crate) struct Flights<K, T> {
    hasher: RandomState,
    parts: [Arc<Part<K, T>>; PARTS],
}

/// Each read that goes below L1 takes the lock twice, and counts a reference: one for all would go from core to core with each.
const PARTS: usize = 16;

/// Two lines: the processor fetches them in pairs.
#[derive(Debug)]
#[repr(align(128))]
struct Part<K, T>(Mutex<HashTable<Arc<Flight<K, T>>>>);

/// How much later than by its limit a look-up may end, on a busy machine.
const LATE: Duration = Duration::from_millis(20);

#[derive(Debug)]
struct Flight<K, T> {
    key: K,
    hash: u64,
    state: Watched<State<T>>,
    /// The read that leads it.
    origin: Origin,
    began: Instant,
    /// How long its look-up may take; perhaps for ever.
    look_up: Duration,
}

#[derive(Debug)]
enum State<T> {
    /// Its leader looks into L2, in the leader's own task.
    LookingUp,
    /// A task of the instance looks into L2, or what was found is being looked at.
    LookingUpInTask,
    /// A task of the instance loads it.
    Loading,
    Landed(T),
    /// Its leader is gone.
    Abandoned,
}

/// The duty to bring an outcome. Dropping it abandons the flight.
#[derive(Debug)]
pub(crate) struct Leader<K, T> {
    part: Arc<Part<K, T>>,
    flight: Arc<Flight<K, T>>,
}

/// A place among those who wait for a flight.
#[derive(Debug)]
pub(crate) struct Waiter<K, T>(Arc<Flight<K, T>>);

impl<K: Hash + Eq + Clone, T: Clone> Flights<K, T> {
    pub(crate) fn new() -> Arc<Self> {
        let parts = std::array::from_fn(|_| Arc::new(Part(Mutex::default())));
        Arc::new(Self { hasher: RandomState::default(), parts })
    }

    /// By bits that the tables make no use of.
    fn part(&self, hash: u64) -> &Arc<Part<K, T>> {
        &self.parts[(hash >> 32) as usize % PARTS]
    }

    /// Joins the key's flight, or begins one and leads it `now`, as a part of the read `origin`. Its look-up takes no longer than
    /// `look_up`.
    pub(crate) fn join(
        &self,
        key: &K,
        origin: &Origin,
        now: Instant,
        look_up: Duration,
    ) -> (Option<Leader<K, T>>, Waiter<K, T>) {
        let hash = self.hasher.hash_one(key);
        let part = self.part(hash);
        match part.0.lock().entry(hash, |of_key| of_key.key == *key, |of_key| of_key.hash) {
            Entry::Occupied(flight) => (None, Waiter(Arc::clone(flight.get()))),
            Entry::Vacant(place) => {
                let state = Watched::new(State::LookingUp);
                let (key, origin) = (key.clone(), origin.clone());
                let flight = Arc::new(Flight { key, hash, state, origin, began: now, look_up });
                place.insert(Arc::clone(&flight));
                let leader = Leader { part: Arc::clone(part), flight: Arc::clone(&flight) };
                (Some(leader), Waiter(flight))
            }
        }
    }

    /// The outcome of a flight that was joined. `None` if its leader is gone, or if nobody has polled it during its
    /// look-up: the key is free then, for others to lead.
    ///
    /// A future may be kept and not polled, by a `select!` in a loop or in a buffered stream. Its key is everybody's.
    pub(crate) async fn outcome(&self, waiter: Waiter<K, T>) -> Option<T> {
        let flight = &waiter.0;
        let outcome = |state: &State<T>| match state {
            State::LookingUp | State::LookingUpInTask | State::Loading => None,
            State::Landed(outcome) => Some(Some(outcome.clone())),
            State::Abandoned => Some(None),
        };
        // Whoever leads has mostly done all that there was to do.
        let (landed, looks) = flight.state.look(|state| (outcome(state), matches!(state, State::LookingUp)));
        if let Some(landed) = landed {
            return landed;
        }
        let looked_up = |state: &State<T>| (!matches!(state, State::LookingUp)).then_some(());
        let left = || flight.look_up.saturating_add(LATE).saturating_sub(flight.began.elapsed());
        // Apart from the read, which so is small: few come while another one's look-up is under way.
        if looks && Box::pin(tokio::time::timeout(left(), flight.state.wait_for(looked_up))).await.is_err() {
            // Under the lock: whoever finds the key free then finds this flight abandoned, and a load that has just begun is kept.
            let mut running = self.part(flight.hash).0.lock();
            let given_up = flight.state.update(|state| {
                let looks = matches!(state, State::LookingUp);
                if looks {
                    *state = State::Abandoned;
                }
                looks
            });
            if given_up {
                remove(&mut running, flight);
            }
        }
        flight.state.wait_for(outcome).await
    }

    pub(crate) fn len(&self) -> usize {
        self.parts.iter().map(|part| part.0.lock().len()).sum()
    }
}

/// Frees the key of this flight. By now it may be another's.
fn remove<K, T>(running: &mut HashTable<Arc<Flight<K, T>>>, flight: &Arc<Flight<K, T>>) {
    if let Ok(listed) = running.find_entry(flight.hash, |of_key| Arc::ptr_eq(of_key, flight)) {
        listed.remove();
    }
}

impl<K, T> Leader<K, T> {
    pub(crate) fn key(&self) -> &K {
        &self.flight.key
    }

    /// From now on the flight needs nobody who polls its leader.
    pub(crate) fn needs_nobody(&self) {
        // Nobody is told: who waits for the end of the look-up finds it when the outcome is there, or when its time is over.
        self.flight.state.quietly(|state| {
            if matches!(state, State::LookingUp) {
                *state = State::LookingUpInTask;
            }
        });
    }

    /// It has to be loaded, by a task of the instance.
    pub(crate) fn loads(&self) {
        let in_task = self.flight.state.quietly(|state| match std::mem::replace(state, State::Loading) {
            State::LookingUp | State::Loading => false,
            State::LookingUpInTask => true,
            over => {
                *state = over;
                false
            }
        });
        if in_task {
            self.flight.state.tell();
        }
    }

    /// Whether the key may be another's by now.
    pub(crate) fn is_given_up(&self) -> bool {
        self.flight.state.look(|state| matches!(state, State::Abandoned))
    }

    /// Whether somebody waits for the outcome. If not, the key is free from now on: drop this.
    pub(crate) fn is_awaited(&self) -> bool {
        // Besides this leader and the list.
        if Arc::strong_count(&self.flight) > 2 {
            return true;
        }
        let mut running = self.part.0.lock();
        let listed = running.find_entry(self.flight.hash, |of_key| Arc::ptr_eq(of_key, &self.flight));
        // Who joins does so under the lock. This leader has it too.
        let awaited = Arc::strong_count(&self.flight) > 1 + usize::from(listed.is_ok());
        if let (Ok(listed), false) = (listed, awaited) {
            listed.remove();
        }
        awaited
    }

    /// Ends the flight. Whoever comes from now on begins another.
    pub(crate) fn finish(self, outcome: T) {
        self.end();
        self.flight.state.update(|state| *state = State::Landed(outcome));
    }

    fn end(&self) {
        remove(&mut self.part.0.lock(), &self.flight);
    }
}

impl<K, T> Drop for Leader<K, T> {
    fn drop(&mut self) {
        if self.flight.state.look(|state| !matches!(state, State::Landed(_))) {
            self.end();
            self.flight.state.update(|state| *state = State::Abandoned);
        }
    }
}

impl<K, T> Waiter<K, T> {
    /// The read that leads the flight.
    pub(crate) fn origin(&self) -> &Origin {
        &self.0.origin
    }

    /// Waits as long as a task of the instance looks into L2 for it. That has a limit; a load may have to wait for others.
    pub(crate) async fn looked_up(&self) {
        self.0.state.wait_for(|state| (!matches!(state, State::LookingUpInTask)).then_some(())).await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::trace::Trace;

    const LOOK_UP: Duration = Duration::from_millis(50);

    fn origin() -> Origin {
        Trace::current().origin()
    }

    #[tokio::test]
    async fn those_who_come_later_share_the_outcome() {
        let flights = Flights::new();
        let (leader, first) = flights.join(&7, &origin(), Instant::now(), LOOK_UP);
        let (none, second) = flights.join(&7, &origin(), Instant::now(), LOOK_UP);
        assert!(none.is_none());
        leader.unwrap().finish("value");
        assert_eq!(
            (flights.outcome(first).await, flights.outcome(second).await),
            (Some("value"), Some("value"))
        );
        assert_eq!(flights.len(), 0);
        assert!(flights.join(&7, &origin(), Instant::now(), LOOK_UP).0.is_some());
    }

    #[tokio::test]
    async fn a_cancelled_leader_hands_over() {
        let flights = Flights::new();
        let (leader, _own) = flights.join(&7, &origin(), Instant::now(), LOOK_UP);
        let (_, waiter) = flights.join(&7, &origin(), Instant::now(), LOOK_UP);
        drop(leader);
        assert_eq!(flights.outcome(waiter).await, None::<u8>);
        assert!(flights.join(&7, &origin(), Instant::now(), LOOK_UP).0.is_some());
    }

    #[test]
    fn a_finished_leader_does_not_end_its_successors_flight() {
        let flights = Flights::new();
        let (first, _) = flights.join(&7, &origin(), Instant::now(), LOOK_UP);
        first.unwrap().finish(1);
        let (second, _) = flights.join(&7, &origin(), Instant::now(), LOOK_UP);
        assert!(second.is_some());
        assert_eq!(flights.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_nobody_polls_is_given_up_by_those_who_wait() {
        let flights = Flights::new();
        let (parked, own) = flights.join(&7, &origin(), Instant::now(), LOOK_UP);
        let (_, waiter) = flights.join(&7, &origin(), Instant::now(), LOOK_UP);
        let began = Instant::now();
        assert_eq!(flights.outcome(waiter).await, None);
        assert!(began.elapsed() <= LOOK_UP + 2 * LATE);
        let (next, _) = flights.join(&7, &origin(), Instant::now(), LOOK_UP);
        assert!(next.is_some());
        // Polled after all, it has its outcome for itself, and ends nobody else's flight.
        parked.unwrap().finish("late");
        assert_eq!(flights.outcome(own).await, Some("late"));
        assert_eq!(flights.len(), 1);
    }

    #[tokio::test]
    async fn a_flight_that_nobody_waits_for_frees_its_key() {
        let flights = Flights::<_, u8>::new();
        let (leader, own) = flights.join(&7, &origin(), Instant::now(), LOOK_UP);
        let (_, waiter) = flights.join(&7, &origin(), Instant::now(), LOOK_UP);
        let leader = leader.unwrap();
        drop(own);
        assert!(leader.is_awaited());
        drop(waiter);
        assert!(!leader.is_awaited());
        let (next, _waiter) = flights.join(&7, &origin(), Instant::now(), LOOK_UP);
        drop(leader);
        assert!(next.unwrap().is_awaited(), "its successor's is another one");
        assert_eq!(flights.len(), 0);
    }

    #[tokio::test]
    async fn who_waits_for_a_look_up_by_a_task_hears_that_it_has_to_be_loaded() {
        let flights = Flights::<_, u8>::new();
        let (leader, waiter) = flights.join(&7, &origin(), Instant::now(), LOOK_UP);
        let leader = leader.unwrap();
        leader.needs_nobody();
        let mut looking_up = Box::pin(waiter.looked_up());
        assert!(looking_up.as_mut().now_or_never().is_none());
        leader.needs_nobody();
        let loading = async {
            tokio::task::yield_now().await;
            leader.loads();
        };
        let limit = Duration::from_secs(5);
        assert!(tokio::join!(tokio::time::timeout(limit, looking_up), loading).0.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_load_is_waited_for_however_long_it_takes() {
        let flights = Flights::new();
        let (leader, _own) = flights.join(&7, &origin(), Instant::now(), LOOK_UP);
        let (_, waiter) = flights.join(&7, &origin(), Instant::now(), LOOK_UP);
        let leader = leader.unwrap();
        leader.loads();
        let landing = async {
            tokio::time::sleep(100 * LOOK_UP).await;
            leader.finish("value");
        };
        assert_eq!(tokio::join!(flights.outcome(waiter), landing).0, Some("value"));
    }
}
