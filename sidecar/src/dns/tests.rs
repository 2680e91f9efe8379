//! The listener over real sockets, with a mesh that the test makes.

use weft_policy::model::Protocol;

use super::*;
use crate::discovery;

const A: [u8; 2] = [0, 1];
const AAAA: [u8; 2] = [0, 28];

fn query(name: &str, kind: [u8; 2]) -> Vec<u8> {
    let mut message = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).expect("short"));
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&kind);
    message.extend_from_slice(&[0, 1]);
    message
}

fn service(name: &str, virtual_ips: &[&str]) -> Service {
    Service {
        id: ObjectName::new("shop", name),
        hostnames: vec![],
        virtual_ips: virtual_ips.iter().map(|ip| ip.parse().expect("valid")).collect(),
        ports: vec![weft_policy::model::ServicePort {
            port: 80,
            name: "".into(),
            protocol: Protocol::Http,
            routing: None,
            direct: Arc::default(),
            backend: Arc::default(),
        }],
    }
}

/// A listener that knows `catalog` and `fixed`, and that there is no `none`.
fn start() -> (SocketAddr, watch::Sender<Arc<Snapshot>>, discovery::Demands, Arc<VirtualIps>) {
    let mut snapshot = Snapshot::default();
    for service in [service("catalog", &[]), service("fixed", &["10.96.0.1", "fd00::1"])] {
        snapshot.services.insert(service.id.clone(), Arc::new(service));
    }
    snapshot.absent.insert(ObjectName::new("shop", "none"));
    let snapshot = watch::Sender::new(Arc::new(snapshot));
    let ((demand, demands), ips) = (discovery::demand(), Arc::<VirtualIps>::default());
    let sockets = bind(0).expect("a port");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, sockets.port()));
    let dns = Dns::new("shop", snapshot.subscribe(), demand, Arc::clone(&ips), &Telemetry::default());
    tokio::spawn(dns.run(sockets));
    (address, snapshot, demands, ips)
}

async fn ask(address: SocketAddr, query: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    socket.send_to(query, address).await.expect("sent");
    let mut answer = vec![0; 512];
    let length = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut answer)).await.expect("in time");
    answer.truncate(length.expect("received"));
    answer
}

fn code(answer: &[u8]) -> (u8, u8) {
    (answer[3] & 0xf, answer[7])
}

#[tokio::test]
async fn every_form_of_a_services_name_leads_to_the_same_address() {
    let (address, _snapshot, _demands, ips) = start();
    let expected = ips.address(&ObjectName::new("shop", "catalog")).expect("room").octets();
    for name in ["catalog", "CATALOG.shop", "catalog.shop.svc.cluster.local", "catalog.shop.mesh"] {
        let answer = ask(address, &query(name, A)).await;
        assert_eq!(code(&answer), (0, 1), "{name}");
        assert_eq!(answer[answer.len() - 4..], expected, "{name}");
        assert_eq!(code(&ask(address, &query(name, AAAA)).await), (0, 0), "no data: {name}");
    }
    let answer = ask(address, &query("fixed", AAAA)).await;
    assert_eq!((code(&answer), answer.last()), ((0, 1), Some(&1)), "its own address");
}

#[tokio::test]
async fn a_name_of_our_zone_that_no_service_has_does_not_exist() {
    let (address, _snapshot, _demands, _ips) = start();
    for name in ["none.shop.mesh", "a.b.c.mesh"] {
        assert_eq!(code(&ask(address, &query(name, A)).await), (3, 0), "{name}");
    }
    // Nobody can say: the control plane was never there.
    assert_eq!(code(&ask(address, &query("other.shop.mesh", A)).await), (2, 0));
}

#[tokio::test]
async fn a_service_that_nobody_asked_for_before_is_waited_for() {
    let (address, snapshot, mut demands, _ips) = start();
    let _reached = demands.reached();
    let answers = async {
        let mut wanted = Vec::new();
        demands.recv_many(&mut wanted, 1).await;
        assert_eq!(wanted, [discovery::Wanted::Service(ObjectName::new("shop", "late"))]);
        let mut now = Snapshot::default();
        now.services.insert(ObjectName::new("shop", "late"), Arc::new(service("late", &[])));
        snapshot.send_replace(Arc::new(now));
    };
    let question = query("late", A);
    let (answer, ()) = tokio::join!(ask(address, &question), answers);
    assert_eq!(code(&answer), (0, 1));
}

#[tokio::test]
async fn over_tcp_one_query_follows_the_other() {
    let (address, _snapshot, _demands, _ips) = start();
    let mut io = TcpStream::connect(address).await.expect("listening");
    for name in ["catalog", "fixed"] {
        let message = query(name, A);
        io.write_u16(u16::try_from(message.len()).expect("short")).await.expect("written");
        io.write_all(&message).await.expect("written");
        let mut answer = vec![0; usize::from(io.read_u16().await.expect("a length"))];
        io.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(code(&answer), (0, 1), "{name}");
    }
}
