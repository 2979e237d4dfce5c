//! The polls of the tail, for those who ask for one or wait for one.

use tokio::sync::Notify;

use crate::watched::Watched;

#[derive(Debug, Default)]
pub(crate) struct Polls {
    in_doubt: Notify,
    awaited: Notify,
    numbers: Watched<Numbers>,
}

/// Why a poll is asked for, and so how soon it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Something is in doubt, or may be made up: somebody else decides how often.
    InDoubt,
    /// A reader waits for it.
    Awaited,
}

/// By their numbers.
#[derive(Debug, Default)]
struct Numbers {
    sent: u64,
    completed: u64,
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
        self.numbers.update(|polls| polls.sent += 1);
    }

    /// The lease rests on the poll that was sent last: whoever waits for it may go on.
    pub(crate) fn completed(&self) {
        self.numbers.update(|polls| polls.completed = polls.sent);
    }

    /// Asks for a poll that is sent from now on, and waits for it: one for all who ask meanwhile. It may never come.
    pub(crate) async fn next(&self, why: Asked) {
        let sent = self.numbers.look(|polls| polls.sent);
        self.ask(why);
        self.numbers.wait_for(|polls| (polls.completed > sent).then_some(())).await;
    }
}
