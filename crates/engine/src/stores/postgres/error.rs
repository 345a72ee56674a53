//! What a failed statement means.

use sqlx::Error;
use sqlx::migrate::MigrateError;

/// A statement that failed.
#[derive(Debug, thiserror::Error)]
#[error("postgres: failed to {what}: {kind}")]
pub struct SourceError {
    /// What was attempted.
    pub what: &'static str,
    /// What the failure means.
    pub kind: ErrorKind,
    /// What the server, or the driver, says.
    #[source]
    pub source: Cause,
}

/// What the driver reports, as a person reads it: what the server says, without the driver's frame around it and without
/// the line of the server's own source.
#[derive(Debug)]
pub struct Cause(Error);

impl std::ops::Deref for Cause {
    type Target = Error;

    fn deref(&self) -> &Error {
        &self.0
    }
}

impl std::error::Error for Cause {}

impl std::fmt::Display for Cause {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write_cause(&self.0, formatter)
    }
}

fn write_cause(error: &Error, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
    match error {
        Error::Database(database) => formatter.write_str(database.message()),
        Error::Io(error) => write!(formatter, "{error}"),
        Error::Protocol(text) => formatter.write_str(text),
        Error::PoolTimedOut => formatter.write_str("no connection was free within `connect_timeout`"),
        Error::Migrate(migrate) => match migrate.as_ref() {
            MigrateError::Execute(error) => write_cause(error, formatter),
            MigrateError::ExecuteMigration(error, version) => {
                write!(formatter, "migration {version}: ")?;
                write_cause(error, formatter)
            }
            other => write!(formatter, "{other}"),
        },
        other => write!(formatter, "{other}"),
    }
}

/// What a failure means, and so what helps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ErrorKind {
    /// The server cannot be reached, or broke off, or has no connection to spare.
    #[error("the server cannot be reached")]
    Unavailable,
    /// The schema `cachekeeper` is not installed.
    #[error("the schema `cachekeeper` is not installed; run `cachekeeper migrate`")]
    NoSchema,
    /// This is a standby. Loads come from the primary only.
    #[error("this server is a standby; loads come from the primary only")]
    Standby,
    /// The incarnation's row is missing: the primary restarted.
    #[error("the primary restarted and its incarnation is not recorded yet")]
    NoIncarnation,
    /// A value in the data makes the statement fail.
    #[error("a value in the data makes the statement fail")]
    Data,
    /// A statement took longer than it may, or was cancelled.
    #[error("the statement took longer than `statement_timeout`, or was cancelled")]
    Cancelled,
    /// Wrong user, password or rights.
    #[error("the user, the password or the user's rights are wrong")]
    Forbidden,
    /// The login is refused, by the server or by this side: role, password, database or certificate.
    #[error("the login is refused")]
    Login,
    /// A pooler shares sessions among its clients.
    #[error("a pooler in transaction or statement mode stands before the server")]
    Pooler,
    /// Something in the schema `cachekeeper` belongs to somebody else.
    #[error(
        "things in the schema `cachekeeper` belong to others, and would run with this role's rights; run it as their owner, or drop them"
    )]
    Foreign,
    /// The tables have changed since the statement was prepared.
    #[error("the tables have changed since the statement was prepared")]
    Changed,
    /// The statement itself is wrong.
    #[error("the statement is not accepted")]
    Statement,
    /// The reply does not have the agreed form.
    #[error("the reply has another form than agreed")]
    Reply,
}

/// Who is to blame for a write that failed, and so what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blame {
    /// The statement or its values: it would fail again. What the server says.
    Statement(String),
    /// A lock or conflict, or a limit that was reached: it may succeed later.
    Others,
    /// The server: nothing can be written at present.
    Server,
}

impl SourceError {
    pub(super) fn new(what: &'static str, source: Error) -> Self {
        Self { what, kind: kind_of(&source), source: Cause(source) }
    }

    /// The same for one more who waits for it.
    pub(crate) fn copied(&self) -> Self {
        Self::with(self.what, self.kind.clone(), self.message())
    }

    pub(super) fn with(what: &'static str, kind: ErrorKind, detail: String) -> Self {
        Self { what, kind, source: Cause(Error::Protocol(detail)) }
    }

    /// Whether no connection was had in time: why, only an attempt of its own tells.
    pub(super) fn is_out_of_connections(&self) -> bool {
        matches!(*self.source, Error::PoolTimedOut)
    }

    /// Whether no connection was made at all.
    fn is_of_connecting(&self) -> bool {
        connect_error(&self.source).is_some()
    }

    /// Whether it is a matter of the configuration, here or at the server: waiting alone does not help.
    #[must_use]
    pub fn is_of_configuration(&self) -> bool {
        match self.kind {
            ErrorKind::Login | ErrorKind::Pooler => true,
            ErrorKind::Standby => self.is_of_connecting(),
            ErrorKind::Unavailable
            | ErrorKind::NoSchema
            | ErrorKind::NoIncarnation
            | ErrorKind::Data
            | ErrorKind::Cancelled
            | ErrorKind::Forbidden
            | ErrorKind::Foreign
            | ErrorKind::Changed
            | ErrorKind::Statement
            | ErrorKind::Reply => false,
        }
    }

    /// No answer within the caller's limit.
    pub(super) fn slow(what: &'static str) -> Self {
        Self::with(what, ErrorKind::Cancelled, "no answer within the limit".to_owned())
    }

    /// Whether nothing could be asked at all: nobody answers, or lets this process in.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self.kind, ErrorKind::Unavailable | ErrorKind::Login | ErrorKind::Pooler)
    }

    /// Whether the server itself said nothing: it is not one statement that had to wait.
    #[must_use]
    pub fn is_without_answer(&self) -> bool {
        self.is_unreachable()
            || self.kind == ErrorKind::Cancelled && self.source.as_database_error().is_none()
    }

    /// Whether waiting helps.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self.kind {
            // Files with secrets and certificates are read again, and a pooler may be set up anew.
            ErrorKind::Unavailable
            | ErrorKind::Login
            | ErrorKind::Pooler
            | ErrorKind::NoIncarnation
            | ErrorKind::Cancelled
            | ErrorKind::Changed => true,
            ErrorKind::NoSchema
            | ErrorKind::Standby
            | ErrorKind::Data
            | ErrorKind::Forbidden
            | ErrorKind::Foreign
            | ErrorKind::Statement
            | ErrorKind::Reply => false,
        }
    }

    /// Whether this is another server than the one that is wanted, or not ready yet: no statement can succeed there.
    #[must_use]
    pub(crate) fn is_of_the_server(&self) -> bool {
        matches!(self.kind, ErrorKind::NoIncarnation | ErrorKind::Standby | ErrorKind::NoSchema)
    }

    /// Whether what has failed may be missing or changed in the schema `cachekeeper`.
    #[must_use]
    pub fn may_be_of_the_schema(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::NoSchema
                | ErrorKind::Statement
                | ErrorKind::Reply
                | ErrorKind::Data
                | ErrorKind::Forbidden
        )
    }

    /// Who is to blame for a write that failed (SQLSTATE classes: PostgreSQL manual, appendix A).
    #[must_use]
    pub(crate) fn blame(&self) -> Blame {
        let Some(error) = self.source.as_database_error() else { return Blame::Server };
        match self.kind {
            ErrorKind::Standby | ErrorKind::NoSchema | ErrorKind::NoIncarnation => return Blame::Server,
            ErrorKind::Cancelled | ErrorKind::Changed => return Blame::Others,
            _ => {}
        }
        match error.code().unwrap_or_default().get(..2) {
            Some("08" | "53" | "57" | "58") => Blame::Server,
            Some("XX") => Blame::Others,
            // The session was ended, because this process stood still in a transaction.
            _ if error.code().is_some_and(|code| code == "25P03") => Blame::Server,
            _ => Blame::Statement(error.message().to_owned()),
        }
    }

    /// Whether the statement took too long (SQLSTATE 57014), or failed inside the server, and may do so again.
    #[must_use]
    pub(crate) fn is_slow(&self) -> bool {
        let code = self.source.as_database_error().and_then(|error| error.code());
        code.is_some_and(|code| code == "57014" || code.starts_with("XX"))
    }

    /// Where in a statement the server found the mistake, as a byte of its text, if it said. The server counts characters.
    #[must_use]
    pub(crate) fn position_in(&self, sql: &str) -> Option<usize> {
        let database = self.source.as_database_error()?;
        let postgres = database.try_downcast_ref::<sqlx::postgres::PgDatabaseError>()?;
        let characters = match postgres.position()? {
            sqlx::postgres::PgErrorPosition::Original(position) => position.checked_sub(1)?,
            sqlx::postgres::PgErrorPosition::Internal { .. } => return None,
        };
        Some(sql.char_indices().nth(characters).map_or(sql.len(), |(at, _)| at))
    }

    /// What the server proposes to do.
    #[must_use]
    pub(crate) fn hint(&self) -> Option<&str> {
        let database = self.source.as_database_error()?;
        database.try_downcast_ref::<sqlx::postgres::PgDatabaseError>()?.hint()
    }

    /// Whether a statement could not even be read (SQLSTATE 42601).
    #[must_use]
    pub(super) fn is_of_syntax(&self) -> bool {
        self.has_code("42601")
    }

    /// Whether a column, a table, a function or a type is not there (SQLSTATE 42703, 42P01, 42883, 42704, 3F000).
    #[must_use]
    pub(super) fn is_of_something_missing(&self) -> bool {
        ["42703", "42P01", "42883", "42704", "3F000"].into_iter().any(|code| self.has_code(code))
    }

    /// Whether a text cannot be the name of a relation (SQLSTATE 42602, with too many dots 42601, of another database 0A000).
    #[must_use]
    pub(super) fn is_of_a_name(&self) -> bool {
        ["42602", "42601", "0A000"].into_iter().any(|code| self.has_code(code))
    }

    fn has_code(&self, code: &str) -> bool {
        self.source.as_database_error().and_then(|error| error.code()).is_some_and(|found| found == code)
    }

    /// The whole in one sentence, for people: what was attempted, and why it failed or what to do.
    #[must_use]
    pub fn told(&self) -> String {
        let (what, message) = (self.what, self.message());
        match &self.kind {
            _ if self.is_of_connecting() => message,
            ErrorKind::Unavailable
            | ErrorKind::Login
            | ErrorKind::Pooler
            | ErrorKind::Forbidden
            | ErrorKind::Statement
            | ErrorKind::Data => format!("failed to {what}: {message}"),
            kind @ (ErrorKind::NoSchema | ErrorKind::Standby | ErrorKind::NoIncarnation) => kind.to_string(),
            kind @ (ErrorKind::Cancelled | ErrorKind::Changed | ErrorKind::Reply | ErrorKind::Foreign) => {
                format!("failed to {what}: {kind} ({message})")
            }
        }
    }

    /// What a refusal of a dataset's query for want of rights means, and what to do.
    pub(super) fn may_not_run(&self, role: &str) -> (String, String) {
        let message = self.message();
        let help = if message.contains("for schema") {
            format!("grant usage on the schema, and select on what the query reads in it, to {role}")
        } else if let Some((_, function)) = message.split_once("for function ") {
            format!("grant execute on function {function} to {role}, with the types of its arguments")
        } else {
            format!("grant select on it to {role}")
        };
        (format!("the role {role} may not run it: {message}"), help)
    }

    /// Why no connection was made, and what to do where that is certain; none: it is about a statement.
    #[must_use]
    pub fn of_connecting(&self) -> Option<(&str, Option<&'static str>)> {
        connect_error(&self.source).map(|error| (error.text.as_str(), error.help))
    }

    /// What the server says, where it said anything.
    #[must_use]
    pub fn message(&self) -> String {
        self.source.to_string()
    }
}

/// An attempt to connect that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConnectError {
    pub kind: ErrorKind,
    pub text: String,
    /// What to do, where the text does not say.
    pub help: Option<&'static str>,
    /// Whether the same attempt may succeed in a moment: the server starts, or is being promoted.
    pub may_pass: bool,
}

impl From<ConnectError> for Error {
    fn from(error: ConnectError) -> Self {
        Self::Io(std::io::Error::other(error))
    }
}

fn connect_error(error: &Error) -> Option<&ConnectError> {
    match error {
        Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}

fn kind_of(error: &Error) -> ErrorKind {
    if let Some(error) = connect_error(error) {
        return error.kind.clone();
    }
    match error {
        Error::Io(_) | Error::Tls(_) | Error::PoolTimedOut | Error::PoolClosed | Error::WorkerCrashed => {
            ErrorKind::Unavailable
        }
        Error::Database(database) => {
            let code = database.code().unwrap_or_default();
            let message = database.message();
            by_code(&code, message)
        }
        Error::Migrate(migrate) => match migrate.as_ref() {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => kind_of(error),
            _ => ErrorKind::Statement,
        },
        Error::Configuration(_) => ErrorKind::Login,
        Error::ColumnDecode { .. } | Error::Decode(_) | Error::Protocol(_) => ErrorKind::Reply,
        _ => ErrorKind::Statement,
    }
}

/// By SQLSTATE (PostgreSQL manual, appendix A).
fn by_code(code: &str, message: &str) -> ErrorKind {
    match code {
        "0A000" if message.contains("during recovery") => ErrorKind::Standby,
        "0A000" if message.contains("cached plan") => ErrorKind::Changed,
        "25006" if message.contains("recovery") => ErrorKind::Standby,
        "57014" => ErrorKind::Cancelled,
        "3F000" | "42P01" if message.contains("cachekeeper") => ErrorKind::NoSchema,
        "42501" => ErrorKind::Forbidden,
        "55P03" => ErrorKind::Cancelled,
        // One page of a table, not the server.
        "XX001" | "XX002" => ErrorKind::Data,
        _ => match code.get(..2).unwrap_or_default() {
            "08" | "53" | "57" | "58" | "XX" => ErrorKind::Unavailable,
            "28" => ErrorKind::Forbidden,
            // Values, cases without a match, limits of a value, and what functions of the query raise.
            "20" | "21" | "22" | "38" | "39" | "54" | "P0" => ErrorKind::Data,
            "40" => ErrorKind::Cancelled,
            _ => ErrorKind::Statement,
        },
    }
}
