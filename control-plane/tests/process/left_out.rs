//! Tests that cannot run here say so, and write a line into the file that `WEFT_LEFT_OUT` names, which the gate reads.

use std::io::Write;

/// Says that `test` is left out.
pub fn left_out(test: &str, why: &str) {
    let line = format!("left out: {test}: {why}\n");
    eprint!("{line}");
    if let Some(file) = std::env::var_os("WEFT_LEFT_OUT") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(file);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("WEFT_LEFT_OUT is writable");
    }
}
