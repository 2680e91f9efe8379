//! What the command line takes and refuses.

use clap::{CommandFactory as _, Parser as _};

use super::*;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn an_upstream_names_a_service_and_a_local_port() {
    for (flag, service, port) in
        [("catalog=9001", "catalog", 9001), ("pay-1.shop:80=7", "pay-1", 7), ("a:1=65535", "a", 65535)]
    {
        let upstream: Upstream = flag.parse().unwrap();
        assert_eq!((upstream.service.as_str(), upstream.local_port), (service, port), "{flag}");
    }
    for flag in ["catalog", "=9001", "catalog=0", "catalog=x", "Catalog=1", "catalog:0=1", "catalog:x=1"] {
        assert!(flag.parse::<Upstream>().is_err(), "{flag}");
    }
}

#[test]
fn a_duration_has_a_unit_and_is_long_enough() {
    assert_eq!(duration("20s"), Ok(Duration::from_secs(20)));
    assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
    assert_eq!(duration("9000ms"), Ok(Duration::from_secs(9)));
    for text in ["", "s", "20d", "7s", "-1s"] {
        assert!(duration(text).is_err(), "{text}");
    }
}

#[test]
fn what_follows_the_dashes_is_the_app() {
    let cli = Cli::try_parse_from(["weft", "run", "--name", "web", "--", "nginx", "--port", "1"]).unwrap();
    let Command::Run(args) = cli.command else { panic!("not run") };
    assert_eq!(args.command, ["nginx", "--port", "1"]);
    assert!(args.port.is_empty());
    let missing = Cli::try_parse_from(["weft", "run", "--name", "web"]).unwrap_err();
    assert_eq!(missing.exit_code(), 2);
}
