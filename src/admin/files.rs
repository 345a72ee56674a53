//! The files of the listener: tokens, certificate and key. They are read again and again, so what is replaced needs no restart;
//! while a file cannot be used, what it held before goes on.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::sync::watch;
use tracing::{info, warn};

use super::problem::FileProblem;
use super::tls;
use super::tokens::Tokens;
use cachekeeper_config::{Admin, Secret};
use cachekeeper_engine::backoff::every;
use cachekeeper_engine::log_limit;

/// How soon another token counts, and one that was taken away does not.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Shorter ones could be guessed.
const TOKEN_MIN: usize = 16;

/// What is wrong with the files as they are now, for `check` and the start of a worker.
#[must_use]
pub fn problems(admin: &Admin) -> Vec<FileProblem> {
    let mut problems = Vec::new();
    drop(Content::read(admin, &Content::default(), &mut problems));
    problems
}

/// The files, and what they held when they were last right.
#[derive(Debug)]
pub(super) struct Files {
    pub admin: Admin,
    content: RwLock<Content>,
    /// Tells that tokens have changed.
    changed: watch::Sender<()>,
}

#[derive(Clone, Default, Debug)]
struct Content {
    tokens: Tokens,
    /// The certificate with what it was made of: a change is told by the bytes.
    tls: Option<(tls::Pem, Arc<ServerConfig>)>,
}

impl Files {
    /// A file that cannot be read lets nobody in.
    pub(super) fn open(admin: &Admin) -> Self {
        let mut problems = Vec::new();
        let content = Content::read(admin, &Content::default(), &mut problems);
        tell(&problems);
        Self { admin: admin.clone(), content: RwLock::new(content), changed: watch::Sender::new(()) }
    }

    pub(super) fn tokens(&self) -> Tokens {
        self.content.read().unwrap_or_else(PoisonError::into_inner).tokens.clone()
    }

    /// Tells when the tokens change.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// None: without TLS, or its files could never be read.
    pub(super) fn tls(&self) -> Option<Arc<ServerConfig>> {
        let content = self.content.read().unwrap_or_else(PoisonError::into_inner);
        content.tls.as_ref().map(|(_, config)| Arc::clone(config))
    }

    /// Reads them again for ever.
    pub(super) async fn follow(self: Arc<Self>) {
        let mut ticks = every(LOOK_EVERY);
        loop {
            ticks.tick().await;
            let files = Arc::clone(&self);
            // A file may stand on a disk that does not answer.
            drop(tokio::task::spawn_blocking(move || files.read_again()).await);
        }
    }

    fn read_again(&self) {
        let before = self.content.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut problems = Vec::new();
        let content = Content::read(&self.admin, &before, &mut problems);
        tell(&problems);
        let has_tokens = content.tokens != before.tokens;
        let has_tls = content.tls.as_ref().map(|(pem, _)| pem) != before.tls.as_ref().map(|(pem, _)| pem);
        if has_tokens || has_tls {
            *self.content.write().unwrap_or_else(PoisonError::into_inner) = content;
            if has_tokens {
                self.changed.send_replace(());
            }
            info!(tokens = has_tokens, certificate = has_tls, "files of the admin listener have changed");
        }
    }
}

impl Content {
    /// What the files hold now, else what they held before.
    fn read(admin: &Admin, before: &Self, problems: &mut Vec<FileProblem>) -> Self {
        let mut token =
            |setting, file: Option<&Path>, before: &Option<Secret>| match read_token(setting, file?) {
                Ok(token) => Some(token),
                Err(problem) => {
                    problems.push(problem);
                    before.clone()
                }
            };
        let act = token("token_file", admin.token_file.as_deref(), &before.tokens.act);
        let read = token("read_token_file", admin.read_token_file.as_deref(), &before.tokens.read);
        if act.is_some() && act == read {
            problems.push(FileProblem {
                setting: "read_token_file",
                message: "the token that may only read is the one that may act".to_owned(),
                help: "give each its own",
            });
        }
        let tls = admin.tls.as_ref().and_then(|identity| {
            let made = tls::Pem::read(identity).and_then(|pem| match &before.tls {
                Some((known, config)) if *known == pem => Ok((pem, Arc::clone(config))),
                _ => match pem.server() {
                    Ok(server) => Ok((pem, server)),
                    Err(problem) => Err(vec![problem]),
                },
            });
            made.map_err(|found| problems.extend(found)).ok().or_else(|| before.tls.clone())
        });
        Self { tokens: Tokens { act, read }, tls }
    }
}

fn read_token(setting: &'static str, file: &Path) -> Result<Secret, FileProblem> {
    let problem = |message: String, help| FileProblem { setting, message, help };
    let token = Secret::of_file(file).map_err(|error| {
        problem(error.to_string(), "give a file with the token in one line, which this user may read")
    })?;
    let (length, name) = (token.reveal().len(), file.display());
    let help = "make one with `openssl rand -hex 32`";
    if length < TOKEN_MIN {
        let message =
            format!("the token in {name} is too short to be safe: {length} characters, at least {TOKEN_MIN}");
        return Err(problem(message, help));
    }
    if !token.reveal().bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(problem(format!("the token in {name} has characters that a header cannot carry"), help));
    }
    Ok(token)
}

fn tell(problems: &[FileProblem]) {
    for FileProblem { setting, message, .. } in problems {
        let what = "a file of the admin listener cannot be used; what it held before counts";
        if let Some(times) = log_limit::due(what, setting, 1) {
            warn!(setting, error = message, times, "{what}");
        }
    }
}
