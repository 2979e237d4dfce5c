//! The polls of the tail, for those who ask for one or wait for one.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::watched::Watched;

#[derive(Debug, Default)]
pub(crate) struct Polls {
    in_doubt: Notify,
    awaited: Notify,
    /// How many were sent. Apart: of a poll that is sent nobody who waits needs to hear.
    sent: AtomicU64,
    /// The last one that completed, by its number.
    completed: Watched<u64>,
}

/// Why a poll is asked for, and so how soon it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Something is in doubt, or may be made up: somebody else decides how often.
    InDoubt,
    /// A reader waits for it.
    Awaited,
}

impl Polls {
    const fn notify(&self, asked: Asked) -> &Notify {
        match asked {
            Asked::InDoubt => &self.in_doubt,
            Asked::Awaited => &self.awaited,
        }
    }

    /// Asks the tail for a poll.
    pub(crate) fn ask(&self, why: Asked) {
        self.notify(why).notify_one();
    }

    /// Completes once somebody has asked for one.
    pub(crate) async fn asked(&self, why: Asked) {
        self.notify(why).notified().await;
    }

    /// To be called before a poll is sent.
    pub(crate) fn sending(&self) {
        self.sent.fetch_add(1, Ordering::AcqRel);
    }

    /// The lease rests on the poll that was sent last: whoever waits for it may go on.
    pub(crate) fn completed(&self) {
        let sent = self.sent.load(Ordering::Acquire);
        self.completed.update(|completed| *completed = sent);
    }

    /// Asks for a poll that is sent from now on, and waits for it: one for all who ask meanwhile. It may never come.
    pub(crate) async fn next(&self, why: Asked) {
        let sent = self.sent.load(Ordering::Acquire);
        self.ask(why);
        self.completed.wait_for(|completed| (*completed > sent).then_some(())).await;
    }
}
