//! One load per key: who comes first leads, who comes later waits for the same outcome.
//!
//! A leader that is dropped (its reader was cancelled, or panicked) ends the flight without an outcome; its waiters
//! wake, and one of them leads. Whether an outcome may be served is for each waiter to judge: a flight that
//! began before an invalidation is still a flight.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::trace::Origin;
use crate::watched::Watched;

/// The loads in progress of one cache.
#[derive(Debug)]
pub(crate) struct Flights<K, T> {
    running: Mutex<HashMap<K, Arc<Flight<T>>>>,
}

#[derive(Debug)]
struct Flight<T> {
    state: Watched<State<T>>,
    /// The read that leads it.
    origin: Origin,
}

#[derive(Debug)]
enum State<T> {
    InTheAir,
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

    /// Joins the key's flight, or begins one and leads it, as a part of the read `origin`.
    pub(crate) fn join(self: &Arc<Self>, key: &K, origin: &Origin) -> (Option<Leader<K, T>>, Waiter<T>) {
        match self.running.lock().entry(key.clone()) {
            Entry::Occupied(flight) => (None, Waiter(Arc::clone(flight.get()))),
            Entry::Vacant(place) => {
                let state = Watched::new(State::InTheAir);
                let flight = Arc::new(Flight { state, origin: origin.clone() });
                place.insert(Arc::clone(&flight));
                let leader =
                    Leader { flights: Arc::clone(self), key: key.clone(), flight: Arc::clone(&flight) };
                (Some(leader), Waiter(flight))
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.running.lock().len()
    }
}

impl<K: Hash + Eq, T> Leader<K, T> {
    /// Ends the flight. Whoever comes from now on begins another.
    pub(crate) fn finish(self, outcome: T) {
        self.flights.running.lock().remove(&self.key);
        self.flight.state.update(|state| *state = State::Landed(outcome));
        // `Drop` removes once more; by then the key may be another leader's.
    }
}

impl<K: Hash + Eq, T> Drop for Leader<K, T> {
    fn drop(&mut self) {
        if self.flight.state.look(|state| matches!(state, State::InTheAir)) {
            self.flights.running.lock().remove(&self.key);
            self.flight.state.update(|state| *state = State::Abandoned);
        }
    }
}

impl<T: Clone> Waiter<T> {
    /// The read that leads the flight.
    pub(crate) fn origin(&self) -> &Origin {
        &self.0.origin
    }

    /// The flight's outcome; `None` if its leader is gone.
    pub(crate) async fn outcome(self) -> Option<T> {
        let outcome = |state: &State<T>| match state {
            State::InTheAir => None,
            State::Landed(outcome) => Some(Some(outcome.clone())),
            State::Abandoned => Some(None),
        };
        self.0.state.wait_for(outcome).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Trace;

    fn origin() -> Origin {
        Trace::current().origin()
    }

    #[tokio::test]
    async fn those_who_come_later_share_the_outcome() {
        let flights = Flights::new();
        let (leader, first) = flights.join(&7, &origin());
        let (none, second) = flights.join(&7, &origin());
        assert!(none.is_none());
        leader.unwrap().finish("value");
        assert_eq!((first.outcome().await, second.outcome().await), (Some("value"), Some("value")));
        assert_eq!(flights.len(), 0);
        assert!(flights.join(&7, &origin()).0.is_some());
    }

    #[tokio::test]
    async fn a_cancelled_leader_hands_over() {
        let flights = Flights::new();
        let (leader, _own) = flights.join(&7, &origin());
        let (_, waiter) = flights.join(&7, &origin());
        drop(leader);
        assert_eq!(waiter.outcome().await, None::<u8>);
        assert!(flights.join(&7, &origin()).0.is_some());
    }

    #[test]
    fn a_finished_leader_does_not_end_its_successors_flight() {
        let flights = Flights::new();
        let (first, _) = flights.join(&7, &origin());
        first.unwrap().finish(1);
        let (second, _) = flights.join(&7, &origin());
        assert!(second.is_some());
        assert_eq!(flights.len(), 1);
    }
}
