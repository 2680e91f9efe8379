//! The conditions one by one, each in a rule that allows and in one that denies.

use super::*;

#[test]
fn identities_are_compared_as_values() {
    let both = |id: &str, values: &[&str]| Ask::by(id).both("identities", values);
    assert_eq!(both(WEB, &[EVIL, WEB]), YES);
    assert_eq!(both(WEB, &["*"]), YES);
    assert_eq!(both(WEB, &["spiffe://td/ns/shop/*"]), YES);
    assert_eq!(both("spiffe://td/ns/shop2/sa/web", &["spiffe://td/ns/shop/*"]), NO);
    assert_eq!(both("spiffe://td.evil/ns/shop/sa/web", &["spiffe://td/*"]), NO);
    assert_eq!(both("spiffe://td/ns/shop/sa/aXb", &["spiffe://td/ns/shop/sa/a.b"]), NO, "a dot is a dot");
    assert_eq!(both("spiffe://td/ns/shop/sa/web2", &[WEB]), NO);
    assert_eq!(Ask::by(WEB).both("!identities", &[EVIL]), YES);
    assert_eq!(Ask::by(EVIL).both("!identities", &[EVIL]), NO);
}

#[test]
fn a_caller_without_an_identity_has_none_to_match_and_cannot_pass_for_another() {
    assert_eq!(Ask::default().both("identities", &["*"]), NO);
    assert_eq!(Ask::default().both("!identities", &[EVIL]), UNCLEAR);
    assert_eq!(Ask::default().both("!identities", &["*"]), UNCLEAR, "deny what is not in the mesh");
}

#[test]
fn networks_know_both_families_and_the_mapped_form() {
    let both = |address: &str, values: &[&str]| {
        Ask { address: address.parse().unwrap(), ..Ask::default() }.both("networks", values)
    };
    for (address, network, expected) in [
        ("10.1.2.3", "10.0.0.0/8", YES),
        ("::ffff:10.1.2.3", "10.0.0.0/8", YES),
        ("10.1.2.3", "::ffff:10.0.0.0/104", YES),
        ("11.1.2.3", "10.0.0.0/8", NO),
        ("10.0.0.255", "10.0.0.254/31", YES),
        ("10.0.0.253", "10.0.0.254/31", NO),
        ("1.2.3.4", "0.0.0.0/0", YES),
        ("fd00::1", "0.0.0.0/0", NO),
        ("1.2.3.4", "::/0", NO),
        ("fd12::1", "fd00::/8", YES),
        ("fe00::1", "fd00::/8", NO),
        ("::1", "::1", YES),
        ("::2", "::1", NO),
    ] {
        assert_eq!(both(address, &[network]), expected, "{address} {network}");
        let negated = Ask { address: address.parse().unwrap(), ..Ask::default() }.both("!networks", &[network]);
        assert_eq!(negated, (!expected.0, !expected.1), "not {address} {network}");
    }
}

#[test]
fn ports_are_those_of_the_app() {
    assert_eq!(Ask::default().both("ports", &["80", "8080"]), YES);
    assert_eq!(Ask::default().both("ports", &["80"]), NO);
    assert_eq!(Ask::default().both("!ports", &["8080"]), NO);
}

#[test]
fn methods_have_case_but_a_servers_folding_helps_nobody() {
    let both = |method: &str, field| Ask { method: method.parse().unwrap(), ..Ask::default() }.both(field, &["GET"]);
    assert_eq!(both("GET", "methods"), YES);
    assert_eq!(both("get", "methods"), UNCLEAR);
    assert_eq!(both("get", "!methods"), UNCLEAR);
    assert_eq!(both("POST", "methods"), NO);
    assert_eq!(both("POST", "!methods"), YES);
}

#[test]
fn paths_match_exactly_below_and_by_template() {
    for (path, pattern, expected) in [
        ("/admin", "/admin", YES),
        ("/Admin", "/admin", NO),
        ("/admin/x", "/admin", NO),
        ("/admin", "/admin/*", YES),
        ("/admin/", "/admin/*", YES),
        ("/admin/x/y", "/admin/*", YES),
        ("/administrator", "/admin/*", NO),
        ("/orders/7/items", "/orders/{id}/items", YES),
        ("/orders/7/8/items", "/orders/{id}/items", NO),
        ("/orders//items", "/orders/{id}/items", NO),
        ("/orders/7/items/1", "/orders/{id}/items/*", YES),
        ("/orders/{id}/items", "/orders/{id}/items", YES),
        ("/", "/", YES),
        ("/x", "/", NO),
        ("/x", "/*", YES),
        ("*", "/*", NO),
        ("*", "*", YES),
        ("/", "*", YES),
    ] {
        assert_eq!(Ask::path(path).both("paths", &[pattern]), expected, "{path} {pattern}");
        let negated = Ask::path(path).both("!paths", &[pattern]);
        assert_eq!(negated, (!expected.0, !expected.1), "not {path} {pattern}");
    }
}

#[test]
fn what_a_lenient_app_takes_for_the_same_path_is_denied_and_not_allowed() {
    for (path, pattern) in [
        ("/admin/", "/admin"),
        ("/admin", "/admin/"),
        ("/admin;v=1", "/admin"),
        ("/x;/admin", "/x/admin"),
        ("/;x/admin", "/admin"),
        ("/a%40b", "/a@b"),
        ("/a@b", "/a%40b"),
        ("/orders/7;x/items", "/orders/{id}/items/"),
    ] {
        let exact = Ask::path(path).both("paths", &[pattern]);
        assert_eq!(exact, UNCLEAR, "{path} {pattern}");
        assert_eq!(Ask::path(path).both("!paths", &[pattern]), UNCLEAR, "not {path} {pattern}");
    }
}

#[test]
fn hosts_match_whatever_their_case_dot_and_port() {
    let both = |host: &[u8], field, value: &str| {
        let host = Authority::parse(host).unwrap().host;
        Ask { host: (*host).into(), ..Ask::default() }.both(field, &[value])
    };
    for host in [&b"Secret.com"[..], b"secret.com.", b"secret.com:80", b"SECRET.COM.:443"] {
        assert_eq!(both(host, "hosts", "secret.com"), YES);
        assert_eq!(both(host, "hosts", "SECRET.com."), YES);
        assert_eq!(both(host, "!hosts", "secret.com"), NO);
        assert_eq!(both(host, "hosts", "*.com"), YES);
        assert_eq!(both(host, "hosts", "*.secret.com"), NO);
    }
    assert_eq!(both(b"xsecret.com", "hosts", "secret.com"), NO);
    assert_eq!(both(b"a.xsecret.com", "hosts", "*.secret.com"), NO);
    assert_eq!(both(b"[::1]:80", "hosts", "::1"), YES);
}

#[test]
fn without_a_host_nobody_knows_which_site_is_meant() {
    let nameless = Ask { host: String::new(), ..Ask::default() };
    assert_eq!(nameless.both("hosts", &["*"]), UNCLEAR);
    assert_eq!(nameless.both("!hosts", &["secret.com"]), UNCLEAR);
}

#[test]
fn each_value_of_a_header_counts() {
    let both = |lines: &[(&'static str, &str)], field, values| Ask::lines(lines).both(field, values);
    let role = "header:x-role";
    assert_eq!(both(&[("X-Role", "user")], role, &["user"]), YES);
    assert_eq!(both(&[("x-role", "admin")], role, &["user"]), NO);
    assert_eq!(both(&[], role, &["*"]), NO, "it is missing");
    assert_eq!(both(&[("x-role", "")], role, &["*"]), YES, "it is there");
    for lines in [
        &[("x-role", "user"), ("x-role", "admin")][..],
        &[("x-role", "admin"), ("x-role", "user")],
        &[("x-role", "user, admin")],
        &[("x-role", "admin ,user")],
        &[("x-role", "user,")],
    ] {
        assert_eq!(both(lines, role, &["user"]), UNCLEAR, "{lines:?}");
        assert_eq!(both(lines, "!header:x-role", &["user"]), UNCLEAR, "{lines:?}");
        assert_eq!(both(lines, role, &["user", "admin", ""]), YES, "{lines:?}");
    }
    assert_eq!(both(&[("x-role", "User")], role, &["user"]), UNCLEAR, "case");
    assert_eq!(both(&[("x-role", "a, b")], role, &["a, b"]), YES, "the whole line");
    assert_eq!(both(&[("x-role", "user-7")], role, &["user-*"]), YES);
    assert_eq!(both(&[("x-role", "user-7, admin")], role, &["user-*"]), UNCLEAR, "the rest of the list is not hidden");
    assert_eq!(both(&[], "!header:x-role", &["user"]), YES);
    assert_eq!(both(&[("cookie", "a=1; session=x")], "header:cookie", &["session=x"]), UNCLEAR);
}

#[test]
fn a_header_that_some_app_takes_for_the_same_is_denied_too_and_allows_nothing() {
    let both = |lines: &[(&'static str, &str)]| Ask::lines(lines).both("header:x-role", &["user"]);
    for name in ["x_role", "X_ROLE", "x.role", "x~role"] {
        assert_eq!(both(&[(name, "user")]), UNCLEAR, "{name}");
        assert_eq!(both(&[("x-role", "user"), (name, "admin")]), UNCLEAR, "{name}");
        assert_eq!(both(&[("x-role", "user"), (name, "user")]), YES, "{name}");
    }
    for name in ["xarole", "x-roles", "x--role", "role"] {
        assert_eq!(both(&[(name, "user")]), NO, "{name}");
    }
}

#[test]
fn claims_match_by_one_of_their_values_and_only_of_a_verified_token() {
    let claims = Claims::new([("groups", "dev"), ("groups", "ops"), ("realm.role", "admin")]).unwrap();
    let ask = Ask { claims: Some(claims), ..Ask::default() };
    assert_eq!(ask.both("claim:groups", &["ops"]), YES);
    assert_eq!(ask.both("claim:groups", &["Ops"]), NO);
    assert_eq!(ask.both("claim:realm.role", &["adm*"]), YES);
    assert_eq!(ask.both("claim:realm", &["*"]), NO);
    assert_eq!(ask.both("!claim:groups", &["ops"]), NO);
    assert_eq!(ask.both("!claim:groups", &["guest"]), YES);
    assert_eq!(Ask::default().both("claim:groups", &["*"]), NO, "there is no token");
    assert_eq!(Ask::default().both("!claim:groups", &["guest"]), UNCLEAR, "there is no token");
}
