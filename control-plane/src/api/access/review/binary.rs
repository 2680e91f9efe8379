//! A SelfSubjectAccessReview in protobuf, as kubectl sends it whatever the server offers: the parts of
//! k8s.io/api/authorization/v1 and of the envelope (`runtime.Unknown` behind four bytes) that are of use here.

use prost::Message;

use super::{Attributes, PathAttributes, Spec};

/// What every Kubernetes message in protobuf begins with.
const MAGIC: &[u8] = b"k8s\0";

#[derive(Clone, Message)]
struct Unknown {
    #[prost(bytes = "vec", tag = "2")]
    raw: Vec<u8>,
}

#[derive(Clone, Message)]
struct Review {
    #[prost(message, optional, tag = "2")]
    spec: Option<ReviewSpec>,
}

#[derive(Clone, Message)]
struct ReviewSpec {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, optional, tag = "2")]
    path: Option<Path>,
}

#[derive(Clone, Message)]
struct Resource {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(string, tag = "2")]
    verb: String,
    #[prost(string, tag = "3")]
    group: String,
    #[prost(string, tag = "5")]
    resource: String,
    #[prost(string, tag = "7")]
    name: String,
}

#[derive(Clone, Message)]
struct Path {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(string, tag = "2")]
    verb: String,
}

/// The question of a review; none when these bytes are no review in protobuf.
pub fn spec(bytes: &[u8]) -> Option<Spec> {
    let unknown = Unknown::decode(bytes.strip_prefix(MAGIC)?).ok()?;
    let ReviewSpec { resource, path } = Review::decode(unknown.raw.as_slice()).ok()?.spec?;
    Some(Spec {
        resource_attributes: resource.map(|Resource { namespace, verb, group, resource, name }| Attributes {
            namespace,
            verb,
            group,
            resource,
            name,
        }),
        non_resource_attributes: path.map(|Path { path, verb }| PathAttributes { path, verb }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(spec: ReviewSpec) -> Vec<u8> {
        let raw = Review { spec: Some(spec) }.encode_to_vec();
        [MAGIC, &Unknown { raw }.encode_to_vec()].concat()
    }

    #[test]
    fn a_review_is_read_and_what_is_none_is_not() {
        let resource = Resource { verb: "get".into(), resource: "services".into(), ..Resource::default() };
        let bytes = sent(ReviewSpec { resource: Some(resource), path: None });
        let read = spec(&bytes).and_then(|spec| spec.resource_attributes).expect("a review");
        assert_eq!((read.verb.as_str(), read.resource.as_str()), ("get", "services"));
        assert!(spec(&bytes[1..]).is_none() && spec(&bytes[..bytes.len() - 1]).is_none() && spec(b"{}").is_none());
    }
}
