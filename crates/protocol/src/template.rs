//! Key and tag templates: `product:{id}`, `category:{category_id}`.
//!
//! A key can be read back: literals separate the placeholders, and a value that contains the literal behind its
//! placeholder is refused when the key is rendered.

use std::fmt;

use super::glob::escape;

/// A literal, or the name of a column whose text stands there.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Part {
    Literal(String),
    Column(String),
}

/// What a template is rendered for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rendered {
    /// A key, which is read back: no value may be empty.
    Key,
    /// A tag, which is only compared.
    Tag,
}

/// A parsed template.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

/// What values a placeholder can take, as far as the column's type says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Alphabet {
    /// Digits and a sign.
    Integer,
    /// Hexadecimal digits and dashes.
    Uuid,
    /// Anything.
    Any,
    /// Anything but `:`, the assumption while the type is not known.
    Segment,
}

impl Alphabet {
    fn holds(self, character: char) -> bool {
        match self {
            Self::Integer => character.is_ascii_digit() || character == '-',
            Self::Uuid => character.is_ascii_hexdigit() || character == '-',
            Self::Any => true,
            Self::Segment => character != ':',
        }
    }

    fn meets(self, other: Self) -> bool {
        // One witness of each class and of their intersections is enough.
        ['0', 'a', '-', ':', 'z'].into_iter().any(|witness| self.holds(witness) && other.holds(witness))
    }
}

impl Template {
    /// Parses a template. `{{` and `}}` stand for literal braces.
    ///
    /// # Errors
    /// [`TemplateError`], with the byte offset of what is wrong.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut characters = text.char_indices().peekable();
        while let Some((offset, character)) = characters.next() {
            let doubled = characters.peek().is_some_and(|(_, next)| *next == character);
            match character {
                '{' | '}' if doubled => {
                    characters.next();
                    literal.push(character);
                }
                '}' => {
                    return Err(TemplateError::new(
                        offset,
                        "a `}` without `{`; write `}}` for the character",
                    ));
                }
                '{' => {
                    let column = read_column(&mut characters)
                        .ok_or_else(|| TemplateError::new(offset, "this `{` has no `}`"))?;
                    if column.is_empty() {
                        return Err(TemplateError::new(
                            offset,
                            "a column name must stand between the braces",
                        ));
                    }
                    if literal.is_empty() && matches!(parts.last(), Some(Part::Column(_))) {
                        let why = "two placeholders without anything between them cannot be read back";
                        return Err(TemplateError::new(offset, why));
                    }
                    if !literal.is_empty() {
                        parts.push(Part::Literal(std::mem::take(&mut literal)));
                    }
                    parts.push(Part::Column(column));
                }
                _ => literal.push(character),
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        if parts.is_empty() {
            return Err(TemplateError::new(0, "the template is empty"));
        }
        Ok(Self { text: text.to_owned(), parts })
    }

    /// The template as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The columns, in the order of their placeholders.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Column(column) => Some(column.as_str()),
            Part::Literal(_) => None,
        })
    }

    /// What every rendered text begins with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        match self.parts.first() {
            Some(Part::Literal(literal)) => literal,
            Some(Part::Column(_)) | None => "",
        }
    }

    /// A pattern of Redis that every rendered text has.
    #[must_use]
    pub fn glob(&self) -> String {
        let part = |part: &Part| match part {
            Part::Literal(literal) => escape(literal),
            Part::Column(_) => "*".to_owned(),
        };
        self.parts.iter().map(part).collect()
    }

    /// Appends the rendered template to `output`; `value` writes the text of the column with the given position.
    ///
    /// # Errors
    /// [`RenderError`] when a value is null, or empty in a key, or could not be told from the literal behind it.
    pub fn render_into(
        &self,
        output: &mut String,
        what: Rendered,
        mut value: impl FnMut(usize, &mut String) -> bool,
    ) -> Result<(), RenderError> {
        let mut position = 0;
        for (index, part) in self.parts.iter().enumerate() {
            match part {
                Part::Literal(literal) => output.push_str(literal),
                Part::Column(column) => {
                    let start = output.len();
                    let is_present = value(position, output);
                    let written = output.get(start..).unwrap_or_default();
                    if !is_present || (written.is_empty() && what == Rendered::Key) {
                        return Err(RenderError::Missing { column: column.clone() });
                    }
                    if let Some(Part::Literal(next)) = self.parts.get(index + 1)
                        && self.parts.len() > index + 2
                        && written.contains(next.as_str())
                    {
                        return Err(RenderError::Ambiguous { column: column.clone(), literal: next.clone() });
                    }
                    position += 1;
                }
            }
        }
        Ok(())
    }

    /// Renders a key with the given texts, one for each placeholder.
    ///
    /// # Errors
    /// As [`Self::render_into`].
    pub fn render(&self, values: &[&str]) -> Result<String, RenderError> {
        self.render_as(Rendered::Key, values)
    }

    /// The same for a tag.
    ///
    /// # Errors
    /// As [`Self::render_into`].
    pub fn render_tag(&self, values: &[&str]) -> Result<String, RenderError> {
        self.render_as(Rendered::Tag, values)
    }

    fn render_as(&self, what: Rendered, values: &[&str]) -> Result<String, RenderError> {
        let mut output = String::new();
        self.render_into(&mut output, what, |position, output| {
            values.get(position).is_some_and(|value| {
                output.push_str(value);
                true
            })
        })?;
        Ok(output)
    }

    /// The values that render to this text, or none if it is not of this template.
    #[must_use]
    pub fn read<'a>(&self, text: &'a str) -> Option<Vec<&'a str>> {
        let mut values = Vec::new();
        let mut rest = text;
        let mut parts = self.parts.iter().peekable();
        while let Some(part) = parts.next() {
            match part {
                Part::Literal(literal) => rest = rest.strip_prefix(literal.as_str())?,
                Part::Column(_) => {
                    let is_last_literal = parts.len() == 1;
                    let length = match parts.peek() {
                        None => rest.len(),
                        Some(Part::Literal(literal)) if is_last_literal => rest
                            .len()
                            .checked_sub(literal.len())
                            .filter(|_| rest.ends_with(literal.as_str()))?,
                        Some(Part::Literal(literal)) => rest.find(literal.as_str())?,
                        Some(Part::Column(_)) => return None,
                    };
                    let (value, behind) = rest.split_at_checked(length)?;
                    if value.is_empty() {
                        return None;
                    }
                    values.push(value);
                    rest = behind;
                }
            }
        }
        rest.is_empty().then_some(values)
    }

    /// Whether this text could be rendered, given what the placeholders can hold.
    #[must_use]
    pub fn could_be(&self, own: impl Fn(&str) -> Alphabet, text: &str) -> bool {
        let literal = Self { text: text.to_owned(), parts: vec![Part::Literal(text.to_owned())] };
        self.overlaps(own, &literal, |_| Alphabet::Any)
    }

    /// Whether some text could be rendered by both templates, given what the placeholders can hold.
    #[must_use]
    pub fn overlaps(
        &self,
        own: impl Fn(&str) -> Alphabet,
        other: &Self,
        others: impl Fn(&str) -> Alphabet,
    ) -> bool {
        let left = self.symbols(own);
        let right = other.symbols(others);
        // reachable[i][j]: some text takes one automaton to i and the other to j.
        let mut seen = vec![vec![false; right.len() + 1]; left.len() + 1];
        let mut work = vec![(0_usize, 0_usize)];
        while let Some((i, j)) = work.pop() {
            let Some(cell) = seen.get_mut(i).and_then(|row| row.get_mut(j)) else {
                continue;
            };
            if std::mem::replace(cell, true) {
                continue;
            }
            let (Some(a), Some(b)) = (left.get(i), right.get(j)) else {
                continue;
            };
            if !a.meets(*b) {
                continue;
            }
            // A placeholder may take one more character, or end here.
            work.push((i + 1, j + 1));
            if matches!(a, Symbol::Repeat(_)) {
                work.push((i, j + 1));
            }
            if matches!(b, Symbol::Repeat(_)) {
                work.push((i + 1, j));
            }
        }
        seen.last().and_then(|row| row.last()).copied().unwrap_or(false)
    }

    fn symbols(&self, alphabet: impl Fn(&str) -> Alphabet) -> Vec<Symbol> {
        let mut symbols = Vec::new();
        for part in &self.parts {
            match part {
                Part::Literal(literal) => symbols.extend(literal.chars().map(Symbol::One)),
                Part::Column(column) => symbols.push(Symbol::Repeat(alphabet(column))),
            }
        }
        symbols
    }
}

impl fmt::Display for Template {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// One step of the automaton of a template.
#[derive(Clone, Copy)]
enum Symbol {
    One(char),
    Repeat(Alphabet),
}

impl Symbol {
    fn meets(self, other: Self) -> bool {
        match (self, other) {
            (Self::One(a), Self::One(b)) => a == b,
            (Self::One(a), Self::Repeat(b)) | (Self::Repeat(b), Self::One(a)) => b.holds(a),
            (Self::Repeat(a), Self::Repeat(b)) => a.meets(b),
        }
    }
}

fn read_column(characters: &mut std::iter::Peekable<std::str::CharIndices<'_>>) -> Option<String> {
    let mut column = String::new();
    for (_, character) in characters {
        match character {
            '}' => return Some(column),
            '{' => return None,
            _ => column.push(character),
        }
    }
    None
}

/// What is wrong with a template, and at which byte.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TemplateError {
    /// Byte offset into the template.
    pub offset: usize,
    /// What is wrong.
    pub message: String,
}

impl TemplateError {
    fn new(offset: usize, message: &str) -> Self {
        Self { offset, message: message.to_owned() }
    }
}

/// Why a row has no key or tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// The column is null or empty.
    #[error("column {column} is null or empty")]
    Missing {
        /// The column.
        column: String,
    },
    /// The value contains the literal that should end it.
    #[error("column {column} contains {literal:?}, which separates it from the next placeholder")]
    Ambiguous {
        /// The column.
        column: String,
        /// The literal behind it.
        literal: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> Template {
        Template::parse(text).unwrap()
    }

    #[test]
    fn renders_and_reads_back() {
        for (text, values, key) in [
            ("product:{id}", vec!["42"], "product:42"),
            ("p:{a}:{b}", vec!["1", "x:y"], "p:1:x:y"),
            ("{a}/tail", vec!["x/tail/y"], "x/tail/y/tail"),
            ("{{{id}}}", vec!["7"], "{7}"),
            ("top", vec![], "top"),
        ] {
            let template = template(text);
            assert_eq!(template.render(&values).unwrap(), key);
            assert_eq!(template.read(key).unwrap(), values, "{text}");
        }
    }

    #[test]
    fn a_value_that_could_not_be_read_back_is_refused() {
        let two = template("p:{a}:{b}");
        assert!(matches!(two.render(&["1:2", "3"]), Err(RenderError::Ambiguous { .. })));
        assert!(matches!(two.render(&["", "3"]), Err(RenderError::Missing { .. })));
        assert_eq!(
            two.render_tag(&["", "3"]).as_deref(),
            Ok(two.render(&["x", "3"]).unwrap().replace('x', "").as_str())
        );
        for other in ["q:1:2", "p:1", "p::2", "p:1:"] {
            assert_eq!(two.read(other), None, "{other}");
        }
    }

    #[test]
    fn errors_say_where() {
        for (text, offset) in [("a{b", 1), ("a}", 1), ("a{}", 1), ("{a}{b}", 3), ("", 0)] {
            assert_eq!(Template::parse(text).unwrap_err().offset, offset, "{text}");
        }
    }

    #[test]
    fn overlap_depends_on_what_the_placeholders_hold() {
        let check = |a: &str, class, b: &str, expected| {
            assert_eq!(template(a).overlaps(|_| class, &template(b), |_| class), expected, "{a} {b}");
        };
        check("product:{id}", Alphabet::Any, "product:{id}:reviews", true);
        check("product:{id}", Alphabet::Integer, "product:{id}:reviews", false);
        check("product:{id}", Alphabet::Segment, "product:{id}:reviews", false);
        check("product:{id}", Alphabet::Segment, "product:top", true);
        check("product:{id}", Alphabet::Integer, "product:top", false);
        check("product:{id}", Alphabet::Integer, "product:{sku}", true);
        check("a:{x}", Alphabet::Any, "b:{x}", false);
    }

    #[test]
    fn a_text_could_be_one_of_a_template() {
        let check = |text: &str, class, expected| {
            assert_eq!(template("cache:{id}").could_be(|_| class, text), expected, "{text}");
        };
        check("cache:writes", Alphabet::Segment, true);
        check("cache:writes", Alphabet::Integer, false);
        check("cache:writes:dead", Alphabet::Segment, false);
        check("cache:writes:dead", Alphabet::Any, true);
        check("{cache}", Alphabet::Any, false);
    }
}
