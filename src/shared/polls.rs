//! The polls of the tail, for those who ask for one or wait for one.

use tokio::sync::Notify;

use crate::watched::Watched;

#[derive(Debug, Default)]
pub(crate) struct Polls {
    /// Something is in doubt.
    asked: Notify,
    numbers: Watched<Numbers>,
}

/// By their numbers.
#[derive(Debug, Default)]
struct Numbers {
    sent: u64,
    completed: u64,
}

impl Polls {
    /// Asks the tail for a poll at once.
    pub(crate) fn ask(&self) {
        self.asked.notify_one();
    }

    /// Completes once somebody has asked for one.
    pub(crate) async fn asked(&self) {
        self.asked.notified().await;
    }

    /// To be called before a poll is sent.
    pub(crate) fn sending(&self) {
        self.numbers.update(|polls| polls.sent += 1);
    }

    /// The lease rests on the poll that was sent last: whoever waits for it may go on.
    pub(crate) fn completed(&self) {
        self.numbers.update(|polls| polls.completed = polls.sent);
    }

    /// Asks for a poll that is sent from now on, and waits for it: one for all who ask meanwhile. It may
    /// never come.
    pub(crate) async fn next(&self) {
        let sent = self.numbers.look(|polls| polls.sent);
        self.ask();
        self.numbers.wait_for(|polls| (polls.completed > sent).then_some(())).await;
    }
}
