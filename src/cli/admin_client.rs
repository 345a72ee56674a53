//! Asks a running worker's admin listener, as its own configuration says: by its certificate, and with its token.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::admin::certificates;
use cachekeeper_config::{Admin, Secret, TlsIdentity};

const LIMIT: Duration = Duration::from_secs(5);
/// A reload checks everything against the servers, and waits for the next worker.
const ACTION_LIMIT: Duration = Duration::from_secs(60);
/// A line holds at most the touches of one event, with their keys and reasons.
const LINE_MAX: usize = 64 << 20;

/// An answer.
pub struct Answer {
    pub code: u16,
    pub body: String,
}

/// Asks for a path.
pub async fn get(admin: &Admin, path: &str) -> io::Result<Answer> {
    within(LIMIT, ask(admin, ("GET", path, ""))).await
}

/// Asks for an action, whose end is waited for.
pub async fn post(admin: &Admin, path: &str, body: &serde_json::Value) -> io::Result<Answer> {
    within(ACTION_LIMIT, ask(admin, ("POST", path, &body.to_string()))).await
}

async fn within<T>(limit: Duration, asking: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let answer = timeout(limit, asking).await;
    answer.unwrap_or_else(|_elapsed| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")))
}

/// Asks for a path whose answer may have no end. What is refused is answered as a whole.
pub async fn open(admin: &Admin, path: &str) -> io::Result<Result<Lines, Answer>> {
    let opening = async {
        // An answer of HTTP/1.0 comes as it is, and ends with the connection.
        let mut lines = Lines::new(begin(admin, ("GET", path, ""), "HTTP/1.0").await?);
        let code = code_of(&lines.next().await?.unwrap_or_default())?;
        while lines.next().await?.is_some_and(|header| !header.is_empty()) {}
        if code == 200 {
            return Ok(Ok(lines));
        }
        let mut body = Vec::new();
        while let Some(line) = lines.next().await? {
            body.push(line);
        }
        Ok(Err(Answer { code, body: body.join("\n") }))
    };
    within(LIMIT, opening).await
}

async fn ask(admin: &Admin, request: (&str, &str, &str)) -> io::Result<Answer> {
    let mut stream = begin(admin, request, "HTTP/1.1").await?;
    let mut reply = Vec::new();
    match stream.read_to_end(&mut reply).await {
        // Whoever closes without saying goodbye in TLS has answered all the same.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !reply.is_empty() => {}
        read => drop(read?),
    }
    let reply = String::from_utf8_lossy(&reply);
    let code = code_of(&reply)?;
    let body = reply.split_once("\r\n\r\n").map_or("", |(_, body)| body.trim());
    Ok(Answer { code, body: body.to_owned() })
}

fn code_of(reply: &str) -> io::Result<u16> {
    let code = reply.split_whitespace().nth(1).and_then(|code| code.parse().ok());
    code.ok_or_else(|| io::Error::other("the answer is not one of HTTP"))
}

/// Connects, and sends the request.
async fn begin(
    admin: &Admin,
    (method, path, body): (&str, &str, &str),
    version: &str,
) -> io::Result<Box<dyn Wire>> {
    let listen = admin.listen.as_deref().unwrap_or_default();
    let address = listen.parse().map(reachable).map_err(|_wrong| io::Error::other("no address to ask"))?;
    let stream = TcpStream::connect(address).await?;
    let is_action = method != "GET";
    let token = token(admin, is_action).map(|token| format!("Authorization: Bearer {}\r\n", token.reveal()));
    let authorization = token.unwrap_or_default();
    let mut request =
        format!("{method} {path} {version}\r\nHost: {address}\r\n{authorization}Connection: close\r\n");
    if is_action {
        let length = body.len();
        request.push_str(&format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"));
    }
    request.push_str(&format!("\r\n{body}"));
    let mut stream: Box<dyn Wire> = match &admin.tls {
        None => Box::new(stream),
        Some(identity) => {
            let connector = TlsConnector::from(Arc::new(client(identity)?));
            let name = ServerName::IpAddress(address.ip().into());
            Box::new(connector.connect(name, stream).await?)
        }
    };
    stream.write_all(request.as_bytes()).await?;
    Ok(stream)
}

/// A connection, with TLS or without.
trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// An answer, line by line.
pub struct Lines {
    stream: Box<dyn Wire>,
    read: Vec<u8>,
    /// How much of it has been looked through.
    seen: usize,
}

impl Lines {
    fn new(stream: Box<dyn Wire>) -> Self {
        Self { stream, read: Vec::new(), seen: 0 }
    }

    /// The next line, without its end; none: the answer has ended. What was read stays where the wait is given up.
    pub async fn next(&mut self) -> io::Result<Option<String>> {
        loop {
            let new = self.read.get(self.seen..).unwrap_or_default();
            if let Some(at) = new.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=self.seen + at).collect();
                self.seen = 0;
                return Ok(Some(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned()));
            }
            self.seen = self.read.len();
            if LINE_MAX < self.read.len() {
                return Err(io::Error::other("a line of the answer is longer than any should be"));
            }
            if self.stream.read_buf(&mut self.read).await? == 0 {
                self.seen = 0;
                let rest = std::mem::take(&mut self.read);
                let rest = String::from_utf8_lossy(&rest).into_owned();
                return Ok(Some(rest).filter(|rest| !rest.is_empty()));
            }
        }
    }
}

/// Where a listener can be asked that takes connections to every address of this machine.
fn reachable(mut listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() {
        let is_v4 = listen.is_ipv4();
        listen.set_ip(if is_v4 { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) });
    }
    listen
}

/// To read, one that may read is enough. Without one the bare answers of probes are had.
fn token(admin: &Admin, is_action: bool) -> Option<Secret> {
    let files = [admin.read_token_file.as_ref().filter(|_| !is_action), admin.token_file.as_ref()];
    files.into_iter().flatten().filter_map(|file| Secret::of_file(file).ok()).next()
}

/// Trusts the very certificate of the configuration, whatever names it has: the listener is asked by its address.
fn client(identity: &TlsIdentity) -> io::Result<ClientConfig> {
    let pem = std::fs::read(&identity.cert_file)?;
    let found = certificates(&pem).map_err(|problem| io::Error::other(problem.message))?;
    let certificate = found.into_iter().next().ok_or_else(|| io::Error::other("no certificate"))?;
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(Pinned { certificate, provider: Arc::clone(&provider) });
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?;
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// The one certificate that is trusted.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.certificate {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General("the listener has another certificate than [admin] cert_file".to_owned()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
