//! `weft top`: services and edges on a terminal, drawn anew with each look. `draw` paints; here are the state, the keys and
//! the connection, which is made again when it breaks.

mod draw;

use std::{
    io::IsTerminal as _,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::ensure;
use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;

use crate::{
    args,
    numbers::{Answer, Item},
    server::{CallError, Lines, Server, ServerArgs, with_query},
    stat,
};

/// How long the keyboard is waited for, and then whether the command is over.
const POLL: Duration = Duration::from_millis(100);
/// Before a broken connection is made again.
const AGAIN: Duration = Duration::from_secs(1);

/// Flags of `weft top`.
#[derive(Args, Clone, Debug)]
pub struct TopArgs {
    /// Only services of this namespace, and edges that begin or end in it
    #[arg(long, short, value_name = "NS")]
    pub namespace: Option<String>,
    /// Numbers are of this last time
    #[arg(long, value_name = "TIME", value_parser = args::any_duration, default_value = "10s")]
    pub window: Duration,
    /// Time between two looks
    #[arg(long, value_name = "TIME", value_parser = args::any_duration, default_value = "1s")]
    pub interval: Duration,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// What is listed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Pane {
    #[default]
    Services,
    Edges,
}

/// By what, the first first.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Order {
    Name,
    #[default]
    Rate,
    Success,
    Slowest,
}

/// What is shown.
#[derive(Debug, Default)]
struct Top {
    answer: Option<Answer>,
    /// Why there is no newer one.
    trouble: Option<String>,
    pane: Pane,
    order: Order,
    selected: usize,
    paused: bool,
}

/// Draws until `q` or Ctrl-C.
pub async fn run(args: TopArgs) -> anyhow::Result<ExitCode> {
    let terminal = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    ensure!(terminal, "top draws on a terminal, and this is none: use weft stat --watch");
    let server = Server::new(&args.server).await?;
    let path = path(&args);
    // The first answer may be a refusal: it is told before the screen is taken.
    let lines = server.lines(&path).await?;
    let (keys, over) = keyboard();
    let mut screen = ratatui::init();
    let shown = show(&mut screen, (&server, &path, lines), keys).await;
    over.store(true, Relaxed);
    ratatui::restore();
    shown.map(|()| ExitCode::SUCCESS)
}

fn path(args: &TopArgs) -> String {
    let seconds = |time: Duration| time.as_secs().max(1).to_string();
    let (window, interval) = (seconds(args.window), seconds(args.interval));
    let query = [
        ("watch", Some("true")),
        ("edges", Some("true")),
        ("window", Some(window.as_str())),
        ("interval", Some(interval.as_str())),
        ("namespace", args.namespace.as_deref()),
    ];
    with_query("/weft/v1/stat", &query)
}

/// Keys as they are pressed, and the flag that ends the reading of them.
fn keyboard() -> (mpsc::Receiver<Option<KeyEvent>>, Arc<AtomicBool>) {
    let (sender, keys) = mpsc::channel(16);
    let over = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&over);
    // Reading blocks.
    std::thread::spawn(move || {
        while !ends.load(Relaxed) {
            if !event::poll(POLL).unwrap_or(false) {
                continue;
            }
            let key = match event::read() {
                Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => Some(key),
                // Another size, above all: it is drawn anew.
                Ok(_) => None,
                Err(_) => return,
            };
            if sender.blocking_send(key).is_err() {
                return;
            }
        }
    });
    (keys, over)
}

async fn show(
    screen: &mut ratatui::DefaultTerminal,
    (server, path, lines): (&Server, &str, Lines),
    mut keys: mpsc::Receiver<Option<KeyEvent>>,
) -> anyhow::Result<()> {
    let mut top = Top::default();
    let mut lines = Some(lines);
    loop {
        screen.draw(|frame| draw::draw(frame, &top))?;
        tokio::select! {
            key = keys.recv() => match key {
                Some(Some(key)) => if top.pressed(key) { return Ok(()) },
                Some(None) => {}
                None => return Ok(()),
            },
            line = next(server, path, &mut lines) => top.came(line, server.url()),
        }
    }
}

/// The next line, of a new connection where the old one has ended.
async fn next(server: &Server, path: &str, lines: &mut Option<Lines>) -> Result<serde_json::Value, CallError> {
    loop {
        let Some(open) = lines else {
            tokio::time::sleep(AGAIN).await;
            *lines = Some(server.lines(path).await?);
            continue;
        };
        match open.next().await {
            Ok(Some(line)) => return Ok(line),
            Ok(None) => *lines = None,
            Err(error) => {
                *lines = None;
                return Err(error);
            }
        }
    }
}

impl Top {
    fn came(&mut self, line: Result<serde_json::Value, CallError>, url: &str) {
        let answer = line.map_err(anyhow::Error::from).and_then(|line| stat::answer(&line, url));
        match answer {
            Ok(answer) => {
                self.trouble = None;
                if !self.paused {
                    self.answer = Some(answer);
                }
            }
            Err(error) => self.trouble = Some(format!("{error:#}")),
        }
        self.selected = self.selected.min(self.rows().len().saturating_sub(1));
    }

    /// True when it is over.
    fn pressed(&mut self, key: KeyEvent) -> bool {
        let last = self.rows().len().saturating_sub(1);
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return true,
            KeyCode::Tab | KeyCode::Char('e') => {
                self.pane = if self.pane == Pane::Services { Pane::Edges } else { Pane::Services };
                self.selected = 0;
            }
            KeyCode::Char('s') => {
                self.order = match self.order {
                    Order::Rate => Order::Success,
                    Order::Success => Order::Slowest,
                    Order::Slowest => Order::Name,
                    Order::Name => Order::Rate,
                };
            }
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Down | KeyCode::Char('j') => self.selected = (self.selected + 1).min(last),
            KeyCode::Up | KeyCode::Char('k') => self.selected = self.selected.saturating_sub(1),
            KeyCode::Home => self.selected = 0,
            KeyCode::End => self.selected = last,
            _ => {}
        }
        false
    }

    /// What is listed, in order.
    fn rows(&self) -> Vec<&Item> {
        let Some(answer) = &self.answer else { return Vec::new() };
        let mut rows: Vec<&Item> = match self.pane {
            Pane::Services => answer.items.iter().collect(),
            Pane::Edges => answer.edges.iter().collect(),
        };
        let most = |value: fn(&Item) -> Option<f64>| {
            move |a: &&Item, b: &&Item| value(b).unwrap_or(-1.0).total_cmp(&value(a).unwrap_or(-1.0))
        };
        // The order that they come in is that of the names, and stays among equals.
        match self.order {
            Order::Name => {}
            Order::Rate => rows.sort_by(most(|item| item.requests_per_second)),
            Order::Success => rows.sort_by(most(|item| item.success_rate.map(|share| 1.0 - share))),
            Order::Slowest => rows.sort_by(most(|item| item.latency_ms.p99)),
        }
        rows
    }
}

#[cfg(test)]
mod tests;
