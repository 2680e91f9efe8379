//! The hidden `weft demo-service`: runs one of the demo's services.

use std::process::ExitCode;

use anyhow::Context as _;
use weft_examples::{catalog, ledger, orders, payments, storefront};

use crate::args::{Service, ServiceArgs};

/// Serves until the process is ended.
pub async fn run(args: ServiceArgs) -> anyhow::Result<ExitCode> {
    match args.service {
        Service::Catalog => catalog::run(args.listen, &args.version, &args.replica).await?,
        Service::Ledger => ledger::run(args.listen, args.entries).await?,
        Service::Orders => {
            let entries = args.entries.context("--entries: orders needs to know where the ledger takes them")?;
            let upstreams = orders::Upstreams { payments: args.payments, journal: args.ledger, entries };
            orders::run(args.listen, upstreams).await?;
        }
        Service::Payments => payments::run(args.listen).await?,
        Service::Storefront => storefront::run(args.listen, args.catalog, args.orders).await?,
    }
    Ok(ExitCode::SUCCESS)
}
