//! Places for connections. Who has shown a valid key on a connection is known; strangers share what is left to them, and
//! the oldest of them goes where a new one comes. So strangers can't keep anybody out, and who only asks whether the
//! service is alive always gets in.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::service::limits::{Limit, Limits};

/// Strangers that always find a place, whoever else is there: probes are strangers.
pub(super) const RESERVED: usize = 32;
/// What [`Guest::known`] is of a stranger. Companies have positive numbers.
const STRANGER: i64 = i64::MIN;
/// The same of an admin.
const ADMIN: i64 = i64::MIN + 1;

/// All places of an instance.
#[derive(Debug)]
pub(crate) struct Places {
    /// Connections with a valid key, at most.
    known: usize,
    held: Mutex<Held>,
    limits: Arc<Limits>,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    /// The oldest first.
    strangers: BTreeMap<u64, (IpAddr, CancellationToken)>,
    by_address: HashMap<IpAddr, BTreeSet<u64>>,
    known: usize,
    by_company: HashMap<i64, usize>,
}

/// A connection that holds a place.
#[derive(Debug)]
pub(crate) struct Guest {
    id: u64,
    /// Whose key it has shown last.
    known: AtomicI64,
    places: Arc<Places>,
    end: CancellationToken,
}

impl Places {
    pub(crate) fn new(known: usize, limits: Arc<Limits>) -> Arc<Self> {
        Arc::new(Self { known, held: Mutex::default(), limits })
    }

    /// All that there are.
    pub(crate) const fn most(&self) -> usize {
        self.known + RESERVED
    }

    /// How many a company may have.
    const fn of_company(&self) -> usize {
        self.known.div_ceil(2)
    }

    /// How many strangers one address may have.
    const fn of_address(&self) -> usize {
        let share = self.known / 8;
        if share < RESERVED / 2 { RESERVED / 2 } else { share }
    }

    fn strangers(&self, known: usize) -> usize {
        (self.known / 2).min(self.known.saturating_sub(known)).max(RESERVED)
    }

    /// Gives a place to a stranger, if need be that of another one.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Guest {
        let (address, end) = (network(address), CancellationToken::new());
        let mut held = self.held.lock();
        let own = held.by_address.get(&address).filter(|own| own.len() >= self.of_address());
        if let Some(oldest) = own.and_then(|own| own.first().copied()) {
            self.leave(&mut held, oldest);
        }
        let most = self.strangers(held.known);
        self.make_room(&mut held, most - 1);
        let id = held.next;
        held.next += 1;
        held.strangers.insert(id, (address, end.clone()));
        held.by_address.entry(address).or_default().insert(id);
        Guest { id, known: AtomicI64::new(STRANGER), places: Arc::clone(self), end }
    }

    /// Has the oldest strangers go until there are no more than so many.
    fn make_room(&self, held: &mut Held, most: usize) {
        while held.strangers.len() > most {
            let Some((oldest, _)) = held.strangers.first_key_value() else { return };
            let oldest = *oldest;
            self.leave(held, oldest);
        }
    }

    fn leave(&self, held: &mut Held, stranger: u64) {
        if let Some(end) = held.remove(stranger) {
            end.cancel();
            self.limits.count(Limit::Strangers);
        }
    }

    /// Strangers, and those with a valid key.
    pub(crate) fn held(&self) -> (usize, usize) {
        let held = self.held.lock();
        (held.strangers.len(), held.known)
    }
}

impl Held {
    fn remove(&mut self, stranger: u64) -> Option<CancellationToken> {
        let (address, end) = self.strangers.remove(&stranger)?;
        if let Some(own) = self.by_address.get_mut(&address) {
            own.remove(&stranger);
            if own.is_empty() {
                self.by_address.remove(&address);
            }
        }
        Some(end)
    }

    fn forget(&mut self, company: i64) {
        self.known -= 1;
        if let Some(count) = self.by_company.get_mut(&company) {
            *count -= 1;
            if *count == 0 {
                self.by_company.remove(&company);
            }
        }
    }
}

impl Guest {
    /// A valid key was shown on this connection: of a company, or of an admin.
    ///
    /// # Errors
    /// The limit that leaves no place for it.
    pub(crate) fn shows_key_of(&self, company: Option<i64>) -> Result<(), Limit> {
        let (now, before) = (company.unwrap_or(ADMIN), self.known.load(Ordering::Relaxed));
        if now == before {
            return Ok(());
        }
        let places = &self.places;
        let mut held = places.held.lock();
        if now != ADMIN && held.by_company.get(&now).is_some_and(|own| *own >= places.of_company()) {
            return Err(Limit::CompanyConnections);
        }
        if before == STRANGER {
            if held.known >= places.known {
                return Err(Limit::Connections);
            }
            // Its place was given to another: it ends with this answer.
            if held.remove(self.id).is_none() {
                return Ok(());
            }
        } else {
            held.forget(before);
        }
        held.known += 1;
        *held.by_company.entry(now).or_default() += 1;
        self.known.store(now, Ordering::Relaxed);
        let most = places.strangers(held.known);
        places.make_room(&mut held, most);
        Ok(())
    }

    /// Completes when its place is given to another.
    pub(crate) async fn unwelcome(&self) {
        self.end.cancelled().await;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut held = self.places.held.lock();
        match self.known.load(Ordering::Relaxed) {
            STRANGER => drop(held.remove(self.id)),
            company => held.forget(company),
        }
    }
}

/// What one host may choose its addresses from counts as one.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn places(known: usize) -> Arc<Places> {
        Places::new(known, Arc::default())
    }

    fn from(host: usize) -> IpAddr {
        IpAddr::from([10, 0, u8::try_from(host / 256).unwrap(), u8::try_from(host % 256).unwrap()])
    }

    fn stays(guest: &Guest) -> bool {
        !guest.end.is_cancelled()
    }

    #[test]
    fn the_oldest_stranger_goes_for_a_new_one_and_who_has_a_key_stays() {
        let places = places(100);
        let known: Vec<Guest> = (0..10).map(|host| places.admit(from(host))).collect();
        known.iter().for_each(|guest| guest.shows_key_of(Some(7)).unwrap());
        let strangers: Vec<Guest> = (0..1_000).map(|host| places.admit(from(host))).collect();
        assert_eq!(places.held(), (50, 10));
        let staying = strangers.iter().map(stays);
        assert!(staying.enumerate().all(|(at, stays)| stays == (at >= 950)), "the newest stay");
        assert!(known.iter().all(stays));
        drop(strangers);
        assert_eq!(places.held(), (0, 10));
        drop(known);
        assert_eq!(places.held(), (0, 0));
        let held = places.held.lock();
        assert!(held.by_address.is_empty() && held.by_company.is_empty(), "{held:?}");
    }

    #[test]
    fn a_stranger_finds_a_place_where_all_others_are_taken() {
        let places = places(100);
        let known: Vec<Guest> = (0..100).map(|host| places.admit(from(host))).collect();
        assert_eq!(known.iter().filter(|guest| stays(guest)).count(), 50);
        let shown = |host| {
            let guest = places.admit(from(host));
            guest.shows_key_of(None).unwrap();
            guest
        };
        drop(known);
        let known: Vec<Guest> = (0..100).map(shown).collect();
        let probes: Vec<Guest> = (0..2 * RESERVED).map(|host| places.admit(from(host))).collect();
        assert_eq!(places.held(), (RESERVED, 100));
        assert!(probes[RESERVED..].iter().chain(&known).all(stays));
        assert_eq!(probes[RESERVED].shows_key_of(None), Err(Limit::Connections));
        drop(known);
        assert_eq!(probes[RESERVED].shows_key_of(None), Ok(()));
    }

    #[test]
    fn neither_an_address_nor_a_company_takes_all() {
        let places = places(400);
        let own = places.admit(from(1));
        let others: Vec<Guest> = (0..400).map(|_| places.admit(HERE)).collect();
        assert!(stays(&own));
        assert_eq!(others.iter().filter(|guest| stays(guest)).count(), 50);
        drop(others);
        let guests: Vec<Guest> = (0..150).map(|host| places.admit(from(host))).collect();
        guests.iter().for_each(|guest| guest.shows_key_of(Some(1)).unwrap());
        let more: Vec<Guest> = (0..100).map(|host| places.admit(from(host))).collect();
        let refused = more.iter().filter(|guest| guest.shows_key_of(Some(1)).is_err()).count();
        assert_eq!(refused, 50);
        assert_eq!(more[99].shows_key_of(Some(1)), Err(Limit::CompanyConnections));
        assert_eq!(more[99].shows_key_of(Some(2)), Ok(()));
        // A proxy's connection is of whoever asked last.
        assert_eq!(guests[0].shows_key_of(Some(2)), Ok(()));
        assert_eq!(more[98].shows_key_of(Some(1)), Ok(()));
    }

    #[test]
    fn a_host_has_one_address_however_many_it_can_choose_from() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2::1"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
