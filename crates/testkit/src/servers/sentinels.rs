//! Sentinels that watch one master.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use super::{READY_WITHIN, Server, ServerError, failed, find_program, free_port, launch, new_directory};

/// Running sentinels; two of three must agree that the master is down.
#[derive(Debug)]
pub struct Sentinels {
    servers: Vec<Server>,
    tls_ports: Vec<u16>,
    password: Option<String>,
}

/// The name under which they know the master.
pub const SERVICE: &str = "shop";

impl Sentinels {
    /// Three of them, that find a server down which does not answer for a second. `settings` are further lines of their
    /// configuration, such as `requirepass secret`; one that begins with `auth-pass` is about the master.
    pub async fn start(master: u16, settings: &[&str]) -> Result<Self, ServerError> {
        Self::launch(master, settings)?.settled().await
    }

    /// The same with a port for TLS each, where `settings` name the certificates.
    pub async fn start_with_tls(master: u16, settings: &[&str]) -> Result<Self, ServerError> {
        let ports = [free_port()?, free_port()?, free_port()?];
        Self::launch_all(master, settings, ports.map(Some))?.settled().await
    }

    async fn settled(self) -> Result<Self, ServerError> {
        let began = Instant::now();
        // Each must know the two others and a replica, or it agrees to nothing.
        while !self.know_each_other().await {
            if READY_WITHIN < began.elapsed() {
                return Err(failed("starting sentinels", "they do not find each other"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(self)
    }

    /// The same without waiting until they know each other and a replica.
    pub fn launch(master: u16, settings: &[&str]) -> Result<Self, ServerError> {
        Self::launch_all(master, settings, [None; 3])
    }

    fn launch_all(master: u16, settings: &[&str], tls_ports: [Option<u16>; 3]) -> Result<Self, ServerError> {
        let password = settings.iter().find_map(|line| line.strip_prefix("requirepass ")).map(str::to_owned);
        let known = tls_ports.into_iter().flatten().collect();
        let mut sentinels = Self { servers: Vec::new(), tls_ports: known, password };
        for tls_port in tls_ports {
            let server = Server { pid: None, port: free_port()?, directory: new_directory("sentinel")? };
            sentinels.servers.push(server);
            if let Some(server) = sentinels.servers.last_mut() {
                let mut lines: Vec<String> = settings.iter().map(ToString::to_string).collect();
                lines.extend(tls_port.map(|port| format!("tls-port {port}")));
                run(server, master, &lines)?;
            }
        }
        Ok(sentinels)
    }

    /// `redis+sentinel://127.0.0.1:PORT,127.0.0.1:PORT,127.0.0.1:PORT/shop/0`
    #[must_use]
    pub fn url(&self) -> String {
        let nodes: Vec<String> =
            self.servers.iter().map(|server| format!("127.0.0.1:{}", server.port)).collect();
        format!("redis+sentinel://{}/{SERVICE}/0", nodes.join(","))
    }

    /// Their ports.
    #[must_use]
    pub fn ports(&self) -> Vec<u16> {
        self.servers.iter().map(|server| server.port).collect()
    }

    /// Their ports for TLS, where they have any.
    #[must_use]
    pub fn tls_ports(&self) -> &[u16] {
        &self.tls_ports
    }

    /// Has another server made the master.
    pub async fn fail_over(&self) -> Result<(), ServerError> {
        let Some(first) = self.servers.first() else { return Ok(()) };
        let mut connection = self.connect(first.port).await?;
        let asked = ::redis::cmd("SENTINEL").arg("FAILOVER").arg(SERVICE).exec_async(&mut connection).await;
        asked.map_err(|error| failed("SENTINEL FAILOVER", error))
    }

    /// The port of the master, as the sentinel at this position names it.
    pub async fn master(&self, position: usize) -> Result<u16, ServerError> {
        let failed = |error: ::redis::RedisError| failed("asking a sentinel", error);
        let Some(server) = self.servers.get(position) else { return Ok(0) };
        let mut connection = self.connect(server.port).await?;
        let mut command = ::redis::cmd("SENTINEL");
        command.arg("GET-MASTER-ADDR-BY-NAME").arg(SERVICE);
        let (_, port): (String, u16) = command.query_async(&mut connection).await.map_err(failed)?;
        Ok(port)
    }

    /// Kills the sentinel at this position.
    pub fn kill(&mut self, position: usize) {
        if let Some(server) = self.servers.get_mut(position) {
            server.kill("KILL");
        }
    }

    /// Stops the sentinel at this position from running without ending it.
    pub fn pause(&self, position: usize) {
        if let Some(server) = self.servers.get(position) {
            server.signal("STOP");
        }
    }

    /// Lets it go on.
    pub fn resume(&self, position: usize) {
        if let Some(server) = self.servers.get(position) {
            server.signal("CONT");
        }
    }

    async fn connect(&self, port: u16) -> Result<::redis::aio::MultiplexedConnection, ServerError> {
        let user = self.password.as_ref().map_or(String::new(), |password| format!(":{password}@"));
        let client = ::redis::Client::open(format!("redis://{user}127.0.0.1:{port}"))
            .map_err(|error| failed("connecting", error))?;
        client.get_multiplexed_async_connection().await.map_err(|error| failed("connecting", error))
    }

    async fn know_each_other(&self) -> bool {
        for server in &self.servers {
            let Ok(mut connection) = self.connect(server.port).await else { return false };
            for what in ["SENTINELS", "REPLICAS"] {
                let wanted = if what == "SENTINELS" { self.servers.len() - 1 } else { 1 };
                let mut command = ::redis::cmd("SENTINEL");
                command.arg(what).arg(SERVICE);
                let known: Result<Vec<::redis::Value>, _> = command.query_async(&mut connection).await;
                if !known.is_ok_and(|known| wanted <= known.len()) {
                    return false;
                }
            }
        }
        true
    }
}

fn run(server: &mut Server, master: u16, settings: &[String]) -> Result<(), ServerError> {
    let program = find_program("redis-server", &[])
        .or_else(|| find_program("valkey-server", &[]))
        .ok_or(ServerError::Missing { program: "redis-server" })?;
    let (about_master, own): (Vec<&String>, Vec<&String>) =
        settings.iter().partition(|line| line.starts_with("auth-pass"));
    let mut lines = vec![
        format!("port {}", server.port),
        "bind 127.0.0.1".to_owned(),
        format!("dir {}", server.directory.display()),
        format!("sentinel monitor {SERVICE} 127.0.0.1 {master} 2"),
        format!("sentinel down-after-milliseconds {SERVICE} 1000"),
        format!("sentinel failover-timeout {SERVICE} 5000"),
    ];
    lines.extend(own.iter().map(ToString::to_string));
    lines.extend(
        about_master
            .iter()
            .map(|line| line.replacen("auth-pass", &format!("sentinel auth-pass {SERVICE}"), 1)),
    );
    let file: PathBuf = server.directory.join("sentinel.conf");
    std::fs::write(&file, lines.join("\n") + "\n").map_err(|error| failed("writing sentinel.conf", error))?;
    let command = vec![program.display().to_string(), file.display().to_string(), "--sentinel".to_owned()];
    server.pid = Some(launch(command, &server.directory.join("log"), false)?);
    Ok(())
}
