//! What people see beside the result: colours (on terminals only, NO_COLOR is respected), warnings, notes on waiting.

use std::{future::Future, io::IsTerminal as _, time::Duration};

use anstyle::{AnsiColor, Style};

/// Words that are good news.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// Words that ask for attention.
pub const WARNING: Style = AnsiColor::Yellow.on_default();
/// Words that are bad news.
pub const BAD: Style = AnsiColor::Red.on_default();
/// Headings.
pub const STRONG: Style = Style::new().bold();

/// `text` in a style. Printed with `anstream`, it is plain where colours do not belong.
pub fn paint(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// Prints a warning.
pub fn warn(text: &str) {
    anstream::eprintln!("{WARNING}Warning:{WARNING:#} {text}");
}

/// Prints what failed.
pub fn fail(text: &str) {
    anstream::eprintln!("{BAD}weft:{BAD:#} {text}");
}

/// Columns of the terminal that standard output is, if it is one.
pub fn width() -> Option<usize> {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(&stdout).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// Awaits a future; when it takes longer than `silence`, the terminal shows `note` until it is done.
pub async fn told<T>(silence: Duration, note: &str, future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    tokio::select! {
        result = &mut future => return result,
        () = tokio::time::sleep(silence), if std::io::stderr().is_terminal() => eprint!("{note} ..."),
    }
    let result = future.await;
    // To the start of the line, and clear it.
    eprint!("\r\x1b[K");
    result
}
