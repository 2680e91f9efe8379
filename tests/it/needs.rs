//! What a test needs from outside. Where it is missing the test is left out: it says so, and writes a line into the
//! file that `WEFT_LEFT_OUT` names, which the gate reads.

use std::{io::Write, path::Path, process::Command};

/// Whether `test` is left out for want of a program that can be run with `args`.
pub fn program(test: &str, name: &str, args: &[&str]) -> bool {
    let runs = Command::new(name).args(args).output();
    match runs {
        Ok(output) if output.status.success() || name == "wrk" => false,
        Ok(output) => left_out(test, &format!("{name} {}: {}", args.join(" "), tail(&output.stderr))),
        Err(error) => left_out(test, &format!("{name} is not installed: {error}")),
    }
}

/// Whether `test` is left out for want of a Python module.
pub fn python(test: &str, module: &str) -> bool {
    program(test, "python3", &["-c", &format!("import {module}")])
}

/// Whether `test` is left out for want of Linux's /proc.
pub fn proc(test: &str) -> bool {
    !Path::new("/proc/self/status").exists() && left_out(test, "there is no /proc here")
}

/// Whether `test` is left out for want of root.
pub fn root(test: &str) -> bool {
    !rustix::process::geteuid().is_root() && left_out(test, "it makes network namespaces, and this is not root")
}

fn tail(text: &[u8]) -> String {
    String::from_utf8_lossy(text).trim().lines().last().unwrap_or_default().to_owned()
}

fn left_out(test: &str, why: &str) -> bool {
    let line = format!("left out: {test}: {why}\n");
    eprint!("{line}");
    if let Some(file) = std::env::var_os("WEFT_LEFT_OUT") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(file);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("WEFT_LEFT_OUT is writable");
    }
    true
}
