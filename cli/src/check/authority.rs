//! What `weft check` finds in the state of the certificate authority.

use serde_json::Value;

use super::{Check, Subject};
use crate::listing::{duration, text};

/// Roots and issuers that end sooner want a successor: a rotation takes its time, and nothing can be signed afterwards.
const SOON: i64 = 30 * 86_400;

const AUTHORITY: Subject = Subject("authority", "authority", "weft certs ca shows its state and the next step");

/// The authority cannot be asked.
pub fn unknown(why: &str) -> Check {
    AUTHORITY.warning(why)
}

/// One check for each certificate of the authority that ends soon, and one for what it says itself.
pub fn checks(state: &Value) -> Vec<Check> {
    let mut problems: Vec<String> = state["warning"].as_str().map(str::to_owned).into_iter().collect();
    let roots = state["roots"].as_array().into_iter().flatten().map(|root| ("root", root));
    for (what, of) in roots.chain([("issuer", &state["issuer"])]) {
        let left = of["expiresInSeconds"].as_i64().unwrap_or(i64::MAX);
        // One that lives shortly by choice is not about to surprise anybody before its last third.
        let soon = of["lifetimeSeconds"].as_i64().map_or(SOON, |life| SOON.min(life / 3));
        if left < soon {
            let serial = text(of, "serial");
            problems.push(format!("the {what} {serial} ends in {}", duration(left)));
        }
    }
    if !matches!(text(state, "phase").as_str(), "" | "stable") {
        problems.push(format!("a rotation is under way ({})", text(state, "phase")));
    }
    AUTHORITY.each("its certificates are valid for long enough", problems)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_authority_warns_of_its_end_and_of_a_rotation_that_is_not_finished() {
        let state = |phase: &str, left: i64| {
            json!({"phase": phase, "roots": [{"serial": "ab", "expiresInSeconds": left}],
                "issuer": {"serial": "cd", "expiresInSeconds": 365 * 86_400}})
        };
        let told = |state: &Value| checks(state).into_iter().map(|check| check.message).collect::<Vec<_>>();
        assert_eq!(told(&state("stable", 365 * 86_400)), ["its certificates are valid for long enough"]);
        assert_eq!(told(&state("stable", 86_400)), ["the root ab ends in 1d"]);
        assert_eq!(told(&state("prepared", 365 * 86_400)), ["a rotation is under way (prepared)"]);
        assert_eq!(told(&json!({"warning": "w"})), ["w"]);
    }
}
