//! Whether the app answers on its ports: a TCP probe, which decides if the workload takes requests.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::sync::watch;
use weft_proto::v1::Registration;

use crate::egress;

const FIRST: Duration = Duration::from_millis(250);
const LATER: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_millis(500);
const FAILURES: u32 = 3;

/// Probes for ever and keeps `healthy` of the registration.
pub async fn run(ports: Vec<u16>, registration: watch::Sender<Registration>) {
    let mut failures = 0;
    loop {
        let mut alive = true;
        for port in &ports {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
            alive &= matches!(tokio::time::timeout(TIMEOUT, egress::connect(address)).await, Ok(Ok(_)));
        }
        failures = if alive { 0 } else { failures + 1 };
        registration.send_if_modified(|registration| {
            let healthy = next(registration.healthy, alive, failures);
            std::mem::replace(&mut registration.healthy, healthy) != healthy
        });
        let healthy = registration.borrow().healthy;
        tokio::time::sleep(if healthy { LATER } else { FIRST }).await;
    }
}

/// One success makes healthy, three failures in a row make unhealthy.
const fn next(healthy: bool, alive: bool, failures: u32) -> bool {
    alive || healthy && failures < FAILURES
}

#[cfg(test)]
mod tests {
    use super::next;

    #[test]
    fn one_success_makes_healthy_and_three_failures_unhealthy() {
        assert!(next(false, true, 0));
        assert!(next(true, false, 2));
        assert!(!next(true, false, 3));
        assert!(!next(false, false, 1));
    }
}
