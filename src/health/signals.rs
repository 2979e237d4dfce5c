//! The state of an instance as it changes, its troubles, and the stream of what happens to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast};

#[cfg(feature = "tracing")]
use super::lines::Lines;
use super::troubles::{Subject, TroubleKind, Troubles};
use super::{Event, Health, State};
use crate::clock::Clock;
use crate::coherence::Coherence;
use crate::error::{RemoteError, chain};

/// How long nothing must have been refused: a server that is full takes some and refuses others.
const CALM: Duration = Duration::from_secs(10);
/// Events kept for a receiver that is slow; older ones are lost to it, and it is told.
const EVENTS_KEPT: usize = 256;

pub(crate) struct Signals {
    clock: Arc<dyn Clock>,
    #[cfg(feature = "tracing")]
    lines: Lines,
    pub(crate) bus_up: AtomicBool,
    pub(crate) closed: AtomicBool,
    changed: Notify,
    state: Mutex<State>,
    events: broadcast::Sender<Event>,
    pub(crate) troubles: Troubles,
}

impl Signals {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            #[cfg(feature = "tracing")]
            lines: Lines::new(Arc::clone(&clock)),
            troubles: Troubles::new(Arc::clone(&clock)),
            clock,
            bus_up: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            changed: Notify::new(),
            state: Mutex::new(State::Recovering),
            events: broadcast::channel(EVENTS_KEPT).0,
        }
    }

    pub(crate) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    pub(crate) fn send(&self, event: Event) {
        #[cfg(feature = "tracing")]
        self.lines.tell(&event);
        // Nobody listening is fine.
        drop(self.events.send(event));
    }

    #[cfg(all(test, feature = "tracing"))]
    pub(crate) fn lines_are_forgotten(&self) -> bool {
        self.lines.is_empty()
    }

    /// A trouble is there. Told of where it is new.
    pub(crate) fn begin(&self, subject: Subject, detail: &str) {
        self.tell(self.troubles.begin(subject, detail, None).map(Event::TroubleBegan));
    }

    /// A trouble was there just now, and lasts for so long after it was there last.
    pub(crate) fn begin_for(&self, lasts: Duration, subject: Subject, detail: &str) {
        self.tell(self.troubles.begin(subject, detail, Some(lasts)).map(Event::TroubleBegan));
    }

    /// A trouble is over, if there was one. Told of where there was.
    pub(crate) fn end(&self, subject: &Subject) {
        self.end_after(Duration::ZERO, subject);
    }

    /// Something went well: a trouble is over that has not been noticed for so long.
    pub(crate) fn end_after(&self, quiet: Duration, subject: &Subject) {
        self.tell(self.troubles.end(subject, quiet).map(Event::TroubleEnded));
    }

    /// Troubles of this kind are over, but for these.
    pub(crate) fn end_others(&self, kind: TroubleKind, still: impl Fn(&Subject) -> bool) {
        self.tell(self.troubles.retain(kind, still).into_iter().map(Event::TroubleEnded));
    }

    /// What Redis has said to something that it was asked for: a refusal is a trouble, until nothing was
    /// refused for a while. Silence is the breaker's.
    pub(crate) fn judge(&self, kind: TroubleKind, done: Result<(), RemoteError>, what: &str) {
        match done {
            Ok(()) => self.end_after(CALM, &kind.anywhere()),
            Err(RemoteError::Refused(why)) => {
                self.begin(kind.anywhere(), &format!("{what}: {}", chain(&*why)));
            }
            Err(some) if some.leaves_the_rest() => {
                self.begin(kind.anywhere(), &format!("{what}: {}", chain(&some)));
            }
            Err(_) => {}
        }
    }

    fn tell(&self, events: impl IntoIterator<Item = Event>) {
        events.into_iter().for_each(|event| self.send(event));
    }

    pub(crate) fn set_bus(&self, up: bool) {
        if self.bus_up.swap(up, Ordering::AcqRel) != up {
            self.changed();
        }
    }

    /// Something that the state depends on has changed.
    pub(crate) fn changed(&self) {
        self.changed.notify_one();
    }

    pub(crate) fn health(&self, coherence: &Coherence, remote_up: bool) -> Health {
        let held = coherence.lease.held();
        let lease_left_ms = held.deadline_ms().saturating_sub(self.clock.now_ms());
        Health {
            state: self.state(coherence, remote_up),
            lease_left: Duration::from_millis(lease_left_ms),
            remote_up,
            bus_up: self.bus_up.load(Ordering::Acquire),
            epoch: coherence.epoch(),
            troubles: self.troubles.lasting(),
        }
    }

    pub(crate) fn state(&self, coherence: &Coherence, remote_up: bool) -> State {
        let held = coherence.lease.held();
        if self.closed.load(Ordering::Acquire) {
            State::Closed
        } else if !(coherence.buckets.polled() && held.ever_valid()) {
            State::Recovering
        } else if !held.valid_at(self.clock.now_ms()) {
            State::Unverified
        } else if self.bus_up.load(Ordering::Acquire) && remote_up {
            State::Coherent
        } else {
            State::Isolated
        }
    }

    /// Sends an event for each change of the state, ends troubles that have outlived themselves, and writes
    /// lines that are due. A lease that lapses tells nobody, so this looks again ten times a bound. Never
    /// returns.
    pub(crate) async fn watch(&self, coherence: &Coherence, remote_up: impl Fn() -> bool) {
        let pause = (coherence.bound / 10).clamp(Duration::from_millis(5), Duration::from_secs(1));
        loop {
            self.observe(self.state(coherence, remote_up()));
            self.tell(self.troubles.expire().into_iter().map(Event::TroubleEnded));
            #[cfg(feature = "tracing")]
            self.lines.catch_up();
            tokio::select! {
                biased;
                () = self.changed.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    pub(crate) fn observe(&self, now: State) {
        let mut state = self.state.lock();
        let from = std::mem::replace(&mut *state, now);
        if from != now {
            self.send(Event::State { from, to: now });
        }
    }
}
