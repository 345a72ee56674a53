//! Proposals become datasets that `check` accepts, or say why they cannot.

use serde_json::{Value, json};

use super::base::Base;
use super::draft::{Draft, Refusal};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::proposal::{Objection, objections};

/// Proposals, settled one after the other.
pub struct Proposals<'a> {
    base: &'a Base,
    /// The text of those that were accepted.
    accepted: String,
    /// What is printed: those that were accepted, and as comments those that were not.
    pub text: String,
    /// Of those that were accepted.
    pub datasets: Vec<Value>,
    /// The others.
    pub refusals: Vec<Refusal>,
    /// Whether they are chosen from many, so that some that do not fit are no failure.
    pub is_choice: bool,
}

impl<'a> Proposals<'a> {
    pub fn new(base: &'a Base) -> Self {
        Self {
            base,
            accepted: String::new(),
            text: String::new(),
            datasets: Vec::new(),
            refusals: Vec::new(),
            is_choice: false,
        }
    }

    /// Takes a refusal as it is.
    pub fn refuse(&mut self, refusal: Refusal) {
        self.text.push('\n');
        self.text.push_str(&refusal.text());
        self.refusals.push(refusal);
    }

    /// Accepts a proposal under the first name that is free, or refuses it.
    ///
    /// # Errors
    /// [`EngineError`] where the database cannot be asked.
    pub async fn add(&mut self, mut draft: Draft) -> Result<(), EngineError> {
        let mut first = None;
        let mut names = draft.names.clone().into_iter();
        let (called, found) = loop {
            let Some(called) = names.next() else {
                self.refuse(first.unwrap_or_default());
                return Ok(());
            };
            match self.look(&draft, &called).await? {
                Ok(found) => break (called, found),
                Err(Unfit::OtherName(refusal)) => drop(first.get_or_insert(refusal)),
                Err(Unfit::Refused(refusal)) => {
                    self.refuse(refusal);
                    return Ok(());
                }
            }
        };
        for Objection { message, help, .. } in found {
            let note = format!("Note: {message}; {help}.");
            // Row security was said.
            if !message.starts_with("row security of") {
                draft.about.push(note);
            }
        }
        let text = draft.text(&called);
        self.accepted.push_str(&format!("\n{text}"));
        self.text.push_str(&format!("\n{text}"));
        self.datasets.push(json!({ "name": called, "from": draft.origin, "key": draft.template(&called) }));
        Ok(())
    }

    /// What speaks against a proposal under this name, where nothing refuses it.
    async fn look(&self, draft: &Draft, called: &str) -> Result<Result<Vec<Objection>, Unfit>, EngineError> {
        let refusal = |reason: String, help: String| Refusal {
            text: draft.text(called),
            ..Refusal::new(&draft.origin, reason, help)
        };
        let config = match self.base.with(&format!("{}\n{}", self.accepted, draft.text(called))) {
            Ok(config) => config,
            Err(problem) => {
                let help = problem.help.unwrap_or_default();
                return Ok(Err(Unfit::OtherName(refusal(problem.message, help))));
            }
        };
        let context = Context::new(&config)?;
        let Some(dataset) = context.catalog.get(called) else { return Ok(Ok(Vec::new())) };
        let (found, _reads) = objections(&context, dataset).await?;
        context.postgres.close().await;
        let Some(Objection { setting, message, help, .. }) = found.iter().find(|found| found.is_refused)
        else {
            return Ok(Ok(found));
        };
        let refusal = refusal(format!("{setting}: {message}"), help.clone());
        // Which keys could be somebody else's is known once the types are.
        let is_taken = setting == "key" && message.contains("could coincide");
        Ok(Err(if is_taken { Unfit::OtherName(refusal) } else { Unfit::Refused(refusal) }))
    }
}

/// Why a proposal is not accepted under a name.
enum Unfit {
    /// Another name may do.
    OtherName(Refusal),
    /// No name would do.
    Refused(Refusal),
}
