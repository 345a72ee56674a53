//! How coverage is found: what the watch rules ask for is compared with what the database has.

use std::collections::{BTreeMap, BTreeSet};

use super::growth::Growth;
use super::{Coverage, Rule, WatchedCatalogs, refusal};
use crate::catalog::Dataset;
use crate::context::Context;
use crate::error::{EngineError, chain};
use crate::stores::postgres::capture::WantedCapture;
use crate::stores::postgres::{Capture, CatalogScope, CatalogState, Inspection, NameKind, TreeMember};
use cachekeeper_config::{CaptureMode, WatchTarget};

/// Part of the reason where waiting helps.
pub const TRYING_AGAIN: &str = "trying again";

/// How often the catalogs may change while they are read, before whoever follows decides by what is known.
const LOOKS_MAX: usize = 3;

/// What the watch rules ask for, and what the database has.
#[derive(Default, PartialEq, Eq)]
pub(super) struct CoverageSurvey {
    pub(super) members: Vec<TreeMember>,
    pub(super) captures: Vec<Capture>,
    /// For each dataset what its query reads, or why that cannot be told.
    reads: BTreeMap<String, Result<Inspection, String>>,
    /// For each dataset that `check` refuses, why.
    refused: BTreeMap<String, String>,
    /// The roots whose changes cannot be captured by statement, with the reason.
    pub(super) by_row_only: BTreeMap<u32, String>,
}

fn columns_of(target: &WatchTarget) -> Vec<String> {
    match target {
        WatchTarget::Key(pairs) => pairs.iter().map(|(_, column)| column.clone()).collect(),
        WatchTarget::Tag(template) => template.columns().map(str::to_owned).collect(),
        WatchTarget::Dataset => Vec::new(),
    }
}

/// What cannot be captured, whatever is installed.
fn flaw_of_kind(member: &TreeMember) -> Option<String> {
    let table = &member.name;
    match member.kind {
        'r' | 'p' => None,
        'm' => Some(format!(
            "{table} is a materialized view, whose changes cannot be captured; watch its tables and publish an event after each refresh"
        )),
        'v' => Some(format!("{table} is a view; watch its tables")),
        'f' => Some(format!("{table} is a foreign table, whose changes cannot be captured")),
        'S' => Some(format!("{table} is a sequence, whose changes cannot be captured")),
        _ => Some(format!("{table} is no table")),
    }
}

/// What is wrong with a member of a captured tree.
pub(super) fn flaw(member: &TreeMember, capture: &Capture) -> Option<String> {
    let table = &member.name;
    let of_kind = flaw_of_kind(member);
    if of_kind.is_some() {
        return of_kind;
    }
    if member.is_prepared {
        return Some(format!(
            "a transaction that was prepared before the server's last crash or restart has changed {table}, and what it \
             captured is lost; commit it or roll it back (pg_prepared_xacts)"
        ));
    }
    (!member.is_captured_by(capture)).then(|| {
        if member.triggers.is_empty() {
            format!("{table} has no triggers; run `cachekeeper migrate`")
        } else {
            format!("a trigger of {table} is disabled or missing; run `cachekeeper migrate`")
        }
    })
}

impl CoverageSurvey {
    pub(super) async fn take(context: &Context) -> Result<Self, EngineError> {
        let (mut reads, mut refused) = (BTreeMap::new(), BTreeMap::new());
        for dataset in context.catalog.iter() {
            let found = match context.postgres.inspect(&dataset.settings.query).await {
                Ok(inspection) => Ok(inspection),
                Err(error) if error.is_unreachable() => return Err(error.into()),
                Err(error) => Err(chain(&error)),
            };
            if let Ok(inspection) = &found {
                let reason = refusal::of(context, dataset, inspection).await?;
                refused.extend(reason.map(|reason| (dataset.name().to_owned(), reason)));
            }
            reads.insert(dataset.name().to_owned(), found);
        }
        let captures = context.postgres.captures().await?;
        let mut survey = Self { members: Vec::new(), captures, reads, refused, by_row_only: BTreeMap::new() };
        survey.members = context.postgres.trees(&survey.tables(context)).await?;
        for root in survey.by_statement(context) {
            let members: Vec<u32> = survey.members_of(root).iter().map(|member| member.oid).collect();
            let reason = context.postgres.not_by_statement(&members).await?;
            survey.by_row_only.extend(reason.map(|reason| (root, reason)));
        }
        Ok(survey)
    }

    /// The roots that are captured by statement, or are to be.
    fn by_statement(&self, context: &Context) -> BTreeSet<u32> {
        let rules = context.catalog.iter().flat_map(|dataset| dataset.settings.watch.iter());
        let wanted = rules.filter(|rule| rule.capture == CaptureMode::Statement);
        let captured = self.captures.iter().filter_map(|it| it.by_statement.then_some(it.root));
        captured.chain(wanted.filter_map(|rule| self.root_of(&rule.table).ok())).collect()
    }

    /// The coverage, with the fingerprints that belong to it: they are read between two surveys that found the same. Else a change
    /// between the two would be taken for known.
    pub(super) async fn compute(
        mut self,
        context: &Context,
        obstacles: &BTreeMap<u32, String>,
    ) -> Result<Coverage, EngineError> {
        for _ in 0..LOOKS_MAX {
            let mut catalogs = WatchedCatalogs::new(self.scopes(context));
            let growth = Growth::since(context, &catalogs);
            let (state, incarnation) = context.postgres.catalog_state(&growth.expression(&catalogs)).await?;
            let again = Self::take(context).await?;
            if self == again {
                catalogs.replaces = growth.replaced(context, &state, incarnation.as_ref()).await?;
                return Ok(self.judge(context, obstacles, (catalogs, &state, incarnation)));
            }
            self = again;
        }
        // No fingerprint is like these, so whoever follows looks again.
        let catalogs = WatchedCatalogs::new(self.scopes(context));
        let (_, incarnation) = context.postgres.catalog_state(&catalogs.expression).await?;
        Ok(self.judge(context, obstacles, (catalogs, &CatalogState::default(), incarnation)))
    }

    /// What decides about each dataset in the catalogs.
    fn scopes(&self, context: &Context) -> BTreeMap<String, CatalogScope> {
        let mut scopes = BTreeMap::new();
        for dataset in context.catalog.iter() {
            let Some(Ok(inspection)) = self.reads.get(dataset.name()) else { continue };
            let mut scope = inspection.scope.clone();
            // What the tables of functions have is not inspected.
            scope.has_row_security |= !dataset.settings.reads.is_empty();
            let watched = dataset.settings.watch.iter().map(|rule| rule.table.as_str());
            let named = dataset.settings.reads.iter().map(String::as_str);
            for table in watched.chain(named).chain(inspection.tables()) {
                let bare = table.rsplit('.').next().unwrap_or(table).trim_matches('"');
                scope.names.insert((NameKind::Relation, bare.to_owned()));
                let Ok(root) = self.root_of(table) else { continue };
                scope.roots.insert(root);
                let members = self.members_of(root);
                // A partition has the columns of its root, but for the expressions of generated ones.
                let is_partitioned = members.first().is_some_and(|member| member.kind == 'p');
                let oids = members.iter().map(|member| member.oid);
                if is_partitioned {
                    scope.generated.extend(members.iter().filter(|it| 0 < it.generated).map(|it| it.oid));
                    scope.members.extend(oids);
                    scope.relations.insert(root);
                } else {
                    scope.relations.extend(oids);
                }
            }
            scopes.insert(dataset.name().to_owned(), scope);
        }
        scopes
    }

    /// Every table that is read or watched.
    pub(super) fn tables(&self, context: &Context) -> Vec<String> {
        let read = self.reads.values().flatten().flat_map(Inspection::tables);
        let mut tables: BTreeSet<String> = read.map(str::to_owned).collect();
        for dataset in context.catalog.iter() {
            tables.extend(dataset.settings.reads.iter().cloned());
            tables.extend(dataset.settings.watch.iter().map(|rule| rule.table.clone()));
        }
        tables.into_iter().collect()
    }

    /// Of tables alone.
    pub(super) fn of_tables(members: Vec<TreeMember>) -> Self {
        Self { members, ..Self::default() }
    }

    /// What the watch rules ask for, by the root of each tree.
    pub(super) fn wanted(&self, context: &Context) -> BTreeMap<u32, WantedCapture> {
        let mut wanted: BTreeMap<u32, WantedCapture> = BTreeMap::new();
        for rule in context.catalog.iter().flat_map(|dataset| dataset.settings.watch.iter()) {
            if let Ok(root) = self.root_of(&rule.table) {
                let first = WantedCapture { by_statement: true, ..WantedCapture::default() };
                let wanted = wanted.entry(root).or_insert(first);
                wanted.columns.extend(columns_of(&rule.target));
                wanted.by_statement &= rule.capture == CaptureMode::Statement;
            }
        }
        wanted
    }

    /// The name of the table at the top of a tree.
    pub(super) fn name_of(&self, root: u32) -> Option<&str> {
        self.members_of(root).first().map(|member| member.name.as_str())
    }

    pub(super) fn root_of(&self, table: &str) -> Result<u32, String> {
        let mut roots: Vec<u32> = self
            .members
            .iter()
            .filter(|member| member.asked == table)
            .filter_map(|member| member.root)
            .collect();
        roots.sort_unstable();
        roots.dedup();
        match roots.as_slice() {
            [] => Err(format!("there is no table {table}")),
            [root] => Ok(*root),
            _ => Err(format!("{table} inherits from several tables, which cannot be captured")),
        }
    }

    pub(super) fn members_of(&self, root: u32) -> Vec<&TreeMember> {
        let mut members: Vec<&TreeMember> =
            self.members.iter().filter(|member| member.root == Some(root)).collect();
        members.sort_by_key(|member| (member.oid != root, member.oid));
        members.dedup_by_key(|member| member.oid);
        members
    }

    fn judge(
        &self,
        context: &Context,
        obstacles: &BTreeMap<u32, String>,
        (mut catalogs, state, incarnation): (WatchedCatalogs, &CatalogState, Option<String>),
    ) -> Coverage {
        catalogs.seen = catalogs.fingerprints(&context.catalog, state);
        let mut coverage = Coverage { incarnation, catalogs, ..Coverage::default() };
        for capture in &self.captures {
            let rules = context.catalog.iter().flat_map(|dataset| {
                let watch = dataset.settings.watch.iter();
                let of_this = watch.filter(|rule| self.root_of(&rule.table) == Ok(capture.root));
                of_this.map(move |rule| Rule::new(dataset, &rule.target, &capture.columns))
            });
            coverage.captures.insert(capture, rules.collect());
        }
        for dataset in context.catalog.iter() {
            let fingerprint = self.check(dataset, obstacles).and_then(|()| {
                let seen = coverage.catalogs.seen.get(dataset.name()).cloned();
                seen.ok_or_else(|| "what its query reads is not known".to_owned())
            });
            coverage.datasets.insert(dataset.name().to_owned(), fingerprint);
        }
        coverage
    }

    /// Whether no change of what the dataset reads can be missed, or why.
    fn check(&self, dataset: &Dataset, obstacles: &BTreeMap<u32, String>) -> Result<(), String> {
        let Some(Ok(reads)) = self.reads.get(dataset.name()) else {
            let reason = self.reads.get(dataset.name()).and_then(|reads| reads.as_ref().err());
            return Err(format!(
                "what its query reads is not known, because no temporary view of it can be made (the role needs the right \
                 TEMPORARY on the database, and no event trigger may refuse it): {}",
                reason.map_or("", String::as_str)
            ));
        };
        if let Some(reason) = self.refused.get(dataset.name()) {
            return Err(reason.clone());
        }
        let mut roots = BTreeSet::new();
        for rule in &dataset.settings.watch {
            roots.insert(self.root_of(&rule.table)?);
        }
        let named = dataset.settings.reads.iter().map(String::as_str);
        for table in reads.tables().into_iter().chain(named) {
            // What is no ordinary table is named before a missing rule: no rule would help.
            let there = self.members.iter().filter(|member| member.root.is_some());
            let mut members = there.filter(|member| member.asked == table);
            if let Some(flaw) = members.find_map(flaw_of_kind) {
                return Err(flaw);
            }
            if !roots.contains(&self.root_of(table)?) {
                return Err(format!(
                    "its query reads {table}, but no watch rule of it names that table; add one to `watch`"
                ));
            }
        }
        for root in roots {
            let members = self.members_of(root);
            let table = members.first().map(|member| member.name.as_str()).unwrap_or_default();
            if let Some(text) = obstacles.get(&root) {
                return Err(format!("{table}: {text}"));
            }
            let Some(capture) = self.captures.iter().find(|capture| capture.root == root) else {
                return Err(format!("{table} has no triggers; run `cachekeeper migrate`"));
            };
            if let Some(reason) = self.by_row_only.get(&root).filter(|_| capture.by_statement) {
                return Err(format!("{table} is captured by statement: {reason}"));
            }
            if !capture.is_on {
                return Err(format!("the capture of {table} is switched off; `cachekeeper capture on`"));
            }
            if capture.is_outdated {
                return Err(format!(
                    "{table} is captured by functions of an earlier version, or made for columns of other types; run `cachekeeper migrate`"
                ));
            }
            if capture.settling.is_some() {
                return Err(format!(
                    "changes of {table} may not have been captured for a while; waiting for older transactions to end"
                ));
            }
            for rule in dataset.settings.watch.iter().filter(|rule| self.root_of(&rule.table) == Ok(root)) {
                let missing =
                    columns_of(&rule.target).into_iter().find(|column| !capture.columns.contains(column));
                if let Some(column) = missing {
                    return Err(format!(
                        "column {column} of {table} is not captured; run `cachekeeper migrate`"
                    ));
                }
            }
            if let Some(flaw) = members.into_iter().find_map(|member| flaw(member, capture)) {
                return Err(flaw);
            }
        }
        Ok(())
    }
}
