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
    run::Signals,
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
    // A terminal that is left as it was drawn on is of no use: not by a signal either.
    let mut signals = Signals::new()?;
    let (keys, over) = keyboard();
    let (sender, answers) = mpsc::channel(1);
    let url = server.url().to_owned();
    let following = tokio::spawn(follow(server, path, lines, sender));
    let mut screen = ratatui::init();
    let shown = tokio::select! {
        shown = show(&mut screen, &url, answers, keys) => shown,
        _ = signals.next_end() => Ok(()),
    };
    following.abort();
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

/// A line of the API, or why there is none.
type Answered = Result<serde_json::Value, CallError>;

async fn show(
    screen: &mut ratatui::DefaultTerminal,
    url: &str,
    mut answers: mpsc::Receiver<Answered>,
    mut keys: mpsc::Receiver<Option<KeyEvent>>,
) -> anyhow::Result<()> {
    let mut top = Top::default();
    loop {
        screen.draw(|frame| draw::draw(frame, &top))?;
        tokio::select! {
            key = keys.recv() => match key {
                Some(Some(key)) => if top.pressed(key) { return Ok(()) },
                Some(None) => {}
                None => return Ok(()),
            },
            Some(line) = answers.recv() => top.came(line, url),
        }
    }
}

/// Lines as they come, on a new connection where the old one has ended. Apart from the keys, so that none of them makes
/// the wait for a connection begin anew.
async fn follow(server: Server, path: String, first: Lines, answers: mpsc::Sender<Answered>) {
    let mut lines = Some(first);
    loop {
        let answer = match &mut lines {
            Some(open) => open.next().await.transpose(),
            None => {
                tokio::time::sleep(AGAIN).await;
                match server.lines(&path).await {
                    Ok(open) => {
                        lines = Some(open);
                        continue;
                    }
                    Err(error) => Some(Err(error)),
                }
            }
        };
        if !matches!(answer, Some(Ok(_))) {
            lines = None;
        }
        if let Some(answer) = answer
            && answers.send(answer).await.is_err()
        {
            return;
        }
    }
}

impl Top {
    fn came(&mut self, line: Answered, url: &str) {
        let answer = line.map_err(anyhow::Error::from).and_then(|line| stat::answer(&line, url));
        match answer {
            Ok(answer) => {
                self.trouble = None;
                if !self.paused {
                    self.change(|top| top.answer = Some(answer));
                }
            }
            Err(error) => self.trouble = Some(format!("{error:#}")),
        }
    }

    /// Changes what is listed or its order: what was selected stays selected, wherever it is now.
    fn change(&mut self, change: impl FnOnce(&mut Self)) {
        let of = |item: &Item| (item.from.identity.clone(), item.caller(), item.called().to_owned());
        let selected = self.rows().get(self.selected).map(|item| of(item));
        change(self);
        let rows = self.rows();
        let now = selected.and_then(|selected| rows.iter().position(|item| of(item) == selected));
        self.selected = now.unwrap_or(self.selected).min(rows.len().saturating_sub(1));
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
                let next = match self.order {
                    Order::Rate => Order::Success,
                    Order::Success => Order::Slowest,
                    Order::Slowest => Order::Name,
                    Order::Name => Order::Rate,
                };
                self.change(|top| top.order = next);
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
