//! A picture of guests, the switches that they are on and the order in which they start, as SVG 1.1.
//!
//! Guests are in columns by the step in which they start, in the order of their names; an arrow leads from a guest to
//! one that starts after it. A switch is a line above all columns, from which a trunk comes down before each column
//! that has guests on it. The same guests give the same picture, byte for byte.
//!
//! dot(1) was tried on the forty guests of `examples/fleet`: with the switches as nodes it draws a bundle of lines that nobody
//! can follow, without them a larger picture in which the guests of a step are out of order. This layout knows that columns
//! are steps and that a switch is one line for all; dot cannot be told so.

use std::collections::BTreeMap;
use std::fmt::Write;

/// One guest.
#[derive(Debug, Clone)]
pub struct GraphGuest {
    /// Its name.
    pub name: String,
    /// State, such as `running` or `stopped`.
    pub state: String,
    /// Processors and memory, in words.
    pub detail: String,
    /// Step of the start with the host, from 0.
    pub step: Option<usize>,
    /// Guests after which it starts.
    pub after: Vec<String>,
    /// Switches of its interfaces.
    pub switches: Vec<String>,
}

const BOX_WIDTH: usize = 190;
const BOX_HEIGHT: usize = 44;
const ROW: usize = 56;
const MARGIN: usize = 24;
const BUS_HEIGHT: usize = 22;
/// Width between columns that every trunk adds.
const GUTTER: usize = 64;
const TRUNK: usize = 8;
/// Maximum number of characters of a text in a box.
const FITS: usize = 24;
/// Okabe and Ito's colours, which people with colour-blindness can distinguish.
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5f5f5f"];

/// Returns the picture as SVG.
pub fn svg(title: &str, mut nodes: Vec<GraphGuest>) -> String {
    nodes.sort_by(|a, b| (a.step.unwrap_or(usize::MAX), &a.name).cmp(&(b.step.unwrap_or(usize::MAX), &b.name)));
    let layout = Layout::of(&nodes);
    let mut out = String::new();
    let (width, height) = (layout.width, layout.height);
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"DejaVu Sans, Helvetica, sans-serif\" font-size=\"12\">"
    );
    let _ = writeln!(out, "<title>{}</title>", escaped(title));
    out.push_str(
        "<defs><marker id=\"arrow\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" \
         orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" fill=\"#444\"/></marker></defs>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
    );
    let _ = writeln!(out, "<text x=\"{MARGIN}\" y=\"26\" font-size=\"16\" font-weight=\"bold\">{}</text>", escaped(title));
    layout.heads(&mut out);
    layout.switches(&nodes, &mut out);
    layout.arrows(&nodes, &mut out);
    for node in &nodes {
        layout.guest(node, &mut out);
    }
    out.push_str("</svg>\n");
    out
}

/// Positions of all elements.
struct Layout {
    /// Left edge of each column. The last column has the guests that do not start with the host.
    columns: Vec<usize>,
    /// Headings of the columns.
    titles: Vec<String>,
    /// Column and row of each guest.
    places: BTreeMap<String, (usize, usize)>,
    /// The switches, in the order of their lines.
    switches: Vec<String>,
    top: usize,
    width: usize,
    height: usize,
}

impl Layout {
    fn of(nodes: &[GraphGuest]) -> Layout {
        let mut switches: Vec<String> = nodes.iter().flat_map(|node| node.switches.iter().cloned()).collect();
        switches.sort();
        switches.dedup();
        let steps = nodes.iter().filter_map(|node| node.step).max().map_or(0, |most| most + 1);
        let mut titles: Vec<String> = (1..=steps).map(|step| format!("step {step}")).collect();
        if nodes.iter().any(|node| node.step.is_none()) {
            titles.push("not started with the host".into());
        }
        let mut rows = vec![0; titles.len()];
        let mut places = BTreeMap::new();
        for node in nodes {
            let column = node.step.unwrap_or(steps);
            places.insert(node.name.clone(), (column, rows[column]));
            rows[column] += 1;
        }
        let pitch = BOX_WIDTH + GUTTER + TRUNK * switches.len();
        let columns: Vec<usize> = (0..titles.len()).map(|at| MARGIN + TRUNK * switches.len() + 16 + at * pitch).collect();
        let top = 44 + BUS_HEIGHT * switches.len() + 26;
        let width = columns.last().map_or(400, |left| left + BOX_WIDTH + MARGIN);
        let height = top + ROW * rows.iter().max().copied().unwrap_or(0) + MARGIN;
        Layout { columns, titles, places, switches, top, width, height }
    }

    fn corner(&self, name: &str) -> Option<(usize, usize)> {
        self.places.get(name).map(|(column, row)| (self.columns[*column], self.top + ROW * row))
    }

    fn heads(&self, out: &mut String) {
        for (title, left) in self.titles.iter().zip(&self.columns) {
            let _ = writeln!(out, "<text x=\"{left}\" y=\"{}\" fill=\"#666\">{title}</text>", self.top - 10);
        }
    }

    /// Draws lines, trunks and stubs.
    fn switches(&self, nodes: &[GraphGuest], out: &mut String) {
        for (at, switch) in self.switches.iter().enumerate() {
            let colour = COLOURS[at % COLOURS.len()];
            let y = 54 + BUS_HEIGHT * at;
            let right = self.width - MARGIN;
            let _ = writeln!(out, "<g stroke=\"{colour}\" fill=\"none\">");
            let _ = writeln!(out, "<path d=\"M{MARGIN} {y}H{right}\" stroke-width=\"4\"/>");
            for (column, left) in self.columns.iter().enumerate() {
                let x = left - 12 - TRUNK * at;
                let on = nodes.iter().filter(|node| node.switches.contains(switch));
                let rows: Vec<usize> = on
                    .filter_map(|node| self.places.get(&node.name))
                    .filter(|(c, _)| *c == column)
                    .map(|(_, row)| *row)
                    .collect();
                let Some(lowest) = rows.iter().max() else { continue };
                let stub = |row: &usize| self.top + ROW * row + 10 + (TRUNK * at) % (BOX_HEIGHT - 16);
                let _ = writeln!(out, "<path d=\"M{x} {y}V{}\" stroke-width=\"1.5\"/>", stub(lowest));
                for row in &rows {
                    let _ = writeln!(out, "<path d=\"M{x} {}H{left}\" stroke-width=\"1.5\"/>", stub(row));
                }
            }
            out.push_str("</g>\n");
            let _ = writeln!(
                out,
                "<text x=\"{right}\" y=\"{}\" text-anchor=\"end\" fill=\"{colour}\">{}</text>",
                y - 5,
                escaped(&fitting(switch))
            );
        }
    }

    fn arrows(&self, nodes: &[GraphGuest], out: &mut String) {
        out.push_str("<g stroke=\"#444\" stroke-opacity=\"0.55\" fill=\"none\" marker-end=\"url(#arrow)\">\n");
        for node in nodes {
            let Some((to_x, to_y)) = self.corner(&node.name) else { continue };
            for (from_x, from_y) in node.after.iter().filter_map(|after| self.corner(after)) {
                let (x1, y1) = (from_x + BOX_WIDTH, from_y + BOX_HEIGHT / 2);
                let (x2, y2) = (to_x, to_y + BOX_HEIGHT / 2);
                let bend = x2.saturating_sub(x1).max(60) / 2;
                let _ = writeln!(out, "<path d=\"M{x1} {y1}C{} {y1} {} {y2} {x2} {y2}\"/>", x1 + bend, x2.saturating_sub(bend));
            }
        }
        out.push_str("</g>\n");
    }

    fn guest(&self, node: &GraphGuest, out: &mut String) {
        let Some((x, y)) = self.corner(&node.name) else { return };
        let (fill, edge) = match node.state.as_str() {
            "running" => ("#e3f4e8", "#2e7d46"),
            "failed" => ("#fde4e1", "#b3261e"),
            "stopped" => ("#f2f2f2", "#888"),
            _ => ("#fff6dd", "#9a7400"),
        };
        let _ = writeln!(
            out,
            "<g><rect x=\"{x}\" y=\"{y}\" width=\"{BOX_WIDTH}\" height=\"{BOX_HEIGHT}\" rx=\"5\" fill=\"{fill}\" stroke=\"{edge}\"/>\
             <text x=\"{}\" y=\"{}\" font-weight=\"bold\">{}</text>\
             <text x=\"{}\" y=\"{}\" font-size=\"10\" fill=\"#555\">{}</text></g>",
            x + 10,
            y + 18,
            escaped(&fitting(&node.name)),
            x + 10,
            y + 34,
            escaped(&format!("{} · {}", node.state, node.detail)),
        );
    }
}

/// Shortens a text so that it fits in a box.
fn fitting(text: &str) -> String {
    match text.chars().count() {
        count if count > FITS => text.chars().take(FITS - 1).chain(['…']).collect(),
        _ => text.to_owned(),
    }
}

/// Escapes a text as XML character data. Characters that XML 1.0 does not allow become U+FFFD.
fn escaped(text: &str) -> String {
    let mut result = String::new();
    for c in text.chars() {
        match c {
            '&' => result.push_str("&amp;"),
            '<' => result.push_str("&lt;"),
            '>' => result.push_str("&gt;"),
            '"' => result.push_str("&quot;"),
            '\t' | '\n' | '\r' => result.push(' '),
            c if c < ' ' || matches!(c, '\u{fffe}' | '\u{ffff}') => result.push('\u{fffd}'),
            c => result.push(c),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, step: Option<usize>, after: &[&str]) -> GraphGuest {
        GraphGuest {
            name: name.into(),
            state: "stopped".into(),
            detail: "1 CPU, 64MiB".into(),
            step,
            after: after.iter().map(|name| (*name).to_owned()).collect(),
            switches: vec!["lan".into()],
        }
    }

    #[test]
    fn a_picture_does_not_depend_on_the_order_of_its_guests() {
        let (a, b) = (node("db", Some(0), &[]), node("web", Some(1), &["db", "gone"]));
        let one = svg("room", vec![a.clone(), b.clone()]);
        assert_eq!(one, svg("room", vec![b, a]));
        assert_eq!(one.matches("marker-end").count(), 1);
        let curve = |pair: &&[u8]| pair[0].is_ascii_digit() && pair[1] == b'C';
        assert_eq!(one.as_bytes().windows(2).filter(curve).count(), 1, "{one}");
    }

    #[test]
    fn texts_cannot_leave_their_place() {
        let mut guest = node("a", None, &[]);
        guest.detail = "</text><script>\"&\u{1}\n".into();
        let picture = svg("<&>", vec![guest]);
        assert!(picture.contains("&lt;/text&gt;&lt;script&gt;&quot;&amp;\u{fffd} "), "{picture}");
        assert!(picture.contains("<title>&lt;&amp;&gt;</title>"));
    }
}
