//! One load per key: who comes first leads, who comes later waits for the same outcome.
//!
//! A leader that is dropped (its reader was cancelled, or panicked) ends the flight without an outcome; its waiters
//! wake, and one of them leads. A leader that nobody polls during its look-up is given up by those who wait; a load that
//! has begun runs in a task of the instance, and needs nobody. Whether an outcome may be served is for each waiter to
//! judge: a flight that began before an invalidation is still a flight.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::trace::Origin;
use crate::watched::Watched;

/// The loads in progress of one cache.
#[derive(Debug)]
pub(crate) struct Flights<K, T> {
    running: Mutex<HashMap<K, Arc<Flight<T>>>>,
}

/// How much later than by its limit a look-up may end, on a busy machine.
const LATE: Duration = Duration::from_millis(20);

#[derive(Debug)]
struct Flight<T> {
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
    /// Its look-up has ended. If need be, a load runs in a task of the instance.
    Loading,
    Landed(T),
    /// Its leader is gone.
    Abandoned,
}

/// The duty to bring an outcome. Dropping it abandons the flight.
#[derive(Debug)]
pub(crate) struct Leader<K: Hash + Eq, T> {
    flights: Arc<Flights<K, T>>,
    pub(crate) key: K,
    flight: Arc<Flight<T>>,
}

/// A place among those who wait for a flight.
#[derive(Debug)]
pub(crate) struct Waiter<T>(Arc<Flight<T>>);

impl<K: Hash + Eq + Clone, T: Clone> Flights<K, T> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { running: Mutex::default() })
    }

    /// Joins the key's flight, or begins one and leads it `now`, as a part of the read `origin`. Its look-up takes no longer than
    /// `look_up`.
    pub(crate) fn join(
        self: &Arc<Self>,
        key: &K,
        origin: &Origin,
        now: Instant,
        look_up: Duration,
    ) -> (Option<Leader<K, T>>, Waiter<T>) {
        match self.running.lock().entry(key.clone()) {
            Entry::Occupied(flight) => (None, Waiter(Arc::clone(flight.get()))),
            Entry::Vacant(place) => {
                let state = Watched::new(State::LookingUp);
                let flight = Arc::new(Flight { state, origin: origin.clone(), began: now, look_up });
                place.insert(Arc::clone(&flight));
                let leader =
                    Leader { flights: Arc::clone(self), key: key.clone(), flight: Arc::clone(&flight) };
                (Some(leader), Waiter(flight))
            }
        }
    }

    /// The outcome of a flight that was joined. `None` if its leader is gone, or if nobody has polled it during its
    /// look-up: the key is free then, for others to lead.
    ///
    /// A future may be kept and not polled, by a `select!` in a loop or in a buffered stream. Its key is everybody's.
    pub(crate) async fn outcome(&self, key: &K, waiter: Waiter<T>) -> Option<T> {
        let flight = &waiter.0;
        let looked_up = |state: &State<T>| (!matches!(state, State::LookingUp)).then_some(());
        let left = || flight.look_up.saturating_add(LATE).saturating_sub(flight.began.elapsed());
        if flight.state.look(looked_up).is_none()
            && tokio::time::timeout(left(), flight.state.wait_for(looked_up)).await.is_err()
        {
            // Under the lock: whoever finds the key free then finds this flight abandoned, and a load that has just begun is kept.
            let mut running = self.running.lock();
            let given_up = flight.state.update(|state| {
                let looks = matches!(state, State::LookingUp);
                if looks {
                    *state = State::Abandoned;
                }
                looks
            });
            if given_up {
                remove(&mut running, key, flight);
            }
        }
        let outcome = |state: &State<T>| match state {
            State::LookingUp | State::Loading => None,
            State::Landed(outcome) => Some(Some(outcome.clone())),
            State::Abandoned => Some(None),
        };
        flight.state.wait_for(outcome).await
    }

    pub(crate) fn len(&self) -> usize {
        self.running.lock().len()
    }
}

impl<K: Hash + Eq, T> Flights<K, T> {
    /// Frees the key of this flight. By now it may be another's.
    fn end(&self, key: &K, flight: &Arc<Flight<T>>) {
        remove(&mut self.running.lock(), key, flight);
    }
}

fn remove<K: Hash + Eq, T>(running: &mut HashMap<K, Arc<Flight<T>>>, key: &K, flight: &Arc<Flight<T>>) {
    if running.get(key).is_some_and(|of_key| Arc::ptr_eq(of_key, flight)) {
        running.remove(key);
    }
}

impl<K: Hash + Eq, T> Leader<K, T> {
    /// From now on the flight needs nobody who polls its leader.
    pub(crate) fn loads(&self) {
        if self.flight.state.look(|state| matches!(state, State::LookingUp)) {
            self.flight.state.update(|state| *state = State::Loading);
        }
    }

    /// Whether somebody waits for the outcome. If not, the key is free from now on: drop this.
    pub(crate) fn is_awaited(&self) -> bool {
        // Besides this leader and the list.
        if Arc::strong_count(&self.flight) > 2 {
            return true;
        }
        let mut running = self.flights.running.lock();
        let listed = running.get(&self.key).is_some_and(|of_key| Arc::ptr_eq(of_key, &self.flight));
        // Who joins does so under the lock. This leader has it too.
        let awaited = Arc::strong_count(&self.flight) > 1 + usize::from(listed);
        if listed && !awaited {
            running.remove(&self.key);
        }
        awaited
    }

    /// Ends the flight. Whoever comes from now on begins another.
    pub(crate) fn finish(self, outcome: T) {
        self.flights.end(&self.key, &self.flight);
        self.flight.state.update(|state| *state = State::Landed(outcome));
    }
}

impl<K: Hash + Eq, T> Drop for Leader<K, T> {
    fn drop(&mut self) {
        if self.flight.state.look(|state| !matches!(state, State::Landed(_))) {
            self.flights.end(&self.key, &self.flight);
            self.flight.state.update(|state| *state = State::Abandoned);
        }
    }
}

impl<T> Waiter<T> {
    /// The read that leads the flight.
    pub(crate) fn origin(&self) -> &Origin {
        &self.0.origin
    }
}

#[cfg(test)]
mod tests {
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
            (flights.outcome(&7, first).await, flights.outcome(&7, second).await),
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
        assert_eq!(flights.outcome(&7, waiter).await, None::<u8>);
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
        assert_eq!(flights.outcome(&7, waiter).await, None);
        assert!(began.elapsed() <= LOOK_UP + 2 * LATE);
        let (next, _) = flights.join(&7, &origin(), Instant::now(), LOOK_UP);
        assert!(next.is_some());
        // Polled after all, it has its outcome for itself, and ends nobody else's flight.
        parked.unwrap().finish("late");
        assert_eq!(flights.outcome(&7, own).await, Some("late"));
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
        assert_eq!(tokio::join!(flights.outcome(&7, waiter), landing).0, Some("value"));
    }
}
