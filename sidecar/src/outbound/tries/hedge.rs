//! A second try beside the first, for a request whose answer takes long (policy `hedge_after`). Only for requests without
//! a body that may be repeated; it takes from the budget like any other retry.

use std::{cell::RefCell, pin::pin, time::Duration};

use tokio::time::sleep;

use super::{Source, Tried, Tries, failure_of};
use crate::http::forward::Received;

impl Tries<'_> {
    /// The first try, and when it has not ended after `after` another one at another endpoint: the first good end of
    /// the two. The other one is cancelled.
    pub(super) async fn hedged(&self, after: Duration, received: &Received, source: &mut Source) -> Tried {
        let (copy, shared) = (source.copy(), &self.plan.cluster.shared);
        let mut first = pin!(self.attempt(&[], received, &mut source.request, &self.plan.trying));
        tokio::select! {
            biased;
            tried = &mut first => return tried,
            () = sleep(after) => {}
        }
        let Some(copy) = copy else { return first.await };
        let Some(_place) = shared.limits.retries.try_acquire() else { return first.await };
        if !shared.budget.try_retry(self.worker.clock.now()) {
            return first.await;
        }
        shared.circuit.retried("hedge");
        let busy: Vec<_> =
            self.plan.trying.borrow().iter().map(|admission| std::sync::Arc::clone(admission.endpoint())).collect();
        let (mut copy, trying) = (Some(copy), RefCell::default());
        let mut second = pin!(self.attempt(&busy, received, &mut copy, &trying));
        let is_good = |tried: &Tried| failure_of(&tried.result, received.grpc).is_none() && tried.result.is_ok();
        tokio::select! {
            biased;
            tried = &mut first => if is_good(&tried) { tried } else { second.await },
            tried = &mut second => if is_good(&tried) { tried } else { first.await },
        }
    }
}
