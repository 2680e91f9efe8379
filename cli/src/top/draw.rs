//! The screen of `weft top`: a line of what it is of, the list, a line of keys.

use ratatui::{
    Frame,
    layout::{Constraint, Layout},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Cell, Row, Table, TableState},
};

use super::{Order, Pane, Top};
use crate::numbers::{Item, latency, percent, rate};

const KEYS: &str = "q quit  tab services/edges  s order  p pause  up/down select";

/// Columns from which on everything is shown; on a narrower screen names would have no room.
const WIDE: u16 = 110;

struct Column {
    heading: &'static str,
    cell: fn(&Item) -> Cell<'static>,
    /// It has what room there is.
    is_name: bool,
    /// A narrow screen is without it.
    spared: bool,
}

/// Paints the whole screen.
pub fn draw(frame: &mut Frame, top: &Top) {
    let [head, list, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(1), Constraint::Length(1)]).areas(frame.area());
    frame.render_widget(title(top), head);
    let rows = top.rows();
    let narrow = list.width < WIDE;
    let columns: Vec<&Column> = columns(top.pane).iter().filter(|column| !(narrow && column.spared)).collect();
    let cells = rows.iter().map(|item| Row::new(columns.iter().map(|column| (column.cell)(item))));
    let widths = columns.iter().map(|column| if column.is_name { Constraint::Fill(1) } else { Constraint::Length(9) });
    let heading = Row::new(columns.iter().map(|column| column.heading));
    let table = Table::new(cells.collect::<Vec<_>>(), widths)
        .header(heading.style(Style::new().add_modifier(Modifier::BOLD)))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let selected = (!rows.is_empty()).then_some(top.selected);
    frame.render_stateful_widget(table, list, &mut TableState::new().with_selected(selected));
    frame.render_widget(last(top), foot);
}

fn title(top: &Top) -> Line<'static> {
    let what = match top.pane {
        Pane::Services => "services",
        Pane::Edges => "edges",
    };
    let order = match top.order {
        Order::Name => "name",
        Order::Rate => "requests per second",
        Order::Success => "failures",
        Order::Slowest => "p99",
    };
    let about = top.answer.as_ref().map_or_else(|| "measuring".to_owned(), |answer| answer.about());
    let mut spans = vec![
        Span::styled(format!("weft top: {what}"), Style::new().add_modifier(Modifier::BOLD)),
        Span::raw(format!(" by {order}, {about}")),
    ];
    if top.paused {
        spans.push(Span::styled(" [paused]", Style::new().fg(Color::Yellow)));
    }
    if top.trouble.is_some() {
        spans.push(Span::styled(" [old]", Style::new().fg(Color::Red)));
    }
    Line::from(spans)
}

/// What is wrong, else the keys: a line of its own, of which a narrow screen shows the beginning.
fn last(top: &Top) -> Line<'static> {
    let missing = top.answer.as_ref().and_then(|answer| answer.missing());
    match top.trouble.clone().or(missing) {
        Some(trouble) => Line::styled(trouble, Style::new().fg(Color::Red)),
        None => Line::styled(KEYS, Style::new().fg(Color::DarkGray)),
    }
}

const fn column(heading: &'static str, cell: fn(&Item) -> Cell<'static>) -> Column {
    Column { heading, cell, is_name: false, spared: false }
}

const fn named(heading: &'static str, cell: fn(&Item) -> Cell<'static>) -> Column {
    Column { is_name: true, ..column(heading, cell) }
}

const fn spared(heading: &'static str, cell: fn(&Item) -> Cell<'static>) -> Column {
    Column { spared: true, ..column(heading, cell) }
}

const fn columns(pane: Pane) -> &'static [Column] {
    const SERVICES: &[Column] = &[
        named("SERVICE", |item| Cell::from(item.called().to_owned())),
        column("RPS", |item| Cell::from(rate(item.requests_per_second))),
        column("SUCCESS", |item| success(item.success_rate)),
        spared("ACTUAL", |item| Cell::from(percent(item.actual_success_rate))),
        spared("P50", |item| Cell::from(latency(item.latency_ms.p50))),
        column("P95", |item| Cell::from(latency(item.latency_ms.p95))),
        column("P99", |item| Cell::from(latency(item.latency_ms.p99))),
        column("MTLS", secured),
        spared("RETRIES", |item| Cell::from(item.retries.to_string())),
        spared("TCP", |item| Cell::from(item.connections())),
    ];
    const EDGES: &[Column] = &[
        named("FROM", |item| Cell::from(item.caller())),
        named("TO", |item| Cell::from(item.called().to_owned())),
        column("MTLS", secured),
        column("RPS", |item| Cell::from(rate(item.requests_per_second))),
        column("SUCCESS", |item| success(item.success_rate)),
        column("P99", |item| Cell::from(latency(item.latency_ms.p99))),
        spared("TCP", |item| Cell::from(item.connections())),
    ];
    match pane {
        Pane::Services => SERVICES,
        Pane::Edges => EDGES,
    }
}

fn success(share: Option<f64>) -> Cell<'static> {
    let color = match share {
        Some(share) if share >= 1.0 => Color::Green,
        Some(share) if share >= 0.99 => Color::Reset,
        Some(share) if share >= 0.9 => Color::Yellow,
        Some(_) => Color::Red,
        None => Color::Reset,
    };
    Cell::from(percent(share)).style(Style::new().fg(color))
}

fn secured(item: &Item) -> Cell<'static> {
    let color = match item.mtls_share {
        Some(share) if share >= 1.0 => Color::Green,
        Some(_) => Color::Yellow,
        None => Color::Reset,
    };
    Cell::from(item.secured()).style(Style::new().fg(color))
}
