//! Whether the settings of a dataset fit the columns of its query: every mistake at once.

use super::describe::{CAST, SourceProblem};
use crate::stores::postgres::transcode::{LifetimeKind, QueryColumn, RowPlan, UnsupportedType};
use cachekeeper_config::Dataset;
use cachekeeper_protocol::template::Template;

/// The columns that the settings name, by their positions in the query.
pub(super) struct Fit {
    /// For each placeholder of the key.
    pub key_columns: Vec<usize>,
    /// For each tag those of its placeholders.
    pub tag_columns: Vec<Vec<usize>>,
    /// For each tag, which of its placeholders is a list.
    pub tag_lists: Vec<Option<usize>>,
    /// How a row becomes a value.
    pub plan: RowPlan,
    /// The column that says how long each entry lives, and what it holds.
    pub lifetime: Option<(usize, LifetimeKind)>,
}

impl Fit {
    /// Finds the columns, or everything that is wrong.
    pub(super) fn of(dataset: &Dataset, columns: &[QueryColumn]) -> Result<Self, Vec<SourceProblem>> {
        let mut fitting = Fitting { columns, problems: Vec::new() };
        fitting.refuse_doubles();
        let key_columns = fitting.find("key", &dataset.key);
        let tags = dataset.tags.iter().enumerate();
        let tag_columns: Vec<Vec<usize>> =
            tags.map(|(at, tag)| fitting.find(&format!("tags.{at}"), tag)).collect();
        let plan = fitting.plan(dataset);
        let mut tag_lists = Vec::with_capacity(tag_columns.len());
        if let Some(plan) = &plan {
            fitting.check_texts("key", plan, &key_columns);
            for (at, (tag, used)) in dataset.tags.iter().zip(&tag_columns).enumerate() {
                let setting = format!("tags.{at}");
                let plain: Vec<usize> = used.iter().copied().filter(|at| !plan.is_list(*at)).collect();
                fitting.check_texts(&setting, plan, &plain);
                tag_lists.push(fitting.list_of((&setting, tag), plan, used));
            }
        }
        let lifetime = fitting.lifetime(dataset);
        match plan {
            Some(plan) if fitting.problems.is_empty() => {
                Ok(Self { key_columns, tag_columns, tag_lists, plan, lifetime })
            }
            _ => Err(fitting.problems),
        }
    }
}

struct Fitting<'a> {
    columns: &'a [QueryColumn],
    problems: Vec<SourceProblem>,
}

impl Fitting<'_> {
    fn add(&mut self, setting: &str, message: String, help: impl Into<String>) {
        self.problems.push(SourceProblem::new(setting.to_owned(), message, help));
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self.columns.iter().map(|column| column.name.as_str()).collect();
        format!("columns: {}", names.join(", "))
    }

    fn refuse_doubles(&mut self) {
        let is_double = |(at, column): &(usize, &QueryColumn)| {
            self.columns.iter().take(*at).any(|earlier| earlier.name == column.name)
        };
        if let Some((_, QueryColumn { name, .. })) = self.columns.iter().enumerate().find(is_double) {
            let help = if name == UNNAMED {
                "name each of them: `… as name`".to_owned()
            } else {
                format!("rename one: `… as other_{name}`")
            };
            self.add("query", format!("the query has two columns named {name}"), help);
        }
    }

    fn plan(&mut self, dataset: &Dataset) -> Option<RowPlan> {
        let unsupported = match RowPlan::new(self.columns, &dataset.format) {
            Ok(plan) => return Some(plan),
            Err(unsupported) => unsupported,
        };
        match &unsupported {
            UnsupportedType::Types { .. } => self.add("query", unsupported.to_string(), CAST),
            UnsupportedType::Twice { .. } => {
                self.add("query", unsupported.to_string(), "give one of them another name with `as`");
            }
            UnsupportedType::NoColumn { .. } => self.add("value", unsupported.to_string(), self.names()),
        }
        None
    }

    /// The columns of a template's placeholders.
    fn find(&mut self, setting: &str, template: &Template) -> Vec<usize> {
        let mut found = Vec::new();
        for placeholder in template.columns() {
            if let Some(index) = self.columns.iter().position(|column| column.name == placeholder) {
                found.push(index);
                continue;
            }
            let message = format!("{template} uses {{{placeholder}}}, but the query has no such column");
            let offset = template.as_str().find(&format!("{{{placeholder}}}")).map(|at| at + 1);
            self.problems.push(SourceProblem::new(setting.to_owned(), message, self.names()).at(offset));
        }
        found
    }

    /// Whether the values of these columns can be part of a key or tag.
    fn check_texts(&mut self, setting: &str, plan: &RowPlan, used: &[usize]) {
        let wrong = used.iter().filter(|at| !plan.can_be_in_keys(**at));
        let list: Vec<String> = wrong
            .filter_map(|at| self.columns.get(*at))
            .map(|column| format!("column {} has the type {}", column.name, column.type_name))
            .collect();
        if list.is_empty() {
            return;
        }
        let message =
            format!("{}, whose values have no one text that a key or tag could be made of", list.join(", "));
        self.add(setting, message, "take a column with a plain value, or make a text of it in the query");
    }

    /// Which placeholder of a tag is a list: the row has a tag for each element.
    fn list_of(
        &mut self,
        (setting, tag): (&str, &Template),
        plan: &RowPlan,
        columns: &[usize],
    ) -> Option<usize> {
        let mut lists = columns.iter().enumerate().filter(|(_, at)| plan.is_list(**at));
        let first = lists.next().map(|(place, _)| place);
        if lists.next().is_some() {
            let help = "give each a tag of its own: the tags of every pair would be too many";
            self.add(setting, format!("{tag} has two columns that are lists"), help);
        }
        first
    }

    /// The column that says how long each entry lives, and what it holds.
    fn lifetime(&mut self, dataset: &Dataset) -> Option<(usize, LifetimeKind)> {
        const SETTING: &str = "ttl_column";
        let name = dataset.ttl_column.as_ref()?;
        let found = self.columns.iter().enumerate().find(|(_, column)| column.name == *name);
        let Some((at, column)) = found else {
            self.add(SETTING, format!("the query has no column {name:?}"), self.names());
            return None;
        };
        let kind = column.lifetime();
        if kind.is_none() {
            let message = format!("column {name} has the type {}, which says no lifetime", column.type_name);
            let help = "take a number of seconds, an interval, or a timestamptz at which the entry ends; cast it in the query";
            self.add(SETTING, message, help);
        }
        kind.map(|kind| (at, kind))
    }
}

/// What the server calls a column that has no name.
const UNNAMED: &str = "?column?";
