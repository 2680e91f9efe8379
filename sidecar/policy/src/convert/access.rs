//! Who is let in, from the wire. Nothing is dropped or narrowed: a part that is unknown, or empty where something is
//! needed, refuses the whole workload's configuration, and the one before stays.

use std::collections::BTreeSet;

use http::Method;
use weft_proto::v1;

use super::{Invalid, at, header_name, invalid, name, port};
use crate::{
    authorize::Authorization,
    model::{
        Access, Action, AuthorizationPolicy, AuthorizationRule, Condition, ConditionGroup, ConditionKind, ConditionSet,
        HostMatch, IdentityMatch, Network, PathPattern, TextMatch, TlsMode, rule_header,
    },
};

/// Policies at one port.
pub const MAX_POLICIES: usize = 256;
/// Rules of one policy.
pub const MAX_RULES: usize = 256;
/// Values in all conditions of one policy.
pub const MAX_VALUES: usize = 4096;

/// Converts what is said of who is let in at a port.
///
/// # Errors
/// The first field that is wrong.
pub fn access(wire: Option<v1::Access>) -> Result<Access, Invalid> {
    let Some(wire) = wire else {
        return invalid("access", "", "is missing: a port without it would be open to everyone");
    };
    let tls_mode = match v1::TlsMode::try_from(wire.tls_mode) {
        Ok(v1::TlsMode::Permissive) => TlsMode::Permissive,
        Ok(v1::TlsMode::Strict) => TlsMode::Strict,
        Ok(v1::TlsMode::Unspecified) | Err(_) => {
            return invalid("access.tls_mode", wire.tls_mode, "is no mode that this version knows");
        }
    };
    if wire.policies.len() > MAX_POLICIES {
        return invalid("access.policies", wire.policies.len(), format!("must be at most {MAX_POLICIES}"));
    }
    let mut policies = Vec::with_capacity(wire.policies.len());
    let mut seen = BTreeSet::new();
    for (index, wire) in wire.policies.into_iter().enumerate() {
        let path = format!("access.policies[{index}]");
        let policy = at(&path, policy(wire))?;
        if !seen.insert(policy.name.clone()) {
            return invalid(format!("{path}.name"), policy.name, "is there twice");
        }
        policies.push(policy);
    }
    Ok(Access { tls_mode, authorization: Authorization::new(policies) })
}

fn policy(wire: v1::AuthorizationPolicy) -> Result<AuthorizationPolicy, Invalid> {
    use v1::authorization_policy::Action as Wire;
    let action = match Wire::try_from(wire.action) {
        Ok(Wire::Allow) => Action::Allow,
        Ok(Wire::Deny) => Action::Deny,
        Ok(Wire::Unspecified) | Err(_) => {
            return invalid("action", wire.action, "is no action that this version knows");
        }
    };
    if wire.rules.is_empty() && action == Action::Deny {
        return invalid("rules", "[]", "must not be empty: nothing would be denied");
    }
    if wire.rules.len() > MAX_RULES {
        return invalid("rules", wire.rules.len(), format!("must be at most {MAX_RULES}"));
    }
    let mut values = 0;
    let rules = wire.rules.into_iter().enumerate();
    let rules = rules.map(|(index, wire)| at(&format!("rules[{index}]"), rule(wire, &mut values)));
    Ok(AuthorizationPolicy {
        name: name("name", &wire.name)?,
        action,
        dry_run: wire.dry_run,
        rules: rules.collect::<Result<_, _>>()?,
    })
}

fn rule(wire: v1::AuthorizationRule, values: &mut usize) -> Result<AuthorizationRule, Invalid> {
    if wire.everything != wire.groups.is_empty() {
        return invalid("everything", wire.everything, "must be true exactly when there are no groups");
    }
    let groups = wire.groups.into_iter().enumerate();
    let groups = groups.map(|(index, wire)| at(&format!("groups[{index}]"), group(wire, values)));
    Ok(AuthorizationRule { groups: groups.collect::<Result<_, _>>()? })
}

fn group(wire: v1::ConditionGroup, values: &mut usize) -> Result<ConditionGroup, Invalid> {
    if wire.any_of.is_empty() {
        return invalid("any_of", "[]", "must not be empty");
    }
    let sets = wire.any_of.into_iter().enumerate();
    sets.map(|(index, wire)| at(&format!("any_of[{index}]"), set(wire, values))).collect()
}

fn set(wire: v1::ConditionSet, values: &mut usize) -> Result<ConditionSet, Invalid> {
    if wire.all_of.is_empty() {
        return invalid("all_of", "[]", "must not be empty");
    }
    let conditions = wire.all_of.into_iter().enumerate();
    conditions.map(|(index, wire)| at(&format!("all_of[{index}]"), condition(wire, values))).collect()
}

fn condition(wire: v1::Condition, values: &mut usize) -> Result<Condition, Invalid> {
    use v1::condition::Kind;
    let negated = wire.negated;
    let kind = match wire.kind {
        None => return invalid("kind", "", "is no condition that this version knows"),
        Some(Kind::Identities(list)) => {
            ConditionKind::Identities(parsed("identities", list.values, values, IdentityMatch::parse)?)
        }
        Some(Kind::Networks(list)) => ConditionKind::Networks(parsed("networks", list.values, values, Network::parse)?),
        Some(Kind::Ports(list)) => {
            count("ports", list.values.len(), values)?;
            let ports = list.values.into_iter().enumerate();
            ConditionKind::Ports(
                ports.map(|(index, number)| port(&format!("ports[{index}]"), number)).collect::<Result<_, _>>()?,
            )
        }
        Some(Kind::Methods(list)) => ConditionKind::Methods(parsed("methods", list.values, values, |text| {
            Method::from_bytes(text.as_bytes()).map_err(|_| "is no HTTP method".to_owned())
        })?),
        Some(Kind::Paths(list)) => ConditionKind::Paths(parsed("paths", list.values, values, PathPattern::parse)?),
        Some(Kind::Hosts(list)) => ConditionKind::Hosts(parsed("hosts", list.values, values, HostMatch::parse)?),
        Some(Kind::Header(header)) => {
            let name = header_name("header.name", header.name)?;
            if let Err(why) = rule_header(name.as_str()) {
                return invalid("header.name", name, why);
            }
            ConditionKind::Header(name, parsed("header.values", header.values, values, TextMatch::parse_header)?)
        }
        Some(Kind::Claim(claim)) => {
            if claim.name.is_empty() {
                return invalid("claim.name", "", "must not be empty");
            }
            ConditionKind::Claim(claim.name.into(), parsed("claim.values", claim.values, values, TextMatch::parse)?)
        }
    };
    Ok(Condition { negated, kind })
}

/// Every value, of which there is at least one.
fn parsed<T>(
    field: &str,
    list: Vec<String>,
    values: &mut usize,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, Invalid> {
    count(field, list.len(), values)?;
    let list = list.into_iter().enumerate();
    let one =
        |(index, text): (usize, String)| parse(&text).or_else(|why| invalid(format!("{field}[{index}]"), text, why));
    list.map(one).collect()
}

fn count(field: &str, more: usize, values: &mut usize) -> Result<(), Invalid> {
    if more == 0 {
        return invalid(field, "[]", "must not be empty: it is neither \"any\" nor \"none\"");
    }
    *values = values.saturating_add(more);
    if *values > MAX_VALUES {
        return invalid(field, *values, format!("the policy must have at most {MAX_VALUES} values in all"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
