//! An address behind which servers change, as behind a proxy, a virtual address or a name that moves.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use super::{ServerError, failed};

/// A TCP proxy on a free port of this machine.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    state: Arc<Mutex<State>>,
    _accepting: JoinSet<()>,
}

#[derive(Debug)]
struct State {
    target: u16,
    connections: Vec<Connection>,
}

#[derive(Debug)]
struct Connection {
    /// The port from which the server sees it come.
    from: u16,
    /// Where it goes from now on; the end of the channel ends the connection.
    moves: UnboundedSender<Move>,
}

#[derive(Debug)]
enum Move {
    /// To the server at this port.
    To(u16),
    /// Nothing passes any more, and nobody is told.
    Hold,
}

impl Proxy {
    /// Begins with the server at this port.
    pub async fn start(target: u16) -> Result<Self, ServerError> {
        let listener =
            TcpListener::bind("127.0.0.1:0").await.map_err(|error| failed("starting a proxy", error))?;
        let port = listener.local_addr().map_err(|error| failed("starting a proxy", error))?.port();
        let state = Arc::new(Mutex::new(State { target, connections: Vec::new() }));
        let (mut accepting, shared) = (JoinSet::new(), state.clone());
        accepting.spawn(async move {
            let mut passing = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                passing.spawn(pass(client, shared.clone()));
            }
        });
        Ok(Self { port, state, _accepting: accepting })
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// New connections go to the server at this port; those that live stay where they are.
    pub fn aim(&self, target: u16) {
        self.lock().target = target;
    }

    /// Breaks all connections.
    pub fn cut(&self) {
        self.lock().connections.clear();
    }

    /// Lets nothing more pass through the connections that live; they stay open.
    pub fn hold(&self) {
        self.lock().connections.iter().for_each(|connection| drop(connection.moves.send(Move::Hold)));
    }

    /// Puts another server behind the connection that its server sees come from this port. Its client does not notice. False:
    /// there is no such connection.
    pub fn rehome(&self, from: u16, target: u16) -> bool {
        let state = self.lock();
        let found = state.connections.iter().find(|connection| connection.from == from);
        found.is_some_and(|connection| connection.moves.send(Move::To(target)).is_ok())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn pass(mut client: TcpStream, state: Arc<Mutex<State>>) {
    let mut target = state.lock().unwrap_or_else(PoisonError::into_inner).target;
    let (sender, mut moves) = unbounded_channel();
    let mut sender = Some(sender);
    loop {
        let Ok(mut server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
        let from = server.local_addr().map(|address| address.port()).unwrap_or_default();
        {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.connections.retain(|connection| !connection.moves.is_closed());
            match sender.take() {
                Some(moves) => state.connections.push(Connection { from, moves }),
                None => return,
            }
        }
        let next = tokio::select! {
            ended = copy_bidirectional(&mut client, &mut server) => { drop(ended); return }
            next = moves.recv() => next,
        };
        target = match next {
            Some(Move::To(port)) => port,
            // Until it is cut.
            Some(Move::Hold) => match moves.recv().await {
                Some(Move::To(port)) => port,
                Some(Move::Hold) | None => return,
            },
            None => return,
        };
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let position = state.connections.iter().position(|connection| connection.from == from);
        // Cut meanwhile.
        let Some(position) = position else { return };
        sender = Some(state.connections.swap_remove(position).moves);
    }
}
