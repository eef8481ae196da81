//! `{{ ... }}` in a text: variables, whole-number arithmetic and a few filters.
//!
//! ```text
//! text   = { characters | "{{" value "}}" }          a text that is one expression keeps the expression's type
//! value  = sum { "|" filter [ "(" value { "," value } ")" ] }
//! sum    = product { ("+" | "-") product }            `+` also joins two texts
//! product= factor { ("*" | "/" | "%") factor }
//! factor = NUMBER | "TEXT" | 'TEXT' | true | false | NAME { "." NAME } | "-" factor | "(" value ")"
//! filter = upper | lower | trim | pad(WIDTH) | replace(FROM, TO) | default(VALUE)
//! ```
//!
//! **Bounds.** Nesting is at most 32 deep, a result at most 64 KiB, a variable is computed once, and one that refers to
//! itself is an error.

use std::collections::HashMap;
use std::ops::Range;

use super::diagnostic::{Diagnostic, Location, nearest};
use super::layer::{Spanned, Table, Value};

const MAX_DEPTH: usize = 32;
const MAX_TEXT_BYTES: usize = 64 << 10;

/// Value of an expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scalar {
    /// A text.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// A boolean.
    Flag(bool),
}

impl Scalar {
    fn to_text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Integer(number) => number.to_string(),
            Self::Flag(flag) => flag.to_string(),
        }
    }
    fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Integer(_) => "a number",
            Self::Flag(_) => "a boolean",
        }
    }
}

/// An error, with the range of bytes in the text.
struct Fault {
    message: String,
    span: Range<usize>,
    hint: Option<String>,
}

/// The variables that expressions see.
#[derive(Debug, Default)]
pub struct Scope<'a> {
    given: HashMap<String, Scalar>,
    variables: Option<&'a Table>,
    computed: HashMap<String, Scalar>,
    computing: Vec<String>,
}

impl<'a> Scope<'a> {
    /// Creates a scope with the variables of `[vars]`.
    pub fn new(variables: Option<&'a Table>) -> Self {
        Self { variables, ..Self::default() }
    }

    /// Adds a variable of vmctl, like `name`.
    pub fn give(&mut self, name: &str, value: Scalar) {
        self.given.insert(name.to_owned(), value);
    }

    fn lookup(&mut self, name: &str) -> Result<Scalar, (String, Option<String>)> {
        if let Some(value) = self.given.get(name).or_else(|| self.computed.get(name)) {
            return Ok(value.clone());
        }
        let Some(node) = self.variables.and_then(|table| table.get(name)) else {
            let own = self.variables.map(|table| table.0.iter().map(|(name, _)| name.text.as_str())).into_iter().flatten();
            let hint = nearest(name, self.given.keys().map(String::as_str).chain(own));
            let hint = match (hint, name.strip_prefix("secret.")) {
                (Some(near), _) => format!("did you mean `{near}`?"),
                (None, Some(id)) => format!("a fleet file has it as `[[secrets]]` with `id = \"{id}\"`"),
                (None, None) => format!("set it: `{name} = ...` in `[vars]`"),
            };
            return Err((format!("variable `{name}` is not set"), Some(hint)));
        };
        if self.computing.iter().any(|other| other == name) || self.computing.len() >= MAX_DEPTH {
            return Err((format!("variable `{name}` depends on itself: {} -> {name}", self.computing.join(" -> ")), None));
        }
        self.computing.push(name.to_owned());
        let value = match &node.value {
            Value::Text(text) => self.expand(text).map_err(|fault| (fault.message, fault.hint)),
            Value::Integer(number) => Ok(Scalar::Integer(*number)),
            Value::Flag(flag) => Ok(Scalar::Flag(*flag)),
            other => Err((format!("variable `{name}` is {}, not a plain value", other.kind()), None)),
        };
        self.computing.pop();
        let value = value?;
        self.computed.insert(name.to_owned(), value.clone());
        Ok(value)
    }

    /// Replaces the expressions in a text.
    fn expand(&mut self, text: &str) -> Result<Scalar, Fault> {
        let mut result = String::new();
        let mut at = 0;
        while let Some(open) = text[at..].find("{{").map(|found| at + found) {
            result.push_str(&text[at..open]);
            let mut parser = Parser { text, at: open + 2, depth: 0, scope: self };
            let value = parser.value()?;
            parser.blanks();
            let close = parser.at;
            if !text[close..].starts_with("}}") {
                return Err(match text[close..].chars().next() {
                    Some(c) => {
                        Fault { message: format!("`{c}` is not expected here"), span: close..close + c.len_utf8(), hint: None }
                    }
                    None => Fault {
                        message: "`{{` is never closed".into(),
                        span: open..open + 2,
                        hint: Some("write `{{ \"{{\" }}` for the two braces themselves".into()),
                    },
                });
            }
            at = close + 2;
            if open == 0 && at == text.len() {
                return Ok(value);
            }
            result.push_str(&value.to_text());
            if result.len() > MAX_TEXT_BYTES {
                return Err(Fault { message: "the text grows beyond 64 KiB".into(), span: open..at, hint: None });
            }
        }
        result.push_str(&text[at..]);
        Ok(Scalar::Text(result))
    }

    /// Replaces the expressions in a value and everything inside it.
    pub fn evaluate(&mut self, node: &mut Spanned, problems: &mut Vec<Diagnostic>) {
        match &mut node.value {
            Value::Text(text) if text.contains("{{") => match self.expand(text) {
                Ok(Scalar::Text(text)) => node.value = Value::Text(text),
                Ok(Scalar::Integer(number)) => node.value = Value::Integer(number),
                Ok(Scalar::Flag(flag)) => node.value = Value::Flag(flag),
                Err(fault) => {
                    let location = inside(&node.location, text, fault.span);
                    problems.push(Diagnostic::at(&location, fault.message).maybe_hint(fault.hint));
                }
            },
            Value::Array(items) => items.iter_mut().for_each(|item| self.evaluate(item, problems)),
            Value::Table(table) => table.0.iter_mut().for_each(|(_, node)| self.evaluate(node, problems)),
            _ => {}
        }
    }
}

/// Returns the variables in the expressions of a text, and their filters. Errors of an expression are ignored.
pub fn names_in(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for part in text.split("{{").skip(1) {
        let mut scope = Scope::new(None);
        let code = part.split("}}").next().unwrap_or_default();
        let mut parser = Parser { text: code, at: 0, depth: 0, scope: &mut scope };
        while parser.at < code.len() {
            parser.blanks();
            let rest = &code[parser.at..];
            let Some(first) = rest.chars().next() else { break };
            if matches!(first, '"' | '\'') {
                parser.at += rest[1..].find(first).map_or(rest.len(), |end| end + 2);
            } else if let Some(name) = parser.dotted() {
                names.push(name);
            } else {
                parser.at += first.len_utf8();
            }
        }
    }
    names
}

/// Returns the position of some bytes of a string's value. It is exact if the string is written without escapes.
fn inside(location: &Location, value: &str, span: Range<usize>) -> Location {
    let written = location.source.text.get(location.span.clone()).unwrap_or_default();
    let quotes = ["\"\"\"", "'''", "\"", "'", ""].into_iter().find(|quote| written == format!("{quote}{value}{quote}"));
    match quotes {
        Some(quote) => {
            let start = location.span.start + quote.len();
            Location { source: location.source.clone(), span: start + span.start..start + span.end }
        }
        None => location.clone(),
    }
}

struct Parser<'t, 's, 'v> {
    text: &'t str,
    at: usize,
    depth: usize,
    scope: &'s mut Scope<'v>,
}

impl Parser<'_, '_, '_> {
    fn blanks(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn take(&mut self, token: char) -> bool {
        self.blanks();
        let found = self.text[self.at..].starts_with(token);
        if found {
            self.at += token.len_utf8();
        }
        found
    }

    fn fault(&self, from: usize, message: impl Into<String>) -> Fault {
        Fault { message: message.into(), span: from..self.at.max(from), hint: None }
    }

    fn word(&mut self) -> Option<String> {
        self.blanks();
        let rest = &self.text[self.at..];
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-')).unwrap_or(rest.len());
        // A minus is part of a name only between letters: `disk-size`, but `index-1` is a subtraction.
        let bytes = rest.as_bytes();
        let letter = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_alphabetic);
        let end = (0..end).find(|&at| bytes[at] == b'-' && !(at > 0 && letter(at + 1))).unwrap_or(end);
        if end == 0 || rest.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        self.at += end;
        Some(rest[..end].to_owned())
    }

    /// Reads names joined by dots, like `each.size` or `secret.db-password`.
    fn dotted(&mut self) -> Option<String> {
        let mut name = self.word()?;
        while self.text[self.at..].starts_with('.') && self.text[self.at + 1..].starts_with(|c: char| c.is_ascii_alphanumeric()) {
            self.at += 1;
            // A part may begin with a digit, but a whole name may not.
            let rest = &self.text[self.at..];
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            self.at += digits;
            let more = self.word().unwrap_or_default();
            name = format!("{name}.{}{more}", &rest[..digits]);
        }
        Some(name)
    }

    fn value(&mut self) -> Result<Scalar, Fault> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.fault(self.at, "the expression is nested too deeply"));
        }
        let start = self.at;
        let mut value = match self.sum() {
            // Only the filter `default` accepts a variable that is not set.
            Err(fault) if fault.message.ends_with("is not set") && self.default_follows() => None,
            other => Some(other?),
        };
        while self.take('|') {
            self.blanks();
            let from = self.at;
            let name = self.word().ok_or_else(|| self.fault(from, "a filter is missing after `|`"))?;
            let mut arguments = Vec::new();
            if self.take('(') {
                loop {
                    arguments.push(self.value()?);
                    if !self.take(',') {
                        break;
                    }
                }
                if !self.take(')') {
                    return Err(self.fault(self.at, "`)` is missing"));
                }
            }
            value =
                Some(filter(value, &name, &arguments).map_err(|(message, hint)| Fault { hint, ..self.fault(from, message) })?);
        }
        self.depth -= 1;
        value.ok_or_else(|| self.fault(start, "a value is missing here"))
    }

    fn default_follows(&mut self) -> bool {
        self.blanks();
        self.text[self.at..].strip_prefix('|').is_some_and(|rest| rest.trim_start().starts_with("default"))
    }

    fn sum(&mut self) -> Result<Scalar, Fault> {
        self.blanks();
        let from = self.at;
        let mut left = self.product()?;
        loop {
            let operator = if self.take('+') {
                '+'
            } else if self.take('-') {
                '-'
            } else {
                return Ok(left);
            };
            let right = self.product()?;
            left = self.operate(from, left, operator, right)?;
        }
    }

    fn product(&mut self) -> Result<Scalar, Fault> {
        self.blanks();
        let from = self.at;
        let mut left = self.factor()?;
        loop {
            let operator = if self.take('*') {
                '*'
            } else if self.take('/') {
                '/'
            } else if self.take('%') {
                '%'
            } else {
                return Ok(left);
            };
            let right = self.factor()?;
            left = self.operate(from, left, operator, right)?;
        }
    }

    fn operate(&self, from: usize, left: Scalar, operator: char, right: Scalar) -> Result<Scalar, Fault> {
        let (a, b) = match (&left, &right) {
            (Scalar::Integer(a), Scalar::Integer(b)) => (*a, *b),
            (Scalar::Text(a), Scalar::Text(b)) if operator == '+' => {
                if a.len() + b.len() > MAX_TEXT_BYTES {
                    return Err(self.fault(from, "the text grows beyond 64 KiB"));
                }
                return Ok(Scalar::Text(format!("{a}{b}")));
            }
            _ => {
                let message = format!("`{operator}` does not go with {} and {}", left.kind(), right.kind());
                return Err(Fault {
                    hint: Some("a text is put together as `\"disk{{ index }}\"`".into()),
                    ..self.fault(from, message)
                });
            }
        };
        let result = match operator {
            '+' => a.checked_add(b),
            '-' => a.checked_sub(b),
            '*' => a.checked_mul(b),
            _ if b == 0 => return Err(self.fault(from, "division by zero")),
            '/' => a.checked_div(b),
            _ => a.checked_rem(b),
        };
        result.map(Scalar::Integer).ok_or_else(|| self.fault(from, "the result does not fit in 64 bits"))
    }

    fn factor(&mut self) -> Result<Scalar, Fault> {
        self.blanks();
        let from = self.at;
        if self.take('(') {
            let value = self.value()?;
            return if self.take(')') { Ok(value) } else { Err(self.fault(self.at, "`)` is missing")) };
        }
        if self.take('-') {
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return Err(self.fault(from, "the expression is nested too deeply"));
            }
            let zero = Scalar::Integer(0);
            let value = self.factor()?;
            self.depth -= 1;
            return self.operate(from, zero, '-', value);
        }
        let rest = &self.text[from..];
        if let Some(quote) = rest.chars().next().filter(|c| matches!(c, '"' | '\'')) {
            let Some(end) = rest[1..].find(quote) else {
                self.at = self.text.len();
                return Err(self.fault(from, format!("the text after {quote} is never closed")));
            };
            self.at = from + end + 2;
            return Ok(Scalar::Text(rest[1..=end].to_owned()));
        }
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        if digits > 0 {
            self.at += digits;
            let number = rest[..digits].parse();
            return number.map(Scalar::Integer).map_err(|_| self.fault(from, "the number does not fit in 64 bits"));
        }
        match self.dotted() {
            Some(word) if word == "true" || word == "false" => Ok(Scalar::Flag(word == "true")),
            Some(word) => self.scope.lookup(&word).map_err(|(message, hint)| Fault { hint, ..self.fault(from, message) }),
            None if rest.starts_with("}}") => Err(self.fault(from, "a value is missing here")),
            None => match rest.chars().next() {
                Some(c) => {
                    Err(Fault { span: from..from + c.len_utf8(), ..self.fault(from, format!("`{c}` is not expected here")) })
                }
                None => Err(self.fault(from, "`{{` is never closed")),
            },
        }
    }
}

const FILTERS: [&str; 6] = ["upper", "lower", "trim", "pad", "replace", "default"];

fn filter(value: Option<Scalar>, name: &str, arguments: &[Scalar]) -> Result<Scalar, (String, Option<String>)> {
    let wrong = |usage: &str| (format!("filter `{name}` is used as `{usage}`"), None);
    if name == "default" {
        let [fallback] = arguments else { return Err(wrong("default(VALUE)")) };
        return Ok(value.unwrap_or_else(|| fallback.clone()));
    }
    let value = value.expect("only a `default` may follow a variable that is not set").to_text();
    let text = match (name, arguments) {
        ("upper", []) => value.to_uppercase(),
        ("lower", []) => value.to_lowercase(),
        ("trim", []) => value.trim().to_owned(),
        ("upper" | "lower" | "trim", _) => return Err(wrong(name)),
        ("pad", [Scalar::Integer(width @ 0..=64)]) => format!("{value:0>0$}", *width as usize),
        ("pad", _) => return Err(wrong("pad(WIDTH)")),
        ("replace", [Scalar::Text(from), Scalar::Text(to)]) if !from.is_empty() => {
            let count = value.matches(from.as_str()).count();
            if value.len() + count * to.len() > MAX_TEXT_BYTES {
                return Err(("the text grows beyond 64 KiB".into(), None));
            }
            value.replace(from.as_str(), to)
        }
        ("replace", _) => return Err(wrong("replace(\"FROM\", \"TO\")")),
        _ => {
            let hint = nearest(name, FILTERS)
                .map_or_else(|| format!("known: {}", FILTERS.join(", ")), |near| format!("did you mean `{near}`?"));
            return Err((format!("there is no filter `{name}`"), Some(hint)));
        }
    };
    Ok(Scalar::Text(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::diagnostic::Source;
    use crate::config::keys::GUEST_KEYS;
    use crate::config::layer::Layer;

    fn expand(vars: &str, text: &str) -> Result<Scalar, String> {
        let source = Source { label: "t".into(), text: vars.into(), directory: None };
        let layer = Layer::parse(source, &GUEST_KEYS).unwrap();
        let mut scope = Scope::new(Some(&layer.table));
        scope.give("name", Scalar::Text("web".into()));
        scope.give("index", Scalar::Integer(3));
        scope.expand(text).map_err(|fault| fault.message)
    }

    #[test]
    fn a_text_that_is_one_expression_keeps_its_type() {
        assert_eq!(expand("", "{{ 2200 + index }}"), Ok(Scalar::Integer(2203)));
        assert_eq!(expand("", "{{index}} "), Ok(Scalar::Text("3 ".into())));
        assert_eq!(expand("", "{{ name }}-{{ index }}"), Ok(Scalar::Text("web-3".into())));
        assert_eq!(expand("", "{{ true }}"), Ok(Scalar::Flag(true)));
    }

    #[test]
    fn arithmetic_binds_as_in_school() {
        assert_eq!(expand("", "{{ 1 + 2 * 3 }}"), Ok(Scalar::Integer(7)));
        assert_eq!(expand("", "{{ (1 + 2) * -3 % 5 }}"), Ok(Scalar::Integer(-4)));
        assert_eq!(expand("", "{{ 7 / 2 - index-1 }}"), Ok(Scalar::Integer(-1)));
        assert_eq!(expand("", "{{ 'a' + \"b\" }}"), Ok(Scalar::Text("ab".into())));
        assert_eq!(expand("", "{{ \"{{\" }}"), Ok(Scalar::Text("{{".into())));
    }

    #[test]
    fn names_may_be_joined_by_dots_and_are_found_without_being_computed() {
        assert!(expand("", "{{ each.size }}").unwrap_err().contains("variable `each.size` is not set"));
        assert!(expand("", "{{ secret.1st-key }}").unwrap_err().contains("variable `secret.1st-key` is not set"));
        assert_eq!(names_in("a {{ b.c + 'd' }} e {{ f | pad(3) }} {{ \"g"), ["b.c", "f", "pad"]);
        assert!(names_in("{{ é 'x }}{{").is_empty());
    }

    #[test]
    fn variables_may_use_variables_but_not_themselves() {
        assert_eq!(expand("a = '{{ b * 2 }}'\nb = 4", "{{ a }}"), Ok(Scalar::Integer(8)));
        assert!(expand("a = '{{ b }}'\nb = '{{ a }}'", "{{ a }}").unwrap_err().contains("depends on itself: a -> b -> a"));
        assert_eq!(expand("disk-size = '8G'", "{{ disk-size }}"), Ok(Scalar::Text("8G".into())));
    }

    #[test]
    fn filters_change_texts_and_default_forgives_an_unset_variable() {
        assert_eq!(expand("", "{{ name | upper }}"), Ok(Scalar::Text("WEB".into())));
        assert_eq!(expand("", "{{ index | pad(3) }}"), Ok(Scalar::Text("003".into())));
        assert_eq!(expand("", "{{ name | replace('w', 'vv') }}"), Ok(Scalar::Text("vveb".into())));
        assert_eq!(expand("", "{{ nothing | default(5) }}"), Ok(Scalar::Integer(5)));
        assert_eq!(expand("", "{{ nothing | upper }}").unwrap_err(), "variable `nothing` is not set");
    }

    #[test]
    fn faults_are_errors_and_growth_is_bounded() {
        for text in [
            "{{",
            "{{ }}",
            "{{ 1 +",
            "{{ 1 / 0 }}",
            "{{ 1 + 'a' }}",
            "{{ 9223372036854775807 + 1 }}",
            "{{ name | x }}",
            "{{ name | pad(1000) }}",
            "{{ (1 }}",
            "{{ 'a }}",
            "{{ é }}",
            "{{ 99999999999999999999 }}",
            "{{ --9223372036854775808 }}",
            "{{ name | }}",
            "{{ name | pad( }}",
        ] {
            assert!(expand("", text).is_err(), "{text}");
        }
        assert!(expand("", &format!("{{{{ {} }}}}", "(".repeat(100_000))).is_err());
        assert!(expand("", &format!("{{{{ {} }}}}", "-".repeat(100_000))).is_err());
        let vars: String = (1..30).map(|n| format!("v{n} = '{{{{ v{} }}}}{{{{ v{} }}}}'\n", n - 1, n - 1)).collect();
        assert!(expand(&format!("v0 = 'xxxxxxxx'\n{vars}"), "{{ v29 }}").unwrap_err().contains("64 KiB"));
    }
}
