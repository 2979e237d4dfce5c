//! L1's index beside moka, which bounds it: what moka has let go must leave the index too, or nobody ever frees it.
//!
//! Both are modelled, with one key: neither papaya nor moka can be compiled with loom's types. The order of the steps is that of
//! `Local`; moka is taken at its word that it tells its listener of each entry that goes, under a lock of the key.

use loom::sync::Arc;
use loom::thread;

use crate::sync::Mutex;
use crate::threads::every_interleaving;

/// How an entry is put. The key's stripe is left out: the order alone suffices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    AsBuilt,
    MokaFirst,
    /// The listener leaves the index alone where moka has put another entry in the place of one.
    ReplacedUntold,
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
    /// Also moka's lock of the key.
    moka: Mutex<Option<u64>>,
}

impl World {
    fn put(&self, entry: u64, how: Put) {
        if how == Put::MokaFirst {
            self.put_into_moka(entry, how);
        }
        *self.index.lock() = Some(entry);
        if how != Put::MokaFirst {
            self.put_into_moka(entry, how);
        }
    }

    /// moka tells its listener of each entry that goes.
    fn put_into_moka(&self, entry: u64, how: Put) {
        let mut moka = self.moka.lock();
        if let Some(replaced) = moka.replace(entry).filter(|_| how != Put::ReplacedUntold) {
            self.remove_exactly(replaced);
        }
    }

    fn remove_exactly(&self, entry: u64) -> bool {
        self.index.lock().take_if(|held| *held == entry).is_some()
    }

    fn remove_from_moka(&self) {
        let mut moka = self.moka.lock();
        if let Some(removed) = moka.take() {
            self.remove_exactly(removed);
        }
    }

    fn gone(&self, gone: Gone) {
        match gone {
            Gone::ForItsSize => self.remove_from_moka(),
            Gone::Removed => {
                let _entry = self.index.lock().take();
                self.remove_from_moka();
            }
            Gone::RemovedExactly => {
                if self.remove_exactly(1) {
                    self.remove_from_moka();
                }
            }
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
        let going = spawned(|world, gone, _| world.gone(gone));
        world.put(2, how);
        first.join().expect("the put ends");
        going.join().expect("what goes is gone");
        let (index, moka) = (*world.index.lock(), *world.moka.lock());
        assert!(index.is_none() || index == moka, "the index keeps what moka has let go");
    })
}
