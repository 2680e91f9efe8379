//! An inbound connection or tunnel and what it has been let in to, and all of them of one worker: when the configuration
//! changes, each is judged again, and what is not allowed any more ends.

use std::{
    cell::RefCell,
    net::IpAddr,
    rc::{Rc, Weak},
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderMap, HeaderValue, Method, uri::PathAndQuery};
use slab::Slab;
use weft_policy::{
    authorize::{Caller, Operation},
    canonical::Authority,
    claims::Claims,
    model::{InboundPort, Protocol, Target, Telemetry, WorkloadConfig},
    trace::SpanId,
};
use weft_svid::PeerIdentity;

use super::{
    app_port,
    books::Book,
    declared, jwt, limit,
    permit::{self, Judged, Refused},
    unknown_port,
};
use crate::{
    app::worker::{InFlight, InboundMetrics, Worker},
    error::{ProxyError, Reason},
    live::Cut,
    snapshot::SnapshotReader,
    telemetry::{
        span::Kind,
        trace::{OpenSpan, Traced},
    },
};

/// Connections that are judged again before others get the thread: signatures of tokens may have to be verified.
const CHECKS: usize = 16;

/// A connection of a caller, or one of its tunnels.
pub struct Connection {
    /// The peer's identity; `None` in plaintext.
    pub peer: Option<PeerIdentity>,
    /// The peer's address.
    pub source: IpAddr,
    /// What the app is told of the peer, in `x-forwarded-client-cert`; `None` in plaintext and for tunnels.
    pub told: Option<HeaderValue>,
    leads_to: LeadsTo,
    snapshot: RefCell<SnapshotReader>,
    /// The app port as of one inbound configuration; looked up anew when another one has come.
    app: RefCell<Option<Rc<App>>>,
    /// What it is doing: each thing that a permit was given for.
    flights: RefCell<Slab<Flight>>,
    /// The whole of it ends.
    end: Cut<Reason>,
    place: (Rc<Admitted>, usize),
}

/// The connections of one worker.
#[derive(Default)]
pub struct Admitted(RefCell<Slab<Weak<Connection>>>);

/// What a connection says of where it leads.
pub enum LeadsTo {
    /// A plaintext front: this port of the app.
    Port(u16),
    /// The mesh listener: the service port that the SNI or the authority of a tunnel names.
    Service(Option<Target>),
}

/// A port of the app, as of one inbound configuration.
pub struct App {
    pub port: u16,
    pub protocol: Protocol,
    pub metrics: Rc<InboundMetrics>,
    pub limits: Arc<[limit::Limit]>,
    pub authenticators: Rc<[Rc<jwt::Authenticator>]>,
    /// What callers must not say here.
    pub reserved: Option<Rc<jwt::Reserved>>,
    pub book: Rc<Book>,
    workload: Arc<WorkloadConfig>,
}

/// One request, or the bytes of an opaque connection, at a port of the app.
struct Flight {
    port: u16,
    /// `None`: bytes.
    head: Option<Head>,
    cut: Cut<Reason>,
    _active: Option<InFlight>,
}

/// What it takes to judge a request again. Nothing here is copied but counted, unless policies look at more than that.
pub struct Head {
    method: Method,
    path: PathAndQuery,
    host: HeaderValue,
    claims: Option<Rc<Claims>>,
    shown: jwt::Shown,
    /// Where policies look at headers.
    headers: Option<Box<HeaderMap>>,
}

impl Connection {
    /// A connection, among those of the worker while it lives.
    pub fn new(
        worker: &Worker,
        peer: Option<PeerIdentity>,
        source: IpAddr,
        leads_to: LeadsTo,
        told: Option<HeaderValue>,
    ) -> Rc<Self> {
        Rc::new_cyclic(|weak| Self {
            peer,
            source,
            told,
            leads_to,
            snapshot: RefCell::new(worker.snapshot()),
            app: RefCell::default(),
            flights: RefCell::default(),
            end: Cut::default(),
            place: (Rc::clone(&worker.admitted), worker.admitted.0.borrow_mut().insert(Weak::clone(weak))),
        })
    }

    /// Who calls.
    pub fn caller(&self) -> Caller<'_> {
        Caller { id: self.peer.as_ref().map(|peer| &peer.id), address: self.source }
    }

    /// Waits until all of it must end.
    pub async fn ended(&self) -> Reason {
        self.end.fired().await
    }

    /// The port of the app to which it leads now.
    pub fn app(&self, worker: &Worker) -> Result<Rc<App>, ProxyError> {
        let mut snapshot = self.snapshot.borrow_mut();
        let Some(workload) = snapshot.load().workload.as_ref() else {
            return Err(ProxyError::unsent(Reason::NotReady, "the inbound configuration has not arrived yet"));
        };
        let mut cached = self.app.borrow_mut();
        if let Some(app) = &*cached
            && Arc::ptr_eq(&app.workload, workload)
        {
            return Ok(Rc::clone(app));
        }
        let port = match &self.leads_to {
            LeadsTo::Port(number) => {
                declared(workload, *number).ok_or_else(|| unknown_port(&format!("port {number}")))?
            }
            LeadsTo::Service(target) => {
                let port = target.as_ref().and_then(|target| app_port(workload, target));
                port.ok_or_else(|| unknown_port("the service name"))?
            }
        };
        let services = self.services(port);
        // One that leads there alone is the one that was called.
        let called = match services {
            [one] => Some(one),
            _ => None,
        };
        let context = &worker.context;
        let app = Rc::new(App {
            port: port.port,
            protocol: port.protocol,
            metrics: worker.inbound(port.port, called, self.peer.as_ref().map(|peer| &peer.id)),
            limits: context.limiters.of(port, services, &context.telemetry, worker.random()),
            authenticators: worker.authenticators.of(port, services, &context.telemetry),
            reserved: jwt::Reserved::of(port),
            book: worker.books.of(workload, port, &context.telemetry),
            workload: Arc::clone(workload),
        });
        *cached = Some(Rc::clone(&app));
        Ok(app)
    }

    /// The span of its bytes, where somebody wants it. `headers` are those of the CONNECT of a tunnel.
    pub fn span_of_bytes(&self, worker: &Worker, app: &App, headers: &HeaderMap) -> OpenSpan {
        let traced = Traced::of(app.telemetry(), headers, false, || worker.random());
        let (id, service) = (SpanId::random(worker.random()), self.service());
        let mut span = traced.begin_bytes(Kind::Server, id, service.as_ref(), &worker.spans);
        span.from_ip(self.source);
        span.add(|span| span.peer_id = self.peer.as_ref().map(|peer| peer.id.clone()));
        span
    }

    /// The services that may have been called: in plaintext nobody says which, so all that lead to the port count.
    fn services<'a>(&'a self, port: &'a InboundPort) -> &'a [Target] {
        match &self.leads_to {
            LeadsTo::Port(_) => &port.services,
            LeadsTo::Service(target) => target.as_slice(),
        }
    }

    /// The service port that the caller named.
    pub fn service(&self) -> Option<Target> {
        match &self.leads_to {
            LeadsTo::Port(_) => None,
            LeadsTo::Service(target) => target.clone(),
        }
    }

    /// The front that it came to; 0 on the mesh listener.
    pub const fn front(&self) -> u16 {
        match self.leads_to {
            LeadsTo::Port(port) => port,
            LeadsTo::Service(_) => 0,
        }
    }

    /// It was taken at this port.
    pub fn count(&self, worker: &Worker, app: &App) {
        let context = &worker.context;
        context.seen.connected(app.port, self.caller().id, self.source, &context.telemetry);
    }

    /// Something begins that was let in.
    pub(super) fn begin(&self, app: &App, head: Option<Head>) -> usize {
        let active = head.is_some().then(|| InFlight::begin(&app.metrics));
        self.flights.borrow_mut().insert(Flight { port: app.port, head, cut: Cut::default(), _active: active })
    }

    /// It has ended.
    pub(super) fn finish(&self, flight: usize) {
        let ended = self.flights.borrow_mut().try_remove(flight);
        drop(ended);
    }

    /// Ready when what has begun is not allowed any more.
    pub(super) fn poll_revoked(&self, flight: usize, context: &Context<'_>) -> Poll<Reason> {
        self.flights.borrow().get(flight).map_or(Poll::Pending, |flight| flight.cut.poll(context))
    }

    /// Why what has begun is not allowed any more, when that is so.
    pub(super) fn why_revoked(&self, flight: usize) -> Option<Reason> {
        self.flights.borrow().get(flight)?.cut.why()
    }

    /// Ends all that has begun.
    pub fn cut(&self, reason: Reason) {
        self.flights.borrow().iter().for_each(|(_, flight)| flight.cut.fire(reason));
    }

    /// Judges all of it by this configuration; what is missing there is not allowed.
    fn recheck(&self, worker: &Worker, workload: Option<&Arc<WorkloadConfig>>) {
        let find = |number| workload.and_then(|workload| Some((workload, declared(workload, number)?)));
        if let LeadsTo::Port(number) = self.leads_to {
            let tls_mode = find(number).map(|(_, port)| port.access.tls_mode);
            if let Err(refused) = permit::mode(tls_mode, self.peer.is_some()) {
                self.end.fire(refused.reason());
            }
        }
        let mut ready: Option<(u16, Rc<[Rc<jwt::Authenticator>]>)> = None;
        for (_, flight) in self.flights.borrow().iter() {
            let Some((workload, port)) = find(flight.port) else {
                flight.cut.fire(Reason::NotReady);
                continue;
            };
            let book = worker.books.of(workload, port, &worker.context.telemetry);
            let judged = match &flight.head {
                None => permit::judge(port, &self.caller(), None),
                Some(head) => {
                    let of = || worker.authenticators.of(port, self.services(port), &worker.context.telemetry);
                    // All that is in flight on a connection is at one port, unless the configuration has changed.
                    let known = ready.take().filter(|(number, _)| *number == port.port);
                    let (_, authenticators) = ready.insert(known.unwrap_or_else(|| (port.port, of())));
                    head.judge(port, &book, &self.caller(), authenticators)
                }
            };
            if let Some(refused) = judged.refused {
                book.note(worker, self, Judged { shadow: None, ..judged });
                flight.cut.fire(refused.reason());
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let (admitted, key) = &self.place;
        admitted.0.borrow_mut().try_remove(*key);
    }
}

impl Admitted {
    /// Judges all connections by this configuration.
    pub async fn recheck(&self, worker: &Worker, workload: Option<&Arc<WorkloadConfig>>) {
        let all: Vec<_> = self.0.borrow().iter().map(|(_, connection)| Weak::clone(connection)).collect();
        for (number, connection) in all.iter().enumerate() {
            if let Some(connection) = connection.upgrade() {
                connection.recheck(worker, workload);
            }
            if number % CHECKS == CHECKS - 1 {
                tokio::task::yield_now().await;
            }
        }
    }
}

impl App {
    /// What is recorded of its traffic.
    pub fn telemetry(&self) -> &Telemetry {
        &self.workload.telemetry
    }

    /// Whether opaque bytes of this caller are let in now; nothing is noted of the question.
    pub fn lets_bytes_in(&self, connection: &Connection) -> bool {
        self.config().is_some_and(|port| permit::judge(port, &connection.caller(), None).refused.is_none())
    }

    /// Its configuration.
    pub fn config(&self) -> Option<&InboundPort> {
        declared(&self.workload, self.port)
    }
}

impl Head {
    /// Keeps what can be asked again of a request. Headers are copied where policies look at them.
    pub fn new(
        operation: &Operation<'_>,
        (path, host): (&PathAndQuery, &HeaderValue),
        (claims, shown): (Option<Rc<Claims>>, jwt::Shown),
        of_headers: bool,
    ) -> Self {
        Self {
            method: operation.method.clone(),
            path: path.clone(),
            host: host.clone(),
            claims,
            shown,
            headers: of_headers.then(|| Box::new(operation.headers.clone())),
        }
    }

    /// What a policy would now look at and was not kept is not known: such a request is not allowed.
    fn judge<'a>(
        &self,
        port: &'a InboundPort,
        book: &Book,
        caller: &Caller<'_>,
        authenticators: &Rc<[Rc<jwt::Authenticator>]>,
    ) -> Judged<'a> {
        const UNKNOWN: Judged<'static> = Judged { refused: Some(Refused::Unknown), shadow: None };
        let none = HeaderMap::new();
        let headers = match &self.headers {
            Some(headers) => headers,
            None if book.looks_at_headers() => return UNKNOWN,
            None => &none,
        };
        let host = match self.host.as_bytes() {
            // HTTP/1.0 may have none.
            b"" => Ok(Authority { host: "".into(), port: None }),
            text => Authority::parse(text),
        };
        let Ok(host) = host else { return UNKNOWN };
        let claims = match self.shown.again(authenticators, self.claims.as_ref()) {
            Ok(claims) => claims,
            Err(reason) => return Judged { refused: Some(Refused::Token(reason)), shadow: None },
        };
        let claims = claims.as_deref();
        let operation = Operation { method: &self.method, path: self.path.path(), host: &host, headers, claims };
        permit::judge(port, caller, Some(&operation))
    }
}
