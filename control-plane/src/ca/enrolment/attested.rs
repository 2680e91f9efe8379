//! What was attested of a workload beside its identity: its name and its labels. It is bound to the certificate, as an
//! extension that each renewal copies, so it needs no look-up and cannot get lost with a file; the registration that is
//! made with the certificate must match it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use weft_proto::v1::Registration;
use x509_parser::{
    der_parser::asn1_rs::{FromDer, Utf8String},
    oid_registry::Oid,
    prelude::X509Certificate,
};

/// Object identifier of the extension: below 2.25, where nobody registers, with a random number. It is not critical:
/// peers have no use for it.
pub const OID: [u64; 3] = [2, 25, 7_241_663_958_140_372_519];
/// Bytes of the extension: it is in every handshake.
pub const MAX_BYTES: usize = 1024;
/// Characters behind the name of an app, and which: `weft run` makes instance names of them.
const SUFFIX: (usize, &str) = (5, "bcdfghjklmnpqrstvwxz2456789");

/// What a certificate says of its workload. Empty: nothing, and then it may be anything of its identity.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Attested {
    /// Its name, or that of the app of which it is an instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// All of its labels; empty: any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Attested {
    /// Reads it from a leaf certificate whose chain was verified; empty when there is none.
    ///
    /// # Errors
    /// When there is one that cannot be understood: what it was to restrict is not known then.
    pub fn of(leaf: &CertificateDer<'_>) -> Result<Self> {
        let (_, certificate) = X509Certificate::from_der(leaf).context("leaf certificate")?;
        let oid = Oid::from(&OID).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let mut found = certificate.extensions().iter().filter(|extension| extension.oid == oid);
        let Some(extension) = found.next() else { return Ok(Self::default()) };
        if found.next().is_some() {
            bail!("the certificate says twice what was attested");
        }
        let text = match Utf8String::from_der(extension.value) {
            Ok(([], text)) => text.string(),
            _ => bail!("what the certificate attests is no text"),
        };
        serde_json::from_str(&text).context("what the certificate attests")
    }

    /// Content of the extension, a DER UTF8String; none when there is nothing to say.
    ///
    /// # Errors
    /// When it is longer than [`MAX_BYTES`].
    pub fn extension(&self) -> Result<Option<Vec<u8>>> {
        if *self == Self::default() {
            return Ok(None);
        }
        let text = serde_json::to_vec(self)?;
        let length = u16::try_from(text.len()).ok().filter(|length| usize::from(*length) <= MAX_BYTES);
        let length = length.with_context(|| format!("name and labels take {} of {MAX_BYTES} bytes", text.len()))?;
        let [high, low] = length.to_be_bytes();
        // DER wants the shortest form of the length.
        let mut der = match (high, low) {
            (0, 0..=127) => vec![0x0c, low],
            (0, _) => vec![0x0c, 0x81, low],
            _ => vec![0x0c, 0x82, high, low],
        };
        der.extend(text);
        Ok(Some(der))
    }

    /// Whether a workload may describe itself like this.
    ///
    /// # Errors
    /// What it says and was not attested.
    pub fn allows(&self, registration: &Registration) -> Result<(), String> {
        if let Some(name) = self.name.as_ref().filter(|name| !is_instance(&registration.name, name)) {
            return Err(format!(
                "its certificate is for the workload {name:?} and not for {:?}: enrol it with a token for that name",
                registration.name
            ));
        }
        let (attested, said) = (&self.labels, &registration.labels);
        if attested.is_empty() || (attested.len() == said.len() && attested.iter().all(|(k, v)| said.get(k) == Some(v)))
        {
            return Ok(());
        }
        let of = said.iter().collect::<BTreeMap<_, _>>();
        Err(format!(
            "its certificate is for the labels {attested:?} and not for {of:?}: a token binds all labels or none"
        ))
    }
}

impl Attested {
    /// Whether all that decides which Services and policies mean a workload was attested: its name, and its labels
    /// beside `app`, which `weft run` makes of that name.
    ///
    /// # Errors
    /// What it says of itself alone.
    pub fn proves(&self, registration: &Registration) -> Result<(), String> {
        let how = "enrol it with a token for them: weft token create --name NAME --label KEY=VALUE";
        let Some(name) = &self.name else {
            return Err(format!(
                "its certificate says neither its name nor its labels, and --attested-labels-only wants them: {how}"
            ));
        };
        let alone = |(key, value): &(&String, &String)| {
            self.labels.get(*key) != Some(value) && (*key, *value) != (&"app".to_owned(), name)
        };
        match registration.labels.iter().find(alone) {
            Some((key, value)) => Err(format!(
                "its certificate does not say the label {key}={value}, and --attested-labels-only wants it: {how}"
            )),
            None => Ok(()),
        }
    }
}

/// Whether `name` is `app` itself or one of its instances as `weft run` names them.
fn is_instance(name: &str, app: &str) -> bool {
    let suffix = name.strip_prefix(app).and_then(|rest| rest.strip_prefix('-'));
    name == app || suffix.is_some_and(|rest| rest.len() == SUFFIX.0 && rest.chars().all(|c| SUFFIX.1.contains(c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attested(name: Option<&str>, labels: &[(&str, &str)]) -> Attested {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Attested { name: name.map(str::to_owned), labels }
    }

    fn registration(name: &str, labels: &[(&str, &str)]) -> Registration {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Registration { name: name.into(), labels, ..Registration::default() }
    }

    #[test]
    fn a_name_stands_for_itself_and_for_the_instances_of_weft_run() {
        let web = attested(Some("web"), &[]);
        for good in ["web", "web-bcdfg", "web-x7z29"] {
            assert_eq!(web.allows(&registration(good, &[("any", "label")])), Ok(()), "{good}");
        }
        for bad in ["", "we", "webs", "web-", "web-db", "web-bcdfgh", "web-admin", "web-1bcdf", "x-web", "web.bcdfg"] {
            assert!(web.allows(&registration(bad, &[])).is_err(), "{bad}");
        }
    }

    #[test]
    fn attested_labels_are_all_labels() {
        let web = attested(None, &[("app", "web"), ("tier", "front")]);
        assert_eq!(web.allows(&registration("any", &[("tier", "front"), ("app", "web")])), Ok(()));
        for bad in [
            &[][..],
            &[("app", "web")],
            &[("app", "web"), ("tier", "back")],
            &[("app", "web"), ("tier", "front"), ("role", "db")],
            &[("app", "web"), ("Tier", "front")],
        ] {
            assert!(web.allows(&registration("any", bad)).is_err(), "{bad:?}");
        }
        assert_eq!(Attested::default().allows(&registration("any", &[("a", "b")])), Ok(()), "nothing was attested");
    }

    #[test]
    fn an_extension_of_any_length_is_read_as_it_was_written_and_one_that_is_too_long_is_not_written() {
        assert_eq!(Attested::default().extension().expect("short"), None);
        for length in [0, 100, 110, 120, 200, 240, 260, 900] {
            let value = "v".repeat(length);
            let attested = attested(Some("web"), &[("app", &value)]);
            let der = attested.extension().expect("short").expect("something");
            let (rest, text) = Utf8String::from_der(&der).expect("DER");
            assert!(rest.is_empty());
            assert_eq!(serde_json::from_str::<Attested>(&text.string()).expect("JSON"), attested);
        }
        assert!(attested(None, &[("app", &"v".repeat(MAX_BYTES))]).extension().is_err());
    }
}
