//! L1's index beside moka, which bounds it: what moka has let go must leave the index too, or nobody ever frees it.
//!
//! Both are modelled, with one key: neither papaya nor moka can be compiled with loom's types. The order of the steps is that of
//! `Local`. moka knows the key's hash and not which entry is held for it. It is taken at its word that it tells its listener of each
//! hash that goes, at some time after.

use loom::sync::Arc;
use loom::thread;

use crate::sync::Mutex;
use crate::threads::every_interleaving;

/// How an entry is put and let go. The key's stripe is left out: the order alone suffices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    AsBuilt,
    MokaFirst,
    /// The listener leaves the index alone where the hash was removed by hand: the entry is gone already, it seems.
    RemovedUntold,
}

/// What happens beside two puts of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// moka needs the room.
    ForItsSize,
    /// Without the stripe, as a share that is too large, and an audit.
    Removed,
    /// As `Local::remove_exactly`.
    RemovedExactly,
}

#[derive(Debug, Default)]
struct World {
    index: Mutex<Option<u64>>,
    /// Whether moka has the hash.
    moka: Mutex<bool>,
}

impl World {
    fn put(&self, entry: u64, how: Put) {
        if how == Put::MokaFirst {
            *self.moka.lock() = true;
        }
        *self.index.lock() = Some(entry);
        if how != Put::MokaFirst {
            *self.moka.lock() = true;
        }
    }

    /// The hash leaves moka. Whatever the index holds for it by then, the listener takes out.
    fn leave_moka(&self, told: bool) {
        let had = std::mem::take(&mut *self.moka.lock());
        if had && told {
            let _entry = self.index.lock().take();
        }
    }

    fn gone(&self, gone: Gone, how: Put) {
        let went = match gone {
            Gone::ForItsSize => return self.leave_moka(true),
            Gone::Removed => self.index.lock().take(),
            Gone::RemovedExactly => self.index.lock().take_if(|held| *held == 1),
        };
        if went.is_some() {
            self.leave_moka(how != Put::RemovedUntold);
        }
    }
}

/// Two puts of one key, and something that makes it go.
pub fn puts_beside(gone: Gone, how: Put) -> usize {
    every_interleaving(move || {
        let world = Arc::new(World::default());
        let spawned = |work: fn(&World, Gone, Put)| {
            let world = Arc::clone(&world);
            thread::spawn(move || work(&world, gone, how))
        };
        let first = spawned(|world, _, how| world.put(1, how));
        let going = spawned(|world, gone, how| world.gone(gone, how));
        world.put(2, how);
        first.join().expect("the put ends");
        going.join().expect("what goes is gone");
        let (index, moka) = (*world.index.lock(), *world.moka.lock());
        assert!(index.is_none() || moka, "the index keeps what moka has let go");
    })
}
