//! A session on the server. Whoever waits for it has a limit of this side's own: a server, or what stands before it, may accept
//! everything and then say nothing more.

use std::io;
use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use sqlx::postgres::{PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{
    AssertSqlSafe, Connection as _, Either, Error, Execute, Executor, PgConnection, Postgres as Server,
    SqlStr,
};

use super::SourceError;
use super::inquiry::{Inquiry, Told};
use super::pooler::process;

/// How long a session waits for the next word of the server.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    /// Who tells, on another connection, whether the server is at work: where what it has said does not arrive, nobody waits on.
    pub inquiry: Inquiry,
    /// The longest, after which the server itself would have ended the statement; none: as long as it says that it is at work.
    pub limit: Option<Duration>,
}

/// Silence after which the server is asked whether it is at work, at first and later.
const ASKED_AFTER: Duration = Duration::from_secs(2);
const ASKED_AFTER_MAX: Duration = Duration::from_secs(10);
/// How long one waits for a session that nobody used for a while: a new one costs little.
const LIVES_WITHIN: Duration = Duration::from_secs(1);

impl Patience {
    async fn wait<T>(&self, answer: impl Future<Output = Result<T, Error>>) -> Waited<T> {
        let Some(limit) = self.limit else { return self.wait_at_work(answer).await };
        match tokio::time::timeout(limit, self.wait_at_work(answer)).await {
            Ok(waited) => waited,
            Err(_elapsed) => Waited::Silent(silent(&format!("no answer within {} ms", limit.as_millis()))),
        }
    }

    async fn wait_at_work<T>(&self, answer: impl Future<Output = Result<T, Error>>) -> Waited<T> {
        let mut answer = pin!(answer);
        let mut pause = ASKED_AFTER;
        loop {
            if let Ok(answer) = tokio::time::timeout(pause, answer.as_mut()).await {
                return Waited::Answered(answer);
            }
            pause = (pause * 2).min(ASKED_AFTER_MAX);
            let told = tokio::select! {
                answer = answer.as_mut() => return Waited::Answered(answer),
                told = self.inquiry.ask() => told,
            };
            match told {
                Told::AtWork => {}
                // A server that is out of connections, or stands still, may be at work all the same: the limit tells.
                Told::Nothing(_) if self.limit.is_some() => {}
                Told::Nothing(reason) | Told::Lost(reason) => return Waited::Silent(silent(&reason)),
            }
        }
    }
}

enum Waited<T> {
    Answered(Result<T, Error>),
    Silent(Error),
}

fn silent(reason: &str) -> Error {
    let text = format!("the server has fallen silent: {reason}");
    Error::Io(io::Error::new(io::ErrorKind::TimedOut, text))
}

/// A connection, and how long one waits for it.
#[derive(Debug)]
pub struct Session {
    /// None once it was taken out.
    connection: Option<PgConnection>,
    patience: Patience,
    /// The server's process.
    process: i32,
    state: State,
}

/// What was left behind on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    /// A transaction that is to be rolled back before anything else is done.
    Abandoned,
    /// What it still says belongs to a statement that nobody waits for any more.
    GivenUp,
}

impl Session {
    pub(super) fn new(connection: PgConnection, process: i32, patience: Patience) -> Self {
        Self { connection: Some(connection), patience, process, state: State::Ready }
    }

    /// Takes it out of its place, where it can be used further.
    pub(super) fn take(&mut self) -> Option<Self> {
        let connection = self.connection.take().filter(|_| self.state != State::GivenUp)?;
        Some(Self { connection: Some(connection), patience: self.patience.clone(), ..*self })
    }

    /// Waits for what is done with the connection as long as for a statement.
    pub(super) async fn waiting<T>(
        &mut self,
        act: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let patience = self.patience.clone();
        self.waiting_for(&patience, act).await
    }

    /// The same for several statements one after the other, which are written for a plain connection, as applications have.
    ///
    /// # Errors
    /// Those of what is done; and of a server that has fallen silent.
    pub(crate) async fn plainly<T, E: From<SourceError>>(
        &mut self,
        what: &'static str,
        act: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, E> {
        let limit = self.patience.limit.map(|limit| limit * 2);
        let patience = Patience { limit, ..self.patience.clone() };
        let done = self.waiting_for(&patience, async |connection| Ok(act(connection).await)).await;
        done.unwrap_or_else(|source| Err(SourceError::new(what, source).into()))
    }

    async fn waiting_for<T>(
        &mut self,
        patience: &Patience,
        act: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let Self { connection, state, .. } = self;
        let connection = connection.as_mut().filter(|_| *state != State::GivenUp).ok_or(Error::PoolClosed)?;
        let acted = async {
            if *state == State::Abandoned {
                sqlx::raw_sql("rollback").execute(&mut *connection).await?;
                *state = State::Ready;
            }
            act(connection).await
        };
        match patience.wait(acted).await {
            Waited::Answered(answer) => answer,
            Waited::Silent(error) => {
                self.state = State::GivenUp;
                Err(error)
            }
        }
    }

    /// Begins a transaction.
    pub(super) async fn begin(&mut self) -> Result<Transaction<&mut Self>, Error> {
        Transaction::begin(self, None).await
    }

    async fn run(&mut self, sql: &str) -> Result<(), Error> {
        self.waiting(async |connection| {
            sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.map(drop)
        })
        .await
    }

    /// Ends the session in peace, where the server hears of it.
    pub(super) async fn close(mut self) -> Result<(), Error> {
        let Some(session) = self.take() else { return Ok(()) };
        let Some(connection) = session.connection else { return Ok(()) };
        match session.patience.wait(connection.close()).await {
            Waited::Answered(answer) => answer,
            Waited::Silent(error) => Err(error),
        }
    }

    /// Whether the process that answers is the session's own; none: none answers.
    pub(super) async fn is_own(&mut self) -> Option<bool> {
        let asked = self.waiting(async |connection| process(connection).await);
        let answer = tokio::time::timeout(LIVES_WITHIN, asked).await.ok()?;
        Some(answer.ok()? == self.process)
    }

    /// Carries out what waits to be sent, such as the end of a transaction that was given up.
    pub(super) async fn flush(&mut self) -> Result<(), Error> {
        self.waiting(async |connection| connection.ping().await).await
    }
}

impl<'c> Executor<'c> for &'c mut Session {
    type Database = Server;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Server>,
    {
        let begun = async move {
            // What was left behind comes first.
            self.waiting(async |_connection| Ok(())).await?;
            let Session { connection, patience, state, .. } = self;
            let answers = connection.as_mut().ok_or(Error::PoolClosed)?.fetch_many(query);
            Ok::<_, Error>(stream::unfold(Some((answers, patience, state)), async |rest| {
                let (mut answers, patience, state) = rest?;
                match patience.wait(async { Ok(answers.next().await) }).await {
                    Waited::Answered(Ok(next)) => next.map(|next| (next, Some((answers, patience, state)))),
                    Waited::Answered(Err(error)) => Some((Err(error), None)),
                    Waited::Silent(error) => {
                        *state = State::GivenUp;
                        Some((Err(error), None))
                    }
                }
            }))
        };
        stream::once(begun).try_flatten().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Server>,
    {
        Box::pin(async move { self.waiting(async |connection| connection.fetch_optional(query).await).await })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        Box::pin(async move {
            self.waiting(async |connection| connection.prepare_with(sql, parameters).await).await
        })
    }
}

/// A transaction, which is rolled back unless it is committed.
#[derive(Debug)]
pub struct Transaction<S: DerefMut<Target = Session>> {
    session: S,
    is_open: bool,
}

impl<S: DerefMut<Target = Session>> Transaction<S> {
    /// Begins one, by this statement where it is given. The driver knows nothing of it, so that it cannot nest its own in it.
    pub(super) async fn begin(session: S, statement: Option<&str>) -> Result<Self, Error> {
        let mut transaction = Self { session, is_open: true };
        transaction.session.run(statement.unwrap_or("begin")).await?;
        Ok(transaction)
    }

    pub async fn commit(mut self) -> Result<(), Error> {
        self.session.run("commit").await?;
        self.is_open = false;
        Ok(())
    }

    pub async fn rollback(mut self) -> Result<(), Error> {
        self.session.run("rollback").await?;
        self.is_open = false;
        Ok(())
    }
}

impl<S: DerefMut<Target = Session>> Deref for Transaction<S> {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl<S: DerefMut<Target = Session>> DerefMut for Transaction<S> {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

impl<S: DerefMut<Target = Session>> Drop for Transaction<S> {
    fn drop(&mut self) {
        if self.is_open && self.session.state == State::Ready {
            self.session.state = State::Abandoned;
        }
    }
}
