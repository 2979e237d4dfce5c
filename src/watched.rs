//! A value that tasks wait for.
//!
//! tokio's `watch` does the same, but wakes those who wait in an order drawn by chance. This wakes them in the order in
//! which they came, so that a simulated history replays exactly.

use parking_lot::Mutex;
use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(crate) struct Watched<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T> Watched<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: Mutex::new(value), changed: Notify::new() }
    }

    pub(crate) fn update<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let returned = change(&mut self.value.lock());
        self.tell();
        returned
    }

    /// A change that nobody needs to be woken for.
    pub(crate) fn quietly<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        change(&mut self.value.lock())
    }

    /// Wakes those who wait, to look again.
    pub(crate) fn tell(&self) {
        self.changed.notify_waiters();
    }

    pub(crate) fn look<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.value.lock())
    }

    /// Waits until `look` finds something. Dropping the future changes nothing.
    pub(crate) async fn wait_for<R>(&self, look: impl Fn(&T) -> Option<R>) -> R {
        loop {
            // Before the look: a change in between wakes it all the same.
            let changed = self.changed.notified();
            if let Some(found) = self.look(&look) {
                return found;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_change_between_the_look_and_the_wait_is_not_missed() {
        let watched = Arc::new(Watched::new(0));
        let other = Arc::clone(&watched);
        // The change comes while the first look is under way.
        let found = watched.wait_for(|value| {
            if *value == 1 {
                return Some("changed");
            }
            let other = Arc::clone(&other);
            std::thread::spawn(move || other.update(|value| *value = 1));
            None
        });
        let limit = std::time::Duration::from_secs(5);
        assert_eq!(tokio::time::timeout(limit, found).await, Ok("changed"));
    }
}
