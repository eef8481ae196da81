//! Search for a circle in a graph of names, for messages.

use std::collections::{BTreeMap, BTreeSet};

/// Returns the names on a circle of `edges`, with the first one again at the end, or `None`. Names without a line of
/// their own have no edges. It takes time in proportion to the edges and no stack.
pub fn circle<'a>(edges: &BTreeMap<&'a str, Vec<&'a str>>) -> Option<Vec<&'a str>> {
    let mut done: BTreeSet<&str> = BTreeSet::new();
    for start in edges.keys() {
        // The path from `start`, each with the number of its edges that were followed.
        let mut path: Vec<(&str, usize)> = vec![(start, 0)];
        let mut on_path: BTreeSet<&str> = [*start].into();
        while let Some((name, next)) = path.last_mut() {
            let (name, edge) = (*name, edges.get(name).and_then(|to| to.get(*next)).copied());
            *next += 1;
            match edge {
                Some(to) if on_path.contains(to) => {
                    let from = path.iter().position(|(name, _)| *name == to).expect("it is on the path");
                    return Some(path[from..].iter().map(|(name, _)| *name).chain([to]).collect());
                }
                Some(to) if !done.contains(to) => {
                    on_path.insert(to);
                    path.push((to, 0));
                }
                Some(_) => {}
                None => {
                    on_path.remove(name);
                    done.insert(name);
                    path.pop();
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circle_is_shown_from_its_first_name_to_itself_and_a_diamond_is_none() {
        let circle_of =
            |edges: &[(&'static str, &[&'static str])]| circle(&edges.iter().map(|(name, to)| (*name, to.to_vec())).collect());
        assert_eq!(circle_of(&[("a", &["b", "c"]), ("b", &["d"]), ("c", &["d"]), ("d", &["not-here"])]), None);
        assert_eq!(circle_of(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])]), Some(vec!["b", "c", "b"]));
        assert_eq!(circle_of(&[("a", &["a"])]), Some(vec!["a", "a"]));
    }
}
