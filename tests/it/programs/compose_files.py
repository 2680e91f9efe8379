"""Judges compose files, given as arguments or on standard input, by the types of the Compose Specification."""

import sys

from compose_spec import PyCompose

texts = [open(name, encoding="utf-8").read() for name in sys.argv[1:]] or [sys.stdin.read()]
for text in texts:
    try:
        services = PyCompose.from_yaml(text).services or {}
    except ValueError as error:
        print(f"not valid: {error}")
        sys.exit(1)
    print("ok", len(services))
