//! The worker threads: each has its own single-threaded runtime, its own `SO_REUSEPORT` sockets and its own
//! connection pools, so that a request never crosses threads. `app` starts them.

mod metrics;

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, LazyLock},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use rand::{RngCore, SeedableRng, rngs::SmallRng};
use tokio::{
    net::TcpListener,
    runtime,
    sync::{mpsc, watch},
    task::spawn_local,
};
use weft_policy::{balance::Nanos, limits::Gauge};
use weft_svid::TrustStore;

use self::metrics::{Detections, InboundKey};
pub use self::metrics::{InFlight, InboundMetrics};

use crate::{
    config::{SidecarConfig, Upstream},
    discovery::Demand,
    drain::{Drain, Phase},
    identity::IdentityReceiver,
    inbound::{self, Admitted, Authenticators, Books, Limiters, Seen, Undeclared},
    listener,
    live::Sessions,
    outbound::{self, Mirrors, Sealers},
    snapshot::{Snapshot, SnapshotReader},
    telemetry::{
        Direction, Hop, HttpMetrics, TcpMetrics, Telemetry, UNKNOWN,
        export::SpanSink,
        gauges,
        propagation::{Contexts, Propagation},
    },
    upstream::Pools,
    virtual_ips::VirtualIps,
};

/// Downstream connections of one worker.
const CONNECTIONS: u32 = 10_000;

/// What every worker needs. Built by `app`, the same for all.
#[derive(Clone)]
pub struct WorkerContext {
    /// Static configuration.
    pub config: Arc<SidecarConfig>,
    /// The mesh.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// Asks discovery for services that nobody declared.
    pub demand: Demand,
    /// Which address stands for which service.
    pub virtual_ips: Arc<VirtualIps>,
    /// The current certificate.
    pub identity: IdentityReceiver,
    /// Metrics.
    pub telemetry: Telemetry,
    /// Whether we are stopping.
    pub drain: Drain,
    /// Addresses to listen on; each worker binds its own sockets.
    pub listeners: Listeners,
    /// Monotonic time, the same for all.
    pub clock: Clock,
    /// Where spans go.
    pub spans: SpanSink,
    /// Rate limits of the app's ports.
    pub limiters: Arc<Limiters>,
    /// Who has connected to the app's ports.
    pub seen: Arc<Seen>,
    /// Whether the app passes on trace contexts.
    pub propagation: Arc<Propagation>,
    /// Roots and revocations of now.
    pub trust: TrustStore,
    /// Where ports are asked for that nobody declared.
    pub undeclared: mpsc::Sender<Undeclared>,
}

/// Addresses of the listeners, all with their final ports.
#[derive(Clone, Debug)]
pub struct Listeners {
    /// Calls by Host.
    pub outbound: SocketAddr,
    /// Mutual TLS from other sidecars.
    pub mesh: SocketAddr,
    /// Calls by local port.
    pub upstreams: Vec<(Upstream, SocketAddr)>,
    /// Plaintext fronts of app ports, and of [`UNDECLARED`] ones.
    pub inbound: Vec<(SocketAddr, u16)>,
    /// Calls of the app that were redirected, in each family; empty unless transparent.
    pub redirected: Vec<SocketAddr>,
}

/// In place of the number of a port of the app, where that is to be asked of each connection.
pub const UNDECLARED: u16 = 0;

/// Monotonic time since the process began, equal on all threads. It takes no room: it is in every body.
#[derive(Clone, Copy)]
pub struct Clock(());

/// Zero of the clock.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// One worker: shared by all its connections.
pub struct Worker {
    /// What `app` gave.
    pub context: WorkerContext,
    /// Connections to applications and sidecars.
    pub pools: Rc<Pools>,
    /// Inbound connections.
    pub admitted: Rc<Admitted>,
    /// Parsed keys and verified tokens.
    pub authenticators: Authenticators,
    /// Counters of refusals.
    pub books: Books,
    /// Live sessions of mutual TLS.
    pub sessions: Rc<Sessions>,
    /// Monotonic time.
    pub clock: Clock,
    /// Where spans and lines of the access log go; counted here alone, so that a request touches nothing shared.
    pub spans: Rc<SpanSink>,
    /// Keys of sessions.
    pub sealers: Sealers,
    /// Copies of requests.
    pub mirrors: Mirrors,
    random: RefCell<SmallRng>,
    inbound: RefCell<HashMap<InboundKey, Rc<InboundMetrics>>>,
    detected: RefCell<HashMap<(Direction, u16), Detections>>,
    unrouted: [HttpMetrics; 2],
    /// Whether requests come with a trace context.
    pub contexts: Contexts,
}

impl Clock {
    /// Starts at zero.
    #[must_use]
    pub fn start() -> Self {
        LazyLock::force(&START);
        Self(())
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Nanos {
        Nanos(u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

impl Worker {
    pub(crate) fn new(context: WorkerContext) -> Self {
        let sessions = Sessions::new(context.trust.clone(), context.telemetry.clone());
        let pools = Pools::new(context.identity.clone(), Rc::clone(&sessions), context.telemetry.clone());
        let unrouted = |direction| {
            let hop = Hop { direction, service: UNKNOWN, port: 0, peer: "", route: "" };
            context.telemetry.http(&hop, false)
        };
        Self {
            pools: Rc::new(pools),
            sessions,
            admitted: Rc::default(),
            authenticators: Authenticators::default(),
            books: Books::default(),
            clock: context.clock,
            spans: Rc::new(context.spans.clone()),
            sealers: Sealers::default(),
            mirrors: Mirrors::default(),
            random: RefCell::new(SmallRng::from_os_rng()),
            inbound: RefCell::default(),
            detected: RefCell::default(),
            unrouted: [unrouted(Direction::Inbound), unrouted(Direction::Outbound)],
            contexts: context.propagation.enter(),
            context,
        }
    }

    /// 64 random bits, for choices and jitter.
    pub fn random(&self) -> u64 {
        self.random.borrow_mut().next_u64()
    }

    /// A reader of the mesh for one connection.
    #[must_use]
    pub fn snapshot(&self) -> SnapshotReader {
        SnapshotReader::new(self.context.snapshot.clone())
    }

    /// Handles for connections of the app to what is not in the mesh.
    #[must_use]
    pub fn passed(&self) -> TcpMetrics {
        let peer = self.context.telemetry.own();
        let hop = Hop { direction: Direction::Outbound, service: "passthrough", port: 0, peer, route: "" };
        self.context.telemetry.tcp(&hop, false)
    }

    /// Handles for requests that were answered before it was clear whom they were for.
    #[must_use]
    pub const fn unrouted(&self, direction: Direction) -> &HttpMetrics {
        match direction {
            Direction::Inbound => &self.unrouted[0],
            Direction::Outbound => &self.unrouted[1],
        }
    }
}

/// Starts `count` workers. A worker ends when the drain has stopped.
///
/// # Errors
/// When a socket cannot be bound or a thread cannot be started.
pub fn spawn(count: usize, context: &WorkerContext) -> io::Result<Vec<JoinHandle<()>>> {
    let mut threads = Vec::with_capacity(count);
    for index in 0..count {
        let sockets = Sockets::bind(&context.listeners)?;
        let context = context.clone();
        let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            if let Err(error) = run(context, sockets) {
                tracing::error!(%error, "a worker could not start");
            }
        })?;
        threads.push(thread);
    }
    Ok(threads)
}

/// The listening sockets of one worker.
struct Sockets {
    outbound: std::net::TcpListener,
    mesh: std::net::TcpListener,
    upstreams: Vec<(Upstream, std::net::TcpListener)>,
    inbound: Vec<(u16, std::net::TcpListener)>,
    redirected: Vec<std::net::TcpListener>,
}

impl Sockets {
    fn bind(listeners: &Listeners) -> io::Result<Self> {
        let mut upstreams = Vec::with_capacity(listeners.upstreams.len());
        for (upstream, address) in &listeners.upstreams {
            upstreams.push((upstream.clone(), listener::bind(*address, true)?));
        }
        let mut inbound = Vec::with_capacity(listeners.inbound.len());
        for (address, port) in &listeners.inbound {
            inbound.push((*port, listener::bind(*address, true)?));
        }
        Ok(Self {
            outbound: listener::bind(listeners.outbound, true)?,
            mesh: listener::bind(listeners.mesh, true)?,
            upstreams,
            inbound,
            redirected: listeners
                .redirected
                .iter()
                .map(|address| listener::bind(*address, true))
                .collect::<io::Result<_>>()?,
        })
    }
}

fn run(context: WorkerContext, sockets: Sockets) -> io::Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build_local(runtime::LocalOptions::default())?;
    runtime.block_on(async move {
        let drain = context.drain.clone();
        gauges::runtime(&context.telemetry, std::thread::current().name().unwrap_or("worker"));
        let worker = Rc::new(Worker::new(context));
        serve(&worker, sockets)?;
        spawn_local(keep_pools(Rc::clone(&worker)));
        spawn_local(Rc::clone(&worker.sessions).keep(worker.context.identity.clone()));
        spawn_local(inbound::keep(Rc::clone(&worker)));
        drain.stopped().await;
        Ok(())
    })
}

/// Once a second: connections that are too old, idle or closed go; so do those to endpoints that have left.
async fn keep_pools(worker: Rc<Worker>) {
    let mut reader = worker.snapshot();
    let mut seen = None;
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    for second in 0_u64.. {
        tick.tick().await;
        if second.is_multiple_of(60) {
            worker.release_handles();
        }
        let snapshot = reader.load();
        if !seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, snapshot)) {
            let live = snapshot.mesh_addresses();
            worker.pools.keep_live(|address| live.contains(address));
            seen = Some(Arc::clone(snapshot));
        }
        worker.pools.sweep();
    }
}

/// Inbound listeners end when the drain begins. The app may need its outbound ones until it is gone itself.
fn serve(worker: &Rc<Worker>, sockets: Sockets) -> io::Result<()> {
    let gauge = Arc::new(Gauge::new(CONNECTIONS));
    let open = |socket, end| -> io::Result<Accepting> {
        Ok(Accepting {
            worker: Rc::clone(worker),
            gauge: Arc::clone(&gauge),
            socket: TcpListener::from_std(socket)?,
            end,
        })
    };
    open(sockets.mesh, Phase::Draining)?.run(inbound::mesh);
    for (port, socket) in sockets.inbound {
        if port == UNDECLARED {
            open(socket, Phase::Draining)?.run(inbound::undeclared);
            continue;
        }
        open(socket, Phase::Draining)?.run(move |worker, io| inbound::plaintext(worker, port, io));
    }
    open(sockets.outbound, Phase::Stopped)?.run(outbound::by_host);
    for socket in sockets.redirected {
        open(socket, Phase::Stopped)?.run(outbound::redirected);
    }
    for (upstream, socket) in sockets.upstreams {
        let upstream = Rc::new(upstream);
        open(socket, Phase::Stopped)?.run(move |worker, io| outbound::by_port(worker, Rc::clone(&upstream), io));
    }
    Ok(())
}

/// One listening socket of a worker.
struct Accepting {
    worker: Rc<Worker>,
    gauge: Arc<Gauge>,
    socket: TcpListener,
    end: Phase,
}

impl Accepting {
    /// Accepts in a task; each connection is a task of this worker.
    fn run<H, F>(self, handle: H)
    where
        H: Fn(Rc<Worker>, tokio::net::TcpStream) -> F + 'static,
        F: Future<Output = ()> + 'static,
    {
        let Self { worker, gauge, socket, end } = self;
        let drain = worker.context.drain.clone();
        let admit = move || gauge.try_acquire();
        spawn_local(listener::accept_loop(socket, admit, drain.clone(), end, move |io, _peer, permit| {
            let connection = handle(Rc::clone(&worker), io);
            let guard = if end == Phase::Draining { drain.inbound_guard() } else { drain.guard() };
            // An async block would have room for the connection twice: where it is captured, and where it is awaited.
            spawn_local(connection.map(move |()| drop((permit, guard))));
        }));
    }
}
