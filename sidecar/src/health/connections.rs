//! The open connections of the health listener: how many there may be, and which one makes room for another. Whoever
//! keeps connections that ask nothing takes no place from a kubelet.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use tokio::sync::Notify;

/// Connections at once. A kubelet opens one for each probe.
pub const CONNECTIONS: usize = 64;
/// Connections at once from one address.
pub const OF_ONE_ADDRESS: usize = 8;

/// The connections that are open, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct Connections(Arc<Mutex<Vec<Arc<State>>>>);

/// One of them; it has its place until this is dropped.
#[derive(Debug)]
pub struct Connection {
    all: Connections,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    from: IpAddr,
    /// It waits for the answer of a probe.
    probing: AtomicBool,
    closed: Notify,
}

/// While this lives the connection is not closed for another one.
pub struct Probing<'a>(&'a State);

impl Connections {
    /// A place for a connection from this address. When there is none, the oldest one that runs no probe is closed; of
    /// the same address, when that has as many as it may. `None`: all of them run probes.
    pub fn open(&self, from: IpAddr) -> Option<Connection> {
        let mut open = self.lock();
        let of_address = open.iter().filter(|state| state.from == from).count();
        let is_full = open.len() >= CONNECTIONS;
        if is_full || of_address >= OF_ONE_ADDRESS {
            let gives_way = |state: &Arc<State>| {
                let counts = of_address < OF_ONE_ADDRESS || state.from == from;
                counts && !state.probing.load(Relaxed)
            };
            let oldest = open.iter().position(gives_way)?;
            open.remove(oldest).closed.notify_one();
        }
        let state = Arc::new(State { from, probing: AtomicBool::new(false), closed: Notify::new() });
        open.push(Arc::clone(&state));
        drop(open);
        Some(Connection { all: self.clone(), state })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<State>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Returns when another one needs the place.
    pub async fn closed(&self) {
        self.state.closed.notified().await;
    }

    /// From now on it runs a probe.
    pub fn probing(&self) -> Probing<'_> {
        self.state.probing.store(true, Relaxed);
        Probing(&self.state)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.all.lock().retain(|state| !Arc::ptr_eq(state, &self.state));
    }
}

impl Drop for Probing<'_> {
    fn drop(&mut self) {
        self.0.probing.store(false, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    fn is_closed(connection: &Connection) -> bool {
        futures_util::FutureExt::now_or_never(connection.closed()).is_some()
    }

    #[test]
    fn when_all_places_are_taken_the_oldest_that_runs_no_probe_makes_room() {
        let all = Connections::default();
        let open = |number: usize| all.open(address(u32::try_from(number).expect("few"))).expect("a place");
        let first: Vec<Connection> = (0..CONNECTIONS).map(open).collect();
        let probing = first[0].probing();
        let _more = open(CONNECTIONS);
        let closed: Vec<usize> = (0..CONNECTIONS).filter(|index| is_closed(&first[*index])).collect();
        assert_eq!(closed, [1]);
        drop(probing);
        let _again = open(CONNECTIONS + 1);
        assert!(is_closed(&first[0]));
    }

    #[test]
    fn one_address_makes_room_for_itself_only() {
        let all = Connections::default();
        let other = all.open(address(1)).expect("a place");
        let mine: Vec<Connection> = (0..OF_ONE_ADDRESS).filter_map(|_| all.open(address(2))).collect();
        let probing: Vec<Probing<'_>> = mine.iter().skip(1).map(Connection::probing).collect();
        let next = all.open(address(2)).expect("a place");
        assert!(is_closed(&mine[0]) && !is_closed(&other));
        let _busy = next.probing();
        assert!(all.open(address(2)).is_none(), "all run probes");
        assert!(all.open(address(3)).is_some());
        drop(probing);
    }

    #[test]
    fn a_connection_that_ends_gives_its_place_back() {
        let all = Connections::default();
        drop((0..OF_ONE_ADDRESS).filter_map(|_| all.open(address(1))).collect::<Vec<_>>());
        assert!(all.lock().is_empty());
    }
}
