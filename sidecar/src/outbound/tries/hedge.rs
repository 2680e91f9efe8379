//! A second try beside the first, for a request whose answer takes long (policy `hedge_after`). Only for requests without
//! a body that may be repeated; it takes from the budget like any other retry.

use std::{
    cell::{Cell, RefCell},
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::time::sleep;

use super::{Source, Tried, Tries, discard};
use crate::http::forward::Received;

impl Tries<'_> {
    /// The first try, and when it has not ended after `after` another one at another endpoint: the first good end of
    /// the two. The other one is cancelled.
    pub(super) async fn hedged(&self, after: Duration, received: &Received, source: &mut Source) -> Tried {
        let (copy, shared) = (source.copy(), &self.plan.cluster.shared);
        // One line of the access log: the first one's, until the second has the answer.
        let quiet = [false, true].map(|quiet| Rc::new(Cell::new(quiet)));
        let mut first = pin!(self.attempt(&[], received, &mut source.request, &self.plan.trying, Some(&quiet[0])));
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
        let busy: Vec<_> = self.plan.trying.borrow().iter().map(|admission| Arc::clone(admission.endpoint())).collect();
        let (mut copy, trying) = (Some(copy), RefCell::default());
        let mut second = pin!(self.attempt(&busy, received, &mut copy, &trying, Some(&quiet[1])));
        let is_final = |tried: &Tried| tried.result.is_ok() && !self.is_retried(&tried.result, received.grpc);
        let (mut one, overtaken) = tokio::select! {
            biased;
            tried = &mut first => (tried, false),
            tried = &mut second => (tried, true),
        };
        if is_final(&one) {
            quiet.iter().for_each(|quiet| quiet.set(quiet.get() != overtaken));
            if overtaken && let Some(admission) = self.plan.trying.take() {
                admission.overtaken(self.worker, &self.plan.cluster);
            }
            return one;
        }
        let mut last = if overtaken { first.await } else { second.await };
        if !overtaken {
            quiet.iter().for_each(|quiet| quiet.set(!quiet.get()));
        }
        last.failed.extend(one.failed);
        discard(one.result);
        one.span.retried();
        last
    }
}
