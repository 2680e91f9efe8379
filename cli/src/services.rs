//! The hidden `weft demo-service`: runs one of the demo's services.

use std::process::ExitCode;

use weft_examples::{catalog, ledger, orders, payments, storefront};

use crate::args::{Service, ServiceArgs};

/// Serves until the process is ended.
pub async fn run(args: ServiceArgs) -> anyhow::Result<ExitCode> {
    match args.service {
        Service::Catalog => catalog::run(args.listen, &args.version, &args.replica).await?,
        Service::Ledger => ledger::run(args.listen).await?,
        Service::Orders => orders::run(args.listen, args.payments, args.ledger).await?,
        Service::Payments => payments::run(args.listen).await?,
        Service::Storefront => storefront::run(args.listen, args.catalog, args.orders).await?,
    }
    Ok(ExitCode::SUCCESS)
}
