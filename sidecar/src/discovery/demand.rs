//! What the app dials and nobody declared: from the workers and the DNS listener to discovery.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use tokio::sync::mpsc;
use weft_policy::model::ObjectName;

/// What is asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Wanted {
    /// A service.
    Service(ObjectName),
    /// Whatever has this address: a service or one of its endpoints.
    Address(IpAddr),
}

/// Asks for a service that nobody declared.
#[derive(Clone)]
pub struct Demand {
    sender: mpsc::Sender<Wanted>,
    reached: Arc<AtomicBool>,
}

/// The end that discovery reads.
pub struct Demands {
    receiver: mpsc::Receiver<Wanted>,
    reached: Arc<AtomicBool>,
}

/// The control plane answers while this lives.
pub struct Reached(Arc<AtomicBool>);

impl Demand {
    /// Wants a service; the snapshot will have it, or say that there is none.
    pub fn want(&self, name: &ObjectName) {
        // A full queue loses nothing: the caller waits for the snapshot and the app will ask again.
        let _ = self.sender.try_send(Wanted::Service(name.clone()));
    }

    /// Wants what has an address; the snapshot will have it, or say that nothing in the mesh has it.
    pub fn want_address(&self, address: IpAddr) {
        let _ = self.sender.try_send(Wanted::Address(address));
    }

    /// Whether somebody is there to answer.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.reached.load(Relaxed)
    }
}

impl Demands {
    /// Waits for at least one.
    pub async fn recv_many(&mut self, wanted: &mut Vec<Wanted>, limit: usize) -> usize {
        self.receiver.recv_many(wanted, limit).await
    }

    /// The control plane is there.
    #[must_use]
    pub fn reached(&self) -> Reached {
        self.reached.store(true, Relaxed);
        Reached(Arc::clone(&self.reached))
    }
}

impl Drop for Reached {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
    }
}

/// A demand and the end that discovery reads.
#[must_use]
pub fn demand() -> (Demand, Demands) {
    let (sender, receiver) = mpsc::channel(256);
    let reached = Arc::<AtomicBool>::default();
    (Demand { sender, reached: Arc::clone(&reached) }, Demands { receiver, reached })
}
