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

/// Paints the whole screen.
pub fn draw(frame: &mut Frame, top: &Top) {
    let [head, list, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(1), Constraint::Length(1)]).areas(frame.area());
    frame.render_widget(title(top), head);
    let rows = top.rows();
    let (heading, widths) = columns(top.pane);
    let cells = rows.iter().map(|item| match top.pane {
        Pane::Services => service(item),
        Pane::Edges => edge(item),
    });
    let table = Table::new(cells.collect::<Vec<_>>(), widths)
        .header(Row::new(heading).style(Style::new().add_modifier(Modifier::BOLD)))
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

fn columns(pane: Pane) -> (Vec<&'static str>, Vec<Constraint>) {
    let number = Constraint::Length(9);
    match pane {
        Pane::Services => (
            vec!["SERVICE", "RPS", "SUCCESS", "ACTUAL", "P50", "P95", "P99", "MTLS", "RETRIES", "TCP"],
            [vec![Constraint::Fill(1)], vec![number; 9]].concat(),
        ),
        Pane::Edges => (
            vec!["FROM", "TO", "MTLS", "RPS", "SUCCESS", "P99", "TCP"],
            [vec![Constraint::Fill(1), Constraint::Fill(1)], vec![number; 5]].concat(),
        ),
    }
}

fn service(item: &Item) -> Row<'static> {
    let [p50, p95, p99] = [item.latency_ms.p50, item.latency_ms.p95, item.latency_ms.p99].map(latency);
    Row::new([
        Cell::from(item.called().to_owned()),
        Cell::from(rate(item.requests_per_second)),
        success(item.success_rate),
        Cell::from(percent(item.actual_success_rate)),
        Cell::from(p50),
        Cell::from(p95),
        Cell::from(p99),
        secured(item),
        Cell::from(item.retries.to_string()),
        Cell::from(item.connections()),
    ])
}

fn edge(item: &Item) -> Row<'static> {
    Row::new([
        Cell::from(item.caller()),
        Cell::from(item.called().to_owned()),
        secured(item),
        Cell::from(rate(item.requests_per_second)),
        success(item.success_rate),
        Cell::from(latency(item.latency_ms.p99)),
        Cell::from(item.connections()),
    ])
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
