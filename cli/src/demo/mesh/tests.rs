//! The demo's objects and lifetimes.

use super::*;

#[test]
fn the_route_splits_a_hundred() {
    assert!(route(20).contains("weight: 80\n") && route(20).contains("weight: 20\n"));
    assert!(route(0).contains("weight: 100\n") && route(0).contains("weight: 0\n"));
}

#[test]
fn the_subsets_of_catalog_select_their_version() {
    let services = services();
    assert_eq!(services.matches("kind: Service").count(), 7);
    assert!(services.contains("    app: catalog\n    version: v2\n  ports:"));
    assert!(
        services.ends_with(
            "appProtocol: tcp\n  - name: http\n    port: 8080\n    targetPort: http\n    appProtocol: http\n"
        )
    );
}

#[test]
fn what_is_left_of_a_certificate_at_its_renewal_outlasts_the_control_planes_absence() {
    for seconds in [8, 20, 60, 600_u32] {
        let lifetime = f64::from(u32::try_from(svid_lifetime(Duration::from_secs(seconds.into()))).unwrap());
        // A second for the start of the control plane, and one for the end of connections before their certificate's.
        assert!(lifetime * 0.3 > f64::from(seconds) * 0.12 + 2.0, "{seconds}: {lifetime}");
        assert!(lifetime * 0.7 < f64::from(seconds), "{seconds}: {lifetime}");
    }
}
