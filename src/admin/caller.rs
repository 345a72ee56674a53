//! Who asks.

use std::net::SocketAddr;

use super::tokens::Role;

/// The address that a connection comes from; set by the server for each request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub SocketAddr);

/// Who asks, where that is known: set by the guard for each request that it lets through, to be had by `Extension<Caller>`.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub role: Role,
    /// The name that came with the token, if any. Nothing is decided by it.
    pub user: Option<String>,
    pub peer: Option<SocketAddr>,
}
