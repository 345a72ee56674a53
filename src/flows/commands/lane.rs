//! One lane: commands in their order, many in one transaction.

use std::collections::HashMap;
use std::time::Duration;

use super::{Command, CommandError};
use crate::flows::context::Context;
use crate::flows::error::FlowError;
use crate::flows::write::parameters::bind;
use crate::flows::write::{Touched, WriteError, key_of, statement_of, write_in};
use crate::stores::postgres::SourceError;
use crate::stores::postgres::write::{Applied, applied, may_write, record_applied};

/// Commands of one transaction.
const GROUP: usize = 64;
/// Attempts before a group is taken apart, and before a command waits for a better time.
const ATTEMPTS: u32 = 5;

#[derive(Debug, Clone, Copy)]
pub(super) struct Lane<'a> {
    pub context: &'a Context,
    pub stream: &'a str,
    pub token: i64,
}

/// What became of a command.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub rows: i64,
    /// Why it was rejected.
    pub error: Option<String>,
    /// It had been carried out before.
    pub is_repeated: bool,
    pub touched: Option<Touched>,
}

impl Clone for Outcome {
    fn clone(&self) -> Self {
        Self { rows: self.rows, error: self.error.clone(), is_repeated: self.is_repeated, touched: None }
    }
}

impl Outcome {
    pub fn rejected(reason: String) -> Self {
        Self { error: Some(reason), ..Self::default() }
    }

    fn recorded(record: &Applied, command: &Command) -> Self {
        if record.digest != command.digest {
            return Self::rejected(format!("id {} was used before for other contents", command.id));
        }
        Self { rows: record.rows, error: record.error.clone(), is_repeated: true, touched: None }
    }
}

/// Why a transaction did not come to its end.
enum Broken {
    /// This command, by its position in the group, cannot be carried out.
    By(WriteError),
    Displaced,
}

impl From<SourceError> for Broken {
    fn from(error: SourceError) -> Self {
        Self::By(error.into())
    }
}

type Outcomes = Vec<(usize, Outcome)>;

impl Lane<'_> {
    /// Carries out all commands, in their order; those before an error are done.
    pub async fn run(&self, commands: Vec<(usize, Command)>) -> Result<Outcomes, Box<CommandError>> {
        let mut outcomes = Vec::with_capacity(commands.len());
        for group in commands.chunks(GROUP) {
            match self.attempt(group).await {
                Ok(done) => outcomes.extend(done),
                // One of them is not like the others: each for itself.
                Err(Broken::By(_)) if 1 < group.len() => {
                    for command in group.chunks(1) {
                        outcomes.extend(self.one(command).await?);
                    }
                }
                Err(broken) => outcomes.extend(self.after(group, broken).await?),
            }
        }
        Ok(outcomes)
    }

    async fn one(&self, command: &[(usize, Command)]) -> Result<Outcomes, Box<CommandError>> {
        match self.attempt(command).await {
            Ok(done) => Ok(done),
            Err(broken) => self.after(command, broken).await,
        }
    }

    /// A single command that failed: rejected for good, or to be tried later.
    async fn after(
        &self,
        command: &[(usize, Command)],
        broken: Broken,
    ) -> Result<Outcomes, Box<CommandError>> {
        match broken {
            Broken::Displaced => Err(Box::new(CommandError::Displaced)),
            Broken::By(error) if error.is_final() => self.reject(command, &error.to_string()).await,
            Broken::By(WriteError::Unavailable(error) | WriteError::Unknown(error)) => {
                Err(FlowError::from(error).into())
            }
            Broken::By(_) => Ok(Vec::new()),
        }
    }

    /// Tries a transaction again where only others were in the way.
    async fn attempt(&self, group: &[(usize, Command)]) -> Result<Outcomes, Broken> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.transaction(group).await {
                Err(Broken::By(WriteError::Unavailable(error)))
                    if error.is_conflict() && attempt < ATTEMPTS =>
                {
                    tokio::time::sleep(Duration::from_millis(2 << attempt)).await;
                }
                other => return other,
            }
        }
    }

    async fn transaction(&self, group: &[(usize, Command)]) -> Result<Outcomes, Broken> {
        let mut transaction = self.context.postgres.begin_write().await?;
        if !may_write(&mut transaction, self.stream, self.token).await? {
            return Err(Broken::Displaced);
        }
        let ids: Vec<String> = group.iter().map(|(_, command)| command.id.clone()).collect();
        let known = applied(&mut transaction, self.stream, &ids).await?;
        let mut known: HashMap<String, Applied> =
            known.into_iter().map(|record| (record.id.clone(), record)).collect();
        let (mut outcomes, mut records) = (Vec::with_capacity(group.len()), Vec::new());
        let mut last = None;
        for (at, command) in group {
            if let Some(record) = known.get(&command.id) {
                let mut outcome = Outcome::recorded(record, command);
                if outcome.error.is_none() {
                    outcome.touched = self.again(command).await;
                }
                outcomes.push((*at, outcome));
                continue;
            }
            let touched = write_in(self.context, &mut transaction, &command.dataset, &command.parameters);
            let touched = touched.await.map_err(Broken::By)?;
            let record = Applied {
                id: command.id.clone(),
                digest: command.digest.clone(),
                entry: command.position,
                rows: i64::try_from(touched.rows).unwrap_or(i64::MAX),
                error: None,
            };
            let outcome = Outcome { rows: record.rows, ..Outcome::default() };
            known.insert(command.id.clone(), record.clone());
            records.push(record);
            outcomes.push((*at, outcome));
            match &mut last {
                None => last = Some(touched),
                Some(all) => Touched::add(all, touched),
            }
        }
        if !records.is_empty() {
            record_applied(&mut transaction, self.stream, &records).await?;
            transaction.commit().await.map_err(SourceError::of_commit)?;
        }
        // What the transaction touched belongs to all of it; any of them may carry it.
        if let (Some(touched), Some((_, outcome))) = (last, outcomes.first_mut()) {
            match &mut outcome.touched {
                None => outcome.touched = Some(touched),
                Some(own) => own.join(touched),
            }
        }
        Ok(outcomes)
    }

    /// A command that was carried out before: whoever did it may not have come to Redis.
    async fn again(&self, command: &Command) -> Option<Touched> {
        let dataset = self.context.catalog.get(&command.dataset)?;
        let statement = statement_of(self.context, dataset).await.ok()?;
        let values = bind(&statement, &command.parameters).ok()?;
        Some(Touched::again(&command.dataset, key_of(dataset, &statement, &values)))
    }

    /// Records that a command is not carried out, so that it is not tried again when it comes again.
    async fn reject(
        &self,
        command: &[(usize, Command)],
        reason: &str,
    ) -> Result<Outcomes, Box<CommandError>> {
        let mut outcomes = Vec::new();
        for (at, command) in command {
            let mut transaction = self.context.postgres.begin_write().await?;
            if !may_write(&mut transaction, self.stream, self.token).await? {
                return Err(Box::new(CommandError::Displaced));
            }
            let record = Applied {
                id: command.id.clone(),
                digest: command.digest.clone(),
                entry: command.position,
                rows: 0,
                error: Some(reason.to_owned()),
            };
            record_applied(&mut transaction, self.stream, &[record]).await?;
            transaction.commit().await.map_err(SourceError::of_commit)?;
            outcomes.push((*at, Outcome::rejected(reason.to_owned())));
        }
        Ok(outcomes)
    }
}
