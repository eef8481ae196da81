//! `test` and `[`: strings, numbers and files (GNU GRUB manual 2.06, "test").

use std::cmp::Ordering;

use super::Shell;
use crate::machine::loader::volume::{NodeKind, VolumeError};

/// Maximum nesting of parentheses and negations.
const MAX_DEPTH: usize = 32;

/// Returns whether the expression holds, or `None` if it is not valid.
pub fn test(shell: &Shell<'_>, words: &[String]) -> Option<bool> {
    let mut words = words;
    let value = either(shell, &mut words, 0)?;
    words.is_empty().then_some(value)
}

fn either(shell: &Shell<'_>, words: &mut &[String], depth: usize) -> Option<bool> {
    let mut value = both(shell, words, depth)?;
    while let [first, rest @ ..] = *words
        && first == "-o"
    {
        *words = rest;
        value |= both(shell, words, depth)?;
    }
    Some(value)
}

fn both(shell: &Shell<'_>, words: &mut &[String], depth: usize) -> Option<bool> {
    let mut value = one(shell, words, depth)?;
    while let [first, rest @ ..] = *words
        && first == "-a"
    {
        *words = rest;
        value &= one(shell, words, depth)?;
    }
    Some(value)
}

fn one(shell: &Shell<'_>, words: &mut &[String], depth: usize) -> Option<bool> {
    if depth > MAX_DEPTH {
        return None;
    }
    if let [left, operator, right, rest @ ..] = *words
        && let Some(value) = compare(left, operator, right)
    {
        *words = rest;
        return Some(value);
    }
    match *words {
        [] => Some(false),
        [first, rest @ ..] if first == "!" => {
            *words = rest;
            one(shell, words, depth + 1).map(|value| !value)
        }
        [first, rest @ ..] if first == "(" => {
            *words = rest;
            let value = either(shell, words, depth + 1)?;
            match *words {
                [close, rest @ ..] if close == ")" => {
                    *words = rest;
                    Some(value)
                }
                _ => None,
            }
        }
        [operator, operand, rest @ ..] if is_unary(operator) => {
            let value = unary(shell, operator, operand);
            *words = rest;
            Some(value)
        }
        [word, rest @ ..] => {
            let value = !word.is_empty();
            *words = rest;
            Some(value)
        }
    }
}

fn is_unary(operator: &str) -> bool {
    matches!(operator, "-d" | "-e" | "-f" | "-s" | "-n" | "-z")
}

fn unary(shell: &Shell<'_>, operator: &str, operand: &str) -> bool {
    let kind = || shell.kind_of(operand);
    match operator {
        "-n" => !operand.is_empty(),
        "-z" => operand.is_empty(),
        "-d" => kind() == Some(NodeKind::Directory),
        "-f" => kind() == Some(NodeKind::File),
        "-s" => shell.locate(operand).is_ok_and(|(volume, path)| match volume.read(&path, 0) {
            Err(VolumeError::TooLarge { .. }) => true,
            other => shell.answered(operand, other).is_some_and(|bytes| !bytes.is_empty()),
        }),
        _ => kind().is_some(),
    }
}

/// Returns the number after a prefix, as `-pgt` compares them, or 0 if there is none.
fn number(text: &str) -> i64 {
    let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
    let sign = if text[..text.len() - digits.len()].ends_with('-') { -1 } else { 1 };
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse::<i64>().unwrap_or(0) * sign
}

fn compare(left: &str, operator: &str, right: &str) -> Option<bool> {
    let text = left.cmp(right);
    let (a, b) = (number(left), number(right));
    Some(match operator {
        "=" | "==" => text == Ordering::Equal,
        "!=" => text != Ordering::Equal,
        "<" => text == Ordering::Less,
        "<=" => text != Ordering::Greater,
        ">" => text == Ordering::Greater,
        ">=" => text != Ordering::Less,
        "-eq" => a == b,
        "-ne" => a != b,
        "-lt" => a < b,
        "-le" => a <= b,
        "-gt" | "-pgt" => a > b,
        "-ge" => a >= b,
        "-plt" => a < b,
        _ => return None,
    })
}
