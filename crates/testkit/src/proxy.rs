//! An address behind which servers change, as behind a proxy, a virtual address or a name that moves; each connection can be held,
//! delayed, cut and re-homed by itself.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A running proxy. It ends with this value, and with it all connections.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    /// What new connections begin with.
    beginning: Mutex<Behaviour>,
    /// The addresses from which everything is held, whatever new connections begin with.
    held_from: Mutex<BTreeSet<IpAddr>>,
    links: Mutex<Vec<Link>>,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behaviour {
    /// The port of the server where it leads, on this machine.
    pub target: u16,
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
    from: Arc<AtomicU16>,
    client: IpAddr,
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

    /// The port from which its server sees it come; 0: it is not there yet.
    #[must_use]
    pub fn from(&self) -> u16 {
        self.from.load(Ordering::Relaxed)
    }

    /// Bytes of the server that were passed on.
    #[must_use]
    pub fn received(&self) -> u64 {
        *self.received.borrow()
    }
}

impl Proxy {
    /// Starts one on a free port that leads to the server at this one.
    ///
    /// # Errors
    /// Where no port can be had.
    pub async fn start(target: u16) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let beginning = Behaviour { target, is_held: false, held_after: None, delay: Duration::ZERO };
        let beginning = Mutex::new(beginning);
        let shared = Arc::new(Shared { beginning, held_from: Mutex::default(), links: Mutex::default() });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { port, shared, accepting })
    }

    /// Where clients connect, on this machine.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
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

    /// New connections go to the server at this port; those that live stay where they are.
    pub fn aim(&self, target: u16) {
        self.change_new(|behaviour| behaviour.target = target);
    }

    /// The same, and those that live are cut.
    pub fn lead_to(&self, target: u16) {
        self.aim(target);
        self.cut_all();
    }

    /// Lets nothing more pass through the connections that live; they stay open.
    pub fn hold(&self) {
        self.links().iter().for_each(|link| link.change(|behaviour| behaviour.is_held = true));
    }

    /// Lets nothing pass that comes from this address or goes to it, now and later, or lets it pass again.
    pub fn hold_from(&self, client: IpAddr, is_held: bool) {
        let mut held = self.shared.held_from.lock().unwrap_or_else(PoisonError::into_inner);
        if is_held {
            held.insert(client);
        } else {
            held.remove(&client);
        }
        let links = self.links();
        let of_client = links.iter().filter(|link| link.client == client);
        of_client.for_each(|link| link.change(|behaviour| behaviour.is_held = is_held));
    }

    /// Puts another server behind the connection that its server sees come from this port. Its client does not notice. False:
    /// there is no such connection.
    #[must_use]
    pub fn rehome(&self, from: u16, target: u16) -> bool {
        let links = self.links();
        let found = links.iter().find(|link| link.from() == from);
        found.inspect(|link| link.change(|behaviour| behaviour.target = target)).is_some()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut_all();
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, address)) = listener.accept().await {
        let (counter, received) = watch::channel(0);
        let from = Arc::new(AtomicU16::new(0));
        let controlled = add_link(&shared, received, Arc::clone(&from), address.ip());
        // It ends when either side closes, or it is cut.
        drop(tokio::spawn(async move { drop(pass(client, controlled, &counter, &from).await) }));
    }
}

/// Puts a connection among the others. Answers what it is told.
fn add_link(
    shared: &Shared,
    received: watch::Receiver<u64>,
    from: Arc<AtomicU16>,
    client: IpAddr,
) -> watch::Receiver<Option<Behaviour>> {
    // Whoever holds what comes from an address meanwhile waits, and finds this one.
    let held_from = shared.held_from.lock().unwrap_or_else(PoisonError::into_inner);
    let mut beginning = *shared.beginning.lock().unwrap_or_else(PoisonError::into_inner);
    beginning.is_held |= held_from.contains(&client);
    let (control, controlled) = watch::channel(Some(beginning));
    let link = Link { control: Arc::new(control), received, from, client };
    shared.links.lock().unwrap_or_else(PoisonError::into_inner).push(link);
    controlled
}

async fn connect(target: u16, from: &AtomicU16) -> std::io::Result<TcpStream> {
    let server = TcpStream::connect(("127.0.0.1", target)).await?;
    server.set_nodelay(true)?;
    from.store(server.local_addr()?.port(), Ordering::Relaxed);
    Ok(server)
}

async fn pass(
    mut client: TcpStream,
    mut control: watch::Receiver<Option<Behaviour>>,
    counter: &watch::Sender<u64>,
    from: &AtomicU16,
) -> std::io::Result<()> {
    let (mut sent, mut answered) = (vec![0; 65_536], vec![0; 65_536]);
    let Some(mut now) = *control.borrow_and_update() else { return Ok(()) };
    client.set_nodelay(true)?;
    let mut server = connect(now.target, from).await?;
    loop {
        let is_full = now.held_after.is_some_and(|most| most <= *counter.borrow());
        let is_held = now.is_held || is_full;
        tokio::select! {
            changed = control.changed() => {
                let behaviour = *control.borrow_and_update();
                let Some(next) = behaviour.filter(|_| changed.is_ok()) else { return Ok(()) };
                if next.target != now.target {
                    server = connect(next.target, from).await?;
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
