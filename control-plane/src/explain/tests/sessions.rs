//! Sessions of a rule.

use super::*;

#[test]
fn sessions_of_a_rule_are_told_with_where_their_token_is_and_how_long_they_last() {
    let route = |session: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: sticky}}\nspec:\n  \
             parentRefs: [{{kind: Service, group: \"\", name: catalog, port: 80}}]\n  rules:\n  - name: cart\n    \
             matches: [{{path: {{value: /cart}}}}]\n    sessionPersistence: {session}\n    backendRefs: [{{name: \
             catalog, port: 80}}]\n"
        )
    };
    let told = |session: &str| {
        let answer = ask_with(&route(session), "http://catalog/cart/1", &[]).expect("an answer");
        answer["effective"]["sessionPersistence"].clone()
    };
    for (session, value) in [
        ("{sessionName: sid, idleTimeout: 5m}", "by cookie sid, 5m without a request"),
        (
            "{sessionName: sid, absoluteTimeout: 1h, cookieConfig: {lifetimeType: Permanent}}",
            "by cookie sid, which the caller keeps, 1h in all",
        ),
        ("{type: Header, sessionName: X-Cart}", "by header x-cart"),
    ] {
        let expected = json!({ "value": value, "origin": "HTTPRoute default/sticky#cart" });
        assert_eq!(told(session), expected, "{session}");
    }
    let without = ask_with(&route("{sessionName: sid}"), "http://catalog/items", &[]).expect("an answer");
    assert!(without["effective"]["sessionPersistence"].is_null(), "another rule: {without}");
}
