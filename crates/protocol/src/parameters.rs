//! Named parameters of a write statement: `update products set price = :price where id = :id`.

/// A statement in pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterizedSql {
    pieces: Vec<Piece>,
    starts: Vec<usize>,
    numbered: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Sql(String),
    /// By its name.
    Parameter(String),
}

impl ParameterizedSql {
    /// Finds the parameters: a colon and a name, outside of strings, quoted names, dollar quotes and comments. A double
    /// colon is a cast.
    #[must_use]
    pub fn parse(sql: &str) -> Self {
        let mut parsed = Self { pieces: Vec::new(), starts: Vec::new(), numbered: None };
        let (mut plain, mut rest, mut is_between) = (String::new(), sql, true);
        while let Some(first) = rest.chars().next() {
            let at = sql.len() - rest.len();
            let is_blank = first.is_whitespace() || rest.starts_with("--") || rest.starts_with("/*");
            if first == ';' {
                is_between = true;
            } else if is_between && !is_blank {
                parsed.starts.push(at);
                is_between = false;
            }
            if is_number(rest) && !plain.ends_with(|one: char| one == '_' || one.is_alphanumeric()) {
                parsed.numbered.get_or_insert(at);
            }
            let length = match first {
                '\'' => quoted(rest, '\'', is_escape_string(&plain)),
                '"' => quoted(rest, '"', false),
                '$' => dollar_quoted(rest),
                '-' if rest.starts_with("--") => rest.find('\n').unwrap_or(rest.len()),
                '/' if rest.starts_with("/*") => block_comment(rest),
                ':' if rest.starts_with("::") || rest.starts_with(":=") => 2,
                ':' => {
                    let name = name_of(rest.get(1..).unwrap_or_default());
                    if name.is_empty() {
                        1
                    } else {
                        parsed.pieces.push(Piece::Sql(std::mem::take(&mut plain)));
                        parsed.pieces.push(Piece::Parameter(name.to_owned()));
                        rest = rest.get(1 + name.len()..).unwrap_or_default();
                        continue;
                    }
                }
                other => other.len_utf8(),
            };
            let (taken, left) = rest.split_at_checked(length).unwrap_or((rest, ""));
            plain.push_str(taken);
            rest = left;
        }
        parsed.pieces.push(Piece::Sql(plain));
        parsed
    }

    /// The name at each place where a parameter stands; a name may stand at several, with a type of its own at each.
    pub fn places(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Parameter(name) => Some(name.as_str()),
            Piece::Sql(_) => None,
        })
    }

    /// Where each of these places is, as a byte of the text.
    pub fn offsets(&self) -> impl Iterator<Item = usize> {
        let mut at = 0;
        self.pieces.iter().filter_map(move |piece| {
            let start = at;
            at += match piece {
                Piece::Sql(sql) => sql.len(),
                Piece::Parameter(name) => 1 + name.len(),
            };
            matches!(piece, Piece::Parameter(_)).then_some(start)
        })
    }

    /// Where the statements begin, as bytes of the text; semicolons separate them, comments are none.
    #[must_use]
    pub fn starts(&self) -> &[usize] {
        &self.starts
    }

    /// Where a parameter has a number (`$1`) instead of a name, as a byte of the text.
    #[must_use]
    pub fn numbered(&self) -> Option<usize> {
        self.numbered
    }

    /// Where a byte of a rendered text comes from, as a byte of the text that was parsed; within a parameter, its colon.
    pub fn origin(&self, rendered: usize, write: impl Fn(usize) -> String) -> usize {
        let (mut place, mut origin, mut left) = (0, 0, rendered);
        for piece in &self.pieces {
            let (own, written) = match piece {
                Piece::Sql(sql) => (sql.len(), sql.len()),
                Piece::Parameter(name) => {
                    place += 1;
                    (1 + name.len(), write(place - 1).len())
                }
            };
            if left < written {
                return if matches!(piece, Piece::Sql(_)) { origin + left } else { origin };
            }
            origin += own;
            left -= written;
        }
        origin
    }

    /// The statement with each place as `write` has it, by its number from 0.
    pub fn render(&self, write: impl Fn(usize) -> String) -> String {
        let mut place = 0;
        let mut text = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Sql(sql) => text.push_str(sql),
                Piece::Parameter(_) => {
                    text.push_str(&write(place));
                    place += 1;
                }
            }
        }
        text
    }
}

fn is_number(text: &str) -> bool {
    text.strip_prefix('$').is_some_and(|rest| rest.starts_with(|one: char| one.is_ascii_digit()))
}

fn name_of(text: &str) -> &str {
    let is_name =
        |(at, one): (usize, char)| one == '_' || one.is_alphabetic() || (0 < at && one.is_alphanumeric());
    let end = text.char_indices().find(|(at, one)| !is_name((*at, *one))).map_or(text.len(), |(at, _)| at);
    text.get(..end).unwrap_or_default()
}

/// Whether an `E` before the quote makes backslashes special.
fn is_escape_string(before: &str) -> bool {
    let mut back = before.chars().rev();
    matches!(back.next(), Some('e' | 'E'))
        && !back.next().is_some_and(|one| one == '_' || one.is_alphanumeric())
}

fn quoted(text: &str, quote: char, has_escapes: bool) -> usize {
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, one)) = chars.next() {
        if has_escapes && one == '\\' {
            chars.next();
        } else if one == quote {
            if chars.peek().is_some_and(|(_, next)| *next == quote) {
                chars.next();
            } else {
                return at + quote.len_utf8();
            }
        }
    }
    text.len()
}

fn dollar_quoted(text: &str) -> usize {
    let inner = text.get(1..).unwrap_or_default();
    let tag = name_of(inner);
    let Some(body) = inner.get(tag.len()..).and_then(|rest| rest.strip_prefix('$')) else { return 1 };
    let close = format!("${tag}$");
    let opened = text.len() - body.len();
    body.find(&close).map_or(text.len(), |at| opened + at + close.len())
}

fn block_comment(text: &str) -> usize {
    // They nest (PostgreSQL manual, 4.1.5).
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sql: &str, names: &[&str], rendered: &str) {
        let parsed = ParameterizedSql::parse(sql);
        assert_eq!(parsed.places().collect::<Vec<_>>(), names, "{sql}");
        assert_eq!(parsed.render(|position| format!("${}", position + 1)), rendered);
    }

    #[test]
    fn parameters_are_found_and_nothing_else_is() {
        check(
            "update t set a = :a, b = :b where a < :a",
            &["a", "b", "a"],
            "update t set a = $1, b = $2 where a < $3",
        );
        check(
            "select ':no', E'\\':no', 'it''s :no' || :yes",
            &["yes"],
            "select ':no', E'\\':no', 'it''s :no' || $1",
        );
        check(
            "select \":no\" /* :no /* :no */ */ -- :no\n, :ü_1::int",
            &["ü_1"],
            "select \":no\" /* :no /* :no */ */ -- :no\n, $1::int",
        );
        check(
            "select $$ :no $$, $x$ :no $$ $x$, a[1:2], :a, $1",
            &["a"],
            "select $$ :no $$, $x$ :no $$ $x$, a[1:2], $1, $1",
        );
        check("select 'open :no", &[], "select 'open :no");
        check("select :a:b", &["a", "b"], "select $1$2");
    }

    #[test]
    fn statements_are_counted_without_strings_and_comments() {
        let check = |sql: &str, starts: &[usize]| {
            assert_eq!(ParameterizedSql::parse(sql).starts(), starts, "{sql}");
        };
        check("", &[]);
        check(" ; -- nothing;\n /* ; */ ;", &[]);
        check("update t set a = ';' -- ; b\n;\n", &[0]);
        check("/* first */ update t set a = $$;$$; ; delete from t", &[12, 38]);
        check(" :a; :b", &[1, 5]);
    }

    #[test]
    fn numbers_in_the_place_of_names_are_seen() {
        let check = |sql: &str, at| assert_eq!(ParameterizedSql::parse(sql).numbered(), at, "{sql}");
        check("update t set a = $2 where b = $1", Some(17));
        check("update t set a = '$1', b$1 = $x$ $1 $x$ -- $1", None);
    }

    #[test]
    fn a_place_in_the_rendered_text_is_found_in_the_original() {
        let sql = "set ü = :price, b = :b where c";
        let parsed = ParameterizedSql::parse(sql);
        assert_eq!(
            parsed.offsets().collect::<Vec<_>>(),
            [sql.find(":price").unwrap(), sql.find(":b").unwrap()]
        );
        let writers: [fn(usize) -> String; 2] =
            [|place| format!("${}", place + 1), |place| format!("(${}::text)::int8", place + 1)];
        for write in writers {
            let rendered = parsed.render(write);
            for (part, found) in
                [("set", "set"), ("$1", ":price"), (", b", ", b"), ("$2", ":b"), ("where", "where")]
            {
                let origin = parsed.origin(rendered.find(part).unwrap(), write);
                assert_eq!(Some(origin), sql.find(found), "{part} in {rendered}");
            }
            assert_eq!(parsed.origin(rendered.len(), write), sql.len());
        }
    }
}
