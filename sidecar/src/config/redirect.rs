//! The ports at which a transparent sidecar takes what is redirected to it, as a flag: `outbound=15001,dns=15053,rest=15099,80=18080`.

use std::{collections::BTreeMap, str::FromStr};

use super::port;

/// Ports of an earlier start; what is not there is free to be any.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RedirectPorts {
    /// Where the app's calls come; 0: any.
    pub outbound: u16,
    /// Where the app's DNS comes, UDP and TCP; 0: any.
    pub dns: u16,
    /// By port of the app, where the calls to it come.
    pub inbound: BTreeMap<u16, u16>,
    /// Where calls to all other ports of the app come.
    pub rest: Option<u16>,
}

impl FromStr for RedirectPorts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut ports = Self::default();
        for part in text.split(',') {
            let (what, number) = part.split_once('=').ok_or_else(|| format!("{part:?}: expected WHAT=PORT"))?;
            let number = port(number)?;
            match what {
                "outbound" => ports.outbound = number,
                "dns" => ports.dns = number,
                "rest" => ports.rest = Some(number),
                app => _ = ports.inbound.insert(port(app)?, number),
            }
        }
        Ok(ports)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_named_by_what_comes_there() {
        let ports: RedirectPorts = "outbound=15001,dns=15053,rest=15099,8080=18080".parse().expect("valid");
        assert_eq!((ports.outbound, ports.dns, ports.inbound[&8080]), (15001, 15053, 18080));
        assert_eq!(ports.rest, Some(15099));
        for wrong in ["", "outbound", "outbound=0", "http=1", "8080=x"] {
            assert!(wrong.parse::<RedirectPorts>().is_err(), "{wrong}");
        }
    }
}
