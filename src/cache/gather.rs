//! What comes together goes together: what is asked of a server goes out at once while little is under way. Beyond that it
//! waits, and all that waits goes out as one batch, as a log groups commits. There is no timer, so nobody waits on an idle
//! instance.
//!
//! Pure but for its lock: [`super::batches`] has the tasks.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

/// Look-ups of a cache that are under way before others wait.
pub(super) const FEW_LOOK_UPS: usize = 4;
/// Loads of a cache that are under way before others wait.
pub(super) const FEW_LOADS: usize = 4;
/// More keys than that may wait only if somebody waits for them.
const MOST_UNLOOKED: usize = 1_024;
/// So much that does not fit is passed over for what does. To look at all that waits for each batch takes ever longer, where nothing
/// goes with anything else.
const PASSED_OVER: usize = 256;

/// What waits, and how much is under way.
#[derive(Debug)]
pub(super) struct Gather<T> {
    few: usize,
    /// Keys of one of those who wait.
    keys: fn(&T) -> usize,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    waiting: VecDeque<T>,
    /// Of all that waits.
    keys: usize,
    /// Tasks that take what waits.
    workers: usize,
    /// Those among them that have no batch, and are about to take one.
    coming: usize,
    /// What went out alone, by whoever asks.
    alone: usize,
    /// At how many keys it is looked next for what nobody waits for.
    look_at: usize,
}

/// Whether something goes along with the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fits {
    Yes,
    /// What comes after it may.
    No,
    /// The batch is full.
    Full,
}

/// A worker: each has one batch at a time. Dropped before [`Worker::take`] found nothing, it was ended from outside, and what
/// waits for the last one is dropped too.
#[derive(Debug)]
pub(super) struct Worker<T> {
    gather: Arc<Gather<T>>,
    is_coming: bool,
    ended: bool,
}

/// How something goes out.
#[derive(Debug)]
pub(super) enum Entered<'a, T> {
    /// At once, by whoever asks.
    Alone(T, Alone<'a, T>),
    /// With others: by this worker, where one is missing.
    Waiting(Option<Worker<T>>),
}

/// A place among the few that go out at once.
#[derive(Debug)]
pub(super) struct Alone<'a, T>(&'a Gather<T>);

impl<T> Gather<T> {
    /// So many may be under way before others wait. At least one.
    pub(super) fn new(few: usize, keys: fn(&T) -> usize) -> Arc<Self> {
        let state = State {
            waiting: VecDeque::new(),
            keys: 0,
            workers: 0,
            coming: 0,
            alone: 0,
            look_at: MOST_UNLOOKED,
        };
        Arc::new(Self { few, keys, state: Mutex::new(state) })
    }

    /// Goes out at once, or waits once it is `prepared` for that.
    pub(super) fn enter(
        self: &Arc<Self>,
        one: T,
        prepared: impl FnOnce(&T),
        retain_awaited: impl FnMut(&mut T) -> bool,
    ) -> Entered<'_, T> {
        let mut state = self.state.lock();
        if state.waiting.is_empty() && state.workers == 0 && state.alone < self.few {
            state.alone += 1;
            return Entered::Alone(one, Alone(self));
        }
        prepared(&one);
        Entered::Waiting(self.wait(&mut state, [one], retain_awaited))
    }

    /// Has these wait. Gives a worker to be run where one is missing: while one is coming, it takes these too.
    pub(super) fn add(
        self: &Arc<Self>,
        more: impl IntoIterator<Item = T>,
        retain_awaited: impl FnMut(&mut T) -> bool,
    ) -> Option<Worker<T>> {
        self.wait(&mut self.state.lock(), more, retain_awaited)
    }

    fn wait(
        self: &Arc<Self>,
        state: &mut State<T>,
        more: impl IntoIterator<Item = T>,
        retain_awaited: impl FnMut(&mut T) -> bool,
    ) -> Option<Worker<T>> {
        for one in more {
            state.keys += (self.keys)(&one);
            state.waiting.push_back(one);
        }
        if state.keys >= state.look_at {
            // What nobody waits for is no more than what somebody does.
            state.waiting.retain_mut(retain_awaited);
            state.keys = state.waiting.iter().map(self.keys).sum();
            state.look_at = MOST_UNLOOKED.max(2 * state.keys);
        }
        self.another(state, self.few)
    }

    /// A worker beyond the few: those that there are have been busy for long.
    pub(super) fn hurry(self: &Arc<Self>) -> Option<Worker<T>> {
        self.another(&mut self.state.lock(), usize::MAX)
    }

    fn another(self: &Arc<Self>, state: &mut State<T>, most: usize) -> Option<Worker<T>> {
        let missing = state.workers == 0 || state.workers < most;
        if state.waiting.is_empty() || state.coming > 0 || !missing {
            return None;
        }
        state.workers += 1;
        state.coming += 1;
        Some(Worker { gather: Arc::clone(self), is_coming: true, ended: false })
    }

    /// What has waited longest, as far as it is of interest.
    pub(super) fn first<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        self.state.lock().waiting.front().map(look)
    }

    /// Takes those out that have waited longest, as long as `is_over`.
    pub(super) fn take_first(&self, is_over: impl Fn(&T) -> bool) -> Vec<T> {
        let mut state = self.state.lock();
        let count = state.waiting.iter().take_while(|waiting| is_over(waiting)).count();
        let over: Vec<T> = state.waiting.drain(..count).collect();
        state.keys -= over.iter().map(self.keys).sum::<usize>();
        over
    }

    /// How many keys wait.
    #[cfg(test)]
    fn waiting(&self) -> usize {
        let state = self.state.lock();
        assert_eq!(state.keys, state.waiting.iter().map(self.keys).sum::<usize>());
        state.keys
    }
}

impl<T> Worker<T> {
    /// The next batch: what fits of what waits, in order. `None` where nothing waits: this worker is over. And another one,
    /// where something is left and little is under way.
    pub(super) fn take(&mut self, mut fits: impl FnMut(&T) -> Fits) -> Option<(Vec<T>, Option<Self>)> {
        let gather = &self.gather;
        let mut state = gather.state.lock();
        if std::mem::take(&mut self.is_coming) {
            state.coming -= 1;
        }
        if state.waiting.is_empty() {
            state.workers -= 1;
            self.ended = true;
            return None;
        }
        let (mut batch, mut left) = (Vec::with_capacity(state.waiting.len().min(PASSED_OVER)), Vec::new());
        while left.len() < PASSED_OVER {
            let Some(waiting) = state.waiting.pop_front() else { break };
            match fits(&waiting) {
                Fits::Yes => batch.push(waiting),
                Fits::No => left.push(waiting),
                Fits::Full => {
                    left.push(waiting);
                    break;
                }
            }
        }
        left.into_iter().rev().for_each(|waiting| state.waiting.push_front(waiting));
        state.keys -= batch.iter().map(gather.keys).sum::<usize>();
        let another = gather.another(&mut state, gather.few);
        drop(state);
        Some((batch, another))
    }

    /// Ends this worker where nothing waits.
    pub(super) fn ends(&mut self) -> bool {
        let mut state = self.gather.state.lock();
        if !state.waiting.is_empty() {
            return false;
        }
        state.coming -= usize::from(std::mem::take(&mut self.is_coming));
        state.workers -= 1;
        self.ended = true;
        true
    }

    /// The batch is over, and this worker comes for the next.
    pub(super) fn again(&mut self) {
        if !std::mem::replace(&mut self.is_coming, true) {
            self.gather.state.lock().coming += 1;
        }
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let orphans = {
            let mut state = self.gather.state.lock();
            state.workers -= 1;
            state.coming -= usize::from(self.is_coming);
            if state.workers == 0 {
                state.keys = 0;
                std::mem::take(&mut state.waiting)
            } else {
                VecDeque::new()
            }
        };
        // Without the lock: whoever waited for these may come again at once.
        drop(orphans);
    }
}

impl<T> Drop for Alone<'_, T> {
    fn drop(&mut self) {
        self.0.state.lock().alone -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A place, where it goes out at once; else it waits.
    fn alone(gather: &Arc<Gather<u8>>) -> Option<Alone<'_, u8>> {
        match gather.enter(0, |_| (), |_| true) {
            Entered::Alone(_, place) => Some(place),
            Entered::Waiting(_worker) => None,
        }
    }

    fn all<T>(worker: &mut Worker<T>) -> Option<Vec<T>> {
        worker.take(|_| Fits::Yes).map(|(batch, _)| batch)
    }

    #[test]
    fn few_go_at_once_and_the_rest_waits_for_one_worker() {
        let gather = Gather::<u8>::new(2, |_| 1);
        let (one, two) = (alone(&gather), alone(&gather));
        assert!(one.is_some() && two.is_some());
        // Whoever is alone may never be polled again: a worker comes all the same.
        let Entered::Waiting(Some(mut worker)) = gather.enter(1, |_| (), |_| true) else { panic!("few") };
        assert!(gather.add([2, 3], |_| true).is_none(), "one is coming");
        drop(one);
        assert!(matches!(gather.enter(4, |_| (), |_| true), Entered::Waiting(None)), "nobody is overtaken");
        assert_eq!(all(&mut worker), Some(vec![1, 2, 3, 4]));
        drop(two);
        assert!(gather.add([5], |_| true).is_some(), "little is under way");
    }

    #[test]
    fn what_comes_while_all_workers_are_busy_is_the_next_batch() {
        let gather = Gather::new(1, |_| 1);
        let mut worker = gather.add([1], |_| true).unwrap();
        assert_eq!(all(&mut worker), Some(vec![1]));
        assert!(gather.add([2], |_| true).is_none() && gather.add([3], |_| true).is_none());
        worker.again();
        assert_eq!(all(&mut worker), Some(vec![2, 3]));
        worker.again();
        assert_eq!(all(&mut worker), None);
        drop(worker);
        assert!(alone(&gather).is_some());
    }

    #[test]
    fn what_does_not_fit_is_for_another_worker_or_the_next_batch() {
        let gather = Gather::new(2, |_| 1);
        let mut worker = gather.add([1, 2, 3, 5, 7], |_| true).unwrap();
        let fits = |n: &i32| match n {
            7.. => Fits::Full,
            n if n % 2 == 1 => Fits::Yes,
            _ => Fits::No,
        };
        let (batch, another) = worker.take(fits).unwrap();
        assert_eq!(batch, [1, 3, 5]);
        assert_eq!(all(&mut another.unwrap()), Some(vec![2, 7]), "in their order");
    }

    #[test]
    fn who_waits_behind_busy_workers_may_get_one_more() {
        let gather = Gather::new(1, |_| 1);
        let mut busy = gather.add([1], |_| true).unwrap();
        assert!(gather.hurry().is_none(), "one is coming");
        all(&mut busy).unwrap();
        assert!(gather.hurry().is_none(), "nothing waits");
        assert!(gather.add([2], |_| true).is_none());
        let mut more = gather.hurry().unwrap();
        assert_eq!(all(&mut more), Some(vec![2]));
        more.again();
        assert_eq!(all(&mut more), None);
        assert_eq!(gather.state.lock().workers, 1);
    }

    #[test]
    fn nothing_waits_for_a_worker_that_was_ended() {
        let gather = Gather::new(2, |_| 1);
        let waits = Arc::new(());
        let worker = gather.add([Arc::clone(&waits)], |_| true).unwrap();
        drop(worker);
        assert_eq!((Arc::strong_count(&waits), gather.waiting()), (1, 0));
        let mut next = gather.add([waits], |_| true).unwrap();
        assert_eq!(all(&mut next).map(|batch| batch.len()), Some(1));
    }

    #[test]
    fn what_nobody_waits_for_never_outnumbers_the_rest() {
        let gather = Gather::new(1, |_| 1);
        let _worker = gather.add([0], |_| true);
        for n in 1..100_000 {
            assert!(gather.add([n], |n| *n % 100 == 0).is_none());
            assert!(gather.waiting() <= MOST_UNLOOKED.max(2 * n / 100 + 2), "{n}: {}", gather.waiting());
        }
    }

    #[test]
    fn what_one_read_asks_for_counts_by_its_keys() {
        let gather = Gather::new(1, |keys: &usize| *keys);
        let _worker = gather.add([1], |_| true);
        for n in 1..1_000 {
            assert!(gather.add([1_000], |_| false).is_none());
            assert!(gather.waiting() <= MOST_UNLOOKED, "{n}: {}", gather.waiting());
        }
    }

    #[test]
    fn where_nothing_goes_with_anything_else_each_batch_looks_at_a_part_of_what_waits() {
        let gather = Gather::new(1, |_| 1);
        let mut worker = gather.add(0..4_096, |_| true).unwrap();
        let mut looks = 0;
        for n in 0..4_096 {
            let mut first = true;
            let (batch, _) = worker
                .take(|_| {
                    looks += 1;
                    if std::mem::take(&mut first) { Fits::Yes } else { Fits::No }
                })
                .unwrap();
            assert_eq!(batch, [n], "in their order");
            worker.again();
        }
        assert!(looks <= 4_096 * (PASSED_OVER + 1), "{looks}");
        assert_eq!(gather.waiting(), 0);
    }
}
