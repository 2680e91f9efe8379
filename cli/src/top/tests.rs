use ratatui::{Terminal, backend::TestBackend, style::Color};
use serde_json::{Value, json};

use super::*;

fn item(service: &str, rps: f64, success: f64, p99: f64) -> Value {
    json!({
        "service": service, "requests": 10, "successRate": success, "actualSuccessRate": 0.5, "mtlsShare": 1.0,
        "requestsPerSecond": rps, "latencyMs": {"p50": 1.0, "p95": 2.0, "p99": p99}, "retries": 4,
        "tcp": {"open": 1, "closed": 2},
    })
}

fn line() -> Value {
    let mut edge = item("", 7.0, 1.0, 3.0);
    edge["from"] = json!({"namespace": "shop", "name": "web", "identity": "spiffe://x"});
    edge["to"] = json!({"service": "shop/catalog:80"});
    edge["mtlsShare"] = json!(0.0);
    json!({
        "window": {"seconds": 9.96}, "sidecars": {"counted": 8, "silent": 0},
        "items": [item("shop/a:80", 5.0, 1.0, 3.0), item("shop/b:80", 50.0, 0.8, 9.0), item("shop/c:80", 0.0, 0.95, 90.0)],
        "edges": [edge],
    })
}

fn top() -> Top {
    let mut top = Top::default();
    top.came(Ok(line()), "http://x");
    top
}

fn press(top: &mut Top, code: KeyCode) -> bool {
    top.pressed(KeyEvent::new(code, KeyModifiers::NONE))
}

fn screen(top: &Top, width: u16) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, 8)).unwrap();
    terminal.draw(|frame| draw::draw(frame, top)).unwrap();
    terminal
}

fn text(terminal: &Terminal<TestBackend>) -> Vec<String> {
    let buffer = terminal.backend().buffer();
    let row = |y| (0..buffer.area.width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..buffer.area.height).map(row).collect()
}

#[test]
fn services_are_drawn_with_the_busiest_first() {
    let terminal = screen(&top(), 110);
    let lines = text(&terminal);
    assert_eq!(lines[0], "weft top: services by requests per second, over the last 10.0 s, 8 sidecars");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        words(&lines[1]),
        ["SERVICE", "RPS", "SUCCESS", "ACTUAL", "P50", "P95", "P99", "MTLS", "RETRIES", "TCP"]
    );
    let busiest = ["shop/b:80", "50.0", "80.00", "%", "50.00", "%", "1.0ms", "2.0ms", "9.0ms", "mTLS", "4", "1+2"];
    assert_eq!(words(&lines[2]), busiest);
    assert!(lines[3].starts_with("shop/a:80") && lines[4].starts_with("shop/c:80"), "{lines:#?}");
    assert!(lines[7].starts_with("q quit"), "{lines:#?}");
    let buffer = terminal.backend().buffer();
    let colors: Vec<Color> = (0..110).map(|x| buffer[(x, 2)].fg).collect();
    assert!(colors.contains(&Color::Red) && colors.contains(&Color::Green), "80 % is bad news, mTLS is good");
}

#[test]
fn edges_are_drawn_with_whether_they_are_secured() {
    let mut top = top();
    assert!(!press(&mut top, KeyCode::Tab));
    let lines = text(&screen(&top, 110));
    assert!(lines[0].starts_with("weft top: edges"), "{lines:#?}");
    let row: Vec<&str> = lines[2].split_whitespace().collect();
    assert_eq!(row, ["shop/web", "shop/catalog:80", "plaintext", "7.0", "100.00", "%", "3.0ms", "1+2"]);
}

#[test]
fn a_terminal_of_eighty_columns_shows_whose_numbers_they_are() {
    let lines = text(&screen(&top(), 80));
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&lines[1]), ["SERVICE", "RPS", "SUCCESS", "P95", "P99", "MTLS"]);
    assert_eq!(words(&lines[2]), ["shop/b:80", "50.0", "80.00", "%", "2.0ms", "9.0ms", "mTLS"]);
}

#[test]
fn a_screen_that_is_too_small_is_no_panic() {
    for width in [1, 5, 20, 60] {
        let terminal = screen(&top(), width);
        assert_eq!(terminal.backend().buffer().area.width, width);
    }
}

#[test]
fn keys_order_select_pause_and_end() {
    let mut top = top();
    let first = |top: &Top| top.rows()[0].called().to_owned();
    press(&mut top, KeyCode::Char('s'));
    assert_eq!((top.order, first(&top).as_str()), (Order::Success, "shop/b:80"), "the most failures first");
    press(&mut top, KeyCode::Char('s'));
    assert_eq!((top.order, first(&top).as_str()), (Order::Slowest, "shop/c:80"));
    press(&mut top, KeyCode::Char('s'));
    assert_eq!((top.order, first(&top).as_str()), (Order::Name, "shop/a:80"));
    for _ in 0..9 {
        press(&mut top, KeyCode::Down);
    }
    assert_eq!(top.selected, 2, "not beyond the last");
    press(&mut top, KeyCode::Char('p'));
    top.came(Ok(json!({"items": []})), "http://x");
    assert_eq!(top.rows().len(), 3, "paused");
    assert!(text(&screen(&top, 120))[0].ends_with("[paused]"));
    press(&mut top, KeyCode::Char('p'));
    top.came(Ok(json!({"items": []})), "http://x");
    assert_eq!((top.rows().len(), top.selected), (0, 0));
    assert!(press(&mut top, KeyCode::Char('q')));
    assert!(top.pressed(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
}

#[test]
fn trouble_is_told_and_the_last_numbers_stay() {
    let mut top = top();
    top.came(Err(CallError::Nonsense { method: http::Method::GET, url: "u".into(), why: "gone".into() }), "http://x");
    // On a narrow screen too.
    let lines = text(&screen(&top, 80));
    assert!(lines[7].contains("GET u: gone"), "{lines:#?}");
    assert!(lines[2].starts_with("shop/b:80"), "{lines:#?}");
    top.came(Ok(line()), "http://x");
    assert!(text(&screen(&top, 80))[7].starts_with("q quit"));
}

#[test]
fn what_is_selected_stays_selected_when_the_order_changes() {
    let mut top = top();
    let selected = |top: &Top| top.rows()[top.selected].called().to_owned();
    assert_eq!(selected(&top), "shop/b:80", "the busiest");
    let mut calm = line();
    calm["items"][1]["requestsPerSecond"] = json!(0.5);
    top.came(Ok(calm), "http://x");
    assert_eq!((selected(&top).as_str(), top.selected), ("shop/b:80", 1));
    press(&mut top, KeyCode::Char('s'));
    assert_eq!((selected(&top).as_str(), top.selected), ("shop/b:80", 0), "it fails most");
    let mut gone = line();
    gone["items"] = json!([item("shop/a:80", 1.0, 1.0, 1.0)]);
    top.came(Ok(gone), "http://x");
    assert_eq!(selected(&top), "shop/a:80");
}
