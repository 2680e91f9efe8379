//! Follows one kind at the API server for ever: a list in pages, then a watch from there, which goes on where it was cut
//! off, and a new list when the server has forgotten that place (410 Gone). Whatever fails is tried again, ever later.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use futures_util::TryStreamExt as _;
use http::Request;
use kube::{Client, Error, api::WatchEvent};
use rand::Rng as _;
use serde_json::Value;
use tokio::{sync::mpsc, time::timeout};

use super::{told, watched::Watched};

/// Objects in one answer of a list.
const PAGE: usize = 500;
/// One page of a list, and the head of a watch's answer.
const ANSWER: Duration = Duration::from_secs(60);
/// A watch is to end after so many seconds; up to a quarter more, so that not all end at once.
const WATCH: u64 = 240;
/// Silence after which a watch is taken for dead: servers that send bookmarks do so each minute.
const SILENCE: Duration = Duration::from_secs(150);
/// The same of one that has sent no bookmark: it may have nothing to tell until its end.
const NO_BOOKMARKS: Duration = Duration::from_secs(WATCH + WATCH / 4 + 30);
/// Waits after failures: at least, and at most.
const WAITS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(15)];
/// A watch that lasted as long was no failure.
const LASTED: Duration = Duration::from_secs(5);
/// One that was not refused in this time works, though it may have nothing to tell.
const WORKS: Duration = Duration::from_secs(1);

/// What is told of a kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// All objects that there are.
    All(Vec<Value>),
    /// An object that is new or other.
    One(Value),
    /// An object that is gone, as it was.
    Gone(Value),
    /// The server says that it does not have the kind. That is no word on objects: one that starts may not know the kind
    /// yet, and a policy that vanished with it would let everybody in.
    Absent,
    /// Why the kind cannot be followed at the moment; `None`: it can.
    Trouble(Option<String>),
}

/// Follows one kind.
pub struct Follower {
    /// The API server.
    pub client: Client,
    /// The kind.
    pub watched: Watched,
    /// Who is told.
    pub told: mpsc::Sender<(Watched, Change)>,
}

/// Why a round ended.
enum Ended {
    /// As it should: the watch can go on.
    Watch,
    /// The server does not know the place any more.
    Expired,
    /// It does not have the kind.
    Absent,
    /// Nobody listens.
    Unheard,
    /// Something else.
    Failed(String),
}

impl From<mpsc::error::SendError<(Watched, Change)>> for Ended {
    fn from(_: mpsc::error::SendError<(Watched, Change)>) -> Self {
        Self::Unheard
    }
}

/// Where a watch goes on.
#[derive(Default)]
struct Place {
    version: String,
    /// Index of the version of the API that the server has.
    api: usize,
    /// Who listens was told that something is wrong.
    troubled: bool,
    wait: Duration,
}

impl Follower {
    /// Runs for as long as somebody listens.
    pub async fn run(self) {
        let mut place = Place { wait: WAITS[0], ..Place::default() };
        loop {
            let started = Instant::now();
            let trouble = match self.round(&mut place).await {
                Err(Ended::Unheard) => return,
                Ok(()) | Err(Ended::Watch) => {
                    if started.elapsed() > LASTED {
                        place.wait = WAITS[0];
                    }
                    None
                }
                Err(Ended::Expired) => {
                    tracing::debug!(kind = self.watched.kind, "the watch is too old; listing again");
                    place.version.clear();
                    None
                }
                Err(Ended::Absent) => {
                    place.version.clear();
                    // A server without a kind of every cluster is none to believe: what waits for the kind goes on waiting.
                    if self.watched.optional() && self.tell(Change::Absent).await.is_err() {
                        return;
                    }
                    Some(self.watched.missing())
                }
                Err(Ended::Failed(why)) => Some(why),
            };
            if let Some(why) = trouble {
                place.troubled = true;
                let trouble = (self.watched, Change::Trouble(Some(why)));
                if self.told.send(trouble).await.is_err() {
                    return;
                }
            }
            let wait = rand::rng().random_range(WAITS[0]..=(place.wait * 3).min(WAITS[1]));
            place.wait = wait;
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.told.closed() => return,
            }
        }
    }

    async fn round(&self, place: &mut Place) -> Result<(), Ended> {
        if place.version.is_empty() {
            let objects = self.list(place).await?;
            place.wait = WAITS[0];
            self.tell(Change::All(objects)).await?;
            self.works(place).await?;
        }
        self.watch(place).await
    }

    /// Takes back what was said to be wrong.
    async fn works(&self, place: &mut Place) -> Result<(), Ended> {
        if std::mem::take(&mut place.troubled) { self.tell(Change::Trouble(None)).await } else { Ok(()) }
    }

    async fn tell(&self, change: Change) -> Result<(), Ended> {
        Ok(self.told.send((self.watched, change)).await?)
    }

    fn path(&self, place: &Place) -> String {
        self.watched.path(self.watched.versions.get(place.api).copied().unwrap_or("v1"))
    }

    /// All objects, and the place from which a watch goes on.
    async fn list(&self, place: &mut Place) -> Result<Vec<Value>, Ended> {
        let mut found = Vec::new();
        let mut next = String::new();
        loop {
            let mut uri = format!("{}?limit={PAGE}", self.path(place));
            if !next.is_empty() {
                let token: String = form_urlencoded::byte_serialize(next.as_bytes()).collect();
                let _ = write!(uri, "&continue={token}");
            }
            let answer: Result<Value, _> = self.answered("list", self.client.request(request(&uri)?)).await;
            let mut page = match answer {
                // Perhaps in another version, from the first page on.
                Err(Ended::Absent) if place.api + 1 < self.watched.versions.len() => {
                    place.api += 1;
                    next.clear();
                    found.clear();
                    continue;
                }
                Err(Ended::Absent) => {
                    place.api = 0;
                    return Err(Ended::Absent);
                }
                answer => answer?,
            };
            match page["items"].take() {
                Value::Array(items) => found.extend(items),
                Value::Null => {}
                _ => return Err(Ended::Failed(format!("list {}: the answer is no list", self.watched.resource()))),
            }
            next = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
            if next.is_empty() {
                place.version = page["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
                return Ok(found);
            }
        }
    }

    async fn watch(&self, place: &mut Place) -> Result<(), Ended> {
        let seconds = rand::rng().random_range(WATCH..=WATCH + WATCH / 4);
        let version: String = form_urlencoded::byte_serialize(place.version.as_bytes()).collect();
        let uri = format!(
            "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={version}",
            self.path(place)
        );
        let events = self.answered("watch", self.client.request_events::<Value>(request(&uri)?)).await?;
        let mut events = std::pin::pin!(events);
        let mut silence = NO_BOOKMARKS;
        loop {
            let patience = if place.troubled { WORKS } else { silence };
            let event = match timeout(patience, events.try_next()).await {
                Ok(Ok(Some(event))) => event,
                Ok(Ok(None)) => return Err(Ended::Watch),
                Ok(Err(error)) => return Err(self.failed("watch", &error)),
                Err(_) if place.troubled => {
                    self.works(place).await?;
                    continue;
                }
                Err(_) => {
                    let resource = self.watched.resource();
                    return Err(Ended::Failed(format!("watch {resource}: nothing came for {} s", silence.as_secs())));
                }
            };
            let seen = |object: &Value| object["metadata"]["resourceVersion"].as_str().map(str::to_owned);
            let (version, change) = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => (seen(&object), Change::One(object)),
                WatchEvent::Deleted(object) => (seen(&object), Change::Gone(object)),
                WatchEvent::Bookmark(bookmark) => {
                    silence = SILENCE;
                    place.version = bookmark.metadata.resource_version;
                    continue;
                }
                WatchEvent::Error(status) => return Err(self.failed("watch", &Error::Api(status))),
            };
            self.works(place).await?;
            self.tell(change).await?;
            if let Some(version) = version {
                place.version = version;
            }
        }
    }

    /// What the server says, in time.
    async fn answered<T>(&self, verb: &str, asked: impl Future<Output = Result<T, Error>>) -> Result<T, Ended> {
        match timeout(ANSWER, asked).await {
            Ok(answer) => answer.map_err(|error| self.failed(verb, &error)),
            Err(_) => {
                let resource = self.watched.resource();
                Err(Ended::Failed(format!("{verb} {resource}: no answer in {} s", ANSWER.as_secs())))
            }
        }
    }

    fn failed(&self, verb: &str, error: &Error) -> Ended {
        match error {
            Error::Api(status) if status.code == 410 || status.reason == "Expired" => Ended::Expired,
            // Of a kind that it has it says 404 of no collection.
            Error::Api(status) if status.code == 404 => Ended::Absent,
            error => Ended::Failed(told(verb, &self.watched.resource(), error)),
        }
    }
}

fn request(uri: &str) -> Result<Request<Vec<u8>>, Ended> {
    Request::get(uri).body(Vec::new()).map_err(|error| Ended::Failed(format!("{uri}: {error}")))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::kubernetes::watched;

    const LIST: &str = r#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":[]}"#;
    const BOOKMARK: &str = "{\"type\":\"BOOKMARK\",\"object\":{\"kind\":\"Pod\",\"apiVersion\":\"v1\",\"metadata\":{\"resourceVersion\":\"8\"}}}\n";

    /// A server that answers a list, and sends this in a watch; or, without it, answers nothing. It never ends anything.
    async fn answer(mut stream: TcpStream, watched: Option<&'static str>) -> std::io::Result<()> {
        let (mut head, mut bytes) = (Vec::new(), [0; 4096]);
        loop {
            let length = stream.read(&mut bytes).await?;
            head.extend_from_slice(&bytes[..length]);
            if length == 0 || !head.ends_with(b"\r\n\r\n") {
                if length == 0 {
                    return Ok(());
                }
                continue;
            }
            let asked = String::from_utf8_lossy(&head).into_owned();
            head.clear();
            let text = match watched {
                None => continue,
                Some(line) if asked.contains("watch=true") => {
                    let chunk = if line.is_empty() { String::new() } else { format!("{:x}\r\n{line}\r\n", line.len()) };
                    format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}")
                }
                Some(_) => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{LIST}", LIST.len()),
            };
            stream.write_all(text.as_bytes()).await?;
        }
    }

    /// The first trouble that a follower of pods has with that server.
    async fn trouble(line: Option<&'static str>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, line));
            }
        });
        let mut config = kube::Config::new(url.parse().expect("a URL"));
        (config.connect_timeout, config.default_retry) = (None, false);
        let client = Client::try_from(config).expect("a client");
        let (told, mut seen) = mpsc::channel(16);
        let watched = watched::all().find(|watched| watched.kind == watched::POD).expect("pods");
        tokio::spawn(Follower { client, watched, told }.run());
        loop {
            if let Some((_, Change::Trouble(Some(why)))) = seen.recv().await {
                return why;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_has_stopped_talking_is_noticed_sooner_if_it_sends_bookmarks() {
        assert_eq!(trouble(None).await, "list pods: no answer in 60 s");
        assert_eq!(trouble(Some(BOOKMARK)).await, "watch pods: nothing came for 150 s");
        assert_eq!(trouble(Some("")).await, "watch pods: nothing came for 330 s");
    }
}
