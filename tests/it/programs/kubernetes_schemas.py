"""Validates the manifests on standard input against the schemas that Kubernetes publishes, strictly: a field that a
schema does not know is an error. Arguments: versions, such as 1.33. Prints how many objects were valid."""

import sys

import kubernetes_validate
import yaml


def objects(documents):
    for document in documents:
        if document and document["kind"].endswith("List"):
            yield from objects(document["items"])
        elif document and not document["apiVersion"].startswith("example.com/"):
            yield document


valid, wrong = 0, []
for manifest in list(objects(yaml.safe_load_all(sys.stdin))):
    for version in sys.argv[1:]:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
            valid += 1
        except kubernetes_validate.ValidationError as error:
            place = "/".join(map(str, error.path))
            wrong.append(f"{version}: {manifest['kind']} {manifest['metadata']['name']}: {place}: {error.message}")
print("\n".join(wrong) if wrong else f"ok {valid}")
sys.exit(bool(wrong))
