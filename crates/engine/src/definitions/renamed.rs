//! Datasets that have another name than before: while a worker with the former name leads, it follows their keys under that name, so
//! the watermark names the new one as not covered. Here is found out that this is why.

use std::collections::BTreeMap;

use super::text;
use crate::context::Context;
use crate::stores::redis::CacheError;
use cachekeeper_protocol::revision::Revision;

/// Which of this process's datasets are not covered because another dataset, of a worker that lives, has the same keys: each with
/// the reason. `not_covered` is what the watermark names.
///
/// # Errors
/// [`CacheError`]
pub async fn reasons(
    context: &Context,
    revisions: &BTreeMap<String, Revision>,
    not_covered: &[String],
) -> Result<BTreeMap<String, String>, CacheError> {
    let own: Vec<_> = not_covered.iter().filter_map(|name| context.catalog.get(name)).collect();
    let others = revisions.iter().filter(|(name, _)| context.catalog.get(name).is_none());
    let others: Vec<(&str, &str)> =
        others.map(|(name, revision)| (name.as_str(), revision.definition())).collect();
    let mut found = BTreeMap::new();
    if own.is_empty() || others.is_empty() {
        return Ok(found);
    }
    let texts = context.redis.definition_texts(&others).await?;
    let names: Vec<&str> = others.iter().map(|(name, _)| *name).collect();
    let living = context.redis.have_living_workers(&names).await?;
    for ((name, text), _) in names.iter().zip(texts).zip(living).filter(|(_, is_living)| *is_living) {
        let Some(other) = text.and_then(|text| text::read(name, &text)) else { continue };
        let same = own.iter().filter(|own| text::form(&own.settings.key) == text::form(&other.key));
        found.extend(same.map(|own| (own.name().to_owned(), reason(name))));
    }
    Ok(found)
}

fn reason(other: &str) -> String {
    format!(
        "its keys belong to dataset {other} of a worker that still runs, which follows them under that name; this dataset is covered \
         once that worker has ended"
    )
}
