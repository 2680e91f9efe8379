//! Apps and resources for tests of who may call whom.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{mesh::TestMesh, net::free};

/// How many connections have brought a byte.
#[derive(Clone, Default)]
pub struct Count(Arc<AtomicUsize>);

impl Count {
    pub fn load(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// An app that sends back what it gets. A probe's connection, which says nothing, does not count.
pub fn echo() -> (SocketAddr, Count) {
    let count = Count::default();
    let listener = TcpListener::bind(free()).expect("a free port");
    let (address, counted) = (listener.local_addr().expect("bound"), count.clone());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let counted = counted.clone();
            std::thread::spawn(move || {
                let mut bytes = [0; 1024];
                let mut first = true;
                while let Ok(length @ 1..) = stream.read(&mut bytes) {
                    if std::mem::take(&mut first) {
                        counted.0.fetch_add(1, Ordering::Relaxed);
                    }
                    if stream.write_all(&bytes[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, count)
}

/// An app whose answers have no end: a chunk, and then nothing.
pub fn endless() -> SocketAddr {
    let listener = TcpListener::bind(free()).expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(1..) = stream.read(&mut bytes) {
                    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
                    if stream.write_all(head).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// An AuthorizationPolicy on a service; `rules` in YAML's flow style.
pub fn policy(name: &str, service: &str, action: &str, rules: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}}}\nspec:\n  targetRefs: \
         [{{kind: Service, name: {service}}}]\n  action: {action}\n  rules: {rules}\n"
    )
}

/// Applies resources; they are in force in every sidecar when this returns.
pub fn applied(mesh: &TestMesh, text: &str) {
    let file = mesh.dir.join("applied.yaml");
    std::fs::write(&file, text).expect("writable");
    mesh.weft(&["apply", "--wait", "-f", &file.to_string_lossy()]).ok();
}
