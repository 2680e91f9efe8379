//! `weft certs revoke` and `weft certs unrevoke`.

use std::process::ExitCode;

use clap::{ArgGroup, Args};
use http::Method;
use serde_json::{Value, json};

use super::ca::{CA, revoked};
use crate::{
    listing::{self, Output, text},
    objects,
    server::{Call, Server, ServerArgs},
};

/// Flags of `weft certs revoke`.
#[derive(Args, Clone, Debug)]
#[command(
    group = ArgGroup::new("whom").required(true),
    after_help = "New handshakes are refused at once, streams and connections that the certificate opened end. A \
    sidecar whose identity is revoked needs a token to come back. weft certs ca lists revocations; each goes when the \
    certificates that it means have ended."
)]
pub struct RevokeArgs {
    /// Serial number of one certificate, in hex; that of an issuing certificate means all that it signed
    #[arg(long, value_name = "HEX", group = "whom")]
    pub serial: Option<String>,
    /// All certificates of an identity that were issued so far: its SPIFFE id
    #[arg(long, value_name = "SPIFFE-ID", group = "whom")]
    pub identity: Option<String>,
    /// Why, for the record
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
    /// Form of the answer
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Output,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Flags of `weft certs unrevoke`.
#[derive(Args, Clone, Debug)]
pub struct UnrevokeArgs {
    /// Id of the revocation, as weft certs ca lists it
    #[arg(value_name = "ID")]
    pub id: String,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Revokes.
pub async fn run(args: RevokeArgs) -> anyhow::Result<ExitCode> {
    let server = Server::new(&args.server).await?;
    let body = wanted(&args);
    let entry = server.call(Call::new(Method::POST, format!("{CA}/revocations")).body(&body)).await?;
    let table = revoked(std::slice::from_ref(&entry));
    listing::print(args.output, &entry, &[text(&entry, "id")], &table, "nothing was revoked");
    Ok(server.exit_code())
}

fn wanted(args: &RevokeArgs) -> Value {
    let mut body = json!({ "reason": args.reason });
    for (field, value) in [("serial", &args.serial), ("identity", &args.identity)] {
        if let Some(value) = value {
            body[field] = value.as_str().into();
        }
    }
    body
}

/// Withdraws a revocation.
pub async fn withdraw(args: UnrevokeArgs) -> anyhow::Result<ExitCode> {
    let server = Server::new(&args.server).await?;
    // An id of the server is made of letters that need no escaping; others do not exist.
    let id: String = form_urlencoded::byte_serialize(args.id.as_bytes()).collect();
    server.call(Call::new(Method::DELETE, format!("{CA}/revocations/{id}"))).await?;
    objects::print_done(&format!("revocation/{}", args.id), "withdrawn");
    Ok(server.exit_code())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{
        args::{Cli, Command},
        certs::CertsCommand,
    };

    #[test]
    fn one_of_serial_and_identity_is_asked_for() {
        let parse = |line: &str| Cli::try_parse_from(format!("weft certs revoke {line}").split(' '));
        let body = |line: &str| match parse(line).unwrap().command {
            Command::Certs(args) => match args.command {
                Some(CertsCommand::Revoke(args)) => wanted(&args),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        };
        assert_eq!(body("--serial 0a --reason lost"), json!({"serial": "0a", "reason": "lost"}));
        assert_eq!(body("--identity spiffe://td/x"), json!({"identity": "spiffe://td/x", "reason": ""}));
        for line in ["--reason x", "--serial 0a --identity spiffe://td/x"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
