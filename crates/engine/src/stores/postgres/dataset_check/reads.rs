//! Whether what a query reads and calls can be followed at all.

use super::{Finding, Weight};
use crate::stores::postgres::Inspection;
use cachekeeper_config::Dataset;

const QUERY: &str = "query";

/// What is wrong with what a query reads and calls.
#[must_use]
pub fn findings_of_reads(reads: &Inspection, dataset: &Dataset) -> Vec<Finding> {
    let mut findings = Vec::new();
    for relation in &reads.relations {
        let name = &relation.name;
        if relation.kind == 'f' {
            let message = format!(
                "the query reads the foreign table {name}, which this server's snapshots do not cover"
            );
            let help = "copy its rows into a table of this server";
            findings.push(Finding::new(QUERY, message, help));
        } else if relation.is_catalog {
            let message = format!("the query reads the catalog {name}, whose changes cannot be captured");
            let help = "its entries are as fresh as events and lifetimes keep them";
            findings.push(Finding::new(QUERY, message, help).weighing(Weight::NotCovered));
        }
    }
    if reads.has_system_columns {
        let message =
            "the query uses a system column (ctid, xmin or the like), which changes although no row does";
        findings.push(Finding::new(QUERY, message, "leave it out"));
    }
    if reads.has_too_many {
        let message = "the query calls functions whose texts have the names of thousands of others";
        findings.push(Finding::new(QUERY, message, "write them `begin atomic`").weighing(Weight::NotCovered));
    }
    functions(reads, dataset, &mut findings);
    findings
}

/// Functions whose results do not follow from the rows that are seen.
fn functions(reads: &Inspection, dataset: &Dataset, findings: &mut Vec<Finding>) {
    for function in &reads.functions {
        let name = &function.name;
        if function.volatility == 'v' {
            let message =
                format!("the query calls {name}, which is volatile: it can return data newer than its stamp");
            let help = "declare the function stable if it is, or leave it out";
            findings.push(Finding::new(QUERY, message, help));
        } else if function.is_clock() {
            let message =
                format!("the query calls {name}(): its result changes without any change of the data");
            let help = "give the dataset a short ttl, or leave the time to the readers";
            findings.push(Finding::new(QUERY, message, help).weighing(Weight::Odd));
        } else if function.reads_state && dataset.reads.is_empty() {
            let message = format!(
                "the query calls {name}, which says what stands in tables, catalogs or rights: their changes are missed"
            );
            let help = "leave it out, or name the tables that decide about it in `reads` and watch them";
            findings.push(Finding::new(QUERY, message, help).weighing(Weight::NotCovered));
        } else if function.is_opaque && dataset.reads.is_empty() {
            let message = format!("the query calls {name}, whose body is a text that may read any table");
            let help = "write it `begin atomic`, declare it immutable if it is, or name its tables in `reads` and watch them";
            findings.push(Finding::new(QUERY, message, help).weighing(Weight::NotCovered));
        }
    }
}
