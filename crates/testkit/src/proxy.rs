//! A proxy for TCP that can hold, delay, cut and re-home each connection by itself.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A running proxy. It ends with this value, and with it all connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    /// What new connections begin with.
    beginning: Mutex<Behaviour>,
    links: Mutex<Vec<Link>>,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behaviour {
    /// Where it leads.
    pub target: SocketAddr,
    /// Whether nothing is passed on, either way, while both ends stay open.
    pub is_held: bool,
    /// After so many bytes of the server it is held.
    pub held_after: Option<u64>,
    /// How late everything arrives.
    pub delay: Duration,
}

/// A connection through the proxy.
#[derive(Debug, Clone)]
pub struct Link {
    control: Arc<watch::Sender<Option<Behaviour>>>,
    received: watch::Receiver<u64>,
}

impl Link {
    /// Changes what becomes of it. With another target, what the client says from now on goes there; it is not told.
    pub fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        self.control.send_modify(|behaviour| {
            if let Some(behaviour) = behaviour {
                change(behaviour);
            }
        });
    }

    /// Closes it on both sides.
    pub fn cut(&self) {
        self.control.send_replace(None);
    }

    /// Whether both sides are open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.received.has_changed().is_ok()
    }

    /// Bytes of the server that were passed on.
    #[must_use]
    pub fn received(&self) -> u64 {
        *self.received.borrow()
    }
}

impl Proxy {
    /// Starts one on a free port that leads to this server.
    ///
    /// # Errors
    /// Where no port can be had.
    pub async fn start(target: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let beginning = Behaviour { target, is_held: false, held_after: None, delay: Duration::ZERO };
        let shared = Arc::new(Shared { beginning: Mutex::new(beginning), links: Mutex::default() });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, accepting })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what new connections begin with.
    pub fn change_new(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.shared.beginning.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The connections that are open, the oldest first.
    #[must_use]
    pub fn links(&self) -> Vec<Link> {
        let mut links = self.shared.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(Link::is_open);
        links.clone()
    }

    /// Changes all connections, those of today and of later.
    pub fn change_all(&self, change: impl Fn(&mut Behaviour)) {
        self.change_new(&change);
        self.links().iter().for_each(|link| link.change(&change));
    }

    /// Cuts all connections.
    pub fn cut_all(&self) {
        self.links().iter().for_each(Link::cut);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut_all();
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        let beginning = *shared.beginning.lock().unwrap_or_else(PoisonError::into_inner);
        let (control, controlled) = watch::channel(Some(beginning));
        let (counter, received) = watch::channel(0);
        let link = Link { control: Arc::new(control), received };
        shared.links.lock().unwrap_or_else(PoisonError::into_inner).push(link);
        // It ends when either side closes, or it is cut.
        drop(tokio::spawn(async move { drop(pass(client, controlled, &counter).await) }));
    }
}

async fn pass(
    mut client: TcpStream,
    mut control: watch::Receiver<Option<Behaviour>>,
    counter: &watch::Sender<u64>,
) -> std::io::Result<()> {
    let (mut sent, mut answered) = (vec![0; 65_536], vec![0; 65_536]);
    let Some(mut now) = *control.borrow_and_update() else { return Ok(()) };
    let mut server = TcpStream::connect(now.target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    loop {
        let is_full = now.held_after.is_some_and(|most| most <= *counter.borrow());
        let is_held = now.is_held || is_full;
        tokio::select! {
            changed = control.changed() => {
                let behaviour = *control.borrow_and_update();
                let Some(next) = behaviour.filter(|_| changed.is_ok()) else { return Ok(()) };
                if next.target != now.target {
                    server = TcpStream::connect(next.target).await?;
                }
                now = next;
            }
            read = client.read(&mut sent), if !is_held => {
                let bytes = sent.get(..read?).unwrap_or_default();
                if bytes.is_empty() {
                    return Ok(());
                }
                tokio::time::sleep(now.delay).await;
                server.write_all(bytes).await?;
            }
            read = server.read(&mut answered), if !is_held => {
                let bytes = answered.get(..read?).unwrap_or_default();
                if bytes.is_empty() {
                    return Ok(());
                }
                let rest = now.held_after.map_or(u64::MAX, |most| most.saturating_sub(*counter.borrow()));
                let bytes = bytes.get(..usize::try_from(rest).unwrap_or(usize::MAX)).unwrap_or(bytes);
                tokio::time::sleep(now.delay).await;
                client.write_all(bytes).await?;
                counter.send_modify(|count| *count += bytes.len() as u64);
            }
        }
    }
}
